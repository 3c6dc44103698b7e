"""Bytes that training moves: table rows through memory, everything over the wire."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from rankax.config.experiment import DenseOptimizerConfig, ExperimentConfig
from rankax.embeddings import sizes
from rankax.embeddings.counters import Summary
from rankax.embeddings.engine import TableEngine
from rankax.optim.dense import NETWORK, TABLES, dense_optimizer
from rankax.parallel import rules

_FLOAT32 = 4  # bytes


def table_bytes_per_example(
    config: ExperimentConfig,
    engine: TableEngine,
    *,
    counted: Summary | None = None,
    num_examples: int = 0,
) -> float:
    """Returns the bytes of rows and of optimizer state that one example moves.

    A lookup reads a row. An update reads and writes it with the state of its optimizer
    (`last_step` is only written). Rows that share a line, as on TPU, move with all of
    it (`rankax.embeddings.layout`).

        by row       u · (3 · row + 2 · state), u unique rows: a step moves each once
        replicated   k · row + N · V / B · 2 · (row + state): all k ids are looked up,
                     and the dense optimizer moves all V rows on each of N devices

    Args:
        config: the run; its batch is B.
        engine: the run's tables.
        counted: what the tables were asked for, which gives u and k; None = the most
            that a batch can ask for.
        num_examples: that asked for it.
    """
    num_devices, batch_size = engine.mesh.size, config.train.batch_size
    total = 0.0
    for group in engine.plan.groups:
        if counted is None:
            examples = batch_size // num_devices
            unique = sizes.unique_bound(group, examples_per_device=examples) / examples
        else:
            unique = _sum(counted, group, "unique") / num_examples
        times = {"rows": 3, "last_step": 1}
        total += unique * sum(
            times.get(name, 2) * size for name, size in engine.row_bytes(group).items()
        )
    for stack in engine.plan.stacks:
        ids = float(len(stack.columns))
        if counted is not None:
            ids = _sum(counted, stack, "looked_up") / num_examples
        row = stack.dim * _FLOAT32
        updated = row + dense_state_bytes(config.optimizer.dense, stack.dim)
        total += ids * row + num_devices * stack.num_rows / batch_size * 2 * updated
    return total


def wire_bytes_per_step(
    config: ExperimentConfig, engine: TableEngine, params: Any
) -> float:
    """Returns the bytes that each of N devices sends in a training step.

    Those of `exchange_bytes_per_step` and `gradient_bytes_per_step`. What Token
    Parallel exchanges of the activations is not in it, nor are a few hundred counters.

    Args:
        config: the run.
        engine: the run's tables.
        params: `nnx.State` of the network's parameters, abstract or not.
    """
    return exchange_bytes_per_step(config, engine) + gradient_bytes_per_step(
        engine, params
    )


def exchange_bytes_per_step(config: ExperimentConfig, engine: TableEngine) -> float:
    """Returns what a device sends of tables by row, all-to-all.

        (N − 1) · C · (8 + D · (b + 4)) for each group of tables

    Ids travel twice, rows with b = 4 or 2 bytes a number, their gradients with 4; C is
    the capacity of the exchange, which takes one round.
    """
    num_devices = engine.mesh.size
    examples = config.train.batch_size // num_devices
    row_bytes = 2 if config.tables.dtype == "bfloat16" else _FLOAT32
    total = 0.0
    for group in engine.plan.groups:
        capacity = engine.sizes.capacity(group, examples_per_device=examples)
        each = 8 + group.dim * (row_bytes + _FLOAT32)
        total += (num_devices - 1) * capacity * each
    return total


def gradient_bytes_per_step(engine: TableEngine, params: Any) -> float:
    """Returns what a device sends to sum dense gradients, all-reduce.

        2 · (R − 1) / R · 4 for each dense parameter that it holds

    A ring of the R devices that hold a parameter sums its gradient; replicated tables
    are parameters of all. It is the most: nothing is sent for parameters that nothing
    reads (INFNet's biases of keys), and where parameters meet each other before they
    meet examples (FinalMLP's gates without context), the result's gradient is summed.
    """
    mesh = engine.mesh
    weights, shardings = jax.tree.leaves(params), rules.shardings(params, mesh)
    held = [(stack.num_rows * stack.dim, mesh.size) for stack in engine.plan.stacks]
    for weight, sharding in zip(weights, jax.tree.leaves(shardings), strict=True):
        local = math.prod(sharding.shard_shape(weight.shape))
        if local:  # LR and FM without numeric fields hold empty weights
            held.append((local, mesh.size * local // weight.size))
    return sum(2 * (r - 1) / r * _FLOAT32 * local for local, r in held)


def _sum(counted: Summary, part: Any, counter: str) -> float:
    """Sums a counter over the tables of a stack."""
    names = (f"{part.role}/{table.spec.name}" for table in part.tables)
    return sum(counted[name][counter] for name in names)


def dense_state_bytes(config: DenseOptimizerConfig, dim: int) -> int:
    """Bytes of the dense optimizer's state for one row of a replicated table."""
    row = jax.ShapeDtypeStruct((1, dim), jnp.float32)
    params = {NETWORK: {}, TABLES: {"stack": row}}
    state = jax.eval_shape(dense_optimizer(config).init, params)
    like_the_row = (x for x in jax.tree.leaves(state) if x.shape == row.shape)
    return sum(x.size * x.dtype.itemsize for x in like_the_row)
