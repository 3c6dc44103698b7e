"""Modules of random weights, quick to build and to run."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np


def randomized(build):
    """Builds a module with every parameter random: no zero or one hides a mistake.

    Nothing of its own initialisation is compiled.
    """
    module = nnx.eval_shape(build)
    rng = np.random.default_rng(0)
    for _, param in nnx.to_flat_state(nnx.state(module, nnx.Param)):
        like = param.get_value()
        value = rng.normal(size=like.shape) / 2
        param.set_value(jnp.asarray(value, like.dtype))
    return module


def run(module, *inputs):
    """Calls a module; those of the same structure share one compilation."""
    graph, state = nnx.split(module)
    return _run(graph, state, *inputs)


@functools.partial(jax.jit, static_argnums=0)
def _run(graph, state, *inputs):
    return nnx.merge(graph, state, copy=True)(*inputs)
