import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import TablesConfig, TableSpec, tables_for_role
from rankax.embeddings.placement import MAX_GROUP_ROWS, plan_tables


def plan(specs, columns, *, shards=64, small=0, devices=8):
    config = TablesConfig(num_shards=shards, replicate_below_bytes=small)
    return plan_tables(specs, column_tables=columns, config=config, num_devices=devices)


def spec(name="a", rows=1000, dim=8, role="embedding"):
    return TableSpec(name=name, role=role, num_rows=rows, dim=dim)


def test_every_row_has_its_own_place_and_the_place_names_the_row():
    specs = [spec("a", 1000), spec("b", 1), spec("c", 64), spec("d", 12345)]
    (group,) = plan(specs, ("a", "b", "c", "d")).groups
    seen = [group.table_rows(i, np.arange(s.num_rows)) for i, s in enumerate(specs)]
    everything = np.concatenate(seen)
    assert len(np.unique(everything)) == len(everything)
    assert everything.min() >= 0 and everything.max() < group.num_rows
    for index, table in enumerate(specs):
        for row in {0, table.num_rows // 2, table.num_rows - 1}:
            assert group.find(int(seen[index][row])) == (table, row)


def test_the_formula_is_the_documented_one():
    specs = [spec("a", 1000), spec("b", 500)]
    (group,) = plan(specs, ("a", "b")).groups
    odd, placed = int(64 * 0.6180339887) | 1, group.tables[1]
    for k in (0, 1, 63, 64, 499):
        shard = ((k % 64) * odd + placed.salt) % 64
        depth = placed.offset + k // 64
        assert group.table_rows(1, np.array([k]))[0] == shard * group.depth + depth


def test_frequency_sorted_ids_load_all_devices_alike():
    specs = [spec(f"t{i}", 5000) for i in range(26)]
    (group,) = plan(specs, [s.name for s in specs], shards=1024).groups
    hottest = np.concatenate([group.table_rows(i, np.arange(200)) for i in range(26)])
    load = np.bincount(hottest // (group.num_rows // 8), minlength=8)
    assert load.max() / load.mean() <= 1.3


def test_small_tables_are_replicated_and_large_ones_split_by_row():
    specs = [spec("small", 10), spec("large", 10_000)]
    result = plan(specs, ("small", "large", "small"), small=1000)
    assert [t.spec.name for t in result.stacks[0].tables] == ["small"]
    assert [t.spec.name for t in result.groups[0].tables] == ["large"]
    assert result.stacks[0].columns == (0, 2) and result.groups[0].columns == (1,)
    assert result.num_parameters == 10_010 * 8
    assert "large" in str(result) and "replicated" in str(result)


def test_groups_split_below_the_limit_of_32_bit_rows():
    specs = [spec(f"t{i}", 900_000_000) for i in range(5)]
    groups = plan(specs, [s.name for s in specs], shards=1024).groups
    assert [len(g.tables) for g in groups] == [2, 2, 1]
    assert all(g.num_rows <= MAX_GROUP_ROWS for g in groups)


def test_xavier_uniform_bounds_follow_each_table():
    specs = tables_for_role({"a": 994}, role="embedding", dim=6, init="xavier_uniform")
    assert specs[0].init == "uniform"
    assert specs[0].init_scale == pytest.approx((6 / 1000) ** 0.5)


@pytest.mark.parametrize(
    ("specs", "columns", "options", "message"),
    [
        ([spec()], ("a",), {"devices": 3}, "3 devices do not divide tables.num_shards"),
        ([spec(), spec()], ("a",), {}, "'a' is asked for twice"),
        ([spec(), spec("b", dim=4)], ("a", "b"), {}, r"differ in \(dim, init\)"),
        ([spec()], ("a", "zz"), {}, "uses table 'zz', which the backbone"),
        ([spec(), spec("b")], ("a",), {}, "declares table 'b' .* no field uses it"),
        ([spec(rows=2**31 - 1)], ("a",), {}, "fit 32-bit row ids"),
    ],
)
def test_impossible_plans_are_errors_with_advice(specs, columns, options, message):
    with pytest.raises(ConfigError, match=message):
        plan(specs, columns, **options)
