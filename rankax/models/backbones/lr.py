"""Logistic regression: a weight per id and per numeric field.

logit_t = Σ_f w_t[id_f] + Σ_n x_n·v_{n,t} + b_t; lists add their mean or
sum, sequences their mean.
Published Frappe_x1 test AUC of LR: 0.9356 (BARS, train set as published).
"""

from collections.abc import Mapping
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from rankax.models.base import (
    BackboneConfig,
    Features,
    InputSpec,
    TableSpec,
    register_backbone,
    tables_for_role,
)


@dataclasses.dataclass(slots=True, kw_only=True)
class LRConfig(BackboneConfig):
    """`embedding_init_std` is that of the ids' weights."""

    embedding_init_std: float = 1e-4

    def tables(
        self, num_rows: Mapping[str, int], *, num_tasks: int
    ) -> tuple[TableSpec, ...]:
        """One weight per row and task."""
        return tables_for_role(
            num_rows, role="weight", dim=num_tasks, init_scale=self.embedding_init_std
        )


@register_backbone(LRConfig)
class LR(nnx.Module):
    """A sum of weights; the only dense parameters are v and b."""

    returns_logits = True

    def __init__(self, config: LRConfig, inputs: InputSpec, *, rngs: nnx.Rngs):
        """Builds v [N, T] = 0 and b [T] = 0."""
        self.numeric = nnx.Param(jnp.zeros((inputs.num_numeric, inputs.num_tasks)))
        self.bias = nnx.Param(jnp.zeros(inputs.num_tasks))

    def __call__(
        self, features: Features, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps one batch to logits [B, T]."""
        weights = features.embedded["weight"].sum(axis=1)
        return weights + features.numeric @ self.numeric[...] + self.bias[...]
