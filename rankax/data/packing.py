"""Arrow columns of one row group → the packed arrays of `rankax.data.schema`.

Ids become table rows here (`rankax.data.transforms`), and here every value is checked:
what passes is finite, in range, and of the shape that the card promises.
"""

import numpy as np
import pyarrow as pa

from rankax.data import blocks, transforms
from rankax.data.card import Slice
from rankax.data.columns import Columns
from rankax.data.errors import DataError
from rankax.data.fields import VectorField
from rankax.data.schema import IdSlot, Schema

PADDING = -1


def needed_columns(schema: Schema) -> tuple[str, ...]:
    """Returns the Parquet columns that `encode` reads, each once."""
    card = schema.card
    names = [name for slot in schema.slots for name in (slot.column, slot.weights)]
    names += [field.column or field.name for field in schema.numeric]
    names += [label.column or label.name for label in schema.labels]
    if schema.has_true_probability:
        names += [label.true_probability for label in schema.labels]
    names += [card.weight, card.group, card.time, card.domain]
    names += [entry.column or entry.name for entry in schema.slices]
    return tuple(dict.fromkeys(name for name in names if name))


def pack(table: pa.Table, schema: Schema, *, where: str) -> blocks.Arrays:
    """Packs the columns of n examples as one batch; see `encode`."""
    block = encode(table, schema, where=where)
    return blocks.join([blocks.Part(block, 0, block.num_rows)])


def encode(
    table: pa.Table,
    schema: Schema,
    *,
    where: str,
    order: np.ndarray | None = None,
    buffers: blocks.Buffers | None = None,
) -> blocks.Block:
    """Checks n examples and keeps them in the form that batches are made of.

    Args:
        table: at least the columns of `needed_columns`.
        schema: fields and tasks in use.
        where: opens every error message, for example "frappe/train row group 3".
        order: [n]; example i of the block is row order[i] of the table; None = as
            given.
        buffers: where the block's memory comes from.

    Returns:
        A block whose batches have the arrays listed in `rankax.data.schema`; `weight`
        is 1 where the card names no weight column.

    Raises:
        DataError: a missing column, a wrong type or shape, a missing, non-finite or
            out-of-range value.
    """
    columns = Columns(table, where)
    card, n = schema.card, table.num_rows
    lines: list[blocks.Line] = []
    wide: list[blocks.Wide] = []
    lists: list[blocks.Lists] = []
    bags: dict[int, tuple[str, np.ndarray]] = {}  # first column, offsets [n + 1]

    def add(array: str, values: np.ndarray, place: int = 0) -> None:
        lines.append(blocks.Line(array, place, values))

    for slot in schema.slots:
        if slot.bag < 0:
            values = columns.ids(slot, schema.tables[slot.table])
            add("ids", _rows(values, slot, schema, where), slot.start)
            continue
        values, offsets = columns.lists(slot, schema.tables[slot.table])
        first = bags.setdefault(slot.bag, (slot.column, offsets))
        _check_aligned(slot, first, (slot.column, offsets), where)
        rows = _rows(values, slot, schema, where)
        lists.append(
            blocks.Lists("ids", slot.start, slot.bag, slot.width, rows, PADDING == -1)
        )
        if slot.weights:
            values, offsets = columns.weights(slot)
            _check_aligned(slot, first, (slot.weights, offsets), where)
            start = slot.weights_start
            lists.append(
                blocks.Lists("bag_weights", start, slot.bag, slot.width, values, False)
            )
    start = 0
    for field in schema.numeric:
        if isinstance(field, VectorField):
            wide.append(blocks.Wide("numeric", start, columns.vectors(field)))
            start += field.width
        else:
            add("numeric", columns.numeric(field), start)
            start += 1
    for i, label in enumerate(schema.labels):
        add("labels", columns.binary(label.column or label.name), i)
    if card.weight:
        add("weight", columns.floats(card.weight, minimum=0))
    else:
        add("weight", np.ones(n, np.float32))
    if schema.has_true_probability:
        for i, label in enumerate(schema.labels):
            values = columns.floats(label.true_probability, minimum=0, maximum=1)
            add("true_probability", values, i)
    if card.group:
        add("group", columns.groups(card.group))
    if card.time:
        add("time", columns.times(card.time))
    if card.domain:
        expected = "an integer domain per example"
        add("domain", columns.small_integers(card.domain, expected))
    for i, entry in enumerate(schema.slices):
        add("slices", _slice_values(entry, columns), i)
    return blocks.make(
        n,
        form=_form(schema),
        lines=lines,
        wide=wide,
        lists=lists,
        bags=_kept(schema, bags),
        order=order,
        buffers=buffers,
    )


def _form(schema: Schema) -> dict[str, blocks.Array]:
    """Returns the arrays of `rankax.data.schema` that a batch has, but "lengths"."""
    card, tasks = schema.card, len(schema.labels)
    arrays = {
        "ids": (np.int32, schema.num_id_columns, True),
        "bag_weights": (np.float32, schema.num_bag_weights, schema.num_bag_weights),
        "numeric": (np.float32, schema.num_numeric, True),
        "labels": (np.float32, tasks, True),
        "weight": (np.float32, None, True),
        "group": (np.int64, None, card.group),
        "time": (np.int64, None, card.time),
        "domain": (np.int32, None, card.domain),
        "slices": (np.int32, len(schema.slices), schema.slices),
        "true_probability": (np.float32, tasks, schema.has_true_probability),
    }
    return {
        name: blocks.Array(dtype, width)
        for name, (dtype, width, is_there) in arrays.items()
        if is_there
    }


def _kept(
    schema: Schema, bags: dict[int, tuple[str, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns of each bag where the latest L of each list start, and their number."""
    width = {slot.bag: slot.width for slot in schema.slots if slot.bag >= 0}
    kept = []
    for bag in range(schema.num_bags):
        offsets = bags[bag][1]
        length = np.minimum(np.diff(offsets), width[bag])
        kept.append((offsets[1:] - length, length.astype(np.int32)))
    return kept


def _slice_values(entry: Slice, columns: Columns) -> np.ndarray:
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
