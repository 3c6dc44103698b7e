"""Context gate on the flat input (FinalMLP, arXiv 2304.00902).

gated = x ⊙ 2σ(MLP(context)): factors in (0, 2), near 1 at the start. The context is
embeddings of some fields, or one learned vector, the same for every example.
"""

from collections.abc import Sequence

from flax import nnx
import jax
from jax.typing import DTypeLike

from rankax.layers.linear import linear
from rankax.layers.mlp import MLP


class FeatureGate(nnx.Module):
    """Scales each of the input's numbers by a gate computed from a context."""

    def __init__(
        self,
        width_context: int,
        width: int,
        hidden_dims: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the MLP: `hidden_dims` with ReLU, then a linear layer to `width`."""
        self.hidden = MLP(width_context, hidden_dims, dtype=dtype, rngs=rngs)
        self.output = linear(self.hidden.width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps x [B, width] and context [B or 1, width_context] to [B, width]."""
        logits = self.output(self.hidden(context)).astype(x.dtype)
        return x * (2 * nnx.sigmoid(logits))
