"""DeepFM: a factorization machine beside an MLP on the same factors (arXiv 1703.04247).

logit_t = FM_t + w_tᵀ·MLP(x), x = all tokens v_i·x_i side by side.
Published Frappe_x1 test AUC: 0.9839 ± 0.0002 (BARS, mean of 5 runs).
"""

import dataclasses

from flax import nnx
import jax

from rankax.layers.linear import linear
from rankax.layers.mlp import MLP
from rankax.models.backbones.fm import FM, FMConfig
from rankax.models.base import (
    Features,
    InputSpec,
    register_backbone,
    unused_without_mlp,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class DeepFMConfig(FMConfig):
    """Options beside the factors are those of `MLP`."""

    hidden_dims: tuple[int, ...] = (256, 128, 64)
    use_batch_norm: bool = False
    dropout: float = 0.0

    def problems(self) -> list[str]:
        """No MLP, no batch norm and dropout."""
        return unused_without_mlp(self, "use_batch_norm", "dropout")


@register_backbone(DeepFMConfig)
class DeepFM(nnx.Module):
    """Both parts end in logits, which add up."""

    returns_logits = True

    def __init__(self, config: DeepFMConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds FM, MLP and the MLP's output layer."""
        self.fm = FM(config, inputs, rngs=rngs)
        num_tokens = inputs.num_fields + inputs.num_numeric
        self.mlp = MLP(
            num_tokens * inputs.dims["embedding"],
            config.hidden_dims,
            use_batch_norm=config.use_batch_norm,
            dropout=config.dropout,
            dtype=inputs.dtype,
            rngs=rngs,
        )
        self.output = linear(self.mlp.width, inputs.num_tasks, rngs=rngs)

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to logits [B, T]."""
        tokens = self.fm.tokens(features)
        hidden = self.mlp(tokens.reshape(tokens.shape[0], -1), rngs=rngs)
        return self.fm(features) + self.output(hidden)
