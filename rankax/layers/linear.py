"""Dense layers with PyTorch's initialisers, which the reference models use.

Torch's `xavier_normal_` is an un-truncated normal with std √(2 / (fan_in + fan_out)).
JAX's `glorot_normal` is truncated, so it is not the same distribution.
"""

from typing import Any

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
    result_dtype: DTypeLike | None = None,
) -> nnx.Linear:
    """Returns x·W + b with W [in, out] Xavier-initialised and b = 0.

    The weights are float32; operands are of `dtype` if one is given, and the result of
    `result_dtype` or else theirs.
    """
    return nnx.Linear(
        width_in,
        width_out,
        kernel_init=init,
        use_bias=use_bias,
        dtype=dtype,
        preferred_element_type=result_dtype,
        dot_general=_product_of_rows,
        rngs=rngs,
    )


def _product_of_rows(
    x: jax.Array, kernel: jax.Array, dimension_numbers: Any, *args: Any, **options: Any
) -> jax.Array:
    """x·W of [..., in] as one product of two matrices.

    The gradient of W would else sum over several axes, and XLA on a CPU would copy its
    operands into another order first.
    """
    del dimension_numbers  # those of nnx.Linear: the last axis with the first
    rows = x.reshape(-1, x.shape[-1])
    product = jax.lax.dot_general(
        rows, kernel, (((1,), (0,)), ((), ())), *args, **options
    )
    return product.reshape(*x.shape[:-1], -1)
