"""The engine against a NumPy oracle, over meshes, optimizers, modes and precisions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import SparseOptimizerConfig, TablesConfig, TableSpec
from rankax.embeddings import counters, optimizers, oracle, precision, sizes
from rankax.embeddings.engine import TableEngine
from rankax.embeddings.placement import plan_tables
from rankax.embeddings.routing import RoutingOverflowError
from rankax.parallel import mesh as meshes

COLUMNS = ("user", "item", "item", "item", "city", "word")
ROWS = {"user": 1000, "item": 333, "city": 7, "word": 64}
MESHES = {"1": (1, 1), "2": (2, 1), "4": (4, 1), "8": (8, 1), "4x2": (4, 2)}
OPTIMIZERS = {
    "sgd": SparseOptimizerConfig(name="sgd", learning_rate=0.1),
    "rowwise_adagrad": SparseOptimizerConfig(learning_rate=0.1),
    "adagrad": SparseOptimizerConfig(
        name="adagrad", learning_rate=0.1, initial_accumulator=0.1
    ),
    "lazy_adam": SparseOptimizerConfig(name="lazy_adam", learning_rate=0.01),
    "decay": SparseOptimizerConfig(learning_rate=0.1, weight_decay=0.5),
}


def make_engine(
    mesh=(8, 1),
    *,
    sparse=OPTIMIZERS["rowwise_adagrad"],
    rows=ROWS,
    small=2000,
    context=(),
    **options,
):
    specs = [
        TableSpec(name=name, role=role, num_rows=n, dim=dim, init_scale=0.1)
        for role, dim in (("embedding", 16), ("weight", 1))
        for name, n in rows.items()
    ]
    specs += [
        TableSpec(name=name, role="context", num_rows=rows[name], dim=4, init_scale=0.1)
        for name in context
    ]
    sample_ids = options.pop("sample_ids", None)
    options = {"num_shards": 64, "replicate_below_bytes": small} | options
    config = TablesConfig(**options)
    plan = plan_tables(
        specs, column_tables=COLUMNS, config=config, num_devices=mesh[0] * mesh[1]
    )
    devices = jax.devices()[: mesh[0] * mesh[1]]
    return TableEngine(
        plan,
        meshes.make_mesh(data=mesh[0], model=mesh[1], devices=devices),
        optimizers.from_config(sparse),
        config=config,
        seed=3,
        sample_ids=sample_ids,
    )


def make_ids(seed, batch=64):
    """Skewed ids with many duplicates and padding in the list columns."""
    rng = np.random.default_rng(seed)
    ids = np.stack(
        [np.minimum(rng.zipf(1.3, batch) - 1, ROWS[t] - 1) for t in COLUMNS], axis=1
    ).astype(np.int32)
    ids[rng.random(batch) < 0.4, 2:4] = -1
    ids[0] = [ROWS[t] - 1 for t in COLUMNS]  # the largest id of every table
    return ids


def make_targets(engine, seed, batch=64):
    rng = np.random.default_rng(seed + 100)
    return {
        role: rng.normal(size=(batch, len(COLUMNS), dim)).astype(np.float32)
        for role, dim in engine.plan.dims.items()
    }


def make_step(engine):
    """One step of the loss Σ target · embedded²."""
    sharding = meshes.over_all_devices(engine.mesh)

    @jax.jit
    def step(tables, stacks, routes, targets, number, enabled):
        requests = engine.request(routes)

        def loss(stacks, rows):
            embedded = engine.embed(stacks, rows, requests)
            return sum(jnp.sum(targets[r] * embedded[r] ** 2) for r in embedded)

        rows = engine.lookup(tables, requests)
        embedded = engine.embed(stacks, rows, requests)
        grads = jax.grad(loss, argnums=(0, 1))(stacks, rows)
        new = engine.update(
            tables,
            requests,
            rows,
            grads[1],
            learning_rate=engine.learning_rate,
            step=number,
            enabled=enabled & engine.fits(requests),
        )
        return new, embedded, grads[0], counters.sum_over_devices(requests)

    def run(tables, stacks, ids, targets, *, number=0, enabled=True):
        routes = jax.device_put(engine.route(ids), sharding)
        return step(tables, stacks, routes, targets, np.int32(number), enabled)

    return run


def train(engine, sparse, *, num_steps=3, ids=make_ids, check=None):
    """Trains some steps; returns tables and the counts of every step."""
    engine.learning_rate = jnp.float32(sparse.learning_rate)
    tables = engine.init_tables(jax.random.key(1))
    stacks = engine.init_stacks(jax.random.key(2))
    run, counts = make_step(engine), []
    for number in range(num_steps):
        batch = ids(number)
        targets = make_targets(engine, number, len(batch))
        tables, embedded, _, count = run(tables, stacks, batch, targets, number=number)
        counts.append(jax.device_get(count))
        if check is not None:
            check(batch, targets, embedded, tables)
    return tables, counts


class Checker:
    """Follows a training run with the oracle."""

    def __init__(self, engine, sparse):
        self.engine, self.sparse = engine, sparse
        tables = oracle.read_tables(engine.plan, engine.init_tables(jax.random.key(1)))
        stacks = engine.init_stacks(jax.random.key(2))
        self.replicated = {
            (s.role, t.spec.name): np.asarray(stacks[s.name])[t.offset :][
                : t.spec.num_rows
            ]
            for s in engine.plan.stacks
            for t in s.tables
        }
        self.oracle = oracle.Oracle(tables | self.replicated, sparse)

    def __call__(self, ids, targets, embedded, tables):
        wanted = {role: self.oracle.embed(role, COLUMNS, ids) for role in targets}
        for role, want in wanted.items():
            np.testing.assert_allclose(embedded[role], want, rtol=0, atol=1e-6)
        gradients = {role: 2 * targets[role] * want for role, want in wanted.items()}
        self.oracle.update(COLUMNS, ids, gradients)
        # Replicated tables are trained by the dense optimizer, not here.
        for key, start in self.replicated.items():
            self.oracle.tables[key][:] = start
        for key, got in oracle.read_tables(self.engine.plan, tables).items():
            np.testing.assert_allclose(got, self.oracle.tables[key], rtol=0, atol=1e-6)
        for part in self.oracle.state[key]:
            read = oracle.read_tables(self.engine.plan, tables, part=part)
            for key, got in read.items():
                want = self.oracle.state[key][part]
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sparse", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(
    "mesh",
    [
        # They have nothing that the largest and the smallest do not have.
        pytest.param(mesh, id=name, marks=[pytest.mark.slow] * (name in ("2", "4")))
        for name, mesh in MESHES.items()
    ],
)
def test_lookup_and_update_equal_the_dense_oracle(mesh, sparse):
    engine = make_engine(mesh, sparse=sparse)
    train(engine, sparse, check=Checker(engine, sparse))


def test_columns_whose_table_a_role_does_not_have_get_zeros():
    sparse = OPTIMIZERS["sgd"]
    engine = make_engine((2, 1), sparse=sparse, small=200, context=("item", "city"))
    context = [part for part in engine.plan.parts if part.role == "context"]
    assert [part.columns for part in context] == [(1, 2, 3), (4,)]  # sharded, copied
    train(engine, sparse, check=Checker(engine, sparse))


def skewed_ids(engine, group_index=0, batch=64):
    """Ids of `user` that all live on the first device, the rest spread."""
    group = engine.plan.groups[group_index]
    user = [t.spec.name for t in group.tables].index("user")
    rows = group.table_rows(user, np.arange(ROWS["user"]))
    on_first = np.flatnonzero(rows < group.num_rows // engine.mesh.size)

    def make(seed):
        ids = make_ids(seed, batch)
        ids[:, 0] = np.random.default_rng(seed).choice(on_first, batch)
        return ids

    return make


@pytest.mark.parametrize("sparse", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_overflow_takes_more_rounds_and_stays_exact(sparse):
    rows = ROWS | {"user": 1000}
    engine = make_engine(
        sparse=sparse, rows=rows, sample_ids=np.zeros((8, 6), np.int32), small=0
    )
    checker = Checker(engine, sparse)
    _, counts = train(engine, sparse, ids=skewed_ids(engine), check=checker)
    assert all(c["groups"]["embedding_0"]["rounds"] > 1 for c in counts)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_neither_rounds_nor_the_place_of_deduplication_change_a_bit(dtype):
    sparse = OPTIMIZERS["lazy_adam"]
    few = np.zeros((8, 6), np.int32)
    engines = [
        make_engine(sparse=sparse, small=0, dtype=dtype),
        make_engine(sparse=sparse, small=0, dtype=dtype, sample_ids=few),
        make_engine(sparse=sparse, small=0, dtype=dtype, deduplicate="device"),
    ]
    results = [train(e, sparse, ids=skewed_ids(e)) for e in engines]
    rounds = [
        [int(c["groups"]["embedding_0"]["rounds"]) for c in counts]
        for _, counts in results
    ]
    assert max(rounds[0]) == 1 < min(rounds[1])
    for tables, counts in results[1:]:
        equal(tables, results[0][0])
        for ours, first in zip(counts, results[0][1], strict=True):
            for name, group in first["groups"].items():
                equal(ours["groups"][name]["num_requests"], group["num_requests"])


def test_skew_that_no_rounds_can_carry_is_an_error_that_names_table_and_numbers():
    rows = dict.fromkeys(ROWS, 100_000)
    few = np.zeros((8, 6), np.int32)
    host = make_engine(rows=rows, small=0, sample_ids=few)
    device = make_engine(rows=rows, small=0, sample_ids=few, deduplicate="device")
    group = host.plan.groups[0]
    user = [t.spec.name for t in group.tables].index("user")
    stack_rows = group.table_rows(user, np.arange(100_000))
    part = group.num_rows // 8 // 64
    ids = np.zeros((512, 6), np.int32)
    ids[:, 0] = np.flatnonzero(stack_rows < part)[:512]
    message = r"table 'user' .*64 parts, where the exchange holds \d+ a round\. No id"
    with pytest.raises(RoutingOverflowError, match=message):
        host.route(ids)

    device.learning_rate = jnp.float32(0.1)
    tables, stacks = device.init_tables(jax.random.key(1)), {}
    targets = make_targets(device, 0, 512)
    new, *_, counts = make_step(device)(tables, stacks, ids, targets)
    equal(new, tables)  # nothing was written
    with pytest.raises(RoutingOverflowError, match=message):
        device.check_rounds(jax.device_get(counts))


def test_frequency_sorted_direct_ids_need_no_extra_rounds():
    rng = np.random.default_rng(0)
    rows = dict.fromkeys(ROWS, 50_000)

    def ids(batch):
        return np.minimum(rng.zipf(1.2, (batch, 6)) - 1, 49_999).astype(np.int32)

    engine = make_engine(rows=rows, small=0, sample_ids=ids(2048), num_shards=1024)
    request = jax.jit(lambda r: counters.sum_over_devices(engine.request(r)))
    sharding = meshes.over_all_devices(engine.mesh)
    for _ in range(5):
        counts = request(jax.device_put(engine.route(ids(2048)), sharding))
        for group in counts["groups"].values():
            assert group["rounds"] == 1
            load = np.asarray(group["num_requests"]).sum(axis=0)
            assert load.max() / load.mean() <= 1.3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_initial_tables_do_not_depend_on_the_device_count(dtype):
    one = make_engine((1, 1), dtype=dtype)
    eight = make_engine((8, 1), dtype=dtype)
    a = one.init_tables(jax.random.key(3))
    b = eight.init_tables(jax.random.key(3))
    equal(a, b)
    assert len(b["embedding_0"]["rows"].sharding.device_set) == 8
    rows = np.asarray(a["embedding_0"]["rows"])
    values = precision.to_float(rows) if dtype == "bfloat16" else rows
    assert np.std(values) == pytest.approx(0.1, rel=0.02)
    assert len(np.unique(rows[:, 0, 0])) > 32  # every shard has values of its own


def test_sixteen_bit_rows_follow_the_oracle_and_repeat_on_another_device_count():
    sparse = OPTIMIZERS["rowwise_adagrad"]
    exact = make_engine((1, 1), sparse=sparse, small=0)
    want = oracle.read_tables(exact.plan, train(exact, sparse)[0])
    results = []
    for mesh in ((1, 1), (4, 2)):
        engine = make_engine(mesh, sparse=sparse, small=0, dtype="bfloat16")
        tables, _ = train(engine, sparse)
        assert tables["embedding_0"]["rows"].dtype == jnp.uint16
        assert tables["embedding_0"]["accumulator"].dtype == jnp.float32
        results.append(oracle.read_tables(engine.plan, tables))
    for key, rows in results[0].items():
        # Sums over devices differ in the last float32 bit, which rounding can show
        # as one unit of a bfloat16; the noise itself is the same.
        same = rows == results[1][key]
        assert same.mean() > 0.99
        values = np.asarray(precision.to_float(rows))
        np.testing.assert_allclose(values, want[key], rtol=0.03, atol=2e-3)


def test_last_step_is_the_number_of_the_last_update_of_touched_rows():
    sparse = OPTIMIZERS["sgd"]
    engine = make_engine(sparse=sparse, small=0, track_last_step=True)
    tables, _ = train(engine, sparse, num_steps=3)
    got = oracle.read_tables(engine.plan, tables, part="last_step")
    want = {name: np.zeros(n, np.int32) for name, n in ROWS.items()}
    for number in range(3):
        ids = make_ids(number)
        for k, name in enumerate(COLUMNS):
            want[name][ids[ids[:, k] >= 0, k]] = number + 1
    for (_, name), steps in got.items():
        np.testing.assert_array_equal(steps, want[name])


@pytest.mark.parametrize("deduplicate", ["host", "device"])
@pytest.mark.parametrize("mesh", [(1, 1), (8, 1)])
def test_batches_may_have_more_unique_rows_than_the_first(mesh, deduplicate):
    sparse = OPTIMIZERS["rowwise_adagrad"]
    engine = make_engine(mesh, sparse=sparse, small=0, deduplicate=deduplicate)

    def ids(number):
        rng = np.random.default_rng(number)
        spread = [1, 5, 1000, 2, 1000][number]
        sizes = [min(spread, ROWS[t]) for t in COLUMNS]
        return rng.integers(0, sizes, (64, len(COLUMNS))).astype(np.int32)

    sizes = []
    for number in range(5):
        group = engine.route(ids(number))["groups"]["embedding_0"]
        sizes.append(group["unique"].shape[1] if deduplicate == "host" else 0)
    assert sizes == sorted(sizes) and sizes[2:] == 3 * sizes[2:3]
    if deduplicate == "host":
        assert sizes[0] == 8 < sizes[1] < sizes[2]
    engine = make_engine(mesh, sparse=sparse, small=0, deduplicate=deduplicate)
    train(engine, sparse, num_steps=5, ids=ids, check=Checker(engine, sparse))


def test_a_disabled_update_writes_nothing():
    engine = make_engine((4, 2), track_last_step=True)
    engine.learning_rate = jnp.float32(0.1)
    tables = engine.init_tables(jax.random.key(0))
    targets = {
        r: np.full((64, 6, d), np.nan, np.float32) for r, d in engine.plan.dims.items()
    }
    stacks = engine.init_stacks(jax.random.key(0))
    new, *_ = make_step(engine)(tables, stacks, make_ids(0), targets, enabled=False)
    equal(tables, new)


@pytest.mark.parametrize("deduplicate", ["host", "device"])
def test_a_batch_of_padding_only_touches_no_row(deduplicate):
    engine = make_engine((2, 1), deduplicate=deduplicate, track_last_step=True)
    engine.learning_rate = jnp.float32(0.1)
    tables = engine.init_tables(jax.random.key(0))
    stacks = engine.init_stacks(jax.random.key(0))
    ids = np.full((64, 6), -1, np.int32)
    targets = make_targets(engine, 0)
    new, embedded, grads, counts = make_step(engine)(tables, stacks, ids, targets)
    equal(tables, new)
    assert all(not np.any(x) for x in embedded.values())
    assert all(not np.any(x) for x in grads.values())
    total = counters.accumulate(None, jax.device_get(counts))
    summary = counters.summarize(engine.plan, total)
    assert all(not any(record.values()) for record in summary.values())


@pytest.mark.parametrize("bad", ["int64", "width", "batch"])
def test_ids_of_a_wrong_type_or_shape_are_refused(bad):
    engine, ids = make_engine(), make_ids(0)
    broken = {"int64": ids.astype(np.int64), "width": ids[:, :5], "batch": ids[:63]}[
        bad
    ]
    message = {
        "int64": "dtype int64, expected int32",
        "width": r"\[64, 5\], expected \[B, 6\]",
        "batch": "multiple of the 8 devices",
    }[bad]
    with pytest.raises((TypeError, ValueError), match=message):
        engine.route(broken)


def test_row_ids_without_room_for_padding_values_are_refused():
    group = make_engine(small=0).plan.groups[0]
    with pytest.raises(ConfigError, match="32-bit row ids leave room for"):
        sizes.check_bound(group, 2**31)
    huge = dataclasses.replace(group, depth=2**25)
    with pytest.raises(ConfigError, match="leave room for -1"):
        sizes.check_bound(huge, 8)
    # C itself cannot be too small to serve: not even for a first batch of padding.
    assert sizes.capacity(0.0, 1000, num_devices=8, margin=0.0) == 8
