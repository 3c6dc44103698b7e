"""Attention of a few queries over a set of tokens, some of which may be padding."""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import operands


def attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    num_heads: int = 1,
    is_valid: jax.Array | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Returns softmax(q·kᵀ / √(W/H))·v for each of H heads, side by side.

    Args:
        queries: [B, Q, W], projected.
        keys: [B, K, W], projected.
        values: [B, K, W], projected.
        num_heads: H, divides W.
        is_valid: [B, K]; other keys have no weight at all, and an example without any
            valid key gets zeros. None = all are valid.
        dtype: of the products' operands; None = as they come.

    Returns:
        [B, Q, W] float32.
    """

    def heads(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], num_heads, -1)

    q, k = operands(dtype, heads(queries), heads(keys))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])
    if is_valid is None:
        weights = jax.nn.softmax(scores, axis=-1)
    else:
        mask = is_valid[:, None, None]
        # Finite, so that a row without a valid key is no 0 / 0; its weights go below.
        weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
        weights = jnp.where(mask, weights, 0)
    weights, v = operands(dtype, weights, heads(values))
    out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, preferred_element_type=jnp.float32)
    return out.reshape(queries.shape)
