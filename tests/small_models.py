"""A schema, weights and inputs on which every model can be tried, without data."""

import jax
import jax.numpy as jnp
import numpy as np

from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.schema import Schema


def make_schema(num_tasks=2):
    card = Card(
        name="toy",
        tables=tuple(Table(name=n, num_rows=50) for n in ("user", "item", "tag")),
        fields=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="item", table="item"),
            CategoricalField(name="tags", table="tag", max_length=3),
            CategoricalField(name="words", table="tag", max_length=2, combiner="sum"),
            NumericField(name="price"),
            NumericField(name="age"),
            SequenceField(
                name="history",
                max_length=4,
                columns=(
                    SequenceColumn(name="item", table="item", column="h_item"),
                    SequenceColumn(name="tag", table="tag", column="h_tag"),
                ),
            ),
        ),
        labels=tuple(Label(name=f"task{t}") for t in range(num_tasks)),
        splits={"train": Split(num_rows=1)},
    )
    return Schema.select(card)


def made_up(rng, path, leaf):
    """Weights of the usual size; statistics and gains near 1."""
    name = jax.tree_util.keystr(path)
    x = rng.normal(size=leaf.shape)
    if "scale" in name or "var" in name:
        return jnp.asarray(1 + 0.1 * np.abs(x), leaf.dtype)
    fan_in = leaf.shape[-2] if leaf.ndim > 1 else 100
    return jnp.asarray(x / np.sqrt(fan_in), leaf.dtype)


def make_inputs(rng, schema, dims, batch):
    """Looked-up rows by role, lengths and numbers of a batch."""
    lengths = rng.integers(0, 3, (batch, schema.num_bags)).astype(np.int32)
    rows = {}
    for role, dim in dims.items():
        x = rng.normal(size=(batch, schema.num_id_columns, dim)).astype(np.float32)
        for slot in schema.slots:
            if slot.bag >= 0:
                padding = np.arange(slot.width) >= lengths[:, slot.bag, None]
                x[:, slot.start : slot.start + slot.width][padding] = 0
        rows[role] = jnp.asarray(x)
    numeric = jnp.asarray(rng.normal(size=(batch, 2)).astype(np.float32))
    return rows, jnp.asarray(lengths), numeric
