"""Rows of CSV that cannot be understood: which they are, and the others without them.

A row is broken if it has too many or too few cells, or if the cell of a column of
numbers is none. All cells are read as text and then checked, column by column.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Callable, Iterator, Mapping
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

BAD_LINES = b"bad_lines"  # key of the metadata of a batch or chunk of rows
SHOWN = 200  # characters of a broken row

Open = Callable[..., pyarrow.csv.CSVStreamingReader]


class _Batch(NamedTuple):
    """Rows that are not broken, as text, and what is known of those that are."""

    rows: pa.RecordBatch
    num_broken: int
    first: str


def first(
    file: pathlib.Path, columns: Mapping[str, Any], form: Any, open_csv: Open
) -> str:
    """Returns what the first broken row of a file is, or "" where none is found."""
    found = (batch.first for batch in _read(file, columns, form, open_csv))
    return next(filter(None, found), "")


def left_out(
    file: pathlib.Path, columns: Mapping[str, Any], form: Any, open_csv: Open
) -> Iterator[pa.RecordBatch]:
    """Yields the rows that are not broken; metadata tell how many were."""
    for batch in _read(file, columns, form, open_csv):
        rows = pa.record_batch(
            {
                name: _typed(batch.rows.column(name), column.stored)
                for name, column in columns.items()
            }
        )
        yield rows.replace_schema_metadata(
            metadata(file, batch.num_broken, batch.first)
        )


def metadata(
    file: pathlib.Path, num_broken: int, first: str
) -> dict[bytes, str] | None:
    """Returns metadata of rows that tell what was left out on the way to them."""
    entry = {file.name: {"count": num_broken, "first": first}}
    return {BAD_LINES: json.dumps(entry)} if num_broken else None


def of_chunk(chunk: pa.Table) -> dict[str, dict[str, Any]]:
    """Returns what was left out on the way to a chunk: file -> count and first."""
    return json.loads((chunk.schema.metadata or {}).get(BAD_LINES, b"{}"))


def merge(known: dict[str, dict[str, Any]], more: dict[str, dict[str, Any]]) -> None:
    """Adds the counts of a later chunk or part; the first row stays the first."""
    for file, entry in more.items():
        total = known.setdefault(file, {"count": 0, "first": entry["first"]})
        total["count"] += entry["count"]


def _read(
    file: pathlib.Path, columns: Mapping[str, Any], form: Any, open_csv: Open
) -> Iterator[_Batch]:
    waiting: list[tuple[int, str]] = []  # numbers and texts of rows of wrong lengths

    def note(row: pyarrow.csv.InvalidRow) -> str:
        what = f"{row.actual_columns} cells, expected {row.expected_columns}"
        waiting.append((row.number, f"{what}: {row.text[:SHOWN]!r}"))
        return "skip"

    num_rows, num_seen = 1, 0  # the header is row 1
    types = dict.fromkeys(columns, pa.string())
    for batch in open_csv(file, form, types, note):
        is_wrong = np.zeros(batch.num_rows, bool)
        for name, column in columns.items():
            is_wrong |= _is_wrong(batch.column(name), column.stored)
        messages = []
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            number = num_rows + row + 1
            for other, _ in waiting:  # rows that are not in the batch come before it
                number += other <= number
            messages.append((number, _shown(batch, row, columns)))
        messages += waiting[num_seen:]
        num_rows += batch.num_rows
        number, text = min(messages, default=(0, ""))
        yield _Batch(
            batch.filter(pa.array(~is_wrong)),
            int(is_wrong.sum()) + len(waiting) - num_seen,
            f"row {number:,}: {text}" if text else "",
        )
        num_seen = len(waiting)
    if len(waiting) > num_seen:  # after the last row that is not broken
        number, text = waiting[num_seen]
        empty = pa.record_batch({name: pa.array([], t) for name, t in types.items()})
        yield _Batch(empty, len(waiting) - num_seen, f"row {number:,}: {text}")


def _shown(batch: pa.RecordBatch, row: int, columns: Mapping[str, Any]) -> str:
    cells = batch.slice(row, 1)
    for name, column in columns.items():
        if _is_wrong(cells.column(name), column.stored)[0]:
            text = cells.column(name)[0].as_py()
            return f"column {name!r} is {text[:SHOWN]!r}, expected {column.stored}"
    raise AssertionError(row)


def _is_wrong(texts: pa.Array, target: pa.DataType) -> np.ndarray:
    """Returns [n] whether a text is no number; other types are not looked at."""
    if not (pa.types.is_integer(target) or pa.types.is_floating(target)):
        return np.zeros(len(texts), bool)
    kind = pl.Int64 if pa.types.is_integer(target) else pl.Float64
    series = pl.Series(pc.utf8_trim_whitespace(texts), dtype=pl.String)
    number = series.cast(kind, strict=False)
    return (number.is_null() & series.is_not_null()).to_numpy()


def _typed(texts: pa.Array, target: pa.DataType) -> pa.Array:
    if pa.types.is_string(target):
        return texts
    return pc.utf8_trim_whitespace(texts).cast(target)
