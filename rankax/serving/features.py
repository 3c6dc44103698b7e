"""Features of a request → the packed arrays of `rankax.data.schema`, in NumPy alone.

The twin of `rankax.data.packing`, which reads Arrow columns: both take every value
through `rankax.data.transforms`, and refuse the same ones. Features have the names of
the data set's columns. A feature that is None, or not given, is what a null is in the
data set: the field's default, or an error where it has none.
"""

from collections.abc import Container, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rankax.config.base import suggest
from rankax.data import transforms
from rankax.data.errors import DataError
from rankax.data.fields import NumericField, VectorField
from rankax.data.schema import IdSlot, Schema

PADDING = -1
# They have a length, and are no list of values all the same.
_NO_LISTS = (str, bytes, dict, set, frozenset)


class FeatureError(ValueError):
    """Features that cannot be scored: what was found, what was expected."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """The inputs of n candidates.

    Attributes:
        num_rows: n.
        ids: for each slot of the schema, rows of its table [n, width] int32, or
            [1, width] where all candidates share them; -1 = padding.
        lengths: [n, M] int32.
        bag_weights: [n, P] float32.
        numeric: [n, N] float32.
    """

    num_rows: int
    ids: tuple[np.ndarray, ...]
    lengths: np.ndarray
    bag_weights: np.ndarray
    numeric: np.ndarray


def names(schema: Schema) -> tuple[str, ...]:
    """Returns the names of all features that a model reads, each once."""
    found = [name for slot in schema.slots for name in (slot.column, slot.weights)]
    found += [field.column or field.name for field in schema.numeric]
    return tuple(dict.fromkeys(name for name in found if name))


def pack(
    schema: Schema,
    features: Mapping[str, Any],
    shared: Mapping[str, Any],
    *,
    text_ids: Container[str],
) -> Packed:
    """Checks and packs the features of a request.

    Args:
        schema: fields that the model reads.
        features: name -> n values, one for each candidate: numbers or texts, or of a
            list field a list for each.
        shared: name -> the one value that all candidates have, such as the user's. If
            there are no `features`, it is one candidate.
        text_ids: features whose ids were texts in training.

    Raises:
        FeatureError: an unknown, missing or mistyped feature, another number of values
            than the others have, or a value that training would not have taken.
    """
    known = names(schema)
    for name in (*features, *shared):
        if name not in known:
            raise FeatureError(f"unknown feature {name!r}; {suggest(name, known)}")
    for name in features:
        if name in shared:
            raise FeatureError(
                f"feature {name!r} is given twice: for each candidate, and shared"
            )
    columns = _Columns(features, shared)
    ids, num_bags = [], schema.num_bags
    bags: dict[int, tuple[str, np.ndarray]] = {}  # first column, lengths of its lists
    n = columns.num_rows
    lengths = np.zeros((n, num_bags), np.int32)
    bag_weights = np.zeros((n, schema.num_bag_weights), np.float32)
    for slot in schema.slots:
        values = columns.take(slot.column, slot.default is not None)
        if slot.bag < 0:
            rows = _rows(values, slot, schema, text_ids)
            ids.append(rows[:, None])
            continue
        lists, length = _flat(values, slot.column, slot.default is not None)
        first = bags.setdefault(slot.bag, (slot.column, length))
        _check_aligned(slot, first, (slot.column, length))
        rows = _rows(lists, slot, schema, text_ids)
        ids.append(_latest(rows, length, slot.width, np.int32(PADDING)))
        lengths[:, slot.bag] = np.minimum(length, slot.width)
        if slot.weights:
            values = columns.take(slot.weights, slot.default is not None)
            flat, length = _flat(values, slot.weights, slot.default is not None)
            _check_aligned(slot, first, (slot.weights, length))
            end = slot.weights_start + slot.width
            bag_weights[:, slot.weights_start : end] = _latest(
                _weights(flat, slot), length, slot.width, np.float32(0)
            )
    numeric = np.empty((n, schema.num_numeric), np.float32)
    start = 0
    for field in schema.numeric:
        name = field.column or field.name
        values = columns.take(name, field.default is not None)
        width = field.width if isinstance(field, VectorField) else 1
        numeric[:, start : start + width] = _numeric(values, field, name)
        start += width
    return Packed(
        num_rows=n,
        ids=tuple(ids),
        lengths=lengths,
        bag_weights=bag_weights,
        numeric=numeric,
    )


class _Columns:
    """The values of each feature, n of them or one."""

    def __init__(self, features: Mapping[str, Any], shared: Mapping[str, Any]):
        self._features, self._shared = features, shared
        sizes = {}
        for name, values in features.items():
            if isinstance(values, _NO_LISTS) or not hasattr(values, "__len__"):
                raise FeatureError(
                    f"feature {name!r} must be a list of one value for each candidate, "
                    f"found {values!r:.80}; a value that all have in common is given "
                    "as shared"
                )
            sizes[name] = len(values)
        self.num_rows = next(iter(sizes.values()), 1)
        for name, size in sizes.items():
            if size != self.num_rows:
                first = next(iter(sizes))
                raise FeatureError(
                    f"feature {name!r} has {size} values and {first!r} has "
                    f"{self.num_rows}; give one for each candidate"
                )

    def take(self, name: str, has_default: bool) -> Sequence[Any] | np.ndarray:
        """Returns the values of a feature; nulls where it is not given."""
        if name in self._features:
            return self._features[name]
        if name in self._shared:
            return [self._shared[name]]
        if not has_default:
            raise FeatureError(f"feature {name!r} is missing and has no default")
        return [None]


def _rows(
    values: Sequence[Any] | np.ndarray,
    slot: IdSlot,
    schema: Schema,
    text_ids: Container[str],
) -> np.ndarray:
    """Returns the table rows [n] int32 of ids."""
    table, default = schema.tables[slot.table], slot.default
    if slot.boundaries:
        fill = None if default is None else 0.0
        numbers, is_null = _numbers(values, slot.column, fill)
        if np.isnan(numbers).any():
            raise FeatureError(f"feature {slot.column!r} holds NaN; give None, or drop")
        ids = transforms.bucket_ids(numbers, slot.boundaries)
        if is_null is not None:
            ids[is_null] = default
    else:
        ids = _ids(values, slot, is_text=slot.column in text_ids)
    if table.ids == "hash":
        salt = transforms.table_salt(table.name)
        return transforms.hash_rows(ids, num_rows=table.num_rows, salt=salt)
    try:
        return transforms.direct_rows(
            ids,
            num_rows=table.num_rows,
            table=table.name,
            field=slot.name,
            default_row=schema.default_rows.get(table.name),
        )
    except DataError as error:
        raise FeatureError(
            f"feature {slot.column!r}: ids outside table {table.name!r}, whose rows "
            f"are 0 .. {table.num_rows - 1}; found {ids.min()} .. {ids.max()}"
        ) from error


def _ids(
    values: Sequence[Any] | np.ndarray, slot: IdSlot, *, is_text: bool
) -> np.ndarray:
    """Returns integer ids [n]: integers, or hashed texts."""
    name, default = slot.column, slot.default
    expected = "texts, as in training" if is_text else "integers of 64 bits"
    if not isinstance(values, np.ndarray) or values.dtype == object:
        values = list(values)
        kinds = set(map(type, values))  # few, where a look at each value takes long
        if type(None) in kinds:
            if default is None:
                raise _null(name)
            values = [default if value is None else value for value in values]
            kinds = set(map(type, values))
        if not all(_is_of_ids(kind, is_text=is_text) for kind in kinds):
            raise _wrong(name, values, expected)
        if is_text:
            # Never by way of an array of texts, which drops NULs at their ends.
            return transforms.hash_strings(values)
        values = np.asarray(values, None if values else np.int64)
    if values.ndim != 1:
        raise FeatureError(
            f"feature {name!r} holds lists, but takes one id for each candidate"
        )
    if is_text and values.dtype.kind == "U":
        return transforms.hash_strings(values.tolist())
    if is_text or values.dtype.kind not in "iu":
        raise _wrong(name, values, expected)
    return values


def _is_of_ids(kind: type, *, is_text: bool) -> bool:
    if is_text:
        return issubclass(kind, str)
    return issubclass(kind, (int, np.integer)) and not issubclass(kind, bool)


def _numbers(
    values: Sequence[Any] | np.ndarray, name: str, default: float | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns numbers [n], and which of them were null, if any were."""
    is_null = None
    if not isinstance(values, np.ndarray) or values.dtype == object:
        values = list(values)
        if any(value is None for value in values):
            if default is None:
                raise _null(name)
            is_null = np.array([value is None for value in values])
            values = [default if value is None else value for value in values]
        try:
            values = np.asarray(values) if values else np.zeros(0)
        except ValueError as error:
            raise _wrong(name, values, "numbers") from error
    if values.dtype.kind not in "biuf" or values.ndim != 1:
        raise _wrong(name, values, "one number for each candidate")
    return values, is_null


def _numeric(
    values: Sequence[Any] | np.ndarray, field: NumericField | VectorField, name: str
) -> np.ndarray:
    """Returns [n, width] float32 of a field of numbers."""
    if isinstance(field, VectorField):
        flat, length = _flat(values, name, field.default is not None)
        is_there = np.array([value is not None for value in values], bool)
        wrong = is_there & (length != field.width)
        if wrong.any():
            raise FeatureError(
                f"feature {name!r} must be lists of {field.width} numbers, found "
                f"{length[wrong][0]}"
            )
        numbers, _ = _numbers(flat, name, field.default)
        result = np.full((len(length), field.width), field.default or 0, np.float32)
        own = transforms.numbers(numbers)
        result[is_there] = own.reshape(-1, field.width)
    else:
        numbers, _ = _numbers(values, name, field.default)
        result = transforms.numbers(numbers, field.transforms)[:, None]
    if not np.isfinite(result).all():
        raise FeatureError(f"feature {name!r} holds numbers that are not finite")
    return result


def _weights(values: Sequence[Any] | np.ndarray, slot: IdSlot) -> np.ndarray:
    numbers, _ = _numbers(values, slot.weights, None)
    weights = transforms.numbers(numbers)
    if not np.isfinite(weights).all() or (
        slot.combiner == "mean" and weights.min(initial=0) < 0
    ):
        wanted = "finite weights" + " >= 0" * (slot.combiner == "mean")
        raise _wrong(slot.weights, weights, wanted)
    return weights


def _flat(
    values: Sequence[Any] | np.ndarray, name: str, has_default: bool
) -> tuple[Sequence[Any] | np.ndarray, np.ndarray]:
    """Returns the elements of lists one after the other, and the lists' lengths."""
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return values.reshape(-1), np.full(len(values), values.shape[1])
    lists = []
    for value in values:
        if value is None and not has_default:
            raise _null(name)
        if isinstance(value, _NO_LISTS) or not (
            value is None or hasattr(value, "__len__")
        ):
            raise _wrong(name, [value], "a list for each candidate")
        lists.append(() if value is None else value)
    length = np.array([len(x) for x in lists], np.int64)
    if lists and all(isinstance(x, np.ndarray) for x in lists):
        return np.concatenate(lists), length
    return [element for x in lists for element in x], length


def _latest(
    values: np.ndarray, length: np.ndarray, width: int, padding: np.generic
) -> np.ndarray:
    """Returns the latest `width` elements of each list, [lists, width]."""
    kept = np.minimum(length, width)
    number = np.arange(len(values))
    result = np.full((len(length), width), padding)
    result[np.arange(width) < kept[:, None]] = values[
        number >= np.repeat(np.cumsum(length) - kept, length)
    ]
    return result


def _check_aligned(
    slot: IdSlot, first: tuple[str, np.ndarray], other: tuple[str, np.ndarray]
) -> None:
    # One of them may be shared, and so be of one list.
    if (first[1] != other[1]).any():
        raise FeatureError(
            f"features {first[0]!r} and {other[0]!r} of {slot.field!r} must have lists "
            f"of equal lengths, found {first[1][:3].tolist()} and "
            f"{other[1][:3].tolist()} first"
        )


def _null(name: str) -> FeatureError:
    return FeatureError(f"feature {name!r} is None and has no default")


def _wrong(name: str, values: Any, expected: str) -> FeatureError:
    return FeatureError(f"feature {name!r} must be {expected}, found {values!r:.80}")
