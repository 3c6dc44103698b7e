"""Checkpoints of a run; the only module that imports Orbax.

A checkpoint holds the train state as one flat dict "params/network/...": array, and a
JSON record: the host's side of the run (input position, selection metric, counters)
and a manifest with the shape of every array and the offset of every table in its
stack. Saving is asynchronous and atomic: a killed save leaves the previous checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from rankax.config.base import ConfigError
from rankax.config.experiment import CheckpointConfig
from rankax.embeddings.placement import TablePlan
from rankax.observe import stores
from rankax.training.remote_checkpoints import RemoteCheckpoints
from rankax.training.state import TrainState


class Checkpoints:
    """The checkpoints in one folder, those that the configuration keeps."""

    def __init__(self, folder: epath.PathLike, config: CheckpointConfig):
        """Opens or creates the folder; leftovers of killed saves are removed.

        Args:
            folder: where the checkpoints are, on a disk or a store.
            config: which of them to keep.
        """
        policies = ocp.training.preservation_policies
        kept: list[Any] = [
            policies.LatestN(config.keep_last),
            policies.BestN(
                get_metric_fn=lambda m: m["best_rank"],
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        if config.keep_every:
            kept.append(policies.EveryNSteps(config.keep_every))
        keep = policies.AnyPreservationPolicy(kept)
        self._folder = stores.locate(folder)
        self._remote = None
        path = self._folder
        if not stores.is_on_disk(path):
            self._remote = RemoteCheckpoints(path)
            path = self._remote.path
        self._checkpointer = ocp.training.Checkpointer(
            str(path.absolute()),
            # Orbax's own classes do not match its protocol in the checker's eyes.
            preservation_policy=keep,  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(
        self,
        step: int,
        state: TrainState,
        record: Mapping[str, Any],
        *,
        plan: TablePlan,
        is_best: bool,
    ) -> None:
        """Starts saving; the state may be donated to the next step right away.

        Args:
            step: number of the checkpoint.
            state: state after `step` updates.
            record: JSON values that `restore` returns as they are.
            plan: placement of the tables, for the manifest.
            is_best: keep it until a later best one.
        """
        if self._remote:
            self._remote.wait()
        arrays = _flatten(state)
        response = self._checkpointer.save_checkpointables_async(
            step,
            {"state": arrays},
            custom_metadata={
                "manifest": _manifest(arrays, plan),
                "record": dict(record),
            },
            # Ranked by step: among the best ones so far, the latest is the best.
            metrics={"best_rank": step} if is_best else None,
            force=True,
            overwrite=step in {c.step for c in self._checkpointer.checkpoints},
        )
        if self._remote and response:
            self._remote.publish(step, response.result)

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record given to `save`, without loading any array."""
        return self._metadata(step)["record"]

    def restore(
        self, abstract: TrainState, *, plan: TablePlan, step: int
    ) -> TrainState:
        """Loads a checkpoint into the shardings of `abstract`, on any device count.

        Raises:
            ConfigError: the checkpoint holds other arrays or tables than this run.
        """
        self.wait()
        arrays = _flatten(abstract)
        _check_manifest(
            self._metadata(step)["manifest"],
            _manifest(arrays, plan),
            where=f"checkpoint {step} in {self._folder}",
        )
        if self._remote:
            self._remote.fetch(step)
        loaded = self._checkpointer.load_checkpointables(step, {"state": arrays})
        return jax.tree.map_with_path(
            lambda path, x: loaded["state"][_name(path)] if x.size else _empty(x),
            abstract,
        )

    def _metadata(self, step: int) -> Any:
        return self._checkpointer.checkpointables_metadata(step).custom_metadata

    def wait(self) -> None:
        """Returns when the save in progress is complete."""
        if self._remote:  # whose thread has the checkpointer until then
            self._remote.wait()
        self._checkpointer.wait()

    def close(self) -> None:
        """Completes the save in progress and releases the folder."""
        self.wait()
        self._checkpointer.close()
        if self._remote:
            self._remote.close()


def _flatten(state: TrainState) -> dict[str, Any]:
    """All arrays by name, but for those without elements, which Orbax refuses."""
    leaves = jax.tree.leaves_with_path(state)
    return {_name(path): leaf for path, leaf in leaves if leaf.size}


def _empty(abstract: jax.ShapeDtypeStruct) -> jax.Array:
    return jnp.zeros(abstract.shape, abstract.dtype, device=abstract.sharding)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _manifest(arrays: Mapping[str, Any], plan: TablePlan) -> dict[str, Any]:
    """Shape and dtype of each array, and where each table is in its stack."""
    return {
        "arrays": {
            name: f"{x.dtype}{list(x.shape)}" for name, x in sorted(arrays.items())
        },
        "tables": {
            f"{part.name}/{table.spec.name}": {
                "num_rows": table.spec.num_rows,
                "dim": table.spec.dim,
                "offset": table.offset,
                "salt": table.salt,
            }
            for part in plan.parts
            for table in part.tables
        },
    }


def _check_manifest(saved: Any, wanted: Any, *, where: str) -> None:
    for kind in ("tables", "arrays"):
        for name in sorted(saved[kind].keys() | wanted[kind].keys()):
            found, expected = saved[kind].get(name), wanted[kind].get(name)
            if found != expected:
                raise ConfigError(
                    f"{where} does not fit this run: {kind[:-1]} {name!r} is "
                    f"{found or 'absent'} there and {expected or 'absent'} here; use "
                    "the data set and configuration that it was saved with, or "
                    "another --workdir"
                )
