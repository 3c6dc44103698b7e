"""Checkpoints of a run; the only module that imports Orbax.

A checkpoint holds the train state as one flat dict "params/network/...": array, the
checksums of these arrays, and a JSON record (`_CHECKPOINT_METADATA`, for people too):
the host's side of the run (input position, selection metric, counters), what the run
was started with, and a manifest with the shape of every array and the place of every
table in its stack. Saving is asynchronous and atomic: a killed save leaves the previous
checkpoint. Whatever is damaged, by a flipped bit or a lost file, is seen when it is
read, on any number of devices.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import hashlib
import json
import pathlib
import sys
from typing import Any
import warnings

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
from orbax.checkpoint import v1 as ocp

from rankax.config.base import ConfigError
from rankax.config.experiment import CheckpointConfig
from rankax.data.errors import DataError
from rankax.embeddings.placement import RowGroup, TablePlan
from rankax.observe import stores
from rankax.parallel import mesh as meshes
from rankax.training import checksum
from rankax.training.remote_checkpoints import RemoteCheckpoints
from rankax.training.state import TrainState

RECORD = "_CHECKPOINT_METADATA"  # Orbax's name
_STATE, _CHECKSUMS = "state", "checksums"
_SHOWN = 3  # names of damaged arrays in a message
_OF_THE_MACHINE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)


class Checkpoint:
    """One checkpoint in its folder, of this run or another; only read."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        name: str,
        advice: str,
        fetch: Callable[[], None] | None = None,
    ):
        """Opens nothing yet.

        Args:
            folder: where it is on this machine.
            name: what to call it in messages.
            advice: what to do if it is damaged; ends the message.
            fetch: brings its arrays to this machine.
        """
        self.name = name
        self._folder = folder
        self._advice = advice
        self._fetch = fetch

    @functools.cached_property
    def contents(self) -> Mapping[str, Any]:
        """The JSON record: "manifest", "origin", "record", "best_steps".

        Raises:
            DataError: it is missing or damaged.
        """
        try:
            tree = json.loads((self._folder / RECORD).read_bytes())["custom_metadata"]
            digest = tree.pop("digest")
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise self._damaged(
                f"its record {RECORD} cannot be read ({type(error).__name__}: {error})"
            ) from error
        if digest != _digest(tree):
            raise self._damaged(f"its record {RECORD} is not what was saved")
        return tree

    @property
    def arrays(self) -> dict[str, str]:
        """Names, dtypes and shapes: "params/network/...": "float32[8, 4]"."""
        return self.contents["manifest"]["arrays"]

    def load(self, abstract: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Any]:
        """Loads some of `arrays` into the given shardings, on any device count.

        Raises:
            DataError: a file or an array is not what was saved.
        """
        names = sorted(self.arrays)
        mesh = next(iter(abstract.values())).sharding.mesh
        wanted = {
            **abstract,
            _CHECKSUMS: jax.ShapeDtypeStruct(
                (len(names), 2),
                jnp.uint32,
                sharding=NamedSharding(mesh, PartitionSpec()),
            ),
        }
        if self._fetch is not None:
            self._fetch()
        context = ocp.Context()
        context.pytree.loading.partial_load = len(abstract) < len(names)
        try:
            with context, _quietly():
                path = str(self._folder.absolute())
                loaded = ocp.load_checkpointables(path, {_STATE: wanted})[_STATE]
        except Exception as error:  # of any kind, as the damage is
            cause = _cause(error)
            if isinstance(cause, _OF_THE_MACHINE):
                raise
            reason = str(cause).strip().partition("\n")[0]
            raise self._damaged(
                f"its arrays cannot be read ({type(cause).__name__}: {reason:.300})"
            ) from error
        saved = dict(zip(names, np.asarray(loaded.pop(_CHECKSUMS)), strict=True))
        found = zip(sorted(loaded), np.asarray(checksum.of_arrays(loaded)), strict=True)
        wrong = [name for name, sums in found if (sums != saved[name]).any()]
        if wrong:
            shown = ", ".join(repr(name) for name in wrong[:_SHOWN])
            more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise self._damaged(f"arrays {shown}{more} are not what was saved")
        return loaded

    def _damaged(self, what: str) -> DataError:
        return DataError(f"checkpoint {self.name} is damaged: {what}. {self._advice}")


class Checkpoints:
    """The checkpoints of one run, those that the configuration keeps."""

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig | None):
        """Opens the folder.

        Args:
            folder: where the checkpoints are, on a disk or a store.
            config: which of them to keep; the folder is created and leftovers of
                killed saves are removed. None = only to read, nothing is changed.

        Raises:
            DataError: a checkpoint there is so damaged that none can be saved.
        """
        self._folder = stores.locate(folder)
        self._remote = None
        if not stores.is_on_disk(self._folder):
            self._remote = RemoteCheckpoints(self._folder)
        self._path = self._remote.path if self._remote else pathlib.Path(self._folder)
        self._checkpointer = None
        self._save_in_progress: Any = None
        self._copies: dict[str, jax.Array] = {}
        self._best_steps: list[int] = []
        if config is None:
            return
        if self.latest_step is not None:
            self._best_steps += self.at(self.latest_step).contents["best_steps"]
        policies = ocp.training.preservation_policies
        kept: list[Any] = [
            policies.LatestN(config.keep_last),
            _KeepBest(self._best_steps, config.keep_best),
        ]
        if config.keep_every:
            kept.append(policies.EveryNSteps(config.keep_every))
        keep = policies.AnyPreservationPolicy(kept)
        try:
            self._checkpointer = ocp.training.Checkpointer(
                str(self._path.absolute()),
                # Orbax's own classes do not match its protocol in the checker's eyes.
                preservation_policy=keep,  # pyright: ignore[reportArgumentType]
                cleanup_tmp_directories=True,
                context=_context(),
            )
        except (ValueError, OSError) as error:  # it has read all records
            for step in self.steps:
                _ = self.at(step).contents
            raise DataError(
                f"checkpoints {self.steps} in {self._folder} cannot be opened "
                f"({error}): the {RECORD} of one of them is damaged, move its folder "
                "away"
            ) from error

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        if not self._path.exists():
            return []
        names = [path.name for path in self._path.iterdir() if path.is_dir()]
        return sorted(int(name) for name in names if name.isdecimal())

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return max(self.steps, default=None)

    def best_step(self, *, advice: str = "") -> int | None:
        """Returns the step that was the best by validation, or else the newest.

        Args:
            advice: as for `at`.

        Raises:
            DataError: the newest checkpoint, which knows it, is damaged.
        """
        latest = self.latest_step
        if latest is None:
            return None
        best_steps = self.at(latest, advice=advice).contents["best_steps"]
        return [latest, *best_steps][-1]

    def save(
        self,
        step: int,
        state: TrainState,
        record: Mapping[str, Any],
        *,
        plan: TablePlan,
        origin: Mapping[str, Any],
        is_best: bool,
    ) -> None:
        """Starts saving; the state may be donated to the next step right away.

        Where the devices are the host, a copy of the state stays in memory from the
        first save on.

        Where the step was saved before, only its record is replaced: the arrays of one
        step are always the same.

        Args:
            step: number of the checkpoint.
            state: state after `step` updates.
            record: JSON values that `record` returns as they are.
            plan: placement of the tables, for the manifest.
            origin: JSON values, what the run is started with
                (`rankax.training.origin`).
            is_best: keep it until a later best one.
        """
        assert self._checkpointer is not None, "opened only to read"
        self.wait()
        arrays = flatten(state)
        if is_best:
            self._best_steps.append(step)
        contents = {
            "manifest": manifest_of(arrays, plan),
            "origin": dict(origin),
            "record": dict(record),
            "best_steps": list(self._best_steps),
        }
        contents["digest"] = _digest(contents)
        if step in self.steps:
            _replace_record(self._path / str(step) / RECORD, contents)
            if self._remote:
                self._remote.put(f"{step}/{RECORD}")
            return
        arrays = self._out_of_the_way(arrays)
        self._save_in_progress = self._checkpointer.save_checkpointables_async(
            step,
            {_STATE: {**arrays, _CHECKSUMS: checksum.of_arrays(arrays)}},
            custom_metadata=contents,
            force=True,
        )
        if self._remote:
            self._remote.publish(step, self._finish_save)

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record given to `save`, without loading any array.

        Raises:
            DataError: the checkpoint is missing or damaged.
        """
        return self.at(step).contents["record"]

    def origin(self, step: int) -> dict[str, Any]:
        """Returns the origin given to `save`; errors as for `record`."""
        return self.at(step).contents["origin"]

    def restore(
        self, abstract: TrainState, *, plan: TablePlan, step: int
    ) -> TrainState:
        """Loads a checkpoint into the shardings of `abstract`, on any device count.

        Raises:
            ConfigError: the checkpoint holds other arrays or tables than this run.
            DataError: the checkpoint is missing or damaged.
        """
        self.wait()
        checkpoint, arrays = self.at(step), flatten(abstract)
        _check_manifest(
            checkpoint.contents["manifest"],
            manifest_of(arrays, plan),
            where=f"checkpoint {checkpoint.name}",
        )
        loaded = checkpoint.load(arrays)
        return jax.tree.map_with_path(
            lambda path, x: loaded[name_of(path)] if x.size else _empty(x),
            abstract,
        )

    def wait(self) -> None:
        """Returns when the save in progress is complete."""
        if self._remote:  # whose thread has the checkpointer until then
            self._remote.wait()
        self._finish_save()

    def _out_of_the_way(self, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Returns arrays to save that no later step needs the memory of.

        From an accelerator Orbax takes a copy to the host. On the host it would write
        from the very buffers that the next step is to update in place; that step would
        have to copy them, into new memory, which takes many times as long as into
        memory that is there.
        """
        if jax.default_backend() == "cpu":
            copies: dict[str, jax.Array] = {}
            for own in meshes.by_devices(arrays):
                into = {name: x for name, x in self._copies.items() if name in own}
                copies |= _copy(own, into or None)
            arrays = self._copies = copies
        return arrays

    def _finish_save(self) -> None:
        # Asked for its result, a save ends its thread and event loop; waiting for the
        # checkpointer would leave them, and their files, until the process ends.
        save, self._save_in_progress = self._save_in_progress, None
        if save is not None:
            save.result()

    def close(self) -> None:
        """Completes the save in progress and releases the folder."""
        self.wait()
        if self._checkpointer is not None:
            self._checkpointer.close()
        if self._remote:
            self._remote.close()

    def at(self, step: int, *, advice: str = "") -> Checkpoint:
        """Returns a checkpoint, there or not.

        Args:
            step: its number.
            advice: what to do if it is damaged; "" = what is right for a run whose own
                it is.
        """
        steps = self.steps
        older = [s for s in steps if s < step]
        newer = [str(s) for s in steps if s > step]
        next_one = f"from step {older[-1]:,}" if older else "from the start"
        # Later ones lead back to it: it is the best of the run.
        away = "that folder" + (f" and {', '.join(newer)} beside it" if newer else "")
        advice = advice or (
            f"Bring back a good copy, or move {away} away: the same command then goes "
            f"on {next_one}"
        )
        fetch = functools.partial(self._remote.fetch, step) if self._remote else None
        name = f"{self._folder}/{step}"
        return Checkpoint(self._path / str(step), name=name, advice=advice, fetch=fetch)


def _context() -> ocp.Context:
    """How arrays are written: plainly, and into files of any size.

    Trained rows hardly compress, and zstd would take four times as long. Both it and a
    limit of a file's size (2 GB by default) would take the memory of another copy of
    what is written.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = 0
    return context


@functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
def _copy(arrays: Any, into: Any) -> Any:
    """Copies arrays, into the memory of an earlier copy if there is one."""
    return jax.tree.map(jnp.copy, arrays)


def save_arrays(folder: pathlib.Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name as a checkpoint that Orbax alone restores."""
    with _context(), _quietly():
        ocp.save(str(folder.absolute()), dict(arrays))


class _KeepBest:
    """Orbax's policy for the newest of those that were the best when saved."""

    def __init__(self, best_steps: Sequence[int], number: int):
        self._best_steps = best_steps  # grows
        self._number = number

    def should_preserve(self, checkpoints: Iterable[Any], *, context: Any) -> list:
        steps = [checkpoint.step for checkpoint in checkpoints]
        best = sorted(set(steps) & set(self._best_steps))[-self._number :]
        return [step in best for step in steps]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Lets our error be all that is told where Orbax cannot read.

    It logs pages, and reads that are under way when one fails find their event loop
    closed or are never waited for, which Python would print for each of them, at any
    later time.
    """
    verbosity, hook = logging.get_verbosity(), sys.unraisablehook
    ignore_closed_loops()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    except Exception:
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        raise
    else:
        sys.unraisablehook = hook
    finally:
        logging.set_verbosity(verbosity)


def ignore_closed_loops() -> None:
    """Silences reads and writes under way that find their event loop closed."""
    hook = sys.unraisablehook

    def without_closed_loops(found: Any) -> None:
        if str(found.exc_value) != "Event loop is closed":
            hook(found)

    sys.unraisablehook = without_closed_loops


def _cause(error: BaseException) -> BaseException:
    """Returns what an error was first."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


def _replace_record(path: pathlib.Path, contents: dict[str, Any]) -> None:
    """Writes a record anew, whole or not at all."""
    if jax.process_index():
        return
    tree = json.loads(path.read_bytes()) | {"custom_metadata": contents}
    stores.write_text(epath.Path(path), json.dumps(tree))


def _digest(contents: Mapping[str, Any]) -> str:
    """Of JSON values, the same before they are written and after they are read."""
    text = json.dumps(contents, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(state: TrainState) -> dict[str, Any]:
    """Returns all arrays by name, but for those without elements (Orbax refuses)."""
    leaves = jax.tree.leaves_with_path(state)
    return {name_of(path): leaf for path, leaf in leaves if leaf.size}


def _empty(abstract: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(abstract.shape, abstract.dtype, device=abstract.sharding)


def name_of(path: tuple[Any, ...]) -> str:
    """Returns the name that an array at this place of a state has in a checkpoint."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def manifest_of(arrays: Mapping[str, Any], plan: TablePlan) -> dict[str, Any]:
    """Returns dtype and shape of each array, and the place of each table."""
    return {
        "arrays": {name: describe(x) for name, x in sorted(arrays.items())},
        "tables": {
            f"{part.role}/{table.spec.name}": {
                "stack": part.name,
                "num_shards": part.num_shards if isinstance(part, RowGroup) else 0,
                "num_rows": table.spec.num_rows,
                "dim": table.spec.dim,
                "offset": table.offset,
                "salt": table.salt,
                "default_row": plan.default_rows.get(table.spec.name, -1),
            }
            for part in plan.parts
            for table in part.tables
        },
    }


def describe(x: Any) -> str:
    """Returns an array's dtype and shape as a manifest has them: "float32[8, 4]"."""
    return f"{x.dtype}{list(x.shape)}"


def _check_manifest(saved: Any, wanted: Any, *, where: str) -> None:
    for kind in ("tables", "arrays"):
        for name in sorted(saved[kind].keys() | wanted[kind].keys()):
            found, expected = saved[kind].get(name), wanted[kind].get(name)
            if found != expected:
                raise ConfigError(
                    f"{where} does not fit this run: {kind[:-1]} {name!r} is "
                    f"{found or 'absent'} there and {expected or 'absent'} here; use "
                    "the data set and configuration that it was saved with, or "
                    "another --workdir with checkpoint.init_from, which takes over "
                    "what fits"
                )
