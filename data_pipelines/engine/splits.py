"""How the rows of one raw file become train, valid and test."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator
import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankax.config.base import suggest
from rankax.data.card import DataError

SPLITS = ("train", "valid", "test")
X4_FOLDS, X4_SEED = 10, 2018
KINDS = ("random", "time", "column")
GRAMMAR = "random:SHARES:seed=N, time:COLUMN:SHARES or column:COLUMN"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Splitter:
    """A rule, and what it has to know of the data.

    Attributes:
        rule: a parsed `--split`.
        cuts: of "time", the first times of valid and test.
    """

    rule: SplitRule
    cuts: tuple[int, ...] = ()

    @classmethod
    def find(cls, rule: SplitRule, chunks: Iterator[pa.Table]) -> "Splitter":
        """Reads the chunks of all files if it has to."""
        if rule.kind != "time":
            return cls(rule=rule)
        times = [_times(chunk, rule.column) for chunk in chunks]
        if not sum(map(len, times)):
            raise DataError(f"--split: no rows to split by {rule.column!r}")
        ordered = np.sort(np.concatenate(times))
        ends = np.cumsum(rule.shares[:2]) * len(ordered)
        # Equal times stay together.
        first = ordered[np.minimum(ends.round().astype(int), len(ordered) - 1)]
        return cls(rule=rule, cuts=tuple(first.tolist()))

    @property
    def text(self) -> str:
        """The rule in words, for the card."""
        if self.rule.kind == "random":
            return f"at random, shares {self.rule.shares}, seed {self.rule.seed}"
        if self.rule.kind == "time":
            return (
                f"by {self.rule.column}: valid from {self.cuts[0]}, test from "
                f"{self.cuts[1]} on (timestamps in microseconds)"
            )
        return f"by column {self.rule.column}"

    def assign(self, chunks: Iterator[pa.Table], part: int) -> Iterator[pa.Table]:
        """Yields the chunks of a part with one more column `SPLIT_COLUMN`, 0 .. 2."""
        # One number a row, whatever the chunks are; every part has numbers of its own.
        seed = np.random.SeedSequence(self.rule.seed, spawn_key=(part,) if part else ())
        rng = np.random.default_rng(seed)
        where = f"--split=column:{self.rule.column}"
        for chunk in chunks:
            if self.rule.kind == "random":
                ends, values = np.cumsum(self.rule.shares[:2]), rng.random(len(chunk))
                split = np.searchsorted(ends, values, side="right")
            elif self.rule.kind == "time":
                times = _times(chunk, self.rule.column)
                split = np.searchsorted(self.cuts, times, side="right")
            else:
                split = named(chunk[self.rule.column], where)
            yield chunk.append_column(SPLIT_COLUMN, pa.array(split, pa.int8()))


SPLIT_COLUMN = " split"  # no column of a file is called so


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"{text!r} must be three positive shares with sum 1")
    return shares


def bars_x4(labels: np.ndarray) -> np.ndarray:
    """Splits as BARS makes Criteo_x4 and Avazu_x4: 10 stratified folds, 8:1:1.

    Fold 0 tests, fold 1 is valid, the others train. These are the folds of
    `StratifiedKFold(10, shuffle=True, random_state=2018)` of scikit-learn 0.19.1, which
    shuffled each class by a generator of the same seed; later versions do not.

    Args:
        labels: [n] 0 or 1 of all rows, in the order of the published file.

    Returns:
        Place in `SPLITS` [n] int8.

    Raises:
        DataError: a class has less rows than there are folds.
    """
    split = np.zeros(len(labels), np.int8)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        if len(rows) < X4_FOLDS:
            raise DataError(
                f"--split=bars_x4: {len(rows)} rows have label {label}, expected at "
                f"least one in each of {X4_FOLDS} folds"
            )
        np.random.RandomState(X4_SEED).shuffle(order := np.arange(len(rows)))
        # As equal as can be: the first folds have one row more.
        fold_0 = -(-len(rows) // X4_FOLDS)
        fold_1 = -(-(len(rows) - 1) // X4_FOLDS)
        split[rows[order[:fold_0]]] = SPLITS.index("test")
        split[rows[order[fold_0 : fold_0 + fold_1]]] = SPLITS.index("valid")
    return split


def named(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Returns the number 0 .. 2 of the split that each row names.

    Raises:
        DataError: a row names none.
    """
    number = pc.index_in(column.cast(pa.string()), value_set=pa.array(SPLITS))
    if number.null_count:
        wrong = pc.unique(column.filter(pc.is_null(number)).drop_null()).to_pylist()
        raise DataError(
            f"{where}: the column holds {wrong[:3]} and {column.null_count} missing "
            f"values, expected only {SPLITS}"
        )
    return number.to_numpy()


def _times(chunk: pa.Table, column: str) -> np.ndarray:
    times = chunk[column]
    if times.null_count:
        raise DataError(
            f"--split=time:{column}: the column has {times.null_count} missing values"
        )
    return times.cast(pa.int64()).to_numpy()
