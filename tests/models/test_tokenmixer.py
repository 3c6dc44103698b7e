"""RankMixer and TokenMixer-Large against loops, closed forms and published counts."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf
import tokenmixer_reference as reference

from rankax.config.base import ConfigError
from rankax.layers.mlp import MLP
from rankax.layers.per_token import PerTokenSwiGLU
from rankax.layers.token_mixing import mix, revert
from rankax.models.backbones.rankmixer import RankMixer, RankMixerConfig
from rankax.models.backbones.tokenmixer_large import (
    TokenMixerLarge,
    TokenMixerLargeConfig,
)
from rankax.models.base import Features, InputSpec, build_backbone

BATCH = 3


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def inputs(num_fields, dim, num_numeric=0):
    return InputSpec(
        tokens=tuple(f"f{i}" for i in range(num_fields)),
        dims={"embedding": dim},
        numeric=tuple(f"x{i}" for i in range(num_numeric)),
        num_tasks=1,
    )


def make(backbone, config, spec):
    """A backbone and features, both of made-up numbers."""
    model = reference.build(lambda: backbone(config, spec, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(BATCH, spec.num_fields, spec.dims["embedding"]))
    numeric = rng.normal(size=(BATCH, spec.num_numeric))
    features = Features(
        embedded={"embedding": jnp.asarray(rows, jnp.float32)},
        numeric=jnp.asarray(numeric, jnp.float32),
    )
    return model, features


def run(model, features):
    graph, state = nnx.split(model)
    return jax.jit(lambda s, x: nnx.merge(graph, s, copy=True)(x))(state, features)


def flat(features):
    return np.asarray(features.flatten(), np.float64)


# ---------------------------------------------------------------- mix and revert


@pytest.mark.parametrize(
    ("shape", "num_heads", "rows"),
    [
        ((1, 2, 4), 2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        (
            (1, 4, 6),
            3,
            [
                [0, 1, 6, 7, 12, 13, 18, 19],
                [2, 3, 8, 9, 14, 15, 20, 21],
                [4, 5, 10, 11, 16, 17, 22, 23],
            ],
        ),
    ],
)
def test_mix_gives_the_conformance_vectors(shape, num_heads, rows):
    mixed = mix(jnp.arange(np.prod(shape)).reshape(shape), num_heads)
    assert mixed.tolist() == [rows]


@pytest.mark.parametrize("num_heads", [1, 2, 4, 8])
def test_revert_undoes_mix(num_heads):
    x = np.random.default_rng(0).normal(size=(2, 4, 8)).astype(np.float32)
    mixed = mix(jnp.asarray(x), num_heads)
    np.testing.assert_array_equal(mixed, reference.mix(x, num_heads))
    np.testing.assert_array_equal(revert(mixed, 4), x)
    if num_heads == 4:  # H = T: both are the same permutation
        np.testing.assert_array_equal(mix(mixed, 4), x)


# ---------------------------------------------------------------- TokenMixer-Large


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_site": "mixed", "num_heads": 2},
        {"residual": "equation", "norm_site": "mixed", "tokenizer_layers": 1},
        {"num_heads": 8, "residual_interval": 1, "num_blocks": 3},
        {
            "norm_site": "mixed",
            "residual_interval": 2,
            "residual_interval_mode": "mean",
            "num_blocks": 5,
        },
    ],
)
def test_the_model_equals_the_loops(options):
    config = TokenMixerLargeConfig(token_dim=8, num_tokens=4, **options)
    if config.residual_interval:
        config.auxiliary_weight = 0.1
    model, features = make(TokenMixerLarge, config, inputs(4, 3, num_numeric=2))
    out = run(model, features)
    x = reference.tokens(model.tokenizer, flat(features))
    streams = reference.streams(model, config, x)
    close = {"rtol": 1e-4, "atol": 1e-4}
    want = reference.rms(model.norm, streams[-1]).mean(axis=1)
    np.testing.assert_allclose(out.hidden, want, **close)
    assert out.penalty is None and not out.metrics

    interval, num_blocks = config.residual_interval, config.num_blocks
    layers = [i for i in range(1, num_blocks) if interval and i % interval == 0]
    assert len(out.lower) == len(layers) == len(model.lower_norms)
    for lower, norm, layer in zip(out.lower, model.lower_norms, layers, strict=True):
        want = reference.rms(norm, streams[layer - 1]).mean(axis=1)
        np.testing.assert_allclose(lower, want, **close)
    assert model.auxiliary_weight == config.auxiliary_weight


def test_pooling_can_take_the_global_token():
    config = TokenMixerLargeConfig(token_dim=8, num_tokens=4, pool="global_token")
    model, features = make(TokenMixerLarge, config, inputs(4, 3))
    x = reference.tokens(model.tokenizer, flat(features))
    last = reference.streams(model, config, x)[-1]
    want = reference.rms(model.norm, last)[:, 0]
    np.testing.assert_allclose(run(model, features).hidden, want, rtol=1e-4, atol=1e-4)


def test_the_global_token_reads_raw_inputs_and_not_the_other_tokens():
    config = TokenMixerLargeConfig(token_dim=8, num_tokens=4)
    model, features = make(TokenMixerLarge, config, inputs(5, 3, num_numeric=1))
    tokenizer, x = model.tokenizer, flat(features)
    before = run(tokenizer, x)
    for mlp in list(tokenizer.mlps)[1:]:
        mlp[0].kernel.set_value(np.zeros(mlp[0].kernel.shape, np.float32))
    after = np.asarray(run(tokenizer, x))
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert np.any(before, axis=-1).all() and not after[:, 1:].any()
    first, second = (reference.weights(layer.kernel) for layer in tokenizer.mlps[0])
    want = reference.silu(x @ first) @ second  # of all inputs, in the groups' order
    np.testing.assert_allclose(after[:, 0], want, rtol=1e-4, atol=1e-5)


def test_weights_of_a_position_change_its_token_alone():
    config = TokenMixerLargeConfig(token_dim=8, num_tokens=4)
    model, _ = make(TokenMixerLarge, config, inputs(4, 3))
    block = model.blocks[0]
    graph, state = nnx.split(block)
    forward = jax.jit(lambda s, x: nnx.merge(graph, s, copy=True)(x)[0])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8)), jnp.float32)
    before = forward(state, x)
    for stage, reached in ((block.revert_stage, [2]), (block.mix_stage, [0, 1, 2, 3])):
        for layer in (stage.gate, stage.up, stage.down):
            kernel = layer.kernel[...]
            layer.kernel.set_value(kernel.at[2].add(1.0))
            after = forward(nnx.state(block), x)
            changed = np.any(np.asarray(after != before), axis=(0, 2))
            assert changed.nonzero()[0].tolist() == reached
            layer.kernel.set_value(kernel)


@pytest.mark.parametrize("num_heads", [4, 2])
@pytest.mark.parametrize("norm_site", ["token", "mixed"])
@pytest.mark.parametrize("experts", [0, 4])
def test_parameters_are_those_of_the_formula(num_heads, norm_site, experts):
    t, d, h, n, blocks, e, k = 4, 8, num_heads, 2, 3, experts, 3
    config = TokenMixerLargeConfig(
        token_dim=d,
        num_tokens=t,
        num_heads=h,
        num_blocks=blocks,
        expansion=n,
        norm_site=norm_site,
        num_experts=e,
        num_active_experts=k if e else 0,
    )
    spec = inputs(5, 6, num_numeric=3)
    model = nnx.eval_shape(lambda: TokenMixerLarge(config, spec, rngs=nnx.Rngs(0)))
    groups = model.tokenizer.groups.dims
    assert sum(groups) == 5 * 6 + 3
    tokenizer = sum(g * d + d * d for g in groups) + sum(groups) * d + d * d
    weights = 3 * n * t * d * d * (1 + t / h)
    norms = 2 * d if norm_site == "token" else d + d * t // h
    routers = (t * d + h * (t * d // h)) * (e - 1) if e else 0
    assert count(model) == tokenizer + blocks * (weights + norms + routers) + d
    if e:
        inactive = sum(
            stage.num_inactive_parameters
            for block in model.blocks
            for stage in (block.mix_stage, block.revert_stage)
        )
        assert inactive == blocks * weights * (1 - k / e)


def test_initial_bounds_are_those_of_one_positions_matrix():
    stage = PerTokenSwiGLU(64, 8, 24, down_scale=0.01, rngs=nnx.Rngs(0))
    bound = (6 / (8 + 24)) ** 0.5
    for layer, scale in ((stage.gate, 1), (stage.up, 1), (stage.down, 0.01)):
        kernel = np.asarray(layer.kernel[...])
        assert np.abs(kernel).max() == pytest.approx(scale * bound, rel=1e-3)
        assert kernel.std() == pytest.approx(scale * bound / 3**0.5, rel=0.02)


def test_few_inputs_make_few_tokens():
    def num_tokens(num_fields, **options):
        config = TokenMixerLargeConfig(**options)
        build = lambda: TokenMixerLarge(config, inputs(num_fields, 4), rngs=nnx.Rngs(0))  # noqa: E731
        return nnx.eval_shape(build).tokenizer.num_tokens

    assert [num_tokens(n) for n in (1, 3, 6, 7, 14, 15, 40)] == [2, 4, 4, 8, 8, 16, 16]
    assert num_tokens(40, token_dim=24) == 8
    assert num_tokens(3, groups=(("f2", "f0"), ("f1",)), num_heads=4) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"residual": "equation"}, "'equation' normalises mixed tokens; set norm_site"),
        ({"norm_site": "mixd"}, "'mixd' is unknown; did you mean 'mixed'"),
        ({"tokenizer_layers": 3}, "tokenizer_layers = 3 is unknown; known: 1, 2"),
        ({"num_blocks": 0}, "num_blocks = 0 must be at least 1"),
        ({"residual_interval": 2}, "= 2 would never apply: the last of num_blocks = 2"),
        (
            {"residual_interval_mode": "mean"},
            "'mean' acts after every residual_interval",
        ),
        ({"auxiliary_weight": 0.1}, "= 0.1 acts after every residual_interval"),
        ({"num_experts": 4, "num_active_experts": 2}, "its router never learns"),
        ({"num_experts": 4}, "num_active_experts = 0 must be from 3 to num_experts"),
        (
            {"num_experts": 5, "num_active_experts": 3},
            "= 5 must divide the hidden width 16",
        ),
        ({"expert_scale": 2.0}, "expert_scale = 2.0 is of experts; set num_experts"),
        ({"execution": "ragged"}, "execution = 'ragged' is of experts"),
        ({"num_heads": 3}, "3 mixed tokens must divide token_dim = 8"),
        ({"num_tokens": 7}, "num_tokens = 7 must be from 2 to 6"),
        ({"num_tokens": 5, "groups": (("f0",),)}, "num_tokens = 5, but 1 groups"),
    ],
)
def test_options_that_do_not_fit_are_an_error(options, message):
    config, spec = TokenMixerLargeConfig(token_dim=8, **options), inputs(5, 3)
    with pytest.raises(ConfigError, match=message):
        nnx.eval_shape(lambda: build_backbone(config, spec, rngs=nnx.Rngs(0)))


def test_products_have_the_compute_dtype_and_routers_do_not():
    config = TokenMixerLargeConfig(
        token_dim=8,
        num_blocks=1,
        num_experts=4,
        num_active_experts=3,
        execution="dense",
    )
    spec = InputSpec(
        tokens=("a", "b", "c"),
        dims={"embedding": 4},
        num_tasks=1,
        dtype="bfloat16",
    )
    model, features = make(TokenMixerLarge, config, spec)
    jaxpr = jax.make_jaxpr(lambda x: model(x).hidden)(features).jaxpr
    products = [
        [x.aval for x in eqn.invars]
        for eqn in jaxpr.eqns
        if eqn.primitive.name == "dot_general"
    ]
    wide = [p for p in products if any(x.dtype != jnp.bfloat16 for x in p)]
    assert len(products) == 2 * 4 + 2 * (3 + 3) + 2  # tokenizer, stages, routers
    assert [max(x.shape for x in p) for p in wide] == [(4, 8, 3)] * 2  # routers
    out = jax.eval_shape(lambda x: model(x), features)
    assert out.hidden.dtype == jnp.float32


@pytest.mark.parametrize(
    ("backbone", "config", "num_masks"),
    [
        (TokenMixerLarge, TokenMixerLargeConfig(token_dim=8, dropout=0.5), 1 + 2 * 2),
        (RankMixer, RankMixerConfig(token_dim=8, dropout=0.5), 1 + 2),
    ],
)
def test_dropout_reaches_tokens_and_stages_in_training_only(
    backbone, config, num_masks
):
    model, features = make(backbone, config, inputs(4, 3))

    def num_drawn(**streams):
        forward = lambda x: model(x, rngs=nnx.Rngs(**streams))  # noqa: E731
        equations = jax.make_jaxpr(forward)(features).jaxpr.eqns
        return sum(e.params.get("name") == "_bernoulli" for e in equations)

    model.train()
    assert num_drawn(dropout=0) == num_masks
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(lambda x: model(x), features)
    model.eval()
    assert num_drawn() == 0


# ---------------------------------------------------------------- RankMixer


def test_rankmixer_equals_the_loops():
    config = RankMixerConfig(token_dim=8, num_tokens=4, expansion=2)
    model, features = make(RankMixer, config, inputs(5, 3))
    tokenizer = model.tokenizer
    assert tokenizer.padding == 1  # 15 numbers in 4 slices of 4

    def affine(layer, t, x):
        kernel, bias = reference.weights(layer.kernel), reference.weights(layer.bias)
        return x @ kernel[t] + bias[t]

    def norm(layer, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * reference.weights(layer.scale) + reference.weights(layer.bias)

    padded = np.pad(flat(features), ((0, 0), (0, 1)))
    x = np.stack(
        [
            affine(tokenizer.projections, t, padded[:, 4 * t : 4 * t + 4])
            for t in range(4)
        ],
        axis=1,
    )
    for block in model.blocks:
        s = norm(block.mix_norm, reference.mix(x, 4) + x)
        out = []
        for t in range(4):
            hidden = affine(block.ffn.first, t, s[:, t])
            hidden = hidden * (1 + erf(hidden / 2**0.5)) / 2
            out.append(affine(block.ffn.second, t, hidden))
        x = norm(block.ffn_norm, np.stack(out, axis=1) + s)
    want = x.mean(axis=1)
    np.testing.assert_allclose(run(model, features), want, rtol=1e-4, atol=1e-5)


def test_rankmixer_has_the_published_parameter_counts():
    # Blocks of RankMixer-100M: 2·k·L·T·D², biases and norms; page says 75.5M for k = 2.
    config = RankMixerConfig(token_dim=768, num_tokens=16)
    model = nnx.eval_shape(lambda: RankMixer(config, inputs(16, 16), rngs=nnx.Rngs(0)))
    extra = 2 * (16 * 3 * 768 + 4 * 768)
    assert count(model.blocks) - extra == 2 * 2 * 2 * 16 * 768**2 == 75_497_472
    # The repository of MLCC on Criteo: a token per field, norms without parameters, and
    # an MLP on all tokens side by side.
    config = RankMixerConfig(token_dim=78, num_tokens=39, expansion=4)
    model = nnx.eval_shape(lambda: RankMixer(config, inputs(39, 16), rngs=nnx.Rngs(0)))
    mlp = nnx.eval_shape(lambda: MLP(39 * 78, (256, 128, 64, 32), rngs=nnx.Rngs(0)))
    norms = 2 * 4 * 78
    assert count(model) - norms + count(mlp) + 32 + 1 == 4_700_823


def test_groups_are_the_order_of_rankmixers_slices():
    spec = inputs(3, 2, num_numeric=2)
    groups = (("f2", "x1"), ("f0",), ("x0", "f1"))
    config = RankMixerConfig(token_dim=8, num_tokens=2, groups=groups)
    model, features = make(RankMixer, config, spec)
    f, v = np.asarray(features.embedded["embedding"]), np.asarray(features.numeric)
    want = [f[:, 2], v[:, 1:], f[:, 0], v[:, :1], f[:, 1]]
    got = jnp.concatenate(model.tokenizer.groups.split(features.flatten()), axis=1)
    np.testing.assert_array_equal(got, np.concatenate(want, axis=1))


def test_rankmixer_leaves_no_slice_empty():
    def num_tokens(num_fields, dim, **options):
        config, spec = RankMixerConfig(**options), inputs(num_fields, dim)
        model = nnx.eval_shape(lambda: RankMixer(config, spec, rngs=nnx.Rngs(0)))
        return model.tokenizer.num_tokens

    assert [num_tokens(f, 10) for f in (1, 3, 10, 16, 18)] == [1, 2, 8, 16, 8]
    with pytest.raises(ConfigError, match=r"num_tokens = 16 must.*use 8, or 0"):
        num_tokens(18, 10, num_tokens=16)  # 15 slices of 12 hold all 180 numbers
    with pytest.raises(ConfigError, match="num_tokens = 5 must divide token_dim = 64"):
        num_tokens(18, 10, num_tokens=5)
