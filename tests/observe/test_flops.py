import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from rankax.observe import flops
from rankax.observe.flops import Operations


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def by_xla(function, *arguments):
    """XLA's count of the program as it was traced, nothing optimised."""
    found = jax.jit(function).lower(*arguments).cost_analysis()
    return found.get("flops", 0), found.get("transcendentals", 0)


@pytest.mark.parametrize(
    "equation, shapes, multiplications",
    [
        ("mk,kn->mn", [(5, 7), (7, 3)], 5 * 7 * 3),
        ("bmk,bkn->bmn", [(4, 5, 7), (4, 7, 3)], 4 * 5 * 7 * 3),
        ("btd,tdf->btf", [(6, 2, 8), (2, 8, 16)], 6 * 2 * 8 * 16),
        ("bfi,bio->bfo", [(6, 9, 4), (6, 4, 1)], 6 * 9 * 4),
        ("k,k->", [(11,), (11,)], 11),
    ],
)
def test_a_product_costs_two_flops_a_multiplication(equation, shapes, multiplications):
    def product(x, y):
        return jnp.einsum(equation, x, y)

    found = flops.count(product, *(array(*shape) for shape in shapes))
    assert found == Operations(products=2 * multiplications)


def test_a_convolution_costs_its_window_at_every_output():
    def convolve(x, w):
        return lax.conv_general_dilated(x, w, (1,), "VALID", feature_group_count=2)

    found = flops.count(convolve, array(2, 6, 10), array(4, 3, 5))
    assert found == Operations(products=2 * (2 * 4 * 6) * (3 * 5))


def test_a_ragged_product_and_its_gradients_multiply_each_row_once():
    rows, groups, k, n = 20, 4, 6, 5
    arguments = array(rows, k), array(groups, k, n), array(groups, dtype=jnp.int32)
    each = 2 * rows * k * n
    assert flops.count(lax.ragged_dot, *arguments) == Operations(products=each)

    def loss(x, w, sizes):
        return lax.ragged_dot(x, w, sizes).sum()

    gradients = jax.grad(loss, argnums=(0, 1))
    assert flops.count(gradients, *arguments).products == 2 * each


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2 * x + x / 3 - jnp.maximum(x, 0),
        lambda x: jnp.where(x > 0, x, 0),
        lambda x: x**2 + x**5 + x**-3.0,
        lambda x: x.astype(jnp.bfloat16),
        lambda x: x.sum(axis=1) + x.max(axis=1) + x.mean(),
        lambda x: x.at[jnp.array([1, 3])].add(1.0),
        lambda x: jnp.concatenate([x.T.reshape(x.shape), x[:, ::-1]])[3:],
        jax.nn.sigmoid,
        jax.nn.silu,
        functools.partial(jax.nn.gelu, approximate=False),
        jax.nn.softmax,
        lambda x: jnp.tanh(x) + jnp.exp(x) + lax.rsqrt(x) + jnp.log1p(x),
        lambda x: (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5),
        jax.checkpoint(lambda x: jnp.sin(x) @ x.T),
        jax.grad(lambda x: jax.nn.relu(x @ x.T).sum()),
    ],
)
def test_the_count_is_that_of_xla(function):
    found = flops.count(function, array(8, 400))
    expected, transcendentals = by_xla(function, array(8, 400))
    assert found.flops == pytest.approx(expected, rel=0.01)
    assert found.transcendentals == transcendentals


def test_a_loop_counts_as_often_as_it_runs():
    def body(x, _):
        return jnp.tanh(x @ x), x.sum()

    def scan(x):
        return lax.scan(body, x, None, length=6)

    once = flops.count(lambda x: body(x, None), array(4, 4))
    assert once == Operations(2 * 4**3, 15, 16)
    assert flops.count(scan, array(4, 4)) == once.times(6)

    def nested(x):
        return lax.fori_loop(0, 3, lambda _, x: scan(x)[0], x)

    inner = flops.count(lambda x: scan(x)[0], array(4, 4))
    assert flops.count(nested, array(4, 4)) == inner.times(3)


def test_of_branches_the_most_expensive_one_counts():
    def choose(index, x):
        return lax.switch(index, [lambda x: x, lambda x: x @ x @ x, lambda x: x @ x], x)

    found = flops.count(choose, array(dtype=jnp.int32), array(5, 5))
    assert found.products == 2 * 2 * 5**3


def test_what_the_result_ignores_is_free():
    def function(x):
        unused = jax.jit(lambda x: jnp.exp(x @ x))(x)
        del unused
        return x + 1

    assert flops.count(function, array(5, 5)) == Operations(others=25)


def test_what_cannot_be_counted_is_an_error_and_not_a_guess():
    def until(x):
        return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ x, x)

    with pytest.raises(NotImplementedError, match=r"'while'.*use lax\.scan"):
        flops.count(until, array(3, 3))


def test_what_every_device_does_counts_on_all_of_them():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), "x")
    split = PartitionSpec("x")
    on_each = jax.shard_map(
        lambda x, w: x @ w,
        mesh=mesh,
        in_specs=(split, PartitionSpec()),
        out_specs=split,
    )
    found = flops.count(on_each, array(8, 3), array(3, 5))
    assert found == Operations(products=2 * 8 * 3 * 5)
