"""A new run that starts with what another run has learned.

What is taken is named by entries (`rankax.training.entries`), "tables/embedding/user"
or "network/head/linear/bias", with their moments. A table may have grown or shrunk,
have another name, another place, another number of virtual shards, be replicated here
and sharded by row there, on any number of devices. Rows that the other run does not
have, and entries that are not taken, stay as this run has initialised them.

Not taken are step, rng, input position, schedule, and the step counters of optimizers:
the bias correction of Adam begins anew, which makes its first steps with moments of
another run smaller. Moments do not pass between replicated and row-sharded tables,
whose optimizers differ. `last_step` keeps the numbers of the other run.

Beside the state there is one array of one stack of the other run at a time (and all of
its dense arrays), split over the devices where their number divides its `num_shards`.
"""

from collections.abc import Mapping
import contextlib
import fnmatch
from typing import Any

from etils import epath
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import CheckpointConfig, ExperimentConfig
from rankax.embeddings import remap
from rankax.embeddings.placement import RowGroup, TablePlan
from rankax.embeddings.remap import Placement, TableMove
from rankax.observe import stores
from rankax.parallel.mesh import ALL_DEVICES
from rankax.training import checkpoint as checkpoints
from rankax.training import entries, run_folder
from rankax.training import origin as origins
from rankax.training.checkpoint import Checkpoint, Checkpoints
from rankax.training.entries import Line, Side
from rankax.training.setup import Setup
from rankax.training.state import TrainState

FILE_NAME = "init_from.txt"


def initial_state(config: ExperimentConfig, setup: Setup) -> tuple[TrainState, str]:
    """Returns the state that a run begins with, and what it says of `init_from`.

    That is a line for each entry, kept, resized, fresh or dropped; "" without.

    Raises:
        ConfigError, DataError: see `start`.
    """
    state, plan = setup.steps.init_state(), setup.steps.engine.plan
    if not config.checkpoint.init_from:
        return state, ""
    return start(
        state,
        saved=setup.steps.abstract_saved(),
        plan=plan,
        origin=origins.of_run(config, setup),
        config=config.checkpoint,
    )


def start(
    state: TrainState,
    *,
    saved: TrainState,
    plan: TablePlan,
    origin: Mapping[str, Any],
    config: CheckpointConfig,
) -> tuple[TrainState, str]:
    """Takes over what the configuration asks for.

    Args:
        state: freshly initialised; consumed.
        saved: its shapes and dtypes in a checkpoint.
        plan: placement of its tables.
        origin: of this run (`rankax.training.origin`).
        config: `init_from` is set.

    Returns:
        The new state, and what became of each entry.

    Raises:
        ConfigError: no such checkpoint, a pattern or a name that fits nothing, or
            differences that no pattern asks to bridge.
        DataError: the checkpoint is damaged.
    """
    folder, step = _locate(config.init_from)
    with contextlib.closing(Checkpoints(folder, None)) as others:
        source = _choose(others, step, config.init_from)
        arrays = checkpoints.flatten(state)
        manifest = checkpoints.manifest_of(checkpoints.flatten(saved), plan)
        new = entries.side_of(manifest, origin)
        old = entries.side_of(source.contents["manifest"], source.contents["origin"])
        renamed = entries.renamed_tables(config.init_rename, new, old)
        lines = entries.compare(new, old, renamed, config.init_patterns)
        _check(lines, config)
        taken = {line.entry for line in lines if line.kind in ("kept", "resized")}
        _take_dense(arrays, source, new, old, taken)
        _take_tables(arrays, source, new, old, renamed, taken)
    state = jax.tree.map_with_path(
        lambda path, x: arrays[checkpoints.name_of(path)] if x.size else x, state
    )
    title = f"started from {source.name}"
    return state, "\n".join([title, *(f"  {line}" for line in lines)])


def _locate(init_from: str) -> tuple[epath.Path, int | None]:
    """Returns the folder of a run's checkpoints, and the step that is named."""
    folder = stores.locate(init_from)
    if folder.parent.name == run_folder.CHECKPOINTS and folder.name.isdecimal():
        return folder.parent, int(folder.name)
    return folder / run_folder.CHECKPOINTS, None


def _choose(saved: Checkpoints, step: int | None, init_from: str) -> Checkpoint:
    """Returns the checkpoint of a step, or the best one, or the newest."""
    advice = (
        "Name another checkpoint in checkpoint.init_from, or bring back a good copy"
    )
    if step is None:
        step = saved.best_step(advice=advice)
    if step not in saved.steps:
        raise ConfigError(
            f"checkpoint.init_from = {init_from!r} holds no checkpoint; name a run "
            f"folder or one of its {run_folder.CHECKPOINTS}/<step>"
        )
    return saved.at(step, advice=advice)


def _check(lines: list[Line], config: CheckpointConfig) -> None:
    where = f"checkpoint.init_from = {config.init_from!r}"
    names = [line.entry for line in lines]
    for pattern in config.init_patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"checkpoint.init_patterns: {pattern!r} fits no entry; "
                f"{suggest(pattern, names)}"
            )
    unlike = [line for line in lines if line.kind != "kept" or line.misfits]
    if unlike and not config.init_patterns:
        raise ConfigError(
            f"{where} does not fit this run as a whole:\n"
            + "\n".join(f"  - {line}" for line in unlike)
            + "\nname what to take over in checkpoint.init_patterns, for example "
            "('tables/*', 'network/backbone/*'); ('*',) takes all that fits, resized "
            "tables too, and leaves the rest as it was initialised"
        )
    if all(line.kind in ("fresh", "dropped") for line in lines):
        raise ConfigError(
            f"{where}: nothing there fits this run:\n"
            + "\n".join(f"  - {line}" for line in lines)
        )


# ---------------------------------------------------------------- taking it


def _take_dense(
    arrays: dict[str, Any], source: Checkpoint, new: Side, old: Side, taken: set[str]
) -> None:
    names = {
        old.dense[entry][what]: new.dense[entry][what]
        for entry in new.dense
        if entry in taken
        for what in entries.common_dense(entry, new, old)
    }
    if names:
        loaded = source.load(
            {
                name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
                for name, x in ((name, arrays[own]) for name, own in names.items())
            }
        )
        arrays |= {own: loaded[name] for name, own in names.items()}


def _take_tables(
    arrays: dict[str, Any],
    source: Checkpoint,
    new: Side,
    old: Side,
    renamed: Mapping[str, str],
    taken: set[str],
) -> None:
    moves: dict[str, dict[str, list[TableMove]]] = {}  # by old stack, new stack
    for key, old_key in renamed.items():
        if f"tables/{key}" in taken:
            table, other = new.tables[key], old.tables[old_key]
            by_stack = moves.setdefault(other["stack"], {})
            by_stack.setdefault(table["stack"], []).append(
                _move(key, old_key, new, old)
            )
    mesh = arrays["step"].sharding.mesh
    for old_stack, by_stack in moves.items():
        placement = old.stacks[old_stack]
        is_split = (
            isinstance(placement, RowGroup) and placement.num_shards % mesh.size == 0
        )
        sharding = NamedSharding(mesh, ALL_DEVICES if is_split else PartitionSpec())
        for what, name in old.rows[old_stack].items():
            targets = [
                stack
                for stack in by_stack
                if what in entries.common_rows(stack, old_stack, new, old)
            ]
            if not targets:
                continue
            dtype, shape = old.arrays[name]
            abstract = jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=sharding)
            loaded = source.load({name: abstract})[name]
            for stack in targets:
                own = new.rows[stack][what]
                arrays[own] = remap.carry(
                    arrays[own],
                    loaded,
                    by_stack[stack],
                    stack=new.stacks[stack],
                    source_stack=placement,
                )
            del loaded  # before the next one comes


def _move(key: str, old_key: str, new: Side, old: Side) -> TableMove:
    """Rows of ids; and of the default row, which is the last, wherever that is."""
    table, other = new.tables[key], old.tables[old_key]
    default, old_default = table["default_row"], other["default_row"]
    return TableMove(
        index=_index(new.stacks[table["stack"]], key),
        source_index=_index(old.stacks[other["stack"]], old_key),
        num_rows=min(x["num_rows"] - (x["default_row"] >= 0) for x in (table, other)),
        extra=((old_default, default),) if min(default, old_default) >= 0 else (),
    )


def _index(stack: Placement, key: str) -> int:
    return [table.spec.name for table in stack.tables].index(key)
