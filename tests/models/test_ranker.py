"""From a dataset folder to the tokens that a backbone sees, against a plain loop."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ModelConfig, ParquetConfig
from rankax.data import packing
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
    VectorField,
)
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.schema import Schema
from rankax.data.source import load_card, open_split
from rankax.embeddings import counters
from rankax.layers import pooling
from rankax.models import base
from rankax.models.ranker import Ranker
from rankax.parallel import mesh as meshes
from rankax.training.step import Steps

NUM_ROWS = {"item": 7, "tag": 9}
CARD = Card(
    name="bags",
    tables=tuple(Table(name=name, num_rows=v) for name, v in NUM_ROWS.items()),
    fields=(
        CategoricalField(name="scores", table="tag", max_length=3, weights="w_scores"),
        CategoricalField(name="item", table="item"),
        CategoricalField(name="path", table="tag", max_length=2, combiner="none"),
        CategoricalField(
            name="deltas", table="item", max_length=4, combiner="sum", weights="w"
        ),
        SequenceField(
            name="history",
            max_length=3,
            columns=(SequenceColumn(name="item", table="item", column="past"),),
        ),
        CategoricalField(name="tags", table="tag", max_length=2),
    ),
    labels=(Label(name="click"),),
    splits={"train": Split(num_rows=5)},
)
# Full, too long, empty, all weights 0, and ids that their table does not have.
COLUMNS = {
    "scores": [[1, 2, 8], [0, 1, 2, 3], [], [4, 5], [9, -1, 8]],
    "w_scores": [[0.5, 0.0, 2.0], [7.0, 1.0, 1.0, 3.0], [], [0.0, 0.0], [1.0, 2.0, 4]],
    "item": [0, 6, 3, 3, 7],
    "path": [[1], [2, 2], [], [6, 7, 8], [-5, 0]],
    "deltas": [[1, 1, 2, 3], [0, 6, 5, 4, 3], [], [2], [100]],
    "w": [[1.0, -2.0, 0.5, 3.0], [9.0, 1.0, -1.0, 0.0, 2.0], [], [0.0], [-1.5]],
    "past": [[1, 2], [6, 5, 4, 3], [], [0], [7, 1, 2]],
    "tags": [[3, 3], [1, 2, 3], [], [0], [9]],
    "click": [0, 1, 0, 1, 1],
}
TOKENS = ("scores", "item", "path/0", "path/1", "deltas", "tags", "history/item")


@pytest.fixture
def packed(tmp_path):
    """The packed arrays of the folder, with a default row, and their schema."""
    with DatasetWriter(tmp_path / "bags") as writer:
        writer.write("train", pa.table(COLUMNS))
        writer.finish(CARD)
    config = ParquetConfig(path=str(tmp_path / "bags"))
    assert load_card(config) == CARD
    schema = Schema.select(load_card(config), default_row=True)
    source = open_split(config, "train", schema)
    return packing.pack(source.read(0), schema, where=source.name), schema


def make_ranker(schema):
    """A ranker of two roles, and random rows of each: role -> table -> [V + 1, D]."""
    config = base.named_config("deepfm")
    specs = config.tables(schema.num_rows, num_tasks=1)
    dims = {spec.role: spec.dim for spec in specs}
    assert set(dims) == {"weight", "embedding"}
    rng = np.random.default_rng(0)
    rows = {role: {} for role in dims}
    for spec in specs:
        values = rng.normal(size=(spec.num_rows, spec.dim)).astype(np.float32)
        rows[spec.role][spec.name] = values
    return Ranker(ModelConfig(backbone=config), schema, dims, rngs=nnx.Rngs(0)), rows


def look_up(ids, schema, rows):
    """Embeds ids [B, K] as the table engine does: padding is zero."""
    looked_up = {}
    for role, tables in rows.items():
        pieces = []
        for slot in schema.slots:
            columns = ids[:, slot.start : slot.start + slot.width]
            assert columns.max() < len(tables[slot.table])
            is_padding = (columns < 0)[..., None]
            pieces.append(np.where(is_padding, 0, tables[slot.table][columns]))
        looked_up[role] = jnp.asarray(np.concatenate(pieces, axis=1))
    return looked_up


def tokens_of(example, tables):
    """The tokens [F, D] of one example, from its raw lists."""

    def row(table, i):
        return tables[table][i if 0 <= i < NUM_ROWS[table] else -1].astype(np.float64)

    dim = tables["tag"].shape[1]
    value = {name: column[example] for name, column in COLUMNS.items()}
    scores = np.zeros(dim)
    total = sum(value["w_scores"][-3:])
    for i, weight in zip(value["scores"][-3:], value["w_scores"][-3:], strict=True):
        scores += weight * row("tag", i) / (total or 1)
    deltas = np.zeros(dim)
    for i, weight in zip(value["deltas"][-4:], value["w"][-4:], strict=True):
        deltas += weight * row("item", i)
    path = [row("tag", i) for i in value["path"][-2:]]
    path += [np.zeros(dim)] * (2 - len(path))
    means = []
    for name, table, length in (("tags", "tag", 2), ("past", "item", 3)):
        latest = [row(table, i) for i in value[name][-length:]]
        means.append(np.mean(latest, axis=0) if latest else np.zeros(dim))
    return [scores, row("item", value["item"]), *path, deltas, *means]


def test_tokens_of_every_combiner_equal_a_loop_over_the_raw_lists(packed, monkeypatch):
    arrays, schema = packed
    ranker, rows = make_ranker(schema)
    assert ranker.inputs.tokens == TOKENS
    assert ranker.inputs.num_fields == len(TOKENS)
    seen = []

    def spy(backbone, features, *, rngs=None):
        seen.append(features.embedded)
        return jnp.zeros((len(features.numeric), 1))

    monkeypatch.setattr(type(ranker.backbone), "__call__", spy)
    ranker(
        look_up(arrays["ids"], schema, rows),
        jnp.asarray(arrays["lengths"]),
        jnp.asarray(arrays["numeric"]),
        bag_weights=jnp.asarray(arrays["bag_weights"]),
    )
    for role, tables in rows.items():
        want = [tokens_of(example, tables) for example in range(5)]
        assert seen[0][role].dtype == jnp.float32
        np.testing.assert_allclose(seen[0][role], want, rtol=1e-5, atol=1e-5)


def test_a_model_of_weighted_lists_needs_their_weights(packed):
    arrays, schema = packed
    ranker, rows = make_ranker(schema)
    inputs = look_up(arrays["ids"], schema, rows), arrays["lengths"], arrays["numeric"]
    with pytest.raises(ValueError, match=r"\['scores', 'deltas'\] have weights, but"):
        ranker(*inputs)
    assert ranker(*inputs, bag_weights=arrays["bag_weights"]).shape == (5, 1)


def test_every_value_of_a_vector_reaches_the_logits(tmp_path):
    card = Card(
        name="images",
        tables=(Table(name="item", num_rows=7),),
        fields=(
            VectorField(name="image", width=3),
            CategoricalField(name="item", table="item"),
            NumericField(name="price"),
        ),
        labels=(Label(name="click"),),
        splits={"train": Split(num_rows=2)},
    )
    columns = {
        "image": [[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]],
        "item": [6, 0],
        "price": [1.5, -2.0],
        "click": [1, 0],
    }
    with DatasetWriter(tmp_path / "images") as writer:
        writer.write("train", pa.table(columns))
        writer.finish(card)
    config = ParquetConfig(path=str(tmp_path / "images"))
    schema = Schema.select(load_card(config))
    source = open_split(config, "train", schema)
    arrays = packing.pack(source.read(0), schema, where=source.name)
    backbone = base.named_config("dcnv2", embedding_dim=2, hidden_dims=(5,))
    ranker = Ranker(
        ModelConfig(backbone=backbone), schema, {"embedding": 2}, rngs=nnx.Rngs(0)
    )
    leaves = jax.tree.leaves(nnx.state(ranker, nnx.Param))
    width = 2 + 3 + 1  # three cross layers, a hidden layer, the head
    layers = 3 * (width * width + width) + (width * 5 + 5) + (width + 5 + 1)
    assert sum(x.size for x in leaves) == layers
    rows = {"embedding": jnp.ones((2, 1, 2))}
    numeric = jnp.asarray(arrays["numeric"])
    assert numeric.tolist() == [[0.5, -1.0, 2.0, 1.5], [3.0, 0.25, -0.5, -2.0]]

    def logits(numeric):
        return ranker(rows, jnp.asarray(arrays["lengths"]), numeric)

    slopes = jax.grad(lambda numeric: logits(numeric).sum())(numeric)
    assert (jnp.abs(slopes) > 1e-4).all()
    moved = logits(numeric.at[0, 2].add(1.0))
    assert moved[0] != logits(numeric)[0] and moved[1] == logits(numeric)[1]


NUMBERS = Schema.select(
    Card(
        name="numbers",
        tables=(),
        fields=tuple(NumericField(name=name) for name in "abc"),
        labels=tuple(Label(name=name) for name in ("click", "buy")),
        splits={"train": Split(num_rows=8)},
    )
)


def make_steps(schema, backbone, num_devices=1):
    config = ExperimentConfig()
    config.model.backbone = backbone
    mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
    return Steps(config, schema, mesh)


@pytest.mark.parametrize("model", sorted(base.registered()))
def test_every_model_takes_numeric_fields_alone(model):
    options = {"interaction": "cat"} if model == "dlrm" else {}
    backbone = base.named_config(model, **options)
    ranker = nnx.eval_shape(
        lambda: Ranker(ModelConfig(backbone=backbone), NUMBERS, {}, rngs=nnx.Rngs(0))
    )
    assert ranker.inputs.num_fields == 0 and ranker.inputs.num_numeric == 3
    ranker.eval()
    graph, state = nnx.split(ranker)

    def logits(state, numeric):
        return nnx.merge(graph, state)({}, jnp.zeros((8, 0), jnp.int32), numeric)

    numeric = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    assert jax.eval_shape(logits, state, numeric).shape == (8, 2)
    assert jax.eval_shape(jax.grad(lambda *x: logits(*x).sum()), state, numeric)


def test_a_run_of_numeric_fields_alone_learns_from_them():
    steps = make_steps(NUMBERS, base.named_config("lr"), num_devices=2)
    assert steps.engine.plan.parts == ()
    rng = np.random.default_rng(0)
    arrays = {
        "ids": np.zeros((8, 0), np.int32),
        "lengths": np.zeros((8, 0), np.int32),
        "numeric": rng.normal(size=(8, 3)).astype(np.float32),
        "labels": rng.integers(0, 2, (8, 2)).astype(np.float32),
        "weight": np.ones(8, np.float32),
    }
    batch = steps.to_devices(arrays)
    state = steps.init_state()
    losses = []
    for _ in range(3):
        state, metrics, _ = steps.train(state, batch, factor=10.0)
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    logits, _ = steps.evaluate(state, batch)
    weights = state.params["network"]["backbone"]
    want = arrays["numeric"] @ np.asarray(weights["numeric"]) + weights["bias"]
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-6)


def test_products_of_pairs_of_tokens_need_more_than_the_one_of_the_numbers():
    with pytest.raises(ConfigError, match=r"pairs of tokens, but the run has 1; add"):
        make_steps(NUMBERS, base.named_config("dlrm"))


def test_gate_tables_are_looked_up_for_their_context_field_alone():
    schema = Schema.select(
        Card(
            name="toy",
            tables=tuple(Table(name=n, num_rows=20) for n in ("user", "item")),
            fields=(
                CategoricalField(name="user", table="user"),
                CategoricalField(name="item", table="item"),
                SequenceField(
                    name="history",
                    max_length=5,
                    columns=(SequenceColumn(name="item", table="item", column="h"),),
                ),
            ),
            labels=(Label(name="click"),),
            splits={"train": Split(num_rows=8)},
        )
    )
    options = {"hidden_dims": (4,), "hidden_dims2": (4,), "gate1_fields": ("item",)}
    steps = make_steps(schema, base.named_config("finalmlp", **options))
    columns = {part.role: part.columns for part in steps.engine.plan.parts}
    assert columns == {"embedding": tuple(range(7)), "gate1": (1,)}
    ids = np.random.default_rng(0).integers(0, 20, (8, 7))
    ids[:, 5:] = -1
    counts = counters.sum_over_devices(steps.engine.route(ids.astype(np.int32)))
    summary = counters.summarize(steps.engine.plan, counts)
    looked_up = {name: record["looked_up"] for name, record in summary.items()}
    assert looked_up == {
        "embedding/user": 8,
        "embedding/item": 8 + 8 * 3,
        "gate1/item": 8,
    }


def test_gradients_of_a_weighted_mean_are_its_weights():
    weights = np.array(
        [[1.0, 0.0, 3.0], [0.0, 0.0, 0.0], [1e-30, 0.0, 0.0]], np.float32
    )
    rows = np.random.default_rng(0).normal(size=(3, 3, 2)).astype(np.float32)
    gradient = jax.grad(lambda rows: pooling.weighted_mean(rows, weights).sum())(rows)
    want = np.array([[0.25, 0, 0.75], [0, 0, 0], [1, 0, 0]])[:, :, None] * np.ones(2)
    np.testing.assert_allclose(gradient, want, rtol=1e-6)
