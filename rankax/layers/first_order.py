"""The linear term that wide-and-deep models add to their logits: LR without bias.

logit_t = Σ_f w_t[id_f] + Σ_n x_n·v_{n,t}; the bias is that of the part it is added to.
"""

from flax import nnx
import jax
import jax.numpy as jnp


class FirstOrder(nnx.Module):
    """Adds up the ids' weights, which are rows of role "weight", and the numbers'."""

    def __init__(self, num_numeric: int, num_tasks: int):
        """Builds v [N, T] = 0."""
        self.numeric = nnx.Param(jnp.zeros((num_numeric, num_tasks)))

    def __call__(self, weights: jax.Array, numeric: jax.Array) -> jax.Array:
        """Maps weights [B, F, T] and numbers [B, N] to logits [B, T]."""
        return weights.sum(axis=1) + numeric @ self.numeric[...]
