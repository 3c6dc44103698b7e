"""Compressed interaction network of xDeepFM (arXiv 1803.05170).

    X^k_{h,d} = Σ_{i,j} W^k_{i,j,h} · X^0_{i,d} · X^{k-1}_{j,d} + b^k_h

with H_k feature maps in layer k: products of fields, each of the D dims by itself. No
activation and no split of the maps between output and next layer, as in FuxiCTR.
"""

from collections.abc import Sequence

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import operands


class CompressedInteraction(nnx.Module):
    """K layers; returns the sums over D of all their maps."""

    def __init__(
        self,
        num_fields: int,
        layer_dims: Sequence[int],
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds W^k [F, H_{k-1}, H_k], Xavier-normal as a matrix [F·H_{k-1}, H_k]."""
        init = jax.nn.initializers.variance_scaling(
            1.0, "fan_avg", "normal", in_axis=(0, 1), out_axis=2
        )
        previous = (num_fields, *layer_dims)
        self.kernels = nnx.List(
            nnx.Param(init(rngs.params(), (num_fields, width, num_maps)))
            for width, num_maps in zip(previous, layer_dims, strict=False)
        )
        self.biases = nnx.List(nnx.Param(jnp.zeros(width)) for width in layer_dims)
        self.dtype = dtype
        self.width = sum(layer_dims)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps [B, F, D] to [B, H_1 + .. + H_K] float32."""
        batch_size, num_fields, dim = tokens.shape
        x0 = tokens.swapaxes(0, 1).reshape(num_fields, -1, 1)  # [F, B·D, 1]
        x = tokens.swapaxes(1, 2).reshape(-1, num_fields)  # [B·D, H]
        sums = []
        for kernel, bias in zip(self.kernels, self.biases, strict=True):
            x = self._layer(x0, x, kernel[...]) + bias[...]
            sums.append(x.reshape(batch_size, dim, -1).sum(axis=1))
        return jnp.concatenate(sums, axis=-1)

    def _layer(self, x0: jax.Array, x: jax.Array, kernel: jax.Array) -> jax.Array:
        # One field after the other: the products of all pairs, [B·D, F·H], which an
        # einsum of the three would write to memory in some order, never exist. Nor does
        # the backward pass keep them: a product of two is cheaper made again than read.
        def add_field(
            total: jax.Array, field: tuple[jax.Array, jax.Array]
        ) -> tuple[jax.Array, None]:
            x0_i, kernel_i = field
            pairs, kernel_i = operands(self.dtype, x0_i * x, kernel_i)
            product = jnp.matmul(pairs, kernel_i, preferred_element_type=jnp.float32)
            return total + product, None

        start = jnp.zeros((x.shape[0], kernel.shape[-1]))
        step = jax.checkpoint(add_field, prevent_cse=False)  # a loop has no CSE
        return jax.lax.scan(step, start, (x0, kernel))[0]
