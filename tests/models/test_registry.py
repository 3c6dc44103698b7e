"""One set of tests over every registered backbone."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import BackboneConfig, MeanPoolingConfig, ModelConfig
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.schema import Schema
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
}
NAMES = sorted(base.registered())
BATCH = 12


def make_schema(num_tasks=2):
    card = Card(
        name="toy",
        tables=tuple(Table(name=n, num_rows=50) for n in ("user", "item", "tag")),
        fields=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="item", table="item"),
            CategoricalField(name="tags", table="tag", max_length=3),
            CategoricalField(name="words", table="tag", max_length=2, combiner="sum"),
            NumericField(name="price"),
            NumericField(name="age"),
            SequenceField(
                name="history",
                max_length=4,
                columns=(
                    SequenceColumn(name="item", table="item", column="h_item"),
                    SequenceColumn(name="tag", table="tag", column="h_tag"),
                ),
            ),
        ),
        labels=tuple(Label(name=f"task{t}") for t in range(num_tasks)),
        splits={"train": Split(num_rows=1)},
    )
    return Schema.select(card)


@functools.cache
def make(name, num_tasks=2, **options):
    """A ranker, an example of its inputs, and its jitted forward pass."""
    config = base.named_config(name, **options)
    schema = make_schema(num_tasks)
    specs = config.tables({t: 50 for t in schema.tables}, num_tasks=num_tasks)
    dims = {spec.role: spec.dim for spec in specs}
    ranker = Ranker(ModelConfig(backbone=config), schema, dims, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 3, (BATCH, schema.num_bags)).astype(np.int32)
    rows = {}
    for role, dim in dims.items():
        x = rng.normal(size=(BATCH, schema.num_id_columns, dim)).astype(np.float32)
        for slot in schema.slots:
            if slot.bag >= 0:
                padding = np.arange(slot.width) >= lengths[:, slot.bag, None]
                x[:, slot.start : slot.start + slot.width][padding] = 0
        rows[role] = jnp.asarray(x)
    numeric = jnp.asarray(rng.normal(size=(BATCH, 2)).astype(np.float32))
    ranker.eval()
    graph, state = nnx.split(ranker)

    @jax.jit
    def forward(*inputs):
        return nnx.merge(graph, state, copy=True)(*inputs)

    return ranker, (rows, jnp.asarray(lengths), numeric), forward


def test_every_module_in_backbones_is_registered_under_its_file_name():
    assert NAMES == sorted(backbones.__all__) == sorted(GOLDEN_PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_dense_parameters_are_the_counted_ones(name):
    ranker, _, _ = make(name)
    leaves = jax.tree.leaves(nnx.state(ranker, nnx.Param))
    assert sum(x.size for x in leaves) == GOLDEN_PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_logits_are_float32_one_per_task(name, num_tasks):
    _, inputs, forward = make(name, num_tasks)
    logits = forward(*inputs)
    assert logits.shape == (BATCH, num_tasks) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_permuting_the_batch_permutes_the_logits(name):
    _, inputs, forward = make(name)
    order = np.random.default_rng(0).permutation(BATCH)
    permuted = forward(*jax.tree.map(lambda x: x[order], inputs))
    np.testing.assert_allclose(permuted, forward(*inputs)[order], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_and_row_gets_a_finite_gradient(name):
    options = {"use_batch_norm": True} if name in ("dnn", "dcnv2") else {}
    ranker, (rows, lengths, numeric), _ = make(name, **options)
    graph, params, rest = nnx.split(ranker, nnx.Param, ...)

    def loss(params, rows):
        model = nnx.merge(graph, params, rest, copy=True)
        model.train()
        logits = model(rows, lengths, numeric, rngs=nnx.Rngs(dropout=0))
        return jnp.mean(jnp.sin(logits) + logits**2)

    network, row_gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, rows)
    for path, gradient in jax.tree.leaves_with_path(nnx.to_pure_dict(network)):
        assert np.isfinite(gradient).all(), path
        if "bias" in str(path[-1]) and "batch" in str(options):
            continue  # BatchNorm takes the mean out, so a bias before it is idle
        assert np.any(gradient), path
    for role, gradient in row_gradients.items():
        assert np.isfinite(gradient).all()
        single = np.asarray(gradient)[:, :2]  # user and item of every example
        assert np.all(np.any(single != 0, axis=-1)), role


@pytest.mark.parametrize("name", NAMES)
def test_the_second_call_does_not_recompile(name):
    ranker, inputs, _ = make(name)
    graph, state = nnx.split(ranker)
    traced = []

    @jax.jit
    def apply(state, inputs):
        traced.append(None)
        return nnx.merge(graph, state, copy=True)(*inputs)

    first = apply(state, inputs)
    np.testing.assert_array_equal(first, apply(state, inputs))
    assert len(traced) == 1


def test_bags_and_histories_are_pooled_by_their_lengths():
    _, (rows, lengths, numeric), forward = make("lr", num_tasks=1)
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
    got = forward(rows, jnp.asarray(lengths), numeric)[:, 0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_an_unknown_model_is_answered_with_the_closest_name():
    with pytest.raises(
        ConfigError, match=r"unknown model 'dcnv3'; did you mean 'dcnv2'"
    ):
        base.named_config("dcnv3")
    assert type(base.named_config("MC-MLCC")).__name__ == "MCMLCCConfig"


def test_an_unregistered_configuration_is_an_error():
    inputs = base.InputSpec(tokens=(), dims={}, num_numeric=0, num_tasks=1)
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
