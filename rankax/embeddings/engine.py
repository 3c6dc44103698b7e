"""Lookup and in-place update of the tables, on one device or many.

A step exchanges only unique rows. Forward: requests go to the owners by all-to-all,
owners gather, rows come back by all-to-all, `embed` copies each row to the examples
that asked for it. Backward: autodiff stops at the returned rows; their gradients take
the same route, the owner sums those of equal rows, and the row optimizer writes the
touched rows in place. Nothing is ever differentiated with respect to a table, and no
temporary grows with the number of rows.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from rankax.embeddings import routing
from rankax.embeddings.optimizers import RowOptimizer
from rankax.embeddings.placement import ReplicatedStack, RowGroup, TablePlan
from rankax.parallel import mesh as meshes
from rankax.parallel.mesh import ALL_DEVICES, AXES

TableState = dict[str, jax.Array]  # "rows" [S, R, D] and the row optimizer's [S, R]
Routes = dict[str, dict[str, Any]]


class TableEngine:
    """All tables of a model on one mesh; holds no arrays, only the plan.

    Attributes:
        plan: placement of the tables.
        mesh: device mesh.
    """

    def __init__(self, plan: TablePlan, mesh: Mesh, optimizer: RowOptimizer):
        """Binds a plan to a mesh and a row optimizer."""
        self.plan = plan
        self.mesh = mesh
        self._optimizer = optimizer
        self._groups = {group.name: group for group in plan.groups}

    # ------------------------------------------------------------ state

    def init_tables(self, key: jax.Array) -> dict[str, TableState]:
        """Allocates the row-sharded tables, already sharded.

        Values depend on the key and the plan, not on the number of devices.
        """
        tables = {}
        for index, group in enumerate(self.plan.groups):
            tables[group.name] = jax.jit(
                functools.partial(self._init_group, group),
                out_shardings=meshes.over_all_devices(self.mesh),
            )(jax.random.fold_in(key, index))
        return tables

    def init_stacks(self, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the replicated stacks, name -> [V, D]: dense parameters."""
        stacks = {}
        for index, stack in enumerate(self.plan.stacks):
            scale = np.concatenate(
                [
                    np.full((table.spec.num_rows, 1), table.spec.init_scale, np.float32)
                    for table in stack.tables
                ]
            )
            stacks[stack.name] = jnp.asarray(scale) * _unit_noise(
                jax.random.fold_in(key, index), (stack.num_rows, stack.dim), stack
            )
        return stacks

    def _init_group(self, group: RowGroup, key: jax.Array) -> TableState:
        shape = (group.num_shards, group.depth)
        scale = np.zeros((group.depth, 1), np.float32)
        for table in group.tables:
            scale[table.offset :] = table.spec.init_scale
        rows = jnp.asarray(scale) * _unit_noise(key, (*shape, group.dim), group)
        return {"rows": rows, **self._optimizer.init(shape)}

    # ------------------------------------------------------------ host

    def route(self, ids: np.ndarray) -> Routes:
        """Routes one process's share of a batch; NumPy only, safe in any thread.

        Args:
            ids: [B, K] int32 rows within tables; -1 = padding.

        Returns:
            Host arrays, all with a first dimension that is split over all devices:
            per group "requests" [devices, N·C] and "slots" [B, K_g], per replicated
            stack its row ids [B, K_r].

        Raises:
            RoutingOverflowError: too many unique rows for one owner.
        """
        num_devices = self.mesh.size
        local = meshes.local_device_count(self.mesh)
        groups = {}
        for name, group in self._groups.items():
            result = routing.route(
                group,
                ids,
                num_devices=num_devices,
                local_devices=local,
                slots_per_owner=routing.capacity(
                    group,
                    examples_per_device=len(ids) // local,
                    num_devices=num_devices,
                ),
            )
            groups[name] = {"requests": result.requests, "slots": result.slots}
        stacks = {stack.name: stack.stack_rows(ids) for stack in self.plan.stacks}
        return {"groups": groups, "stacks": stacks}

    # ------------------------------------------------------------ device

    def lookup(
        self, tables: Mapping[str, TableState], routes: Routes
    ) -> dict[str, jax.Array]:
        """Fetches the requested rows: group -> [N, N·C, D], split over all devices."""
        return {
            name: self._on_all_devices(_fetch)(
                tables[name]["rows"], routes["groups"][name]["requests"]
            )
            for name in self._groups
        }

    def embed(
        self,
        stacks: Mapping[str, jax.Array],
        rows: Mapping[str, jax.Array],
        routes: Routes,
    ) -> dict[str, jax.Array]:
        """Gives every id its row: role -> [B, K, D]; padding ids get zeros.

        Differentiable in `stacks` and `rows`.
        """
        pieces: dict[str, list[tuple[tuple[int, ...], jax.Array]]] = {}
        for name, group in self._groups.items():
            slots = routes["groups"][name]["slots"]
            embedded = self._on_all_devices(_expand)(rows[name], slots)
            pieces.setdefault(group.role, []).append((group.columns, embedded))
        for stack in self.plan.stacks:
            ids = routes["stacks"][stack.name]
            embedded = stacks[stack.name].at[ids].get(mode="fill", fill_value=0)
            pieces.setdefault(stack.role, []).append((stack.columns, embedded))
        return {role: _in_column_order(parts) for role, parts in pieces.items()}

    def update(
        self,
        tables: Mapping[str, TableState],
        routes: Routes,
        gradients: Mapping[str, jax.Array],
        *,
        learning_rate: jax.Array,
        enabled: jax.Array,
    ) -> dict[str, TableState]:
        """Writes the touched rows.

        Args:
            tables: current state; donate it, so that the write is in place.
            routes: as given to `lookup`.
            gradients: of the loss with respect to the result of `lookup`.
            learning_rate: [] float32.
            enabled: [] bool; False writes nothing at all.
        """
        write = functools.partial(_write, self._optimizer, self.mesh.size)
        return {
            name: self._on_all_devices(write, num_replicated=2)(
                tables[name],
                routes["groups"][name]["requests"],
                gradients[name],
                learning_rate,
                enabled,
            )
            for name in self._groups
        }

    def _on_all_devices(self, function, *, num_replicated: int = 0):
        """`shard_map` over all axes; the last `num_replicated` arguments are copied."""

        def mapped(*args):
            split = len(args) - num_replicated
            specs = (ALL_DEVICES,) * split + (PartitionSpec(),) * num_replicated
            return jax.shard_map(
                function, mesh=self.mesh, in_specs=specs, out_specs=ALL_DEVICES
            )(*args)

        return mapped


# ---------------------------------------------------------------- on one device


def _exchange(x: jax.Array) -> jax.Array:
    """Sends block i of the first dimension to device i, receives in device order."""
    return lax.all_to_all(x, AXES, split_axis=0, concat_axis=0, tiled=True)


def _fetch(table: jax.Array, requests: jax.Array) -> jax.Array:
    """Table [S/N, R, D], requests [1, N·C] -> rows [1, N·C, D]."""
    asked = _exchange(requests[0])
    rows = _flatten(table).at[asked].get(mode="fill", fill_value=0)
    return _exchange(rows.reshape(len(asked), table.shape[-1]))[None]


def _expand(rows: jax.Array, slots: jax.Array) -> jax.Array:
    """Rows [1, N·C, D], slots [b, K_g] -> [b, K_g, D]."""
    return rows[0].at[slots].get(mode="fill", fill_value=0)


def _write(
    optimizer: RowOptimizer,
    num_devices: int,
    table: TableState,
    requests: jax.Array,
    gradient: jax.Array,
    learning_rate: jax.Array,
    enabled: jax.Array,
) -> TableState:
    """Applies gradients [1, N·C, D] of the requested rows to the local shards."""
    flat = {name: _flatten(x) for name, x in table.items()}
    num_rows = len(flat["rows"])
    targets = _exchange(requests[0])
    gradient = _exchange(gradient[0])
    if num_devices > 1:
        targets, gradient = _sum_equal_rows(targets, gradient, num_rows)
    # Past the last row, distinct, and dropped by the scatter.
    nowhere = num_rows + jnp.arange(len(targets), dtype=targets.dtype)
    targets = jnp.where(enabled, targets, nowhere)
    state = {
        name: x.at[targets].get(mode="fill", fill_value=0) for name, x in flat.items()
    }
    rows = state.pop("rows").reshape(gradient.shape)
    rows, state = optimizer.update(
        rows, state, gradient.astype(jnp.float32), learning_rate
    )
    new = {"rows": rows, **state}
    return {
        name: x.at[targets]
        .set(new[name].reshape(-1, *x.shape[1:]), mode="drop", unique_indices=True)
        .reshape(table[name].shape)
        for name, x in flat.items()
    }


def _sum_equal_rows(
    targets: jax.Array, gradient: jax.Array, num_rows: int
) -> tuple[jax.Array, jax.Array]:
    """Sums gradients [M, D] of equal targets [M]; the result's targets are unique.

    Sorting keeps memory independent of the table; M is the size of one exchange.
    """
    order = jnp.argsort(targets)
    targets, gradient = targets[order], gradient[order]
    is_first = jnp.concatenate([jnp.ones(1, bool), targets[1:] != targets[:-1]])
    segment = jnp.cumsum(is_first) - 1
    summed = jax.ops.segment_sum(
        gradient, segment, num_segments=len(targets), indices_are_sorted=True
    )
    nowhere = num_rows + jnp.arange(len(targets), dtype=targets.dtype)
    # Padding targets of different devices coincide; they stay past the last row.
    unique = nowhere.at[segment].set(
        jnp.where(targets < num_rows, targets, nowhere[segment])
    )
    return unique, summed


def _flatten(x: jax.Array) -> jax.Array:
    """[S/N, R, D] or [S/N, R] -> [V/N, D] or [V/N]; D = 1 is dropped.

    XLA gives a scatter into [V, 1] another layout than its operand, and so copies it.
    """
    return x.reshape(-1, *(size for size in x.shape[2:] if size > 1))


def _unit_noise(
    key: jax.Array, shape: tuple[int, ...], part: RowGroup | ReplicatedStack
) -> jax.Array:
    if part.tables[0].spec.init == "uniform":
        return jax.random.uniform(key, shape, minval=-1.0)
    return jax.random.normal(key, shape)


def _in_column_order(
    parts: list[tuple[tuple[int, ...], jax.Array]],
) -> jax.Array:
    """Joins [B, K_i, D] pieces so that their columns ascend, by slices and one concat.

    Columns of one table kind mostly stand side by side, so this is a few slices; a
    gather along the column axis would read every row once more.
    """
    place = {
        column: (part, position)
        for part, (columns, _) in enumerate(parts)
        for position, column in enumerate(columns)
    }
    runs: list[list[int]] = []  # [part, first position, end position]
    for column in sorted(place):
        part, position = place[column]
        if runs and runs[-1][0] == part and runs[-1][2] == position:
            runs[-1][2] += 1
        else:
            runs.append([part, position, position + 1])
    slices = [parts[part][1][:, first:end] for part, first, end in runs]
    return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=1)
