"""Arrow columns of one row group → the packed arrays of `rankax.data.schema`.

Ids become table rows here (`rankax.data.transforms`), and here every value is checked:
what passes is finite, in range, and of the shape that the card promises.
"""

import dataclasses

import numpy as np
import pyarrow as pa

from rankax.config.base import suggest
from rankax.data import transforms
from rankax.data.card import DataError, Slice
from rankax.data.schema import IdSlot, Schema

PADDING = -1
ROWS_AT_A_TIME = 2048  # 40 columns of them stay in a core's second cache


def needed_columns(schema: Schema) -> tuple[str, ...]:
    """Returns the Parquet columns that `pack` reads, each once."""
    card = schema.card
    names = [slot.column for slot in schema.slots]
    names += [field.column or field.name for field in schema.numeric]
    names += [label.column or label.name for label in schema.labels]
    if schema.has_true_probability:
        names += [label.true_probability for label in schema.labels]
    names += [card.weight, card.group, card.time, card.domain]
    names += [entry.column or entry.name for entry in schema.slices]
    return tuple(dict.fromkeys(name for name in names if name))


def pack(table: pa.Table, schema: Schema, *, where: str) -> dict[str, np.ndarray]:
    """Packs the columns of n examples.

    Args:
        table: at least the columns of `needed_columns`.
        schema: fields and tasks in use.
        where: opens every error message, for example "frappe/train row group 3".

    Returns:
        The arrays listed in `rankax.data.schema`; `weight` is 1 where the card names
        no weight column.

    Raises:
        DataError: a missing column, a wrong type or shape, a missing, non-finite or
            out-of-range value.
    """
    columns = _Columns(table, where)
    card, n = schema.card, table.num_rows
    ids, lengths = [], np.zeros((n, schema.num_bags), np.int32)
    first_of_bag: dict[int, tuple[IdSlot, np.ndarray]] = {}
    for slot in schema.slots:
        if slot.bag < 0:
            values = columns.integers(slot.column, "one integer id per example")
            ids.append(_rows(values, slot, schema, where))
            continue
        values, offsets = columns.lists(slot.column)
        first, first_offsets = first_of_bag.setdefault(slot.bag, (slot, offsets))
        _check_aligned(first, first_offsets, slot, offsets, where)
        rows, lengths[:, slot.bag] = _pad(
            _rows(values, slot, schema, where), offsets, slot.width
        )
        ids.append(rows)
    numeric = [columns.floats(field.column or field.name) for field in schema.numeric]
    labels = [columns.binary(label.column or label.name) for label in schema.labels]
    arrays = {
        "ids": _side_by_side(ids, n, np.int32),
        "lengths": lengths,
        "numeric": _side_by_side(numeric, n, np.float32),
        "labels": _side_by_side(labels, n, np.float32),
        "weight": np.ones(n, np.float32),
    }
    if schema.has_true_probability:
        probabilities = [
            columns.floats(label.true_probability, minimum=0, maximum=1)
            for label in schema.labels
        ]
        arrays["true_probability"] = _side_by_side(probabilities, n, np.float32)
    if card.weight:
        arrays["weight"] = columns.floats(card.weight, minimum=0)
    if card.group:
        group = columns.integers(card.group, "an integer group (user) per example")
        arrays["group"] = group.astype(np.int64)
    if card.time:
        arrays["time"] = columns.times(card.time)
    if card.domain:
        arrays["domain"] = columns.small_integers(
            card.domain, "an integer domain per example"
        )
    if schema.slices:
        values = [_slice_values(entry, columns) for entry in schema.slices]
        arrays["slices"] = np.stack(values, axis=1)
    return arrays


def _slice_values(entry: Slice, columns: "_Columns") -> np.ndarray:
    """Returns the integers [n] int32 of a slice column; named ones must have a name."""
    column = entry.column or entry.name
    values = columns.small_integers(column, "an integer per example to slice by")
    if entry.values:
        columns.check(
            column,
            values,
            (values < 0) | (values >= len(entry.values)),
            f"in 0 .. {len(entry.values) - 1}, the values that the card names",
            "name every value in the card's slices",
        )
    return values


def _rows(values: np.ndarray, slot: IdSlot, schema: Schema, where: str) -> np.ndarray:
    """Maps ids to rows of the slot's table."""
    table = schema.tables[slot.table]
    if table.ids == "hash":
        salt = transforms.table_salt(table.name)
        return transforms.hash_rows(values, num_rows=table.num_rows, salt=salt)
    return transforms.direct_rows(
        values, num_rows=table.num_rows, table=table.name, field=slot.name, where=where
    )


def _pad(
    rows: np.ndarray, offsets: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts ragged rows to the latest L of each example, left-aligned.

    Args:
        rows: [v] int32, the lists one after another.
        offsets: [n + 1], where each list starts and ends in `rows`.
        width: L.

    Returns:
        [n, L] int32 with `PADDING` at the end of short lists, and lengths [n].
    """
    lengths = np.minimum(np.diff(offsets), width)
    start = offsets[1:] - lengths
    # A window of L rows from every start; the tail of zeros lets the last ones exist.
    tailed = np.concatenate([rows, np.zeros(width, np.int32)])
    padded = np.lib.stride_tricks.sliding_window_view(tailed, width)[start]
    # PADDING has all bits set, so "or" writes it and leaves the valid rows as they are.
    is_padding = np.arange(width)[None, :] >= np.arange(width + 1)[:, None]
    padded |= np.where(is_padding, PADDING, 0).astype(np.int32)[lengths]
    return padded, lengths.astype(np.int32)


def _side_by_side(columns: list[np.ndarray], n: int, dtype: type) -> np.ndarray:
    """Joins columns [n] and [n, L] to one row-major array, some rows at a time.

    Whole columns at once would touch every cache line of the result once a column.
    """
    columns = [column[:, None] if column.ndim == 1 else column for column in columns]
    joined = np.empty((n, sum(column.shape[1] for column in columns)), dtype)
    if not columns:
        return joined
    for low in range(0, n, ROWS_AT_A_TIME):
        rows = slice(low, low + ROWS_AT_A_TIME)
        np.concatenate([column[rows] for column in columns], axis=1, out=joined[rows])
    return joined


def _check_aligned(
    first: IdSlot,
    first_offsets: np.ndarray,
    slot: IdSlot,
    offsets: np.ndarray,
    where: str,
) -> None:
    """Raises unless two columns of one sequence have equal lengths in every row."""
    expected, found = np.diff(first_offsets), np.diff(offsets)
    (bad,) = np.nonzero(expected != found)
    if bad.size:
        row = int(bad[0])
        raise DataError(
            f"{where}: sequence {slot.field!r} has columns of unequal lengths in "
            f"{bad.size} rows; first in row {row}: {first.column!r} has "
            f"{expected[row]} events, {slot.column!r} has {found[row]}; all columns of "
            "a sequence describe the same events, write one value per event"
        )


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Checked access to the columns of one table."""

    table: pa.Table
    where: str

    def integers(self, name: str, expected: str) -> np.ndarray:
        """Returns [n] integers of the column's own width."""
        column = self._column(name)
        if not pa.types.is_integer(column.type):
            raise self._wrong_type(name, column.type, expected)
        return column.to_numpy(zero_copy_only=True)

    def small_integers(self, name: str, expected: str) -> np.ndarray:
        """Returns [n] int32."""
        values = self.integers(name, expected)
        bad = (values < -(2**31)) | (values >= 2**31)
        self.check(name, values, bad, "within 32 bits", "number them from 0")
        return values.astype(np.int32)

    def lists(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns all values [v] of a list column and its offsets [n + 1] from 0."""
        column = self._column(name)
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not is_list or not pa.types.is_integer(kind.value_type):
            raise self._wrong_type(name, kind, "a list of integer ids per example")
        # `offsets` minds the slice that the column may be, `values` does not.
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        self._refuse_nulls(name, values, "list elements")
        return values.to_numpy(zero_copy_only=True), offsets - offsets[0]

    def floats(
        self, name: str, *, minimum: float = -np.inf, maximum: float = np.inf
    ) -> np.ndarray:
        """Returns [n] finite float32 in a range."""
        values = self._numbers(name)
        bad = ~np.isfinite(values) | (values < minimum) | (values > maximum)
        expected = "finite numbers"
        if minimum == 0:
            expected += " >= 0" if maximum == np.inf else f" in [0, {maximum}]"
        advice = "fill or drop them when the data set is made"
        self.check(name, values, bad, expected, advice)
        return values

    def binary(self, name: str) -> np.ndarray:
        """Returns [n] labels, float32 0 or 1."""
        values = self._numbers(name)
        bad = (values != 0) & (values != 1)
        advice = "make a 0/1 column (for example rating >= 4) or name another label"
        self.check(name, values, bad, "labels 0 or 1", advice)
        return values

    def times(self, name: str) -> np.ndarray:
        """Returns [n] int64; timestamps and dates become microseconds since 1970."""
        column = self._column(name)
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        if not pa.types.is_integer(column.type):
            raise self._wrong_type(name, column.type, "an integer or a timestamp")
        return column.to_numpy(zero_copy_only=True).astype(np.int64)

    def check(
        self, name: str, values: np.ndarray, bad: np.ndarray, expected: str, advice: str
    ) -> None:
        """Raises if any value is marked bad."""
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{self.where}: column {name!r} has {bad.sum()} of {bad.size} values "
                f"that are not {expected}; first in row {row}: {values[row]}; {advice}"
            )

    def _numbers(self, name: str) -> np.ndarray:
        column = self._column(name)
        kind = column.type
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise self._wrong_type(name, kind, "one number per example")
        with np.errstate(over="ignore"):  # the range check names what overflows
            return column.to_numpy(zero_copy_only=True).astype(np.float32)

    def _column(self, name: str) -> pa.Array:
        """Returns a column without nulls, in one chunk."""
        if name not in self.table.column_names:
            raise DataError(
                f"{self.where}: column {name!r} is missing; "
                f"{suggest(name, self.table.column_names)}"
            )
        column = self.table.column(name)
        self._refuse_nulls(name, column, "values")
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _refuse_nulls(
        self, name: str, column: pa.Array | pa.ChunkedArray, what: str
    ) -> None:
        if column.null_count:
            raise DataError(
                f"{self.where}: column {name!r} has {column.null_count} missing (null) "
                f"{what} of {len(column)}; give missing ids an id of their own and "
                "numbers a value when the data set is made "
                "(python -m data_pipelines.tabular does)"
            )

    def _wrong_type(self, name: str, kind: pa.DataType, expected: str) -> DataError:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        advice = "convert the column"
        if is_list:
            advice = "set max_length of the field in dataset.json, or write one value"
        elif "list" in expected:
            advice = "set max_length = 0 of the field in dataset.json, or write a list"
        return DataError(
            f"{self.where}: column {name!r} has type {kind}, expected {expected}; "
            f"{advice}"
        )
