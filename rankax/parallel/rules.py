"""Where dense weights and activations lie: logical axis names → mesh axes.

A weight says what its axes are (`nnx.Param(value, logical_axes=("token", None, None))`)
and this page says where that goes. Weights without names, and axes without a rule, are
copied to every device. Activations are pinned to the ambient mesh, if there is one.
"""

from contextlib import AbstractContextManager
from typing import Any

from flax import nnx
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rankax.config.base import ConfigError

RULES = {"token": "model"}  # per-token weights live with their token (Token Parallel)


def ambient(mesh: Mesh) -> AbstractContextManager[Any]:
    """Makes a mesh the ambient one while a function is traced; use it inside of it."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def model_parallelism() -> int:
    """Returns the devices along "model" of the ambient mesh; 1 without one."""
    return jax.sharding.get_abstract_mesh().shape.get("model", 1)


def constrain(x: jax.Array, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """Pins an activation to mesh axes; does nothing unless "model" is split.

    Args:
        x: any array.
        axes: per dimension, mesh axes or None; missing ones are None.
    """
    if model_parallelism() == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def shardings(params: Any, mesh: Mesh) -> Any:
    """Returns the sharding of every weight of a module's (abstract) state.

    Args:
        params: `nnx.State` of `nnx.Param`s, values or shapes.
        mesh: device mesh.

    Returns:
        The pure nested dict of `params` with a `NamedSharding` at each leaf.

    Raises:
        ConfigError: a named axis does not divide over its mesh axis.
    """

    def place(path: tuple[Any, ...], weight: nnx.Variable) -> NamedSharding:
        names = weight.get_metadata().get("logical_axes", ())
        axes = [RULES.get(name) for name in names]
        shape = weight.get_value().shape
        for size, axis, name in zip(shape, axes, names, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                raise ConfigError(
                    f"mesh.{axis} = {mesh.shape[axis]} cannot share the {size} {name}s "
                    f"of {jax.tree_util.keystr(path)}; set mesh.{axis} to a divisor of "
                    f"{size}, or num_{name}s (and num_heads) of model.backbone to a "
                    f"multiple of {mesh.shape[axis]}"
                )
        return NamedSharding(mesh, PartitionSpec(*axes))

    return nnx.to_pure_dict(
        jax.tree.map_with_path(
            place, params, is_leaf=lambda x: isinstance(x, nnx.Variable)
        )
    )
