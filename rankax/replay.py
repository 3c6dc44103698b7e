"""Replay: the step whose loss or gradient was not finite, once more and looked at.

Restores the last checkpoint before it, takes the steps up to it as training did, and
tells what of that step is not finite and which values of its batch are extreme.
"""

import io
from typing import Any

from etils import epath
import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes
from rankax.data.blocks import Arrays
from rankax.data.order import Position
from rankax.data.schema import Schema
from rankax.observe import stores
from rankax.observe.console import Console
from rankax.optim import schedule
from rankax.parallel import processes
from rankax.training import interruption, run_folder, warm_start
from rankax.training.checkpoint import Checkpoints
from rankax.training.interruption import StopRequest
from rankax.training.progress import Progress
from rankax.training.setup import Setup, set_up

FILE_NAME = "replay.json"
BATCH = "replay.npz"
_LARGEST = 3  # examples of each column, and columns on the console


def replay(config: ExperimentConfig, workdir: str) -> dict[str, Any]:
    """Reproduces and describes the step that ended the run in `workdir`.

    Writes `replay.json` and, with the packed arrays of the batch
    (`rankax.data.schema`), `replay.npz`. Reads the checkpoints and changes none.

    Returns:
        {"step", "input_position" and "learning_rate_factor" before it, "loss",
        "is_reproduced", "not_finite": name -> numbers, "examples": those with a logit
        that is not finite, "columns": the largest values of each column of numbers}.

    Raises:
        ConfigError: no such step is recorded there, or the run has got past it.
        Interrupted: a signal has ended it.
    """
    setup = set_up(config, workdir)
    folder = run_folder.find(workdir, config, mode=run_folder.TRAIN)
    processes.needs_one("--mode=replay")
    bad = _bad_step(folder)
    with (
        run_folder.explained(workdir),
        run_folder.locked(folder),
        StopRequest() as stop,
        Console() as console,
    ):
        return _replay(setup, config, folder, bad, console, stop)


def _replay(
    setup: Setup,
    config: ExperimentConfig,
    folder: epath.Path,
    bad: dict[str, Any],
    console: Console,
    stop: StopRequest,
) -> dict[str, Any]:
    # ------------------------------------------------ the last checkpoint before it
    steps, bad_step = setup.steps, bad["step"]
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS, None)
    latest, progress = checkpoints.latest_step, Progress()
    first = latest or 0
    if first >= bad_step:
        raise ConfigError(
            f"{folder} has a checkpoint of step {first}, so the run has got past step "
            f"{bad_step}; there is nothing to replay"
        )
    if latest is None:
        state, _ = warm_start.initial_state(config, setup)
    else:
        progress = Progress.from_dict(checkpoints.record(latest))
        saved = checkpoints.restore(
            steps.abstract_saved(), plan=steps.engine.plan, step=latest
        )
        state = steps.from_saved(saved)
    checkpoints.close()

    # ------------------------------------------------ the steps up to it
    position = lanes.start_position(
        setup.splits["train"],
        lanes=config.data.lanes,
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        time_window=config.data.time_window,
    )
    if progress.position is not None:
        position = Position.from_dict(progress.position)
    batches = setup.training_batches(
        config, position, map_batch=lambda arrays: (steps.to_devices(arrays), arrays)
    )

    num_steps = setup.num_steps(config)

    def factor(step: int) -> float:
        own = schedule.factor(config.optimizer.schedule, step, num_steps)
        return progress.plateau.factor * own

    console.message(f"replaying {folder} from step {first:,} to step {bad_step:,}")
    track = console.track("replay", total=bad_step, start=first)
    try:
        for step in range(first, bad_step - 1):
            (batch, _), position = next(batches)
            state, metrics, _ = steps.train(state, batch, factor=factor(step))
            metrics["loss"].block_until_ready()
            track.update(step + 1)
            interruption.check(stop.number, f"in the replay, after step {step + 1:,}")
        (inputs, arrays), _ = next(batches)
    finally:
        track.close()
        batches.close()

    # ------------------------------------------------ the step itself
    not_finite, loss, is_bad = steps.inspect(state, inputs)
    state, _, _ = steps.train(state, inputs, factor=factor(bad_step - 1))
    result = {
        "step": bad_step,
        "input_position": position.to_dict(),
        "learning_rate_factor": factor(bad_step - 1),
        "loss": str(loss),  # JSON has no NaN
        "is_reproduced": int(state.first_bad_step) == bad_step - 1,
        "not_finite": not_finite,
        "examples": _places(setup, config, position, np.flatnonzero(is_bad)[:_LARGEST]),
        "columns": _columns(setup, config, position, arrays),
    }
    run_folder.write_json(folder / FILE_NAME, result)
    batch = io.BytesIO()
    np.savez(batch, **arrays)
    with stores.explained(folder / BATCH, "cannot be written"):
        (folder / BATCH).write_bytes(batch.getvalue())
    _tell(console, result, folder)
    return result


def _bad_step(folder: epath.Path) -> dict[str, Any]:
    path = folder / run_folder.BAD_STEP
    if not stores.is_there(path):
        raise ConfigError(
            f"{folder} has no {path.name}: no step of this run had a loss or gradient "
            "that was not finite, so there is nothing to replay"
        )
    bad = run_folder.read_json(path)
    if type(bad.get("step")) is not int or bad["step"] < 1:
        raise ConfigError(
            f"{path} names no step; --mode=train comes to it again and writes it anew"
        )
    return bad


# ---------------------------------------------------------------- what the batch holds


def _columns(
    setup: Setup, config: ExperimentConfig, position: Position, arrays: Arrays
) -> list[dict[str, Any]]:
    """Lists the columns of numbers, that of the largest |value| first."""
    real = np.flatnonzero(arrays["weight"] > 0)
    found = []
    for name, values in _numbers(setup.schema, arrays).items():
        size = np.abs(values[real])
        largest = real[np.argsort(-size, kind="stable")[:_LARGEST]]
        places = _places(setup, config, position, largest)
        found.append(
            {
                "column": name,
                "largest": float(values[largest[0]]),
                "median_size": float(np.median(size)),
                "examples": [
                    place | {"value": float(values[example])}
                    for place, example in zip(places, largest, strict=True)
                ],
            }
        )
    return sorted(found, key=lambda column: -abs(column["largest"]))


def _numbers(schema: Schema, arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns by name the numbers [B] of each column, of a list its largest ones."""
    values = dict(zip(schema.numeric_names, arrays["numeric"].T, strict=True))
    if schema.card.weight:
        values[schema.card.weight] = arrays["weight"]
    for slot in schema.slots:
        if slot.weights:
            own = arrays["bag_weights"][:, slot.weights_start :][:, : slot.width]
            largest = np.abs(own).argmax(axis=1)
            values[slot.weights] = own[np.arange(len(own)), largest]
    return values


def _places(
    setup: Setup, config: ExperimentConfig, position: Position, examples: np.ndarray
) -> list[dict[str, Any]]:
    """Tells of examples of the batch where they stand in the data set."""
    train = setup.splits["train"]
    found = lanes.examples_at(
        train,
        position,
        examples.tolist(),
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        shuffle=config.data.shuffle,
        time_column=setup.schema.card.time,
        time_window=config.data.time_window,
    )
    return [
        {"example": example, "where": train.where(group), "row": row}
        for example, (group, row) in zip(examples.tolist(), found, strict=True)
    ]


def _tell(console: Console, result: dict[str, Any], folder: epath.Path) -> None:
    step = result["step"]
    if result["is_reproduced"]:
        console.message(f"step {step:,} is reproduced, its loss is {result['loss']}")
    else:
        console.message(
            f"step {step:,} did not come out as it did in training: its loss is "
            f"{result['loss']}. Other devices or versions compute other last digits; "
            "where nothing has changed, suspect the machine"
        )
    names = list(result["not_finite"])
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        console.message(f"not finite: {', '.join(names[:5])}{more}")
    for column in result["columns"][:_LARGEST]:
        top = column["examples"][0]
        console.message(
            f"{column['column']}: largest {column['largest']:g} (median size "
            f"{column['median_size']:g}), {top['where']}, row {top['row']}"
        )
    console.message(f"see {folder / FILE_NAME} and, for the batch, {folder / BATCH}")
