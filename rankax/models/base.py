"""What a backbone receives, what it returns, and how it becomes known.

A backbone is an `nnx.Module` built as `Backbone(config, inputs, rngs=...)` and called
as `backbone(features, rngs=...)`. It returns a representation [B, W], or [B, T, W] when
it is task-aware; the heads turn that into one logit per task. A backbone whose
equation ends in logits of its own sets `returns_logits = True` and returns [B, T].
One that has more to say in training returns a `Representation`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import re
from typing import Any, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from rankax.config.base import Config, ConfigError, suggest
from rankax.config.experiment import (  # re-exported: all that a model file needs
    BackboneConfig,
    TableSpec,
    tables_for_role,
)
from rankax.config.ranges import option, unused

__all__ = [
    "BackboneConfig",
    "EmbeddingBackboneConfig",
    "Events",
    "Features",
    "InputSpec",
    "Representation",
    "SequenceSpec",
    "TableSpec",
    "build_backbone",
    "named_config",
    "option",
    "register_backbone",
    "tables_for_role",
    "unused",
    "unused_without_mlp",
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Events:
    """One sequence field, looked up and not encoded.

    Attributes:
        rows: [B, L, A, D] of role "embedding", oldest first; padding is zero.
        lengths: [B] int32.
    """

    rows: jax.Array
    lengths: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """One batch, looked up and encoded.

    Attributes:
        embedded: role -> [B, F, D_role]: a token per categorical field (bags already
            combined; with combiner "none", a token per place of the list) and per
            encoded sequence column, in the order of `InputSpec.tokens`.
        numeric: [B, N] float32.
        sequences: field -> its events, for backbones that read them themselves.
    """

    embedded: Mapping[str, jax.Array]
    numeric: jax.Array
    sequences: Mapping[str, Events] = dataclasses.field(default_factory=dict)

    def flatten(self, role: str = "embedding") -> jax.Array:
        """Returns all inputs side by side, [B, F·D + N]."""
        embedded = self.embedded[role]
        flat = embedded.reshape(embedded.shape[0], -1)
        return jnp.concatenate([flat, self.numeric], axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Representation:
    """What a backbone returns that has more to say than its representation.

    Attributes:
        hidden: [B, W] or [B, T, W].
        lower: [B, W_l] of lower layers. In training each gets an auxiliary head, whose
            log loss joins the loss with the backbone's `auxiliary_weight`.
        penalty: [] joins the loss in training, already weighed.
        metrics: scalars to log, means over the steps of a log window.
    """

    hidden: jax.Array
    lower: tuple[jax.Array, ...] = ()
    penalty: jax.Array | None = None
    metrics: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """Static shape of one field's `Events`.

    Attributes:
        name: of the field.
        num_columns: A.
        max_length: L.
    """

    name: str
    num_columns: int
    max_length: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """Static shapes of `Features`.

    Attributes:
        tokens: names of the F embedded fields and sequence columns, and
            "<field>/<place>" for the places of a list that is not combined.
        dims: role -> D.
        numeric: names of the N numbers: numeric fields, and "<field>/<place>" for the
            places of a vector.
        num_tasks: T.
        sequences: shapes of `Features.sequences`.
        dtype: of the operands of matrix products; None = as they come (float32).
    """

    tokens: tuple[str, ...]
    dims: Mapping[str, int]
    num_tasks: int
    numeric: tuple[str, ...] = ()
    sequences: tuple[SequenceSpec, ...] = ()
    dtype: DTypeLike | None = None

    @property
    def num_fields(self) -> int:
        """F."""
        return len(self.tokens)

    @property
    def num_numeric(self) -> int:
        """N."""
        return len(self.numeric)

    def flat_dim(self, role: str = "embedding") -> int:
        """Width of `Features.flatten`: F·D + N."""
        return self.num_fields * self.dims[role] + self.num_numeric


@dataclasses.dataclass(slots=True, kw_only=True)
class EmbeddingBackboneConfig(BackboneConfig):
    """Base of backbones that need one embedding of D per row and nothing else.

    Attributes:
        embedding_dim: D.
        embedding_init_std: rows start as N(0, std²); rows of zeros would have no
            gradient, nor would what reads them.
    """

    embedding_dim: int = 16
    embedding_init_std: float = option(1e-4, is_positive=True)

    def tables(
        self, num_rows: Mapping[str, int], *, num_tasks: int
    ) -> tuple[TableSpec, ...]:
        """Returns one embedding table per table of the card."""
        return tables_for_role(
            num_rows,
            role="embedding",
            dim=self.embedding_dim,
            init_scale=self.embedding_init_std,
        )


def unused_without_mlp(config: Config, *names: str) -> list[str]:
    """Lists options of the MLP that were set although `hidden_dims` is empty."""
    if dict(config.options())["hidden_dims"]:
        return []
    return unused(
        config, names, "is of the MLP, but hidden_dims is empty; set hidden_dims"
    )


_BACKBONES: dict[type[BackboneConfig], Callable[..., nnx.Module]] = {}
_Backbone = TypeVar("_Backbone", bound=type[nnx.Module])


def register_backbone(
    config_class: type[BackboneConfig],
) -> Callable[[_Backbone], _Backbone]:
    """Class decorator: builds this backbone from that configuration class."""

    def register(backbone: _Backbone) -> _Backbone:
        _BACKBONES[config_class] = backbone
        return backbone

    return register


def registered() -> dict[str, type[BackboneConfig]]:
    """Returns the name of each backbone (its file's name) and its config class."""
    return {
        backbone.__module__.rsplit(".", 1)[-1]: config_class
        for config_class, backbone in _BACKBONES.items()
    }


def named_config(name: str, **options: Any) -> BackboneConfig:
    """Returns the configuration of a backbone by its name, such as "dcnv2".

    Raises:
        ConfigError: no backbone of that name.
    """
    known = registered()
    if name not in known:
        plain = {re.sub(r"[^a-z0-9]", "", key): key for key in known}
        name = plain.get(re.sub(r"[^a-z0-9]", "", name.lower()), name)
    if name not in known:
        raise ConfigError(f"unknown model {name!r}; {suggest(name, tuple(known))}")
    return known[name](**options)


def build_backbone(
    config: BackboneConfig, inputs: InputSpec, *, rngs: nnx.Rngs
) -> nnx.Module:
    """Builds the backbone that its configuration class is registered for.

    Raises:
        ConfigError: nothing is registered for this configuration class, or its options
            are out of range or do not fit each other.
    """
    if type(config) not in _BACKBONES:
        raise ConfigError(
            f"no backbone is registered for {type(config).__name__}; decorate its "
            "module with @register_backbone and import it in "
            "rankax/models/backbones/__init__.py"
        )
    broken = [f"model.backbone.{problem}" for problem in config.broken_rules()]
    if broken:
        raise ConfigError("; ".join(broken))
    return _BACKBONES[type(config)](config, inputs, rngs=rngs)
