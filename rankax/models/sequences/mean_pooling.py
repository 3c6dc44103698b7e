"""Mean of a history's embeddings; zero for an empty history. No parameters."""

from flax import nnx
import jax
from jax.typing import DTypeLike

from rankax.config.experiment import MeanPoolingConfig
from rankax.layers.pooling import mean_pool


class MeanPooling(nnx.Module):
    """token_a = Σ_l events_{l,a} / max(length, 1), whatever the target is."""

    def __init__(
        self,
        config: MeanPoolingConfig,
        num_columns: int,
        dim: int,
        *,
        target_columns: tuple[int, ...],
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ):
        """Has nothing to build."""

    def __call__(
        self,
        events: jax.Array,
        lengths: jax.Array,
        targets: jax.Array,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Maps events [B, L, A, D] (padding is zero) to [B, A, D]."""
        return mean_pool(events, lengths)
