"""What a run says of examples: one of its checkpoints, and logits batch by batch."""

from collections import deque
from collections.abc import Iterator, Sequence
import contextlib
from typing import Any, NamedTuple

from etils import epath
import jax
import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes as lane_order
from rankax.data.schema import Schema
from rankax.data.source import SplitSource
from rankax.embeddings import counters
from rankax.parallel import processes
from rankax.training import run_folder
from rankax.training.checkpoint import Checkpoints
from rankax.training.state import TrainState
from rankax.training.step import Steps

IN_FLIGHT = 2  # batches given to the devices ahead of the one being read back


def restore(
    folder: epath.Path,
    steps: Steps,
    *,
    step: int | None = None,
    is_newest: bool = False,
) -> tuple[TrainState, int]:
    """Loads a checkpoint of a run, which may be at work, and returns its step too.

    Args:
        folder: the run folder.
        steps: of the run's configuration.
        step: of the checkpoint; None = the best by validation, or else the newest.
        is_newest: None = the newest.

    Raises:
        ConfigError: there is none, or none of this step.
        DataError: it is damaged.
    """
    path = folder / run_folder.CHECKPOINTS
    with contextlib.closing(Checkpoints(path, None)) as checkpoints:
        known = checkpoints.steps
        if not known:
            raise ConfigError(f"{folder} holds no checkpoint yet; train it further")
        if step is None:
            step = known[-1] if is_newest else checkpoints.best_step()
        if step not in known:
            raise ConfigError(
                f"--step={step}: {folder} has no such checkpoint, only those of steps "
                f"{known}; name one of them, or leave --step away"
            )
        saved = checkpoints.restore(
            steps.abstract_saved(), plan=steps.engine.plan, step=step
        )
    return steps.from_saved(saved), step


def origin(folder: epath.Path, step: int) -> dict[str, Any]:
    """Returns what a checkpoint's run was started with (`rankax.training.origin`)."""
    with contextlib.closing(
        Checkpoints(folder / run_folder.CHECKPOINTS, None)
    ) as checkpoints:
        return checkpoints.origin(step)


def batch_size(config: ExperimentConfig) -> int:
    """Returns B of batches that are only scored."""
    return config.eval.batch_size or config.train.batch_size


class Scored(NamedTuple):
    """A batch with its scores, whole on every process.

    Attributes:
        logits: [B, T] float32.
        counts: what the tables were asked for (`rankax.embeddings.counters`).
        arrays: the host's arrays that were asked for (`rankax.data.schema`).
    """

    logits: np.ndarray
    counts: counters.Counts
    arrays: dict[str, np.ndarray]


def scores(
    steps: Steps,
    state: TrainState,
    source: SplitSource,
    schema: Schema,
    config: ExperimentConfig,
    *,
    lanes: int,
    names: Sequence[str],
) -> Iterator[Scored]:
    """Yields every batch of a split once, in order; few of them are in memory.

    Args:
        steps: compiled steps.
        state: its parameters and tables are used.
        source: the split.
        schema: the steps' own, or one that lacks labels.
        config: `eval` and `data` sections.
        lanes: L, of the order in which examples are read.
        names: which of the host's arrays come with the logits, where they are there.
    """
    size = batch_size(config)
    shard = steps.input_shard(size)
    batches = lane_order.read_batches(
        source,
        schema,
        batch_size=size,
        lanes=lanes,
        seed=0,
        shuffle=False,
        num_epochs=1,
        shard_index=shard.index,
        shard_count=shard.count,
        num_threads=config.data.num_threads,
        map_batch=lambda arrays: (steps.to_devices(arrays), arrays),
        prefetch_batches=config.data.prefetch_batches,
    )

    def fetch(on_devices: Any, arrays: dict[str, np.ndarray]) -> Scored:
        logits, counts = jax.device_get(on_devices)
        steps.engine.check_rounds(counts)
        kept = processes.gather({k: arrays[k] for k in names if k in arrays})
        return Scored(logits, counts, kept)

    waiting: deque[tuple[Any, dict[str, np.ndarray]]] = deque()
    for (batch, arrays), _ in batches:
        waiting.append((steps.evaluate(state, batch), arrays))
        if len(waiting) > IN_FLIGHT:
            yield fetch(*waiting.popleft())
    for scored in waiting:
        yield fetch(*scored)
