"""Training: one program, read from top to bottom.

Data → model → start or continue → loop (step, log, evaluate, save) → best checkpoint
→ test → result and report. The same command on the same folder continues the run.
"""

from collections.abc import Callable
import contextlib
import dataclasses
import time
from typing import Any

from etils import epath
import jax

from rankax.config.experiment import ExperimentConfig
from rankax.data.order import Position
from rankax.embeddings import counters
from rankax.observe import accounting, report, stores
from rankax.observe.console import Console, Track
from rankax.observe.profile import StepTrace
from rankax.observe.writers import MetricsWriter
from rankax.optim import schedule
from rankax.parallel import processes
from rankax.parallel.processes import Votes
from rankax.training import interruption, run_folder, warm_start
from rankax.training import origin as origins
from rankax.training import result as results
from rankax.training.checkpoint import Checkpoints
from rankax.training.evaluator import (
    Evaluation,
    evaluate,
    tell_out_of_vocabulary,
    tell_worst_slices,
)
from rankax.training.interruption import Interrupted, StopRequest
from rankax.training.predictions import FILE_NAME as PREDICTIONS
from rankax.training.progress import IN_FLIGHT, Progress, Stretch, check_finite
from rankax.training.setup import Setup, set_up


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
        folder = run_folder.accept(workdir, config)
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
        if is_first:  # of runs accepted at the same time, the first to get the lock
            run_folder.claim(workdir, config)
        processes.broadcast(None)  # till then the others write nothing there
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
        setup.keep_quarantine(folder)

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
        saved = checkpoints.restore(
            steps.abstract_saved(), plan=steps.engine.plan, step=step
        )
        state = steps.from_saved(saved)
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
        config, progress.input_position, map_batch=steps.to_devices
    )

    # ------------------------------------------------ loop
    track = console.track("train", total=num_steps, start=step)
    trace = StepTrace(folder, config.observe.profile_steps)
    window = Stretch()
    votes = Votes(lag=IN_FLIGHT)
    is_save_due, stopped_by = False, 0

    def save(*, is_best: bool) -> None:
        check_lock()
        writer.send()  # a checkpoint goes on from lines that are there
        wall_seconds = progress.wall_seconds + time.monotonic() - started
        checkpoints.save(
            step,
            steps.to_saved(state),
            dataclasses.asdict(progress) | {"wall_seconds": wall_seconds},
            plan=steps.engine.plan,
            origin=origin,
            is_best=is_best,
        )

    try:
        while True:
            is_best = False
            epoch = _epoch(progress.input_position, config, per_epoch)
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
                window = Stretch()
            interruption.check(stopped_by, f"after step {step:,}, which is saved")
            if step == num_steps or progress.is_stopped:
                break

            asked = time.monotonic()
            batch, position = next(batches)
            window.waited(time.monotonic() - asked)
            factor = progress.plateau.factor * schedule.factor(
                config.optimizer.schedule, step, num_steps
            )
            with trace.step(step, state):
                state, metrics, counts = steps.train(state, batch, factor=factor)
            step += 1
            trace.stop_after(step, metrics)
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
                check_finite(bad_step, config, folder)
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
        trace.close()
        track.close()
        batches.close()
        checkpoints.wait()
        writer.send()

    untouched = steps.never_updated(state)

    # ------------------------------------------------ best checkpoint on the test split
    best_step = progress.plateau.best_step
    epoch = _epoch(progress.input_position, config, per_epoch)
    test = Evaluation(metrics={}, calibration={}, slices={}, tables={})
    if config.eval.test:
        if best_step and best_step != step:
            saved = checkpoints.restore(
                steps.abstract_saved(), plan=steps.engine.plan, step=best_step
            )
            state = steps.from_saved(saved)
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
        **results.describe(config, setup, progress, cost, started=started),
        "tables": {"train": progress.tables, "test": test.tables},
        "never_updated": untouched,
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


def _epoch(
    position: Position | None, config: ExperimentConfig, per_epoch: int
) -> float:
    """Epochs done, with the fraction of the current one."""
    if position is None:
        return 0.0
    batch_per_lane = config.train.batch_size // config.data.lanes
    return position.epoch + position.rows_per_lane / batch_per_lane / per_epoch
