"""Cross networks of DCN-v2 (arXiv 2008.13535): full matrices, or mixtures of low rank.

full      x_{l+1} = x_l + x_0 ⊙ (x_l·W_l + b_l)
low rank  x_{l+1} = x_l + x_0 ⊙ (Σ_e G_e(x_l)·g(g(x_l·V_{l,e})·C_{l,e})·U_{l,e} + b_l)

with g = tanh and G = softmax(x_l·W_G) over the E experts. As in FuxiCTR all layers
share W_G, and the experts of a layer share b_l.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import linear, operands


class CrossNet(nnx.Module):
    """x_{l+1} = x_0 ⊙ (x_l·W_l + b_l) + x_l."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds `num_layers` layers of W_l [width, width]."""
        self.layers = nnx.List(
            linear(width, width, dtype=dtype, rngs=rngs) for _ in range(num_layers)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, width] to [B, width]."""
        x0 = x
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class LowRankCrossNet(nnx.Module):
    """The mixture; the gates are float32, one expert has none."""

    def __init__(
        self,
        width: int,
        num_layers: int,
        *,
        low_rank: int,
        num_experts: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the layers.

        Args:
            width: n.
            num_layers: layers.
            low_rank: r, width of an expert.
            num_experts: E.
            rngs: initialisation randomness.
            dtype: of the products' operands; None = as they come.
        """
        self.gate = (
            linear(width, num_experts, use_bias=False, rngs=rngs)
            if num_experts > 1
            else None
        )
        shape = (width, low_rank, num_experts)
        self.layers = nnx.List(
            LowRankCross(*shape, rngs=rngs, dtype=dtype) for _ in range(num_layers)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, width] to [B, width]."""
        x0 = x
        for layer in self.layers:
            gates = None if self.gate is None else nnx.softmax(self.gate(x), axis=-1)
            x = x0 * layer(x, gates) + x
        return x


class LowRankCross(nnx.Module):
    """What one layer multiplies x_0 with."""

    def __init__(
        self,
        width: int,
        low_rank: int,
        num_experts: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None,
    ):
        """Builds V [E, n, r], C [E, r, r] and U [E, r, n], expert by expert, and b."""
        init = jax.nn.initializers.variance_scaling(
            1.0, "fan_avg", "normal", batch_axis=0
        )
        shape = (num_experts, width, low_rank)
        self.down = nnx.Param(init(rngs.params(), shape))
        self.middle = nnx.Param(init(rngs.params(), (shape[0], low_rank, low_rank)))
        self.up = nnx.Param(init(rngs.params(), (shape[0], low_rank, width)))
        self.bias = nnx.Param(jnp.zeros(width))
        self.dtype = dtype

    def __call__(self, x: jax.Array, gates: jax.Array | None) -> jax.Array:
        """Maps x [B, n] and gates [B, E] (None = 1) to [B, n]."""
        hidden = jnp.tanh(self._product("bn,enr->ber", x, self.down))
        hidden = jnp.tanh(self._product("ber,ers->bes", hidden, self.middle))
        if gates is not None:  # before U, where a row is r wide and not n
            hidden *= gates[..., None]
        return self._product("ber,ern->bn", hidden, self.up) + self.bias[...]

    def _product(self, spec: str, x: jax.Array, weights: nnx.Param) -> jax.Array:
        x, kernel = operands(self.dtype, x, weights[...])
        return jnp.einsum(spec, x, kernel, preferred_element_type=jnp.float32)
