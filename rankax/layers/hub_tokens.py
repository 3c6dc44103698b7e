"""First values of hubs: the few tokens that stand for many (INFNet, arXiv 2508.11565).

    fields, mlp        reshape(flatten(C)·W), W [M·d, n·d]
            autosplit  flatten(C) in n near-equal pieces, a matrix [·, d] for each
            mean       the means of n near-equal runs of fields
    events, mlp, autosplit   Σ_t ReLU(s_t·W); first version: one W for all histories;
                       second: a W for each, and over the number of its events
            mean       the mean of the events
    both,   random     learned, the same for every example

No biases. Padding is left out, so that the hub of an empty history is zero, unless it
is learned.
"""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.config.base import ConfigError
from rankax.layers.linear import XAVIER_UNIFORM, linear

HUB_INITS = ("mlp", "autosplit", "mean", "random")


class LearnedTokens(nnx.Module):
    """Tokens that do not depend on the example."""

    def __init__(self, num_tokens: int, width: int, *, rngs: nnx.Rngs):
        """Builds [n, d], Xavier-uniform."""
        self.tokens = nnx.Param(XAVIER_UNIFORM(rngs.params(), (num_tokens, width)))

    def __call__(self, batch_size: int) -> jax.Array:
        """Returns [B, n, d]."""
        tokens = self.tokens[...]
        return jnp.broadcast_to(tokens, (batch_size, *tokens.shape))


class FieldHubs(nnx.Module):
    """[B, M, d] -> [B, n, d]."""

    def __init__(
        self,
        init: str,
        num_tokens: int,
        num_hubs: int,
        width: int,
        *,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the weights of one of `HUB_INITS`.

        Raises:
            ConfigError: "mean" of fewer fields than hubs.
        """
        self.init, self.shape = init, (num_hubs, width)
        if init == "mean" and num_hubs > num_tokens:
            raise ConfigError(
                f"model.backbone.num_field_hubs = {num_hubs} cannot be means of "
                f"{num_tokens} fields; use at most {num_tokens}, or another hub_init"
            )
        # Pieces of the flat vector, or runs of fields.
        total = num_tokens if init == "mean" else num_tokens * width
        bounds = (total * i // num_hubs for i in range(num_hubs + 1))
        self.pieces = tuple(itertools.pairwise(bounds))
        self.learned = (
            LearnedTokens(num_hubs, width, rngs=rngs) if init == "random" else None
        )
        shapes = {
            "mlp": [(total, num_hubs * width)],
            "autosplit": [(end - start, width) for start, end in self.pieces],
        }
        self.linears = nnx.List(
            linear(*shape, use_bias=False, dtype=dtype, rngs=rngs)
            for shape in shapes.get(init, [])
        )

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps tokens [B, M, d] to hubs [B, n, d]."""
        batch_size = tokens.shape[0]
        if self.learned is not None:
            return self.learned(batch_size)
        if self.init == "mean":
            means = [tokens[:, start:end].mean(axis=1) for start, end in self.pieces]
            return jnp.stack(means, axis=1)
        flat = tokens.reshape(batch_size, -1)
        if self.init == "mlp":
            hubs = self.linears[0](flat)
        else:
            pieces = [flat[:, start:end] for start, end in self.pieces]
            mapped = [f(x) for f, x in zip(self.linears, pieces, strict=True)]
            hubs = jnp.concatenate(mapped, axis=-1)
        return hubs.reshape(batch_size, *self.shape).astype(tokens.dtype)


class EventHubs(nnx.Module):
    """One hub per sequence: [B, L, d] -> [B, n, d]."""

    def __init__(
        self,
        init: str,
        lengths: Sequence[int],
        width: int,
        *,
        is_shared: bool,
        use_mean: bool,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds the weights of one of `HUB_INITS`.

        Args:
            init: which.
            lengths: places of each of the n sequences; they make up L in this order.
            width: d.
            is_shared: one matrix for all sequences, not one each.
            use_mean: divide by the number of events ("mean" always does).
            rngs: initialisation randomness.
            dtype: of the products' operands; None = as they come.
        """
        ends = itertools.accumulate(lengths, initial=0)
        self.pieces = tuple(itertools.pairwise(ends))
        self.use_mean = use_mean or init == "mean"
        self.learned = (
            LearnedTokens(len(lengths), width, rngs=rngs) if init == "random" else None
        )
        num_matrices = 1 if is_shared else len(lengths)
        self.linears = nnx.List(
            linear(width, width, use_bias=False, dtype=dtype, rngs=rngs)
            for _ in range(num_matrices if init in ("mlp", "autosplit") else 0)
        )

    def __call__(self, events: jax.Array, is_event: jax.Array) -> jax.Array:
        """Maps events [B, L, d] and is_event [B, L] to hubs [B, n, d]."""
        if self.learned is not None:
            return self.learned(events.shape[0])
        hubs = []
        for i, (start, end) in enumerate(self.pieces):
            x, mask = events[:, start:end], is_event[:, start:end, None]
            if self.linears:
                x = nnx.relu(self.linears[min(i, len(self.linears) - 1)](x))
            hub = jnp.where(mask, x, 0).astype(events.dtype).sum(axis=1)
            if self.use_mean:
                hub = hub / jnp.maximum(mask.sum(axis=1), 1)
            hubs.append(hub)
        return jnp.stack(hubs, axis=1)
