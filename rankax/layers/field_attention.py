"""Self-attention among the fields of an example (AutoInt, arXiv 1810.11921).

    Q, K, V = X·W_Q, X·W_K, X·W_V            no biases, H heads of A / H each
    O = softmax(Q·Kᵀ [/ √(A/H)])·V           heads side by side again
    out = ReLU(LN?(O + X·W_res))             W_res only where X is not A wide

The paper does not scale the products; residual, scale and norm are options.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import linear, operands
from rankax.layers.norms import layer_norm


class FieldAttention(nnx.Module):
    """One interacting layer. Softmax, sum and norm are float32 whatever the dtype."""

    def __init__(
        self,
        width_in: int,
        attention_dim: int,
        *,
        num_heads: int,
        rngs: nnx.Rngs,
        use_residual: bool = True,
        use_scale: bool = False,
        use_layer_norm: bool = False,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
    ):
        """Builds the projections [D, A].

        Args:
            width_in: D.
            attention_dim: A, of all heads together.
            num_heads: H, divides A.
            rngs: initialisation randomness.
            use_residual: add X, projected where widths differ.
            use_scale: divide the products by √(A/H).
            use_layer_norm: normalise before the ReLU (eps 1e-5).
            dropout: rate on the attention weights, in [0, 1).
            dtype: of the products' operands; None = as they come.
        """

        def projection() -> nnx.Linear:
            return linear(
                width_in, attention_dim, use_bias=False, dtype=dtype, rngs=rngs
            )

        self.query, self.key, self.value = projection(), projection(), projection()
        self.use_residual = use_residual
        is_projected = use_residual and width_in != attention_dim
        self.residual = projection() if is_projected else None
        self.norm = layer_norm(attention_dim, rngs=rngs) if use_layer_norm else None
        self.dropout = nnx.Dropout(dropout)
        self.num_heads = num_heads
        self.scale = 1 / math.sqrt(attention_dim // num_heads) if use_scale else 1.0
        self.dtype = dtype

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [B, F, D] to [B, F, A] float32."""

        def heads(projected: jax.Array) -> jax.Array:
            return projected.reshape(*x.shape[:2], self.num_heads, -1)

        scores = jnp.einsum(
            "bqhd,bkhd->bhqk",
            heads(self.query(x)),
            heads(self.key(x)),
            preferred_element_type=jnp.float32,
        )
        weights = jax.nn.softmax(scores * self.scale, axis=-1)
        weights = self.dropout(weights, rngs=rngs)
        weights, values = operands(self.dtype, weights, heads(self.value(x)))
        out = jnp.einsum(
            "bhqk,bkhd->bqhd", weights, values, preferred_element_type=jnp.float32
        ).reshape(*x.shape[:2], -1)
        if self.use_residual:
            out += x if self.residual is None else self.residual(x)
        if self.norm is not None:
            out = self.norm(out)
        return nnx.relu(out)
