"""How far a run is, on the host: saved with every checkpoint, and between log lines."""

from collections import deque
import dataclasses
import math
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from rankax.config.experiment import ExperimentConfig
from rankax.data import records
from rankax.data.errors import DataError
from rankax.data.order import Position
from rankax.embeddings import counters
from rankax.embeddings.engine import TableEngine
from rankax.optim.schedule import Plateau
from rankax.training import run_folder
from rankax.training.state import TrainState
from rankax.training.step import Metrics

IN_FLIGHT = 2  # steps given to the devices ahead of the one that is waited for


class NonFiniteError(FloatingPointError):
    """A loss or gradient was NaN or infinite; nothing was written from that step on."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Progress:
    """The host's side of a run; JSON values, saved with every checkpoint.

    Attributes:
        position: of the input after the last step.
        examples_seen: real examples trained on, over all epochs.
        timed_examples: those in `train_seconds`.
        train_seconds: time in steps, without compilation, evaluation and saving.
        wait_seconds: part of it spent waiting for input.
        wall_seconds: of the processes before this one, up to their last checkpoint.
        plateau: selection metric and learning-rate reductions.
        best_metrics: validation metrics of the best evaluation.
        tables: what each table was asked for (`rankax.embeddings.counters`).
        is_evaluation_due: the step has one, which has not come to its end.
        is_stopped: early stopping has ended the run.
    """

    position: dict[str, Any] | None = None
    examples_seen: int = 0
    timed_examples: int = 0
    train_seconds: float = 0.0
    wait_seconds: float = 0.0
    wall_seconds: float = 0.0
    plateau: Plateau = dataclasses.field(default_factory=Plateau)
    best_metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    tables: counters.Summary = dataclasses.field(default_factory=dict)
    is_evaluation_due: bool = False
    is_stopped: bool = False

    @property
    def input_position(self) -> Position | None:
        """Where the input goes on; None = at its start."""
        return None if self.position is None else Position.from_dict(self.position)

    @property
    def examples_per_second(self) -> float:
        """Of the time in steps; 0 before there was any."""
        seconds = self.train_seconds
        return self.timed_examples / seconds if seconds else 0.0

    @property
    def input_wait(self) -> float:
        """Share of the time in steps that was spent waiting for input."""
        seconds = self.train_seconds
        return self.wait_seconds / seconds if seconds else 0.0

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Progress":
        """Reads what `dataclasses.asdict` wrote.

        Raises:
            DataError: it is damaged or of another version.
        """
        where = "the checkpoint's record of the run"
        tree = dict(records.mapping(record, where))
        plateau = records.mapping(tree.get("plateau"), f"{where}: plateau")
        for kind, own in ((cls, tree), (Plateau, plateau)):
            for name in (field.name for field in dataclasses.fields(kind)):
                value = own.get(name, "missing")
                is_number = isinstance(value, int | float) and name != "best"
                if value == "missing" or (is_number and not 0 <= value < math.inf):
                    raise DataError(
                        f"{where}: {name} is {value}; restore another checkpoint"
                    )
        tree["plateau"] = records.build(Plateau, plateau, f"{where}: plateau")
        return records.build(cls, tree, where)


class Stretch:
    """Metrics and times between two log lines; no device value is read before `close`.

    Time before the first finished step of a stretch (compilation, evaluation, saving)
    counts as no training time.
    """

    def __init__(self) -> None:
        self.wait_seconds = 0.0
        self._metrics: list[Metrics] = []
        self._counts: list[counters.Counts] = []
        self._flying: deque[jax.Array] = deque()
        self._starts: list[dict[str, Any]] = []
        self._num_untimed = 0  # steps up to the one that ends the compilation
        self._started = 0.0
        self._is_timed = False

    def waited(self, seconds: float) -> None:
        """Counts a wait for input, unless the devices were busy up to its end."""
        # Not in the type of jax.Array, though every array has it.
        last = self._metrics[-1]["loss"] if self._metrics else None
        if last is None or last.is_ready():  # pyright: ignore
            self.wait_seconds += seconds

    def add(
        self, metrics: Metrics, counts: counters.Counts, *, start: dict[str, Any]
    ) -> None:
        """Takes in a step just given to the devices, and what it began with."""
        self._starts.append(start)
        self._metrics.append(metrics)
        self._counts.append(counts)
        self._flying.append(metrics["loss"])
        if not self._is_timed:
            metrics["loss"].block_until_ready()
            self._flying.clear()
            self._is_timed = True
            self._num_untimed = len(self._counts)
            self._started, self.wait_seconds = time.monotonic(), 0.0
        elif len(self._flying) > IN_FLIGHT:
            self._flying.popleft().block_until_ready()

    def close(
        self, progress: Progress, state: TrainState, engine: TableEngine
    ) -> tuple[dict[str, float], counters.Summary, dict[str, Any] | None]:
        """Ends the window in one transfer.

        Returns:
            Its log values, what each table was asked for, and the record of the first
            step whose loss or gradient was not finite, if there is one.

        Raises:
            RoutingOverflowError: a batch that no number of rounds could carry.
        """
        metrics, counts, bad = jax.device_get(
            (self._metrics, self._counts, state.first_bad_step)
        )
        total, is_finite, timed = None, True, 0
        for number, (values, step) in enumerate(zip(metrics, counts, strict=True)):
            is_finite = is_finite and bool(np.isfinite(values["loss"]))
            if is_finite:  # the first bad step is the one to tell about
                engine.check_rounds(step)
            total = counters.accumulate(total, step)
            if number >= self._num_untimed:
                timed += int(step["examples"])
        tables = counters.summarize(engine.plan, total) if total else {}
        progress.tables = counters.add(progress.tables, tables)
        seconds = time.monotonic() - self._started
        progress.examples_seen += int(total["examples"]) if total else 0
        means = jax.tree.map(lambda *x: float(np.mean(x)), *metrics)
        values = {"loss": means.pop("loss"), **means}
        if timed:
            progress.timed_examples += timed
            progress.train_seconds += seconds
            progress.wait_seconds += self.wait_seconds
            values["examples_per_second"] = timed / seconds
            values["input_wait"] = self.wait_seconds / seconds
        bad_step = next(
            (
                {**start, "loss": str(own["loss"])}
                for start, own in zip(self._starts, metrics, strict=True)
                if start["step"] == bad + 1
            ),
            None,
        )
        self._metrics, self._counts, self._num_untimed = [], [], 0
        self._starts = []
        self._started, self.wait_seconds = time.monotonic(), 0.0
        return values, tables, bad_step


def check_finite(
    bad_step: dict[str, Any] | None,
    config: ExperimentConfig,
    folder: epath.Path,
    *,
    can_replay: bool = True,
) -> None:
    """Ends the run at a step whose loss or gradient was not finite.

    Args:
        bad_step: its record, which `--mode=replay` reads; None = there was none.
        config: the run's.
        folder: its folder.
        can_replay: `--mode=replay` takes the run's steps as it did.

    Raises:
        NonFiniteError: there was one.
    """
    if bad_step is None:
        return
    if jax.process_index() == 0:
        run_folder.write_json(folder / run_folder.BAD_STEP, bad_step)
    advice = (
        "The same command with --mode=replay shows what of that step was not finite, "
        "and which of its examples are extreme. "
    )
    raise NonFiniteError(
        f"the loss or a gradient of step {bad_step['step']} was NaN or infinite. "
        "Nothing was written from that step on, neither weights nor table rows, and "
        f"{folder} still holds the last checkpoint before it. "
        f"{advice if can_replay else ''}Correct or clip extreme values; or lower the "
        f"learning rate (optimizer.dense {config.optimizer.dense.learning_rate:g}, "
        f"optimizer.sparse {config.optimizer.sparse.learning_rate:g}), set "
        "optimizer.dense.clip_norm or a warm-up; in a new --workdir"
    )
