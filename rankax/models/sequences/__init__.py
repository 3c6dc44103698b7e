"""All sequence encoders, by their configuration.

An encoder is built as `Encoder(config, num_columns, dim, target_columns=..., dtype=...,
rngs=...)` for one sequence field of A aligned columns. `target_columns` are the A' of
them that share their table with a field of one id: the target; `dtype` is that of the
operands of matrix products, None = as they come. It is called as
`encoder(events, lengths, targets, rngs=...)` with events [B, L, A, D] (padding is zero,
oldest first), lengths [B] and targets [B, A', D], and returns one token per column,
[B, A, D].
"""

from collections.abc import Callable

from flax import nnx
from jax.typing import DTypeLike

from rankax.config.base import ConfigError
from rankax.config.experiment import MeanPoolingConfig, SequenceConfig
from rankax.models.sequences.din import DIN, DINConfig
from rankax.models.sequences.mean_pooling import MeanPooling

_ENCODERS: dict[type[SequenceConfig], Callable[..., nnx.Module]] = {
    MeanPoolingConfig: MeanPooling,
    DINConfig: DIN,
}


def build_encoder(
    config: SequenceConfig,
    *,
    num_columns: int,
    dim: int,
    target_columns: tuple[int, ...],
    dtype: DTypeLike | None = None,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Builds the encoder of a configuration for one sequence field.

    Raises:
        ConfigError: there is none, it does not suit the sequence, or its options are
            out of range.
    """
    if type(config) not in _ENCODERS:
        known = ", ".join(known.__name__ for known in _ENCODERS)
        raise ConfigError(
            f"model.sequence is a {type(config).__name__}, for which no encoder is "
            f"known; use one of {known}"
        )
    broken = [f"model.sequence.{problem}" for problem in config.broken_rules()]
    if broken:
        raise ConfigError("; ".join(broken))
    return _ENCODERS[type(config)](
        config,
        num_columns,
        dim,
        target_columns=target_columns,
        dtype=dtype,
        rngs=rngs,
    )
