"""Experts per token: against loops, the dense layer they are cut from, and each other."""

from flax import nnx
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import pytest
import tokenmixer_reference as reference

from rankax.layers.per_token import PerTokenSwiGLU
from rankax.layers.sparse_pertoken_moe import Routing, SparsePertokenMoE, split_dense
from rankax.models.backbones.tokenmixer_large import (
    TokenMixerLarge,
    TokenMixerLargeConfig,
)
from rankax.models.base import Features, InputSpec

N, WIDTH, HIDDEN, EXPERTS, ACTIVE, ALPHA = 3, 4, 16, 4, 3, 1.5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make(execution="dense", dtype=None):
    return reference.build(
        lambda: SparsePertokenMoE(
            N,
            WIDTH,
            HIDDEN,
            num_experts=EXPERTS,
            num_active=ACTIVE,
            scale=ALPHA,
            execution=execution,
            dtype=dtype,
            rngs=nnx.Rngs(0),
        )
    )


def examples(num=5, seed=0):
    x = np.random.default_rng(seed).normal(size=(num, N, WIDTH))
    return jnp.asarray(x, jnp.float32)


def value_and_gradients(moe, x):
    """Σ sin(y), y, and its gradients by weights and x."""
    graph, state = nnx.split(moe)

    @jax.jit
    def compute(state, x):
        def loss(state, x):
            y, _ = nnx.merge(graph, state, copy=True)(x)
            return jnp.sin(y).sum(), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(state, x)

    (of_weights, of_x), y = compute(state, x)
    return y, of_x, nnx.to_pure_dict(of_weights)


def test_dense_execution_equals_the_loops():
    moe, x = make(), examples()
    y, routing = jax.jit(lambda x: moe(x))(x)
    want = reference.moe(moe, np.asarray(x, float), num_chosen=2, scale=ALPHA)
    np.testing.assert_allclose(y, want, **CLOSE)
    np.testing.assert_allclose(routing.gates.sum(axis=-1), 1, rtol=1e-6)
    assert routing.chosen.shape == (5, N, 2)


@pytest.mark.parametrize(
    "dtype", [None, pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_ragged_execution_equals_dense_in_values_and_gradients(dtype):
    # One example too: most experts then have no row at all.
    x = examples(1 if dtype else 7)
    dense = value_and_gradients(make("dense", dtype), x)
    ragged = value_and_gradients(make("ragged", dtype), x)
    close = {"rtol": 0.05, "atol": 0.05} if dtype else CLOSE
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), dense, ragged)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves((dense, ragged)))
    assert np.any(dense[2]["router"])  # two chosen experts: the gate learns


@pytest.mark.parametrize(
    ("platform", "is_ragged"), [("cpu", False), ("cuda", True), ("tpu", True)]
)
def test_auto_is_dense_on_cpu_and_ragged_elsewhere(platform, is_ragged):
    moe, x = make("auto"), examples(2)
    exported = jax_export.export(jax.jit(lambda x: moe(x)[0]), platforms=(platform,))(x)
    assert ("ragged_dot" in exported.mlir_module()) == is_ragged


def test_a_dense_layer_cut_into_experts_is_the_sum_of_them():
    moe, x = make(), examples()
    dense = reference.build(lambda: PerTokenSwiGLU(N, WIDTH, HIDDEN, rngs=nnx.Rngs(0)))
    split_dense(dense, moe)
    y = moe.shared(x) + moe.weighted_sum(x, jnp.ones((5, N, EXPERTS - 1)))
    np.testing.assert_allclose(y, dense(x), rtol=1e-5, atol=1e-6)
    assert moe.gate.shape == (N, EXPERTS - 1, WIDTH, HIDDEN // EXPERTS)
    assert moe.num_inactive_parameters == N * 3 * WIDTH * HIDDEN // EXPERTS


def test_routing_tells_its_load_and_losses():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 2, 3)).astype(np.float32)
    chosen = np.argsort(-logits, axis=-1)[..., :2]
    routing = Routing(
        logits=jnp.asarray(logits), chosen=jnp.asarray(chosen), gates=jnp.zeros(())
    )
    told = jax.jit(lambda r: (r.load(), r.balance_loss(), r.z_loss(), r.metrics()))
    load, balance_loss, z_loss, metrics = told(routing)
    share = np.zeros((2, 3))
    for b in range(6):
        for t in range(2):
            share[t, chosen[b, t]] += 1 / 12
    np.testing.assert_allclose(load, share, rtol=1e-6)
    exponents = np.exp(logits.astype(float))
    p = (exponents / exponents.sum(-1, keepdims=True)).mean(0)
    balance = 3 * np.mean([share[t] @ p[t] for t in range(2)])
    assert float(balance_loss) == pytest.approx(balance, rel=1e-5)
    z = np.mean(np.log(exponents.sum(-1)) ** 2)
    assert float(z_loss) == pytest.approx(z, rel=1e-5)
    assert len(metrics) == 4
    for t in range(2):
        entropy = -sum(s * np.log(s) for s in share[t]) / np.log(3)
        assert float(metrics[f"load_entropy/{t}"]) == pytest.approx(entropy, rel=1e-5)
        peak = share[t].max() / share[t].mean()
        assert float(metrics[f"load_max_over_mean/{t}"]) == pytest.approx(peak)


def test_a_router_that_always_chooses_the_same_is_seen():
    logits = jnp.zeros((4, 1, 3))
    routing = Routing(
        logits=logits, chosen=jnp.zeros((4, 1, 1), int), gates=jnp.ones((4, 1, 1))
    )
    metrics = jax.jit(lambda r: r.metrics())(routing)
    assert float(metrics["load_entropy/0"]) == 0
    assert float(metrics["load_max_over_mean/0"]) == 3


def test_the_model_passes_on_penalty_and_metrics_of_all_stages():
    spec = InputSpec(tokens=("a", "b", "c"), dims={"embedding": 2}, num_tasks=1)
    config = TokenMixerLargeConfig(
        token_dim=4, num_blocks=1, num_experts=4, num_active_experts=3
    )
    features = Features(
        embedded={"embedding": examples(6)[:, :, :2]}, numeric=jnp.zeros((6, 0))
    )

    def make():
        return reference.build(lambda: TokenMixerLarge(config, spec, rngs=nnx.Rngs(0)))

    assert make().blocks[0].mix_stage.scale == pytest.approx(4 / 3)  # 1 / sparsity

    @jax.jit
    def run(features):
        outs = []
        for weights in ((0, 0), (1, 0), (0, 1), (0.5, 0.25)):
            config.balance_loss_weight, config.router_z_loss_weight = weights
            outs.append(make()(features))
        return outs

    none, balance, z, both = run(features)
    assert none.penalty is None
    assert 2 * 0.8 < float(balance.penalty) < 2 * 3  # 1 is even, 3 is one expert only
    want = 0.5 * balance.penalty + 0.25 * z.penalty
    assert float(both.penalty) == pytest.approx(float(want), rel=1e-5)
    assert set(both.metrics) == {
        f"block0/{stage}/{name}/{t}"
        for stage in ("mix", "revert")
        for name in ("load_entropy", "load_max_over_mean")
        for t in range(4)
    }
