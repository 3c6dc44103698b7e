"""MC-MLCC's crossing against loops over its definition, and its options."""

import dataclasses
import functools
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_module import randomized, run

from rankax.config.base import ConfigError
from rankax.layers.norms import unit_rms
from rankax.models.backbones.mc_mlcc import LayeredCrossing, MCMLCCConfig
from rankax.models.base import Features, InputSpec, build_backbone

ACTIVATIONS = {
    "": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
}


def crossing_by_loops(config, x, gc, lc):
    """GC, PLC and LC of the paper, one example, channel, head and layer at a time."""
    e = config.channel_dim
    dims = (e, *config.dynamic_dims)
    out = []
    for example in x:
        columns = []
        for s in range(config.num_channels):
            channel = example[:, s * e : (s + 1) * e]
            theta = channel.reshape(-1) @ gc[s].reshape(channel.size, -1)
            for weights in theta.reshape(config.num_heads, -1):
                z, start = channel, 0
                for k, (i, o) in enumerate(itertools.pairwise(dims), 1):
                    if k > 1:
                        z = ACTIVATIONS[config.plc_activation](z)
                    z = z @ weights[start : start + i * o].reshape(i, o)
                    start += i * o
                    if k in config.concat_layers or k == len(dims) - 1:
                        columns.append(z)
        if 0 in config.concat_layers:
            columns.append(example)
        seen = np.concatenate(columns, axis=1)
        out.append(np.stack([v @ w for v, w in zip(seen, lc, strict=True)]))
    return np.stack(out)


@pytest.mark.parametrize(
    "options",
    [
        {"num_channels": 3},
        {"num_channels": 1, "dynamic_dims": (3, 2, 2), "concat_layers": (2, 0)},
        {"num_heads": 1, "concat_layers": ()},
        {"dynamic_dims": (3,), "concat_layers": (0,)},
        {"dynamic_dims": (3, 2, 2), "plc_activation": "silu"},
        {"plc_activation": "relu"},
        {"plc_activation": "tanh"},
    ],
)
def test_the_crossing_equals_loops_over_its_definition(options):
    defaults = {"num_channels": 2, "channel_dim": 4, "num_heads": 2}
    config = MCMLCCConfig(**(defaults | options))
    width = config.num_channels * config.channel_dim
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        crossing = randomized(
            lambda: LayeredCrossing(config, 5, width_out=3, rngs=nnx.Rngs(0))
        )
        params = crossing.global_compressor, crossing.local_compressor
        values = [np.asarray(param[...]) for param in params]
        x = rng.normal(size=(2, 5, width))
        got = run(crossing, x)
        assert got.dtype == jnp.float64
    np.testing.assert_allclose(
        got, crossing_by_loops(config, x, *values), rtol=1e-10, atol=1e-12
    )


def make(**options):
    """A small model on four fields and a number, and a batch for it."""
    options = {
        "channel_dim": 3,
        "num_heads": 2,
        "dynamic_dims": (2, 1),
        "compressed_dim": 4,
        "hidden_dims": (7,),
        "dropout": 0.0,
    } | options
    config = MCMLCCConfig(**options)
    width = config.num_channels * config.channel_dim
    spec = InputSpec(
        tokens=tuple("abcd"),
        dims={"embedding": width},
        numeric=("x",),
        num_tasks=1,
    )
    rng = np.random.default_rng(0)
    features = Features(
        embedded={
            "embedding": jnp.asarray(rng.normal(size=(3, 4, width)), jnp.float32)
        },
        numeric=jnp.asarray(rng.normal(size=(3, 1)), jnp.float32),
    )
    build = functools.partial(build_backbone, config, spec)
    return build, features


def test_all_blocks_but_the_last_keep_the_channels_and_add_up():
    build, features = make(num_blocks=3, token_norm=True)
    model = randomized(lambda: build(rngs=nnx.Rngs(0)))
    numeric = np.asarray(features.numeric)[..., None]
    of_number = numeric * model.numeric_tokens.direction[...]
    of_number += model.numeric_tokens.offset[...]
    x = np.concatenate([features.embedded["embedding"], of_number], axis=1)
    for i in range(3):
        rms = np.sqrt((x**2).mean(axis=-1, keepdims=True))
        rms[:, 4:] = 1  # the number keeps its size
        out = np.asarray(run(model.gates[i], run(model.crossings[i], x / rms)))
        x = x + out if i < 2 else out
    assert x.shape == (3, 5, 4)
    (layer,) = model.mlp.linears
    want = x.reshape(3, -1) @ np.asarray(layer.kernel[...]) + layer.bias[...]
    np.testing.assert_allclose(
        run(model, features), np.maximum(want, 0), rtol=1e-4, atol=1e-5
    )


def test_blocks_have_the_counted_parameters():
    def size(num_blocks):
        build, _ = make(num_blocks=num_blocks)
        model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
        return sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))

    # S = 2, F = 5, E = 3, H = 2, M = 8, C_in = 2·2·(2 + 1) + 6, E' = S·E, R = 2.
    inner = 2 * 5 * 3 * 2 * 8 + 5 * 18 * 6 + (2 * 5 * 2 + 5 + 2)
    assert size(2) - size(1) == size(3) - size(2) == inner


def test_normed_tokens_wake_the_crosses_of_small_embeddings():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    normed = np.asarray(unit_rms(jnp.asarray(1e-2 * x)))
    np.testing.assert_allclose((normed**2).mean(axis=-1), 1, rtol=1e-4)
    np.testing.assert_allclose(unit_rms(jnp.asarray(x)), normed, rtol=1e-4)
    smallest = np.asarray(unit_rms(jnp.full((1, 4), 1e-4)))  # as tables of INFNet start
    np.testing.assert_allclose(smallest, 1, rtol=0.01)


def test_a_row_of_zeros_stays_zero_and_gets_a_gradient_near_that_of_a_small_row():
    def slope(x):
        return np.abs(jax.jacobian(unit_rms)(jnp.asarray(x))).max()

    zeros = np.zeros(4, np.float32)  # an empty list, or what such a row was trained to
    np.testing.assert_array_equal(unit_rms(jnp.asarray(zeros)), 0)
    small = 1e-4 * np.array([1, -1, 1, 1], np.float32)
    assert 0 < slope(zeros) < 20 * slope(small)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_the_norm_leaves_numbers_their_size(num_blocks):
    build, features = make(num_blocks=num_blocks, token_norm=True)
    model = randomized(lambda: build(rngs=nnx.Rngs(0)))
    want = np.asarray(run(model, features))
    twice = dataclasses.replace(features, numeric=2 * features.numeric)
    assert np.abs(run(model, twice) - want).max(axis=-1).min() > 0.01
    if num_blocks == 1:  # later blocks add up what they got
        rows = {"embedding": 3 * features.embedded["embedding"]}
        larger = dataclasses.replace(features, embedded=rows)
        np.testing.assert_allclose(run(model, larger), want, rtol=1e-4, atol=1e-5)


def dot_generals(jaxpr):
    """All matrix products of a jaxpr and what it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(value, "eqns"):
                yield from dot_generals(value)


@pytest.mark.parametrize(("activation", "products"), [("", 2), ("relu", 2)])
def test_products_of_products_stay_exact_in_bfloat16(activation, products):
    config = MCMLCCConfig(plc_activation=activation)
    crossing = nnx.eval_shape(
        lambda: LayeredCrossing(
            config, 5, width_out=8, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
        )
    )
    graph, state = nnx.split(crossing)
    jaxpr = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s, copy=True)(x))(
        state, jnp.zeros((2, 5, 32))
    )
    highest = (jax.lax.Precision.HIGHEST,) * 2
    exact, narrow = 0, 0
    for equation in dot_generals(jaxpr.jaxpr):
        types = {str(v.aval.dtype) for v in equation.invars}
        assert str(equation.outvars[0].aval.dtype) == "float32"
        if types == {"float32"}:
            assert equation.params["precision"] == highest
            exact += 1
        else:
            assert types == {"bfloat16"}
            narrow += 1
    assert (exact, narrow) == (products, 3)  # GC, and LC of crosses and raw tokens


def test_batch_norm_is_in_the_mlp():
    build, _ = make(use_batch_norm=True)
    model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
    assert [norm.num_features for norm in model.mlp.norms] == [7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plc_activation": "rlu"}, "'rlu' is unknown; did you mean 'relu'"),
        (
            {"plc_activation": "relu", "dynamic_dims": (2,), "concat_layers": (0,)},
            "stands between dynamic layers, but dynamic_dims has one",
        ),
        ({"num_blocks": 0}, "num_blocks = 0 must be at least 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    build, _ = make(**options)
    with pytest.raises(ConfigError, match=message):
        build(rngs=nnx.Rngs(0))
