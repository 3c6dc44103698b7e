import dataclasses
import functools
import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.experiment import ExperimentConfig, ModelConfig, TablesConfig
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
from rankax.embeddings import layout, optimizers
from rankax.embeddings.engine import TableEngine
from rankax.models import base
from rankax.models.backbones.infnet import INFNetConfig
from rankax.models.backbones.rankmixer import RankMixerConfig
from rankax.models.backbones.tokenmixer_large import TokenMixerLargeConfig
from rankax.models.ranker import Ranker
from rankax.models.sequences.din import DINConfig
from rankax.observe import accounting, collectives, traffic
from rankax.observe.accounting import Cost
from rankax.observe.flops import Operations
from rankax.observe.peaks import peak_flops_per_second
from rankax.parallel import mesh as meshes
from rankax.training.step import Steps, plan_for

NAMES = sorted(base.registered())
F, N, D = 6, 2, 16  # of the toy schema: tokens, numeric fields, width
BATCH = 8
SMALL = {
    "infnet": {"num_blocks": 2},
    # Narrow ones spend much on erfc, whose gradient costs less than it does.
    "rankmixer": {"num_blocks": 1, "token_dim": 512},
    "tokenmixer_large": {"num_blocks": 1},
    "wukong": {"num_layers": 2},
}


def toy_schema():
    """Three ids, a list that is pooled, two numbers, a history of two columns."""
    return schema_of(
        CategoricalField(name="user", table="user"),
        CategoricalField(name="item", table="item"),
        CategoricalField(name="shop", table="shop"),
        CategoricalField(name="tags", table="tag", max_length=3),
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
    )


def schema_of(*fields, num_rows=50):
    tables = {}
    for field in fields:
        columns = getattr(field, "columns", (field,))
        tables |= {c.table: num_rows for c in columns if hasattr(c, "table")}
    card = Card(
        name="toy",
        tables=tuple(Table(name=n, num_rows=rows) for n, rows in tables.items()),
        fields=fields,
        labels=(Label(name="click"),),
        splits={"train": Split(num_rows=1)},
    )
    return Schema.select(card)


def ids(num, **options):
    """Schema of `num` fields of one id."""
    return schema_of(
        *(CategoricalField(name=f"f{i}", table=f"f{i}") for i in range(num)), **options
    )


def make_config(backbone, **tables):
    config = ExperimentConfig()
    config.model.backbone = backbone
    config.train.batch_size = BATCH
    config.tables = TablesConfig(**tables)
    return config


def make_engine(config, schema, num_devices=1):
    return TableEngine(
        plan_for(config, schema, num_devices=num_devices),
        meshes.make_mesh(devices=jax.devices()[:num_devices]),
        optimizers.from_config(config.optimizer.sparse),
        config=config.tables,
    )


def account(config, schema=None, num_devices=1):
    schema = schema or toy_schema()
    config.freeze()
    return accounting.account(config, schema, make_engine(config, schema, num_devices))


@functools.cache
def forward_pass(name, sequence=None):
    """A model, its dims, its forward pass, and abstract arguments of that."""
    config = base.named_config(name, **SMALL.get(name, {}))
    model = ModelConfig(backbone=config)
    if sequence is not None:
        model.sequence = sequence()
    schema = toy_schema()
    dims = {spec.role: spec.dim for spec in config.tables(schema.num_rows, num_tasks=1)}
    ranker = nnx.eval_shape(lambda: Ranker(model, schema, dims, rngs=nnx.Rngs(0)))
    ranker.eval()
    graph, params, rest = nnx.split(ranker, nnx.Param, ...)

    def forward(params, rows, rest, lengths, numeric):
        ranker = nnx.merge(graph, params, rest, copy=True)
        return ranker(rows, lengths, numeric)

    rows = {
        role: jax.ShapeDtypeStruct((BATCH, schema.num_id_columns, dim), jnp.float32)
        for role, dim in dims.items()
    }
    lengths = jax.ShapeDtypeStruct((BATCH, schema.num_bags), jnp.int32)
    numeric = jax.ShapeDtypeStruct((BATCH, schema.num_numeric), jnp.float32)
    return ranker, dims, forward, (params, rows, rest, lengths, numeric)


def count(name, sequence=None):
    ranker, dims, _, _ = forward_pass(name, sequence)
    return accounting.forward_operations(ranker, toy_schema(), dims, batch_size=BATCH)


# ---------------------------------------------------------------- against XLA


@pytest.mark.parametrize("name", NAMES)
def test_flops_of_every_backbone_are_those_that_xla_counts(name, monkeypatch):
    # XLA counts the body of a loop once.
    monkeypatch.setattr(Operations, "times", lambda self, _: self)
    _, _, forward, arguments = forward_pass(name)
    traced = jax.jit(forward).lower(*arguments).cost_analysis()
    found = count(name)
    assert found.flops == pytest.approx(traced["flops"], rel=0.01)
    assert found.transcendentals == traced.get("transcendentals", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_flops_are_within_five_percent_of_the_compiled_program(name, monkeypatch):
    monkeypatch.setattr(Operations, "times", lambda self, _: self)
    _, _, forward, arguments = forward_pass(name)
    compiled = jax.jit(forward).lower(*arguments).compile().cost_analysis()
    assert compiled is not None
    assert count(name).flops == pytest.approx(compiled["flops"], rel=0.05)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lr", "fm", "xdeepfm"}))
def test_xla_counts_three_forward_passes_in_training(name):
    _, _, forward, arguments = forward_pass(name)

    def loss(*arguments):
        return jnp.sum(forward(*arguments) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*arguments)
    ratio = gradient.cost_analysis()["flops"] / count(name).flops
    assert ratio == pytest.approx(3, rel=0.05)


def test_flops_of_target_attention_are_those_that_xla_counts():
    _, _, forward, arguments = forward_pass("dnn", DINConfig)
    traced = jax.jit(forward).lower(*arguments).cost_analysis()
    found = count("dnn", DINConfig).flops
    assert found == pytest.approx(traced["flops"], rel=0.01)
    assert found > 1.1 * count("dnn").flops


# ---------------------------------------------------------------- closed forms


def multiplications(backbone, schema):
    """Multiplications in matrix products, of one example's forward pass."""
    products = operations(backbone, schema).products / (2 * BATCH)
    assert products == int(products)
    return int(products)


def operations(backbone, schema):
    dims = {
        spec.role: spec.dim for spec in backbone.tables(schema.num_rows, num_tasks=1)
    }
    model = ModelConfig(backbone=backbone)
    ranker = nnx.eval_shape(lambda: Ranker(model, schema, dims, rngs=nnx.Rngs(0)))
    return accounting.forward_operations(ranker, schema, dims, batch_size=BATCH)


def mlp(*widths):
    return sum(a * b for a, b in itertools.pairwise(widths))


FLAT = F * D + N


@pytest.mark.parametrize(
    "name, expected",
    [
        ("dnn", mlp(FLAT, 256, 128, 64, 1)),
        ("dcnv2", 3 * FLAT**2 + mlp(FLAT, 256, 128, 64) + FLAT + 64),
        # Bottom MLP, all products of F + 1 tokens, top MLP on their upper triangle.
        (
            "dlrm",
            mlp(N, 256, 64, D) + 7**2 * D + mlp(D + 7 * 6 // 2, 256, 128, 64, 1),
        ),
    ],
)
def test_products_are_those_of_the_equation(name, expected):
    assert multiplications(base.named_config(name), toy_schema()) == expected


def test_mlcc_has_the_published_flops_on_criteo():
    mlcc = base.named_config("mc_mlcc", num_channels=1)
    global_compressor = 39 * 16 * 4 * 68
    layered_crossing = 4 * 16 * (4 * 1 + 39 * (4 + 1))  # Θ_1·Θ_2, then X with both
    local_compressor = 39 * (4 * (4 + 1) + 16) * 8
    gate = 2 * 39 * (39 // 2)
    assert multiplications(mlcc, ids(39)) == (
        global_compressor
        + layered_crossing
        + local_compressor
        + gate
        + mlp(39 * 8, 256, 128, 64, 32, 1)
    )
    # Published: 0.633 MFLOP, with X·Θ_1·Θ_2 from the left and without pointwise work.
    assert operations(mlcc, ids(39)).flops / BATCH == pytest.approx(0.633e6, rel=0.03)


def of_one_block(config_class, schema, *, num_blocks=1, **options):
    """Multiplications that one more block costs."""
    more, fewer = (
        multiplications(config_class(num_blocks=n, **options), schema)
        for n in (num_blocks + 1, num_blocks)
    )
    return more - fewer


def test_xdeepfm_multiplies_all_pairs_of_fields_in_each_dimension():
    # D·Σ F·H_{k−1}·H_k in the CIN; its loop over F counts F times.
    def found(*cin_dims):
        return multiplications(
            base.named_config("xdeepfm", cin_dims=cin_dims, hidden_dims=(8,)), ids(7)
        )

    one_layer_more = D * 7 * 5 * 3 + 3  # and what the last layer's maps weigh
    assert found(5, 3) - found(5) == one_layer_more
    assert found(5) - found(4) == D * 7 * 7 + 1


def test_a_rankmixer_block_has_the_flops_of_its_weights():
    # 4·k·L·T·D² FLOPs.
    found = of_one_block(
        RankMixerConfig, ids(8), token_dim=32, num_tokens=8, expansion=3
    )
    assert found == 2 * 3 * 8 * 32**2


@pytest.mark.parametrize("num_heads", [2, 4])
def test_a_tokenmixer_block_has_the_flops_of_its_weights(num_heads):
    # 6·n·T·D²·(1 + T/H) FLOPs.
    found = of_one_block(
        TokenMixerLargeConfig, ids(8), token_dim=32, num_tokens=4, num_heads=num_heads
    )
    assert found == 3 * 2 * 4 * 32**2 * (1 + 4 // num_heads)


def test_an_infnet_block_is_linear_in_fields_and_events():
    d, r, hubs, tokens = 16, 4, (4 + 1 + 3), (F + N + 4 + 1)
    found = of_one_block(INFNetConfig, toy_schema(), num_blocks=2, width=d, expansion=r)
    keys_and_values = 2 * d**2 * tokens
    queries_and_fusion = 4 * d**2 * hubs
    attention = 2 * d * hubs * tokens
    gates = r * d**2 * (hubs + 6)
    assert found == keys_and_values + queries_and_fusion + attention + gates


EXPERTS = {
    "token_dim": 32,
    "num_tokens": 4,
    "expansion": 2,
    "num_experts": 8,
    "num_active_experts": 4,
}
# Of one stage, T = H: 4 positions with 7 routed experts of 3 matrices of 32 × 8.
ONE_EXPERT, ROUTER = 3 * 32 * (2 * 32 // 8), 32 * 7


def test_sparse_experts_cost_what_they_are_asked_for():
    found = of_one_block(TokenMixerLargeConfig, ids(8), **EXPERTS, execution="ragged")
    assert found == 2 * 4 * (ROUTER + (1 + 3) * ONE_EXPERT)


def test_a_run_with_experts_is_charged_for_the_active_ones():
    reference = TokenMixerLargeConfig(**EXPERTS, num_blocks=1, execution="dense")
    found = account(make_config(reference), ids(8))
    inactive = 2 * 4 * (7 - 3) * ONE_EXPERT
    assert found.num_dense_parameters - found.num_active_dense_parameters == inactive
    assert f"({found.num_active_dense_parameters:,} active)" in str(found)
    executed = operations(reference, ids(8))
    more = executed.flops / BATCH - found.flops_per_example
    assert more == pytest.approx(2 * inactive, rel=0.2)
    more = executed.products / BATCH - found.product_flops_per_example
    assert more == pytest.approx(2 * inactive, rel=0.05)


def test_a_model_whose_flops_cannot_be_counted_has_the_other_costs(monkeypatch):
    def refuse(*args, **kwargs):
        raise NotImplementedError("cannot count the FLOPs of 'pallas_call'")

    monkeypatch.setattr(accounting, "forward_operations", refuse)
    found = account(make_config(base.named_config("dnn")))
    assert found.flops_per_example is None and found.num_dense_parameters > 0
    assert found.speed(1e4) == {}
    assert str(found).endswith("table parameters, FLOPs unknown")


def test_without_experts_all_parameters_are_active():
    found = account(make_config(base.named_config("dcnv2")))
    assert found.num_active_dense_parameters == found.num_dense_parameters
    assert found.num_dense_parameters == (
        3 * (FLAT**2 + FLAT) + mlp(FLAT, 256, 128, 64) + 256 + 128 + 64 + FLAT + 64 + 1
    )
    assert found.num_table_parameters == 4 * 50 * D
    assert "active" not in str(found)


# ---------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    "optimizer, tables, each",
    [
        ("sgd", {}, 3 * 64),
        ("rowwise_adagrad", {}, 3 * 64 + 2 * 4),
        ("adagrad", {}, 3 * 64 + 2 * 64),
        ("lazy_adam", {}, 3 * 64 + 2 * 128),
        ("rowwise_adagrad", {"dtype": "bfloat16"}, 3 * 32 + 2 * 4),
        ("rowwise_adagrad", {"track_last_step": True}, 3 * 64 + 2 * 4 + 4),
    ],
)
def test_a_row_is_read_looked_up_and_updated_with_its_state(optimizer, tables, each):
    config = make_config(base.named_config("dnn"), replicate_below_bytes=0, **tables)
    config.optimizer.sparse.name = optimizer
    # A batch of 8 has at most 8 · 3 ids of three tables, and 8 · 1 of 5 rows: 5.
    schema = schema_of(
        *(CategoricalField(name=n, table=n) for n in "abc"), num_rows=5000
    )
    assert account(config, schema).table_bytes_per_example == 3 * each
    few_rows = schema_of(CategoricalField(name="a", table="a"), num_rows=5)
    config = dataclasses.replace(config)
    assert account(config, few_rows).table_bytes_per_example == each  # 5, and 3 spare


@pytest.mark.parametrize(
    ("dtype", "optimizer", "each"),
    [
        ("float32", "rowwise_adagrad", 3 * 128 * 4 + 2 * 4),
        ("bfloat16", "rowwise_adagrad", 3 * 128 * 2 + 2 * 4),
        ("float32", "adagrad", 5 * 128 * 4),
    ],
)
def test_rows_that_share_a_line_move_with_it(dtype, optimizer, each, monkeypatch):
    monkeypatch.setattr(layout, "is_in_lines", lambda mesh: True)
    config = make_config(base.named_config("dnn"), replicate_below_bytes=0, dtype=dtype)
    config.optimizer.sparse.name = optimizer
    assert account(config, ids(1, num_rows=5000)).table_bytes_per_example == each


def test_measured_rows_count_once_a_step_however_often_they_are_looked_up():
    config = make_config(base.named_config("dnn"), replicate_below_bytes=0)
    schema = ids(2)
    engine = make_engine(config, schema)
    counted = {
        "embedding/f0": {"looked_up": 400, "unique": 100},
        "embedding/f1": {"looked_up": 400, "unique": 20},
    }
    found = traffic.table_bytes_per_example(
        config, engine, counted=counted, num_examples=400
    )
    assert found == pytest.approx((100 + 20) / 400 * (3 * 64 + 2 * 4))


@pytest.mark.parametrize(
    "optimizer, state", [("adam", 128), ("adagrad", 64), ("sgd", 0)]
)
def test_every_device_moves_all_rows_of_a_replicated_table(optimizer, state):
    config = make_config(base.named_config("dnn"))
    config.optimizer.dense.name = optimizer
    schema = ids(3, num_rows=50)
    for num_devices in (1, 4):
        found = account(dataclasses.replace(config), schema, num_devices)
        updates = num_devices * 3 * 50 / BATCH
        expected = 3 * 64 + updates * 2 * (64 + state)
        assert found.table_bytes_per_example == pytest.approx(expected)
    engine = make_engine(config, schema)
    counted = {f"embedding/f{i}": {"looked_up": 10, "unique": 1} for i in range(3)}
    found = traffic.table_bytes_per_example(
        config, engine, counted=counted, num_examples=20
    )
    assert found == pytest.approx(30 / 20 * 64 + 150 / BATCH * 2 * (64 + state))


def test_one_device_sends_nothing():
    assert account(make_config(base.named_config("lr"))).wire_bytes_per_step == 0


def wired():
    """A small run on eight devices, with tables sharded by row."""
    config = make_config(
        base.named_config("dnn", hidden_dims=(32,)), replicate_below_bytes=10_000
    )
    config.train.batch_size = 64
    return config, ids(2, num_rows=3_000)


def test_devices_send_ids_rows_and_both_gradients():
    config, schema = wired()
    dense = mlp(2 * D, 32, 1) + 32 + 1
    for dtype, row in (("float32", 4 * D), ("bfloat16", 2 * D)):
        config = dataclasses.replace(config)
        config.tables = TablesConfig(replicate_below_bytes=10_000, dtype=dtype)
        engine = make_engine(config, schema, 8)
        (group,) = engine.plan.groups
        c = engine.sizes.capacity(group, examples_per_device=8)
        found = account(config, schema, 8).wire_bytes_per_step
        assert found == 7 * c * (2 * 4 + row + 4 * D) + 2 * 7 / 8 * 4 * dense


def test_weights_of_one_token_are_summed_over_the_devices_that_hold_them():
    config = make_config(TokenMixerLargeConfig(token_dim=8, num_tokens=4))
    schema, sent = ids(8), {}
    for model in (1, 4):
        config.mesh.model = model
        engine = TableEngine(
            plan_for(config, schema, num_devices=8),
            meshes.make_mesh(model=model),
            optimizers.from_config(config.optimizer.sparse),
        )
        cost = accounting.account(config, schema, engine)
        sent[model] = cost.wire_bytes_per_step
    per_token = 2 * 3 * 2 * 4 * 2 * 8**2  # blocks, matrices, stages, T, n, D²
    saved = 2 * 4 * per_token * (7 / 8 - (1 / 2) / 4)
    assert sent[1] - sent[4] == pytest.approx(saved)


@pytest.mark.slow
def test_wire_bytes_are_those_of_the_compiled_step():
    config, schema = wired()
    mesh = meshes.make_mesh()
    steps = Steps(config, schema, mesh)
    rng = np.random.default_rng(0)
    arrays = {
        "ids": rng.integers(0, 3_000, (64, 2)).astype(np.int32),
        "lengths": np.zeros((64, 0), np.int32),
        "numeric": np.zeros((64, 0), np.float32),
        "labels": np.zeros((64, 1), np.float32),
        "weight": np.ones(64, np.float32),
    }
    batch = steps.to_devices(arrays)
    with jax.set_mesh(mesh):
        lowered = steps._train.lower(steps.abstract_state(), batch, np.float32(1))
    sent = collectives.sent_bytes(lowered.compile().as_text() or "", mesh.size)
    found = accounting.account(config, schema, steps.engine).wire_bytes_per_step
    assert found == pytest.approx(sent, rel=0.1)


# ---------------------------------------------------------------- utilisation


def make_cost(**changes):
    cost = Cost(
        num_dense_parameters=10,
        num_active_dense_parameters=10,
        num_table_parameters=20,
        flops_per_example=3e9,
        product_flops_per_example=2e9,
        table_bytes_per_example=1.0,
        wire_bytes_per_step=0.0,
        num_devices=4,
        peak_flops_per_second=100e12,
    )
    return dataclasses.replace(cost, **changes)


def test_utilisation_is_flops_of_training_products_over_the_peak_of_all_devices():
    # 3 · 2 GFLOP · 10,000 / s = 60 TFLOP/s on four devices of 100 TFLOP/s.
    speed = make_cost().speed(10_000)
    assert speed["tflops_per_second"] == pytest.approx(15)
    assert speed["mfu"] == pytest.approx(0.15)


def test_a_device_of_unknown_peak_has_no_utilisation():
    assert make_cost(peak_flops_per_second=None).speed(1e4).keys() == {
        "tflops_per_second"
    }
    assert account(make_config(base.named_config("lr"))).peak_flops_per_second is None
    for kind in ("cpu", "NVIDIA GH200 480GB", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert peak_flops_per_second(kind, "float32") is None
    assert peak_flops_per_second("Tesla T4", "bfloat16") is None


@pytest.mark.parametrize(
    "kind, float32, bfloat16",
    [
        ("NVIDIA A100-SXM4-40GB", 156, 312),
        ("NVIDIA H100 80GB HBM3", 494.5, 989.5),
        ("NVIDIA H200", 494.5, 989.5),
        ("NVIDIA L4", 60, 121),
        ("TPU v5 lite", 197, 197),
        ("TPU7x", 1153.5, 1153.5),
    ],
)
def test_peaks_are_dense_and_of_one_device(kind, float32, bfloat16):
    assert peak_flops_per_second(kind, "float32") == float32 * 1e12
    assert peak_flops_per_second(kind, "bfloat16") == bfloat16 * 1e12
