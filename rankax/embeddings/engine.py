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
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from rankax.config.experiment import TablesConfig
from rankax.embeddings import (
    counters,
    initial,
    layout,
    logical,
    precision,
    routing,
    sizes,
)
from rankax.embeddings.exchange import Exchange
from rankax.embeddings.optimizers import RowOptimizer
from rankax.embeddings.placement import RowGroup, TablePlan
from rankax.embeddings.sizes import Sizes
from rankax.parallel import mesh as meshes
from rankax.parallel.mesh import ALL_DEVICES

# "rows" [S, R, D], the row optimizer's arrays, ...; or what devices that keep rows in
# lines make of their shards (`rankax.embeddings.layout`).
TableState = dict[str, jax.Array]
Routes = dict[str, Any]

_EVERYWHERE = PartitionSpec()


class TableEngine:
    """All tables of a model on one mesh; holds no arrays, only the plan.

    Attributes:
        plan: placement of the tables.
        mesh: device mesh.
        sizes: static sizes of the exchange.
    """

    def __init__(
        self,
        plan: TablePlan,
        mesh: Mesh,
        optimizer: RowOptimizer,
        *,
        config: TablesConfig | None = None,
        seed: int = 0,
        sample_ids: np.ndarray | None = None,
    ):
        """Binds a plan to a mesh and a row optimizer.

        Args:
            plan: placement of the tables.
            mesh: device mesh.
            optimizer: of row-sharded tables.
            config: precision of the rows, where ids are de-duplicated, room in the
                exchange; default `TablesConfig()`.
            seed: of stochastic rounding.
            sample_ids: [n, K] ids of some typical examples, the same on every process;
                the exchange is sized by how many of them repeat. None = for ids that
                never repeat.
        """
        self.plan = plan
        self.mesh = mesh
        self._optimizer = optimizer
        self._config = config or TablesConfig()
        self._seed = seed
        self._groups = {group.name: group for group in plan.groups}
        self._in_lines = layout.is_in_lines(mesh)
        self._layouts = {
            group.name: {
                name: layout.choose(
                    group, x, num_devices=mesh.size, in_lines=self._in_lines
                )
                for name, x in self._logical(group).items()
            }
            for group in plan.groups
        }
        self.sizes = Sizes(
            num_devices=mesh.size,
            is_one_process=meshes.local_device_count(mesh) == mesh.size,
            margin=self._config.capacity_margin,
            sample_ids=sample_ids,
        )

    # ------------------------------------------------------------ state

    def __str__(self) -> str:
        """What will be allocated, array by array, for people; allocates nothing."""
        tables = jax.eval_shape(self.init_tables, jax.random.key(0))
        lines, total = [], 0
        for group in self.plan.groups:
            arrays = tables[group.name]
            size = sum(x.size * x.dtype.itemsize for x in arrays.values())
            shapes = ", ".join(
                f"{name} {arrays[name].dtype}{list(arrays[name].shape)}"
                for name in sorted(arrays, key="rows".__ne__)
            )
            own = size // self.mesh.size
            total += own
            lines.append(
                f"{group.name}: {len(group.tables)} tables by row, "
                f"{own / 1e6:,.1f} MB on each of {self.mesh.size} devices ({shapes})"
            )
        for stack in self.plan.stacks:
            size = stack.num_rows * stack.dim * 4
            total += size
            lines.append(
                f"{stack.name}: {len(stack.tables)} tables replicated, "
                f"{size / 1e6:,.1f} MB on every device, optimizer aside "
                f"(float32[{stack.num_rows}, {stack.dim}])"
            )
        lines.append(f"tables take {total / 1e6:,.1f} MB on each device")
        return "\n".join(lines)

    def init_tables(self, key: jax.Array) -> dict[str, TableState]:
        """Allocates the row-sharded tables, already sharded.

        Values depend on the key and the plan, not on the number of devices. One
        virtual shard is made at a time, so that nothing but the tables takes memory.

        Raises:
            ConfigError: checkpoints of these devices need the host's CPU, and jax was
                started without it.
        """
        if self._in_lines:
            logical.check_hosts()
        return {
            group.name: jax.jit(
                functools.partial(self._init_group, group),
                out_shardings=meshes.over_all_devices(self.mesh),
            )(jax.random.fold_in(key, index))
            for index, group in enumerate(self.plan.groups)
        }

    def init_stacks(self, key: jax.Array) -> dict[str, jax.Array]:
        """Returns the replicated stacks, name -> [V, D]: dense parameters."""
        return {
            stack.name: initial.rows(
                jax.random.fold_in(key, index), stack, stack.num_rows
            )
            for index, stack in enumerate(self.plan.stacks)
        }

    def abstract_logical(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Returns shapes, dtypes and shardings of what `to_logical` returns."""
        if self._in_lines:
            sharding = logical.host_sharding(self.mesh)
        else:
            sharding = meshes.over_all_devices(self.mesh)
        return {
            name: {
                key: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
                for key, x in arrays.items()
            }
            for name, arrays in self.logical_shapes().items()
        }

    def logical_shapes(self) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
        """Returns shapes and dtypes alone of what `to_logical` returns."""
        return {name: self._logical(group) for name, group in self._groups.items()}

    def to_logical(self, tables: Mapping[str, TableState]) -> dict[str, TableState]:
        """Returns the tables as checkpoints have them, [S, R, ...].

        These are the very arrays, but on devices that keep rows in lines (see
        `rankax.embeddings.layout`) copies on their hosts.
        """
        if not self._in_lines:
            return dict(tables)
        return {
            name: {
                key: logical.to_host(x, self._layouts[name][key], group, self.mesh)
                for key, x in tables[name].items()
            }
            for name, group in self._groups.items()
        }

    def from_logical(self, tables: Mapping[str, TableState]) -> dict[str, TableState]:
        """Returns the tables of `to_logical` as the devices keep them."""
        if not self._in_lines:
            return dict(tables)
        return {
            name: {
                key: logical.to_devices(x, self._layouts[name][key], self.mesh)
                for key, x in arrays.items()
            }
            for name, arrays in tables.items()
        }

    def row_bytes(self, group: RowGroup) -> dict[str, int]:
        """Returns what a device reads to see one row of each array of a group.

        Of rows that share lines a whole line, see `rankax.embeddings.layout`.
        """
        return {
            name: math.prod(kept.shape[1:]) * kept.stored_dtype.itemsize
            for name, kept in self._layouts[group.name].items()
        }

    def _logical(self, group: RowGroup) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a group's arrays in a checkpoint."""
        shape = (group.num_shards, group.depth)
        kind = jnp.uint16 if self._config.dtype == "bfloat16" else jnp.float32
        rows = jax.ShapeDtypeStruct((*shape, group.dim), kind)
        return {"rows": rows, **jax.eval_shape(lambda: self._init_state(group, shape))}

    def _init_state(self, group: RowGroup, shape: tuple[int, ...]) -> TableState:
        """What stands beside rows of leading shape [...]; the same for each of them."""
        state = self._optimizer.init(shape, group.dim)
        if self._config.track_last_step:
            state["last_step"] = jnp.zeros(shape, jnp.int32)
        return state

    def _init_group(self, group: RowGroup, key: jax.Array) -> TableState:
        def one_shard(shard: jax.Array) -> jax.Array:
            rows = initial.rows(jax.random.fold_in(key, shard), group, group.depth)
            return precision.nearest(rows) if self._config.dtype == "bfloat16" else rows

        def all_shards(shards: jax.Array) -> jax.Array:
            if self._in_lines:
                return layout.fill(layouts["rows"], one_shard, shards)
            return jax.lax.map(one_shard, shards)

        layouts = self._layouts[group.name]
        shape = (group.num_shards, group.depth)
        rows = self._on_all_devices(all_shards)(jnp.arange(group.num_shards))
        if not self._in_lines:
            return {"rows": rows, **self._init_state(group, shape)}
        some = self._init_state(group, (layout.LANES,))
        return {"rows": rows} | {
            name: layout.repeat(layouts[name], x, self.mesh.size)
            for name, x in some.items()
        }

    # ------------------------------------------------------------ host

    def route(self, ids: np.ndarray, *, is_counted: np.ndarray | None = None) -> Routes:
        """Routes one process's share of a batch; NumPy only, safe in any thread.

        Args:
            ids: [B, K] int32 rows within tables; -1 = padding.
            is_counted: [B] bool, False for examples that only fill a batch up: their
                ids are looked up but not counted; None = all count.

        Returns:
            Host arrays, all with a first dimension that is split over all devices: per
            group those of `routing.Route` (or `rows` [B, K_g], if the devices are to
            de-duplicate), per replicated stack its rows [B, K_r], and the counts of
            `rankax.embeddings.counters`.

        Raises:
            RoutingOverflowError: rows so skewed that no number of rounds carries them.
            TypeError: ids of another type.
            ValueError: ids of another shape.
        """
        local = meshes.local_device_count(self.mesh)
        self._check_ids(ids, local)
        examples = len(ids) // local
        groups = {}
        for name, group in self._groups.items():
            rows = group.stack_rows(ids)
            if self._config.deduplicate == "device":
                groups[name] = {"rows": rows}
                continue
            result = routing.route(
                group,
                rows,
                num_devices=self.mesh.size,
                local_devices=local,
                slots_per_owner=self.sizes.capacity(
                    group, examples_per_device=examples
                ),
                choose_room=functools.partial(
                    self.sizes.room, group, examples_per_device=examples
                ),
            )
            groups[name] = {
                "unique": result.unique,
                "slots": result.slots,
                "num_requests": result.num_requests,
            }
        stacks = {stack.name: stack.stack_rows(ids) for stack in self.plan.stacks}
        counts = counters.count_ids(
            self.plan, ids, stacks, is_counted=is_counted, local_devices=local
        )
        return {"groups": groups, "stacks": stacks, "counts": counts}

    def _check_ids(self, ids: np.ndarray, local_devices: int) -> None:
        if ids.dtype != np.int32:
            raise TypeError(
                f"ids have dtype {ids.dtype}, expected int32 rows within tables; map "
                "raw ids with rankax.data.transforms (hash_rows or direct_rows)"
            )
        columns = self.plan.num_columns
        if ids.ndim != 2 or ids.shape[1] != columns or len(ids) % local_devices:
            raise ValueError(
                f"ids have shape {list(ids.shape)}, expected [B, {columns}] with B a "
                f"multiple of the {local_devices} devices of this process"
            )

    # ------------------------------------------------------------ device

    def request(self, routes: Routes) -> Routes:
        """Completes routes on the devices: unique rows, and the rounds they take.

        Returns:
            The argument of `lookup`, `embed` and `update`. Its "groups" hold, beside
            `routing.Route`'s arrays, `rounds` [] int32 (0 = the batch cannot be
            carried, and the step must write nothing), `largest` (see
            `Exchange.plan_rounds`) and `capacity` (C), [] int32.
        """
        groups = {}
        for name, group in self._groups.items():
            given = dict(routes["groups"][name])
            exchange = self._exchange(group, given)
            if "rows" in given:
                bound = sizes.unique_bound(
                    group, examples_per_device=len(given["rows"]) // self.mesh.size
                )
                deduplicate = functools.partial(exchange.deduplicate, bound=bound)
                unique, slots, count = self._on_all_devices(deduplicate)(
                    given.pop("rows")
                )
                given |= {"unique": unique, "slots": slots, "num_requests": count}
            given |= {"rounds": jnp.int32(1), "largest": jnp.int32(0)}
            given["capacity"] = jnp.int32(exchange.capacity)
            if self.mesh.size > 1:
                outputs = (ALL_DEVICES, _EVERYWHERE, _EVERYWHERE)
                given["starts"], given["rounds"], given["largest"] = (
                    self._on_all_devices(exchange.plan_rounds, out_specs=outputs)(
                        given["unique"]
                    )
                )
            groups[name] = given
        return {**routes, "groups": groups}

    def lookup(
        self, tables: Mapping[str, TableState], requests: Routes
    ) -> dict[str, jax.Array]:
        """Fetches the unique rows: group -> float32 [N, U, D], over all devices."""
        rows = {}
        for name, group in self._groups.items():
            asked = requests["groups"][name]
            fetch = self._exchange(group, asked).fetch
            rows[name] = self._on_all_devices(
                fetch, in_specs=(ALL_DEVICES, _specs(asked))
            )(tables[name]["rows"], asked)
        return rows

    def embed(
        self,
        stacks: Mapping[str, jax.Array],
        rows: Mapping[str, jax.Array],
        requests: Routes,
    ) -> dict[str, jax.Array]:
        """Gives every id its row: role -> [B, K, D].

        Padding ids get zeros, and so do columns whose table a role does not have.
        Differentiable in `stacks` and `rows`.
        """
        pieces: dict[str, list[tuple[tuple[int, ...], jax.Array]]] = {}
        for name, group in self._groups.items():
            slots = requests["groups"][name]["slots"]
            embedded = self._on_all_devices(_expand)(rows[name], slots)
            pieces.setdefault(group.role, []).append((group.columns, embedded))
        for stack in self.plan.stacks:
            ids = requests["stacks"][stack.name]
            embedded = stacks[stack.name].at[ids].get(mode="fill", fill_value=0)
            pieces.setdefault(stack.role, []).append((stack.columns, embedded))
        for parts in pieces.values():
            covered = {column for columns, _ in parts for column in columns}
            rest = tuple(k for k in range(self.plan.num_columns) if k not in covered)
            if rest:
                some = parts[0][1]
                zeros = jnp.zeros((len(some), len(rest), some.shape[-1]), some.dtype)
                parts.append((rest, zeros))
        return {role: _in_column_order(parts) for role, parts in pieces.items()}

    def update(
        self,
        tables: Mapping[str, TableState],
        requests: Routes,
        rows: Mapping[str, jax.Array],
        gradients: Mapping[str, jax.Array],
        *,
        learning_rate: jax.Array,
        step: jax.Array,
        enabled: jax.Array,
    ) -> dict[str, TableState]:
        """Writes the touched rows.

        Args:
            tables: current state; donate it, so that the write is in place.
            requests: as given to `lookup`.
            rows: the result of `lookup` on these tables.
            gradients: of the loss with respect to it.
            learning_rate: [] float32.
            step: [] int32, updates done before this one.
            enabled: [] bool; False writes nothing at all.
        """
        new = {}
        for name, group in self._groups.items():
            asked = requests["groups"][name]
            write = self._exchange(group, asked).write
            split, copied = (ALL_DEVICES,) * 2, (_EVERYWHERE,) * 3
            specs = (ALL_DEVICES, _specs(asked), *split, *copied)
            new[name] = self._on_all_devices(write, in_specs=specs)(
                tables[name],
                asked,
                rows[name],
                gradients[name],
                learning_rate,
                step,
                enabled,
            )
        return new

    def never_updated(self, tables: Mapping[str, TableState]) -> dict[str, jax.Array]:
        """Counts rows that no step has touched: group -> [T] int32, padding excluded.

        Groups without `last_step` (`tables.track_last_step`) are left out.
        """
        counts = {}
        for name, group in self._groups.items():
            if "last_step" not in tables[name]:
                continue
            steps = tables[name]["last_step"].reshape(group.num_shards, group.depth)
            untouched = (steps == 0).sum(axis=0, dtype=jnp.int32)
            starts = np.array([table.offset for table in group.tables])
            by_table = jnp.cumsum(untouched)[np.append(starts[1:], group.depth) - 1]
            rows = np.array([table.spec.num_rows for table in group.tables])
            depths = np.diff([*starts, group.depth])
            padding = (depths * group.num_shards - rows).astype(np.int32)
            counts[name] = jnp.diff(by_table, prepend=0) - padding
        return counts

    def fits(self, requests: Routes) -> jax.Array:
        """Returns whether every group's rounds can carry the batch, [] bool."""
        rounds = [group["rounds"] > 0 for group in requests["groups"].values()]
        return jnp.all(jnp.stack(rounds)) if rounds else jnp.bool_(True)

    def check_rounds(self, counts: counters.Counts) -> None:
        """Raises if the step of these counts could not be carried.

        Args:
            counts: of `counters.sum_over_devices`, fetched from the devices.

        Raises:
            RoutingOverflowError: see above; names the table.
        """
        for name, group in counts["groups"].items():
            if group["rounds"] == 0:
                own = group["num_requests"]
                raise routing.overflow(
                    self._groups[name],
                    table=int((own.max(axis=1) - own.mean(axis=1)).argmax()),
                    found=int(group["largest"]),
                    capacity=int(group["capacity"]),
                    detail=f"all devices together ask the most loaded one for "
                    f"{own.sum(axis=0).max()} unique rows (mean over owners "
                    f"{own.sum(axis=0).mean():.0f})",
                )

    def _exchange(self, group: RowGroup, arrays: Mapping[str, jax.Array]) -> Exchange:
        examples = len(arrays["slots" if "slots" in arrays else "rows"])
        return Exchange(
            group=group,
            num_devices=self.mesh.size,
            capacity=self.sizes.capacity(
                group, examples_per_device=examples // self.mesh.size
            ),
            layouts=self._layouts[group.name],
            optimizer=self._optimizer,
            # Groups number their rows alike, so each gets a seed of its own.
            seed=(self._seed * 0x9E3779B1 + self.plan.groups.index(group)) % 2**32,
        )

    def _on_all_devices(
        self, function, *, in_specs: Any = ALL_DEVICES, out_specs: Any = ALL_DEVICES
    ):
        """`shard_map` over all axes; by default every argument is split."""
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs
        )


def _specs(requests: Mapping[str, jax.Array]) -> dict[str, PartitionSpec]:
    """Scalars are the same everywhere, arrays are split over all devices."""
    return {
        name: ALL_DEVICES if x.ndim else _EVERYWHERE for name, x in requests.items()
    }


def _expand(rows: jax.Array, slots: jax.Array) -> jax.Array:
    """Rows [1, U, D], slots [b, K_g] -> [b, K_g, D]."""
    # Flat, because XLA:CPU copies the gradient of a gather of more dimensions.
    return layout.rows_at(rows[0], slots.reshape(-1)).reshape(
        *slots.shape, rows.shape[-1]
    )


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
