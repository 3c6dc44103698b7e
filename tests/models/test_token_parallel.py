"""Token Parallel on simulated devices: same numbers, and no exchange too many."""

import collections
import functools
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenmixer_reference as reference

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data.card import Card, CategoricalField, Label, Split, Table
from rankax.data.schema import Schema
from rankax.models.backbones.tokenmixer_large import (
    TokenMixerLarge,
    TokenMixerLargeConfig,
)
from rankax.models.base import Features, InputSpec, named_config
from rankax.parallel import mesh as meshes
from rankax.parallel import rules
from rankax.training.step import Steps

BATCH = 8
SPEC = InputSpec(tokens=("a", "b", "c"), dims={"embedding": 4}, num_tasks=1)
SLOWLY = functools.partial(pytest.param, marks=pytest.mark.slow)
EXPERTS = {"num_experts": 4, "num_active_experts": 3}
COLLECTIVES = (
    r"(all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute|"
    r"collective-broadcast)(?:-start)?\("
)


def make_mesh(data, model):
    devices = jax.devices()[: data * model]
    return meshes.make_mesh(data=data, model=model, devices=devices)


def split(**options):
    """Graph and weights of a backbone of 4 tokens of 8."""
    config = TokenMixerLargeConfig(token_dim=8, **options)
    return nnx.split(
        reference.build(lambda: TokenMixerLarge(config, SPEC, rngs=nnx.Rngs(0)))
    )


def collectives(mesh, **options):
    """Counts the collectives of the compiled forward pass, batch in, batch out."""
    graph, params = split(**options)
    shardings = rules.shardings(params, mesh)
    by_example = meshes.over_all_devices(mesh)

    def shape(x, sharding):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def forward(params, rows):
        features = Features(embedded={"embedding": rows}, numeric=jnp.zeros((BATCH, 0)))
        result = nnx.merge(graph, params, copy=True)(features)
        return result.hidden, result.lower

    weights = jax.tree.map(shape, nnx.to_pure_dict(params), shardings)
    rows = shape(jnp.zeros((BATCH, 3, 4)), by_example)
    with jax.set_mesh(mesh):
        compiled = jax.jit(forward, out_shardings=by_example).lower(weights, rows)
        text = compiled.compile().as_text()
    return dict(collections.Counter(re.findall(COLLECTIVES, text)))


@pytest.mark.guard
@pytest.mark.parametrize("num_blocks", [SLOWLY(1), 2, SLOWLY(4)])
@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({"norm_site": "mixed"}, 1),
        ({"norm_site": "token"}, 2),
        ({"norm_site": "mixed", "residual": "equation"}, 2),
    ],
)
def test_a_forward_pass_has_two_exchanges_a_block_and_one_or_two_more(
    num_blocks, options, extra
):
    if num_blocks == 4:  # interval residuals cost no exchange, an auxiliary head does
        options = options | {"residual_interval": 2, "auxiliary_weight": 0.1}
        is_figure = options.get("residual") != "equation"
        extra += 2 if is_figure and options["norm_site"] == "mixed" else 1
    found = collectives(make_mesh(1, 4), num_blocks=num_blocks, **options)
    assert found == {"all-to-all": 2 * num_blocks + extra}


@pytest.mark.guard
@pytest.mark.slow
@pytest.mark.parametrize("execution", ["auto", "ragged"])  # auto: dense, on CPU
def test_experts_add_no_exchange(execution):
    options = EXPERTS | {"num_blocks": 1, "execution": execution}
    found = collectives(make_mesh(1, 4), norm_site="mixed", **options)
    assert found == {"all-to-all": 3}
    assert collectives(make_mesh(4, 1), **options) == {}


@functools.cache
def unsharded(options):
    """A training step, its weights and rows, and what it gives on one device."""
    graph, params = split(**dict(options))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(BATCH, 3, 4)).astype(np.float32)

    def loss(params, rows):
        features = Features(embedded={"embedding": rows}, numeric=jnp.zeros((BATCH, 0)))
        hidden = nnx.merge(graph, params, copy=True)(features).hidden
        return jnp.sin(3 * hidden).sum(), hidden

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    return step, params, rows, step(nnx.to_pure_dict(params), rows)


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((1, 4), {"num_blocks": 1}),
        ((2, 2), {"num_blocks": 1}),
        SLOWLY((2, 2), {"num_blocks": 1, "execution": "ragged", **EXPERTS}),
        SLOWLY((4, 1), {"num_blocks": 1, "execution": "ragged", **EXPERTS}),
        SLOWLY((2, 2), {"norm_site": "mixed", "residual": "equation", "num_heads": 8}),
        SLOWLY((2, 2), {"norm_site": "mixed", "residual_interval": 1}),
    ],
)
def test_sharded_weights_give_the_same_values_and_gradients(axes, options):
    step, params, rows, want = unsharded(tuple(options.items()))
    mesh = make_mesh(*axes)
    params = jax.device_put(nnx.to_pure_dict(params), rules.shardings(params, mesh))
    for x in jax.tree.leaves(params["blocks"][0]["mix_stage"]):
        assert x.sharding.shard_shape(x.shape)[0] == x.shape[0] // axes[1]
    with jax.set_mesh(mesh):
        got = step(params, jax.device_put(rows, meshes.over_all_devices(mesh)))
    close = {"rtol": 1e-4, "atol": 1e-4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), got, want)


def test_pins_are_nothing_without_a_split_model_axis():
    graph, params = split(num_blocks=1)

    def forward(rows):
        features = Features(embedded={"embedding": rows}, numeric=jnp.zeros((BATCH, 0)))
        return nnx.merge(graph, params, copy=True)(features).hidden

    def num_pins():
        program = jax.make_jaxpr(forward)(jnp.zeros((BATCH, 3, 4)))
        return str(program).count("sharding_constraint")

    assert num_pins() == 0
    with jax.set_mesh(make_mesh(4, 1)):
        assert num_pins() == 0
    with jax.set_mesh(make_mesh(1, 4)):
        assert num_pins() > 8


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("rankmixer", {"token_dim": 6, "num_tokens": 3}),
        ("tokenmixer_large", {"token_dim": 6, "num_tokens": 3, "num_heads": 2}),
        ("tokenmixer_large", {"token_dim": 6, "num_tokens": 4, "num_heads": 3}),
    ],
)
def test_a_run_on_devices_that_cannot_share_the_tokens_is_refused(model, options):
    schema = Schema.select(
        Card(
            name="toy",
            tables=tuple(Table(name=name, num_rows=5) for name in SPEC.tokens),
            fields=tuple(CategoricalField(name=n, table=n) for n in SPEC.tokens),
            labels=(Label(name="click"),),
            splits={"train": Split(num_rows=1)},
        )
    )
    config = ExperimentConfig()
    config.model.backbone = named_config(model, **options)
    Steps(config, schema, make_mesh(4, 1))
    with pytest.raises(
        ConfigError,
        match=r"mesh\.model = 2 cannot share the 3 tokens of .* num_tokens \(and num_h",
    ):
        Steps(config, schema, make_mesh(2, 2))
