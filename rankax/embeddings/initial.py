"""Initial values of table rows."""

import jax
import jax.numpy as jnp
import numpy as np

from rankax.embeddings.placement import Stack


def rows(key: jax.Array, stack: Stack, depth: int) -> jax.Array:
    """Returns float32 [depth, D]: noise, scaled at every depth as its table asks.

    Args:
        key: of the noise.
        stack: placed tables; they share one kind of noise.
        depth: rows, or depths of one virtual shard.
    """
    scale = np.zeros((depth, 1), np.float32)
    for table in stack.tables:
        scale[table.offset :] = table.spec.init_scale
    shape = (depth, stack.dim)
    if stack.tables[0].spec.init == "uniform":
        return jnp.asarray(scale) * jax.random.uniform(key, shape, minval=-1.0)
    return jnp.asarray(scale) * jax.random.normal(key, shape)
