"""Conformance with the papers: exact counts, vectors and closed forms."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_module import randomized, run

from rankax.config.base import ConfigError
from rankax.layers.cross import CrossNet
from rankax.layers.mlp import MLP
from rankax.layers.squeeze_excitation import FieldGate
from rankax.models.backbones.dcnv2 import DCNv2, DCNv2Config
from rankax.models.backbones.deepfm import DeepFM, DeepFMConfig
from rankax.models.backbones.dlrm import DLRM, DLRMConfig
from rankax.models.backbones.dnn import DNN, DNNConfig
from rankax.models.backbones.fm import FM, FMConfig
from rankax.models.backbones.mc_mlcc import MCMLCC, LayeredCrossing, MCMLCCConfig
from rankax.models.base import Features, InputSpec


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def inputs(num_fields, dim):
    names = tuple(f"f{i}" for i in range(num_fields))
    return InputSpec(tokens=names, dims={"embedding": dim}, num_tasks=1)


def det(shape, a, c):
    """Element k (C order) = c·sin(a·(k + 1))."""
    return c * np.sin(a * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def test_mc_mlcc_equals_the_official_module_on_the_conformance_vector():
    with jax.enable_x64(True):
        config = MCMLCCConfig(
            num_channels=2,
            channel_dim=3,
            num_heads=2,
            dynamic_dims=(2, 1),
            concat_layers=(0, 1),
            compressed_dim=4,
        )
        crossing = randomized(
            lambda: LayeredCrossing(config, 5, width_out=4, rngs=nnx.Rngs(0))
        )
        gate = randomized(lambda: FieldGate(5, rngs=nnx.Rngs(0)))
        per_channel = [det((15, 16), 0.11, 0.5), det((15, 16), 0.13, 0.5)]
        crossing.global_compressor.set_value(
            jnp.stack([w.reshape(5, 3, 2, 8) for w in per_channel])
        )
        crossing.local_compressor.set_value(jnp.asarray(det((5, 18, 4), 0.13, 0.3)))
        gate.squeeze.kernel.set_value(jnp.asarray(det((5, 2), 0.17, 0.4)))
        gate.squeeze.bias.set_value(jnp.zeros(2))
        gate.excite.kernel.set_value(jnp.asarray(det((2, 5), 0.19, 0.4)))
        gate.excite.bias.set_value(jnp.zeros(5))
        out = np.asarray(run(gate, run(crossing, det((2, 5, 6), 0.7, 1.0))))
    assert out.dtype == np.float64
    assert out.sum() == pytest.approx(0.225546795909, abs=1e-11)
    assert (out**2).sum() == pytest.approx(3.224428604773, abs=1e-11)
    np.testing.assert_allclose(
        out[0, 0], [0.15213428, 0.18927940, 0.22323020, 0.25341372], atol=5e-9
    )
    np.testing.assert_allclose(
        out[1, 4], [0.22433993, 0.32282370, 0.41585943, 0.50187703], atol=5e-9
    )


@pytest.mark.parametrize(
    ("num_fields", "widths", "counts"),
    [
        (39, (4, 1), (305_893, 486_853, 667_813, 848_773)),  # Criteo
        (22, (4, 1), (191_174, 293_254, 395_334, 497_414)),  # Avazu
        (17, (2, 1), (119_434, 160_234, 201_034, 241_834)),  # TaobaoAds
    ],
)
def test_mc_mlcc_has_the_published_parameter_counts(num_fields, widths, counts):
    for channels, published in enumerate(counts, 1):
        config = MCMLCCConfig(num_channels=channels, dynamic_dims=widths)
        spec = inputs(num_fields, 16 * channels)
        model = nnx.eval_shape(lambda c=config, s=spec: MCMLCC(c, s, rngs=nnx.Rngs(0)))
        assert count(model) + 32 + 1 == published  # and the head


def test_mc_mlcc_starts_with_the_official_spread():
    config = MCMLCCConfig(num_channels=2)
    crossing = LayeredCrossing(config, 39, width_out=8, rngs=nnx.Rngs(0))
    gc = np.asarray(crossing.global_compressor[...])
    assert gc.std() == pytest.approx((2 / (39 * 16 + 4 * 68)) ** 0.5, rel=0.02)
    lc = np.asarray(crossing.local_compressor[...])
    assert lc.shape == (39, 72, 8)
    assert lc.std() == pytest.approx((2 / (8 * (72 + 39))) ** 0.5, rel=0.02)
    (spec,) = config.tables({"a": 1_000_000}, num_tasks=1)
    assert (spec.dim, spec.init) == (32, "uniform")
    assert spec.init_scale == pytest.approx((6 / 1_000_032) ** 0.5)


def test_mc_mlcc_refuses_layers_that_do_not_exist():
    (problem,) = MCMLCCConfig(concat_layers=(0, 2)).broken_rules()
    assert problem.startswith("concat_layers has 2; ")
    assert problem.endswith("choose from 0 .. 1")


def test_frappe_parameter_counts_are_those_of_the_leaderboard():
    # BARS counts 5,389 embedding rows of 10 (a padding row in most fields) with them.
    options = {
        "embedding_dim": 10,
        "hidden_dims": (400, 400, 400),
        "use_batch_norm": True,
    }
    model = DCNv2(
        DCNv2Config(num_cross_layers=4, **options), inputs(10, 10), rngs=nnx.Rngs(0)
    )
    head = 100 + 400 + 1
    assert count(model) + head + 5_389 * 10 == 458_391
    dlrm = DLRM(
        DLRMConfig(interaction="cat", **options), inputs(10, 10), rngs=nnx.Rngs(0)
    )
    assert count(dlrm) + (400 + 1) + 5_389 * 10 == 417_891
    dnn = DNN(DNNConfig(**options), inputs(10, 10), rngs=nnx.Rngs(0))
    assert count(dnn) == (100 * 400 + 400) + 2 * (400 * 400 + 400) + 3 * 2 * 400


@pytest.mark.parametrize(
    ("num_fields", "num_numeric", "interaction", "num_rows", "published"),
    [
        (26, 13, "dot", 2_086_303, 21_664_241),  # Criteo_x1
        (22, 0, "dot", 1_298_599, 13_402_391),  # Avazu_x1
        (3, 0, "cat", 90_239, 1_238_391),  # MovielensLatest_x1
    ],
)
def test_dlrm_parameter_counts_are_those_of_the_leaderboard(
    num_fields, num_numeric, interaction, num_rows, published
):
    # Rows are what two other published totals of the same features leave for tables: of
    # the cross network alone (21,626,001) and of DNN (13,395,591).
    config = DLRMConfig(
        embedding_dim=10,
        interaction=interaction,
        bottom_dims=(400,) * 3,
        hidden_dims=(400,) * 3,
        use_batch_norm=True,
    )
    spec = dataclasses.replace(
        inputs(num_fields, 10), numeric=tuple(f"x{i}" for i in range(num_numeric))
    )
    model = nnx.eval_shape(lambda: DLRM(config, spec, rngs=nnx.Rngs(0)))
    assert count(model) + (400 + 1) + 10 * num_rows == published


def test_rows_of_the_leaderboards_sets_are_those_of_its_other_models():
    # Its cross network and DNN see 13 numbers as tokens of 10, by a direction each.
    width = (26 + 13) * 10
    cross = nnx.eval_shape(lambda: CrossNet(width, 5, rngs=nnx.Rngs(0)))
    rows = 10 * 2_086_303 + 13 * 10
    assert count(cross) + (width + 1) + rows == 21_626_001
    config = DNNConfig(embedding_dim=10, hidden_dims=(400,) * 3)
    dnn = nnx.eval_shape(lambda: DNN(config, inputs(22, 10), rngs=nnx.Rngs(0)))
    assert count(dnn) + (400 + 1) + 10 * 1_298_599 == 13_395_591


def test_cross_net_equals_the_formula():
    net = CrossNet(4, 2, rngs=nnx.Rngs(0))
    x0 = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    x = x0.astype(np.float64)
    for layer in net.layers:
        w = np.asarray(layer.kernel[...], np.float64)
        x = x0 * (x @ w + np.asarray(layer.bias[...])) + x
    np.testing.assert_allclose(net(jnp.asarray(x0)), x, rtol=1e-5, atol=1e-6)


def test_mlp_is_linear_norm_relu_in_this_order():
    mlp = MLP(5, (7,), use_batch_norm=True, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    mlp.train()
    out = mlp(jnp.asarray(x), rngs=nnx.Rngs(0))
    h = x @ np.asarray(mlp.linears[0].kernel[...])
    want = np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5), 0)
    np.testing.assert_allclose(out, want, rtol=1e-3, atol=1e-4)


def test_batch_norm_takes_numbers_that_vary_little_beside_their_size():
    mlp = MLP(1, (4,), use_batch_norm=True, rngs=nnx.Rngs(0))
    x = 1e4 + np.random.default_rng(0).normal(size=(4096, 1)).astype(np.float32)
    mlp.train()
    out = np.asarray(mlp(jnp.asarray(x)))  # halves of normal distributions
    np.testing.assert_allclose(np.sqrt(2 * (out**2).mean(0)), 1, atol=0.05)


def test_dropout_needs_randomness_in_training_only():
    mlp = MLP(5, (7,), dropout=0.5, rngs=nnx.Rngs(0))
    mlp.eval()
    mlp(jnp.ones((2, 5)))
    mlp.train()
    with pytest.raises(ValueError, match="rngs"):
        mlp(jnp.ones((2, 5)))
    assert np.any(mlp(jnp.ones((2, 5)), rngs=nnx.Rngs(dropout=0)) == 0)


def make_features(dims, *, num_numeric, batch=4, num_fields=3):
    """Features of random rows, and the inputs that describe them."""
    rng = np.random.default_rng(5)
    embedded = {
        role: rng.normal(size=(batch, num_fields, dim)).astype(np.float32)
        for role, dim in dims.items()
    }
    numeric = rng.normal(size=(batch, num_numeric)).astype(np.float32)
    spec = InputSpec(
        tokens=tuple(f"f{i}" for i in range(num_fields)),
        dims=dims,
        numeric=tuple(f"x{i}" for i in range(num_numeric)),
        num_tasks=dims.get("weight", 1),
    )
    return Features(
        embedded=jax.tree.map(jnp.asarray, embedded), numeric=jnp.asarray(numeric)
    ), spec


def fm_by_loops(fm, features, *, num_tasks):
    """Σ w·x + Σ_{i<j} ⟨v_i, v_j⟩·x_i·x_j, one pair after another."""
    tokens = np.asarray(features.embedded["embedding"], np.float64)
    x = np.asarray(features.numeric, np.float64)
    factors = np.asarray(fm.numeric_factors[...], np.float64)
    tokens = np.concatenate([tokens, x[..., None] * factors], axis=1)
    weights = np.asarray(features.embedded["weight"], np.float64).sum(axis=1)
    out = (
        weights
        + x @ np.asarray(fm.first_order.numeric[...])
        + np.asarray(fm.first_order.bias[...])
    )
    for b, row in enumerate(tokens):
        for t in range(num_tasks):
            own = row.reshape(len(row), num_tasks, -1)[:, t]
            for i in range(len(own)):
                for j in range(i + 1, len(own)):
                    out[b, t] += own[i] @ own[j]
    return out


def test_fm_equals_the_sum_over_pairs_of_each_task():
    features, spec = make_features({"weight": 2, "embedding": 10}, num_numeric=2)
    fm = FM(FMConfig(embedding_dim=5), spec, rngs=nnx.Rngs(0))
    fm.first_order.numeric.set_value(jnp.asarray([[0.5, -1.0], [2.0, 0.25]]))
    fm.first_order.bias.set_value(jnp.asarray([0.1, -0.2]))
    want = fm_by_loops(fm, features, num_tasks=2)
    np.testing.assert_allclose(fm(features), want, rtol=1e-4, atol=1e-5)
    specs = FMConfig(embedding_dim=5).tables({"user": 7}, num_tasks=2)
    assert {spec.role: spec.dim for spec in specs} == {"weight": 2, "embedding": 10}


def test_deepfm_adds_an_mlp_on_the_tokens_to_fm():
    features, spec = make_features({"weight": 1, "embedding": 4}, num_numeric=1)
    model = DeepFM(
        DeepFMConfig(embedding_dim=4, hidden_dims=(6,)), spec, rngs=nnx.Rngs(0)
    )
    tokens = np.asarray(model.fm.tokens(features)).reshape(4, -1)
    assert tokens.shape == (4, (3 + 1) * 4)
    (layer,) = model.mlp.linears
    hidden = np.maximum(tokens @ np.asarray(layer.kernel[...]), 0)
    want = fm_by_loops(model.fm, features, num_tasks=1) + hidden @ np.asarray(
        model.output.kernel[...]
    )
    np.testing.assert_allclose(model(features), want, rtol=1e-4, atol=1e-5)


def test_dlrm_feeds_the_products_of_all_pairs_to_its_top():
    features, spec = make_features({"embedding": 4}, num_numeric=2)
    model = DLRM(DLRMConfig(bottom_dims=(5,)), spec, rngs=nnx.Rngs(0))
    seen = []
    model.top = lambda x, rngs=None: seen.append(np.asarray(x))
    model(features)
    v0 = np.asarray(model.bottom(features.numeric))
    want = []
    for b, row in enumerate(np.asarray(features.embedded["embedding"])):
        tokens = [v0[b], *row]
        products = [tokens[i] @ tokens[j] for i in range(4) for j in range(i + 1, 4)]
        want.append(np.concatenate([v0[b], products]))
    np.testing.assert_allclose(seen[0], want, rtol=1e-5, atol=1e-5)
    bottom = model.bottom
    (layer,) = bottom.mlp.linears
    x = np.asarray(features.numeric)
    hidden = np.maximum(x @ np.asarray(layer.kernel[...]), 0)
    out = np.maximum(hidden @ np.asarray(bottom.output.kernel[...]), 0)
    np.testing.assert_allclose(v0, out, rtol=1e-4, atol=1e-6)


def test_dlrm_without_numeric_fields_has_no_bottom():
    features, spec = make_features({"embedding": 4}, num_numeric=0)
    model = DLRM(DLRMConfig(), spec, rngs=nnx.Rngs(0))
    assert model.bottom is None
    assert model.top.linears[0].kernel.shape == (3, 256)
    assert model(features).shape == (4, 64)
    _, one = make_features({"embedding": 4}, num_numeric=0, num_fields=1)
    with pytest.raises(ConfigError, match="pairs of tokens, but the run has 1"):
        DLRM(DLRMConfig(), one, rngs=nnx.Rngs(0))
    (problem,) = DLRMConfig(interaction="dto").broken_rules()
    assert problem == "interaction = 'dto' is unknown; did you mean 'dot'?"
