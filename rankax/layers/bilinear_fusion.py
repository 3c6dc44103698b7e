"""Bilinear fusion of two streams into logits (FinalMLP, arXiv 2304.00902).

    logit_t = b_t + w_{1,t}·o_1 + w_{2,t}·o_2 + Σ_h o_{1,h}ᵀ·W_{h,t}·o_{2,h}

where o_{i,h} is the h-th of H equal pieces of o_i; H heads need 1/H of one head's W.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import linear, operands


class BilinearFusion(nnx.Module):
    """T logits of o_1 [B, d_1] and o_2 [B, d_2]."""

    def __init__(
        self,
        width1: int,
        width2: int,
        *,
        num_heads: int,
        num_tasks: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the linear parts, a bias each, and W [H, d_1/H, d_2/H, T].

        W starts like the weights [d_1·d_2/H, T] of a linear layer on all products.
        """
        self.linear1 = linear(width1, num_tasks, rngs=rngs)
        self.linear2 = linear(width2, num_tasks, rngs=rngs)
        shape = (num_heads, width1 // num_heads, width2 // num_heads, num_tasks)
        std = math.sqrt(2 / (math.prod(shape[:-1]) + num_tasks))
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), shape))
        self.num_heads = num_heads
        self.dtype = dtype

    def __call__(self, o1: jax.Array, o2: jax.Array) -> jax.Array:
        """Maps both streams to logits [B, T] float32."""
        linear_part = self.linear1(o1) + self.linear2(o2)
        o1, o2, kernel = operands(self.dtype, o1, o2, self.kernel[...])
        heads1 = o1.reshape(o1.shape[0], self.num_heads, -1)
        heads2 = o2.reshape(o2.shape[0], self.num_heads, -1)
        half = jnp.einsum(
            "bhi,hijt->bhjt", heads1, kernel, preferred_element_type=jnp.float32
        )
        (half,) = operands(self.dtype, half)
        products = jnp.einsum(
            "bhjt,bhj->bt", half, heads2, preferred_element_type=jnp.float32
        )
        return linear_part + products
