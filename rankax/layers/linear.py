"""Dense layers with PyTorch's initialisers, which the reference models use.

Torch's `xavier_normal_` is an un-truncated normal with std √(2 / (fan_in + fan_out)).
JAX's `glorot_normal` is truncated, so it is not the same distribution.
"""

from flax import nnx
import jax
from jax.typing import DTypeLike

XAVIER_NORMAL = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "normal")
XAVIER_UNIFORM = jax.nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")


def operands(dtype: DTypeLike | None, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Casts the operands of a matrix product; `dtype` None leaves them as they are."""
    return arrays if dtype is None else tuple(x.astype(dtype) for x in arrays)


def linear(
    width_in: int,
    width_out: int,
    *,
    rngs: nnx.Rngs,
    init: jax.nn.initializers.Initializer = XAVIER_NORMAL,
    use_bias: bool = True,
    dtype: DTypeLike | None = None,
) -> nnx.Linear:
    """Returns x·W + b with W [in, out] Xavier-initialised and b = 0.

    The weights are float32; operands and result are of `dtype` if one is given.
    """
    return nnx.Linear(
        width_in,
        width_out,
        kernel_init=init,
        use_bias=use_bias,
        dtype=dtype,
        rngs=rngs,
    )
