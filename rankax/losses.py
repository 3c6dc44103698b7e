"""Losses of binary tasks."""

import jax
import jax.numpy as jnp
import optax


def binary_log_loss(
    logits: jax.Array, labels: jax.Array, weight: jax.Array
) -> jax.Array:
    """Weighted mean log loss of each task.

    −Σ_b w_b·[y·log σ(z) + (1 − y)·log σ(−z)] / Σ_b w_b, computed from logits, so that
    it stays finite and exact at any magnitude.

    Args:
        logits: [B, T].
        labels: [B, T], 0 or 1.
        weight: [B]; 0 leaves an example out.

    Returns:
        [T] float32; 0 if all weights are 0.
    """
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels)
    total = jnp.maximum(jnp.sum(weight), jnp.finfo(jnp.float32).tiny)
    return jnp.sum(losses * weight[:, None], axis=0) / total
