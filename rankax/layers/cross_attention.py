"""Attention of a few queries over a set of tokens, some of which may be padding.

With k_i = x_i·W_K + b_K and v_i = x_i·W_V + b_V of tokens x_i, H heads of width W/H:

    read = Σ_i w_i·v_i,  w = softmax_i(q·k_i / √(W/H))    for each head, side by side

Where tokens outnumber the queries of all heads, keys and values are never made:

    q·k_i = (q·W_Kᵀ)·x_i + q·b_K     whose last term is the same for all i and cancels
    read = (Σ_i w_i·x_i)·W_V + b_V
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import operands


def attend(
    queries: jax.Array,
    tokens: jax.Array,
    key: nnx.Linear,
    value: nnx.Linear,
    *,
    num_heads: int = 1,
    is_valid: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Reads tokens by softmax attention.

    Args:
        queries: [B, Q, W], projected.
        tokens: [B, K, D].
        key: W_K [D, W] and its bias, if it has one.
        value: W_V [D, W], likewise.
        num_heads: H, divides W.
        is_valid: [B, K]; other tokens have no weight at all, and an example without any
            valid token gets zeros. None = all are valid.
        dtype: of the products' operands; None = as they come.

    Returns:
        [B, Q, W] float32.
    """
    options = {
        "scale": 1 / math.sqrt(queries.shape[-1] // num_heads),
        "is_valid": is_valid,
        "dtype": dtype,
    }

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], num_heads, -1)

    def heads(x: jax.Array) -> jax.Array:
        return split(x).swapaxes(1, 2)

    if tokens.shape[1] <= queries.shape[1] * num_heads:
        read = _weighted_sum(
            heads(queries), heads(key(tokens)), heads(value(tokens)), **options
        )
        return read.swapaxes(1, 2).reshape(queries.shape)

    x = tokens[:, None]  # as one head, of which the queries of all heads are queries
    q, matrix = operands(dtype, queries.reshape(-1, queries.shape[-1]), key.kernel[...])
    q = jnp.einsum("nhw,dhw->nhd", split(q), split(matrix))
    read = _weighted_sum(q.reshape(x.shape[0], 1, -1, x.shape[-1]), x, x, **options)
    read, matrix = operands(dtype, read.reshape(q.shape), value.kernel[...])
    read = jnp.einsum(
        "nhd,dhw->nhw", read, split(matrix), preferred_element_type=jnp.float32
    ).reshape(queries.shape)
    if value.bias is None:
        return read
    has_any = True if is_valid is None else is_valid.any(axis=1)[:, None, None]
    return read + jnp.where(has_any, value.bias[...], 0)


def _weighted_sum(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    is_valid: jax.Array | None,
    dtype: DTypeLike | None,
) -> jax.Array:
    """Softmax attention of [B, H, Q, ·] over [B, H, K, ·], in float32."""
    q, k = operands(dtype, q, k)
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores * scale
    if is_valid is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        mask = is_valid[:, None, None]
        # Finite, so that a row without a valid key is no 0 / 0; its weights go below.
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        weights = jnp.where(mask, weights, 0)
    weights, v = operands(dtype, weights, v)
    # Not einsum, which would exchange the operands and so transpose both.
    return jnp.matmul(weights, v, preferred_element_type=jnp.float32)
