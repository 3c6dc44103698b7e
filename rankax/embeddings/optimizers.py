"""Row optimizers: how one touched row moves, as a pure function of rows.

`g` is the gradient of a row summed over all its occurrences in the global batch, so
that a duplicate id moves its row once. Untouched rows and their state never change.
"""

from collections.abc import Callable
import dataclasses

import jax
import jax.numpy as jnp

from rankax.config.experiment import SparseOptimizerConfig

RowState = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowOptimizer:
    """A row optimizer.

    Attributes:
        init: leading shape [...] of the rows -> state arrays of that shape.
        update: (rows [M, D], state {name: [M]}, g [M, D], learning rate) -> the new
            rows and state. All float32.
    """

    init: Callable[[tuple[int, ...]], RowState]
    update: Callable[
        [jax.Array, RowState, jax.Array, jax.Array], tuple[jax.Array, RowState]
    ]


def sgd() -> RowOptimizer:
    """W ← w − lr·g."""

    def update(rows, state, grad, learning_rate):
        return rows - learning_rate * grad, state

    return RowOptimizer(init=lambda shape: {}, update=update)


def rowwise_adagrad(*, eps: float, initial_accumulator: float) -> RowOptimizer:
    """Adagrad with one accumulator per row, as in production recommenders.

    a ← a + mean_D(g²),  w ← w − lr · g / (√a + eps),  a starts at
    `initial_accumulator`. State is 1/D of the table.
    """

    def init(shape):
        return {"accumulator": jnp.full(shape, initial_accumulator, jnp.float32)}

    def update(rows, state, grad, learning_rate):
        accumulator = state["accumulator"] + jnp.mean(grad**2, axis=-1)
        scale = learning_rate / (jnp.sqrt(accumulator) + eps)
        return rows - scale[..., None] * grad, {"accumulator": accumulator}

    return RowOptimizer(init=init, update=update)


def from_config(config: SparseOptimizerConfig) -> RowOptimizer:
    """Builds the configured row optimizer (names are checked by the configuration)."""
    match config.name:
        case "rowwise_adagrad":
            return rowwise_adagrad(
                eps=config.eps, initial_accumulator=config.initial_accumulator
            )
        case "sgd":
            return sgd()
    raise ValueError(f"unknown row optimizer {config.name!r}")
