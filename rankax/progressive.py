"""Progressive training: learn a window of time, publish, and be judged by the next.

    python -m rankax.main --config=FILE --workdir=RUN --mode=progressive \
        --config.data.time_window=86_400_000

All splits of the data set are one stream, cut into windows of time. For each window:
train on it, evaluate on the ones that come next, before anything of them is learned,
publish a delta, go on. The model after window t on window t + 1 + s is what requests
get from a model that was published s windows too late; over all t that is the freshness
curve of `report.html`.
"""

from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes, order
from rankax.data.errors import DataError
from rankax.data.stream import Stream, WindowSplit
from rankax.export import bundle_folder, write_bundle
from rankax.observe import accounting, report, stores
from rankax.observe.console import Console
from rankax.observe.profile import StepTrace
from rankax.observe.writers import MetricsWriter, read_metrics
from rankax.optim import schedule
from rankax.parallel import processes
from rankax.publish import told
from rankax.serving.bundle import SIGNATURE, identity_in
from rankax.training import interruption, run_folder, warm_start
from rankax.training import origin as origins
from rankax.training import result as results
from rankax.training.checkpoint import Checkpoints
from rankax.training.evaluator import evaluate
from rankax.training.interruption import Interrupted, StopRequest
from rankax.training.progress import Progress, Stretch, check_finite
from rankax.training.publisher import Publisher
from rankax.training.setup import SPLITS, Setup, set_up
from rankax.training.state import TrainState

WINDOW = "window"  # split of its lines in metrics.jsonl


def progressive(
    config: ExperimentConfig, workdir: str, *, folder: str = "", rows: str = "float32"
) -> dict[str, Any]:
    """Trains window by window, or goes on with that, and returns `result.json`.

    SIGTERM and SIGINT end the run after the step, or within the evaluation, that they
    find, with a checkpoint to go on from.

    Args:
        config: `data.time_window` is the windows' width, `progressive` what is
            published. One pass: epochs, early stopping and the plateau have no say.
        workdir: the run folder.
        folder: of the bundle; "" = `bundle` in the run folder.
        rows: dtype of its rows.

    Raises:
        ConfigError: no window, several processes, or a folder of another run.
        DataError: examples that are not in the order of time, or too few in a window.
        NonFiniteError: a loss or gradient was not finite.
        ParityError: the bundle does not score as the trainer does.
        Interrupted: a signal has ended the run.
    """
    started = time.monotonic()
    processes.needs_one("--mode=progressive")
    if not config.data.time_window:
        raise ConfigError(
            "--mode=progressive needs data.time_window, the width of a window in the "
            "units of the time column (microseconds where it holds timestamps)"
        )
    setup = set_up(config, workdir)
    windows = _windows(config, setup)
    with run_folder.explained(workdir), Console() as console:
        run = run_folder.accept(workdir, config, mode=run_folder.PROGRESSIVE)
        finished = run_folder.read_result(run)
        if finished is not None:
            console.message(f"{run} is finished at step {finished['step']:,}")
            return finished
        target = bundle_folder(run, folder) if config.progressive.publish else None
        with (
            run_folder.locked(run, tell=console.message) as check_lock,
            StopRequest() as stop,
        ):
            run_folder.claim(workdir, config, mode=run_folder.PROGRESSIVE)
            own = _Run(config, setup, windows, run, target, rows, console, stop)
            return own.train(check_lock, started)


def _windows(config: ExperimentConfig, setup: Setup) -> list[WindowSplit]:
    """Cuts all splits together into windows.

    Raises:
        DataError: they are not in the order of time, or a window has too few examples.
    """
    card, width = setup.schema.card, config.data.time_window
    stream = Stream(card.name, [setup.splits[name] for name in SPLITS])
    found = [
        WindowSplit(stream, window, number)
        for number, window in enumerate(order.time_windows(stream, card.time, width))
    ]
    for window in found:
        num_rows = int(window.rows_per_group.sum())
        if num_rows < config.data.lanes:
            raise DataError(
                f"{window.name} has {num_rows} examples, fewer than data.lanes = "
                f"{config.data.lanes}; choose a wider data.time_window or fewer lanes"
            )
    if len(found) < 2:
        times = stream.times(0)
        raise DataError(
            f"{stream.name} is in one window of {width:,}: its times, such as "
            f"{times.min():,} to {times.max():,} at its begin, are in another unit, "
            "or it is too wide; choose a smaller data.time_window"
        )
    return found


class _Run:
    """One progressive run."""

    def __init__(
        self,
        config: ExperimentConfig,
        setup: Setup,
        windows: Sequence[WindowSplit],
        folder: epath.Path,
        target: pathlib.Path | None,
        rows: str,
        console: Console,
        stop: StopRequest,
    ):
        self._config, self._setup, self._windows = config, setup, windows
        self._folder, self._target, self._rows = folder, target, rows
        self._console, self._stop = console, stop
        self._trace = StepTrace(folder, config.observe.profile_steps)
        self._steps = setup.steps
        self._ends = np.cumsum([self._num_batches(window) for window in windows])
        self._publisher: Publisher | None = None
        self._progress, self._window, self._step = Progress(), 0, 0

    def train(self, check_lock: Callable[[], None], started: float) -> dict[str, Any]:
        config, steps, console = self._config, self._steps, self._console
        cost = accounting.account(config, self._setup.schema, steps.engine)
        model, data = type(config.model.backbone).__name__, self._setup.schema.card.name
        console.message(
            f"{model} on {data}: {cost}, {steps.mesh.size} {jax.default_backend()} "
            f"device(s), {len(self._windows)} windows, {self._ends[-1]:,} steps"
        )
        stores.write_text(self._folder / run_folder.TABLES, f"{steps.engine.plan}\n")
        self._setup.keep_quarantine(self._folder)
        checkpoints = Checkpoints(
            self._folder / run_folder.CHECKPOINTS, config.checkpoint
        )
        origin = origins.of_run(config, self._setup)
        state = self._start(checkpoints, origin)
        stores.delete(self._folder / run_folder.BAD_STEP)
        writer = MetricsWriter(
            self._folder,
            tensorboard=config.observe.tensorboard,
            resume_step=self._step,
        )

        def save(state: TrainState) -> None:
            check_lock()
            writer.send()
            wall = self._progress.wall_seconds + time.monotonic() - started
            record = dataclasses.asdict(self._progress) | {"wall_seconds": wall}
            checkpoints.save(
                self._step,
                steps.to_saved(state),
                record | {"window": self._window},
                plan=steps.engine.plan,
                origin=origin,
                is_best=False,
            )

        progress, last = self._progress, len(self._windows) - 1
        try:
            if self._is_between_windows and self._step:
                self._publish(state)  # what a killed run had saved, and no more
            while self._window <= last:
                if not progress.is_evaluation_due:
                    state = self._learn(state, writer, save)
                try:
                    self._judge(state, writer)
                except Interrupted:
                    save(state)
                    raise
                progress.is_evaluation_due = False
                progress.position = None
                self._window += 1
                save(state)
                checkpoints.wait()
                self._publish(state)
                if self._window <= last:
                    interruption.check(
                        self._stop.number, f"after window {self._window - 1}"
                    )
        finally:
            self._trace.close()
            checkpoints.wait()
            writer.send()
        writer.close()
        checkpoints.close()
        result = {
            "metrics": {},
            "step": self._step,
            "epoch": 1.0,
            **results.describe(config, self._setup, progress, cost, started=started),
            "tables": {"train": progress.tables, "test": {}},
            "never_updated": steps.never_updated(state),
            "num_windows": len(self._windows),
            "freshness": freshness(
                read_metrics(self._folder), config.progressive.staleness
            ),
        }
        check_lock()
        run_folder.write_config(self._folder, config, mode=run_folder.PROGRESSIVE)
        run_folder.write_json(self._folder / run_folder.RESULT, result)
        if config.observe.report:
            report.write_report(self._folder)
        self._tell(result)
        return result

    # ------------------------------------------------------------ pieces

    @property
    def _is_between_windows(self) -> bool:
        return self._progress.position is None

    def _num_batches(self, window: WindowSplit) -> int:
        return lanes.num_batches_per_epoch(
            window,
            batch_size=self._config.train.batch_size,
            lanes=self._config.data.lanes,
        )

    def _start(self, checkpoints: Checkpoints, origin: dict[str, Any]) -> TrainState:
        """Returns the state to go on from, and takes over how far the run was."""
        step = checkpoints.latest_step
        if step is None:
            state, taken = warm_start.initial_state(self._config, self._setup)
            if taken:
                self._console.message(taken)
                stores.write_text(self._folder / warm_start.FILE_NAME, f"{taken}\n")
            return state
        where = f"checkpoint {step} of {self._folder}"
        origins.changes(checkpoints.origin(step), origin, where=where)
        record = dict(checkpoints.record(step))
        window = record.pop("window", None)
        if type(window) is not int or not 0 <= window <= len(self._windows):
            raise ConfigError(
                f"{where} is damaged (window {window}); name another --workdir"
            )
        saved = checkpoints.restore(
            self._steps.abstract_saved(), plan=self._steps.engine.plan, step=step
        )
        state = self._steps.from_saved(saved)
        self._progress, self._window = Progress.from_dict(record), window
        self._step = step
        self._console.message(
            f"continuing {self._folder} in window {window}, from step {step:,}"
        )
        return state

    def _learn(
        self,
        state: TrainState,
        writer: MetricsWriter,
        save: Callable[[TrainState], None],
    ) -> TrainState:
        """Trains on the window, from where the run is in it.

        Raises:
            Interrupted: a signal has come; the state is saved.
        """
        config, steps, progress = self._config, self._steps, self._progress
        window, end = self._windows[self._window], int(self._ends[self._window])
        total = self._num_batches(window)
        begin = end - total
        batches = lanes.read_batches(
            window,
            self._setup.schema,
            batch_size=config.train.batch_size,
            lanes=config.data.lanes,
            seed=config.train.seed,
            shuffle=config.data.shuffle,
            num_epochs=1,
            position=progress.input_position,
            num_threads=config.data.num_threads,
            map_batch=steps.to_devices,
            prefetch_batches=config.data.prefetch_batches,
        )
        track = self._console.track(
            f"train window {self._window} of {len(self._windows)}",
            total=total,
            start=self._step - begin,
        )
        stretch, every = Stretch(), config.checkpoint.every_steps
        with contextlib.closing(batches):
            while self._step < end:
                asked = time.monotonic()
                batch, position = next(batches)
                stretch.waited(time.monotonic() - asked)
                factor = schedule.factor(
                    config.optimizer.schedule, self._step, int(self._ends[-1])
                )
                with self._trace.step(self._step, state):
                    state, metrics, counts = steps.train(state, batch, factor=factor)
                self._step += 1
                self._trace.stop_after(self._step, metrics)
                start = {
                    "step": self._step,
                    "input_position": progress.position,
                    "learning_rate_factor": factor,
                }
                stretch.add(metrics, counts, start=start)
                progress.position = position.to_dict()
                is_last = self._step == end
                progress.is_evaluation_due = is_last
                number = self._stop.number
                is_save_due = number or (every and self._step % every == 0)
                is_pause = is_last or is_save_due
                if self._step % config.observe.log_every == 0 or is_pause:
                    values, _, bad = stretch.close(progress, state, steps.engine)
                    check_finite(bad, config, self._folder, can_replay=False)
                    epoch = self._step / int(self._ends[-1])
                    rate = factor * config.optimizer.dense.learning_rate
                    writer.write(
                        step=self._step,
                        split="train",
                        epoch=epoch,
                        values=values | {"learning_rate": rate},
                    )
                    track.update(self._step - begin, loss=values["loss"])
                if is_save_due:
                    save(state)
                    stretch = Stretch()
                interruption.check(number, f"after step {self._step:,}, which is saved")
        track.close()
        return state

    def _judge(self, state: TrainState, writer: MetricsWriter) -> None:
        """Evaluates on the windows ahead, of which nothing has been learned.

        Raises:
            Interrupted: a signal has come.
        """
        found = []
        for staleness in self._config.progressive.staleness:
            ahead = self._window + 1 + staleness
            if ahead >= len(self._windows):
                break
            evaluation = evaluate(
                self._steps,
                state,
                self._windows[ahead],
                self._config,
                console=self._console,
                is_final=False,
                stop=self._stop,
            )
            found.append((staleness, ahead, evaluation.metrics))
        # All at once: a run that is ended on the way makes all of them again.
        for staleness, ahead, metrics in found:
            writer.write(
                step=self._step,
                split=WINDOW,
                epoch=self._step / int(self._ends[-1]),
                values={"window": ahead, "staleness": staleness, **metrics},
            )
        for _, ahead, metrics in found[:1]:
            shown = "  ".join(
                f"{task}/{name} {metrics[f'{task}/{name}']:.4f}"
                for task in self._setup.schema.tasks
                for name in ("auc", "log_loss")
            )
            self._console.message(f"window {ahead}, before it is learned: {shown}")

    def _publish(self, state: TrainState) -> None:
        """Writes the bundle, or its next delta, if this step is not published yet."""
        if self._target is None:
            return
        config, options = self._config, self._config.progressive
        publisher = self._opened()
        if publisher is None:
            write_bundle(
                config,
                self._setup,
                state,
                self._step,
                run=self._folder,
                target=self._target,
                rows=self._rows,
                console=self._console,
            )
        elif publisher.published.step < self._step:  # a run may have gone back
            begin = time.monotonic()
            delta = publisher.publish(
                self._steps,
                state,
                self._step,
                dense_every=options.dense_every,
                max_bytes=options.max_delta_bytes,
            )
            self._console.message(
                f"delta {delta.header.number}: {told(delta)}, in "
                f"{time.monotonic() - begin:.1f} s"
            )

    def _opened(self) -> Publisher | None:
        """Returns the publisher of the bundle that is there now; None = none is."""
        assert self._target is not None
        if not (self._target / SIGNATURE).exists():
            return None
        found = identity_in(self._target)
        known = self._publisher and self._publisher.bundle.signature["id"]
        if found != known:
            config_hash = run_folder.hash_of(self._config)
            self._publisher = Publisher(self._target, config_hash=config_hash)
        return self._publisher

    def _tell(self, result: dict[str, Any]) -> None:
        for name, rows in result["freshness"].items():
            values = ", ".join(
                f"{row['staleness']}: {row['mean']:.4f}"
                + (f" ({row['difference']:+.4f})" if row["staleness"] else "")
                for row in rows
            )
            self._console.message(f"{name} by windows of staleness  {values}")
        self._console.message(
            f"{result['examples_per_second']:,.0f} examples/s, "
            f"{result['wall_seconds']:.0f} s in all; see "
            f"{self._folder / report.FILE_NAME}"
        )


def freshness(
    lines: Sequence[dict[str, Any]], staleness: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    """Compares models of different age on the same windows.

    Args:
        lines: of `metrics.jsonl`.
        staleness: s, in windows, ascending from 0.

    Returns:
        "<task>/<metric>" -> for each s the mean over those windows that define the
        metric for every s ("mean"), how far it is from that of s = 0 ("difference"),
        the standard error of that over the windows ("difference_error", None for fewer
        than two), and their number ("windows").
    """
    found: dict[str, dict[int, dict[int, float]]] = {}
    for line in lines:
        if line["split"] != WINDOW:
            continue
        for name, value in line.items():
            if name.endswith(("/auc", "/gauc", "/log_loss")) and value is not None:
                own = found.setdefault(name, {}).setdefault(int(line["window"]), {})
                own[int(line["staleness"])] = value
    result = {}
    for name, by_window in found.items():
        table = np.array(
            [
                [own[s] for s in staleness]
                for own in by_window.values()
                if own.keys() >= {*staleness}
            ]
        )
        if not len(table):
            continue
        difference = table - table[:, :1]
        n = len(table)
        error = difference.std(axis=0, ddof=1) / n**0.5 if n > 1 else None
        result[name] = [
            {
                "staleness": s,
                "mean": float(table[:, i].mean()),
                "difference": float(difference[:, i].mean()),
                "difference_error": None if error is None else float(error[i]),
                "windows": n,
            }
            for i, s in enumerate(staleness)
        ]
    return result
