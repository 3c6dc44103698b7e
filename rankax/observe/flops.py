"""Arithmetic of a function of arrays, counted on its jaxpr; nothing is compiled.

    matrix product           2 · M · N · K for every matrix of the batch
    ragged product           2 · rows · N · K: a row meets the matrix of its own group
    convolution              2 · outputs · weights of one output
    elementwise operation    1 per output, a change of the number format included
    reduction                1 per input, less 1 per output
    movement                 0: gathers, sorts, reshapes

Transcendental functions (exp, tanh, √, …) are counted apart, one per output, as XLA's
`cost_analysis` does. That one counts the body of a loop once, however often it runs,
and on CPU a ragged product as if every row met the matrices of all groups.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


@dataclasses.dataclass(frozen=True, slots=True)
class Operations:
    """What is computed.

    Attributes:
        products: FLOPs of matrix products and convolutions.
        others: FLOPs of elementwise operations and reductions.
        transcendentals: evaluations of transcendental functions, no FLOPs.
    """

    products: int = 0
    others: int = 0
    transcendentals: int = 0

    @property
    def flops(self) -> int:
        """Multiplications, additions, comparisons and their like."""
        return self.products + self.others

    def __add__(self, other: "Operations") -> "Operations":
        """Sums every kind."""
        return Operations(
            self.products + other.products,
            self.others + other.others,
            self.transcendentals + other.transcendentals,
        )

    def times(self, count: int) -> "Operations":
        """Returns the operations of `count` repetitions."""
        return Operations(
            count * self.products, count * self.others, count * self.transcendentals
        )


def count(function: Callable[..., Any], *arguments: Any) -> Operations:
    """Counts what one call computes of its result; what the result ignores is free.

    Of the branches of a `cond` the most expensive one counts.

    Args:
        function: any function that can be traced.
        arguments: arrays, or `jax.ShapeDtypeStruct`s in their place.

    Raises:
        NotImplementedError: the work depends on values or on a foreign kernel.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    used, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _of_jaxpr(used)


_MOVEMENT = {
    "bitcast_convert_type", "broadcast_in_dim", "concatenate", "copy", "copy_p",
    "dynamic_slice", "dynamic_update_slice", "gather", "iota", "optimization_barrier",
    "pad", "pcast", "pvary", "reshape", "rev", "scatter", "sharding_constraint",
    "slice", "sort", "split", "squeeze", "stack", "stop_gradient", "tile", "top_k",
    "transpose", "unstack",
}  # fmt: skip
_PLAIN_TRANSCENDENTAL = (
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "cos", "cosh",
    "erf", "exp", "exp2", "expm1", "log", "log1p", "pow", "rsqrt", "sin", "sinh",
    "sqrt", "tan", "tanh",
)  # fmt: skip
# With the FLOPs beside one evaluation, where XLA has no instruction of that name: it
# makes 1 / (1 + exp(−x)), and rational functions for the erfc of the exact GELU.
_TRANSCENDENTAL = dict.fromkeys(_PLAIN_TRANSCENDENTAL, 0) | {"logistic": 3, "erfc": 62}
_REDUCTION = {
    "argmax", "argmin", "reduce", "reduce_and", "reduce_max", "reduce_min", "reduce_or",
    "reduce_prod", "reduce_sum", "reduce_xor",
}  # fmt: skip
_CUMULATIVE = {"cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"}
_UNKNOWN = {
    "while": "how often its loop runs depends on values; use lax.scan, or "
    "lax.fori_loop with bounds that are Python numbers",
    **dict.fromkeys(
        ("ffi_call", "io_callback", "pallas_call", "pure_callback"),
        "its kernel is not made of jax operations",
    ),
    **dict.fromkeys(
        (
            "cholesky",
            "eig",
            "eigh",
            "fft",
            "lu",
            "qr",
            "svd",
            "triangular_solve",
        ),
        "no formula for it here",
    ),
}


def _of_jaxpr(jaxpr: Any) -> Operations:
    return sum(map(_of_equation, jaxpr.eqns), Operations())


def _of_equation(equation: Any) -> Operations:
    name, params = equation.primitive.name, equation.params
    inputs = [x.aval for x in equation.invars]
    shape = equation.outvars[0].aval.shape if equation.outvars else ()
    outputs = math.prod(shape)
    match name:
        case "dot_general":
            contracted, _ = params["dimension_numbers"][0]
            return Operations(products=2 * outputs * _size(inputs[0], contracted))
        case "ragged_dot_general":
            return Operations(products=_of_ragged_product(params, inputs, outputs))
        case "conv_general_dilated":
            features = inputs[1].shape[params["dimension_numbers"].rhs_spec[0]]
            return Operations(products=2 * outputs * inputs[1].size // features)
        case "scan":
            return _of_jaxpr(params["jaxpr"]).times(params["length"])
        case "shard_map":  # what one device does
            return _of_jaxpr(params["jaxpr"]).times(params["mesh"].size)
        case "cond":
            branches = [_of_jaxpr(branch) for branch in params["branches"]]
            return max(branches, key=lambda operations: operations.flops)
        case "integer_pow":  # by squaring, and one division if it is negative
            power = abs(params["y"])
            products = max(power.bit_length() + power.bit_count() - 2, 0)
            return Operations(others=outputs * (products + (params["y"] < 0)))
        case _ if name.startswith("scatter-"):  # -add, -max, …
            return Operations(others=inputs[2].size)
        case "convert_element_type" if inputs[0].dtype == params["new_dtype"]:
            return Operations()
    if name in _MOVEMENT:
        return Operations()
    if name in _TRANSCENDENTAL:
        others = _TRANSCENDENTAL[name] * outputs
        return Operations(others=others, transcendentals=outputs)
    if name in _REDUCTION:
        return Operations(others=inputs[0].size - outputs)
    if name in _CUMULATIVE:
        return Operations(others=inputs[0].size)
    if name in _UNKNOWN:
        raise NotImplementedError(
            f"cannot count the FLOPs of {name!r}: {_UNKNOWN[name]}"
        )
    inner = list(core.jaxprs_in_params(params))
    if inner:  # a call: jit, custom_jvp_call, custom_vjp_call, remat
        return sum(map(_of_jaxpr, inner), Operations())
    return Operations(others=outputs)


def _of_ragged_product(params: dict[str, Any], inputs: list[Any], outputs: int) -> int:
    """FLOPs of rows that meet the matrices of their groups, or of the gradient."""
    numbers = params["ragged_dot_dimension_numbers"]
    (contracted, _), _ = numbers.dot_dimension_numbers
    flops = 2 * outputs * _size(inputs[0], contracted)
    if set(numbers.lhs_ragged_dimensions) & set(contracted):
        return flops // inputs[2].shape[-1]  # each row adds to one group's output
    return flops


def _size(aval: Any, dimensions: tuple[int, ...]) -> int:
    return math.prod(aval.shape[axis] for axis in dimensions)
