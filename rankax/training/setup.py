"""What training and evaluation both start from: data, devices, compiled steps."""

from collections.abc import Callable, Generator, Sequence
import dataclasses
import math
from typing import Any

from etils import epath
import jax
from jax.sharding import Mesh
import numpy as np

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.data import lanes, quarantine, records
from rankax.data import source as sources
from rankax.data.blocks import Arrays
from rankax.data.order import Position
from rankax.data.parquet import LeftOut
from rankax.data.schema import Schema
from rankax.data.source import SplitSource
from rankax.embeddings import placement
from rankax.metrics.task_metrics import MEAN, higher_is_better
from rankax.observe import stores
from rankax.observe.console import Console
from rankax.parallel import mesh as meshes
from rankax.training import run_folder
from rankax.training.step import Steps

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A validated run before its state exists.

    Attributes:
        schema: fields and tasks in use.
        splits: "train", "valid" and "test".
        steps: the model and its compiled steps.
        selection_metric: "<task>/<metric>", or "mean/<metric>" over the tasks, that
            chooses the best checkpoint.
        is_higher_better: its direction.
        left_out: split -> shards and row groups that could not be read, with
            `data.quarantine`.
    """

    schema: Schema
    splits: dict[str, SplitSource]
    steps: Steps
    selection_metric: str
    is_higher_better: bool
    left_out: dict[str, tuple[LeftOut, ...]]

    def batches_per_epoch(self, config: ExperimentConfig) -> int:
        """Returns the steps of one pass over the training split."""
        return lanes.num_batches_per_epoch(
            self.splits["train"],
            batch_size=config.train.batch_size,
            lanes=config.data.lanes,
        )

    def num_steps(self, config: ExperimentConfig) -> int:
        """Returns the steps of the whole run."""
        train = config.train
        return train.num_steps or train.num_epochs * self.batches_per_epoch(config)

    def training_batches(
        self,
        config: ExperimentConfig,
        position: Position | None,
        *,
        map_batch: Callable[[Arrays], Any],
    ) -> Generator[tuple[Any, Position], None, None]:
        """Reads this process's share of the training batches from a position on."""
        shard = self.steps.input_shard(config.train.batch_size)
        return lanes.read_batches(
            self.splits["train"],
            self.schema,
            batch_size=config.train.batch_size,
            lanes=config.data.lanes,
            seed=config.train.seed,
            shuffle=config.data.shuffle,
            num_epochs=None,
            time_window=config.data.time_window,
            position=position,
            shard_index=shard.index,
            shard_count=shard.count,
            num_threads=config.data.num_threads,
            map_batch=map_batch,
            prefetch_batches=config.data.prefetch_batches,
        )

    @property
    def dataset_fingerprint(self) -> str:
        """Of the examples of all three splits."""
        return "-".join(self.splits[name].fingerprint for name in SPLITS)

    @property
    def quarantined(self) -> dict[str, list[dict[str, Any]]]:
        """By split what is left out, as JSON values; {} without `data.quarantine`."""
        return {
            name: [dataclasses.asdict(entry) for entry in own]
            for name, own in self.left_out.items()
        }

    def keep_quarantine(self, folder: epath.Path) -> None:
        """Writes what is left out into the run folder; later starts keep to it."""
        if self.quarantined:
            run_folder.write_json(folder / run_folder.QUARANTINE, self.quarantined)

    @property
    def num_rows_left_out(self) -> int:
        """Rows that the splits lack, of those that the card states."""
        stated = sum(self.schema.card.splits[name].num_rows for name in self.left_out)
        read = sum(int(self.splits[n].rows_per_group.sum()) for n in self.left_out)
        return stated - read


def set_up(config: ExperimentConfig, workdir: str = "") -> Setup:
    """Checks everything that can be checked before the first step.

    Args:
        config: the run.
        workdir: its run folder, whose quarantine is kept to if it has one.

    Raises:
        ConfigError: options that do not fit each other, the data or the devices.
        DataError: a data set that cannot be used.
    """
    config.validate()
    mesh, schema = mesh_of(config), schema_of(config)
    card = schema.card
    metric = config.eval.metric or f"{schema.tasks[0]}/auc"
    task, _, name = metric.rpartition("/")
    tasks = (*schema.tasks, MEAN)
    if task not in tasks:
        raise ConfigError(
            f"eval.metric = {metric!r} names no task of the run; "
            f"{suggest(metric, [f'{task}/{name or metric}' for task in tasks])}"
        )
    try:
        is_higher_better = higher_is_better(metric)
    except ValueError as error:
        raise ConfigError(f"eval.metric: {error}") from error
    for option, value, is_grouped in (
        ("eval.metric", metric, name == "gauc"),
        ("eval.top_k", config.eval.top_k, config.eval.top_k > 0),
    ):
        if is_grouped and not card.group:
            raise ConfigError(
                f"{option} = {value!r} needs a group column, and the card of "
                f"{card.name!r} names none"
            )
    left_out = _left_out(config, schema, workdir) if config.data.quarantine else {}
    splits = {
        name: sources.open_split(
            config.data.source, name, schema, left_out=left_out.get(name, ())
        )
        for name in SPLITS
    }
    for split in splits.values():
        sources.check_same_ids(split, splits["train"].text_ids)

    def read_sample() -> np.ndarray:
        return _first_batch(config, splits["train"], schema)["ids"]

    return Setup(
        schema=schema,
        splits=splits,
        steps=Steps(config, schema, mesh, read_sample=read_sample),
        selection_metric=metric,
        is_higher_better=is_higher_better,
        left_out=left_out,
    )


def mesh_of(config: ExperimentConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the devices of a run, over which its batches divide.

    Args:
        config: the run.
        devices: those to use; None = all of this machine, or of all its processes.

    Raises:
        ConfigError: they do not.
    """
    mesh = meshes.make_mesh(
        data=config.mesh.data, model=config.mesh.model, devices=devices
    )
    check_divides(config, num_devices=mesh.size)
    return mesh


def check_divides(config: ExperimentConfig, *, num_devices: int) -> None:
    """Raises where tables or batches cannot be split over so many devices."""
    placement.check_num_shards(config.tables, num_devices=num_devices)
    for name, size in (
        ("train.batch_size", config.train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % num_devices:
            both = math.lcm(num_devices, config.data.lanes)
            raise ConfigError(
                f"{name} = {size} must be a multiple of the {num_devices} devices; use "
                f"{max(size // both, 1) * both}"
            )


def schema_of(config: ExperimentConfig) -> Schema:
    """Returns the fields and tasks of a run; reads the card of its data set alone.

    Raises:
        DataError: no card, or one without what the run names.
    """
    return Schema.select(
        sources.load_card(config.data.source),
        fields=config.data.fields,
        tasks=config.data.tasks,
        slices=config.eval.slices,
        default_row=config.tables.out_of_range == "default_row",
        hashed_rows=config.tables.rows_by_table(),
    )


def sample_ids_of(config: ExperimentConfig, schema: Schema) -> np.ndarray:
    """Returns the ids [n, K] of the first batch of a run, which size its exchange.

    Raises:
        DataError: there are no examples to read.
    """
    source = sources.open_split(config.data.source, "train", schema)
    return _first_batch(config, source, schema)["ids"]


def _left_out(
    config: ExperimentConfig, schema: Schema, workdir: str
) -> dict[str, tuple[LeftOut, ...]]:
    """Returns by split what the run folder says, or at the start what is found."""
    path = stores.locate(workdir) / run_folder.QUARANTINE
    if workdir and stores.is_there(path):
        tree = run_folder.read_json(path)
        return {
            name: tuple(
                records.build(LeftOut, entry, str(path))
                for entry in records.entries(tree.get(name), f"{path}: {name}")
            )
            for name in SPLITS
        }
    assert isinstance(config.data.source, ParquetConfig)  # `validate` has seen to it
    found = {}
    with Console(quiet=jax.process_index() > 0) as console:
        for name in SPLITS:
            title = f"verify {name}"
            found[name] = quarantine.find(
                config.data.source.path,
                name,
                schema,
                share=config.data.quarantine,
                num_threads=config.data.num_threads,
                follow=lambda total, title=title: (
                    console.track(title, total=total).update
                ),
            )
            for entry in found[name]:
                console.message(f"quarantined {name}/{entry}")
    return found


def _first_batch(
    config: ExperimentConfig, source: SplitSource, schema: Schema
) -> dict[str, np.ndarray]:
    """Reads the first batch of a run, whole, on whichever process."""
    batches = lanes.read_batches(
        source,
        schema,
        batch_size=config.train.batch_size,
        lanes=config.data.lanes,
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        num_epochs=1,
        time_window=config.data.time_window,
        num_threads=config.data.num_threads,
        prefetch_batches=1,
    )
    try:
        return next(batches)[0]
    finally:
        batches.close()
