"""All sequence encoders; importing this package registers them.

An encoder is built as `Encoder(config, num_columns, dim, rngs=...)` for one sequence
field of A aligned columns and called as `encoder(events, lengths, rngs=...)` with
events [B, L, A, D] (padding is zero, oldest first) and lengths [B]. It returns one
token per column, [B, A, D].
"""

from collections.abc import Callable

from flax import nnx

from rankax.config.experiment import MeanPoolingConfig, SequenceConfig
from rankax.models.sequences.mean_pooling import MeanPooling

_ENCODERS: dict[type[SequenceConfig], Callable[..., nnx.Module]] = {
    MeanPoolingConfig: MeanPooling
}


def build_encoder(
    config: SequenceConfig, *, num_columns: int, dim: int, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds the encoder of a configuration for one sequence field."""
    return _ENCODERS[type(config)](config, num_columns, dim, rngs=rngs)
