"""A data set with every kind of field, and runs on it."""

import numpy as np
import pyarrow as pa

from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
    VectorField,
)
from rankax.data.fields import Clip, Log1p, Standardise
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config

ROWS = {"train": 640, "valid": 200, "test": 100}
CARD = Card(
    name="every_kind",
    tables=(
        Table(name="user", num_rows=50, ids="hash"),
        Table(name="item", num_rows=30),
        Table(name="tag", num_rows=40, ids="hash"),
        Table(name="age", num_rows=4),
    ),
    fields=(
        CategoricalField(name="user", table="user", column="user_id"),
        CategoricalField(name="item", table="item", default=0),
        CategoricalField(name="age", table="age", boundaries=(18, 30, 50), default=3),
        CategoricalField(name="tags", table="tag", max_length=3, default="none"),
        CategoricalField(
            name="likes",
            table="item",
            max_length=4,
            weights="like_weights",
            combiner="sum",
            default=0,
        ),
        NumericField(name="price", transforms=(Clip(minimum=0), Log1p()), default=1.0),
        NumericField(name="score", transforms=(Standardise(mean=3, deviation=2),)),
        VectorField(name="picture", width=3, default=0.0),
        SequenceField(
            name="history",
            columns=(
                SequenceColumn(name="item", table="item", column="past_items"),
                SequenceColumn(name="tag", table="tag", column="past_tags"),
            ),
            max_length=5,
        ),
    ),
    labels=(Label(name="click"), Label(name="buy")),
    splits={name: Split(num_rows=n) for name, n in ROWS.items()},
)


def columns(rng: np.random.Generator, n: int) -> dict[str, list]:
    """Random values of every column, nulls where a field has a default."""

    def maybe(values):
        return [None if rng.random() < 0.1 else value for value in values]

    lengths = rng.integers(0, 8, (3, n))
    tags = [f"tag {i}" for i in range(60)] + ["", "a longer tag with an ümlaut"]
    return {
        "user_id": rng.integers(-(2**62), 2**62, n).tolist(),
        # Some are outside of the table.
        "item": maybe(rng.integers(-2, 40, n).tolist()),
        "age": maybe(rng.uniform(0, 90, n).round(1).tolist()),
        "tags": maybe([rng.choice(tags, k).tolist() for k in lengths[0]]),
        "likes": [rng.integers(0, 30, k).tolist() for k in lengths[1]],
        "like_weights": [rng.normal(size=k).tolist() for k in lengths[1]],
        "price": maybe(rng.normal(5, 20, n).tolist()),
        "score": rng.normal(3, 2, n).tolist(),
        "picture": maybe(rng.normal(size=(n, 3)).tolist()),
        "past_items": [rng.integers(0, 30, k).tolist() for k in lengths[2]],
        "past_tags": [rng.choice(tags, k).tolist() for k in lengths[2]],
    }


def arrow(values: dict[str, list]) -> pa.Table:
    """The same as a table of their types."""
    kinds = {
        "item": pa.int64(),
        "tags": pa.list_(pa.string()),
        "likes": pa.list_(pa.int32()),
        "past_items": pa.list_(pa.int64()),
        "past_tags": pa.list_(pa.string()),
    }
    return pa.table(
        {name: pa.array(column, kinds.get(name)) for name, column in values.items()}
    )


def make_config(folder, model="dnn", **options) -> ExperimentConfig:
    """A run of 10 steps."""
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder))
    config.data.lanes = 4
    config.tables.replicate_below_bytes = 700  # "tag" and "user" by row
    config.tables.num_shards = 8
    config.tables.out_of_range = "default_row"
    config.model.backbone = named_config(model, **options)
    config.train.batch_size, config.train.num_epochs = 64, 1
    config.eval.save_predictions = False
    config.observe.tensorboard = False
    config.observe.report = False
    return config
