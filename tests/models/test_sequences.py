"""Sequence encoders against plain loops, and their place in the ranker."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import MeanPoolingConfig, ModelConfig, SequenceConfig
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.schema import Schema
from rankax.layers.dice import Dice
from rankax.models import base
from rankax.models.ranker import Ranker
from rankax.models.sequences import build_encoder
from rankax.models.sequences.din import DINConfig

BATCH, LENGTH, COLUMNS, DIM = 6, 5, 3, 4
LENGTHS = np.array([5, 0, 1, 3, 2, 4])


def make_din(**options):
    """A DIN of three columns, the first and last of which have a target."""
    encoder = build_encoder(
        DINConfig(hidden_dims=(7, 6), **options),
        num_columns=COLUMNS,
        dim=DIM,
        target_columns=(0, 2),
        rngs=nnx.Rngs(3),
    )
    rng = np.random.default_rng(0)
    for activation in encoder.activations:
        activation.alpha.set_value(jnp.asarray(rng.normal(size=activation.alpha.shape)))
    return encoder


def make_inputs(seed=1):
    rng = np.random.default_rng(seed)
    events = rng.normal(size=(BATCH, LENGTH, COLUMNS, DIM)).astype(np.float32)
    events[np.arange(LENGTH) >= LENGTHS[:, None]] = 0
    targets = rng.normal(size=(BATCH, 2, DIM)).astype(np.float32)
    return events, targets


def dice(s, alpha):
    p = 1 / (1 + np.exp(-(s - s.mean()) / np.sqrt(s.var() + 1e-8)))
    return p * s + (1 - p) * alpha * s


def weight_of(encoder, event, target):
    """The paper's activation unit of one event: [e; v; e − v; e ⊙ v] side by side."""
    keys = event[[0, 2]].ravel()
    v = target.ravel()
    x = np.concatenate([event.ravel(), v, keys - v, keys * v]).astype(np.float64)
    x = x @ np.asarray(encoder.kernel[...]) + np.asarray(encoder.bias[...])
    for activation, layer in zip(encoder.activations, encoder.linears, strict=True):
        x = dice(x, np.asarray(activation.alpha[...]))
        x = x @ np.asarray(layer.kernel[...]) + np.asarray(layer.bias[...])
    return x[0]


@pytest.mark.parametrize("use_softmax", [False, True])
def test_din_equals_the_equation_event_by_event(use_softmax):
    encoder = make_din(use_softmax=use_softmax)
    events, targets = make_inputs()
    got = encoder(jnp.asarray(events), jnp.asarray(LENGTHS), jnp.asarray(targets))
    want = np.zeros((BATCH, COLUMNS, DIM))
    for b in range(BATCH):
        past = events[b, : LENGTHS[b]]
        w = np.array([weight_of(encoder, event, targets[b]) for event in past])
        if use_softmax and len(w):
            w = np.exp(w / np.sqrt(COLUMNS * DIM))
            w /= w.sum()
        for weight, event in zip(w, past, strict=True):
            want[b] += weight * event
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_an_empty_history_is_zero_and_padding_does_not_count(use_softmax):
    encoder = make_din(use_softmax=use_softmax)
    events, targets = make_inputs()
    inputs = jnp.asarray(LENGTHS), jnp.asarray(targets)
    clean = encoder(jnp.asarray(events), *inputs)
    assert not np.any(clean[1])
    assert np.all(np.any(np.asarray(clean)[[0, 2, 3, 4, 5]] != 0, axis=(1, 2)))
    dirty = events + 100 * (np.arange(LENGTH) >= LENGTHS[:, None])[..., None, None]
    np.testing.assert_array_equal(encoder(jnp.asarray(dirty), *inputs), clean)


@pytest.mark.parametrize("use_softmax", [False, True])
def test_gradients_at_padding_and_empty_histories_are_zero(use_softmax):
    encoder = make_din(use_softmax=use_softmax)
    events, targets = map(jnp.asarray, make_inputs())
    gradients = jax.grad(
        lambda e, v: jnp.sum(jnp.sin(encoder(e, jnp.asarray(LENGTHS), v))), (0, 1)
    )(events, targets)
    of_events, of_targets = map(np.asarray, gradients)
    assert np.isfinite(of_events).all() and np.isfinite(of_targets).all()
    is_padding = np.arange(LENGTH) >= LENGTHS[:, None]
    assert not of_events[is_padding].any() and not of_targets[LENGTHS == 0].any()
    assert np.all(np.any(of_events != 0, axis=(2, 3)) == ~is_padding)


def test_din_depends_on_the_target_and_learns_every_parameter():
    encoder = make_din()
    events, targets = make_inputs()

    def total(encoder, targets):
        out = encoder(jnp.asarray(events), jnp.asarray(LENGTHS), targets)
        return jnp.sum(jnp.sin(out))

    gradient = np.asarray(jax.grad(total, argnums=1)(encoder, jnp.asarray(targets)))
    has_history = LENGTHS > 0
    assert np.all(np.any(gradient != 0, axis=(1, 2)) == has_history)
    graph, params = nnx.split(encoder, nnx.Param)
    of_parameters = jax.grad(
        lambda params: total(nnx.merge(graph, params), jnp.asarray(targets))
    )(params)
    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(of_parameters)):
        assert np.any(leaf), path


def test_softmax_weights_sum_to_one():
    encoder = make_din(use_softmax=True)
    events = np.ones((BATCH, LENGTH, COLUMNS, DIM), np.float32)
    _, targets = make_inputs()
    out = encoder(jnp.asarray(events), jnp.asarray(LENGTHS), jnp.asarray(targets))
    want = np.broadcast_to((LENGTHS > 0)[:, None, None], out.shape)
    np.testing.assert_allclose(out, want, atol=1e-6)


def test_dice_without_spread_has_a_finite_gradient():
    slope = jax.grad(lambda s: jnp.sum(Dice(3)(s)))(jnp.zeros(3))
    np.testing.assert_allclose(slope, 0.5)
    assert np.isfinite(jax.grad(lambda s: jnp.sum(Dice(3)(s)))(jnp.full(3, 5.0))).all()


def test_dice_is_a_gated_leaky_relu():
    layer = Dice(3)
    s = jnp.asarray([[-1.0, 0.0, 4.0], [5.0, 5.0, 5.0]])
    want = np.stack([dice(np.asarray(row), 0.0) for row in s])
    np.testing.assert_allclose(layer(s), want, rtol=1e-6)
    np.testing.assert_allclose(layer(s)[1], 2.5)  # no spread: half of s passes
    layer.alpha.set_value(jnp.ones(3))
    np.testing.assert_allclose(layer(s), s, rtol=1e-6)


def test_dice_stays_float32_in_bfloat16():
    numbers = np.random.default_rng(0).normal(32, 0.1, size=(64, 80))
    s = jnp.asarray(numbers, jnp.bfloat16)
    want = Dice(80)(s.astype(jnp.float32))
    assert Dice(80)(s).dtype == jnp.float32
    np.testing.assert_array_equal(Dice(80)(s), want)


# ---------------------------------------------------------------- in the ranker


def make_ranker(sequence=None, *, backbone="dnn", fields=()):
    columns = {"item": "item", "tag": "tag", "action": "action"}
    card = Card(
        name="toy",
        tables=tuple(Table(name=n, num_rows=9) for n in ("user", *columns.values())),
        fields=(
            CategoricalField(name="user", table="user"),
            CategoricalField(name="tags", table="tag", max_length=2),
            CategoricalField(name="item", table="item"),
            CategoricalField(name="rival", table="item"),
            CategoricalField(name="tag", table="tag"),
            *(
                SequenceField(
                    name=name,
                    max_length=length,
                    columns=tuple(
                        SequenceColumn(name=c, table=t, column=f"{name}_{c}")
                        for c, t in columns.items()
                    ),
                )
                for name, length in (("clicked", 3), ("bought", 4))
            ),
        ),
        labels=(Label(name="ctr"),),
        splits={"train": Split(num_rows=1)},
    )
    schema = Schema.select(card, fields=fields)
    config = base.named_config(backbone)
    specs = config.tables({t: 9 for t in schema.tables}, num_tasks=1)
    dims = {spec.role: spec.dim for spec in specs}
    model = ModelConfig(backbone=config, sequence=sequence or DINConfig())
    return Ranker(model, schema, dims, rngs=nnx.Rngs(0)), schema


def test_every_sequence_has_an_encoder_and_attends_to_the_first_sharing_field(
    monkeypatch,
):
    ranker, schema = make_ranker()
    assert set(ranker.encoders) == {"clicked", "bought"}
    assert ranker.encoders["clicked"].target_columns == (0, 1)  # actions have none
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, schema.num_id_columns, 16)).astype(np.float32)
    lengths = np.array([[2, 3, 4], [1, 0, 2]])
    seen = {}

    def spy(encoder, events, lengths, targets, *, rngs=None):
        seen[events.shape[1]] = events, lengths, targets
        return jnp.zeros((2, 3, 16))

    monkeypatch.setattr(type(ranker.encoders["clicked"]), "__call__", spy)
    ranker({"embedding": jnp.asarray(rows)}, jnp.asarray(lengths), jnp.zeros((2, 0)))
    start = {slot.name: slot.start for slot in schema.slots}
    for name, length, bag in (("clicked", 3, 1), ("bought", 4, 2)):
        events, given, targets = seen[length]
        np.testing.assert_array_equal(given, lengths[:, bag])
        np.testing.assert_array_equal(targets[:, 0], rows[:, start["item"]])
        np.testing.assert_array_equal(targets[:, 1], rows[:, start["tag"]])
        for a, column in enumerate(("item", "tag", "action")):
            at = start[f"{name}/{column}"]
            np.testing.assert_array_equal(events[:, :, a], rows[:, at : at + length])


def test_the_order_of_the_slots_is_that_of_the_tokens():
    ranker, _ = make_ranker(MeanPoolingConfig())
    assert ranker.inputs.tokens[:5] == ("user", "tags", "item", "rival", "tag")
    assert ranker.inputs.tokens[5:8] == (
        "clicked/item",
        "clicked/tag",
        "clicked/action",
    )


def test_din_without_a_target_says_what_to_do():
    with pytest.raises(ConfigError, match=r"no column of the sequence.*data\.fields"):
        make_ranker(fields=("user", "clicked"))


def test_an_encoder_that_nothing_uses_is_refused():
    with pytest.raises(ConfigError, match="DINConfig, but the run has no sequence"):
        make_ranker(fields=("user", "item"))
    with pytest.raises(ConfigError, match="but LRConfig has no embeddings to encode"):
        make_ranker(backbone="lr")


def test_encoders_that_are_not_known_or_empty_are_refused():
    with pytest.raises(ConfigError, match=r"is a SequenceConfig, for which no encoder"):
        make_ranker(SequenceConfig())
    with pytest.raises(ConfigError, match=r"model\.sequence\.hidden_dims = \(\) must"):
        make_ranker(DINConfig(hidden_dims=()))
