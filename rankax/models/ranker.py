"""The dense model: combine looked-up rows, encode sequences, backbone, heads."""

from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import MeanPoolingConfig, ModelConfig
from rankax.data.schema import IdSlot, Schema
from rankax.layers.linear import linear
from rankax.layers.pooling import mean_pool, weighted_mean, weighted_sum
from rankax.models import backbones  # registers them  # noqa: F401
from rankax.models.base import (
    Events,
    Features,
    InputSpec,
    Representation,
    SequenceSpec,
    build_backbone,
)
from rankax.models.sequences import build_encoder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outputs:
    """What training needs of one batch.

    Attributes:
        logits: [B, T] float32.
        auxiliary_logits: [B, T] float32 of each auxiliary head.
        penalty: [] joins the loss; None = the model has none.
        metrics: scalars to log.
    """

    logits: jax.Array
    auxiliary_logits: tuple[jax.Array, ...]
    penalty: jax.Array | None
    metrics: Mapping[str, jax.Array]


class Ranker(nnx.Module):
    """Everything but the tables; a function of already looked-up rows.

    Attributes:
        inputs: shapes that the backbone sees.
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: Schema,
        dims: Mapping[str, int],
        *,
        rngs: nnx.Rngs,
    ):
        """Builds encoders, backbone and heads.

        Args:
            config: model configuration.
            schema: fields and tasks.
            dims: role -> D of the looked-up rows; without tables those that the
                backbone would have.
            rngs: initialisation randomness.
        """
        if not schema.slots:  # numeric fields alone: no table tells the widths
            specs = config.backbone.tables({"": 1}, num_tasks=len(schema.tasks))
            dims = {spec.role: spec.dim for spec in specs}
        self.inputs = InputSpec(
            tokens=tuple(name for slot in schema.slots for name in _tokens(slot)),
            dims=dict(dims),
            numeric=schema.numeric_names,
            num_tasks=len(schema.tasks),
            sequences=tuple(
                SequenceSpec(
                    name=field.name,
                    num_columns=len(field.columns),
                    max_length=field.max_length,
                )
                for field in schema.sequences
                if "embedding" in dims
            ),
            dtype=None if config.compute_dtype == "float32" else config.compute_dtype,
        )
        self._slots = schema.slots
        self.encoders = nnx.Dict()
        if "embedding" in dims:
            single = _single_ids(schema.slots)
            for field in schema.sequences:
                tables = [column.table for column in field.columns]
                self.encoders[field.name] = build_encoder(
                    config.sequence,
                    num_columns=len(field.columns),
                    dim=dims["embedding"],
                    target_columns=tuple(
                        a for a, table in enumerate(tables) if table in single
                    ),
                    dtype=self.inputs.dtype,
                    rngs=rngs,
                )
        if type(config.sequence) is not MeanPoolingConfig and not self.encoders:
            reason = "the run has no sequence field"
            if schema.sequences:
                reason = f"{type(config.backbone).__name__} has no embeddings to encode"
            raise ConfigError(
                f"model.sequence is a {type(config.sequence).__name__}, but {reason}; "
                "leave model.sequence at MeanPoolingConfig()"
            )
        self.backbone = build_backbone(config.backbone, self.inputs, rngs=rngs)
        self.auxiliary_weight = getattr(self.backbone, "auxiliary_weight", 0.0)
        shape, num_tasks = self._representation(), len(schema.tasks)
        self.head = (
            None
            if getattr(self.backbone, "returns_logits", False)
            else Head(shape.hidden.shape[1:], num_tasks, rngs=rngs)
        )
        self.auxiliary_heads = nnx.List(
            Head(lower.shape[1:], num_tasks, rngs=rngs) for lower in shape.lower
        )

    def __call__(
        self,
        rows: Mapping[str, jax.Array],
        lengths: jax.Array,
        numeric: jax.Array,
        *,
        bag_weights: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Computes logits.

        Args:
            rows: role -> [B, K, D] as `TableEngine.embed` returns them.
            lengths: [B, M] int32.
            numeric: [B, N] float32.
            bag_weights: [B, P] float32; None if no list has weights.
            rngs: stream "dropout"; needed in training mode only.

        Returns:
            [B, T] float32.

        Raises:
            ValueError: lists have weights, but `bag_weights` is None.
        """
        return self.outputs(
            rows, lengths, numeric, bag_weights=bag_weights, rngs=rngs
        ).logits

    def outputs(
        self,
        rows: Mapping[str, jax.Array],
        lengths: jax.Array,
        numeric: jax.Array,
        *,
        bag_weights: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> Outputs:
        """Computes all that the loss is made of; arguments and errors as above."""
        weighted = [slot.field for slot in self._slots if slot.weights]
        if weighted and bag_weights is None:
            raise ValueError(
                f"fields {weighted} have weights, but bag_weights is None; pass the "
                "packed array of that name"
            )
        embedded = {
            role: jnp.zeros(
                (numeric.shape[0], 0, dim)
            )  # without ids there are no tokens
            for role, dim in self.inputs.dims.items()
        }
        for role, x in rows.items():
            pieces = self._combine(role, x, lengths, bag_weights, rngs)
            embedded[role] = jnp.concatenate(pieces, axis=1)
        features = Features(
            embedded=embedded, numeric=numeric, sequences=self._events(rows, lengths)
        )
        result = _as_representation(self.backbone(features, rngs=rngs))
        hidden = result.hidden.astype(jnp.float32)
        heads = zip(self.auxiliary_heads, result.lower, strict=True)
        return Outputs(
            logits=hidden if self.head is None else self.head(hidden),
            auxiliary_logits=tuple(head(x.astype(jnp.float32)) for head, x in heads),
            penalty=result.penalty,
            metrics=result.metrics,
        )

    def _events(
        self, rows: Mapping[str, jax.Array], lengths: jax.Array
    ) -> dict[str, Events]:
        """Picks the sequence fields out of the looked-up rows."""
        events = {}
        for spec in self.inputs.sequences:
            first = next(slot for slot in self._slots if slot.field == spec.name)
            end = first.start + spec.num_columns * spec.max_length
            piece = rows["embedding"][:, first.start : end]
            shape = (piece.shape[0], spec.num_columns, spec.max_length, -1)
            events[spec.name] = Events(
                rows=piece.reshape(shape).swapaxes(1, 2), lengths=lengths[:, first.bag]
            )
        return events

    def _combine(
        self,
        role: str,
        rows: jax.Array,
        lengths: jax.Array,
        bag_weights: jax.Array | None,
        rngs: nnx.Rngs | None,
    ) -> list[jax.Array]:
        """Turns the K id columns into pieces of the F tokens, in slot order.

        Single ids and lists of combiner "none" are pieces as they are.
        """
        pieces, index, slots = [], 0, self._slots
        single = _single_ids(slots)
        while index < len(slots):
            run = _run_of(slots, index)
            first, last = run[0], run[-1]
            piece = rows[:, first.start : last.start + last.width]
            if first.bag >= 0 and not first.combiner:  # a sequence
                events = piece.reshape(rows.shape[0], len(run), first.width, -1)
                events = events.swapaxes(1, 2)  # [B, L, A, D]
                if role == "embedding":
                    encoder = self.encoders[first.field]
                    targets = [
                        single[slot.table] for slot in run if slot.table in single
                    ]
                    piece = encoder(
                        events,
                        lengths[:, first.bag],
                        rows[:, np.array(targets, int)],
                        rngs=rngs,
                    )
                else:
                    piece = mean_pool(events, lengths[:, first.bag])
            elif first.weights:
                assert bag_weights is not None
                end = first.weights_start + first.width
                combine = weighted_mean if first.combiner == "mean" else weighted_sum
                piece = combine(piece, bag_weights[:, first.weights_start : end])
            elif first.combiner == "mean":
                piece = mean_pool(piece[:, :, None], lengths[:, first.bag])
            elif first.combiner == "sum":
                piece = piece.sum(axis=1, keepdims=True)
            pieces.append(piece)
            index += len(run)
        return pieces

    def _representation(self) -> Representation:
        """Shapes of the backbone's output for one example."""
        inputs = self.inputs
        graph, state = nnx.split(self.backbone)

        def apply(state):
            backbone = nnx.merge(graph, state, copy=True)
            backbone.eval()
            embedded = {
                role: jnp.zeros((1, inputs.num_fields, dim))
                for role, dim in inputs.dims.items()
            }
            numeric = jnp.zeros((1, inputs.num_numeric))
            sequences = {
                spec.name: Events(
                    rows=jnp.zeros(
                        (1, spec.max_length, spec.num_columns, inputs.dims["embedding"])
                    ),
                    lengths=jnp.zeros(1, jnp.int32),
                )
                for spec in inputs.sequences
            }
            features = Features(embedded=embedded, numeric=numeric, sequences=sequences)
            return _as_representation(backbone(features))

        return jax.eval_shape(apply, state)


def _as_representation(result: jax.Array | Representation) -> Representation:
    if isinstance(result, Representation):
        return result
    return Representation(hidden=result)


class Head(nnx.Module):
    """One logit per task: z_t = h_t·w_t + b_t, with h shared, [W], or [T, W]."""

    def __init__(self, shape: tuple[int, ...], num_tasks: int, *, rngs: nnx.Rngs):
        """Builds w [W, T] and b [T]."""
        self.linear = linear(shape[-1], num_tasks, rngs=rngs)

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Maps [B, W] or [B, T, W] to [B, T]."""
        if hidden.ndim == 2:
            return self.linear(hidden)
        kernel, bias = self.linear.kernel[...], self.linear.bias
        assert bias is not None
        return jnp.einsum("btw,wt->bt", hidden, kernel) + bias[...]


def _tokens(slot: IdSlot) -> tuple[str, ...]:
    """Names of the tokens that a slot becomes: one, or L where nothing combines it."""
    if slot.combiner == "none":
        return tuple(f"{slot.name}/{place}" for place in range(slot.width))
    return (slot.name,)


def _single_ids(slots: tuple[IdSlot, ...]) -> dict[str, int]:
    """Maps each table to the id column of its first field of one id.

    That field is the target of the sequence columns that share the table.
    """
    first: dict[str, int] = {}
    for slot in slots:
        if slot.bag < 0:
            first.setdefault(slot.table, slot.start)
    return first


def _run_of(slots: tuple[IdSlot, ...], index: int) -> list[IdSlot]:
    """Neighbouring slots that one operation serves: single ids, or one sequence."""
    first = slots[index]
    run = [first]
    for slot in slots[index + 1 :]:
        both_single = slot.bag < 0 and first.bag < 0
        one_sequence = slot.bag == first.bag >= 0
        if not (both_single or one_sequence):
            break
        run.append(slot)
    return run
