"""RankMixer: token mixing and per-token feed-forward networks (arXiv 2507.15551).

x_i = Proj_i(slice i of T equal slices of all embeddings side by side), then L blocks
    S  = LN(mix(X) + X)          mix: row h holds slice h of every token, H = T
    X' = LN(PFFN(S) + S)         PFFN_t = W_2^t·GELU(W_1^t·s_t + b_1^t) + b_2^t
and the mean over tokens. The blocks have 2·k·L·T·D² weights beside biases and norms.
No published figure for the data sets here.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.config.base import ConfigError
from rankax.layers.norms import layer_norm
from rankax.layers.per_token import PerTokenFFN, PerTokenLinear
from rankax.layers.semantic_groups import (
    SemanticGroups,
    automatic_num_tokens,
    flat_inputs,
)
from rankax.layers.token_mixing import mix
from rankax.models.base import (
    EmbeddingBackboneConfig,
    Features,
    InputSpec,
    register_backbone,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class RankMixerConfig(EmbeddingBackboneConfig):
    """Defaults suit public data sets; the paper's are D = 768, T = 16, L = 2.

    Attributes:
        token_dim: D, a multiple of T.
        num_tokens: T; 0 = the largest of 16, 8, 4, 2 that divides D, is not above the
            number of inputs, and leaves no slice empty.
        groups: the order in which inputs stand side by side before they are sliced:
            semantic groups of names of fields that hold every input once; () = the
            card's order.
        num_blocks: L.
        expansion: k, hidden width of the feed-forward networks / D.
        dropout: of tokens and of the networks' results; not in the paper.
    """

    token_dim: int = 64
    num_tokens: int = 0
    groups: tuple[tuple[str, ...], ...] = ()
    num_blocks: int = 2
    expansion: int = 2
    dropout: float = 0.0

    def problems(self) -> list[str]:
        """A width that cannot be cut into several tokens."""
        if self.num_tokens or self.token_dim % 2 == 0:
            return []
        return [
            f"token_dim = {self.token_dim} is odd, and would be one token, which mixes "
            "with nothing; choose a multiple of 16, or set num_tokens"
        ]


class SliceTokenizer(nnx.Module):
    """All inputs in semantic order -> T equal slices, the last one padded -> tokens."""

    def __init__(self, config: RankMixerConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds one projection per slice."""
        pieces = flat_inputs(inputs.tokens, inputs.dims["embedding"], inputs.numeric)
        self.groups = (
            SemanticGroups.named(pieces, config.groups)
            if config.groups
            else SemanticGroups.automatic(pieces, 1)
        )
        width, dim = inputs.flat_dim(), config.token_dim

        def is_fed(num_tokens: int) -> bool:
            before_last = (num_tokens - 1) * -(-width // num_tokens)
            return num_tokens <= len(pieces) and before_last < width

        automatic = automatic_num_tokens(dim, is_fed)
        self.num_tokens = config.num_tokens or automatic
        if dim % self.num_tokens or not is_fed(self.num_tokens):
            raise ConfigError(
                f"model.backbone.num_tokens = {self.num_tokens} must divide token_dim "
                f"= {dim}, and {len(pieces)} inputs of {width} numbers in all must "
                f"fill as many slices; use {automatic}, or 0 to choose it so"
            )
        slice_width = -(-width // self.num_tokens)
        self.padding = self.num_tokens * slice_width - width
        self.projections = PerTokenLinear(
            self.num_tokens,
            slice_width,
            dim,
            use_bias=True,
            dtype=inputs.dtype,
            rngs=rngs,
        )

    def __call__(self, flat: jax.Array) -> jax.Array:
        """Maps [B, F·D_e + N] to tokens [B, T, D] float32."""
        flat = jnp.concatenate(self.groups.split(flat), axis=1)
        flat = jnp.pad(flat, ((0, 0), (0, self.padding)))
        slices = flat.reshape(flat.shape[0], self.num_tokens, -1).swapaxes(0, 1)
        return self.projections(slices, result_dtype=jnp.float32).swapaxes(0, 1)


class RankMixerBlock(nnx.Module):
    """Token mixing and per-token FFN, each with a residual and a norm after it."""

    def __init__(
        self,
        config: RankMixerConfig,
        inputs: InputSpec,
        *,
        num_tokens: int,
        rngs: nnx.Rngs,
    ):
        """Builds T feed-forward networks and two norms over D."""
        dim = config.token_dim
        self.ffn = PerTokenFFN(
            num_tokens, dim, config.expansion * dim, dtype=inputs.dtype, rngs=rngs
        )
        self.mix_norm, self.ffn_norm = (layer_norm(dim, rngs=rngs) for _ in range(2))
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Maps [B, T, D] to [B, T, D]."""
        s = self.mix_norm(mix(x, x.shape[1]) + x)
        return self.ffn_norm(self.dropout(self.ffn(s), rngs=rngs) + s)


@register_backbone(RankMixerConfig)
class RankMixer(nnx.Module):
    """Tokenizer, blocks, mean over tokens."""

    def __init__(self, config: RankMixerConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds tokenizer and blocks."""
        self.tokenizer = SliceTokenizer(config, inputs, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        num_tokens = self.tokenizer.num_tokens
        self.blocks = nnx.List(
            RankMixerBlock(config, inputs, num_tokens=num_tokens, rngs=rngs)
            for _ in range(config.num_blocks)
        )

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to a representation [B, D]."""
        x = self.dropout(self.tokenizer(features.flatten()), rngs=rngs)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return x.mean(axis=1)
