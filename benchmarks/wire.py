"""Bytes that the devices of a step send each other, read from the compiled program.

Beside the table engine stands a reference that is simple and right: every device gets
all ids, looks up those whose rows it holds, and a reduce-scatter adds the pieces up;
backward, every device gets all gradients. Its bytes grow with the batch, the engine's
with the unique rows.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from benchmarks import contestants
from benchmarks.contestants import Workload
from rankax.embeddings.optimizers import RowOptimizer
from rankax.observe import collectives
from rankax.parallel import mesh as meshes
from rankax.parallel.mesh import ALL_DEVICES, AXES

# ---------------------------------------------------------------- the reference


def reference_lookup(mesh: jax.sharding.Mesh, table: jax.Array, rows: jax.Array):
    """Masked gather and reduce-scatter: table [V, D], rows [B, F] -> [B, F, D]."""

    def lookup(table, rows):
        wanted, is_here = _local(lax.all_gather(rows, AXES, tiled=True), len(table))
        found = jnp.where(is_here[..., None], table[wanted], 0)
        return lax.psum_scatter(found, AXES, scatter_dimension=0, tiled=True)

    return _on_all_devices(lookup, mesh)(table, rows)


def reference_update(
    mesh: jax.sharding.Mesh,
    optimizer: RowOptimizer,
    state: Mapping[str, jax.Array],
    rows: jax.Array,
    gradient: jax.Array,
    learning_rate: float,
) -> dict[str, jax.Array]:
    """Moves the rows [B, F] of "rows" [V, D] by their gradients [B, F, D]."""

    def update(state, rows, gradient):
        table = state["rows"]
        rows = lax.all_gather(rows, AXES, tiled=True)
        gradient = lax.all_gather(gradient, AXES, tiled=True)
        wanted, is_here = _local(rows, len(table))
        wanted = jnp.where(is_here, wanted, len(table))
        summed = jnp.zeros_like(table).at[wanted].add(gradient, mode="drop")
        is_touched = jnp.zeros(len(table), bool).at[wanted].set(True, mode="drop")
        rest = {name: x for name, x in state.items() if name != "rows"}
        moved, rest = optimizer.update(
            table, rest, summed, jnp.float32(learning_rate), jnp.int32(0)
        )
        new = {"rows": moved, **rest}

        def keep(new, old):
            touched = is_touched.reshape(-1, *(1,) * (new.ndim - 1))
            return jnp.where(touched, new, old)

        return jax.tree.map(keep, new, dict(state))

    return _on_all_devices(update, mesh)(state, rows, gradient)


def _local(rows: jax.Array, num_rows: int) -> tuple[jax.Array, jax.Array]:
    """Returns rows counted from this device's first, clipped, and which are here."""
    rows = rows - lax.axis_index(AXES) * num_rows
    return jnp.clip(rows, 0, num_rows - 1), (rows >= 0) & (rows < num_rows)


def _on_all_devices(function: Any, mesh: jax.sharding.Mesh) -> Any:
    return jax.shard_map(
        function, mesh=mesh, in_specs=ALL_DEVICES, out_specs=ALL_DEVICES
    )


# ---------------------------------------------------------------- measured


def measure(workload: Workload, num_devices: int) -> dict[str, float]:
    """Compares on simulated devices; called in a process of its own."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)
    return compare(workload, meshes.make_mesh())


def compare(workload: Workload, mesh: jax.sharding.Mesh) -> dict[str, float]:
    """Compiles the contestant's step and the same with the reference in its place.

    Returns:
        What each device sends a step, in MB: with the engine, with the reference, of
        it the network's gradients, which are part of both; and the ratio.
    """
    engine, init, route, train = contestants.engine_program(workload, mesh)
    (group,) = engine.plan.groups
    ids, labels = (x[0] for x in workload.batches())
    batch = route(ids, labels)
    rows = jax.device_put(group.stack_rows(ids), meshes.over_all_devices(mesh))
    sharded, copied = meshes.over_all_devices(mesh), meshes.replicated(mesh)

    def place(path, x):
        sharding = sharded if path[0].key == "tables" else copied
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    state = jax.tree.map_with_path(place, jax.eval_shape(init))
    flat = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            (group.num_rows, *x.shape[2:]), x.dtype, sharding=sharded
        ),
        state["tables"][group.name],
    )
    optimizer = contestants.row_optimizer()

    def reference_step(tables, network, rows, labels):
        embedded = reference_lookup(mesh, tables["rows"], rows)
        gradients = jax.grad(contestants.jax_loss, argnums=(0, 1))(
            network, embedded, labels
        )
        tables = reference_update(
            mesh, optimizer, tables, rows, gradients[1], contestants.ROW_RATE
        )
        return tables, lax.with_sharding_constraint(gradients[0], copied)

    sent = _sent(mesh, train, state, batch)
    reference = _sent(
        mesh, reference_step, flat, state["network"], rows, batch["labels"]
    )
    network = sum(x.nbytes for x in workload.network().values())
    summed = collectives.SENT_PER_BYTE["all-reduce"](mesh.size) * network
    return {
        "engine_mb": sent / 1e6,
        "reference_mb": reference / 1e6,
        "network_mb": summed / 1e6,
        "ratio": reference / sent,
    }


def _sent(mesh: jax.sharding.Mesh, step: Any, *arguments: Any) -> int:
    compiled = jax.jit(step, donate_argnums=0).lower(*arguments).compile()
    return collectives.sent_bytes(compiled.as_text() or "", mesh.size)
