"""DIN: a history weighed by its relevance to the target (arXiv 1706.06978, eq. 3).

    u = Σ_l w_l·e_l,   w_l = MLP([e_l; v; e_l − v; e_l ⊙ v]),   Dice between the layers

e_l is one event, all its columns side by side; v the target: the fields that share the
columns' tables, of several the first of one id in the card's order. A column without
such a field (an action type) has no v: it enters by e_l alone. The weights are not
normalised, so that their sum keeps how strong an interest is; with `use_softmax` they
are softmax(w / √width), as in the authors' code. An empty history gives zero.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.config.base import ConfigError
from rankax.config.experiment import SequenceConfig
from rankax.config.ranges import option
from rankax.layers.dice import Dice
from rankax.layers.linear import XAVIER_NORMAL, linear, operands


@dataclasses.dataclass(slots=True, kw_only=True)
class DINConfig(SequenceConfig):
    """The local activation unit.

    Attributes:
        hidden_dims: widths of its MLP before the one output.
        use_softmax: normalise the weights over the history.
    """

    hidden_dims: tuple[int, ...] = option((80, 40), is_needed=True)
    use_softmax: bool = False


class DIN(nnx.Module):
    """Target attention over one sequence field."""

    def __init__(
        self,
        config: DINConfig,
        num_columns: int,
        dim: int,
        *,
        target_columns: tuple[int, ...],
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        """Builds the activation unit.

        Raises:
            ConfigError: no column has a target.
        """
        if not target_columns:
            raise ConfigError(
                "DIN weighs a history against its target, but no column of the "
                "sequence shares its table with a field of one id; give both the same "
                "table in the dataset card (--share of data_pipelines.tabular), select "
                "that field in data.fields, or use model.sequence = MeanPoolingConfig()"
            )
        self.use_softmax = config.use_softmax
        self.target_columns = target_columns
        self.dtype = dtype
        width, shared = num_columns * dim, len(target_columns) * dim
        # One kernel for [e, v, e − v, e ⊙ v], as if they were put side by side.
        self.widths = (width, shared, shared, shared)
        first, *others = config.hidden_dims
        kernel = XAVIER_NORMAL(rngs.params(), (sum(self.widths), first))
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(jnp.zeros(first))
        self.linears = nnx.List(
            linear(a, b, dtype=dtype, result_dtype=jnp.float32, rngs=rngs)
            for a, b in zip(config.hidden_dims, [*others, 1], strict=True)
        )
        self.activations = nnx.List(Dice(width) for width in config.hidden_dims)

    def __call__(
        self,
        events: jax.Array,
        lengths: jax.Array,
        targets: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Maps events [B, L, A, D], lengths [B] and targets [B, A', D] to [B, A, D]."""
        batch, length, num_columns, dim = events.shape
        is_event = jnp.arange(length) < lengths[:, None]  # [B, L]
        flat = events.reshape(batch, length, -1)
        scores = self._scores(flat, events, targets)
        if self.use_softmax:
            scores = scores / jnp.sqrt(jnp.float32(num_columns * dim))
            scores = jax.nn.softmax(jnp.where(is_event, scores, -1e9), axis=1)
        weights = jnp.where(is_event, scores, 0)
        pooled = jnp.einsum("bl,blw->bw", weights, flat)
        return pooled.reshape(batch, num_columns, dim)

    def _scores(
        self, flat: jax.Array, events: jax.Array, targets: jax.Array
    ) -> jax.Array:
        """Returns w [B, L] before masking."""
        batch, length, _ = flat.shape
        keys = events[:, :, jnp.array(self.target_columns)].reshape(batch, length, -1)
        target = targets.reshape(batch, -1)  # v
        # e·W_e + v·W_v + (e − v)·W_d = e·(W_e + W_d) + v·(W_v − W_d): v's part is the
        # same for all events, and the difference is never formed.
        splits = (self.widths[0], sum(self.widths[:2]), sum(self.widths[:3]))
        w_e, w_v, w_d, w_p = jnp.split(self.kernel[...], splits)

        def product(x: jax.Array, w: jax.Array) -> jax.Array:
            x, w = operands(self.dtype, x, w)
            return x @ w

        of_event = product(flat, w_e) + product(keys, w_d)
        of_event += product(keys * target[:, None], w_p)
        hidden = of_event + (product(target, w_v - w_d) + self.bias[...])[:, None]
        for activation, layer in zip(self.activations, self.linears, strict=True):
            hidden = layer(activation(hidden))
        return hidden[..., 0]
