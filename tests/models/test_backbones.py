"""Conformance with the papers: exact counts, vectors and closed forms."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.layers.cross import CrossNet
from rankax.layers.mlp import MLP
from rankax.layers.squeeze_excitation import FieldGate
from rankax.models.backbones.dcnv2 import DCNv2, DCNv2Config
from rankax.models.backbones.dnn import DNN, DNNConfig
from rankax.models.backbones.mc_mlcc import MCMLCC, LayeredCrossing, MCMLCCConfig
from rankax.models.base import InputSpec


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def inputs(num_fields, dim):
    names = tuple(f"f{i}" for i in range(num_fields))
    return InputSpec(tokens=names, dims={"embedding": dim}, num_numeric=0, num_tasks=1)


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
        crossing = LayeredCrossing(config, 5, rngs=nnx.Rngs(0))
        gate = FieldGate(5, rngs=nnx.Rngs(0))
        per_channel = [det((15, 16), 0.11, 0.5), det((15, 16), 0.13, 0.5)]
        crossing.global_compressor.set_value(
            jnp.stack([w.reshape(5, 3, 2, 8) for w in per_channel])
        )
        crossing.local_compressor.set_value(jnp.asarray(det((5, 18, 4), 0.13, 0.3)))
        gate.squeeze.kernel.set_value(jnp.asarray(det((5, 2), 0.17, 0.4)))
        gate.squeeze.bias.set_value(jnp.zeros(2))
        gate.excite.kernel.set_value(jnp.asarray(det((2, 5), 0.19, 0.4)))
        gate.excite.bias.set_value(jnp.zeros(5))
        out = np.asarray(gate(crossing(jnp.asarray(det((2, 5, 6), 0.7, 1.0)))))
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
        model = MCMLCC(config, inputs(num_fields, 16 * channels), rngs=nnx.Rngs(0))
        assert count(model) + 32 + 1 == published  # and the head


def test_mc_mlcc_starts_with_the_official_spread():
    config = MCMLCCConfig(num_channels=2)
    crossing = LayeredCrossing(config, 39, rngs=nnx.Rngs(0))
    gc = np.asarray(crossing.global_compressor[...])
    assert gc.std() == pytest.approx((2 / (39 * 16 + 4 * 68)) ** 0.5, rel=0.02)
    lc = np.asarray(crossing.local_compressor[...])
    assert lc.shape == (39, 72, 8)
    assert lc.std() == pytest.approx((2 / (8 * (72 + 39))) ** 0.5, rel=0.02)
    (spec,) = config.tables({"a": 1_000_000}, num_tasks=1)
    assert (spec.dim, spec.init) == (32, "uniform")
    assert spec.init_scale == pytest.approx((6 / 1_000_032) ** 0.5)


def test_mc_mlcc_refuses_layers_that_do_not_exist():
    with pytest.raises(ConfigError, match=r"concat_layers has 2.*choose from 0 .. 1"):
        MCMLCCConfig(concat_layers=(0, 2)).tables({"a": 5}, num_tasks=1)


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
    dnn = DNN(DNNConfig(**options), inputs(10, 10), rngs=nnx.Rngs(0))
    assert count(dnn) == (100 * 400 + 400) + 2 * (400 * 400 + 400) + 3 * 2 * 400


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


def test_dropout_needs_randomness_in_training_only():
    mlp = MLP(5, (7,), dropout=0.5, rngs=nnx.Rngs(0))
    mlp.eval()
    mlp(jnp.ones((2, 5)))
    mlp.train()
    with pytest.raises(ValueError, match="rngs"):
        mlp(jnp.ones((2, 5)))
    assert np.any(mlp(jnp.ones((2, 5)), rngs=nnx.Rngs(dropout=0)) == 0)
