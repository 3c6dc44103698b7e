"""Rows of CSV that cannot be understood: which they are, and the others without them.

A row is broken if it has too many or too few cells, or if a cell is not what its column
holds. All cells are read as text and then cast, column by column.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv

BAD_LINES = b"bad_lines"  # key of the metadata of a batch or chunk of rows
SHOWN = 200  # characters of a broken row

Open = Callable[..., pyarrow.csv.CSVStreamingReader]
Cast = Callable[[pa.Array, Any], pa.Array]  # cells of text, their column -> its values


class _Batch(NamedTuple):
    """Rows that are not broken, and what is known of those that are."""

    rows: pa.RecordBatch
    num_broken: int
    first: str


def first(
    file: pathlib.Path,
    columns: Mapping[str, Any],
    form: Any,
    open_csv: Open,
    cast: Cast,
) -> str:
    """Returns what the first broken row of a file is, or "" where none is found."""
    found = (batch.first for batch in _read(file, columns, form, open_csv, cast))
    try:
        return next(filter(None, found), "")
    except pa.ArrowException:  # of bytes that are no text; whoever asks knows it
        return ""


def left_out(
    file: pathlib.Path,
    columns: Mapping[str, Any],
    form: Any,
    open_csv: Open,
    cast: Cast,
) -> Iterator[pa.RecordBatch]:
    """Yields the rows that are not broken; metadata tell how many were."""
    for batch in _read(file, columns, form, open_csv, cast):
        yield batch.rows.replace_schema_metadata(
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
    file: pathlib.Path,
    columns: Mapping[str, Any],
    form: Any,
    open_csv: Open,
    cast: Cast,
) -> Iterator[_Batch]:
    waiting: list[tuple[int, str]] = []  # numbers and texts of rows of wrong lengths

    def note(row: pyarrow.csv.InvalidRow) -> str:
        what = f"{row.actual_columns} cells, expected {row.expected_columns}"
        waiting.append((row.number, f"{what}: {row.text[:SHOWN]!r}"))
        return "skip"

    num_rows, num_seen = 1, 0  # the header is row 1
    types = dict.fromkeys(columns, pa.string())
    for batch in open_csv(file, form, types, note):
        wrong = {
            name: _is_wrong(batch.column(name), column, cast)
            for name, column in columns.items()
        }
        is_wrong = np.any(list(wrong.values()), axis=0)
        messages = []
        if is_wrong.any():
            row = int(np.argmax(is_wrong))
            number = num_rows + row + 1
            for other, _ in waiting:  # rows that are not in the batch come before it
                number += other <= number
            name = next(name for name in columns if wrong[name][row])
            text = batch.column(name)[row].as_py()[:SHOWN]
            what = f"column {name!r} is {text!r}, expected {columns[name].type}"
            messages.append((number, what))
        messages += waiting[num_seen:]
        num_rows += batch.num_rows
        number, text = min(messages, default=(0, ""))
        yield _Batch(
            _typed(batch.filter(pa.array(~is_wrong)), columns, cast),
            int(is_wrong.sum()) + len(waiting) - num_seen,
            f"row {number:,}: {text}" if text else "",
        )
        num_seen = len(waiting)
    if len(waiting) > num_seen:  # after the last row that is not broken
        number, text = waiting[num_seen]
        empty = pa.record_batch({name: pa.array([], t) for name, t in types.items()})
        rows = _typed(empty, columns, cast)
        yield _Batch(rows, len(waiting) - num_seen, f"row {number:,}: {text}")


def _is_wrong(texts: pa.Array, column: Any, cast: Cast) -> np.ndarray:
    """Returns [n] which texts cannot be cast, by halves: few are expected."""
    try:
        cast(texts, column)
        return np.zeros(len(texts), bool)
    except pa.ArrowException:
        if len(texts) == 1:
            return np.ones(1, bool)
    half = len(texts) // 2
    halves = (texts[:half], texts[half:])
    return np.concatenate([_is_wrong(part, column, cast) for part in halves])


def _typed(
    batch: pa.RecordBatch, columns: Mapping[str, Any], cast: Cast
) -> pa.RecordBatch:
    return pa.record_batch(
        {name: cast(batch.column(name), column) for name, column in columns.items()}
    )
