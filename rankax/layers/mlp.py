"""Multi-layer perceptron: (Linear → BatchNorm? → ReLU → Dropout) for every width."""

from collections.abc import Sequence

from flax import nnx
import jax
from jax.typing import DTypeLike

from rankax.layers.linear import XAVIER_NORMAL, linear


class MLP(nnx.Module):
    """Hidden layers only: the last width is the output, after its ReLU."""

    def __init__(
        self,
        width_in: int,
        hidden_dims: Sequence[int],
        *,
        rngs: nnx.Rngs,
        use_batch_norm: bool = False,
        dropout: float = 0.0,
        init: jax.nn.initializers.Initializer = XAVIER_NORMAL,
        dtype: DTypeLike | None = None,
    ):
        """Builds the layers.

        Args:
            width_in: input width.
            hidden_dims: width of each layer.
            rngs: initialisation randomness.
            use_batch_norm: normalise before the activation (running average 0.9,
                epsilon 1e-5, PyTorch's defaults). Examples of weight 0 count.
            dropout: rate after the activation, in [0, 1).
            init: kernel initialiser.
            dtype: of the products' operands and results; None = as they come.
        """
        widths = (width_in, *hidden_dims)
        self.linears = nnx.List(
            linear(a, b, rngs=rngs, init=init, dtype=dtype)
            for a, b in zip(widths, hidden_dims, strict=False)
        )
        self.norms = nnx.List(
            nnx.BatchNorm(
                width,
                momentum=0.9,
                epsilon=1e-5,
                use_fast_variance=False,  # E[x²] − E[x]² of large x is noise
                rngs=rngs,
            )
            for width in (hidden_dims if use_batch_norm else ())
        )
        self.dropout = nnx.Dropout(dropout)
        self.width = widths[-1]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [..., width_in] to [..., hidden_dims[-1]]."""
        for i, layer in enumerate(self.linears):
            x = layer(x)
            if self.norms:
                x = self.norms[i](x)
            x = self.dropout(nnx.relu(x), rngs=rngs)
        return x
