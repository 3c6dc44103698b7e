"""Rows of big files of examples: in parts, split by rules, made into columns."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
import dataclasses
import os
import pathlib
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.engine import broken_rows, raw_files, splits
from data_pipelines.engine.text import Block, TextFile, stamp
from rankax.data.card import DataError


class ParquetFile:
    """One Parquet file of known columns, as one part."""

    num_parts = 1

    def __init__(
        self, path: pathlib.Path, columns: Sequence[str], *, one_of: Sequence[str]
    ):
        """Looks at the footer.

        Args:
            path: of the file.
            columns: what has to be there; "split" is read as well if it is there.
            one_of: names of one more column, of which the first that is there counts.

        Raises:
            DataError: a column is missing or holds neither integers nor times, or the
                file cannot be read.
        """
        self.path = path
        try:
            metadata = pq.read_metadata(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: {error}") from error
        schema = metadata.schema.to_arrow_schema()
        found = schema.names
        if missing := [name for name in columns if name not in found]:
            raise DataError(f"{path}: columns {missing} are missing, found {found}")
        self.choice = next((name for name in one_of if name in found), "")
        if not self.choice:
            raise DataError(f"{path}: no column {' or '.join(one_of)}, found {found}")
        for name in (self.choice, *columns):
            kind = schema.field(name).type
            if not (pa.types.is_integer(kind) or pa.types.is_timestamp(kind)):
                raise DataError(
                    f"{path}: column {name!r} has type {kind}, expected an integer; "
                    "a hex code is one too"
                )
        self.has_split = "split" in found
        self._columns = [self.choice, *columns, *(["split"] if self.has_split else [])]
        self._num_rows = metadata.num_rows

    def blocks(self, part: int, columns: Sequence[str] = ()) -> Iterator[Block]:
        """Yields the rows."""
        row = 0
        try:
            file = pq.ParquetFile(self.path)
            names = list(columns or self._columns)
            for batch in file.iter_batches(raw_files.PARQUET_ROWS, columns=names):
                lines = np.arange(row, row + batch.num_rows)
                yield Block(pa.table(batch), lines, 0, "")
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}, after row {row}: {error}") from error

    def num_lines(self, part: int) -> int:
        """Returns the number of rows."""
        return self._num_rows


class Rule(Protocol):
    """How rows are split."""

    @property
    def text(self) -> str:
        """The rule in words, for the card."""
        ...

    def split(self, part: int, block: Block) -> np.ndarray:
        """Returns the place in `splits.SPLITS` [rows] of each row of a block."""
        ...


@dataclasses.dataclass(frozen=True)
class ByColumn:
    """The column `split` says it."""

    file: str

    @property
    def text(self) -> str:
        return f"by column split of {self.file}"

    def split(self, part: int, block: Block) -> np.ndarray:
        return splits.named(block.rows["split"], f"{self.file}: column 'split'")


@dataclasses.dataclass(frozen=True)
class ByLine:
    """Rows before the first cut train; starts are the first lines of the parts."""

    starts: np.ndarray
    cuts: tuple[int, int]
    text: str

    def split(self, part: int, block: Block) -> np.ndarray:
        return np.searchsorted(self.cuts, self.starts[part] + block.lines, side="right")


@dataclasses.dataclass(frozen=True)
class ByLabel:
    """At random, as `splits.bars_x4` says; `numbers` are those of all lines."""

    starts: np.ndarray
    numbers: np.ndarray
    text: str

    def split(self, part: int, block: Block) -> np.ndarray:
        return self.numbers[self.starts[part] + block.lines]


class LineRows:
    """The examples of some files by split, read anew for every pass."""

    names: tuple[str, ...] = splits.SPLITS

    def __init__(
        self,
        files: Sequence[TextFile | ParquetFile],
        derive: Callable[[pa.Table], pa.Table],
        rule: Rule,
        *,
        flags: str = "",
    ):
        """Reads nothing yet.

        Args:
            files: in the order of their rows.
            derive: makes examples of the fields of rows.
            rule: how rows are split; its parts are `parts_of(files)`.
            flags: what else the rows depend on.
        """
        self._parts, self._derive, self._rule = parts_of(files), derive, rule
        self.num_parts, self.rule = len(self._parts), rule.text
        self.inputs = stamp([file.path for file in files], flags)

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, examples)."""
        file, place = self._parts[part]
        for block in file.blocks(place):
            note = broken_rows.metadata(file.path, block.num_bad, block.first_bad)
            numbers = self._rule.split(part, block)
            for i, name in enumerate(self.names):
                chosen = numbers == i
                rows = block.rows if chosen.all() else block.rows.filter(chosen)
                if rows.num_rows or note:
                    yield name, self._derive(rows).replace_schema_metadata(note)
                    note = None


def parts_of(
    files: Sequence[TextFile | ParquetFile],
) -> list[tuple[TextFile | ParquetFile, int]]:
    """Returns (file, part of it) of all parts, in order."""
    return [(file, part) for file in files for part in range(file.num_parts)]


def in_order(files: Sequence[TextFile | ParquetFile]) -> ByLine:
    """Cuts the rows in the order of the files: first 80 % train, last 10 % test."""
    starts = first_lines(files)
    cuts = starts[-1] * 8 // 10, starts[-1] * 9 // 10
    rule = "first 80 % train, next 10 % valid, last 10 % test"
    return ByLine(starts, cuts, f"in file order, which is that of time: {rule}")


def as_bars_x4(files: Sequence[TextFile | ParquetFile], label: str) -> ByLabel:
    """Splits as BARS makes Criteo_x4 and Avazu_x4 (`splits.bars_x4`)."""
    starts = first_lines(files)
    labels = np.zeros(starts[-1], np.int8)
    for start, (file, part) in zip(starts, parts_of(files), strict=False):
        for block in file.blocks(part, [label]):
            labels[start + block.lines] = block.rows[label].to_numpy()
    text = "random 8:1:1 in each class, as BARS's x4 (10 folds of seed 2018)"
    return ByLabel(starts, splits.bars_x4(labels), text)


def first_lines(files: Sequence[TextFile | ParquetFile]) -> np.ndarray:
    """Returns the number [parts + 1] of each part's first line, and of all lines."""
    with futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        counts = pool.map(lambda place: place[0].num_lines(place[1]), parts_of(files))
        return np.cumsum([0, *counts])
