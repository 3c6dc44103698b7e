"""Device side of the tables: what one device does between the collectives.

A device's unique rows, ascending, stand in one run per owner. One round sends at most
C of each run: ids to the owners by all-to-all, rows back by all-to-all. If a run is
longer than C on any device, the exchange takes R rounds, R a power of two: every
owner's rows are split into R parts by position, and round r serves part r alone. One
row belongs to one part, so all its gradients meet in one round and its optimizer moves
once: the result does not depend on R or C, to the bit.

The table never passes through a branch, only through the loop over rounds, which
updates it in place; no temporary grows with its rows.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from rankax.embeddings import precision
from rankax.embeddings.layout import Layout, gather
from rankax.embeddings.optimizers import RowOptimizer
from rankax.embeddings.placement import RowGroup
from rankax.embeddings.routing import MAX_ROUNDS, NO_SLOT, part_starts
from rankax.parallel.mesh import AXES

State = dict[str, jax.Array]

_ROUNDS = tuple(2**i for i in range(MAX_ROUNDS.bit_length()))  # 1, 2, 4, .. 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """The static sizes of one group's exchange; its methods run inside `shard_map`.

    Attributes:
        group: the row group.
        num_devices: N.
        capacity: C.
        layouts: of the group's arrays on one device, by name.
        optimizer: of the rows.
        seed: of the stochastic rounding of 16-bit rows, in [0, 2^32).
    """

    group: RowGroup
    num_devices: int
    capacity: int
    layouts: Mapping[str, Layout]
    optimizer: RowOptimizer
    seed: int

    @property
    def _rows_per_device(self) -> int:
        return self.group.num_rows // self.num_devices

    # ------------------------------------------------------------ what to ask

    def deduplicate(self, rows: jax.Array, bound: int) -> tuple[jax.Array, ...]:
        """Does on the device what `routing.route` does on the host.

        Args:
            rows: [b, K_g] int32, rows of the stack; -1 = padding.
            bound: U.

        Returns:
            `unique` [1, U], `slots` [b, K_g] and `num_requests` [1, T, N] of
            `routing.Route`.
        """
        group, num_rows = self.group, self.group.num_rows
        flat = jnp.where(rows < 0, num_rows, rows).reshape(-1)
        order = jnp.argsort(flat)
        ordered = flat[order]
        rank = jnp.cumsum(_is_first(ordered)) - 1
        unique = (
            _nowhere(num_rows, bound)
            .at[rank]
            .set(jnp.where(ordered < num_rows, ordered, num_rows + rank), mode="drop")
        )
        slots = jnp.zeros_like(flat).at[order].set(rank, unique_indices=True)
        slots = jnp.where(rows < 0, NO_SLOT, slots.reshape(rows.shape))
        offsets = jnp.array([table.offset for table in group.tables], rows.dtype)
        depth = unique % group.depth
        table = (depth[:, None] >= offsets).sum(axis=1, dtype=rows.dtype) - 1
        owner = unique // self._rows_per_device
        place = jnp.where(unique < num_rows, table, len(offsets))
        num_requests = jnp.zeros((len(offsets), self.num_devices), jnp.int32)
        num_requests = num_requests.at[place, owner].add(1, mode="drop")
        return unique[None], slots, num_requests[None]

    def plan_rounds(self, unique: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Chooses the rounds that all devices take together.

        Args:
            unique: [1, U].

        Returns:
            Where each part of each owner starts in `unique`, [1, N·64 + 1]; R, [] (0 =
            even the most rounds cannot carry the batch); the largest number of rows
            that any device asks of one owner in one of 64 parts, [].
        """
        bounds = jnp.asarray(part_starts(self.group.num_rows, self.num_devices))
        starts = jnp.searchsorted(unique[0], bounds, method="scan_unrolled")
        starts = starts.astype(jnp.int32)
        counts = jnp.diff(starts).reshape(self.num_devices, MAX_ROUNDS)
        largest = [
            counts.reshape(self.num_devices, rounds, -1).sum(axis=-1).max()
            for rounds in _ROUNDS
        ]
        largest = lax.pmax(jnp.stack(largest), AXES)
        fits = largest <= self.capacity
        rounds = jnp.where(fits[-1], jnp.int32(2) ** jnp.argmax(fits), 0)
        return starts[None], rounds.astype(jnp.int32), largest[-1]

    # ------------------------------------------------------------ lookup

    def fetch(self, table: jax.Array, requests: dict[str, Any]) -> jax.Array:
        """A device's rows of the table -> those of `unique`, float32 [1, U, D]."""
        layout, unique = self.layouts["rows"], requests["unique"][0]
        flat, result = table.reshape(layout.shape), (1, len(unique), self.group.dim)
        if self.num_devices == 1:
            return _as_float(layout.get(flat, unique)).reshape(result)

        def one_round(index: jax.Array, fetched: jax.Array) -> jax.Array:
            slots, asked = self._ask(requests, index)
            rows = _swap(layout.get(flat, asked))  # 16-bit rows travel as 16 bits
            return fetched.at[slots].set(rows, mode="drop", unique_indices=True)

        fetched = jnp.zeros((len(unique), *layout.row), layout.dtype)
        fetched = lax.pcast(fetched, AXES, to="varying")
        rows = lax.fori_loop(0, requests["rounds"], one_round, fetched)
        return _as_float(rows).reshape(result)

    # ------------------------------------------------------------ update

    def write(
        self,
        table: State,
        requests: dict[str, Any],
        rows: jax.Array,
        gradient: jax.Array,
        learning_rate: jax.Array,
        step: jax.Array,
        enabled: jax.Array,
    ) -> State:
        """Applies the gradients [1, U, D] of `unique` to the local shards, in place.

        `rows` is what `fetch` returned, [1, U, D].
        """
        gradient = gradient[0].astype(jnp.float32)
        flat = {name: x.reshape(self.layouts[name].shape) for name, x in table.items()}
        num_rows = self._rows_per_device

        def move(
            flat: State, targets: jax.Array, rows: jax.Array, summed: jax.Array
        ) -> State:
            targets = jnp.where(enabled, targets, _nowhere(num_rows, len(targets)))
            return self._move(flat, targets, rows, summed, learning_rate, step)

        if self.num_devices == 1:
            flat = move(flat, requests["unique"][0], rows[0], gradient)
        else:

            def one_round(index: jax.Array, flat: State) -> State:
                slots, asked = self._ask(requests, index)
                sent = gather(gradient, slots)
                targets, summed = _sum_equal_rows(asked, _swap(sent), num_rows)
                own = _as_float(self.layouts["rows"].get(flat["rows"], targets))
                return move(flat, targets, own.reshape(summed.shape), summed)

            flat = lax.fori_loop(0, requests["rounds"], one_round, flat)
        return {name: x.reshape(table[name].shape) for name, x in flat.items()}

    def _ask(
        self, requests: dict[str, Any], index: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Sends one round's ids.

        Returns:
            [N·C] indices into `unique` of the rows that this device asks for, and
            [N·C] local rows that it is asked for. Empty places hold different values
            past the end, in both.
        """
        unique, starts = requests["unique"][0], requests["starts"][0]
        n, c = self.num_devices, self.capacity
        width = MAX_ROUNDS // jnp.maximum(requests["rounds"], 1)
        owner = jnp.arange(n, dtype=jnp.int32)
        first = starts[owner * MAX_ROUNDS + index * width]
        stop = starts[owner * MAX_ROUNDS + (index + 1) * width]
        slots = first[:, None] + jnp.arange(c, dtype=jnp.int32)
        place = jnp.arange(n * c, dtype=jnp.int32).reshape(n, c)
        slots = jnp.where(slots < stop[:, None], slots, len(unique) + place)
        local = gather(unique, slots) - owner[:, None] * self._rows_per_device
        past = self._rows_per_device + place
        asked = _swap(jnp.where(slots < len(unique), local, past).reshape(-1))
        return slots.reshape(-1), asked

    def _move(
        self,
        flat: State,
        targets: jax.Array,
        rows: jax.Array,
        gradient: jax.Array,
        learning_rate: jax.Array,
        step: jax.Array,
    ) -> State:
        """Moves `rows` [M, D], and writes them to `targets` [M], which ascend."""
        layouts = self.layouts
        state = {
            name: layouts[name].get(x, targets).reshape(-1, *layouts[name].tail)
            for name, x in flat.items()
            if name not in ("rows", "last_step")
        }
        rows, new = self.optimizer.update(rows, state, gradient, learning_rate, step)
        if flat["rows"].dtype == jnp.uint16:
            first = lax.axis_index(AXES) * self._rows_per_device
            rows = precision.stochastic(
                rows, rows=first + targets, seed=self.seed, step=step
            )
        new["rows"] = rows
        if "last_step" in flat:
            new["last_step"] = jnp.full(len(targets), step + 1, jnp.int32)
        return {
            name: layouts[name].put(x, targets, new[name], is_ascending=True)
            for name, x in flat.items()
        }


def _swap(x: jax.Array) -> jax.Array:
    """Sends block i of the first dimension to device i, receives in device order."""
    return lax.all_to_all(x, AXES, split_axis=0, concat_axis=0, tiled=True)


def _nowhere(num_rows: int, count: int) -> jax.Array:
    """Different values past the last row, which a scatter drops."""
    return num_rows + jnp.arange(count, dtype=jnp.int32)


def _as_float(rows: jax.Array) -> jax.Array:
    return precision.to_float(rows) if rows.dtype == jnp.uint16 else rows


def _is_first(ordered: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])


def _sum_equal_rows(
    targets: jax.Array, gradient: jax.Array, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Sums gradients [M, D] of equal targets [M]; the result's targets are unique.

    Sorting keeps memory independent of the table; M is the size of one exchange. Equal
    targets stay in device order, so that their sum depends on neither rounds nor C.
    """
    order = jnp.argsort(targets)
    targets, gradient = targets[order], gradient[order]
    segment = jnp.cumsum(_is_first(targets)) - 1
    summed = jax.ops.segment_sum(
        gradient, segment, num_segments=len(targets), indices_are_sorted=True
    )
    nowhere = _nowhere(num_rows, len(targets))
    # Padding targets of different devices coincide; they stay past the last row.
    unique = nowhere.at[segment].set(
        jnp.where(targets < num_rows, targets, nowhere[segment])
    )
    return unique, summed
