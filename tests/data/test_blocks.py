"""Rows keep together what is theirs, through shuffling and memory used again."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from rankax.data import blocks, lanes, packing
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Table,
    VectorField,
)
from rankax.data.schema import Schema

NUM_ROWS = 5_000
KEPT = 5
CARD = Card(
    name="made",
    tables=(Table(name="row", num_rows=10 * NUM_ROWS),),
    fields=(
        CategoricalField(
            name="bag",
            table="row",
            max_length=KEPT,
            combiner="sum",
            weights="bag_weights",
        ),
        CategoricalField(name="row", table="row"),
        NumericField(name="number"),
        VectorField(name="vector", width=3),
        SequenceField(
            name="past",
            columns=(SequenceColumn(name="row", table="row", column="past"),),
            max_length=KEPT,
        ),
    ),
    labels=(Label(name="click"),),
    splits={},
    group="row",
)
SCHEMA = Schema.select(CARD)


def lengths_of(rows, factor):
    """Between 0 and 8; some row groups have much longer lists than others."""
    return rows * factor % 9 // (1 + rows // 500 % 3)


def ragged(rows, factor):
    """Row r has the list r, r + 1, ..."""
    lengths = lengths_of(rows, factor)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.repeat(rows - offsets[:-1], lengths) + np.arange(offsets[-1])
    return offsets.astype(np.int32), values


def lists(rows, factor, kind):
    offsets, values = ragged(rows, factor)
    return pa.ListArray.from_arrays(offsets, pa.array(values).cast(kind))


@dataclasses.dataclass
class Closed:
    """A source in which the row number tells everything."""

    rows_per_group: np.ndarray
    name: str = "made/train"
    fingerprint: str = "0123456789ab"

    def read(self, group: int) -> pa.Table:
        start = int(self.rows_per_group[:group].sum())
        rows = np.arange(start, start + self.rows_per_group[group])
        vectors = np.repeat(rows, 3).astype(np.float32)
        return pa.table(
            {
                "bag": lists(rows, 7919, pa.int64()),
                "bag_weights": lists(rows, 7919, pa.float32()),
                "past": lists(rows, 104_729, pa.int64()),
                "row": rows,
                "number": rows.astype(np.float32),
                "vector": pa.FixedSizeListArray.from_arrays(vectors, 3),
                "click": rows % 2,
            }
        )

    def where(self, group: int) -> str:
        return f"{self.name} row group {group}"


def expected_lists(rows, factor, padding):
    length = lengths_of(rows, factor)
    first = rows + np.maximum(length - KEPT, 0)  # the latest are kept
    values = first[:, None] + np.arange(KEPT)
    kept = np.minimum(length, KEPT)
    return np.where(np.arange(KEPT) < kept[:, None], values, padding), kept


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_array_of_a_batch_tells_of_the_same_rows(shuffle):
    rng = np.random.default_rng(0)
    sizes = np.diff(np.sort(rng.choice(np.arange(1, NUM_ROWS), 40, replace=False)))
    source = Closed(np.append(sizes, NUM_ROWS - sizes.sum()))
    batches = lanes.read_batches(
        source,
        SCHEMA,
        batch_size=64,
        lanes=8,
        seed=0,
        shuffle=shuffle,
        num_epochs=4,
        num_threads=4,
    )
    seen = np.zeros(NUM_ROWS, int)
    for batch, _ in batches:
        rows = batch["ids"][:, KEPT].astype(np.int64)
        bag, kept = expected_lists(rows, 7919, packing.PADDING)
        weights, _ = expected_lists(rows, 7919, 0)
        past, of_past = expected_lists(rows, 104_729, packing.PADDING)
        np.testing.assert_array_equal(batch["ids"][:, :KEPT], bag)
        np.testing.assert_array_equal(batch["bag_weights"], weights)
        np.testing.assert_array_equal(batch["ids"][:, KEPT + 1 :], past)
        np.testing.assert_array_equal(batch["lengths"], np.stack([kept, of_past], 1))
        np.testing.assert_array_equal(batch["numeric"], np.repeat(rows[:, None], 4, 1))
        np.testing.assert_array_equal(batch["labels"][:, 0], rows % 2)
        np.testing.assert_array_equal(batch["group"], rows)
        seen[rows[batch["weight"] > 0]] += 1
    assert (seen == 4).all()


def test_memory_of_used_up_blocks_serves_the_next_ones_and_does_not_add_up():
    buffers = blocks.Buffers()
    source = Closed(np.full(50, 100))
    in_use, taken = [], []
    for group in range(50):
        block = packing.encode(source.read(group), SCHEMA, where="", buffers=buffers)
        in_use.append(block)
        taken += [id(memory) for memory in block.memory]
        if len(in_use) > 4:
            buffers.give_back(in_use.pop(0))
    assert len(set(taken)) < len(taken) / 2
    free = sum(len(memory) for memory in buffers._free)
    assert free <= 2 * sum(len(memory) for memory in in_use[0].memory)
