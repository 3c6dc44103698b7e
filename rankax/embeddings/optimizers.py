"""Row optimizers: how one touched row moves, as a pure function of rows.

`g` is the gradient of a row summed over all its occurrences in the global batch, so
that a duplicate id moves its row once. Every optimizer gives a direction u, and

    w ← w − lr · (u + weight_decay · w) = (1 − lr · weight_decay) · w − lr · u

with the old w on the right: decoupled weight decay (arXiv 1711.05101), as in FBGEMM.
Rows that a step does not touch stand still, and so does their state: they neither decay
nor lose momentum. There these optimizers differ from dense ones, where every row moves
in every step; where every row is touched they are the same.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

from rankax.config.experiment import ROW_OPTIMIZERS, SparseOptimizerConfig

RowState = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RowOptimizer:
    """A row optimizer.

    Attributes:
        init: (leading shape [...] of the rows, D) -> state arrays [...] or [..., D].
        update: (rows [M, D], state {name: [M] or [M, D]}, g [M, D], learning rate [],
            updates done before this one [] int32) -> the new rows and state. All
            float32 but the counter.
    """

    init: Callable[[tuple[int, ...], int], RowState]
    update: Callable[
        [jax.Array, RowState, jax.Array, jax.Array, jax.Array],
        tuple[jax.Array, RowState],
    ]


def sgd(*, weight_decay: float = 0.0) -> RowOptimizer:
    """Stochastic gradient descent: u = g. State: none."""

    def direction(state, grad, step):
        return grad, state

    return _row_optimizer(lambda shape, dim: {}, direction, weight_decay)


def rowwise_adagrad(
    *, eps: float, initial_accumulator: float, weight_decay: float = 0.0
) -> RowOptimizer:
    """Adagrad with one accumulator per row, as in production recommenders.

    a ← a + mean_D(g²),  u = g / (√a + eps),  a starts at `initial_accumulator`.
    State: 1 number per row, FBGEMM's EXACT_ROWWISE_ADAGRAD.
    """

    def init(shape, dim):
        return {"accumulator": jnp.full(shape, initial_accumulator, jnp.float32)}

    def direction(state, grad, step):
        accumulator = state["accumulator"] + jnp.mean(grad**2, axis=-1)
        scale = 1 / (jnp.sqrt(accumulator) + eps)
        return scale[..., None] * grad, {"accumulator": accumulator}

    return _row_optimizer(init, direction, weight_decay)


def adagrad(
    *, eps: float, initial_accumulator: float, weight_decay: float = 0.0
) -> RowOptimizer:
    """Adagrad with one accumulator per element (Duchi, Hazan and Singer, JMLR 2011).

    a ← a + g²,  u = g / (√a + eps),  a starts at `initial_accumulator`. State: D
    numbers per row. optax puts its eps inside the root, and starts at 0.1.
    """

    def init(shape, dim):
        full = jnp.full((*shape, dim), initial_accumulator, jnp.float32)
        return {"accumulator": full}

    def direction(state, grad, step):
        accumulator = state["accumulator"] + grad**2
        return grad / (jnp.sqrt(accumulator) + eps), {"accumulator": accumulator}

    return _row_optimizer(init, direction, weight_decay)


def lazy_adam(
    *, b1: float, b2: float, eps: float, weight_decay: float = 0.0
) -> RowOptimizer:
    """Adam (arXiv 1412.6980) on the touched rows only.

    m ← b1·m + (1 − b1)·g,  v ← b2·v + (1 − b2)·g²,
    u = m / (1 − b1^t) / (√(v / (1 − b2^t)) + eps),  m and v start at 0.

    t counts the steps of the run from 1, not the touches of the row. A row that is
    first touched late is therefore hardly corrected: its |u| is (1 − b1) / √(1 − b2),
    which is 3.2 with the usual decays, instead of 1. State: 2·D numbers per row.
    """

    def init(shape, dim):
        return {name: jnp.zeros((*shape, dim), jnp.float32) for name in ("m", "v")}

    def direction(state, grad, step):
        m = b1 * state["m"] + (1 - b1) * grad
        v = b2 * state["v"] + (1 - b2) * grad**2
        m_hat = m / _one_minus_power(b1, step + 1)
        v_hat = v / _one_minus_power(b2, step + 1)
        return m_hat / (jnp.sqrt(v_hat) + eps), {"m": m, "v": v}

    return _row_optimizer(init, direction, weight_decay)


def from_config(config: SparseOptimizerConfig) -> RowOptimizer:
    """Builds the configured row optimizer (names are checked by the configuration)."""
    build = {
        "rowwise_adagrad": rowwise_adagrad,
        "adagrad": adagrad,
        "lazy_adam": lazy_adam,
        "sgd": sgd,
    }[config.name]
    options = {name: getattr(config, name) for name in ROW_OPTIMIZERS[config.name]}
    return build(**options, weight_decay=config.weight_decay)


def _row_optimizer(init, direction, weight_decay: float) -> RowOptimizer:
    def update(rows, state, grad, learning_rate, step):
        u, state = direction(state, grad, step)
        # One sum, one rounding: 1 − lr·weight_decay itself can round to 1 in float32.
        return rows - learning_rate * (u + weight_decay * rows), state

    return RowOptimizer(init=init, update=update)


def _one_minus_power(b: float, t: jax.Array) -> jax.Array:
    """1 − b^t in float32 without the cancellation that costs b = 0.999 three digits."""
    return -jnp.expm1(t * jnp.float32(math.log(b) if b else -math.inf))
