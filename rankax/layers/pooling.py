"""Pooling over variable-length lists whose padding is zero."""

import jax
import jax.numpy as jnp


def mean_pool(events: jax.Array, lengths: jax.Array) -> jax.Array:
    """Σ_l events_l / max(length, 1): [B, L, A, D], [B] -> [B, A, D]; empty is 0."""
    count = jnp.maximum(lengths, 1).astype(events.dtype)
    return events.sum(axis=1) / count[:, None, None]


def weighted_sum(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_l w_l · rows_l: [B, L, D], [B, L] -> [B, 1, D]; padding weighs 0."""
    return (rows * weights[:, :, None]).sum(axis=1, keepdims=True)


def weighted_mean(rows: jax.Array, weights: jax.Array) -> jax.Array:
    """Σ_l w_l · rows_l / Σ_l w_l with w ≥ 0; 0 where all of w is 0."""
    total = weights.sum(axis=1, keepdims=True)
    return weighted_sum(rows, weights / jnp.where(total > 0, total, 1))
