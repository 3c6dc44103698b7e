"""Rows in lines of 128 numbers: the same bits as rows that stand by themselves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engine import OPTIMIZERS, make_engine, skewed_ids, train

from rankax.config.experiment import TableSpec
from rankax.embeddings import layout, remap
from rankax.embeddings.layout import Flat, Lines
from rankax.embeddings.placement import PlacedTable, RowGroup

SPECIAL = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45], np.float32)


def bits(x):
    x = np.asarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def make_rows(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.uint16:
        return rng.integers(0, 2**16, shape, dtype=np.uint16)
    rows = rng.normal(size=shape).astype(dtype)
    rows.flat[: len(SPECIAL)] = SPECIAL
    return rows


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize(
    ("dim", "shape"),
    [
        (2, (1, 128)),
        (16, (8, 128)),
        (24, (12, 128)),  # 5 · 24 = 120 of 128
        (64, (29, 128)),
        (80, (57, 128)),
        (200, (57, 256)),
    ],
)
def test_rows_are_read_and_written_to_the_bit_and_others_stay(dim, shape, dtype):
    own = Lines(num_rows=57, tail=(dim,), dtype=np.dtype(dtype))
    assert own.shape == shape
    rows = make_rows((57, dim), dtype)
    lines = own.pack(rows)
    assert lines.dtype == bits(rows).dtype
    np.testing.assert_array_equal(bits(own.unpack(lines)), bits(rows))

    asked = np.array([56, 0, 3, 3, 57, 2**31 - 1, 17], np.int32)
    found = bits(jax.jit(own.get)(lines, asked))
    past = asked >= 57
    np.testing.assert_array_equal(found[~past], bits(rows)[asked[~past]])
    assert not found[past].any()

    # Neighbours in one line, the last row, and places past the end.
    targets = np.array([0, 1, 2, 3, 40, 55, 56, 57, 58, 64, 99], np.int32)
    new = make_rows((len(targets), dim), dtype, seed=1)
    put = jax.jit(own.put, static_argnames="is_ascending")
    written = np.asarray(put(lines, targets, new, is_ascending=True))
    expected = rows.copy()
    expected[targets[:7]] = new[:7]
    np.testing.assert_array_equal(bits(own.unpack(written)), bits(expected))
    np.testing.assert_array_equal(written, own.pack(expected))  # no one else's room


def in_lines(monkeypatch, value=True):
    monkeypatch.setattr(layout, "is_in_lines", lambda mesh: value)


def logical(engine, tables):
    return jax.tree.map(np.asarray, engine.to_logical(tables))


def equal_bits(found, expected):
    def check(a, b):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_array_equal(bits(a), bits(b))

    jax.tree.map(check, found, expected)


@pytest.mark.parametrize(
    ("mesh", "optimizer", "options"),
    [
        ((1, 1), "rowwise_adagrad", {"track_last_step": True}),
        ((8, 1), "rowwise_adagrad", {}),
        ((4, 2), "adagrad", {}),
        pytest.param(
            (8, 1), "lazy_adam", {"dtype": "bfloat16"}, marks=pytest.mark.slow
        ),
        pytest.param((1, 1), "decay", {"dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param((2, 1), "sgd", {"deduplicate": "device"}, marks=pytest.mark.slow),
    ],
)
def test_training_in_lines_gives_the_same_bits(mesh, optimizer, options, monkeypatch):
    sparse = OPTIMIZERS[optimizer]
    monkeypatch.setattr(layout, "_PIECE", 5)  # of the rows that are made at a time
    results = []
    for value in (False, True):
        in_lines(monkeypatch, value)
        engine = make_engine(mesh, sparse=sparse, small=0, **options)
        tables, _ = train(engine, sparse)
        results.append((engine, tables))
    (_, plain), (engine, tables) = results
    equal_bits(logical(engine, tables), jax.tree.map(np.asarray, plain))
    shapes = jax.tree.map(lambda x: x.shape, tables)["embedding_0"]
    assert (
        shapes["rows"][1] == 128
        and np.prod(shapes["rows"]) >= plain["embedding_0"]["rows"].size
    )
    if optimizer == "rowwise_adagrad":
        assert shapes["accumulator"] == (plain["embedding_0"]["accumulator"].size,)
    if options.get("track_last_step"):
        untouched = jax.tree.map(np.asarray, engine.never_updated(tables))
        in_lines(monkeypatch, False)
        other = make_engine(mesh, sparse=sparse, small=0, **options)
        equal_bits(untouched, jax.tree.map(np.asarray, other.never_updated(plain)))


def test_rounds_in_lines_give_the_same_bits(monkeypatch):
    sparse, few = OPTIMIZERS["lazy_adam"], np.zeros((8, 6), np.int32)
    results = []
    for value in (False, True):
        in_lines(monkeypatch, value)
        engine = make_engine(sparse=sparse, small=0, sample_ids=few)
        tables, counts = train(engine, sparse, ids=skewed_ids(engine))
        assert min(c["groups"]["embedding_0"]["rounds"] for c in counts) > 1
        results.append(logical(engine, tables))
    equal_bits(*reversed(results))


def test_tables_go_to_their_hosts_and_back_unchanged(monkeypatch):
    in_lines(monkeypatch)
    engine = make_engine(small=0, track_last_step=True)
    tables = engine.init_tables(jax.random.key(1))
    kept = jax.tree.map(np.asarray, tables)
    saved = engine.to_logical(tables)
    for arrays, described in zip(
        jax.tree.leaves(saved), jax.tree.leaves(engine.abstract_logical()), strict=True
    ):
        assert (arrays.shape, arrays.dtype) == (described.shape, described.dtype)
        assert arrays.sharding == described.sharding
    back = engine.from_logical(saved)
    equal_bits(jax.tree.map(np.asarray, back), kept)
    assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(
        lambda x: x.sharding, tables
    )


@pytest.mark.parametrize("dim", [1, 16, 24, 128])
def test_the_layout_of_an_array_shows_in_its_shape(dim):
    spec = TableSpec(name="user", role="embedding", num_rows=1000, dim=dim)
    group = RowGroup(
        name="embedding_0",
        role="embedding",
        tables=(PlacedTable(spec=spec, offset=0),),
        columns=(0,),
        column_tables=(0,),
        dim=dim,
        num_shards=64,
        depth=16,
    )
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    for tail in ((), (dim,)):
        x = jax.ShapeDtypeStruct((64, 16, *tail), jnp.float32, sharding=sharding)
        assert layout.of(x, group) == Flat(
            num_rows=1024, tail=tail, dtype=np.dtype(np.float32)
        )
        own = layout.choose(group, x, num_devices=1, in_lines=True)
        stored = jax.ShapeDtypeStruct(own.shape, own.stored_dtype, sharding=sharding)
        found = layout.of(stored, group)
        assert dataclasses.replace(found, tail=own.tail) == own
        assert found.row == own.row


def test_rows_of_a_table_are_read_from_lines(monkeypatch):
    in_lines(monkeypatch)
    engine = make_engine(small=0)
    tables = engine.init_tables(jax.random.key(1))
    group = engine.plan.groups[0]
    ids = np.array([0, 5, 999], np.int64)
    (found,) = remap.read_table(
        tables[group.name]["rows"], stack=group, index=0, ids=ids
    )
    rows = np.asarray(engine.to_logical(tables)[group.name]["rows"])
    expected = rows.reshape(group.num_rows, -1)[
        group.table_rows(0, ids.astype(np.int32))
    ]
    np.testing.assert_array_equal(found, expected)
