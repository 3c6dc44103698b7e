"""TokenMixer-Large: mix, revert, per-token SwiGLU (arXiv 2602.06563).

Tokens: one per semantic group, X_i = MLP_i(group i), and before them one global token
MLP_g(all groups side by side). Then L blocks with RMSNorm before each stage:
    X_1 = X + revert(f_m(mix(RMS(X))))          [B, H, T·D/H], H mixed tokens
    X_2 = X_1 + f_r(RMS(X_1))                   [B, T, D]
f_m and f_r are per-token SwiGLUs, or sparse mixtures of experts per token. Dense blocks
have 3·n·T·D²·(1 + T/H) weights beside the norms. Output: mean over tokens of RMS(X_L).
Published figures are on the authors' own logs only (AUC +0.94 % over a DLRM-MLP of the
same 500M parameters); no published figure for the data sets here.

Where the paper's text and figure disagree the figure is the default: `residual`
"equation" is its eq. 12 and 16, where the second stage adds X instead of X_1:
    h = mix(X),  h' = h + f_m(RMS(h)),  r = revert(h'),  X_2 = X + f_r(RMS(r))

Token Parallel: with mesh.model > 1 the weights lie where their token is, and a forward
pass has 2·L + 2 all-to-alls, or 2·L + 1 with the figure's residual and `norm_site`
"mixed", and no other exchange. In training an auxiliary head costs one or two more.
"""

from collections.abc import Iterable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.config.base import ConfigError
from rankax.layers.per_token import PerTokenSwiGLU
from rankax.layers.semantic_groups import (
    GroupTokenizer,
    SemanticGroups,
    automatic_num_tokens,
    flat_inputs,
)
from rankax.layers.sparse_pertoken_moe import EXECUTIONS, Routing, SparsePertokenMoE
from rankax.layers.token_mixing import mix, revert
from rankax.models.base import (
    EmbeddingBackboneConfig,
    Features,
    InputSpec,
    Representation,
    option,
    register_backbone,
    unused,
)
from rankax.parallel import rules

EXPERT_OPTIONS = (
    "num_active_experts",
    "expert_scale",
    "balance_loss_weight",
    "router_z_loss_weight",
    "execution",
)


@dataclasses.dataclass(slots=True, kw_only=True)
class TokenMixerLargeConfig(EmbeddingBackboneConfig):
    """Defaults suit public data sets. Larger: (T, D, L, n) = (16, 512, 2, 2) is 101M.

    Attributes:
        token_dim: D, a multiple of H.
        num_tokens: T with the global token; 0 = the largest of 16, 8, 4, 2 that divides
            D and has an input for every group (one more than `groups`, if given).
        groups: semantic groups, each of names of fields, that hold every input once;
            () = neighbours in the card's order, nearly equal in width.
        tokenizer_layers: 2, with SiLU between, or 1.
        num_heads: H, mixed tokens; 0 = T.
        num_blocks: L.
        expansion: n, hidden width / width of both stages.
        residual: "figure" or "equation"; see the module.
        norm_site: of the first stage: "token" (over D, before the mix) or "mixed" (over
            T·D/H, after it; one exchange less under Token Parallel).
        residual_interval: s: after every s-th block but the last, the stream of s
            blocks before is added; 0 = off. The paper's 2 or 3 is for L ≥ 4.
        residual_interval_mode: "sum", or "mean" of both.
        auxiliary_weight: λ of the log loss of heads on the streams after every s-th
            block but the last; 0 = no heads. The paper's value is unknown; 0.1.
        down_init_scale: multiplies the initial bound of down-projections.
        pool: "mean" over tokens, or the "global_token" alone.
        dropout: of tokens, and of what each stage adds to the stream; not in the paper.
        num_experts: E experts per position in both stages, the shared one included,
            of n·width/E hidden units each; 0 = dense.
        num_active_experts: k of them, the shared one included; at least 3.
        expert_scale: α; 0 = E/k.
        balance_loss_weight: of `Routing.balance_loss`, summed over stages; the paper
            needs none at k/E = 1/2, and 0.01 is usual below.
        router_z_loss_weight: of `Routing.z_loss`, likewise; 0.001 is usual.
        execution: of experts: "ragged", "dense", or "auto": ragged but on CPU.
    """

    token_dim: int = 64
    num_tokens: int = 0
    groups: tuple[tuple[str, ...], ...] = ()
    tokenizer_layers: int = option(2, choices=(1, 2))
    num_heads: int = 0
    num_blocks: int = 2
    expansion: int = 2
    residual: str = option("figure", choices=("figure", "equation"))
    norm_site: str = option("token", choices=("token", "mixed"))
    residual_interval: int = 0
    residual_interval_mode: str = option("sum", choices=("sum", "mean"))
    auxiliary_weight: float = 0.0
    down_init_scale: float = 0.01
    pool: str = option("mean", choices=("mean", "global_token"))
    dropout: float = 0.0
    num_experts: int = 0
    num_active_experts: int = 0
    expert_scale: float = 0.0
    balance_loss_weight: float = 0.0
    router_z_loss_weight: float = 0.0
    execution: str = option("auto", choices=EXECUTIONS)

    def problems(self) -> list[str]:
        """Options of parts that are not there, and what does not fit."""
        problems = []
        if not self.num_experts:
            problems += unused(self, EXPERT_OPTIONS, "is of experts; set num_experts")
        elif not 3 <= self.num_active_experts <= self.num_experts:
            problems.append(
                f"num_active_experts = {self.num_active_experts} must be from 3 to "
                f"num_experts = {self.num_experts}: one is shared, and the gate of one "
                "routed expert alone would be constant 1, so that its router never "
                "learns; 4 of 8 is usual"
            )
        if self.residual == "equation" and self.norm_site == "token":
            problems.append(
                "residual = 'equation' normalises mixed tokens; set norm_site = 'mixed'"
            )
        if not self.residual_interval:
            names = ("residual_interval_mode", "auxiliary_weight")
            why = "acts after every residual_interval blocks; set that too"
            problems += unused(self, names, why)
        elif self.residual_interval >= self.num_blocks:
            problems.append(
                f"residual_interval = {self.residual_interval} would never apply: the "
                f"last of num_blocks = {self.num_blocks} has none; use less, 0 = off"
            )
        return problems


class MixRevertBlock(nnx.Module):
    """One block, from its entry to the next stream.

    The entry is the stream X, or mix(X) where that is all that the block needs of it.
    """

    def __init__(
        self,
        config: TokenMixerLargeConfig,
        inputs: InputSpec,
        *,
        num_tokens: int,
        num_heads: int,
        rngs: nnx.Rngs,
    ):
        """Builds two stages and the norms before them."""
        dim = config.token_dim
        mixed = num_tokens * dim // num_heads
        is_before_mix = config.norm_site == "token"
        self.num_tokens, self.num_heads = num_tokens, num_heads
        self.is_before_mix = is_before_mix
        self.is_figure = config.residual == "figure"
        self.mix_norm = _rms_norm(dim if is_before_mix else mixed, rngs=rngs)
        self.mix_stage = _stage(config, inputs, num_heads, mixed, rngs=rngs)
        self.revert_norm = _rms_norm(dim, rngs=rngs)
        self.revert_stage = _stage(config, inputs, num_tokens, dim, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    @property
    def is_entered_mixed(self) -> bool:
        """Whether the entry is mix(X)."""
        return self.is_figure and not self.is_before_mix

    def enter(self, x: jax.Array) -> jax.Array:
        """Maps the stream [B, T, D] to the entry."""
        if self.is_entered_mixed:
            return mix(x, self.num_heads)
        return rules.constrain(x, "data", "model", None)

    def leave(self, entry: jax.Array) -> jax.Array:
        """Undoes `enter`."""
        return revert(entry, self.num_tokens) if self.is_entered_mixed else entry

    def __call__(
        self, entry: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> tuple[jax.Array, list[Routing | None]]:
        """Maps the entry to the next stream [B, T, D]; tells how both stages routed."""
        if self.is_before_mix:
            normed = rules.constrain(self.mix_norm(entry), "data", "model", None)
            y, mix_routing = _apply(self.mix_stage, mix(normed, self.num_heads))
            y = self.dropout(y, rngs=rngs)
            first = entry + revert(y, self.num_tokens)
        else:
            mixed = entry if self.is_entered_mixed else mix(entry, self.num_heads)
            y, mix_routing = _apply(self.mix_stage, self.mix_norm(mixed))
            y = self.dropout(y, rngs=rngs)
            first = revert(mixed + y, self.num_tokens)  # X + revert(y), X not needed
        y, revert_routing = _apply(self.revert_stage, self.revert_norm(first))
        x = (first if self.is_figure else entry) + self.dropout(y, rngs=rngs)
        return rules.constrain(x, "data", "model", None), [mix_routing, revert_routing]


@register_backbone(TokenMixerLargeConfig)
class TokenMixerLarge(nnx.Module):
    """Tokenizer, mix-and-revert blocks, norm, pooling."""

    def __init__(
        self, config: TokenMixerLargeConfig, inputs: InputSpec, *, rngs: nnx.Rngs
    ):
        """Builds all parts, and checks the configuration against the inputs."""
        dim, num_blocks = config.token_dim, config.num_blocks
        self.tokenizer = GroupTokenizer(
            _groups(config, inputs),
            dim,
            num_layers=config.tokenizer_layers,
            dtype=inputs.dtype,
            rngs=rngs,
        )
        num_tokens = self.tokenizer.num_tokens
        self.dropout = nnx.Dropout(config.dropout)
        num_heads = config.num_heads or num_tokens
        if dim % num_heads:
            raise ConfigError(
                f"model.backbone: {num_heads} mixed tokens must divide token_dim = "
                f"{dim}; set num_heads to a divisor, or token_dim to a multiple"
            )
        self.blocks = nnx.List(
            MixRevertBlock(
                config, inputs, num_tokens=num_tokens, num_heads=num_heads, rngs=rngs
            )
            for _ in range(num_blocks)
        )
        self.norm = _rms_norm(dim, rngs=rngs)
        self.interval = config.residual_interval
        self.is_mean = config.residual_interval_mode == "mean"
        num_lower = (num_blocks - 1) // self.interval if config.auxiliary_weight else 0
        self.lower_norms = nnx.List(_rms_norm(dim, rngs=rngs) for _ in range(num_lower))
        self.auxiliary_weight = config.auxiliary_weight
        self.is_pooled = config.pool == "mean"
        self.balance_loss_weight = config.balance_loss_weight
        self.router_z_loss_weight = config.router_z_loss_weight

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> Representation:
        """Maps one batch to a representation [B, D]."""
        tokens = self.dropout(self.tokenizer(features.flatten()), rngs=rngs)
        x = rules.constrain(tokens, ("data", "model"), None, None)
        lower: list[jax.Array] = []
        routings: dict[str, Routing] = {}
        entry = earlier = self.blocks[0].enter(x)
        for index, block in enumerate(self.blocks):
            x, of_stages = block(entry, rngs=rngs)
            for stage, routing in zip(("mix", "revert"), of_stages, strict=True):
                if routing is not None:
                    routings[f"block{index}/{stage}"] = routing
            if index + 1 == len(self.blocks):
                break
            entry = block.enter(x)
            if self.interval and (index + 1) % self.interval == 0:
                # Mixing is linear, so entries add up as the streams do.
                entry = entry + earlier
                entry = entry / 2 if self.is_mean else entry
                entry = earlier = rules.constrain(entry, "data", "model", None)
                if self.lower_norms:
                    norm = self.lower_norms[len(lower)]
                    lower.append(self._pool(norm, block.leave(entry)))
        return Representation(
            hidden=self._pool(self.norm, x),
            lower=tuple(lower),
            penalty=self._penalty(routings.values()),
            metrics={
                f"{where}/{name}": value
                for where, routing in routings.items()
                for name, value in routing.metrics().items()
            },
        )

    def _pool(self, norm: nnx.RMSNorm, x: jax.Array) -> jax.Array:
        """Brings every example's tokens together: [B, T, D] -> [B, D]."""
        x = norm(rules.constrain(x, ("data", "model"), None, None))
        return x.mean(axis=1) if self.is_pooled else x[:, 0]

    def _penalty(self, routings: Iterable[Routing]) -> jax.Array | None:
        """Sums the weighed losses of all routers; None where none is asked for."""
        terms = []
        for routing in routings:
            if self.balance_loss_weight:
                terms.append(self.balance_loss_weight * routing.balance_loss())
            if self.router_z_loss_weight:
                terms.append(self.router_z_loss_weight * routing.z_loss())
        return jnp.stack(terms).sum() if terms else None


def _rms_norm(width: int, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=1e-6, rngs=rngs)


def _groups(config: TokenMixerLargeConfig, inputs: InputSpec) -> SemanticGroups:
    """The T − 1 groups of a configuration."""
    pieces = flat_inputs(inputs.tokens, inputs.dims["embedding"], inputs.numeric)
    most, num_tokens = len(pieces) + 1, config.num_tokens
    if config.groups:
        if num_tokens not in (0, len(config.groups) + 1):
            raise ConfigError(
                f"model.backbone.num_tokens = {num_tokens}, but {len(config.groups)} "
                f"groups and the global token are {len(config.groups) + 1}; leave it 0"
            )
        return SemanticGroups.named(pieces, config.groups)
    num_tokens = num_tokens or max(
        automatic_num_tokens(config.token_dim, lambda tokens: tokens <= most), 2
    )
    if not 2 <= num_tokens <= most:
        raise ConfigError(
            f"model.backbone.num_tokens = {num_tokens} must be from 2 to {most}: the "
            f"global token, and groups of {len(pieces)} inputs; 0 chooses it"
        )
    return SemanticGroups.automatic(pieces, num_tokens - 1)


def _stage(
    config: TokenMixerLargeConfig,
    inputs: InputSpec,
    num_tokens: int,
    width: int,
    *,
    rngs: nnx.Rngs,
) -> PerTokenSwiGLU | SparsePertokenMoE:
    """Builds f_m or f_r."""
    hidden, num_experts = config.expansion * width, config.num_experts
    down_scale, dtype = config.down_init_scale, inputs.dtype
    if not num_experts:
        return PerTokenSwiGLU(
            num_tokens, width, hidden, down_scale=down_scale, dtype=dtype, rngs=rngs
        )
    if hidden % num_experts:
        raise ConfigError(
            f"model.backbone.num_experts = {num_experts} must divide the hidden width "
            f"{hidden} = expansion · {width}"
        )
    return SparsePertokenMoE(
        num_tokens,
        width,
        hidden,
        num_experts=num_experts,
        num_active=config.num_active_experts,
        scale=config.expert_scale or num_experts / config.num_active_experts,
        down_scale=down_scale,
        execution=config.execution,
        dtype=dtype,
        rngs=rngs,
    )


def _apply(
    stage: PerTokenSwiGLU | SparsePertokenMoE, x: jax.Array
) -> tuple[jax.Array, Routing | None]:
    """Maps [B, N, w] to the same shape; there is no routing without experts."""
    x = rules.constrain(x, "data", "model", None)
    if isinstance(stage, SparsePertokenMoE):
        return stage(x)
    return stage(x), None
