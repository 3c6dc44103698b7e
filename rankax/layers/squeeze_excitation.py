"""Squeeze-and-excitation over fields, as MC-MLCC uses it (arXiv 2602.12041).

q = mean_D(Y),  a = σ(W_2ᵀ·LN(ReLU(W_1ᵀ·q + b_1)) + b_2),  O_f = a_f · Y_f.
The LayerNorm has no parameters and stands after the ReLU (eps 1e-5). R is F // 2 as the
authors have it, but 2 at least: the norm of one number is 0, whatever q is.
"""

from flax import nnx
import jax

from rankax.layers.linear import XAVIER_UNIFORM, linear


class FieldGate(nnx.Module):
    """Scales every field's token by a gate in (0, 1) computed from all fields."""

    def __init__(self, num_fields: int, *, rngs: nnx.Rngs):
        """Builds W_1 [F, R] and W_2 [R, F], R = max(F // 2, 2)."""
        reduced = max(num_fields // 2, 2)
        self.squeeze = linear(num_fields, reduced, init=XAVIER_UNIFORM, rngs=rngs)
        self.norm = nnx.LayerNorm(
            reduced,
            epsilon=1e-5,
            use_bias=False,
            use_scale=False,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.excite = linear(reduced, num_fields, init=XAVIER_UNIFORM, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps [B, F, D] to [B, F, D]."""
        squeezed = self.norm(nnx.relu(self.squeeze(tokens.mean(axis=-1))))
        return tokens * nnx.sigmoid(self.excite(squeezed))[..., None]
