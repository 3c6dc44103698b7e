"""Scores candidates by a bundle: the served twin of the trainer's evaluation step."""

from collections.abc import Mapping, Sequence
import pathlib
import threading
from typing import Any

import jax
import numpy as np

from rankax.metrics import binary
from rankax.serving import features as packing
from rankax.serving.bundle import Bundle, BundleError, Role, widened
from rankax.serving.versions import Version, Versions

# Numbers of candidates that are compiled for; others are filled up to the next.
SIZES = (1, 8, 32, 128, 512, 1024)


class Scorer:
    """Scores features as the trainer would; safe to call from several threads.

    Attributes:
        bundle: what it scores by.
        tasks: names of the T outputs.
    """

    def __init__(
        self,
        bundle: str | pathlib.Path | Bundle,
        *,
        sizes: Sequence[int] = SIZES,
        is_checked: bool = True,
    ):
        """Opens a bundle, compiles for some sizes and scores its golden candidates.

        Args:
            bundle: its folder.
            sizes: numbers of candidates to compile for. A request is filled up to the
                next of them; one that is larger than all is scored in pieces.
            is_checked: False = the golden candidates are left alone, as while they are
                made.

        Raises:
            BundleError: it is damaged, or does not reproduce its golden logits.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
        self.tasks = self.bundle.schema.tasks
        self._schema, self._versions = self.bundle.schema, Versions(self.bundle)
        self._sizes = tuple(sorted(set(sizes)))
        if not self._sizes or self._sizes[0] < 1:
            raise ValueError(f"sizes must be numbers from 1 on, found {sizes}")
        self._score = jax.jit(self.bundle.function().call)
        self._lock = threading.Lock()
        self._outside = dict.fromkeys(self._schema.default_rows, 0)
        try:
            with self._versions.reading() as version:
                for size in self._sizes:
                    self._call(version, self._inputs(version, None, slice(0, 0), size))
        except (TypeError, ValueError) as error:  # of jax, whose arguments do not fit
            raise BundleError(
                f"{self.bundle.folder}: its scoring function takes other inputs than "
                f"its signature tells ({error}); export it again"
            ) from error
        if is_checked:
            self._check_golden()
        self._outside = dict.fromkeys(self._outside, 0)

    @property
    def step(self) -> int:
        """Training step of the newest parameters."""
        return self._versions.newest.step

    @property
    def number(self) -> int:
        """Of the last delta; 0 = the bundle itself."""
        return self._versions.newest.number

    def apply(self, path: str | pathlib.Path) -> None:
        """Applies the bundle's next delta, while other threads go on scoring.

        Each of their requests is scored by all of the delta or by nothing of it.

        Args:
            path: its file (`rankax.serving.delta.file_of`).

        Raises:
            DeltaError: it is damaged, of another bundle, or not the next one; nothing
                has changed.
        """
        self._versions.apply(path)

    def catch_up(self) -> int:
        """Applies all deltas that are in the bundle's folder; returns how many.

        Raises:
            DeltaError: one is damaged or missing; those before it are applied.
        """
        return self._versions.catch_up()

    @property
    def out_of_vocabulary(self) -> dict[str, int]:
        """Table -> ids outside of it so far, which got its default row."""
        with self._lock:
            return dict(self._outside)

    def score(
        self, features: Mapping[str, Any], shared: Mapping[str, Any] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns task -> probabilities [n] float32.

        Args:
            features: name -> one value for each of n candidates; of a list field a
                list for each. Names and values are those of the data set's columns.
            shared: name -> the value that all candidates have in common (the user's);
                its rows are looked up once.

        Raises:
            FeatureError: features that cannot be scored.
        """
        logits = self.logits(features, shared)
        return {
            task: binary.probability(logits[:, t]) for t, task in enumerate(self.tasks)
        }

    def logits(
        self, features: Mapping[str, Any], shared: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        """Returns [n, T] float32; arguments and errors as for `score`."""
        return self.logits_at(features, shared)[0]

    def logits_at(
        self, features: Mapping[str, Any], shared: Mapping[str, Any] | None = None
    ) -> tuple[np.ndarray, int]:
        """Returns logits [n, T] float32, and the training step that they are of.

        Arguments and errors as for `score`.
        """
        packed = self._packed(features, shared)
        n, most = packed.num_rows, self._sizes[-1]
        waiting = []
        with self._versions.reading() as version:
            for start in range(0, n, most):
                rows = slice(start, min(start + most, n))
                size = self._size(rows.stop - start)
                inputs = self._inputs(version, packed, rows, size)
                waiting.append((self._call(version, inputs), rows))
        result = np.empty((n, len(self.tasks)), np.float32)
        for logits, rows in waiting:
            result[rows] = np.asarray(logits)[: rows.stop - rows.start]
        self._count(packed)
        return result, version.step

    def prepare(
        self, features: Mapping[str, Any], shared: Mapping[str, Any] | None = None
    ) -> tuple[Any, ...]:
        """Returns the scoring function's inputs of one request, for measurements.

        Raises:
            FeatureError: features that cannot be scored, or more candidates than the
                largest of `sizes`.
        """
        packed = self._packed(features, shared)
        n = packed.num_rows
        if n > self._sizes[-1]:
            raise packing.FeatureError(f"{n} candidates, at most {self._sizes[-1]}")
        with self._versions.reading() as version:
            return self._inputs(version, packed, slice(0, n), self._size(n))

    def _packed(
        self, features: Mapping[str, Any], shared: Mapping[str, Any] | None
    ) -> packing.Packed:
        return packing.pack(
            self._schema, features, shared or {}, text_ids=self.bundle.text_ids
        )

    def _size(self, n: int) -> int:
        return next(size for size in self._sizes if size >= n)

    def _call(self, version: Version, inputs: tuple[Any, ...]) -> jax.Array:
        return self._score(version.dense, *inputs)

    def _inputs(
        self,
        version: Version,
        packed: packing.Packed | None,
        rows: slice,
        size: int,
    ) -> tuple[Any, ...]:
        """Returns the arguments of the scoring function for some rows, filled up."""
        schema = self._schema
        looked_up = {
            role: self._lookup(version.rows[role], own, packed, rows, size)
            for role, own in self.bundle.roles.items()
        }
        lengths = np.zeros((size, schema.num_bags), np.int32)
        numeric = np.zeros((size, schema.num_numeric), np.float32)
        weights = np.zeros((size, schema.num_bag_weights), np.float32)
        if packed is not None:
            n = rows.stop - rows.start
            lengths[:n] = packed.lengths[rows]
            numeric[:n] = packed.numeric[rows]
            weights[:n] = packed.bag_weights[rows]
        return looked_up, lengths, numeric, weights

    def _lookup(
        self,
        tables: Mapping[str, np.ndarray],
        own: Role,
        packed: packing.Packed | None,
        rows: slice,
        size: int,
    ) -> np.ndarray:
        """Returns the rows of all id columns, [size, K, D] float32."""
        result = np.zeros((size, self._schema.num_id_columns, own.dim), np.float32)
        if packed is None:
            return result
        n = rows.stop - rows.start
        for slot, ids in zip(self._schema.slots, packed.ids, strict=True):
            table = tables.get(slot.table)
            if table is None:
                continue  # zeros, as in training
            ids = ids if len(ids) == 1 else ids[rows]
            # Faster than table[ids].
            found = widened(table.take(ids, axis=0, mode="clip"))
            if slot.bag >= 0:
                found[ids < 0] = 0
            result[:n, slot.start : slot.start + slot.width] = found
        return result

    def _count(self, packed: packing.Packed) -> None:
        defaults = self._schema.default_rows
        if not defaults:
            return
        counts = dict.fromkeys(defaults, 0)
        for slot, ids in zip(self._schema.slots, packed.ids, strict=True):
            if slot.table in defaults:
                found = int((ids == defaults[slot.table]).sum())
                counts[slot.table] += found * (packed.num_rows if len(ids) == 1 else 1)
        with self._lock:
            for table, count in counts.items():
                self._outside[table] += count

    def _check_golden(self) -> None:
        golden = self.bundle.golden
        expected = np.asarray(golden["logits"], np.float32)
        found = self.logits(golden["features"])
        error = np.abs(binary.probability(found) - binary.probability(expected))
        allowed = self.bundle.golden_tolerance
        if not error.max(initial=0) <= allowed:
            raise BundleError(
                f"{self.bundle.folder} does not score its golden candidates as it did "
                f"when it was exported: probabilities differ by {error.max():.2g}, at "
                f"most {allowed:.0e} is expected; copy or export it again"
            )
