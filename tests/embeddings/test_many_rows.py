"""More than 2^31 rows in all: several groups, whose row numbers end just below it."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import SparseOptimizerConfig, TablesConfig, TableSpec
from rankax.embeddings import optimizers
from rankax.embeddings.engine import TableEngine
from rankax.embeddings.placement import MAX_GROUP_ROWS, plan_tables
from rankax.parallel import mesh as meshes
from rankax.parallel.mesh import ALL_DEVICES

COLUMNS = ("user", "item", "item", "ad", "query")
ROWS = {"user": 1_040_000_000, "item": 1_060_000_000, "ad": 2_000_000_000}
ROWS |= {"query": 100_000_000}
DEVICES, BATCH = 8, 64


def make_plan(rows=ROWS, columns=COLUMNS):
    specs = [
        TableSpec(name=name, role="embedding", num_rows=n, dim=16, init_scale=0.1)
        for name, n in rows.items()
    ]
    return plan_tables(
        specs, column_tables=columns, config=TablesConfig(), num_devices=DEVICES
    )


def make_ids(seed=0):
    rng = np.random.default_rng(seed)
    sizes = [ROWS[name] for name in COLUMNS]
    ids = rng.integers(0, sizes, (BATCH, len(COLUMNS))).astype(np.int32)
    ids[0] = np.array(sizes) - 1  # the largest row of every table
    ids[1] = 0
    ids[5:9] = ids[4]  # duplicates on one device and on two
    ids[rng.random(ids.shape) < 0.1] = -1
    return ids


def place(group, name, row):
    """Row of the stack in Python's integers, which have no size."""
    (table,) = [t for t in group.tables if t.spec.name == name]
    shards = group.num_shards
    odd = int(shards * 0.6180339887) | 1
    shard = (row % shards * odd + table.salt) % shards
    return shard * group.depth + table.offset + row // shards


def asked_rows(plan, ids):
    """(group, asking device) -> the rows of the stack that it asks for."""
    asked = {}
    for group in plan.groups:
        for b, k in np.argwhere(ids >= 0):
            name = COLUMNS[k]
            if name in {t.spec.name for t in group.tables}:
                device = b // (BATCH // DEVICES)
                row = place(group, name, int(ids[b, k]))
                asked.setdefault((group.name, device), set()).add(row)
    return asked


def test_tables_of_more_than_two_to_the_31_rows_share_no_number():
    plan = make_plan()
    assert sum(group.num_rows for group in plan.groups) > 2**31
    assert len(plan.groups) == 2
    for group in plan.groups:
        assert 2**30 < group.num_rows <= MAX_GROUP_ROWS
        for index, table in enumerate(group.tables):
            n = table.spec.num_rows
            ids = np.array([0, 1, 1023, 1024, n // 2, n - 1], np.int32)
            rows = group.table_rows(index, ids)
            assert rows.tolist() == [place(group, table.spec.name, int(i)) for i in ids]
            assert [group.find(int(row)) for row in rows] == [
                (table.spec, int(i)) for i in ids
            ]


@pytest.mark.parametrize("deduplicate", ["host", "device"])
def test_owners_are_asked_for_the_rows_beyond(deduplicate):
    mesh = meshes.make_mesh(devices=jax.devices()[:DEVICES])
    engine = TableEngine(
        make_plan(),
        mesh,
        optimizers.from_config(SparseOptimizerConfig()),
        config=TablesConfig(deduplicate=deduplicate),
    )
    ids = make_ids()
    routes = jax.device_put(engine.route(ids), meshes.over_all_devices(mesh))
    requests = jax.jit(engine.request)(routes)["groups"]
    asked = asked_rows(engine.plan, ids)
    for group in engine.plan.groups:
        given = requests[group.name]
        assert int(given["rounds"]) == 1
        unique = np.asarray(given["unique"])
        for device in range(DEVICES):
            wanted = sorted(asked[group.name, device])
            assert unique[device, : len(wanted)].tolist() == wanted
            rest = unique[device, len(wanted) :].astype(np.int64)
            assert (rest >= group.num_rows).all() and (np.diff(rest) > 0).all()

        exchange = engine._exchange(group, given)
        specs = {
            k: ALL_DEVICES if x.ndim else PartitionSpec() for k, x in given.items()
        }
        receive = jax.shard_map(
            functools.partial(
                lambda exchange, r: exchange._ask(r, jnp.int32(0))[1], exchange
            ),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=ALL_DEVICES,
        )
        own = group.num_rows // DEVICES
        received = np.asarray(jax.jit(receive)(given)).reshape(DEVICES, DEVICES, -1)
        for owner in range(DEVICES):
            for device in range(DEVICES):
                rows = received[owner, device]
                wanted = [r - owner * own for r in sorted(asked[group.name, device])]
                wanted = [row for row in wanted if 0 <= row < own]
                assert rows[rows < own].tolist() == wanted


def test_one_table_of_more_rows_than_32_bits_number_is_refused():
    with pytest.raises(ConfigError, match=r"'user' has 2,147,483,647 rows; at most"):
        make_plan({"user": 2**31 - 1}, ("user",))
