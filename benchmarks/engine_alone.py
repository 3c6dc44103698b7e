"""Parts of the table engine by themselves, for `benchmarks/embedding.py`.

Every function is called in a fresh process, and returns what it measured by name;
"times" are `measure.Times`.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contestants, measure
from benchmarks.contestants import Workload
from rankax.data import transforms
from rankax.embeddings.engine import TableEngine
from rankax.parallel import mesh as meshes

UPDATED_ROWS = 50_000
UPDATED_DIM = 16
# Row and accumulator are read and written, the gradient is read.
UPDATED_BYTES = UPDATED_ROWS * 4 * (3 * UPDATED_DIM + 2)
HOST_ROWS = 10_000_000


def time_update(num_rows: int, chunk_seconds: float) -> dict[str, Any]:
    """Times the update of uniform random unique rows, whose gradients are given.

    It gathers the rows and their accumulators, moves them and scatters both.
    """
    engine = _engine(
        Workload(
            num_rows=num_rows,
            dim=UPDATED_DIM,
            batch_size=UPDATED_ROWS,
            num_fields=1,
        )
    )
    (group,) = engine.plan.groups
    tables = engine.init_tables(jax.random.key(0))
    rng = np.random.default_rng(0)
    routes = []
    for _ in range(16):
        ids = rng.choice(num_rows, (UPDATED_ROWS, 1), replace=False, shuffle=False)
        routes.append(jax.device_put(engine.route(ids.astype(np.int32))))
    unique = routes[0]["groups"][group.name]["unique"]
    gradients = {group.name: jnp.full((*unique.shape, UPDATED_DIM), 1e-3)}

    def update(tables, routes, gradients):
        requests = engine.request(routes)
        return engine.update(
            tables,
            requests,
            engine.lookup(tables, requests),
            gradients,
            learning_rate=jnp.float32(contestants.ROW_RATE),
            step=jnp.int32(0),
            enabled=jnp.bool_(True),
        )

    lowered = jax.jit(update, donate_argnums=0).lower(tables, routes[0], gradients)
    compiled = lowered.compile()
    turn = itertools.cycle(routes)

    def step():
        nonlocal tables
        tables = compiled(tables, next(turn), gradients)

    for _ in routes:
        step()
    times = measure.time_warm(
        step, lambda: jax.block_until_ready(tables), chunk_seconds
    )
    memory = compiled.memory_analysis()
    assert memory is not None, "XLA tells it on CPU, GPU and TPU"
    return {"times": times, "temporary_mb": memory.temp_size_in_bytes / 1e6}


def time_host(batch_size: int, chunk_seconds: float) -> dict[str, Any]:
    """Times what a batch of raw 64-bit ids costs the host: hashing and routing."""
    workload = Workload(
        num_rows=HOST_ROWS, dim=16, batch_size=batch_size, num_batches=8
    )
    engine = _engine(workload)
    ids, _ = workload.batches()
    # Column by column, as Parquet gives them, and spread over all 64 bits.
    raw = np.ascontiguousarray(ids.astype(np.int64).transpose(0, 2, 1))
    raw *= 0x9E3779B97F4A7C1  # odd: one to one
    salts = [transforms.table_salt(name) for name in engine.plan.column_tables]
    turn = itertools.cycle(raw)

    def step():
        rows = [
            transforms.hash_rows(column, num_rows=workload.field_rows, salt=salt)
            for column, salt in zip(next(turn), salts, strict=True)
        ]
        engine.route(np.stack(rows, axis=1))

    step()
    return {"times": measure.time_warm(step, lambda: None, chunk_seconds)}


def measure_init(num_rows: int, dim: int) -> dict[str, Any]:
    """Compares the process's memory before and after `init_tables`."""
    engine = _engine(Workload(num_rows=num_rows, dim=dim, batch_size=8))
    key = jax.block_until_ready(jax.random.key(0))
    before = measure.peak_memory_bytes()
    tables = jax.block_until_ready(engine.init_tables(key))
    size = sum(x.nbytes for x in jax.tree.leaves(tables))
    grown = measure.peak_memory_bytes() - before
    return {"table_mb": size / 1e6, "grown_mb": grown / 1e6, "ratio": grown / size}


def _engine(workload: Workload) -> TableEngine:
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    return contestants.make_engine(workload, mesh)
