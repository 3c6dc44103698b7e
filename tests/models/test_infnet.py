"""INFNet: counts of the paper's formulas, masks, symmetries, and what it can learn."""

import dataclasses
import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from random_module import randomized, run

from rankax.config.base import ConfigError
from rankax.layers.cross_attention import attend
from rankax.layers.hub_blocks import (
    EVENTS,
    FIELDS,
    TASKS,
    AggregateBroadcastBlock,
    ProxyGateBlock,
    hubs_of,
)
from rankax.layers.hub_tokens import EventHubs, FieldHubs
from rankax.models.backbones.infnet import INFNet, INFNetConfig
from rankax.models.base import (
    Events,
    Features,
    InputSpec,
    SequenceSpec,
    build_backbone,
)

BATCH, DIM = 6, 8
SEQUENCES = ((2, 4), (1, 3))  # columns, places
V1 = {"variant": "v1"}
SMALL = {
    "width": 4,
    "num_blocks": 2,
    "num_heads": 2,
    "expansion": 2,
    "tower_dims": (5,),
}


def count(module):
    return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))


def make(*, sequences=SEQUENCES, num_tasks=3, num_numeric=1, dtype=None, **options):
    """A small INFNet of random weights, and a batch with every length from 0 on."""
    spec = InputSpec(
        tokens=tuple(f"f{i}" for i in range(5)),
        dims={"embedding": DIM},
        numeric=tuple(f"x{i}" for i in range(num_numeric)),
        num_tasks=num_tasks,
        sequences=tuple(
            SequenceSpec(name=f"s{i}", num_columns=a, max_length=length)
            for i, (a, length) in enumerate(sequences)
        ),
        dtype=dtype,
    )
    config = INFNetConfig(**(SMALL | options))
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape).astype(np.float32))

    events = {
        s.name: Events(
            rows=normal(BATCH, s.max_length, s.num_columns, DIM),
            lengths=jnp.asarray(np.arange(BATCH, dtype=np.int32) % (s.max_length + 1)),
        )
        for s in spec.sequences
    }
    features = Features(
        embedded={"embedding": normal(BATCH, 5, DIM)},
        numeric=normal(BATCH, num_numeric),
        sequences=events,
    )
    model = randomized(lambda: build_backbone(config, spec, rngs=nnx.Rngs(0)))
    return model, features


def replace_events(features, function):
    events = {
        name: Events(rows=function(e.rows, e.lengths), lengths=e.lengths)
        for name, e in features.sequences.items()
    }
    return Features(
        embedded=features.embedded, numeric=features.numeric, sequences=events
    )


# ---------------------------------------------------------------- counts


NUM_TASKS, NUM_SHARED, NUM_FIELD_HUBS, NUM_SEQUENCES, D, R = 3, 2, 5, 2, 8, 3


def make_block(kind, *, has_events=True, own_tasks=0, **options):
    hubs = {FIELDS: NUM_FIELD_HUBS, EVENTS: NUM_SEQUENCES, TASKS: NUM_SHARED}
    hubs[TASKS] += own_tasks
    if not has_events:
        del hubs[EVENTS]
    return nnx.eval_shape(
        lambda: kind(hubs, D, expansion=R, num_heads=1, rngs=nnx.Rngs(0), **options)
    )


def test_a_block_of_the_second_version_has_the_formulas_parameters():
    def block(**options):
        return make_block(AggregateBroadcastBlock, own_tasks=NUM_TASKS, **options)

    num_hubs = NUM_FIELD_HUBS + NUM_SEQUENCES + NUM_TASKS + NUM_SHARED
    assert count(block(is_last=False)) == (
        18 * D**2 + R * D**2 * (num_hubs + 6) + (30 + 3 * R) * D
    )
    # Two groups: K, V, Q and the fusion of two views.
    assert count(block(is_last=False, has_events=False)) == (
        10 * D**2 + R * D**2 * (num_hubs - NUM_SEQUENCES + 4) + (20 + 2 * R) * D
    )
    # All K and V, but one group's Q, fusion, norms and MLP.
    task_hubs = NUM_TASKS + NUM_SHARED
    assert count(block(is_last=True)) == (
        10 * D**2 + R * D**2 * (task_hubs + 2) + (14 + R) * D
    )


def test_a_block_of_the_first_version_has_the_formulas_parameters():
    def block(**options):
        options = {"use_residual": False, "shares_sources": False} | options
        return make_block(ProxyGateBlock, **options)

    num_hubs = NUM_FIELD_HUBS + NUM_SEQUENCES + NUM_SHARED
    gates = R * D**2 * (num_hubs + 3) + 3 * (R * D + D)
    assert count(block(is_last=False)) == 24 * D**2 + gates
    # 8 queries, but one K and V for each of three sources.
    assert count(block(is_last=False, shares_sources=True)) == 14 * D**2 + gates
    # And a norm for three groups and their three groups of hubs.
    assert count(block(is_last=False, shares_sources=True, use_residual=True)) == (
        14 * D**2 + gates + 6 * 2 * D
    )
    # Shared and own task tokens read fields and events.
    last_gate = R * D**2 * (NUM_SHARED + 1) + R * D + D
    assert count(block(is_last=True)) == 4 * 3 * D**2 + last_gate
    assert count(block(is_last=True, has_events=False)) == 2 * 3 * D**2 + last_gate


def test_first_hubs_have_the_formulas_parameters():
    m, n, d = 7, 3, 8
    sizes = {"mlp": m * d * n * d, "autosplit": m * d * d, "mean": 0, "random": n * d}
    for init, size in sizes.items():
        hubs = functools.partial(FieldHubs, init, m, n, d)
        assert count(nnx.eval_shape(lambda f=hubs: f(rngs=nnx.Rngs(0)))) == size
    for init, size in {"mlp": d * d, "autosplit": d * d, "mean": 0}.items():
        for is_shared in (False, True):
            hubs = functools.partial(
                EventHubs, init, (4, 3), d, is_shared=is_shared, use_mean=True
            )
            found = count(nnx.eval_shape(lambda f=hubs: f(rngs=nnx.Rngs(0))))
            assert found == (size if is_shared else 2 * size)


def test_the_whole_model_has_the_counted_parameters():
    model, _ = make(tower_dims=(7, 3), num_blocks=3)
    d, r, tasks = 4, 2, 3
    task_hubs = tasks + 2
    block = 18 * d**2 + r * d**2 * (4 + 2 + task_hubs + 6) + (30 + 3 * r) * d
    last = 10 * d**2 + r * d**2 * (task_hubs + 2) + (14 + r) * d
    fields = 5 * (DIM * d + d) + 2 * d + 6 * d * 4 * d
    events = (2 * DIM * d + d) + (DIM * d + d) + (4 + 3) * d + 2 * d * d
    towers = tasks * ((d * 7 + 7) + (7 * 3 + 3))
    assert count(model) == 2 * block + last + fields + events + task_hubs * d + towers
    alike, _ = make(width=DIM, sequences=(), num_numeric=0)
    assert alike.tokens.projections is None  # embeddings are tokens as they are


def softmax_calls(jaxpr):
    """Counts `exp` in a jaxpr and all it calls; nothing else here has one."""
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == "exp"
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += softmax_calls(inner)
    return total


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        ({}, 3 * 3),
        ({"sequences": ()}, 3 * 2),
        (V1, 2 * 3 + 2),  # in the last block nothing reads the task tokens
        (V1 | {"prune_last": False}, 3 * 3),
        (V1 | {"prune_last": False, "v1_share_sources": False}, 3 * 8),
    ],
)
def test_a_block_has_one_attention_call_per_source(options, calls):
    model, features = make(num_blocks=3, **options)
    graph, state = nnx.split(model)
    jaxpr = jax.make_jaxpr(lambda s, f: nnx.merge(graph, s, copy=True)(f))(
        state, features
    )
    assert softmax_calls(jaxpr.jaxpr) == calls


# ---------------------------------------------------------------- equations


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("num_queries", [2, 3])  # of two heads: below, above the tokens
def test_attention_equals_a_loop_over_heads_and_valid_tokens(num_queries, use_bias):
    rng = np.random.default_rng(0)
    q, x = (rng.normal(size=(3, n, 6)).astype(np.float32) for n in (num_queries, 5))
    valid = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    key, value = randomized(
        lambda: nnx.List(
            nnx.Linear(6, 6, use_bias=use_bias, rngs=nnx.Rngs(0)) for _ in range(2)
        )
    )
    k, v = dense(key, x), dense(value, x)
    want = np.zeros((3, num_queries, 6))
    for b in range(2):  # the last example has no token: zeros
        for i in range(num_queries):
            for part in (slice(0, 3), slice(3, 6)):
                weights = softmax(k[b, valid[b], part] @ q[b, i, part] / math.sqrt(3))
                want[b, i, part] = weights @ v[b, valid[b], part]

    @jax.jit
    def apply(q, x):
        out, transpose = jax.vjp(
            lambda q, x: attend(
                q, x, key, value, num_heads=2, is_valid=jnp.asarray(valid)
            ),
            q,
            x,
        )
        return out, transpose(out)

    got, gradients = apply(q, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[2], 0)
    assert all(np.isfinite(g).all() and np.any(g) for g in gradients)


def state_of(rng, num_hubs):
    """Random tokens and hubs of every group, and events of two examples."""
    sizes = {FIELDS: 4, EVENTS: 3, TASKS: 2} | {
        hubs_of(g): n for g, n in num_hubs.items()
    }
    tokens = {name: rng.normal(size=(2, n, 4)) for name, n in sizes.items()}
    as_float32 = {name: jnp.asarray(x, jnp.float32) for name, x in tokens.items()}
    return tokens, as_float32, np.array([[1, 1, 0], [0, 0, 0]], bool)


def dense(layer, x):
    y = x @ np.asarray(layer.kernel[...], np.float64)
    return y if layer.bias is None else y + np.asarray(layer.bias[...])


def layer_norm(layer, x):
    centred = x - x.mean(-1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return x * np.asarray(layer.scale[...]) + np.asarray(layer.bias[...])


def mlp(layer, hubs):
    hidden = np.maximum(dense(layer.first, hubs.reshape(-1)), 0)
    return dense(layer.second, hidden)


def read(query, keys, values):
    """One query over the keys that exist."""
    if not len(keys):
        return np.zeros(len(query))
    return softmax(keys @ query / math.sqrt(len(query))) @ values


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_a_block_of_the_second_version_equals_the_equations():
    num_hubs = {FIELDS: 3, EVENTS: 2, TASKS: 4}

    def build(is_last):
        return AggregateBroadcastBlock(
            num_hubs, 4, expansion=2, num_heads=1, is_last=is_last, rngs=nnx.Rngs(0)
        )

    block, last = (randomized(functools.partial(build, x)) for x in (False, True))
    tokens, given, exists = state_of(np.random.default_rng(1), num_hubs)
    got = run(block, given, exists)
    weights = dict(nnx.to_flat_state(nnx.state(block, nnx.Param)))
    for path, param in nnx.to_flat_state(nnx.state(last, nnx.Param)):
        param.set_value(weights[path].get_value())
    pruned = run(last, given, exists)
    np.testing.assert_allclose(pruned[TASKS], got[TASKS], rtol=1e-5, atol=1e-6)
    for b in range(2):
        x = {g: tokens[g][b] for g in num_hubs}
        readable = x | {EVENTS: x[EVENTS][exists[b]]}
        for g in num_hubs:
            hubs = []
            for hub in tokens[hubs_of(g)][b]:
                query = dense(block.query[g], hub)
                views = [
                    read(query, dense(block.key[s], k), dense(block.value[s], k))
                    for s, k in readable.items()
                ]
                hubs.append(hub + dense(block.fuse[g], np.concatenate(views)))
            hubs = layer_norm(block.norms[hubs_of(g)], np.stack(hubs))
            alpha, beta = np.split(mlp(block.modulation[g], hubs), 2)
            want = layer_norm(block.norms[g], x[g] + x[g] * sigmoid(alpha) + beta)
            np.testing.assert_allclose(got[hubs_of(g)][b], hubs, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got[g][b], want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("use_residual", "shares_sources"), [(True, True), (False, False)]
)
def test_a_block_of_the_first_version_equals_the_equations(
    use_residual, shares_sources
):
    num_hubs = {FIELDS: 3, EVENTS: 2, TASKS: 2}
    block = randomized(
        lambda: ProxyGateBlock(
            num_hubs,
            4,
            expansion=2,
            num_heads=1,
            is_last=False,
            use_residual=use_residual,
            shares_sources=shares_sources,
            rngs=nnx.Rngs(0),
        )
    )
    tokens, given, exists = state_of(np.random.default_rng(1), num_hubs)
    got = run(block, given, exists)
    reads = {  # the paper's eight
        hubs_of(FIELDS): (EVENTS, TASKS),
        hubs_of(EVENTS): (FIELDS, TASKS),
        hubs_of(TASKS): (FIELDS, EVENTS),
        TASKS: (FIELDS, EVENTS),
    }
    for b in range(2):
        x = {name: value[b] for name, value in tokens.items()}
        normed = dict(x)
        if use_residual:
            normed = {name: layer_norm(block.norms[name], v) for name, v in x.items()}
        readable = normed | {EVENTS: normed[EVENTS][exists[b]]}
        for reader, sources in reads.items():
            total = x[reader] if use_residual else np.zeros_like(x[reader])
            for s in sources:
                pair = f"{reader}_of_{s}"
                name = s if shares_sources else pair
                keys = dense(block.key[name], readable[s])
                values = dense(block.value[name], readable[s])
                queries = dense(block.query[pair], normed[reader])
                total = total + np.stack([read(q, keys, values) for q in queries])
            x[reader] = total
        for g in num_hubs:
            gate = sigmoid(mlp(block.gate[g], x[hubs_of(g)]))
            x[g] = x[g] * (2 * gate if use_residual else gate)
        for name, want in x.items():
            np.testing.assert_allclose(got[name][b], want, rtol=1e-4, atol=1e-5)
    if not use_residual:
        return
    for g in num_hubs:  # where its last layer starts, a gate is the identity
        second = block.gate[g].second
        second.kernel.set_value(jnp.zeros(second.kernel.shape))
        second.bias.set_value(jnp.zeros(4))
    got = run(block, given, exists)
    for g in (FIELDS, EVENTS):
        np.testing.assert_array_equal(got[g], given[g])


def test_gates_of_the_first_version_start_at_zero():
    for use_residual in (True, False):
        block = ProxyGateBlock(
            {FIELDS: 1, TASKS: 1},
            2,
            expansion=1,
            num_heads=1,
            is_last=True,
            use_residual=use_residual,
            shares_sources=True,
            rngs=nnx.Rngs(0),
        )
        second = block.gate[TASKS].second
        assert np.any(second.kernel[...]) != use_residual
        np.testing.assert_array_equal(second.bias[...], 0)


def test_hubs_start_as_the_page_says():
    rng = np.random.default_rng(0)
    fields = rng.normal(size=(2, 5, 4)).astype(np.float32)
    flat = fields.reshape(2, 20)

    def field_hubs(init, num_hubs):
        return randomized(lambda: FieldHubs(init, 5, num_hubs, 4, rngs=nnx.Rngs(0)))

    one = field_hubs("mlp", 3)
    want = dense(one.linears[0], flat).reshape(2, 3, 4)
    np.testing.assert_allclose(run(one, fields), want, rtol=1e-5, atol=1e-6)
    split = field_hubs("autosplit", 3)
    got = run(split, fields)
    for i, (a, b) in enumerate([(0, 6), (6, 13), (13, 20)]):
        want = dense(split.linears[i], flat[:, a:b])
        np.testing.assert_allclose(got[:, i], want, rtol=1e-5, atol=1e-6)
    got = run(field_hubs("mean", 2), fields)
    np.testing.assert_allclose(got[:, 0], fields[:, :2].mean(1), rtol=1e-5)
    np.testing.assert_allclose(got[:, 1], fields[:, 2:].mean(1), rtol=1e-5)
    learned = field_hubs("random", 3)
    for got in run(learned, fields):
        np.testing.assert_array_equal(got, learned.learned.tokens[...])
    with pytest.raises(ConfigError, match="6 cannot be means of 5 fields; use at most"):
        field_hubs("mean", 6)


@pytest.mark.parametrize("is_v2", [False, True])
def test_hubs_of_histories_start_as_sums_or_means(is_v2):
    rng = np.random.default_rng(0)
    events = rng.normal(size=(2, 5, 4)).astype(np.float32)  # 3 places and 2
    exists = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 1, 1]], bool)
    hubs = randomized(
        lambda: EventHubs(
            "mlp",
            (3, 2),
            4,
            is_shared=not is_v2,
            use_mean=is_v2,
            rngs=nnx.Rngs(0),
        )
    )
    got = run(hubs, events, exists)
    first, second = hubs.linears[0], hubs.linears[-1]
    of_first = np.maximum(dense(first, events[0, :2]), 0)
    want = of_first.mean(axis=0) if is_v2 else of_first.sum(axis=0)
    np.testing.assert_allclose(got[0, 0], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[1, 0], 0)  # an empty history
    want = np.maximum(dense(second, events[0, 3]), 0)
    np.testing.assert_allclose(got[0, 1], want, rtol=1e-5, atol=1e-6)


def test_events_become_tokens_by_their_columns_and_place():
    model, features = make()
    tokens, exists = run(model.tokens, features)
    places = np.asarray(model.tokens.positions[...])
    for start, name, length in ((0, "s0", 4), (4, "s1", 3)):
        rows = np.asarray(features.sequences[name].rows)
        for b in range(BATCH):
            num_events = int(features.sequences[name].lengths[b])
            assert exists[b, start : start + length].tolist() == [
                place < num_events for place in range(length)
            ]
            for place in range(length):
                event = rows[b, place].reshape(-1).astype(np.float64)
                event /= np.sqrt((event**2).mean())
                want = dense(model.tokens.events[name], event) + places[start + place]
                np.testing.assert_allclose(
                    tokens[EVENTS][b, start + place], want, rtol=1e-4, atol=1e-5
                )


# ---------------------------------------------------------------- behaviour


@pytest.mark.parametrize("options", [{}, V1])
def test_what_stands_in_padding_changes_nothing(options):
    model, features = make(**options)
    before = np.asarray(run(model, features))

    def pollute(rows, lengths):
        is_padding = np.arange(rows.shape[1]) >= lengths[:, None]
        return np.where(is_padding[..., None, None], 1e3, rows)

    changed = run(model, replace_events(features, pollute))
    np.testing.assert_allclose(changed, before, rtol=0, atol=1e-6)
    moved = run(model, replace_events(features, lambda rows, _: rows + 1.0))
    difference = np.abs(moved - before).max(axis=(1, 2))
    assert (difference[1:] > 1e-4).all()  # but what happened does
    assert difference[0] == 0  # the first example has no event at all


@pytest.mark.parametrize("options", [{"use_positions": False}, V1])
def test_without_places_the_order_of_events_means_nothing(options):
    model, features = make(**options)

    def reverse(rows, lengths):  # the events, not the padding
        pairs = zip(rows, lengths, strict=True)
        return np.stack([np.concatenate([x[:n][::-1], x[n:]]) for x, n in pairs])

    other = replace_events(features, reverse)
    before, after = run(model, features), run(model, other)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    with_places, _ = make()
    before, after = run(with_places, features), run(with_places, other)
    assert np.abs(after - before).max() > 1e-3


def test_the_size_of_embeddings_means_nothing_where_tokens_are_normed():
    model, features = make()
    small = Features(
        embedded={"embedding": 1e-3 * features.embedded["embedding"]},
        numeric=features.numeric,
        sequences=replace_events(features, lambda rows, _: 1e-3 * rows).sequences,
    )
    np.testing.assert_allclose(
        run(model, small), run(model, features), rtol=1e-3, atol=1e-4
    )


def test_the_size_of_a_number_means_something_where_tokens_are_normed():
    model, features = make(sequences=(), token_norm=True)
    twice = dataclasses.replace(features, numeric=2 * features.numeric)
    change = np.abs(run(model, twice) - run(model, features)).max(axis=(1, 2))
    assert (change > 1e-3).all()


def test_the_second_version_can_do_without_shared_tasks():
    model, features = make(num_shared_tasks=0, sequences=())
    tokens, _ = jax.eval_shape(lambda: model.tokens(features))
    assert tokens[hubs_of(TASKS)].shape == (BATCH, 3, 4)
    out = np.asarray(run(model, features))
    assert np.isfinite(out).all() and out.std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, V1, {"sequences": ()}])
def test_every_parameter_gets_a_gradient(options):
    model, features = make(**options)
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def loss(params):
        return jnp.sum(jnp.sin(nnx.merge(graph, params, rest, copy=True)(features)))

    gradients = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))
    for path, gradient in jax.tree.leaves_with_path(gradients):
        names = [str(getattr(key, "key", key)) for key in path]
        assert np.isfinite(gradient).all(), names
        if "key" in names and "bias" in names:
            continue  # cancels in the softmax
        assert np.abs(gradient).max() > 1e-6, names


@pytest.mark.parametrize("options", [{}, V1])
def test_swapping_tasks_and_towers_swaps_the_outputs(options):
    model, features = make(**options)
    before = np.asarray(run(model, features))
    assert before.shape == (BATCH, 3, 5)
    order = np.array([2, 0, 1])
    swapped = [model.tokens.tasks.tokens]
    swapped += [p for tower in model.towers for p in (tower.kernel, tower.bias)]
    for param in swapped:
        param.set_value(param.get_value()[order])
    if not options:  # its task hubs are flattened in order: rows move with them
        for block in model.blocks:
            kernel = block.modulation[TASKS].first.kernel
            rows = kernel[...].reshape(3 + 2, 4, -1)
            rows = rows.at[:3].set(rows[order])
            kernel.set_value(rows.reshape(kernel[...].shape))
    after = run(model, features)
    np.testing.assert_allclose(after, before[:, order], rtol=1e-4, atol=1e-5)


def test_sums_and_norms_stay_float32_in_bfloat16():
    model, features = make(dtype=jnp.bfloat16)

    def tokens_of_all_blocks():
        tokens, is_event = model.tokens(features)
        seen = [tokens]
        for block in model.blocks:
            seen.append(block(seen[-1], is_event))
        return seen

    for tokens in jax.eval_shape(tokens_of_all_blocks):
        assert {x.dtype for x in tokens.values()} == {jnp.dtype(jnp.float32)}


def learn_xor(steps, **options):
    """Returns the accuracy on XOR(field, target is in the history), and its share."""
    rng = np.random.default_rng(0)
    field, target = rng.integers(0, 2, 256), rng.integers(2, 8, 256)
    lengths = rng.integers(0, 5, 256)
    events = rng.integers(2, 8, (256, 4))
    exists = np.arange(4) < lengths[:, None]
    label = field ^ ((events == target[:, None]) & exists).any(axis=1)
    spec = InputSpec(
        tokens=("field", "target"),
        dims={"embedding": 16},
        num_tasks=1,
        sequences=(SequenceSpec(name="s", num_columns=1, max_length=4),),
    )
    config = INFNetConfig(
        width=16, num_blocks=2, expansion=2, tower_dims=(16,), **options
    )
    model = INFNet(config, spec, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    everything = {
        "table": jax.random.normal(jax.random.key(1), (8, 16)),
        "head": jnp.zeros(16),
        "network": params,
    }
    optimizer = optax.adam(5e-3)

    def logits(everything):
        table = everything["table"]
        rows = jnp.where(exists[..., None], table[events], 0)
        features = Features(
            embedded={"embedding": table[np.stack([field, target], axis=1)]},
            numeric=jnp.zeros((256, 0)),
            sequences={"s": Events(rows=rows[:, :, None], lengths=jnp.array(lengths))},
        )
        network = nnx.merge(graph, everything["network"], rest, copy=True)
        return network(features)[:, 0] @ everything["head"]

    def loss(everything):
        return optax.sigmoid_binary_cross_entropy(logits(everything), label).mean()

    @jax.jit
    def train(everything):
        def step(carry, _):
            everything, state = carry
            updates, state = optimizer.update(jax.grad(loss)(everything), state)
            return (optax.apply_updates(everything, updates), state), None

        carry = everything, optimizer.init(everything)
        return jax.lax.scan(step, carry, length=steps)[0][0]

    return ((logits(train(everything)) > 0) == label).mean(), label.mean()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, V1])
def test_it_learns_xor_of_a_field_and_the_target_in_the_history(options):
    accuracy, share = learn_xor(200, **options)
    assert 0.4 < share < 0.6
    assert accuracy > 0.99


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "v3"}, "variant = 'v3' is unknown; "),
        ({"hub_init": "means"}, "hub_init = 'means' is unknown; did you mean 'mean'"),
        ({"num_blocks": 1}, "num_blocks = 1 must be at least 2"),
        (V1 | {"num_shared_tasks": 0}, "num_shared_tasks = 0 leaves the tasks of 'v1'"),
        ({"v1_residual": False}, "v1_residual = False is of 'v1' only"),
        ({"v1_share_sources": False}, "v1_share_sources = False is of 'v1' only"),
        (V1 | {"use_positions": False}, "use_positions = False is of 'v2' only"),
        ({"num_heads": 3}, "width = 4 cannot be split into 3 heads"),
        (
            {"dropout": 0.1, "tower_dims": ()},
            "dropout = 0.1 is of the towers, but tower_dims is empty",
        ),
    ],
)
def test_options_without_use_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        make(**options)
