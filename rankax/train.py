"""Training: one program, read from top to bottom.

Data → model → start or continue → loop (step, log, evaluate, save) → best checkpoint
→ test → result and report. The same command on the same folder continues the run.
"""

from collections import deque
from collections.abc import Callable
import contextlib
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
from rankax.observe import accounting, environment, report, stores, traffic
from rankax.observe.console import Console, Track
from rankax.observe.writers import MetricsWriter
from rankax.optim import schedule
from rankax.optim.schedule import Plateau
from rankax.parallel import processes
from rankax.parallel.processes import Votes
from rankax.training import interruption, run_folder, warm_start
from rankax.training import origin as origins
from rankax.training.checkpoint import Checkpoints
from rankax.training.evaluator import (
    Evaluation,
    evaluate,
    tell_out_of_vocabulary,
    tell_worst_slices,
)
from rankax.training.interruption import Interrupted, StopRequest
from rankax.training.predictions import FILE_NAME as PREDICTIONS
from rankax.training.setup import Setup, set_up
from rankax.training.state import TrainState
from rankax.training.step import Metrics

_IN_FLIGHT = 2  # steps given to the devices ahead of the one that is waited for


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


def train(config: ExperimentConfig, workdir: str) -> dict[str, Any]:
    """Trains, or continues, the run in `workdir` and returns its `result.json`.

    SIGTERM and SIGINT end the run after the step, or within the evaluation, that they
    find, with a checkpoint to go on from.

    Raises:
        ConfigError: a configuration that cannot be used.
        DataError: input that cannot be used.
        NonFiniteError: a loss or gradient was not finite.
        RunFolderError: the folder cannot be written, as on a full disk.
        Interrupted: a signal has ended the run.
    """
    started = time.monotonic()
    setup = set_up(config, workdir)
    with run_folder.explained(workdir):
        return _start(setup, config, workdir, started)


def _start(
    setup: Setup, config: ExperimentConfig, workdir: str, started: float
) -> dict[str, Any]:
    is_first = jax.process_index() == 0
    folder, finished = stores.locate(workdir), None
    if is_first:
        folder = run_folder.claim(workdir, config)
        finished = run_folder.read_result(folder)
    finished = processes.broadcast(finished)
    console = Console(quiet=not is_first)
    # A finished run whose test split was left unread goes on where it stopped.
    if finished is not None and (finished["metrics"] or not config.eval.test):
        console.message(f"{folder} is finished at step {finished['step']:,}")
        for change in run_folder.not_applied(folder, config):
            console.message(f"not applied: {change}; --mode=evaluate reads it again")
        return finished
    lock = contextlib.nullcontext(lambda: None)
    if is_first:
        lock = run_folder.locked(folder, tell=console.message)
    with lock as check_lock, StopRequest() as stop:
        return _train(
            setup,
            config,
            folder,
            console,
            check_lock=check_lock,
            stop=stop,
            started=started,
        )


def _train(
    setup: Setup,
    config: ExperimentConfig,
    folder: epath.Path,
    console: Console,
    *,
    check_lock: Callable[[], None],
    stop: StopRequest,
    started: float,
) -> dict[str, Any]:
    # ------------------------------------------------ what it costs
    is_first = jax.process_index() == 0  # it alone writes what is not a checkpoint
    steps, splits = setup.steps, setup.splits
    per_epoch, num_steps = setup.batches_per_epoch(config), setup.num_steps(config)
    evaluate_every = config.eval.every_steps or per_epoch
    cost = accounting.account(config, setup.schema, steps.engine)
    console.message(
        f"{type(config.model.backbone).__name__} on {setup.schema.card.name}: {cost}, "
        f"{steps.mesh.size} {jax.default_backend()} device(s), {num_steps:,} steps"
    )

    console.message(str(steps.engine))
    if is_first:
        stores.write_text(folder / run_folder.TABLES, f"{steps.engine.plan}\n")
    if is_first and setup.quarantined:  # later starts keep to it
        run_folder.write_json(folder / run_folder.QUARANTINE, setup.quarantined)

    # ------------------------------------------------ start or continue
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, config.checkpoint)
    progress, latest_step = Progress(), checkpoints.latest_step
    step = latest_step or 0
    origin = origins.of_run(config, setup)
    if latest_step is None:
        state, taken = warm_start.initial_state(config, setup)
        if taken:
            console.message(taken)
        if taken and is_first:
            stores.write_text(folder / warm_start.FILE_NAME, f"{taken}\n")
    else:
        changes = origins.changes(
            checkpoints.origin(step), origin, where=f"checkpoint {step} of {folder}"
        )
        state = checkpoints.restore(
            steps.abstract_state(), plan=steps.engine.plan, step=step
        )
        progress = Progress.from_dict(checkpoints.record(step))
        console.message(f"continuing {folder} from step {step:,}")
        if changes:
            console.message(
                f"saved by other versions ({changes}): results may differ slightly "
                "from those of one version"
            )
    # A run that comes to that step again writes the record again.
    if is_first:
        stores.delete(folder / run_folder.BAD_STEP)
    writer = MetricsWriter(
        folder,
        tensorboard=config.observe.tensorboard,
        resume_step=step,
        quiet=not is_first,
    )
    batches = setup.training_batches(
        config, _position(progress), map_batch=steps.to_devices
    )

    # ------------------------------------------------ loop
    track = console.track("train", total=num_steps, start=step)
    window = _Window()
    votes = Votes(lag=_IN_FLIGHT)
    is_save_due, stopped_by = False, 0

    def save(*, is_best: bool) -> None:
        check_lock()
        writer.send()  # a checkpoint goes on from lines that are there
        wall_seconds = progress.wall_seconds + time.monotonic() - started
        checkpoints.save(
            step,
            state,
            dataclasses.asdict(progress) | {"wall_seconds": wall_seconds},
            plan=steps.engine.plan,
            origin=origin,
            is_best=is_best,
        )

    try:
        while True:
            is_best = False
            epoch = _epoch(_position(progress), config, per_epoch)
            if progress.is_evaluation_due:
                try:
                    valid = evaluate(
                        steps,
                        state,
                        splits["valid"],
                        config,
                        console=console,
                        is_final=False,
                        stop=stop,
                    )
                except Interrupted:
                    save(is_best=False)
                    raise
                progress.is_evaluation_due = False
                is_save_due = True
                is_best = _take_in(valid, progress, step, setup, config)
                writer.write(
                    step=step, split="valid", epoch=epoch, values=valid.metrics
                )
                untouched = steps.never_updated(state)
                if untouched:
                    writer.write(
                        step=step,
                        split="tables",
                        epoch=epoch,
                        values={f"{k}/never_updated": v for k, v in untouched.items()},
                    )
                _tell(console, track, valid, step, setup, is_best, progress)
            if is_save_due:
                save(is_best=is_best)
                window = _Window()
            interruption.check(stopped_by, f"after step {step:,}, which is saved")
            if step == num_steps or progress.is_stopped:
                break

            asked = time.monotonic()
            batch, position = next(batches)
            window.waited(time.monotonic() - asked)
            factor = progress.plateau.factor * schedule.factor(
                config.optimizer.schedule, step, num_steps
            )
            state, metrics, counts = steps.train(state, batch, factor=factor)
            step += 1
            start = {
                "step": step,
                "input_position": progress.position,
                "learning_rate_factor": factor,
            }
            window.add(metrics, counts, start=start)
            progress.position = position.to_dict()

            is_last = step == num_steps
            progress.is_evaluation_due = step % evaluate_every == 0 or is_last
            stopped_by = votes.cast(stop.number)  # a later signal: the next step
            every = config.checkpoint.every_steps
            is_save_due = stopped_by > 0 or (every > 0 and step % every == 0)
            is_pause = progress.is_evaluation_due or is_save_due
            if step % config.observe.log_every == 0 or is_pause:
                epoch = _epoch(position, config, per_epoch)
                values, tables, bad_step = window.close(progress, state, steps.engine)
                _check_finite(bad_step, config, folder)
                if setup.quarantined:
                    values["quarantined_rows"] = setup.num_rows_left_out
                values["learning_rate"] = factor * config.optimizer.dense.learning_rate
                if "examples_per_second" in values:
                    values |= cost.speed(values["examples_per_second"])
                writer.write(step=step, split="train", epoch=epoch, values=values)
                writer.write(
                    step=step,
                    split="tables",
                    epoch=epoch,
                    values=counters.log_values(tables),
                )
                track.update(
                    step,
                    loss=values["loss"],
                    examples_per_second=values.get("examples_per_second"),
                    input_wait=values.get("input_wait"),
                )
    finally:
        track.close()
        batches.close()
        checkpoints.wait()
        writer.send()

    untouched = steps.never_updated(state)

    # ------------------------------------------------ best checkpoint on the test split
    best_step = progress.plateau.best_step
    epoch = _epoch(_position(progress), config, per_epoch)
    test = Evaluation(metrics={}, calibration={}, slices={}, tables={})
    if config.eval.test:
        if best_step and best_step != step:
            state = checkpoints.restore(
                steps.abstract_state(), plan=steps.engine.plan, step=best_step
            )
        test = evaluate(
            steps,
            state,
            splits["test"],
            config,
            console=console,
            is_final=True,
            predictions=folder / PREDICTIONS if config.eval.save_predictions else None,
            stop=stop,
        )
        writer.write(
            step=best_step or step, split="test", epoch=epoch, values=test.metrics
        )

    # ------------------------------------------------ result and report
    examples_per_second = _ratio(progress.timed_examples, progress.train_seconds)
    result = {
        "metrics": test.metrics,
        "best_validation": {
            "metric": setup.selection_metric,
            "value": progress.plateau.best,
            "step": best_step,
            "metrics": progress.best_metrics,
        },
        "step": step,
        "epoch": epoch,
        "examples_seen": progress.examples_seen,
        "examples_per_second": examples_per_second,
        "mfu": cost.speed(examples_per_second).get("mfu"),
        "input_wait": _ratio(progress.wait_seconds, progress.train_seconds),
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds + time.monotonic() - started,
        "seed": config.train.seed,
        "config_hash": run_folder.hash_of(config),
        "model": type(config.model.backbone).__name__,
        "dataset": setup.schema.card.name,
        "dataset_fingerprint": setup.dataset_fingerprint,
        "quarantined": setup.quarantined,
        "num_dense_parameters": cost.num_dense_parameters,
        "num_active_dense_parameters": cost.num_active_dense_parameters,
        "num_table_parameters": cost.num_table_parameters,
        "flops_per_example": cost.flops_per_example,
        "product_flops_per_example": cost.product_flops_per_example,
        "table_bytes_per_example": traffic.table_bytes_per_example(
            config,
            steps.engine,
            counted=progress.tables,
            num_examples=progress.examples_seen,
        ),
        "wire_bytes_per_step": cost.wire_bytes_per_step,
        "tables": {"train": progress.tables, "test": test.tables},
        "never_updated": untouched,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
        "calibration_table": test.calibration,
        "slices": test.slices,
    }
    check_lock()
    writer.close()
    if is_first:
        run_folder.write_config(folder, config)  # `eval` may have changed on the way
        run_folder.write_json(folder / run_folder.RESULT, result)
    checkpoints.close()
    if is_first and config.observe.report:
        report.write_report(folder)
    _tell_result(console, result, setup, folder)
    console.close()
    return processes.broadcast(result)


# ---------------------------------------------------------------- pieces of the loop


class _Window:
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
        elif len(self._flying) > _IN_FLIGHT:
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


def _check_finite(
    bad_step: dict[str, Any] | None, config: ExperimentConfig, folder: epath.Path
) -> None:
    if bad_step is None:
        return
    if jax.process_index() == 0:
        run_folder.write_json(folder / run_folder.BAD_STEP, bad_step)
    raise NonFiniteError(
        f"the loss or a gradient of step {bad_step['step']} was NaN or infinite. "
        "Nothing was written from that step on, neither weights nor table rows, and "
        f"{folder} still holds the last checkpoint before it. The same command with "
        "--mode=replay shows what of that step was not finite, and which of its "
        "examples are extreme. Correct or clip those values; or lower the learning "
        f"rate (optimizer.dense {config.optimizer.dense.learning_rate:g}, "
        f"optimizer.sparse {config.optimizer.sparse.learning_rate:g}), set "
        "optimizer.dense.clip_norm or a warm-up; in a new --workdir"
    )


def _take_in(
    valid: Evaluation,
    progress: Progress,
    step: int,
    setup: Setup,
    config: ExperimentConfig,
) -> bool:
    """Updates best value, learning rate and early stopping; returns whether best."""
    is_best = progress.plateau.update(
        valid.metrics[setup.selection_metric],
        step=step,
        is_higher_better=setup.is_higher_better,
        config=config.optimizer.schedule,
    )
    if is_best:
        progress.best_metrics = valid.metrics
    patience = config.eval.early_stopping_patience
    progress.is_stopped = bool(patience and progress.plateau.since_best >= patience)
    return is_best


def _tell(
    console: Console,
    track: Track,
    valid: Evaluation,
    step: int,
    setup: Setup,
    is_best: bool,
    progress: Progress,
) -> None:
    tasks = setup.schema.tasks
    names = [f"{task}/{name}" for task in tasks for name in ("auc", "log_loss")]
    shown = dict.fromkeys([*names, setup.selection_metric])
    parts = [f"valid step {step:,}"]
    parts += [f"{name} {valid.metrics[name]:.4f}" for name in shown]
    parts.append("(best)" if is_best else f"(lr × {progress.plateau.factor:g})")
    console.message("  ".join(parts))
    if progress.is_stopped:
        console.message(
            f"stopped early: {setup.selection_metric} has not improved for "
            f"{progress.plateau.since_best} evaluations"
        )
    best = progress.plateau.best
    if best is not None:
        track.note(f"best {setup.selection_metric} {best:.4f}")


def _tell_result(
    console: Console, result: dict[str, Any], setup: Setup, folder: epath.Path
) -> None:
    metrics = result["metrics"]
    for task in setup.schema.tasks if metrics else ():
        text = (
            f"test {task}: AUC {metrics[f'{task}/auc']:.4f} "
            f"[{metrics[f'{task}/auc_low']:.4f}, {metrics[f'{task}/auc_high']:.4f}]  "
            f"log loss {metrics[f'{task}/log_loss']:.4f}"
        )
        for name, value in metrics.items():
            if name.startswith((f"{task}/hit_rate@", f"{task}/ndcg@")):
                text += f"  {name.removeprefix(f'{task}/')} {value:.4f}"
        if f"{task}/oracle_auc" in metrics:
            text += (
                f"  (oracle: AUC {metrics[f'{task}/oracle_auc']:.4f}  "
                f"log loss {metrics[f'{task}/oracle_log_loss']:.4f})"
            )
        console.message(text)
    if metrics:
        tell_worst_slices(console, "test", metrics, result["slices"])
        tell_out_of_vocabulary(console, "test", result["tables"]["test"])
    else:
        best = result["best_validation"]["value"]
        shown = "undefined" if best is None else f"{best:.4f}"
        console.message(
            f"best {setup.selection_metric} {shown}; the test split is unread, "
            "--config.eval.test=True reads it"
        )
    console.message(
        f"{result['examples_per_second']:,.0f} examples/s, input wait "
        f"{result['input_wait']:.1%}, {result['wall_seconds']:.0f} s in all; "
        f"see {folder / 'report.html'}"
    )


def _position(progress: Progress) -> Position | None:
    return None if progress.position is None else Position.from_dict(progress.position)


def _epoch(
    position: Position | None, config: ExperimentConfig, per_epoch: int
) -> float:
    """Epochs done, with the fraction of the current one."""
    if position is None:
        return 0.0
    batch_per_lane = config.train.batch_size // config.data.lanes
    return position.epoch + position.rows_per_lane / batch_per_lane / per_epoch


def _ratio(a: float, b: float) -> float:
    return a / b if b else 0.0
