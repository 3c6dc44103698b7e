"""A small data set on disk and runs on it that cost a second, not ten."""

from collections.abc import Callable, Iterator
import contextlib
import pathlib

from final_states import final_state
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.data import storage
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    Split,
    Table,
)
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.shards import ShardWriter
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.parallel import mesh as meshes

ROWS = {"train": 160, "valid": 40, "test": 40}  # 10 training steps per epoch
SHARDS, GROUP = 4, 20  # shards of every split, rows of a row group


def columns_of(rows: np.ndarray) -> pa.Table:
    """Examples whose field "row" is their number in the split."""
    return pa.table(
        {
            "row": rows.astype(np.int64),
            "item": (rows * 7 % 10).astype(np.int64),
            "price": (rows % 13).astype(np.float32) / 13,
            "click": (rows % 3 == 0).astype(np.int8),
        }
    )


def write_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Writes train/00000.parquet ... 00003.parquet, and so on, with two groups each."""
    card = Card(
        name="made",
        tables=(Table(name="row", num_rows=160), Table(name="item", num_rows=10)),
        fields=(
            CategoricalField(name="row", table="row"),
            CategoricalField(name="item", table="item"),
            NumericField(name="price"),
        ),
        labels=(Label(name="click"),),
        splits={name: Split(num_rows=n) for name, n in ROWS.items()},
    )
    with DatasetWriter(folder, rows_per_group=GROUP) as writer:
        for shard in range(SHARDS):
            with writer.part(shard) as part:
                for split, num_rows in ROWS.items():
                    own = np.split(np.arange(num_rows), SHARDS)[shard]
                    part.write(split, columns_of(own))
                part.finish({})
        writer.finish(card)
    return folder


def make_config(folder: pathlib.Path) -> ExperimentConfig:
    """20 steps: saved every 4, validated after 10 and 20."""
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder))
    config.data.lanes = 4
    config.tables.num_shards = 8
    config.tables.replicate_below_bytes = 500  # "row" by row, "item" replicated
    config.tables.track_last_step = True
    config.optimizer.sparse.name = "lazy_adam"
    config.model.backbone = named_config(
        "dnn", embedding_dim=2, hidden_dims=(4,), dropout=0.2
    )
    config.train.batch_size = 16
    config.train.num_epochs = 2
    config.checkpoint.every_steps = 4
    config.observe.log_every = 2
    config.observe.tensorboard = False
    config.observe.report = False
    return config


def assert_same_run(config, one: pathlib.Path, other: pathlib.Path) -> None:
    """Asserts that two runs ended in the same state, bit for bit, by the same input."""
    step, state, record = final_state(config, one)
    other_step, other_state, other_record = final_state(config, other)
    assert other_step == step
    jax.tree.map(np.testing.assert_array_equal, other_state, state)
    for name in ("position", "examples_seen", "plateau", "best_metrics", "tables"):
        assert other_record[name] == record[name], name


@contextlib.contextmanager
def on_one_device() -> Iterator[None]:
    """What eight simulated devices need is compiled and run much faster by one."""
    original = meshes.make_mesh

    def make_mesh(*, data=0, model=1, devices=None):
        return original(data=data, model=model, devices=devices or jax.devices()[:1])

    meshes.make_mesh = make_mesh
    try:
        yield
    finally:
        meshes.make_mesh = original


def rewrite(path: pathlib.Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Writes a shard anew with other values, in row groups as they were."""
    place = storage.locate(path)
    writer = ShardWriter(place, GROUP)
    writer.write(change(pq.read_table(path)))
    writer.close()
    writer.publish()
