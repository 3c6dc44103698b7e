"""How the rows of one raw file become train, valid and test."""

from collections.abc import Callable, Iterator
import dataclasses

import numpy as np
import pyarrow as pa

from rankax.config.base import suggest
from rankax.data.card import DataError

SPLITS = ("train", "valid", "test")
KINDS = ("random", "time", "column")
GRAMMAR = "random:SHARES:seed=N, time:COLUMN:SHARES or column:COLUMN"

Chunks = Callable[[], Iterator[pa.Table]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitRule:
    """A parsed `--split`.

    Attributes:
        kind: "random", "time" (oldest rows train, newest test), or "column" (a column
            that says train, valid or test).
        column: of "time" and "column".
        shares: of train, valid and test, sum 1; of "random" and "time".
        seed: of "random".
    """

    kind: str
    column: str = ""
    shares: tuple[float, ...] = ()
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> "SplitRule":
        """Reads one of `GRAMMAR`.

        Raises:
            DataError: anything else.
        """
        kind, *rest = text.split(":")
        if kind not in KINDS:
            raise DataError(f"--split={text}: {kind!r}; {suggest(kind, KINDS)}")
        try:
            match kind, rest:
                case "random", [shares, seed] if seed.startswith("seed="):
                    return cls(kind=kind, shares=_shares(shares), seed=int(seed[5:]))
                case "time", [column, shares]:
                    return cls(kind=kind, column=column, shares=_shares(shares))
                case "column", [column]:
                    return cls(kind=kind, column=column)
        except ValueError as error:
            raise DataError(f"--split={text}: {error}") from error
        raise DataError(f"--split={text} is not understood; use {GRAMMAR}")

    @property
    def columns(self) -> dict[str, str]:
        """Columns that the rule reads, with their kinds for `raw_files`."""
        kinds = {"time": "time", "column": "id"}
        return {self.column: kinds[self.kind]} if self.column else {}

    def assign(self, chunks: Chunks) -> tuple[str, Chunks]:
        """Decides the split of every row.

        Args:
            chunks: starts a new reading of the file.

        Returns:
            The rule in words, for the card; and a function that starts a new reading
            in which every chunk has one more column `SPLIT_COLUMN`, 0 .. 2.
        """
        if self.kind == "random":
            rule = f"at random, shares {self.shares}, seed {self.seed}"
            return rule, lambda: _assign_random(chunks(), self.shares, self.seed)
        if self.kind == "time":
            cuts = self._cuts(chunks)
            rule = (
                f"by {self.column}: valid from {cuts[0]}, test from {cuts[1]} on "
                "(timestamps in microseconds)"
            )
            return rule, lambda: _assign_time(chunks(), self.column, cuts)
        rule = f"by column {self.column}"
        return rule, lambda: _assign_column(chunks(), self.column)

    def _cuts(self, chunks: Chunks) -> np.ndarray:
        """Returns the first times of valid and test; equal times stay together."""
        times = [_times(chunk, self.column) for chunk in chunks()]
        if not times:
            raise DataError(f"--split: no rows to split by {self.column!r}")
        ordered = np.sort(np.concatenate(times))
        ends = np.cumsum(self.shares[:2]) * len(ordered)
        return ordered[np.minimum(ends.round().astype(int), len(ordered) - 1)]


SPLIT_COLUMN = " split"  # no column of a file is called so


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{text!r} must be three positive shares with sum 1")
    return shares


def _with_split(chunk: pa.Table, split: np.ndarray) -> pa.Table:
    return chunk.append_column(SPLIT_COLUMN, pa.array(split, pa.int8()))


def _assign_random(
    chunks: Iterator[pa.Table], shares: tuple[float, ...], seed: int
) -> Iterator[pa.Table]:
    rng = np.random.default_rng(seed)  # one number a row, whatever the chunks are
    for chunk in chunks:
        uniform = rng.random(chunk.num_rows)
        yield _with_split(
            chunk, np.searchsorted(np.cumsum(shares[:2]), uniform, side="right")
        )


def _assign_time(
    chunks: Iterator[pa.Table], column: str, cuts: np.ndarray
) -> Iterator[pa.Table]:
    for chunk in chunks:
        times = _times(chunk, column)
        yield _with_split(chunk, np.searchsorted(cuts, times, side="right"))


def _assign_column(chunks: Iterator[pa.Table], column: str) -> Iterator[pa.Table]:
    for chunk in chunks:
        names = chunk[column].cast(pa.string())
        split = names.combine_chunks().dictionary_encode()
        wrong = set(split.dictionary.to_pylist()) - set(SPLITS)
        if wrong or names.null_count:
            raise DataError(
                f"--split=column:{column}: the column holds {sorted(wrong)[:3]} and "
                f"{names.null_count} missing values, expected only {SPLITS}"
            )
        number = [SPLITS.index(name) for name in split.dictionary.to_pylist()]
        yield _with_split(chunk, np.array(number)[split.indices.to_numpy()])


def _times(chunk: pa.Table, column: str) -> np.ndarray:
    times = chunk[column]
    if times.null_count:
        raise DataError(
            f"--split=time:{column}: the column has {times.null_count} missing values"
        )
    return times.cast(pa.int64()).to_numpy()
