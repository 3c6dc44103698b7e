"""Semantic groups: which inputs make which token (arXiv 2602.06563, section 3.2).

An input is one embedded token of D numbers or one numeric value. Groups are given by
name, or cut automatically: neighbours in the card's order, so that the groups are as
equal in width as whole inputs allow and each has at least one.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from rankax.config.base import ConfigError, suggest
from rankax.layers.linear import XAVIER_UNIFORM, linear


def flat_inputs(
    tokens: Sequence[str], dim: int, numeric: Sequence[str]
) -> dict[str, int]:
    """Returns name -> width of the pieces of a flat input vector, in its order.

    Args:
        tokens: names of the embedded tokens.
        dim: D of each.
        numeric: names of the values after them.
    """
    return dict.fromkeys(tokens, dim) | dict.fromkeys(numeric, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SemanticGroups:
    """Groups of the pieces of a flat vector.

    Attributes:
        widths: of all inputs, in the order of the flat vector.
        groups: inputs of each group.
    """

    widths: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def named(
        cls, inputs: Mapping[str, int], groups: Sequence[Sequence[str]]
    ) -> "SemanticGroups":
        """Finds groups by name.

        Args:
            inputs: name -> width; those of one field may be called "<field>/<part>".
            groups: of names, or of fields that stand for all of their parts.

        Raises:
            ConfigError: the groups do not hold every input exactly once.
        """
        names, option = tuple(inputs), "model.backbone.groups"
        found: list[tuple[int, ...]] = []
        for entries in groups:
            group: list[int] = []
            for entry in entries:
                own = [
                    i
                    for i, name in enumerate(names)
                    if name == entry or name.startswith(f"{entry}/")
                ]
                if not own:
                    raise ConfigError(
                        f"{option} has {entry!r}, which is no input; "
                        f"{suggest(entry, names)}"
                    )
                group += own
            found.append(tuple(group))
        if not all(found):
            raise ConfigError(f"{option} has an empty group; give it fields or drop it")
        counts = np.bincount(list(itertools.chain(*found)), minlength=len(names))
        twice = [name for name, count in zip(names, counts, strict=True) if count > 1]
        missing = [name for name, count in zip(names, counts, strict=True) if not count]
        if twice or missing:
            raise ConfigError(
                f"{option} must hold every input exactly once; more than once: "
                f"{twice}, missing: {missing}"
            )
        return cls(widths=tuple(inputs.values()), groups=tuple(found))

    @classmethod
    def automatic(cls, inputs: Mapping[str, int], num_groups: int) -> "SemanticGroups":
        """Cuts the inputs into G neighbouring groups of nearly equal width.

        Cut g stands at the border of inputs nearest to g/G of the whole width, moved
        where a group would be empty. There must be at least G inputs.
        """
        widths = tuple(inputs.values())
        borders = np.cumsum((0, *widths))
        cuts = [0]
        for g in range(1, num_groups):
            nearest = int(np.abs(borders - g * borders[-1] / num_groups).argmin())
            last = len(widths) - (num_groups - g)
            cuts.append(min(max(nearest, cuts[-1] + 1), last))
        ends = (*cuts[1:], len(widths))
        groups = (tuple(range(a, b)) for a, b in zip(cuts, ends, strict=True))
        return cls(widths=widths, groups=tuple(groups))

    @property
    def dims(self) -> tuple[int, ...]:
        """Width of each group."""
        return tuple(sum(self.widths[i] for i in group) for group in self.groups)

    def split(self, flat: jax.Array) -> list[jax.Array]:
        """Cuts [B, Σ widths] into one array [B, dims[g]] per group."""
        pieces = jnp.split(flat, np.cumsum(self.widths)[:-1], axis=1)
        return [
            jnp.concatenate([pieces[i] for i in group], axis=1) for group in self.groups
        ]


def automatic_num_tokens(dim: int, is_fed: Callable[[int], bool]) -> int:
    """Returns the largest of 16, 8, 4, 2, 1 that divides D and that the inputs feed."""
    return next((t for t in (16, 8, 4, 2) if dim % t == 0 and is_fed(t)), 1)


class GroupTokenizer(nnx.Module):
    """A global token, then one token per group, each by an MLP of its own.

    The global token reads all groups side by side, raw. An MLP is one linear layer, or
    two with SiLU between; no biases.
    """

    def __init__(
        self,
        groups: SemanticGroups,
        dim: int,
        *,
        num_layers: int,
        rngs: nnx.Rngs,
        dtype: DTypeLike | None = None,
    ):
        """Builds 1 + G MLPs to width D; `dtype` is that of the products' operands."""
        self.groups = groups
        self.num_tokens = 1 + len(groups.groups)
        self.mlps = nnx.List(
            nnx.List(
                linear(
                    width_in,
                    dim,
                    init=XAVIER_UNIFORM,
                    use_bias=False,
                    dtype=dtype,
                    result_dtype=jnp.float32,
                    rngs=rngs,
                )
                for width_in in (width, dim)[:num_layers]
            )
            for width in (sum(groups.dims), *groups.dims)
        )

    def __call__(self, flat: jax.Array) -> jax.Array:
        """Maps [B, Σ widths] to tokens [B, 1 + G, D] float32."""
        pieces = self.groups.split(flat)
        tokens = []
        sources = (jnp.concatenate(pieces, axis=1), *pieces)
        for mlp, x in zip(self.mlps, sources, strict=True):
            for index, layer in enumerate(mlp):
                x = layer(nnx.silu(x) if index else x)
            tokens.append(x)
        return jnp.stack(tokens, axis=1)
