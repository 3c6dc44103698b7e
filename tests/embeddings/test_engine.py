import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.experiment import SparseOptimizerConfig, TablesConfig, TableSpec
from rankax.embeddings import optimizers, oracle
from rankax.embeddings.engine import TableEngine
from rankax.embeddings.placement import plan_tables
from rankax.embeddings.routing import RoutingOverflowError
from rankax.parallel import mesh as meshes

COLUMNS = ("user", "item", "item", "item", "city", "word")
ROWS = {"user": 1000, "item": 333, "city": 7, "word": 64}
MESHES = {"1": (1, 1), "2": (2, 1), "4": (4, 1), "8": (8, 1), "4x2": (4, 2)}


def make_engine(mesh=(8, 1), *, optimizer="rowwise_adagrad", small=2000, rows=ROWS):
    specs = [
        TableSpec(name=name, role=role, num_rows=n, dim=dim, init_scale=0.1)
        for role, dim in (("embedding", 16), ("weight", 1))
        for name, n in rows.items()
    ]
    plan = plan_tables(
        specs,
        column_tables=COLUMNS,
        config=TablesConfig(num_shards=64, replicate_below_bytes=small),
        num_devices=mesh[0] * mesh[1],
    )
    devices = jax.devices()[: mesh[0] * mesh[1]]
    sparse = SparseOptimizerConfig(name=optimizer, learning_rate=0.1)
    return (
        TableEngine(
            plan,
            meshes.make_mesh(data=mesh[0], model=mesh[1], devices=devices),
            optimizers.from_config(sparse),
        ),
        sparse,
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


def make_step(engine):
    sharding = meshes.over_all_devices(engine.mesh)

    @jax.jit
    def step(tables, stacks, routes, targets, enabled):
        def loss(stacks, rows):
            embedded = engine.embed(stacks, rows, routes)
            return sum(jnp.sum(targets[r] * embedded[r] ** 2) for r in embedded)

        rows = engine.lookup(tables, routes)
        embedded = engine.embed(stacks, rows, routes)
        grads = jax.grad(loss, argnums=(0, 1))(stacks, rows)
        new = engine.update(
            tables,
            routes,
            grads[1],
            learning_rate=jnp.float32(0.1),
            enabled=enabled,
        )
        return new, embedded, grads[0]

    def run(tables, stacks, ids, targets, enabled=True):
        routes = jax.device_put(engine.route(ids), sharding)
        return step(tables, stacks, routes, targets, enabled)

    return run


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
def test_lookup_and_update_equal_the_dense_oracle(mesh, optimizer):
    engine, config = make_engine(mesh, optimizer=optimizer)
    tables = engine.init_tables(jax.random.key(1))
    stacks = engine.init_stacks(jax.random.key(2))
    expected = oracle.read_tables(engine.plan, tables)
    replicated = {
        (s.role, t.spec.name): np.asarray(stacks[s.name])[t.offset :][: t.spec.num_rows]
        for s in engine.plan.stacks
        for t in s.tables
    }
    expected = {k: v.astype(np.float64) for k, v in (expected | replicated).items()}
    accumulators = {key: np.zeros(len(table)) for key, table in expected.items()}
    run = make_step(engine)
    for seed in range(3):
        ids = make_ids(seed)
        rng = np.random.default_rng(seed + 100)
        targets = {
            role: rng.normal(size=(64, 6, dim)).astype(np.float32)
            for role, dim in engine.plan.dims.items()
        }
        tables, embedded, _ = run(tables, stacks, ids, targets)
        for role in targets:
            want = oracle.embed(expected, role, COLUMNS, ids)
            np.testing.assert_allclose(embedded[role], want, rtol=0, atol=1e-6)
            oracle.update(
                expected,
                accumulators,
                config,
                role,
                COLUMNS,
                ids,
                2 * targets[role] * want,
            )
            for key in replicated:  # trained by the dense optimizer, not here
                expected[key] = replicated[key].astype(np.float64)
        for key, got in oracle.read_tables(engine.plan, tables).items():
            np.testing.assert_allclose(got, expected[key], rtol=0, atol=1e-6)
        if optimizer == "rowwise_adagrad":
            got = oracle.read_tables(engine.plan, tables, part="accumulator")
            for key, value in got.items():
                np.testing.assert_allclose(
                    value, accumulators[key], rtol=1e-5, atol=1e-6
                )


def test_initial_tables_do_not_depend_on_the_device_count():
    one, _ = make_engine((1, 1))
    eight, _ = make_engine((8, 1))
    a = one.init_tables(jax.random.key(3))
    b = eight.init_tables(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert len(b["embedding_0"]["rows"].sharding.device_set) == 8


def test_a_disabled_update_writes_nothing():
    engine, _ = make_engine((4, 2))
    tables = engine.init_tables(jax.random.key(0))
    targets = {
        r: np.full((64, 6, d), np.nan, np.float32) for r, d in engine.plan.dims.items()
    }
    stacks = engine.init_stacks(jax.random.key(0))
    new, _, _ = make_step(engine)(tables, stacks, make_ids(0), targets, enabled=False)
    jax.tree.map(np.testing.assert_array_equal, tables, new)


def test_a_batch_of_padding_only_touches_no_row():
    engine, _ = make_engine((2, 1))
    tables = engine.init_tables(jax.random.key(0))
    stacks = engine.init_stacks(jax.random.key(0))
    ids = np.full((64, 6), -1, np.int32)
    targets = {r: np.ones((64, 6, d), np.float32) for r, d in engine.plan.dims.items()}
    new, embedded, grads = make_step(engine)(tables, stacks, ids, targets)
    jax.tree.map(np.testing.assert_array_equal, tables, new)
    assert all(not np.any(x) for x in embedded.values())
    assert all(not np.any(x) for x in grads.values())


def test_the_step_writes_in_place_and_its_memory_is_flat_in_the_rows():
    temporaries = {}
    for factor in (1, 8):
        rows = {name: 4096 * 8 * factor for name in ROWS}
        engine, _ = make_engine((8, 1), rows=rows, small=0)
        sharding = meshes.over_all_devices(engine.mesh)
        tables = engine.init_tables(jax.random.key(0))
        routes = jax.device_put(engine.route(make_ids(0)), sharding)

        def step(tables, routes, engine=engine):
            rows = engine.lookup(tables, routes)
            grads = jax.grad(
                lambda r: sum(
                    jnp.sum(x**2) for x in engine.embed({}, r, routes).values()
                )
            )(rows)
            return engine.update(
                tables,
                routes,
                grads,
                learning_rate=jnp.float32(0.1),
                enabled=jnp.bool_(True),
            )

        compiled = jax.jit(step, donate_argnums=0).lower(tables, routes).compile()
        memory = compiled.memory_analysis()
        state = sum(x.nbytes for x in jax.tree.leaves(tables)) // 8
        assert memory.alias_size_in_bytes == state
        temporaries[factor] = memory.temp_size_in_bytes
        # A state array appears in the program as [S/N, R, ...] or flattened.
        depth = engine.plan.groups[0].depth
        state_shapes = (f"f32[8,{depth}", f"f32[{8 * depth}")
        copies = [x for x in compiled.as_text().splitlines() if " copy(" in x]
        assert copies  # the small ones, so the pattern still fits the text
        assert not [x for x in copies if any(shape in x for shape in state_shapes)]
    assert temporaries[1] == temporaries[8]


def test_overflow_of_the_exchange_is_an_error_that_names_tables_and_numbers():
    engine, _ = make_engine((8, 1), small=0, rows=dict.fromkeys(ROWS, 100_000))
    ids = np.zeros((512, 6), np.int32)
    group = engine.plan.groups[0]
    user = [t.spec.name for t in group.tables].index("user")
    rows = group.table_rows(user, np.arange(100_000))
    on_device_0 = np.flatnonzero(rows < group.num_rows // 8)
    ids[:, 0] = on_device_0[:512]
    ids[:, 1:] = on_device_0[512 : 512 + 512 * 5].reshape(512, 5)
    with pytest.raises(
        RoutingOverflowError, match=r"'user'.*device 0 asks device \d for"
    ):
        engine.route(ids)
