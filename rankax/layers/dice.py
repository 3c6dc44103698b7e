"""Dice: a PReLU whose kink moves with the data (arXiv 1706.06978, section 5.3).

    f(s) = p·s + (1 − p)·α·s,   p = σ((s − mean) / √(variance + ε)),   α learned

The paper takes mean and variance over the batch. Here they are taken over the channels
of one example (a layer norm without gain and bias): nothing has to be exchanged
between devices, training and serving compute the same, and no example depends on its
neighbours.
"""

from flax import nnx
import jax
import jax.numpy as jnp

EPSILON = 1e-8  # the paper's


class Dice(nnx.Module):
    """Dice in its layer-norm form; α starts at 0."""

    def __init__(self, width: int):
        """Builds α [width]."""
        self.alpha = nnx.Param(jnp.zeros(width))

    def __call__(self, s: jax.Array) -> jax.Array:
        """Maps [..., width] to the same shape, float32 whatever s is of."""
        s = s.astype(jnp.float32)
        centred = s - s.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        p = jax.nn.sigmoid(centred * jax.lax.rsqrt(variance + EPSILON))
        return s * (p + (1 - p) * self.alpha[...])
