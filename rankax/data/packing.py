"""Arrow columns of one row group → the packed arrays of `rankax.data.schema`.

Ids become table rows here (`rankax.data.transforms`), and here every value is checked:
what passes is finite, in range, and of the shape that the card promises.
"""

from collections.abc import Callable
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
    names = [name for slot in schema.slots for name in (slot.column, slot.weights)]
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
    bag_weights = []
    first_of_bag: dict[int, tuple[str, np.ndarray]] = {}
    for slot in schema.slots:
        if slot.bag < 0:
            values = columns.integers(slot.column, "one integer id per example")
            ids.append(_rows(values, slot, schema, where))
            continue
        values, offsets = columns.lists(slot.column)
        first = first_of_bag.setdefault(slot.bag, (slot.column, offsets))
        _check_aligned(slot, first, (slot.column, offsets), where)
        kept = np.minimum(np.diff(offsets), slot.width)  # the latest L of each list
        start = offsets[1:] - kept
        rows = _windows(_rows(values, slot, schema, where), start, slot.width)
        # PADDING has all bits set, so "or" writes it and leaves valid rows alone.
        rows |= _padding_bits(slot.width)[kept]
        ids.append(rows)
        lengths[:, slot.bag] = kept
        if slot.weights:
            values, offsets = columns.weights(slot)
            _check_aligned(slot, first, (slot.weights, offsets), where)
            weights = _windows(values, start, slot.width)
            weights[rows == PADDING] = 0
            bag_weights.append(weights)
    numeric = [columns.floats(field.column or field.name) for field in schema.numeric]
    labels = [columns.binary(label.column or label.name) for label in schema.labels]
    arrays = {
        "ids": _side_by_side(ids, n, np.int32),
        "lengths": lengths,
        "numeric": _side_by_side(numeric, n, np.float32),
        "labels": _side_by_side(labels, n, np.float32),
        "weight": np.ones(n, np.float32),
    }
    if bag_weights:
        arrays["bag_weights"] = _side_by_side(bag_weights, n, np.float32)
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
        values,
        num_rows=table.num_rows,
        table=table.name,
        field=slot.name,
        where=where,
        default_row=schema.default_rows.get(table.name),
    )


def _windows(values: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """Returns [n, L], the L values from each start [n] on; zeros follow the last."""
    tailed = np.concatenate([values, np.zeros(width, values.dtype)])
    return np.lib.stride_tricks.sliding_window_view(tailed, width)[start]


def _padding_bits(width: int) -> np.ndarray:
    """Returns by length [L + 1, L] int32: `PADDING` from that place on, 0 before."""
    is_padding = np.arange(width)[None, :] >= np.arange(width + 1)[:, None]
    return np.where(is_padding, PADDING, 0).astype(np.int32)


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
    slot: IdSlot,
    first: tuple[str, np.ndarray],
    other: tuple[str, np.ndarray],
    where: str,
) -> None:
    """Raises unless two list columns of one field have equal lengths in every row.

    Args:
        slot: of the field, for the message.
        first: name and offsets [n + 1] of a column.
        other: the same of the column to compare with it.
        where: opens the message.
    """
    expected, found = np.diff(first[1]), np.diff(other[1])
    (bad,) = np.nonzero(expected != found)
    if bad.size:
        row = int(bad[0])
        kind, entry = ("list", "id") if slot.combiner else ("sequence", "event")
        raise DataError(
            f"{where}: {kind} {slot.field!r} has columns of unequal lengths in "
            f"{bad.size} rows; first in row {row}: {first[0]!r} has {expected[row]} "
            f"{entry}s, {other[0]!r} has {found[row]}; all columns of a {kind} "
            f"describe the same {entry}s, write one value per {entry}"
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
        """Returns all ids [v] of a list column and its offsets [n + 1] from 0."""
        expected = "a list of integer ids per example"
        return self._ragged(name, expected, pa.types.is_integer)

    def weights(self, slot: IdSlot) -> tuple[np.ndarray, np.ndarray]:
        """Returns all weights [v] float32 of a list and their offsets [n + 1]."""
        values, offsets = self._ragged(
            slot.weights,
            f"a list of weights per example, a number per id of {slot.column!r}",
            lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
        )
        with np.errstate(over="ignore"):  # the check names what overflows
            values = values.astype(np.float32)
        bad, expected = ~np.isfinite(values), "finite weights"
        if slot.combiner == "mean":
            bad |= values < 0
            expected += " >= 0, as a mean needs them"
        advice = "correct them when the data set is made"
        self.check(slot.weights, values, bad, expected, advice, offsets=offsets)
        return values, offsets

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
        self,
        name: str,
        values: np.ndarray,
        bad: np.ndarray,
        expected: str,
        advice: str,
        *,
        offsets: np.ndarray | None = None,
    ) -> None:
        """Raises if any value is marked bad; `offsets` are those of a list column."""
        if bad.any():
            row = place = int(np.argmax(bad))
            if offsets is not None:
                row = int(np.searchsorted(offsets, place, side="right")) - 1
            raise DataError(
                f"{self.where}: column {name!r} has {bad.sum()} of {bad.size} values "
                f"that are not {expected}; first in row {row}: {values[place]}; "
                f"{advice}"
            )

    def _ragged(
        self, name: str, expected: str, is_wanted: Callable[[pa.DataType], bool]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns all values [v] of a list column and its offsets [n + 1] from 0."""
        column = self._column(name)
        kind = column.type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not is_list or not is_wanted(kind.value_type):
            raise self._wrong_type(name, kind, expected)
        # `offsets` minds the slice that the column may be, `values` does not.
        offsets = column.offsets.to_numpy().astype(np.int64)
        values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
        self._refuse_nulls(name, values, "list elements")
        return values.to_numpy(zero_copy_only=True), offsets - offsets[0]

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
        if is_list and "list" not in expected:
            advice = "set max_length of the field in dataset.json, or write one value"
        elif "list" in expected and not is_list:
            advice = (
                "write a list, or set max_length = 0 in dataset.json of a field that "
                "holds one value"
            )
        return DataError(
            f"{self.where}: column {name!r} has type {kind}, expected {expected}; "
            f"{advice}"
        )
