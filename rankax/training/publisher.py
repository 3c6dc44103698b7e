"""Publication: what training has changed since, as the next delta of a bundle.

The publisher keeps what the servers have, the bundle with all its deltas, and sends
what differs from it to the bit. `last_step` of the tables tells where to look; without
it every row is compared. So nothing that is left out, because the dense parameters have
a slower clock or a delta a limit of its size, is ever forgotten.
"""

import pathlib

import jax
import numpy as np

from rankax.config.base import ConfigError
from rankax.serving import delta as deltas
from rankax.serving.bundle import Bundle, widened
from rankax.serving.delta import Change, Changes, Delta
from rankax.serving.versions import Version, Versions
from rankax.training import served
from rankax.training.served import ServedTable
from rankax.training.state import TrainState
from rankax.training.step import Steps


class Publisher:
    """Writes the deltas of a bundle; one at a time does so."""

    def __init__(self, bundle: str | pathlib.Path, *, config_hash: str):
        """Opens a bundle and applies the deltas that are there.

        Args:
            bundle: its folder.
            config_hash: of the run that publishes.

        Raises:
            BundleError: no bundle there, or it or a delta is damaged.
            ConfigError: it is of another run.
        """
        self.bundle = Bundle(bundle)
        origin = self.bundle.signature["origin"]["config_hash"]
        if origin != config_hash:
            raise ConfigError(
                f"{bundle} was exported from a run of configuration {origin}, this one "
                f"is {config_hash}; export a bundle of this run first"
            )
        self._versions = Versions(self.bundle)
        self._versions.catch_up()

    @property
    def published(self) -> Version:
        """What the servers have."""
        return self._versions.newest

    def publish(
        self,
        steps: Steps,
        state: TrainState,
        step: int,
        *,
        dense_every: int = 1,
        max_bytes: int = 0,
    ) -> Delta:
        """Writes the next delta.

        Args:
            steps: of the run.
            state: after `step` updates.
            step: later than what is published.
            dense_every: dense parameters go with every so many-th delta.
            max_bytes: of the rows of a delta; those that have moved furthest go first,
                by their Euclidean distance. 0 = no limit.

        Raises:
            ConfigError: the step is not later.
        """
        now = self._versions.newest
        if step <= now.step:
            raise ConfigError(
                f"{self.bundle.folder} is at step {now.step:,} already (delta "
                f"{now.number}), and step {step:,} is not later; train further, or "
                "export a new bundle"
            )
        changes: Changes = {}
        for table in served.tables_of(steps, state):
            change = _moved(table, now, self.bundle.roles[table.role].dtype)
            if len(change.ids):
                changes[table.role, table.name] = change
        is_complete = True
        if max_bytes and sum(own.num_bytes for own in changes.values()) > max_bytes:
            changes, is_complete = _furthest(changes, now, max_bytes), False
        number = now.number + 1
        dense = None
        if number % dense_every == 0:
            _, arrays = steps.scoring(state)
            served_arrays = {name: arrays[name] for name in self.bundle.dense}
            dense = {
                name: np.asarray(x) for name, x in jax.device_get(served_arrays).items()
            }
        delta = deltas.make(
            self.bundle,
            changes,
            dense,
            number=number,
            previous_step=now.step,
            step=step,
            is_complete=is_complete,
        )
        path = deltas.write(self.bundle.folder, delta)
        return self._versions.apply(path)


def _moved(table: ServedTable, now: Version, dtype: str) -> Change:
    """Returns the rows of a table that are not, to the bit, what is published."""
    published = now.rows[table.role][table.name]
    found = [(np.zeros(0, np.int32), published[:0])]
    for ids in table.touched_after(now.complete_step):
        start = 0
        for rows in table.read(dtype, ids):
            own = ids[start : start + len(rows)]
            start += len(rows)
            is_moved = (_bits(rows) != _bits(published[own])).any(axis=1)
            found.append((own[is_moved], rows[is_moved]))
    ids, rows = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return Change(ids=ids, rows=rows)


def _furthest(changes: Changes, now: Version, max_bytes: int) -> Changes:
    """Keeps the rows that have moved furthest, as many as there is room for."""
    distances, sizes = [], []
    for (role, table), change in changes.items():
        difference = widened(change.rows) - widened(now.rows[role][table][change.ids])
        distances.append(np.linalg.norm(difference, axis=1))
        sizes.append(np.full(len(change.ids), change.num_bytes // len(change.ids)))
    order = np.argsort(-np.concatenate(distances), kind="stable")
    is_kept = np.zeros(len(order), bool)
    is_kept[order] = np.cumsum(np.concatenate(sizes)[order]) <= max_bytes
    kept: Changes = {}
    start = 0
    for names, change in changes.items():
        own = is_kept[start : start + len(change.ids)]
        start += len(change.ids)
        if own.any():
            kept[names] = Change(ids=change.ids[own], rows=change.rows[own])
    return kept


def _bits(rows: np.ndarray) -> np.ndarray:
    """-0.0 is not 0.0, and NaN is itself."""
    return rows.view(np.uint32) if rows.dtype == np.float32 else rows
