"""What XLA makes of the engine: no copy of a table, no bytes too many on the wire.

None of this shows in results, and any new jax can lose it.
"""

from collections import Counter
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_engine import MESHES, OPTIMIZERS, ROWS, make_engine, make_ids

from benchmarks import contestants, wire
from rankax.config.experiment import ExperimentConfig, TablesConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import packing
from rankax.embeddings import counters, optimizers
from rankax.embeddings.engine import TableEngine
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe import collectives
from rankax.parallel import mesh as meshes
from rankax.training.setup import set_up

pytestmark = pytest.mark.guard

# ---------------------------------------------------------------- the step and its HLO

# What may have a table as its result: views, writes in place, and computations whose
# own lines are looked at too. No `conditional`: it copies, depending on the version.
IN_PLACE = {"parameter", "tuple", "get-tuple-element", "bitcast"}
IN_PLACE |= {"scatter", "dynamic-update-slice", "fusion", "call", "while"}
INSTRUCTION = re.compile(r"^ +(?:ROOT )?\S+ = (\(.*?\)|\S+) ([\w-]+)\(", re.M)


def table_sized(hlo, size):
    """Counts the operations whose result has an array of `size` elements or more."""
    found = Counter()
    for result, operation in INSTRUCTION.findall(hlo):
        shapes = re.findall(r"\w\[([\d,]*)\]", result)
        if any(math.prod(map(int, s.split(","))) >= size for s in shapes if s):
            found[operation] += 1
    return found


def loss_of(network, embedded):
    """Σ (x · network)² of everything embedded, x [B, ΣK·D]."""
    x = [e.reshape(len(e), -1) for e in embedded.values()]
    return jnp.sum((jnp.concatenate(x, axis=1) @ network) ** 2)


def train(engine, tables, network, routes, step, enabled):
    """Returns the tables after one step, and the gradient of the network."""
    requests = engine.request(routes)

    def loss(network, rows):
        return loss_of(network, engine.embed({}, rows, requests))

    rows = engine.lookup(tables, requests)
    gradient, row_gradients = jax.grad(loss, argnums=(0, 1))(network, rows)
    new = engine.update(
        tables,
        requests,
        rows,
        row_gradients,
        learning_rate=jnp.float32(0.1),
        step=step,
        enabled=enabled & engine.fits(requests),
    )
    copied = meshes.replicated(engine.mesh)
    return new, jax.lax.with_sharding_constraint(gradient, copied)


def make_network(engine):
    width = sum(len(g.columns) * g.dim for g in engine.plan.groups)
    noise = np.random.default_rng(0).normal(size=(width, 8))
    return np.float32(0.03 * noise)


def network_and_routes(engine, ids):
    split, copied = meshes.over_all_devices(engine.mesh), meshes.replicated(engine.mesh)
    routes = jax.device_put(engine.route(ids), split)
    return jax.device_put(make_network(engine), copied), routes


def compile_step(engine, ids, *, step=train, donate=0):
    split = meshes.over_all_devices(engine.mesh)
    tables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
        jax.eval_shape(engine.init_tables, jax.random.key(0)),
    )
    arguments = (*network_and_routes(engine, ids), jnp.int32(0), jnp.bool_(True))
    jitted = jax.jit(functools.partial(step, engine), donate_argnums=donate)
    return jitted.lower(tables, *arguments).compile()


# ---------------------------------------------------------------- memory


def make_guarded(mesh=(1, 1), *, scale=100, optimizer="rowwise_adagrad", **options):
    """An engine of 16-wide and 1-wide tables, far larger than anything in its step."""
    rows = {name: scale * n for name, n in ROWS.items()}
    return make_engine(
        mesh, sparse=OPTIMIZERS[optimizer], rows=rows, small=0, **options
    )


def local_state(engine):
    """Number of table-shaped arrays on one device, size of the smallest, all bytes."""
    tables = jax.eval_shape(engine.init_tables, jax.random.key(0))
    arrays, n = jax.tree.leaves(tables), engine.mesh.size
    num_bytes = sum(x.size * x.dtype.itemsize for x in arrays) // n
    return len(arrays), min(x.size for x in arrays) // n, num_bytes


ONE, EIGHT = (1, 1), (8, 1)
CASES = {
    "1": (ONE, {"deduplicate": "device"}),
    "1-bfloat16": (ONE, {"dtype": "bfloat16", "track_last_step": True}),
    "1-adam": (ONE, {"optimizer": "lazy_adam"}),
    "8": (EIGHT, {}),
    "8-bfloat16-adam": (
        EIGHT,
        {
            "dtype": "bfloat16",
            "optimizer": "lazy_adam",
            "deduplicate": "device",
            "track_last_step": True,
        },
    ),
}


@functools.cache
def compiled_step(case, scale):
    """Returns the engine of a case with tables of `scale` times `ROWS`, and its step."""
    mesh, options = CASES[case]
    engine = make_guarded(mesh, scale=scale, **options)
    return engine, compile_step(engine, make_ids(0))


@pytest.mark.parametrize("case", CASES)
def test_a_step_copies_no_table_and_its_temporaries_do_not_grow(case):
    temporaries = []
    for scale in (100, 800):
        engine, compiled = compiled_step(case, scale)
        num_arrays, smallest, num_bytes = local_state(engine)
        found = table_sized(compiled.as_text(), smallest)
        assert set(found) <= IN_PLACE, found
        # The tables were seen: as arguments, where they are written, in the loop.
        assert min(found["parameter"], found["scatter"]) >= num_arrays
        assert found["while"] or engine.mesh.size == 1
        memory = compiled.memory_analysis()
        assert memory.alias_size_in_bytes == num_bytes
        temporaries.append(memory.temp_size_in_bytes)
    assert temporaries[0] == temporaries[1]


def through_a_branch(engine, tables, *others):
    return jax.lax.cond(
        others[-1], lambda t: train(engine, t, *others)[0], lambda t: t, tables
    )


def keeping_the_old(engine, tables, *others):
    new, _ = train(engine, tables, *others)
    return jax.tree.map(lambda a, b: jnp.where(others[-1], a, b), new, tables)


def keeping_the_old_in_a_loop(engine, tables, *others):
    return jax.lax.fori_loop(
        0, others[-2], lambda _, t: keeping_the_old(engine, t, *others), tables
    )


def writing_a_column(engine, tables, *others):
    """Writes 1-wide rows as [V, 1]."""
    new, _ = train(engine, tables, *others)
    weight = new["weight_0"]
    flat = weight["rows"].reshape(-1, 1).at[jnp.arange(8)].set(0.5)
    rows = flat.reshape(weight["rows"].shape)
    return new | {"weight_0": weight | {"rows": rows}}


@pytest.mark.parametrize(
    "step, donate, culprit",
    [
        (train, (), "copy"),
        (through_a_branch, 0, "conditional"),
        (keeping_the_old, 0, "copy"),
        (keeping_the_old_in_a_loop, 0, "copy"),
        (writing_a_column, 0, "copy"),
    ],
)
def test_steps_that_are_not_in_place_are_caught(step, donate, culprit):
    engine = make_guarded()
    compiled = compile_step(engine, make_ids(0), step=step, donate=donate)
    _, smallest, num_bytes = local_state(engine)
    assert culprit in set(table_sized(compiled.as_text(), smallest)) - IN_PLACE
    # All of these but the first look well by their aliases alone.
    alias = compiled.memory_analysis().alias_size_in_bytes
    assert alias == (num_bytes if donate == 0 else 0)


def make_steps(name, **tables):
    """The compiled steps of a small model with row-sharded tables, and a batch."""
    options = {"dcnv2": {"num_cross_layers": 1, "embedding_dim": 4}, "mc_mlcc": {}}
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=640,
        num_valid_rows=64,
        num_test_rows=64,
        rows_per_group=64,
        num_users=200_000,
    )
    config.data.lanes = 8
    config.train.batch_size = config.eval.batch_size = 64
    config.train.num_steps = 1
    config.tables = TablesConfig(replicate_below_bytes=20_000, **tables)
    config.model.backbone = named_config(name, hidden_dims=(8,), **options[name])
    setup = set_up(config)
    arrays = packing.pack(setup.splits["train"].read(0), setup.schema, where="test")
    return setup.steps, setup.steps.to_devices(arrays)


def whole_step(steps):
    return jax.jit(functools.partial(steps.train, factor=1.0), donate_argnums=0)


def test_the_train_step_of_a_model_copies_no_table_either():
    steps, batch = make_steps("dcnv2")
    state = steps.abstract_state()
    compiled = whole_step(steps).lower(state, batch).compile()
    _, smallest, _ = local_state(steps.engine)
    found = table_sized(compiled.as_text(), smallest)
    assert set(found) <= IN_PLACE, found
    assert found["scatter"] >= len(jax.tree.leaves(state.tables)) > 0
    donated = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(state)
    )
    assert compiled.memory_analysis().alias_size_in_bytes == donated


@pytest.mark.parametrize("case", ["1", "8"])
def test_new_tables_stand_where_the_old_ones_stood(case):
    def places(tables):
        return jax.tree.map(
            lambda x: [s.data.unsafe_buffer_pointer() for s in x.addressable_shards],
            tables,
        )

    engine, compiled = compiled_step(case, 100)
    tables = engine.init_tables(jax.random.key(0))
    before, start = places(tables), np.array(tables["embedding_0"]["rows"])
    arguments = network_and_routes(engine, make_ids(0))
    new, _ = compiled(tables, *arguments, jnp.int32(0), jnp.bool_(True))
    assert places(new) == before
    assert np.any(np.asarray(new["embedding_0"]["rows"]) != start)


# ---------------------------------------------------------------- wire


def wire_bytes(engine, batch_size, *, row_bytes, dense_bytes):
    """What a device sends in a step, by ring: ids, rows, gradients of both kinds.

    The ids are in it once. They travel twice, within the ten percent of the tests.
    """
    (group,), n = engine.plan.groups, engine.mesh.size
    capacity = engine.sizes.capacity(group, examples_per_device=batch_size // n)
    exchanged = n * capacity * (4 + row_bytes + 4 * group.dim)
    return (n - 1) / n * (exchanged + 2 * dense_bytes)


@pytest.mark.parametrize(
    "mesh, dim, dtype",
    [
        ("2", 16, "bfloat16"),
        ("4", 64, "float32"),
        ("4x2", 64, "bfloat16"),
    ],
)
def test_devices_send_ids_rows_and_gradients_and_no_more(mesh, dim, dtype):
    workload = contestants.Workload(
        num_rows=260_000, dim=dim, batch_size=1024, num_batches=2
    )
    (sample, ids), _ = workload.batches()
    data, model = MESHES[mesh]
    devices = jax.devices()[: data * model]
    mesh = meshes.make_mesh(data=data, model=model, devices=devices)
    engine = TableEngine(
        contestants.make_engine(workload, mesh).plan,
        mesh,
        contestants.row_optimizer(),
        config=TablesConfig(dtype=dtype),
        sample_ids=sample,
    )
    sent = collectives.sent_bytes(compile_step(engine, ids).as_text(), mesh.size)
    expected = wire_bytes(
        engine,
        len(ids),
        row_bytes=dim * (4 if dtype == "float32" else 2),
        dense_bytes=make_network(engine).nbytes,
    )
    assert expected <= sent <= 1.1 * expected


def test_the_train_step_of_a_model_sends_no_more_either():
    steps, batch = make_steps("dcnv2")
    state, engine = steps.abstract_state(), steps.engine
    compiled = whole_step(steps).lower(state, batch).compile()
    sent = collectives.sent_bytes(compiled.as_text(), engine.mesh.size)
    counts = jax.eval_shape(
        lambda routes: counters.sum_over_devices(engine.request(routes)),
        batch["routes"],
    )
    summed = (state.params, counts)  # gradients, and what the log counts
    expected = wire_bytes(
        engine,
        64,
        row_bytes=4 * engine.plan.groups[0].dim,
        dense_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(summed)),
    )
    assert sent <= 1.1 * expected


def test_eight_devices_send_an_eighth_of_the_reference():
    workload = contestants.Workload(
        num_rows=1_000_000, dim=16, batch_size=4096, num_batches=3
    )
    mesh = meshes.make_mesh()
    found = wire.compare(workload, mesh)
    assert found["ratio"] >= 8
    engine = contestants.make_engine(workload, mesh)
    expected = wire_bytes(engine, 4096, row_bytes=16 * 4, dense_bytes=0)
    sent = 1e6 * (found["engine_mb"] - found["network_mb"])
    assert expected <= sent <= 1.1 * expected
    # Other batches fit the exchange: what was counted once happens once.
    request = jax.jit(lambda r: counters.sum_over_devices(engine.request(r)))
    for ids in workload.batches()[0]:
        routes = jax.device_put(engine.route(ids), meshes.over_all_devices(mesh))
        for group in request(routes)["groups"].values():
            assert group["rounds"] == 1


def test_the_reference_computes_what_the_engine_does():
    engine, compiled = compiled_step("8", 100)
    optimizer = optimizers.from_config(OPTIMIZERS["rowwise_adagrad"])

    def flat(tables):
        return {
            group.name: {
                name: x.reshape(group.num_rows, *x.shape[2:])
                for name, x in tables[group.name].items()
            }
            for group in engine.plan.groups
        }

    @jax.jit
    def reference(tables, network, rows):
        embedded = {
            name: wire.reference_lookup(engine.mesh, tables[name]["rows"], asked)
            for name, asked in rows.items()
        }
        gradient, others = jax.grad(loss_of, argnums=(0, 1))(network, embedded)
        new = {
            name: wire.reference_update(
                engine.mesh, optimizer, tables[name], asked, others[name], 0.1
            )
            for name, asked in rows.items()
        }
        return new, gradient

    tables = engine.init_tables(jax.random.key(0))
    expected = flat(jax.tree.map(jnp.copy, tables))
    for number in range(3):
        ids = make_ids(number)
        network, routes = network_and_routes(engine, ids)
        rows = {group.name: group.stack_rows(ids) for group in engine.plan.groups}
        tables, gradient = compiled(
            tables, network, routes, jnp.int32(number), jnp.bool_(True)
        )
        expected, other = reference(expected, network, rows)
        close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
        jax.tree.map(close, (flat(tables), gradient), (expected, other))


# ---------------------------------------------------------------- other platforms


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("deduplicate", ["host", "device"])
def test_the_train_step_lowers_for_gpu_and_tpu(deduplicate, dtype):
    backbone = "dcnv2" if dtype == "float32" else "mc_mlcc"
    steps, batch = make_steps(backbone, deduplicate=deduplicate, dtype=dtype)
    exported = jax.export.export(whole_step(steps), platforms=("cuda", "tpu"))(
        steps.abstract_state(), batch
    )
    assert exported.platforms == ("cuda", "tpu")
    assert exported.nr_devices == 8
    # Ids and rows of lookup and update, in one group.
    assert exported.mlir_module().count("stablehlo.all_to_all") == 4
