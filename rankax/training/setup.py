"""What training and evaluation both start from: data, devices, compiled steps."""

import dataclasses

import numpy as np

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes
from rankax.data import source as sources
from rankax.data.schema import Schema
from rankax.data.source import SplitSource
from rankax.metrics.task_metrics import MEAN, higher_is_better
from rankax.parallel import mesh as meshes
from rankax.training.step import Steps


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
    """

    schema: Schema
    splits: dict[str, SplitSource]
    steps: Steps
    selection_metric: str
    is_higher_better: bool

    @property
    def dataset_fingerprint(self) -> str:
        """Of the examples of all three splits."""
        names = "train", "valid", "test"
        return "-".join(self.splits[name].fingerprint for name in names)


def set_up(config: ExperimentConfig) -> Setup:
    """Checks everything that can be checked before the first step.

    Raises:
        ConfigError: options that do not fit each other, the data or the devices.
        DataError: a data set that cannot be used.
    """
    config.validate()
    mesh = meshes.make_mesh(data=config.mesh.data, model=config.mesh.model)
    for name, size in (
        ("train.batch_size", config.train.batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        if size % mesh.size:
            raise ConfigError(
                f"{name} = {size} must be a multiple of the {mesh.size} devices; use "
                f"{max(size // mesh.size, 1) * mesh.size}"
            )
    card = sources.load_card(config.data.source)
    schema = Schema.select(
        card,
        fields=config.data.fields,
        tasks=config.data.tasks,
        slices=config.eval.slices,
        default_row=config.tables.out_of_range == "default_row",
    )
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
    splits = {
        name: sources.open_split(config.data.source, name, schema)
        for name in ("train", "valid", "test")
    }

    def read_sample() -> np.ndarray:
        return _first_batch(config, splits["train"], schema)["ids"]

    return Setup(
        schema=schema,
        splits=splits,
        steps=Steps(config, schema, mesh, read_sample=read_sample),
        selection_metric=metric,
        is_higher_better=is_higher_better,
    )


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
