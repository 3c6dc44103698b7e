"""MC-MLCC: multi-channel progressive layered crossing (arXiv 2602.12041).

Every field's row of S·E numbers is S channels of E. Per channel s:
    GC   g = vec(X^s)·W_gc[s]               [H, M]: the weights Θ of H small MLPs
    PLC  Z_0 = X^s, Z_k = Z_{k-1}·Θ_k       the same Θ for all fields of an example,
                                            no bias and no activation in between
and over all channels and heads together:
    LC   Y_f = concat(chosen Z_k, raw X)_f · W_lc[f]
    gate O = squeeze-and-excitation over fields, then the MLP.
Z_k is a homogeneous polynomial of degree k + 1 in X. S = 1 is MLCC.

As options, not of the released models: an activation φ between the dynamic layers,
Z_k = φ(Z_{k-1})·Θ_k for k > 1; ids of unit RMS before GC; several blocks, of which
all but the last have E' = S·E and add their O to their X, so that channels go through.

Published test AUC on the authors' own Criteo split: 0.8034 with S = 4 (their DNN
0.7995, DCN-v2 0.8012); no published figure for the data sets here.
"""

from collections.abc import Mapping
import dataclasses
import itertools
import math

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.layers.linear import XAVIER_UNIFORM, operands
from rankax.layers.mlp import MLP
from rankax.layers.norms import unit_rms
from rankax.layers.numeric_tokens import NumericTokens
from rankax.layers.squeeze_excitation import FieldGate
from rankax.models.base import (
    BackboneConfig,
    Features,
    InputSpec,
    TableSpec,
    option,
    register_backbone,
    tables_for_role,
    unused,
    unused_without_mlp,
)

ACTIVATIONS = {"relu": nnx.relu, "silu": nnx.silu, "tanh": jnp.tanh}


@dataclasses.dataclass(slots=True, kw_only=True)
class MCMLCCConfig(BackboneConfig):
    """Defaults are the authors' Criteo setting with two channels.

    Attributes:
        num_channels: S.
        channel_dim: E; rows are S·E wide.
        num_heads: H, dynamic MLPs per channel.
        dynamic_dims: widths d_1 .. d_K of the dynamic MLPs.
        concat_layers: which of Z_0 (raw input) .. Z_{K-1} the local compressor sees
            beside Z_K.
        compressed_dim: E', width of a field after the local compressor.
        plc_activation: φ, "relu", "silu" or "tanh"; "" = none.
        num_blocks: of GC, PLC, LC and gate.
        token_norm: divide every token of an id or history by its root mean square (no
            parameters), which makes up for the size of its table. The size of a numeric
            token is its value, and stays.
        hidden_dims: the MLP on top.
        use_batch_norm: in the MLP.
        dropout: in the MLP; idle without `hidden_dims`.
        embedding_init_std: 0 = the authors' Xavier-uniform tables, whose products of
            three are near 1e-8 at the start; 0.05–0.25/√E wakes the crosses at once.
    """

    num_channels: int = 2
    channel_dim: int = 16
    num_heads: int = 4
    dynamic_dims: tuple[int, ...] = option((4, 1), is_needed=True)
    concat_layers: tuple[int, ...] = option((0, 1), least=0)
    compressed_dim: int = 8
    plc_activation: str = option("", choices=tuple(ACTIVATIONS))
    num_blocks: int = 1
    token_norm: bool = False
    hidden_dims: tuple[int, ...] = (256, 128, 64, 32)
    use_batch_norm: bool = False
    dropout: float = 0.2
    embedding_init_std: float = 0.0

    def problems(self) -> list[str]:
        """Layers that do not exist, and options of parts that are not there."""
        last = len(self.dynamic_dims) - 1
        problems = [
            f"concat_layers has {layer}; the last dynamic layer is always used, so "
            f"choose from 0 .. {last}"
            for layer in self.concat_layers
            if layer > last
        ]
        if not last:
            why = "stands between dynamic layers, but dynamic_dims has one; add another"
            problems += unused(self, ("plc_activation",), why)
        return problems + unused_without_mlp(self, "use_batch_norm", "dropout")

    def tables(
        self, num_rows: Mapping[str, int], *, num_tasks: int
    ) -> tuple[TableSpec, ...]:
        """One row of S·E per id."""
        return tables_for_role(
            num_rows,
            role="embedding",
            dim=self.num_channels * self.channel_dim,
            init="normal" if self.embedding_init_std else "xavier_uniform",
            init_scale=self.embedding_init_std,
        )


class LayeredCrossing(nnx.Module):
    """GC, PLC and LC: [B, F, S·E] -> [B, F, E'].

    PLC is float32 (products of three are small), GC and LC have operands of `dtype`.
    """

    def __init__(
        self,
        config: MCMLCCConfig,
        num_fields: int,
        *,
        width_out: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds W_gc [S, F, E, H, M] and W_lc [F, C_in, E'], E' = width_out."""
        s, e, h = config.num_channels, config.channel_dim, config.num_heads
        dims = (e, *config.dynamic_dims)
        self.layers = tuple(itertools.pairwise(dims))
        self.has_raw = 0 in config.concat_layers
        inner = sorted(set(config.concat_layers) - {0})
        self.chosen = (*inner, len(self.layers))
        self.activation = ACTIVATIONS.get(config.plc_activation)
        self.dtype = dtype
        num_generated = sum(a * b for a, b in self.layers)  # M
        # Torch's xavier_normal_, applied per channel to [F·E, H·M] and, with the fan
        # rule of a 3-D tensor, to [F, C_in, E'].
        std = math.sqrt(2 / (num_fields * e + h * num_generated))
        shape = (s, num_fields, e, h, num_generated)
        self.global_compressor = nnx.Param(
            std * jax.random.normal(rngs.params(), shape)
        )
        self.width_crossed = s * h * sum(dims[k] for k in self.chosen)
        width = self.width_crossed + s * e * self.has_raw
        std = math.sqrt(2 / (width_out * (width + num_fields)))
        shape = (num_fields, width, width_out)
        self.local_compressor = nnx.Param(std * jax.random.normal(rngs.params(), shape))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens [B, F, S·E] to [B, F, E'].

        Channels, then fields, lead every product: batch-leading einsums take 1.4 times
        as long on CPU.
        """
        batch, num_fields, _ = tokens.shape
        kernel = self.global_compressor[...]
        num_channels, _, channel_dim, num_heads, _ = kernel.shape
        channels = tokens.reshape(batch, num_fields, num_channels, channel_dim)
        channels = channels.transpose(2, 0, 1, 3)  # [S, B, F, E]
        generated = self._product(
            "sbi,sio->sbo",
            channels.reshape(num_channels, batch, -1),
            kernel.reshape(num_channels, num_fields * channel_dim, -1),
        )
        crossed = self._dynamic_layers(
            channels, generated.reshape(num_channels, batch, num_heads, -1)
        )
        crossed = crossed.transpose(2, 1, 0, 3, 4)  # [F, B, S, H, d_ext]
        kernel = self.local_compressor[...]
        out = self._product(
            "fbi,fio->fbo",
            crossed.reshape(num_fields, batch, -1),
            kernel[:, : self.width_crossed],
        )
        if self.has_raw:
            raw = tokens.transpose(1, 0, 2)
            out += self._product("fbi,fio->fbo", raw, kernel[:, self.width_crossed :])
        return out.transpose(1, 0, 2)

    def _product(self, equation: str, x: jax.Array, kernel: jax.Array) -> jax.Array:
        result_dtype = x.dtype
        x, kernel = operands(self.dtype, x, kernel)
        return jnp.einsum(equation, x, kernel, preferred_element_type=result_dtype)

    def _dynamic_layers(self, channels: jax.Array, generated: jax.Array) -> jax.Array:
        """PLC: [S, B, F, E] and Θ [S, B, H, M] -> chosen Z_k, [S, B, F, H, d_ext]."""
        thetas, start = [], 0
        for i, o in self.layers:
            theta = generated[..., start : start + i * o]
            thetas.append(theta.reshape(*theta.shape[:3], i, o))
            start += i * o
        first, *others = thetas
        if self.activation is None:
            # Z_k = X·(Θ_1 ⋯ Θ_k): products of E rows instead of F, and one with X.
            chain = [first]
            for theta in others:
                chain.append(_exact("sbhij,sbhjo->sbhio", chain[-1], theta))
            kernel = jnp.concatenate([chain[k - 1] for k in self.chosen], axis=-1)
            return _exact("sbfi,sbhio->sbfho", channels, kernel)
        layers = [_exact("sbfi,sbhio->sbfho", channels, first)]
        for theta in others:
            z = self.activation(layers[-1])
            layers.append(_exact("sbfhi,sbhio->sbfho", z, theta))
        return jnp.concatenate([layers[k - 1] for k in self.chosen], axis=-1)


def _exact(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """Einsum in float32 on accelerators too, whose default is less."""
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.HIGHEST)


@register_backbone(MCMLCCConfig)
class MCMLCC(nnx.Module):
    """(Layered crossing → field gate) per block → MLP. Numeric fields become tokens."""

    def __init__(self, config: MCMLCCConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds the blocks and the MLP."""
        width = inputs.dims["embedding"]
        num_tokens = inputs.num_fields + inputs.num_numeric
        self.numeric_tokens = (
            NumericTokens(inputs.num_numeric, width, rngs=rngs)
            if inputs.num_numeric
            else None
        )
        widths = [width] * (config.num_blocks - 1) + [config.compressed_dim]
        self.crossings = nnx.List(
            LayeredCrossing(
                config, num_tokens, width_out=width_out, dtype=inputs.dtype, rngs=rngs
            )
            for width_out in widths
        )
        self.gates = nnx.List(FieldGate(num_tokens, rngs=rngs) for _ in widths)
        self.num_normed = inputs.num_fields if config.token_norm else 0
        self.mlp = MLP(
            num_tokens * config.compressed_dim,
            config.hidden_dims,
            use_batch_norm=config.use_batch_norm,
            dropout=config.dropout,
            init=XAVIER_UNIFORM,
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
        for i, (crossing, gate) in enumerate(
            zip(self.crossings, self.gates, strict=True), 1
        ):
            out = gate(crossing(self._normed(tokens)))
            tokens = tokens + out if i < len(self.gates) else out
        return self.mlp(tokens.reshape(tokens.shape[0], -1), rngs=rngs)

    def _normed(self, tokens: jax.Array) -> jax.Array:
        """Takes the size out of the F tokens before the numeric ones."""
        if not self.num_normed:
            return tokens
        ids, numbers = jnp.split(tokens, [self.num_normed], axis=1)
        return jnp.concatenate([unit_rms(ids), numbers], axis=1)
