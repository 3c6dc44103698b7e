"""The parameters of a bundle as deltas change them: many threads read, one replaces.

Every table is mapped twice, privately: pages that no delta has touched are shared
with the file, the others are copies in memory. Readers use one of the two sides. A
delta is written to the other one, which then becomes theirs; when the last reader has
left the first side, it is written there too. So a reader finds either all of a delta
or nothing of it, waits for nothing, and reads plain arrays.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import pathlib
import threading
from typing import Any

import jax
import numpy as np

from rankax.serving import delta as deltas
from rankax.serving.bundle import Bundle
from rankax.serving.delta import Delta, DeltaError

_ROWS_AT_ONCE = 4096

Rows = dict[str, dict[str, np.ndarray]]  # role -> table -> [V, D]


@dataclasses.dataclass(slots=True, kw_only=True)
class Version:
    """Parameters that stay as they are for as long as they are read.

    Attributes:
        number: of the last delta, 0 = the bundle itself.
        step: training step.
        complete_step: the last one that all rows were published at.
        dense: dense parameters on the device.
        rows: of the tables.
        num_readers: at the moment.
    """

    number: int
    step: int
    complete_step: int
    dense: dict[str, Any]
    rows: Rows
    num_readers: int = 0


class Versions:
    """The newest version of a bundle's parameters."""

    def __init__(self, bundle: Bundle):
        """Starts with the bundle itself.

        Raises:
            BundleError: it is damaged.
        """
        self._bundle = bundle
        step = bundle.signature["step"]
        self._newest = Version(
            number=0,
            step=step,
            complete_step=step,
            dense=jax.device_put(bundle.dense),
            rows=bundle.map_rows(),
        )
        # Mapped now: another bundle may take the place of this one.
        self._other = bundle.map_rows()
        self._writing = threading.Lock()
        self._changed = threading.Condition()  # guards `_newest` and the readers

    @property
    def newest(self) -> Version:
        """To look at its numbers; rows are for `reading`."""
        return self._newest

    @contextlib.contextmanager
    def reading(self) -> Iterator[Version]:
        """Gives the newest version, which stays as it is until the context is left."""
        with self._changed:
            version = self._newest
            version.num_readers += 1
        try:
            yield version
        finally:
            with self._changed:
                version.num_readers -= 1
                if not version.num_readers:
                    self._changed.notify_all()

    def catch_up(self) -> int:
        """Applies all deltas that are in the bundle's folder; returns how many.

        Raises:
            DeltaError: one is damaged or missing; those before it are applied.
        """
        folder, first = self._bundle.folder, self._newest.number
        while (last := max(deltas.numbers(folder), default=0)) > self._newest.number:
            for number in range(self._newest.number + 1, last + 1):
                self.apply(deltas.file_of(folder, number))
        return self._newest.number - first

    def apply(self, path: str | pathlib.Path) -> Delta:
        """Applies the next delta; reading goes on meanwhile.

        Returns:
            The delta.

        Raises:
            DeltaError: it is damaged, of another bundle, or not the next one; nothing
                has changed.
        """
        with self._writing:
            delta = deltas.read(path, self._bundle)
            header, old = delta.header, self._newest
            next_one = old.number + 1, old.step
            if (header.number, header.previous_step) != next_one:
                raise DeltaError(
                    f"{path} is delta {header.number} from step "
                    f"{header.previous_step:,}, but next is delta {next_one[0]} from "
                    f"step {old.step:,}; apply all deltas in order, or open a newer "
                    "bundle"
                )
            rows = self._other
            _write(delta, rows)
            dense = old.dense if delta.dense is None else jax.device_put(delta.dense)
            with self._changed:
                self._newest = Version(
                    number=header.number,
                    step=header.step,
                    complete_step=(
                        header.step if header.is_complete else old.complete_step
                    ),
                    dense=dense,
                    rows=rows,
                )
                self._changed.wait_for(lambda: not old.num_readers)
            _write(delta, old.rows)
            self._other = old.rows
        return delta


def _write(delta: Delta, rows: Rows) -> None:
    for (role, table), change in delta.changes.items():
        # Readers get no turn within a statement of NumPy, so each is a short one.
        for start in range(0, len(change.ids), _ROWS_AT_ONCE):
            piece = slice(start, start + _ROWS_AT_ONCE)
            rows[role][table][change.ids[piece]] = change.rows[piece]
