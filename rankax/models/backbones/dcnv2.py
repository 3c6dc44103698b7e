"""DCN-v2: a cross network beside an MLP (arXiv 2008.13535, parallel structure).

Cross layer: x_{l+1} = x_0 ⊙ (x_l·W_l + b_l) + x_l, W_l full.
Published Frappe_x1 test AUC: 0.9838 ± 0.0005 (BARS, mean of 5 runs).
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.layers.cross import CrossNet
from rankax.layers.mlp import MLP
from rankax.models.base import (
    EmbeddingBackboneConfig,
    Features,
    InputSpec,
    register_backbone,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class DCNv2Config(EmbeddingBackboneConfig):
    """Without `hidden_dims` the model is the cross network alone."""

    num_cross_layers: int = 3
    hidden_dims: tuple[int, ...] = (256, 128, 64)
    use_batch_norm: bool = False
    dropout: float = 0.0


@register_backbone(DCNv2Config)
class DCNv2(nnx.Module):
    """Cross tower and deep tower side by side."""

    def __init__(self, config: DCNv2Config, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds both towers on the flat input."""
        width = inputs.flat_dim()
        self.cross = CrossNet(width, config.num_cross_layers, rngs=rngs)
        self.mlp = MLP(
            width,
            config.hidden_dims,
            use_batch_norm=config.use_batch_norm,
            dropout=config.dropout,
            rngs=rngs,
        )

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to a representation [B, F·D + N + hidden_dims[-1]]."""
        x = features.flatten()
        towers = [self.cross(x)]
        if self.mlp.linears:
            towers.append(self.mlp(x, rngs=rngs))
        return jnp.concatenate(towers, axis=-1)
