"""One token per numeric field, so that token networks can cross it with ids."""

from flax import nnx
import jax

from rankax.layers.linear import XAVIER_UNIFORM


class NumericTokens(nnx.Module):
    """token_n = x_n · v_n + b_n, with a learned direction and offset per field."""

    def __init__(self, num_fields: int, dim: int, *, rngs: nnx.Rngs):
        """Builds v [N, D] and b [N, D]."""
        self.direction = nnx.Param(XAVIER_UNIFORM(rngs.params(), (num_fields, dim)))
        self.offset = nnx.Param(XAVIER_UNIFORM(rngs.params(), (num_fields, dim)))

    def __call__(self, numeric: jax.Array) -> jax.Array:
        """Maps [B, N] to [B, N, D]."""
        return numeric[..., None] * self.direction[...] + self.offset[...]
