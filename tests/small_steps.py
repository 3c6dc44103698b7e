"""Steps of a small model on chosen tables, and states of them, without data."""

import dataclasses

import jax
import numpy as np

from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import synthetic
from rankax.data.card import CategoricalField, Table
from rankax.data.schema import Schema
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.parallel import mesh as meshes
from rankax.training.step import Steps

# Three in one row-sharded stack, two in a replicated one.
TABLES = {"user": 200, "item": 333, "site": 150, "hour": 24, "day": 7}


def make_steps(
    tables=TABLES, *, devices=8, num_shards=16, dim=4, hashed=(), hidden=8, **options
):
    config = ExperimentConfig()
    config.model.backbone = named_config(
        "dnn", embedding_dim=dim, hidden_dims=(hidden,), use_batch_norm=True
    )
    config.optimizer.sparse.name = "lazy_adam"
    config.tables.num_shards = num_shards
    config.tables.replicate_below_bytes = 1500
    config.tables.dtype = "bfloat16"
    config.tables.track_last_step = True
    for name, value in options.items():
        setattr(config.tables, name, value)
    card = dataclasses.replace(
        synthetic.card(SyntheticConfig()),
        tables=tuple(
            Table(name=name, num_rows=rows, ids="hash" if name in hashed else "direct")
            for name, rows in tables.items()
        ),
        fields=tuple(CategoricalField(name=name, table=name) for name in tables),
    )
    schema = Schema.select(
        card, default_row=config.tables.out_of_range == "default_row"
    )
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    return Steps(config, schema, mesh)


def make_state(steps, *, seed=0):
    """A state of random numbers; much cheaper than one that is initialised."""
    rng = np.random.default_rng(seed)

    def numbers(x):
        if x.dtype.kind == "f":
            values = rng.random(x.shape, np.float32) + np.float32(0.5)
        else:
            values = rng.integers(1, 2**14, x.shape, x.dtype)
        return jax.device_put(values, x.sharding)

    return jax.tree.map(numbers, steps.abstract_state())
