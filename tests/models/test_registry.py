"""One set of tests over every registered backbone."""

import collections
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import made_up, make_inputs, make_schema

from rankax.config.base import ConfigError
from rankax.config.experiment import BackboneConfig, MeanPoolingConfig, ModelConfig
from rankax.models import backbones, base
from rankax.models.ranker import Ranker
from rankax.models.sequences import build_encoder

# Dense parameters of the default configuration on `make_schema()`, counted by hand:
# changes only with a reason.
GOLDEN_PARAMETERS = {
    # 2 numeric weights and a bias, for each of 2 tasks.
    "lr": (2 + 1) * 2,
    # MLP on 6·16 + 2 inputs, head to 2 tasks.
    "dnn": (98 * 256 + 256) + (256 * 128 + 128) + (128 * 64 + 64) + (64 * 2 + 2),
    "dcnv2": 3 * (98 * 98 + 98)
    + (98 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + ((98 + 64) * 2 + 2),
    # 2 × 2 numeric weights, 2 biases, 2 numeric factors for 2 tasks of 16.
    "fm": 2 * 2 + 2 + 2 * 32,
    # MLP on 8 tokens of 2·16, its output layer.
    "deepfm": (2 * 2 + 2 + 2 * 32)
    + (256 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 2 + 2),
    # Bottom 2-256-64-16; top on 16 + 7·6/2 inputs; head.
    "dlrm": (2 * 256 + 256)
    + (256 * 64 + 64)
    + (64 * 16 + 16)
    + (37 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 2 + 2),
    # Numeric tokens; GC [2, 8, 16, 4, 68]; LC [8, 72, 8] as C_in = 2·4·(1 + 4) + 32;
    # gate of 8 fields; MLP on 64.
    "mc_mlcc": 2 * 2 * 32
    + 2 * 8 * 16 * 4 * 68
    + 8 * 72 * 8
    + (8 * 4 + 4)
    + (4 * 8 + 8)
    + (64 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 32 + 32)
    + (32 * 2 + 2),
    # CIN on 8 tokens of 16, its output, LR, 2 numeric factors; MLP on the tokens.
    "xdeepfm": (8 * 8 + 1) * 64
    + (8 * 64 + 1) * 64
    + (128 * 2 + 2)
    + 2 * 2
    + 2 * 16
    + (128 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 2 + 2),
    # Numeric tokens; Q, K, V and the residual's projection; Q, K, V twice; output.
    "autoint": 2 * 2 * 16 + 4 * 16 * 64 + 2 * 3 * 64 * 64 + (8 * 64 * 2 + 2),
    # Two vectors and gates 16-64-98; MLPs of 256-128-64 and 64; fusion of 4 heads.
    "finalmlp": 2 * (16 + (16 * 64 + 64) + (64 * 98 + 98))
    + (98 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (98 * 64 + 64)
    + 2 * (64 * 2 + 2)
    + 4 * 16 * 16 * 2,
    # Numeric tokens; a layer on 8 tokens, which W_res takes to 32, and one on 32: Y, norm
    # and MLP of 64 or 256 products, W_L, norm; MLP on 32·16; head.
    "wukong": 2 * 2 * 16
    + (8 * 8 + 2 * 64 + (64 * 128 + 128) + 8 * 16 + 8 * 32)
    + (32 * 8 + 2 * 256 + (256 * 128 + 128) + 32 * 16)
    + 2 * ((128 * 256 + 256) + 2 * 16)
    + (512 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 2 + 2),
    # 98 inputs in 8 slices of 13 to tokens of 64; 2 blocks: FFNs, 2 norms; head.
    "rankmixer": 8 * (13 * 64 + 64)
    + 2 * (8 * (2 * 64 * 128 + 128 + 64) + 2 * 2 * 64)
    + (64 * 2 + 2),
    # 7 groups and the global token, each 2 layers; 2 blocks of 2 stages of 3 kernels for
    # 8 tokens, 2 norms; norm; head.
    "tokenmixer_large": 2 * 98 * 64
    + 8 * 64 * 64
    + 2 * (2 * 3 * 8 * 64 * 128 + 2 * 64)
    + 64
    + (64 * 2 + 2),
    # Fields, numbers and events to tokens of 64, 4 places, 4 hubs of 8 fields, 1 of
    # events, 2 tasks and 2 shared; a block of 4, 1 and 4 hubs; what tasks need of the
    # second; towers 64-128-64; head.
    "infnet": 6 * (16 * 64 + 64)
    + 2 * 2 * 64
    + (2 * 16 * 64 + 64)
    + 4 * 64
    + 8 * 64 * 4 * 64
    + 64 * 64
    + (2 + 2) * 64
    + (18 * 64**2 + 4 * 64**2 * (4 + 1 + 4 + 6) + (30 + 3 * 4) * 64)
    + (10 * 64**2 + 4 * 64**2 * (4 + 2) + (14 + 4) * 64)
    + 2 * ((64 * 128 + 128) + (128 * 64 + 64))
    + (64 * 2 + 2),
}
NAMES = sorted(base.registered())
BATCH = 12


@functools.cache
def make(name, num_tasks=2, compute_dtype="float32", **options):
    """A ranker, an example of its inputs, its jitted forward pass, and its traces."""
    config = base.named_config(name, **options)
    schema = make_schema(num_tasks)
    specs = config.tables({t: 50 for t in schema.tables}, num_tasks=num_tasks)
    dims = {spec.role: spec.dim for spec in specs}
    model = ModelConfig(backbone=config, compute_dtype=compute_dtype)
    # No initialiser is compiled, which would take longer than all that is tested.
    ranker = nnx.eval_shape(lambda: Ranker(model, schema, dims, rngs=nnx.Rngs(0)))
    ranker.eval()
    rng = np.random.default_rng(1)
    graph, state = nnx.split(ranker)
    state = jax.tree.map_with_path(functools.partial(made_up, rng), state)
    rows, lengths, numeric = make_inputs(rng, schema, dims, BATCH)
    traces = []

    @jax.jit
    def forward(*inputs):
        traces.append(None)
        return nnx.merge(graph, state, copy=True)(*inputs)

    ranker = nnx.merge(graph, state)
    return ranker, (rows, lengths, numeric), forward, traces


def test_every_module_in_backbones_is_registered_under_its_file_name():
    assert NAMES == sorted(backbones.__all__) == sorted(GOLDEN_PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_dense_parameters_are_the_counted_ones(name):
    ranker, *_ = make(name)
    leaves = jax.tree.leaves(nnx.state(ranker, nnx.Param))
    assert sum(x.size for x in leaves) == GOLDEN_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_logits_are_float32_one_per_task(name, num_tasks):
    _, inputs, forward, _ = make(name, num_tasks)
    logits = jax.eval_shape(forward, *inputs)
    assert logits.shape == (BATCH, num_tasks) and logits.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_batch_permutes_the_logits_and_compiles_nothing(name):
    _, inputs, forward, traces = make(name)
    logits = forward(*inputs)
    assert np.isfinite(logits).all() and np.std(logits) > 0
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = forward(*jax.tree.map(lambda x: x[order], inputs))
    np.testing.assert_allclose(permuted, logits[order], rtol=1e-5, atol=1e-5)
    assert len(traces) == 1


SMALL_EXPERTS = {
    "token_dim": 8,
    "num_tokens": 4,
    "num_blocks": 1,
    "num_experts": 4,
    "num_active_experts": 3,
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((n, {"use_batch_norm": True}) for n in ("dnn", "dcnv2")),
        *((n, {}) for n in NAMES if n not in ("dnn", "dcnv2")),
        ("tokenmixer_large", SMALL_EXPERTS),
    ],
)
def test_every_parameter_and_row_gets_a_finite_gradient(name, options):
    ranker, (rows, lengths, numeric), *_ = make(name, **options)
    graph, params, rest = nnx.split(ranker, nnx.Param, ...)

    def loss(params, rows):
        model = nnx.merge(graph, params, rest, copy=True)
        model.train()
        logits = model(rows, lengths, numeric, rngs=nnx.Rngs(dropout=0))
        return jnp.mean(jnp.sin(logits) + logits**2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))
    batches = [gradients(params, rows)]
    if "num_experts" in options:  # a few batches more, until every expert was chosen
        for factor in (-1.0, 2.0):
            more = jax.tree.map(lambda x, factor=factor: factor * x, rows)
            batches.append(gradients(params, more))
    network, row_gradients = jax.tree.map(
        lambda *g: np.abs(g).sum(axis=0), *jax.device_get(batches)
    )
    for path, gradient in jax.tree.leaves_with_path(nnx.to_pure_dict(network)):
        assert np.isfinite(gradient).all(), path
        if "bias" in str(path[-1]) and "batch" in str(options):
            continue  # BatchNorm takes the mean out, so a bias before it is idle
        if "'key'" in str(path) and "bias" in str(path[-1]):
            continue  # cancels in the softmax
        if "num_experts" in options and gradient.ndim == 4:
            gradient = gradient.max(axis=(2, 3)).min()  # of the worst expert
        assert np.any(gradient), path
    for role, gradient in row_gradients.items():
        assert np.isfinite(gradient).all()
        single = np.asarray(gradient)[:, :2]  # user and item of every example
        assert np.all(np.any(single != 0, axis=-1)), role


def products_by_dtype(jaxpr):
    """Multiplications of all matrix products with weights, by their operands' type."""
    work = collections.Counter()
    for equation in jaxpr.eqns:
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            if hasattr(inner, "eqns"):
                work += products_by_dtype(inner)
        if equation.primitive.name in ("dot_general", "ragged_dot_general"):
            left, right = (v.aval for v in equation.invars[:2])
            contracted = equation.params["dimension_numbers"][0][0]
            depth = math.prod(left.shape[axis] for axis in contracted)
            assert left.dtype == right.dtype
            work[str(left.dtype)] += depth * equation.outvars[0].aval.size
    return work


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_for_matrix_products_alone(name):
    _, inputs, narrow, _ = make(name, compute_dtype="bfloat16")
    program = jax.make_jaxpr(narrow)(*inputs)
    assert program.out_avals[0].dtype == jnp.float32
    work = products_by_dtype(program.jaxpr)
    if name in ("lr", "fm"):  # sums of weights: nothing to gain
        assert set(work) <= {"float32"}
        return
    # Left in float32: heads, routers, gates of a few numbers.
    assert work["bfloat16"] > 0.8 * sum(work.values()), work


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_gives_nearly_the_same_logits(name):
    _, inputs, forward, _ = make(name)
    _, _, narrow, _ = make(name, compute_dtype="bfloat16")
    want, got = forward(*inputs), narrow(*inputs)
    assert np.array_equal(got, want) == (name in ("lr", "fm"))
    np.testing.assert_allclose(got, want, rtol=0.05, atol=0.05 * np.abs(want).max())


def test_bags_and_histories_are_pooled_by_their_lengths():
    _, (rows, lengths, numeric), forward, _ = make("lr", num_tasks=1)
    lengths = np.asarray(lengths)
    weights = np.asarray(rows["weight"])[..., 0]
    schema = make_schema(1)
    want = np.zeros(BATCH)
    for slot in schema.slots:
        for b in range(BATCH):
            values = weights[b, slot.start : slot.start + slot.width]
            if slot.bag < 0:
                want[b] += values[0]
            elif slot.combiner == "sum":
                want[b] += values[: lengths[b, slot.bag]].sum()
            elif lengths[b, slot.bag]:
                want[b] += values[: lengths[b, slot.bag]].mean()
    rest = forward({"weight": 0 * rows["weight"]}, jnp.asarray(lengths), numeric)
    got = (forward(rows, jnp.asarray(lengths), numeric) - rest)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_model_is_answered_with_the_closest_name():
    with pytest.raises(
        ConfigError, match=r"unknown model 'dcnv3'; did you mean 'dcnv2'"
    ):
        base.named_config("dcnv3")
    assert type(base.named_config("MC-MLCC")).__name__ == "MCMLCCConfig"


def test_an_unregistered_configuration_is_an_error():
    inputs = base.InputSpec(tokens=(), dims={}, num_tasks=1)
    with pytest.raises(
        ConfigError, match="no backbone is registered for BackboneConfig"
    ):
        base.build_backbone(BackboneConfig(), inputs, rngs=nnx.Rngs(0))


def test_mean_pooling_of_an_empty_history_is_zero():
    encoder = build_encoder(
        MeanPoolingConfig(), num_columns=1, dim=2, target_columns=(), rngs=nnx.Rngs(0)
    )
    events = jnp.asarray([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    pooled = encoder(events, jnp.asarray([2, 0]), jnp.zeros((2, 0, 2)))
    np.testing.assert_array_equal(pooled, [[[2.0, 3.0]], [[0.0, 0.0]]])
