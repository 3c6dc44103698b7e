"""Cross network of DCN-v2 with full matrices (arXiv 2008.13535, eq. 1)."""

from flax import nnx
import jax

from rankax.layers.linear import linear


class CrossNet(nnx.Module):
    """x_{l+1} = x_0 ⊙ (x_l·W_l + b_l) + x_l."""

    def __init__(self, width: int, num_layers: int, *, rngs: nnx.Rngs):
        """Builds `num_layers` layers of W_l [width, width]."""
        self.layers = nnx.List(
            linear(width, width, rngs=rngs) for _ in range(num_layers)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, width] to [B, width]."""
        x0 = x
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x
