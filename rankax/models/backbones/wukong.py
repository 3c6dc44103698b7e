"""Wukong: stacked factorization machines (arXiv 2403.02545).

Per layer, on n tokens X [n, D]:
    FMB   MLP(LN(flatten(X·(Xᵀ·Y))))      [n_F, D]: products of all pairs, compressed
                                          by Y [n, k]; every layer ends in a ReLU
    LCB   W_Lᵀ·X                          [n_L, D]: the tokens mixed linearly
    X'    LN(concat(FMB, LCB) + X)        X through W_res [n, n_F + n_L] where the
                                          number of tokens changes
l layers multiply up to 2^l fields. An MLP on the last tokens gives the representation.
No published figure of BARS; the paper's Frappe test AUC: 0.9868.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.layers.linear import XAVIER_NORMAL, operands
from rankax.layers.mlp import MLP
from rankax.layers.norms import layer_norm
from rankax.layers.numeric_tokens import NumericTokens
from rankax.models.base import (
    EmbeddingBackboneConfig,
    Features,
    InputSpec,
    register_backbone,
    unused_without_mlp,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class WukongConfig(EmbeddingBackboneConfig):
    """The paper scales all of l, n_F, n_L, k and the MLPs together.

    Attributes:
        num_layers: l.
        num_fmb_tokens: n_F, tokens that the factorization machine block returns.
        num_lcb_tokens: n_L, tokens that the linear compression block returns.
        rank: k, columns of Y.
        fmb_hidden_dims: hidden widths of the block's MLP, before its output layer.
        hidden_dims: the MLP on top.
        use_batch_norm: in the MLP on top.
        dropout: in the MLP on top.
    """

    num_layers: int = 2
    num_fmb_tokens: int = 16
    num_lcb_tokens: int = 16
    rank: int = 8
    fmb_hidden_dims: tuple[int, ...] = (128,)
    hidden_dims: tuple[int, ...] = (256, 128, 64)
    use_batch_norm: bool = False
    dropout: float = 0.0

    def problems(self) -> list[str]:
        """No MLP on top, no batch norm and dropout."""
        return unused_without_mlp(self, "use_batch_norm", "dropout")


class WukongLayer(nnx.Module):
    """One layer; the tokens are a float32 stream."""

    def __init__(
        self,
        config: WukongConfig,
        num_tokens: int,
        inputs: InputSpec,
        *,
        rngs: nnx.Rngs,
    ):
        """Builds the layer; Y, W_L and W_res are Xavier-normal like the rest.

        FuxiCTR's N(0, 1) would make tokens √n times as large as they came.
        """
        dim = inputs.dims["embedding"]
        width = num_tokens * config.rank
        num_out = config.num_fmb_tokens + config.num_lcb_tokens

        def matrix(num_columns: int) -> nnx.Param:
            shape = (num_tokens, num_columns)
            return nnx.Param(XAVIER_NORMAL(rngs.params(), shape))

        self.rank_weights = matrix(config.rank)
        self.compression = matrix(config.num_lcb_tokens)
        self.residual = None if num_tokens == num_out else matrix(num_out)
        self.product_norm = layer_norm(width, rngs=rngs)
        self.mlp = MLP(
            width,
            (*config.fmb_hidden_dims, config.num_fmb_tokens * dim),
            dtype=inputs.dtype,
            rngs=rngs,
        )
        self.norm = layer_norm(dim, rngs=rngs)
        self.dtype = inputs.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens [B, n, D] to [B, n_F + n_L, D]."""
        (x_in,) = operands(self.dtype, x)
        compact = self._mix(x, self.rank_weights).astype(x_in.dtype)  # [B, D, k]
        products = jnp.matmul(x_in, compact, preferred_element_type=jnp.float32)
        products = self.product_norm(products.reshape(x.shape[0], -1))
        factorized = self.mlp(products).reshape(x.shape[0], -1, x.shape[-1])
        compressed = self._mix(x, self.compression).swapaxes(1, 2)
        out = jnp.concatenate([factorized, compressed], axis=1)
        if self.residual is not None:
            x = self._mix(x, self.residual).swapaxes(1, 2)
        return self.norm(out + x)

    def _mix(self, x: jax.Array, weights: nnx.Param) -> jax.Array:
        """Xᵀ·W, [B, D, columns of W] float32."""
        x, kernel = operands(self.dtype, x, weights[...])
        return jnp.einsum("bnd,nm->bdm", x, kernel, preferred_element_type=jnp.float32)


@register_backbone(WukongConfig)
class Wukong(nnx.Module):
    """Layers, then an MLP on all tokens side by side. Numeric fields become tokens."""

    def __init__(self, config: WukongConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds the layers and the MLP on top."""
        dim = inputs.dims["embedding"]
        self.numeric_tokens = (
            NumericTokens(inputs.num_numeric, dim, rngs=rngs)
            if inputs.num_numeric
            else None
        )
        num_tokens = inputs.num_fields + inputs.num_numeric
        layers = []
        for _ in range(config.num_layers):
            layers.append(WukongLayer(config, num_tokens, inputs, rngs=rngs))
            num_tokens = config.num_fmb_tokens + config.num_lcb_tokens
        self.layers = nnx.List(layers)
        self.mlp = MLP(
            num_tokens * dim,
            config.hidden_dims,
            use_batch_norm=config.use_batch_norm,
            dropout=config.dropout,
            dtype=inputs.dtype,
            rngs=rngs,
        )

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to a representation [B, hidden_dims[-1]]."""
        tokens = features.embedded["embedding"]
        if self.numeric_tokens is not None:
            numeric = self.numeric_tokens(features.numeric)
            tokens = jnp.concatenate([tokens, numeric], axis=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.mlp(tokens.reshape(tokens.shape[0], -1), rngs=rngs)
