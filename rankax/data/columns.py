"""Checked access to the columns of one Arrow table, as NumPy arrays.

What comes out has the type and the shape that the card promises, is finite and has no
nulls: they are filled with the default that the card declares, or refused. A column
that is as wanted already is not copied.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np
import pyarrow as pa
from pyarrow import types

from rankax.config.base import suggest
from rankax.data import transforms
from rankax.data.errors import DataError
from rankax.data.fields import NumericField, Table, VectorField
from rankax.data.schema import IdSlot, Schema

_FILL = (
    "give missing ids an id of their own and numbers a value when the data set is made "
    "(python -m data_pipelines.tabular does)"
)


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of one table; `where` opens every error message."""

    table: pa.Table
    where: str

    def ids(self, slot: IdSlot, table: Table) -> np.ndarray:
        """Returns [n] integer ids of a slot: its integers, hashed texts, or ranges."""
        expected = f"one {_id_kind(slot, table)} per example"
        return self._ids(self._column(slot.column), slot, table, expected)

    def lists(self, slot: IdSlot, table: Table) -> tuple[np.ndarray, np.ndarray]:
        """Returns such ids [v] of a list column, and its offsets [n + 1] from 0."""
        expected = f"a list of {_id_kind(slot, table)}s per example"
        nullable = slot.default is not None
        values, offsets = self._ragged(slot.column, expected, nullable=nullable)
        return self._ids(values, slot, table, expected, offsets), offsets

    def weights(self, slot: IdSlot) -> tuple[np.ndarray, np.ndarray]:
        """Returns all weights [v] float32 of a list and their offsets [n + 1]."""
        name, nullable = slot.weights, slot.default is not None
        expected = f"a list of weights per example, a number per id of {slot.column!r}"
        elements, offsets = self._ragged(name, expected, nullable=nullable)
        self._refuse_nulls(name, elements)
        values = transforms.numbers(self._numbers(name, elements, expected))
        bad, wanted = ~np.isfinite(values), "finite weights"
        if slot.combiner == "mean":
            bad |= values < 0
            wanted += " >= 0, as a mean needs them"
        advice = "correct them when the data set is made"
        self.check(name, values, bad, wanted, advice, offsets=offsets)
        return values, offsets

    def numeric(self, field: NumericField) -> np.ndarray:
        """Returns [n] finite float32 of a numeric field, after its transforms."""
        name, expected = field.column or field.name, "one number per example"
        values = self._numbers(name, self._column(name), expected, field.default)
        values = transforms.numbers(values, field.transforms)
        self._check_finite(name, values, is_transformed=bool(field.transforms))
        return values

    def vectors(self, field: VectorField) -> np.ndarray:
        """Returns [n, width] finite float32 of a vector field."""
        name, width, default = field.column or field.name, field.width, field.default
        expected = f"a list of {width} numbers per example"
        nullable = default is not None
        elements, offsets = self._ragged(name, expected, nullable=nullable)
        values = transforms.numbers(self._numbers(name, elements, expected, default))
        self._check_finite(name, values, offsets=offsets)
        length, is_there = np.diff(offsets), self.table[name].is_valid().to_numpy()
        bad = is_there & (length != width)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{self.where}: column {name!r} has {bad.sum()} of {bad.size} lists "
                f"whose length is not the width {width} of vector {field.name!r}; "
                f"first in row {row}: {length[row]}; write vectors of one length, or "
                "correct width in dataset.json"
            )
        if is_there.all():
            return values.reshape(-1, width)
        vectors = np.full((len(length), width), default, np.float32)
        vectors[is_there] = values.reshape(-1, width)
        return vectors

    def floats(
        self, name: str, *, minimum: float = -np.inf, maximum: float = np.inf
    ) -> np.ndarray:
        """Returns [n] finite float32 in a range."""
        column, expected = self._complete(name), "one number per example"
        values = transforms.numbers(self._numbers(name, column, expected))
        if _is_within(values, minimum, maximum):
            return values
        bad = ~np.isfinite(values) | (values < minimum) | (values > maximum)
        expected = "finite numbers"
        if minimum == 0:
            expected += " >= 0" if maximum == np.inf else f" in [0, {maximum}]"
        advice = "fill or drop them when the data set is made"
        self.check(name, values, bad, expected, advice)
        return values

    def binary(self, name: str) -> np.ndarray:
        """Returns [n] labels, float32 0 or 1."""
        column, expected = self._complete(name), "one number per example"
        values = transforms.numbers(self._numbers(name, column, expected))
        bad = (values != 0) & (values != 1)
        advice = "make a 0/1 column (for example rating >= 4) or name another label"
        self.check(name, values, bad, "labels 0 or 1", advice)
        return values

    def groups(self, name: str) -> np.ndarray:
        """Returns [n] int64; texts become their 64-bit ids."""
        column = self._complete(name)
        if _is_text(column.type):
            column = string_ids(column)
            self._refuse_nulls(name, column)  # those of a dictionary's values
        elif not types.is_integer(column.type):
            expected = "an integer or text group (user) per example"
            raise self._wrong_type(name, expected)
        return column.to_numpy(zero_copy_only=True).astype(np.int64, copy=False)

    def small_integers(self, name: str, expected: str) -> np.ndarray:
        """Returns [n] int32."""
        column = self._complete(name)
        if not types.is_integer(column.type):
            raise self._wrong_type(name, expected)
        values = column.to_numpy(zero_copy_only=True)
        bad = (values < -(2**31)) | (values >= 2**31)
        self.check(name, values, bad, "within 32 bits", "number them from 0")
        return values.astype(np.int32, copy=False)

    def times(self, name: str) -> np.ndarray:
        """Returns [n] int64; timestamps and dates become microseconds since 1970."""
        column = self._complete(name)
        kind = column.type
        if types.is_timestamp(kind) or types.is_date(kind):
            is_finer = types.is_timestamp(kind) and kind.unit == "ns"
            try:  # nanoseconds may lose digits, others may not overflow
                column = column.cast(pa.timestamp("us"), safe=not is_finer)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.where}: column {name!r} cannot be counted in microseconds "
                    f"({error}); correct the times when the data set is made"
                ) from error
            column = column.cast(pa.int64())
        if not types.is_integer(column.type):
            raise self._wrong_type(name, "an integer or a timestamp")
        values = column.to_numpy(zero_copy_only=True)
        if values.dtype == np.uint64:
            too_large = values >= 2**63
            self.check(name, values, too_large, "within 63 bits", "write a signed type")
        return values.astype(np.int64, copy=False)

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

    def _ids(
        self,
        values: pa.Array,
        slot: IdSlot,
        table: Table,
        expected: str,
        offsets: np.ndarray | None = None,
    ) -> np.ndarray:
        """Returns the integer ids of a column's elements, the default's for nulls."""
        name, default = slot.column, slot.default
        if slot.boundaries:
            return self._ranges(values, slot, expected, offsets)
        is_text = _is_text(values.type)
        if is_text and table.ids != "hash":
            advice = (
                f"make the ids of table {table.name!r} 'hash' in dataset.json, or "
                "number the texts by a vocabulary (python -m data_pipelines.tabular)"
            )
            raise self._wrong_type(name, expected, advice)
        if not is_text and not types.is_integer(values.type):
            raise self._wrong_type(name, expected)
        if default is not None and isinstance(default, str) != is_text:
            raise DataError(
                f"{self.where}: field {slot.name!r} has default {default!r}, but its "
                f"column {name!r} holds {values.type}; give "
                f"{'a text' if is_text else 'an integer'} in dataset.json"
            )
        if is_text:
            values = string_ids(values)
        if default is None:
            self._refuse_nulls(name, values, has_default=True)
        elif values.null_count:
            if isinstance(default, str):
                default = int(transforms.hash_strings([default])[0])
            # The column's own type may be too narrow for the default. An id keeps its
            # bits, and with them its row, when a uint64 becomes an int64.
            values = values.cast(pa.int64(), safe=False).fill_null(default)
        return values.to_numpy(zero_copy_only=True)

    def _ranges(
        self,
        values: pa.Array,
        slot: IdSlot,
        expected: str,
        offsets: np.ndarray | None,
    ) -> np.ndarray:
        """Returns the id of each number by the boundaries of the slot's field."""
        fill = None if slot.default is None else 0.0
        numbers = self._numbers(slot.column, values, expected, fill)
        if types.is_floating(values.type):  # nulls have made float64 of it
            numbers = numbers.astype(values.type.to_pandas_dtype(), copy=False)
        advice = "write null, and set the field's default in dataset.json"
        bad = np.isnan(numbers)
        self.check(slot.column, numbers, bad, "numbers", advice, offsets=offsets)
        ids = transforms.bucket_ids(numbers, slot.boundaries)
        if values.null_count:
            ids[values.is_null().to_numpy(zero_copy_only=False)] = slot.default
        return ids

    def _numbers(
        self, name: str, values: pa.Array, expected: str, default: float | None = None
    ) -> np.ndarray:
        """Returns a column's elements in a type of their own, defaults for nulls."""
        kind = values.type
        if types.is_boolean(kind):
            values = values.cast(pa.int8())
        elif not (types.is_integer(kind) or types.is_floating(kind)):
            raise self._wrong_type(name, expected)
        if default is None:
            self._refuse_nulls(name, values, has_default=True)
        elif values.null_count:
            values = values.cast(pa.float64(), safe=False).fill_null(default)
        return values.to_numpy(zero_copy_only=True)

    def _check_finite(
        self,
        name: str,
        values: np.ndarray,
        *,
        is_transformed: bool = False,
        offsets: np.ndarray | None = None,
    ) -> None:
        if _is_within(values, -np.inf, np.inf):
            return
        expected = "finite numbers"
        if is_transformed:
            expected += " after the field's transforms"
        advice = (
            "correct them when the data set is made; where a number is missing write "
            "null, and set the field's default in dataset.json"
        )
        bad = ~np.isfinite(values)
        self.check(name, values, bad, expected, advice, offsets=offsets)

    def _ragged(
        self, name: str, expected: str, *, nullable: bool
    ) -> tuple[pa.Array, np.ndarray]:
        """Returns the elements [v] of a list column and its offsets [n + 1] from 0.

        A null list is empty, if it is not refused.
        """
        column = self._column(name)
        if not _is_list(column.type):
            raise self._wrong_type(name, expected)
        if not nullable:
            self._refuse_nulls(name, column, has_default=True)
        if types.is_fixed_size_list(column.type):
            length = np.full(len(column), column.type.list_size)
        else:
            offsets = column.offsets.to_numpy().astype(np.int64)
            if not column.null_count:
                # `offsets` minds the slice that the column may be, `values` does not.
                values = column.values.slice(offsets[0], offsets[-1] - offsets[0])
                return values, offsets - offsets[0]
            length = np.diff(offsets)
        if column.null_count:
            length[column.is_null().to_numpy(zero_copy_only=False)] = 0
        return column.flatten(), np.concatenate([[0], np.cumsum(length)])

    def _complete(self, name: str) -> pa.Array:
        """Returns a column that has no defaults: nulls are refused."""
        column = self._column(name)
        self._refuse_nulls(name, column)
        return column

    def _column(self, name: str) -> pa.Array:
        """Returns a column in one chunk."""
        place = self.table.schema.get_field_index(name)
        if place < 0:
            raise DataError(
                f"{self.where}: column {name!r} is missing; "
                f"{suggest(name, self.table.column_names)}"
            )
        column = self.table.column(place)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def _refuse_nulls(
        self, name: str, values: pa.Array, *, has_default: bool = False
    ) -> None:
        """Raises if there are nulls; `has_default` tells of what a field could do."""
        if values.null_count:
            is_element = _is_list(self._type(name)) and not _is_list(values.type)
            what = "list elements" if is_element else "values"
            advice = "set default of the field in dataset.json, the value that a null "
            advice = f"{advice}stands for, or {_FILL}" if has_default else _FILL
            raise DataError(
                f"{self.where}: column {name!r} has {values.null_count} missing (null) "
                f"{what} of {len(values)}; {advice}"
            )

    def _type(self, name: str) -> pa.DataType:
        return self.table.schema.field(name).type

    def _wrong_type(
        self, name: str, expected: str, advice: str = "convert the column"
    ) -> DataError:
        kind = self._type(name)
        if "null" in str(kind):
            advice = "write the column with the type that its values would have"
        elif _is_list(kind) and "list" not in expected:
            advice = "set max_length of the field in dataset.json, or write one value"
        elif "list" in expected and not _is_list(kind):
            advice = (
                "write a list, or set max_length = 0 in dataset.json of a field that "
                "holds one value"
            )
        return DataError(
            f"{self.where}: column {name!r} has type {kind}, expected {expected}; "
            f"{advice}"
        )


def string_ids(values: pa.Array) -> pa.Array:
    """Returns the int64 id of each text (`transforms.hash_bytes`); null stays null.

    Args:
        values: of any string type, or a dictionary of one, which is hashed once.
    """
    if types.is_dictionary(values.type):
        return string_ids(values.dictionary).take(values.indices)
    if types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    if not len(values):  # its buffers may be missing
        return pa.array([], pa.int64())
    _, offsets, data = values.buffers()
    width = np.int64 if types.is_large_string(values.type) else np.int32
    ids = transforms.hash_bytes(
        np.frombuffer(data or b"", np.uint8),
        np.frombuffer(offsets, width)[values.offset :][: len(values) + 1],
    )
    if values.null_count:
        return pa.array(ids, mask=values.is_null().to_numpy(zero_copy_only=False))
    return pa.array(ids)


def text_ids(kinds: Mapping[str, pa.DataType], schema: Schema) -> frozenset[str]:
    """Returns the columns of ids whose elements are texts; others hold integers.

    The id 42 and the id "42" are two: hashed, they have different rows.
    """
    found = {slot.column: kinds[slot.column] for slot in schema.slots}
    return frozenset(
        name
        for name, kind in found.items()
        if _is_text(kind.value_type if _is_list(kind) else kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return (
        types.is_list(kind)
        or types.is_large_list(kind)
        or types.is_fixed_size_list(kind)
    )


def _id_kind(slot: IdSlot, table: Table) -> str:
    """Returns what the column of a slot may hold, for messages."""
    if slot.boundaries:
        return "number"
    return "integer or text id" if table.ids == "hash" else "integer id"


def _is_within(values: np.ndarray, minimum: float, maximum: float) -> bool:
    """Tells whether all values are finite and in a range, in two fast passes."""
    if not values.size:
        return True
    low, high = values.min(), values.max()  # NaN where any value is NaN
    is_finite = np.isfinite(low) and np.isfinite(high)
    return bool(is_finite and low >= minimum and high <= maximum)
