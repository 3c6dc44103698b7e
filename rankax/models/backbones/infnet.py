"""INFNet: fields, events and tasks exchange through a few hubs (arXiv 2508.11565).

Tokens, all d wide: M fields (embedded fields, encoded histories, numeric fields), the
L events of all histories as they are, and one learned token per task. Each group has
hubs: n of the fields, one per history, and of the tasks the shared task tokens (second
version: the task tokens beside them). In every block hubs read tokens by attention,
then gate them (`rankax.layers.hub_blocks` has both versions' equations), so that the
cost is linear in M + L. Each task's token goes through a tower of its own.

An event is Dense(its columns side by side), in the second version plus a learned
embedding of its place. The paper adds one of the time since the event; the data here
has no times of events. Published on KuaiRand-Pure, first version, AUC of click, like,
long view: 0.7736, 0.8960, 0.7727 (their own split; their DCN-v2 0.7649, 0.7872,
0.7556); no published figure for the data sets here.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.layers.hub_blocks import (
    EVENTS,
    FIELDS,
    TASKS,
    AggregateBroadcastBlock,
    ProxyGateBlock,
    Tokens,
    hubs_of,
)
from rankax.layers.hub_tokens import HUB_INITS, EventHubs, FieldHubs, LearnedTokens
from rankax.layers.linear import XAVIER_UNIFORM, linear
from rankax.layers.norms import unit_rms
from rankax.layers.numeric_tokens import NumericTokens
from rankax.layers.per_token import PerTokenLinear
from rankax.models.base import (
    EmbeddingBackboneConfig,
    Features,
    InputSpec,
    option,
    register_backbone,
    unused,
)

VARIANTS = ("v2", "v1")
# Option -> the version that it is of.
OWN_OPTIONS = {
    "use_positions": "v2",
    "v1_residual": "v1",
    "v1_share_sources": "v1",
}


@dataclasses.dataclass(slots=True, kw_only=True)
class INFNetConfig(EmbeddingBackboneConfig):
    """Defaults are those of a public re-implementation of v2, which has 3 blocks.

    Attributes:
        variant: "v2" (aggregate and broadcast: residuals and norms, made to be stacked)
            or "v1" (proxies and gates).
        width: d, of all tokens; embeddings of another width are projected, with a
            matrix per field.
        num_blocks: at least 2: what a block writes into fields and events, only the
            next one reads.
        num_heads: of the attention; divides d.
        num_field_hubs: n.
        num_shared_tasks: learned tokens that belong to no task, in v1 all hubs of the
            tasks; v2 can do without.
        expansion: hidden width of the hubs' MLPs / d.
        hub_init: first values of the hubs of fields and events, see
            `rankax.layers.hub_tokens`.
        token_norm: divide embedded fields and events by their root mean square before
            they are projected (no parameters, not in the paper); off, the L2 usual on
            tables keeps those that start near zero from being learned. Numeric fields
            are not divided: their size is their value.
        use_positions: v2 only: an event's token tells its place.
        prune_last: leave out of the last block what nothing reads.
        v1_residual: v1 only: residuals, norms and gates that start as the identity; off
            = the printed equations.
        v1_share_sources: v1 only: keys and values belong to the source; off = each of
            the 8 (reader, source) pairs has its own, in an attention call of its own.
        tower_dims: hidden widths of each task's tower; empty = the heads read the task
            tokens.
        dropout: in the towers.
    """

    variant: str = option("v2", choices=VARIANTS)
    width: int = 64
    num_blocks: int = option(2, least=2)
    num_heads: int = 1
    num_field_hubs: int = 4
    num_shared_tasks: int = option(2, least=0)
    expansion: int = 4
    hub_init: str = option("mlp", choices=HUB_INITS)
    token_norm: bool = True
    use_positions: bool = True
    prune_last: bool = True
    v1_residual: bool = True
    v1_share_sources: bool = True
    tower_dims: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def problems(self) -> list[str]:
        """Options of the other version, or of towers that are not there."""
        problems = []
        for name, variant in OWN_OPTIONS.items():
            if variant != self.variant:
                why = f"is of {variant!r} only; set variant = {variant!r}"
                problems += unused(self, (name,), why)
        if self.variant == "v1" and not self.num_shared_tasks:
            problems.append(
                "num_shared_tasks = 0 leaves the tasks of 'v1' without a hub; use at "
                "least 1"
            )
        if self.width % self.num_heads:
            problems.append(
                f"width = {self.width} cannot be split into {self.num_heads} heads; "
                "choose a multiple of num_heads"
            )
        if not self.tower_dims:
            why = "is of the towers, but tower_dims is empty; set tower_dims"
            problems += unused(self, ("dropout",), why)
        return problems


def num_hubs(config: INFNetConfig, inputs: InputSpec) -> dict[str, int]:
    """Returns group -> number of its hubs, for the groups that there are."""
    counts = {FIELDS: config.num_field_hubs}
    if inputs.sequences:
        counts[EVENTS] = len(inputs.sequences)
    own = inputs.num_tasks if config.variant == "v2" else 0
    return {**counts, TASKS: own + config.num_shared_tasks}


class INFNetTokens(nnx.Module):
    """Makes the tokens and hubs that the first block gets."""

    def __init__(self, config: INFNetConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds projections, learned tokens and the hubs' first values."""
        dim, width = inputs.dims["embedding"], config.width
        self.sequences = inputs.sequences
        self.token_norm = config.token_norm
        self.projections = (
            PerTokenLinear(
                inputs.num_fields,
                dim,
                width,
                use_bias=True,
                axis=None,
                dtype=inputs.dtype,
                rngs=rngs,
            )
            if dim != width
            else None
        )
        self.numeric_tokens = (
            NumericTokens(inputs.num_numeric, width, rngs=rngs)
            if inputs.num_numeric
            else None
        )
        self.field_hubs = FieldHubs(
            config.hub_init,
            inputs.num_fields + inputs.num_numeric,
            config.num_field_hubs,
            width,
            dtype=inputs.dtype,
            rngs=rngs,
        )
        is_v2 = config.variant == "v2"
        self.events = nnx.Dict(
            {
                spec.name: linear(
                    spec.num_columns * dim, width, dtype=inputs.dtype, rngs=rngs
                )
                for spec in inputs.sequences
            }
        )
        lengths = [spec.max_length for spec in inputs.sequences]
        self.positions = (
            nnx.Param(XAVIER_UNIFORM(rngs.params(), (sum(lengths), width)))
            if lengths and is_v2 and config.use_positions
            else None
        )
        self.event_hubs = (
            EventHubs(
                config.hub_init,
                lengths,
                width,
                is_shared=not is_v2,
                use_mean=is_v2,
                dtype=inputs.dtype,
                rngs=rngs,
            )
            if lengths
            else None
        )
        self.tasks = LearnedTokens(inputs.num_tasks, width, rngs=rngs)
        self.shared_tasks = (
            LearnedTokens(config.num_shared_tasks, width, rngs=rngs)
            if config.num_shared_tasks
            else None
        )
        self.are_tasks_hubs = is_v2

    def __call__(self, features: Features) -> tuple[Tokens, jax.Array | None]:
        """Returns tokens [B, ·, d] by their keys, and which events exist [B, L]."""
        fields = features.embedded["embedding"]
        batch_size = fields.shape[0]
        if self.token_norm:
            fields = unit_rms(fields)
        if self.projections is not None:
            by_field = self.projections(
                fields.swapaxes(0, 1), result_dtype=fields.dtype
            )
            fields = by_field.swapaxes(0, 1)
        if self.numeric_tokens is not None:
            numeric = self.numeric_tokens(features.numeric)
            fields = jnp.concatenate([fields, numeric], axis=1)
        tasks = self.tasks(batch_size)
        task_hubs = [tasks] if self.are_tasks_hubs else []
        if self.shared_tasks is not None:
            task_hubs.append(self.shared_tasks(batch_size))
        tokens = {
            FIELDS: fields,
            hubs_of(FIELDS): self.field_hubs(fields),
            TASKS: tasks,
            hubs_of(TASKS): jnp.concatenate(task_hubs, axis=1),
        }
        if self.event_hubs is None:
            return tokens, None
        events, is_event = self._events(features)
        tokens[EVENTS] = events
        tokens[hubs_of(EVENTS)] = self.event_hubs(events, is_event)
        return tokens, is_event

    def _events(self, features: Features) -> tuple[jax.Array, jax.Array]:
        """Returns the events of all histories [B, L, d], and which exist [B, L]."""
        projected, exist = [], []
        for spec in self.sequences:
            events = features.sequences[spec.name]
            flat = events.rows.reshape(*events.rows.shape[:2], -1)
            if self.token_norm:
                flat = unit_rms(flat)
            projected.append(self.events[spec.name](flat).astype(flat.dtype))
            exist.append(jnp.arange(spec.max_length) < events.lengths[:, None])
        x = jnp.concatenate(projected, axis=1)
        if self.positions is not None:
            x = x + self.positions[...]
        return x, jnp.concatenate(exist, axis=1)


@register_backbone(INFNetConfig)
class INFNet(nnx.Module):
    """Tokens → blocks → a tower per task."""

    def __init__(self, config: INFNetConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds tokens, blocks and towers."""
        self.tokens = INFNetTokens(config, inputs, rngs=rngs)
        options = {}
        block = AggregateBroadcastBlock
        if config.variant == "v1":
            block = ProxyGateBlock
            options = {
                "use_residual": config.v1_residual,
                "shares_sources": config.v1_share_sources,
            }
        self.blocks = nnx.List(
            block(
                num_hubs(config, inputs),
                config.width,
                expansion=config.expansion,
                num_heads=config.num_heads,
                is_last=config.prune_last and i == config.num_blocks - 1,
                dtype=inputs.dtype,
                rngs=rngs,
                **options,
            )
            for i in range(config.num_blocks)
        )
        widths = (config.width, *config.tower_dims)
        self.towers = nnx.List(
            PerTokenLinear(
                inputs.num_tasks,
                a,
                b,
                use_bias=True,
                axis=None,
                dtype=inputs.dtype,
                rngs=rngs,
            )
            for a, b in zip(widths, config.tower_dims, strict=False)
        )
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to a representation per task, [B, T, tower_dims[-1] or d]."""
        tokens, is_event = self.tokens(features)
        for block in self.blocks:
            tokens = block(tokens, is_event)
        x = tokens[TASKS].swapaxes(0, 1)  # [T, B, d]
        for tower in self.towers:
            x = self.dropout(nnx.relu(tower(x)), rngs=rngs)
        return x.swapaxes(0, 1)
