"""Dense layers with PyTorch's initialisers, which the reference models use.

Torch's `xavier_normal_` is an un-truncated normal with std √(2 / (fan_in + fan_out)).
JAX's `glorot_normal` is truncated, so it is not the same distribution.
"""

from flax import nnx
import jax

XAVIER_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
XAVIER_UNIFORM = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def linear(
    width_in: int,
    width_out: int,
    *,
    rngs: nnx.Rngs,
    init: jax.nn.initializers.Initializer = XAVIER_NORMAL,
) -> nnx.Linear:
    """Returns x·W + b with W [in, out] Xavier-initialised and b = 0."""
    return nnx.Linear(width_in, width_out, kernel_init=init, rngs=rngs)
