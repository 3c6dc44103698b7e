"""Pooling over variable-length lists whose padding is zero."""

import jax
import jax.numpy as jnp


def mean_pool(events: jax.Array, lengths: jax.Array) -> jax.Array:
    """Σ_l events_l / max(length, 1): [B, L, A, D], [B] -> [B, A, D]; empty is 0."""
    count = jnp.maximum(lengths, 1).astype(events.dtype)
    return events.sum(axis=1) / count[:, None, None]
