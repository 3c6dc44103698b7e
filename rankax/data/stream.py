"""Splits as one stream of time, and its windows as splits of their own."""

from collections.abc import Iterable, Sequence
import hashlib

import numpy as np
import pyarrow as pa

from rankax.data.order import Window
from rankax.data.source import SplitSource


class Stream:
    """Splits one after the other, as a `SplitSource`."""

    def __init__(self, name: str, splits: Sequence[SplitSource]):
        """Reads nothing.

        Args:
            name: for messages.
            splits: in the order of time.
        """
        self.name = name
        self.rows_per_group = np.concatenate([split.rows_per_group for split in splits])
        self.fingerprint = _digest(split.fingerprint for split in splits)
        self.text_ids = splits[0].text_ids
        self._places = [
            (split, group)
            for split in splits
            for group in range(len(split.rows_per_group))
        ]

    def read(self, group: int) -> pa.Table:
        """Returns the columns in need of one row group."""
        split, own = self._places[group]
        return split.read(own)

    def times(self, group: int) -> np.ndarray:
        """Returns the card's time column [n] int64 of one row group."""
        split, own = self._places[group]
        return split.times(own)

    def time_range(self, group: int) -> tuple[int, int] | None:
        """Returns its least and its largest time, if known without reading it."""
        split, own = self._places[group]
        return split.time_range(own)

    def where(self, group: int) -> str:
        """Names a row group in messages."""
        split, own = self._places[group]
        return split.where(own)


class WindowSplit:
    """One window of a stream (`rankax.data.order.time_windows`) as a `SplitSource`."""

    def __init__(self, stream: SplitSource, window: Window, number: int):
        """Reads nothing.

        Args:
            stream: what it is a part of.
            window: its rows.
            number: counted from 0.
        """
        self.name = f"{stream.name}/window {number}"
        self.rows_per_group = np.array([unit.num_rows for unit in window], np.int64)
        self.fingerprint = _digest((stream.fingerprint, str(number), str(window)))
        self.text_ids = stream.text_ids
        self._stream, self._window = stream, window

    def read(self, group: int) -> pa.Table:
        """Returns the columns in need of its part of one row group."""
        unit = self._window[group]
        return self._stream.read(unit.group).slice(unit.start, unit.num_rows)

    def times(self, group: int) -> np.ndarray:
        """Returns the card's time column [n] int64 of its part of one row group."""
        unit = self._window[group]
        return self._stream.times(unit.group)[unit.start : unit.stop]

    def time_range(self, group: int) -> tuple[int, int] | None:
        """Returns its least and its largest time, if known without reading it."""
        unit = self._window[group]
        is_whole = unit.num_rows == self._stream.rows_per_group[unit.group]
        return self._stream.time_range(unit.group) if is_whole else None

    def where(self, group: int) -> str:
        """Names the row group in messages."""
        return self._stream.where(self._window[group].group)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("/".join(texts).encode()).hexdigest()[:12]
