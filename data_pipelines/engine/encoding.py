"""One chunk of raw rows → the columns of the dataset folder, in two steps.

`prepare` does all that the chunk alone suffices for: an id of a vocabulary becomes a
code into the chunk's own dictionary. `finish`, once vocabularies are known, looks up
each id of that dictionary and replaces the codes. So rows are looked up in small
dictionaries only, and what lies between the steps is compact.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import raw_files
from data_pipelines.engine.plan import Plan
from data_pipelines.engine.vocabulary import (
    Hashed,
    IdCounts,
    SliceValues,
    Vocabulary,
    stable_ids,
    with_dictionary,
)
from rankax.data.card import DataError, NumericField, VectorField

Encoder = Vocabulary | Hashed


def prepare(plan: Plan, chunk: pa.Table) -> pa.Table:
    """Makes the columns of the dataset folder but for vocabularies and slices.

    Ids of vocabularies and values of slices are dictionary arrays; missing values are
    null; labels are numbers still.

    Args:
        plan: names the columns.
        chunk: columns of the types that `Plan.kinds` asks for.
    """
    raw = {name: _one_chunk(chunk[name]) for name in plan.kinds()}
    prepared: dict[str, pa.Array] = {}
    for name, (table, kind) in plan.id_columns().items():
        offsets, values = None, raw[name]
        if kind == "list":
            values, offsets = raw_files.ragged(values)
        is_hashed = table in plan.hashed
        values = stable_ids(values) if is_hashed else with_dictionary(values)
        if offsets is not None:
            values = pa.ListArray.from_arrays(offsets, values)
        prepared[name] = values
    for field in plan.fields:
        if isinstance(field, NumericField):
            prepared[field.name] = _to_float32(_nan_as_null(raw[field.name]))
        elif isinstance(field, VectorField):
            prepared[field.name] = _vectors(raw[field.name], field)
    for label in plan.labels:
        values = _nan_as_null(raw[label.column].cast(pa.float64()))
        if label.threshold is not None:
            values = pc.greater_equal(values, label.threshold).cast(pa.float64())
        prepared[label.name] = values
    for name, column in plan.special.items():
        values = raw[column]
        if name == "group":
            values = stable_ids(values)
        elif name == "weight":
            values = _to_float32(values)
        prepared[f"_{name}"] = values
    for name in plan.slices:
        prepared[f"_slice_{name}"] = raw[name].dictionary_encode()
    return pa.table(prepared)


def count_ids(plan: Plan, prepared: pa.Table, counts: Mapping[str, IdCounts]) -> None:
    """Adds the ids of prepared training rows to the counts of their vocabularies."""
    for name, (table, kind) in plan.id_columns().items():
        if table in counts:
            values = _one_chunk(prepared[name])
            counts[table].add(values.flatten() if kind == "list" else values)


def finish(
    plan: Plan,
    prepared: pa.Table,
    encoders: Mapping[str, Encoder],
    slices: Mapping[str, SliceValues],
    counts: Counter,
) -> pa.Table:
    """Makes the rest, and adds up what was missing or unknown.

    Args:
        plan: names the columns.
        prepared: of `prepare`.
        encoders: of every table.
        slices: of every slice column.
        counts: "<column>: missing", "<column>: unknown" -> count.
    """
    done: dict[str, pa.Array] = {}
    for name, (table, kind) in plan.id_columns().items():
        offsets, values = None, _one_chunk(prepared[name])
        if kind == "list":
            values, offsets = raw_files.ragged(values)
        ids, num_unknown = encoders[table].encode(values)
        counts[f"{name}: missing"] += values.null_count
        counts[f"{name}: unknown"] += num_unknown
        done[name] = pa.array(ids)
        if offsets is not None:
            done[name] = pa.ListArray.from_arrays(offsets, done[name])
    for field in plan.fields:
        if isinstance(field, NumericField):
            values = _one_chunk(prepared[field.name])
            counts[f"{field.name}: missing"] += values.null_count
            done[field.name] = pc.fill_null(values, 0.0)
        elif isinstance(field, VectorField):
            done[field.name] = prepared[field.name]
    for label in plan.labels:
        done[label.name] = prepared[label.name]
    for name, column in plan.special.items():
        values = _one_chunk(prepared[f"_{name}"])
        if name == "group":
            if column not in plan.id_columns():  # else counted above
                counts[f"{column}: missing"] += values.null_count
            values = pa.array(Hashed(name, 1).encode(values)[0])
        done[f"_{name}"] = values
    for name, values in slices.items():
        done[f"_slice_{name}"] = values.encode(_one_chunk(prepared[f"_slice_{name}"]))
    return pa.table(done)


def labels_as_int8(encoded: pa.Table, plan: Plan) -> pa.Table:
    """Makes labels, which are known to be 0 or 1, as small as they can be."""
    for label in plan.labels:
        place = encoded.column_names.index(label.name)
        small = encoded[label.name].cast(pa.int8())
        encoded = encoded.set_column(place, label.name, small)
    return encoded


def _vectors(lists: pa.Array, field: VectorField) -> pa.Array:
    try:
        return lists.cast(pa.list_(pa.float32(), field.width))
    except pa.ArrowInvalid as error:
        lengths = pc.unique(pc.list_value_length(lists)).drop_null().to_pylist()
        raise DataError(
            f"column {field.name!r} holds lists of {sorted(lengths)[:5]} numbers, "
            f"expected {field.width} in each"
        ) from error


def _to_float32(values: pa.Array) -> pa.Array:
    # Arrow would refuse what rounds; what overflows to infinity, the packing refuses.
    return values.cast(pa.float32(), safe=False)


def _nan_as_null(values: pa.Array) -> pa.Array:
    is_nan = pc.is_nan(values)
    return pc.if_else(is_nan, None, values) if pc.any(is_nan).as_py() else values


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    merged = column.combine_chunks()
    return merged if isinstance(merged, pa.Array) else pa.concat_arrays(merged.chunks)
