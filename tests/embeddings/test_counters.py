"""What the tables were asked for, against plain loops over the ids."""

from collections import Counter

import jax
import numpy as np
import pytest

from rankax.config.experiment import TablesConfig, TableSpec
from rankax.embeddings import counters, optimizers
from rankax.embeddings.engine import TableEngine
from rankax.embeddings.placement import plan_tables
from rankax.parallel import mesh as meshes

COLUMNS = ("user", "item", "item", "city")
ROWS = {"user": 3000, "item": 500, "city": 20}


def make_engine(num_devices, **options):
    config = TablesConfig(num_shards=64, replicate_below_bytes=10_000, **options)
    specs = [
        TableSpec(name=name, role="embedding", num_rows=n + (name != "city"), dim=8)
        for name, n in ROWS.items()
    ]
    plan = plan_tables(
        specs,
        column_tables=COLUMNS,
        config=config,
        num_devices=num_devices,
        default_rows={"user": ROWS["user"], "item": ROWS["item"]},
    )
    assert [t.spec.name for t in plan.stacks[0].tables] == ["city"]
    mesh = meshes.make_mesh(devices=jax.devices()[:num_devices])
    return TableEngine(plan, mesh, optimizers.sgd(), config=config)


def make_ids(seed):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, ROWS[t] // 4, 64) for t in COLUMNS], axis=1)
    ids[rng.random(ids.shape) < 0.2] = -1
    ids[rng.random(64) < 0.2, 0] = ROWS["user"]  # the default row
    ids[rng.random(64) < 0.2, 1] = ROWS["item"]
    return ids.astype(np.int32)


def count(engine, ids, **options):
    sharding = meshes.over_all_devices(engine.mesh)
    step = jax.jit(lambda r: counters.sum_over_devices(engine.request(r)))
    return jax.device_get(step(jax.device_put(engine.route(ids, **options), sharding)))


@pytest.mark.parametrize("deduplicate", ["host", "device"])
@pytest.mark.parametrize("num_devices", [1, 4])
def test_counters_equal_a_loop_over_the_ids(num_devices, deduplicate):
    engine = make_engine(num_devices, deduplicate=deduplicate)
    want, owners = {name: Counter() for name in ROWS}, {}
    total = None
    for seed in range(3):
        ids = make_ids(seed)
        total = counters.accumulate(total, count(engine, ids))
        for block in ids.reshape(num_devices, -1, len(COLUMNS)):
            unique = {name: set() for name in ROWS}
            for example in block:
                for name, row in zip(COLUMNS, example, strict=True):
                    if row >= 0:
                        want[name]["looked_up"] += 1
                        unique[name].add(int(row))
                        is_default = name != "city" and row == ROWS[name]
                        want[name]["out_of_vocabulary"] += bool(is_default)
            for name, rows in unique.items():
                want[name]["unique"] += len(rows)
            (group,) = engine.plan.groups
            for index, placed in enumerate(group.tables):
                rows = np.array(sorted(unique[placed.spec.name]))
                load = group.table_rows(index, rows) // (group.num_rows // num_devices)
                owners.setdefault(placed.spec.name, Counter()).update(load.tolist())
    summary = counters.summarize(engine.plan, total)
    assert summary.keys() == {f"embedding/{name}" for name in ROWS}
    for name, record in want.items():
        got = summary[f"embedding/{name}"]
        for counter in ("looked_up", "unique", "out_of_vocabulary"):
            assert got[counter] == record[counter], (name, counter)
    for name, load in owners.items():
        mean = sum(load.values()) / num_devices
        got = summary[f"embedding/{name}"]
        assert got["shard_load"] == pytest.approx(max(load.values()) / mean)
        assert got["overflow_rounds"] == 0
    assert "shard_load" not in summary["embedding/city"]

    values = counters.log_values(summary)
    user = want["user"]
    ratio = user["unique"] / user["looked_up"]
    assert values["embedding/user/unique_ratio"] == pytest.approx(ratio)
    assert "embedding/user/unique" not in values
    twice = counters.add(summary, summary)["embedding/user"]
    assert twice["looked_up"] == 2 * user["looked_up"]
    assert "shard_load" not in twice


def test_examples_that_fill_up_a_batch_do_not_count():
    engine, ids = make_engine(4), make_ids(0)
    is_counted = np.arange(64) < 40
    total = counters.accumulate(None, count(engine, ids, is_counted=is_counted))
    got = counters.summarize(engine.plan, total)
    looked_up = got["embedding/user"]["looked_up"]
    assert looked_up == np.count_nonzero(ids[:40, 0] >= 0)
    default = got["embedding/user"]["out_of_vocabulary"]
    assert default == np.count_nonzero(ids[:40, 0] == ROWS["user"])


def test_never_updated_rows_are_counted_without_the_padding():
    engine = make_engine(4, track_last_step=True)
    tables = engine.init_tables(jax.random.key(0))
    (group,) = engine.plan.groups
    last_step = np.zeros(tables[group.name]["last_step"].shape, np.int32)
    flat = last_step.reshape(-1)
    names = [table.spec.name for table in group.tables]
    touched = {"user": [0, 5, 3000], "item": list(range(100))}
    for name, rows in touched.items():
        flat[group.table_rows(names.index(name), np.array(rows))] = 7
    tables[group.name]["last_step"] = last_step
    got = jax.jit(engine.never_updated)(tables)[group.name]
    want = [
        group.tables[i].spec.num_rows - len(touched[n]) for i, n in enumerate(names)
    ]
    assert got.tolist() == want
