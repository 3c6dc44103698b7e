"""A new run takes over from another what fits it, row by row, and says so."""

import jax
import numpy as np
import pytest
from small_steps import TABLES, make_state, make_steps

from rankax.config.base import ConfigError, config_hash
from rankax.config.experiment import CheckpointConfig, ExperimentConfig
from rankax.data.errors import DataError
from rankax.embeddings import oracle
from rankax.training import checkpoint, run_folder, warm_start
from rankax.training.checkpoint import Checkpoints


def origin_of(steps):
    tables = steps.schema.tables.values()
    return {"hashed_tables": [table.name for table in tables if table.ids == "hash"]}


def save(folder, steps):
    """Saves a state as a run would, and returns it."""
    state = make_state(steps, seed=1)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())
    plan, origin = steps.engine.plan, origin_of(steps)
    checkpoints.save(7, state, {}, plan=plan, origin=origin, is_best=False)
    checkpoints.close()
    return state


def start(folder, steps, patterns=(), renames=()):
    config = CheckpointConfig(
        init_from=str(folder), init_patterns=patterns, init_rename=renames
    )
    state, text = warm_start.start(
        make_state(steps),
        saved=steps.abstract_saved(),
        plan=steps.engine.plan,
        origin=origin_of(steps),
        config=config,
    )
    return state, [" ".join(line.split()) for line in text.splitlines()[1:]]


def logical(steps, state):
    """Table -> what -> its numbers, row by row, from wherever they are kept."""
    plan, result = steps.engine.plan, {}
    kinds = {what for group in state.tables.values() for what in group}
    for what in kinds:
        tables = jax.tree.map(np.asarray, state.tables)
        for (_, name), rows in oracle.read_tables(plan, tables, part=what).items():
            result.setdefault(name, {})[what] = rows
    arrays = checkpoint.flatten(state)
    for stack in plan.stacks:
        for what, array in (
            ("rows", f"params/tables/{stack.name}"),
            ("mu", f"opt_state/0/mu/tables/{stack.name}"),
            ("nu", f"opt_state/0/nu/tables/{stack.name}"),
        ):
            for table in stack.tables:
                rows = slice(table.offset, table.offset + table.spec.num_rows)
                own = result.setdefault(table.spec.name, {})
                own[what] = np.asarray(arrays[array])[rows]
    return result


def assert_rows(found, expected, *, rows=slice(None)):
    assert found.keys() == expected.keys()
    for what in found:
        np.testing.assert_array_equal(found[what][rows], expected[what][rows])


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Folder of a run on 8 devices, and its logical tables."""
    folder, steps = tmp_path_factory.mktemp("other"), make_steps()
    state = save(folder, steps)
    return folder, logical(steps, state), state


@pytest.mark.parametrize("devices, num_shards", [(1, 64), (8, 32), (2, 4)])
def test_all_of_a_run_fits_one_on_other_devices_and_shards(other, devices, num_shards):
    folder, expected, old = other
    steps = make_steps(devices=devices, num_shards=num_shards)
    fresh = make_state(steps)
    state, lines = start(folder, steps)
    assert all(line.startswith("kept ") for line in lines)
    found = logical(steps, state)
    for name in TABLES:
        assert_rows(found[name], expected[name])
    for name, array in checkpoint.flatten(state).items():
        if "network" in name or name.startswith("rest/"):
            np.testing.assert_array_equal(array, checkpoint.flatten(old)[name])
    # What counts and draws begins anew, and nothing moves to other devices.
    for name in ("step", "rng", "first_bad_step"):
        np.testing.assert_array_equal(getattr(state, name), getattr(fresh, name))
    np.testing.assert_array_equal(state.opt_state[0].count, fresh.opt_state[0].count)
    for array, like in zip(
        jax.tree.leaves(state), jax.tree.leaves(steps.abstract_state()), strict=True
    ):
        assert array.sharding.is_equivalent_to(like.sharding, array.ndim)


# The first, the middle and the last one of the sharded and of the replicated stack;
# "hour" becomes too large to be replicated.
@pytest.mark.parametrize(
    "grown", [("user", "day"), ("item", "hour"), ("site",)], ids="-".join
)
def test_any_table_of_a_stack_may_grow(other, grown):
    folder, expected, _ = other
    sizes = {name: rows + 70 * (name in grown) for name, rows in TABLES.items()}
    steps = make_steps(sizes)
    fresh = logical(steps, make_state(steps))
    with pytest.raises(ConfigError) as error:
        start(folder, steps)
    state, lines = start(folder, steps, ("*",))
    found = logical(steps, state)
    for name, rows in TABLES.items():
        detail = f"{rows} -> {rows + 70} rows"
        if name == "hour" in grown:
            bits = found[name]["rows"][:rows].astype(np.uint32) << 16
            nearest = expected[name]["rows"].astype(jax.numpy.bfloat16)
            np.testing.assert_array_equal(bits.view(np.float32), nearest)
            for what in ("m", "v", "last_step"):
                np.testing.assert_array_equal(found[name][what], fresh[name][what])
            detail += (
                "; rows of float32 become uint16; last_step fresh; m fresh; v fresh; "
                "mu dropped; nu dropped"
            )
        else:
            assert_rows(found[name], expected[name], rows=slice(rows))
        if name in grown:
            assert_rows(found[name], fresh[name], rows=slice(rows, None))
            assert f"resized tables/embedding/{name} {detail}" in lines
            assert f"resized  tables/embedding/{name}  {detail}" in str(error.value)
    assert len([line for line in lines if not line.startswith("kept")]) == len(grown)
    assert "checkpoint.init_patterns" in str(error.value)


def test_fields_come_and_go_and_tables_have_other_names(other):
    folder, expected, _ = other
    steps = make_steps({"shop": 90, "member": 200, "item": 333, "place": 150, "day": 7})
    fresh = logical(steps, make_state(steps))
    renames = ("member=user", "place=site")
    state, lines = start(folder, steps, ("*",), renames)
    found = logical(steps, state)
    for name, old in {
        "member": "user",
        "item": "item",
        "place": "site",
        "day": "day",
    }.items():
        assert_rows(found[name], expected[old])
    assert_rows(found["shop"], fresh["shop"])
    tables = [line for line in lines if "tables/" in line]
    assert tables == [
        "kept tables/embedding/day 7 rows",
        "dropped tables/embedding/hour 24 rows",
        "kept tables/embedding/item 333 rows",
        "kept tables/embedding/member 200 rows (was user)",
        "kept tables/embedding/place 150 rows (was site)",
        "fresh tables/embedding/shop 90 rows; not there",
    ]


def test_patterns_choose_entries_and_others_stay_as_initialised(other):
    folder, expected, old = other
    steps = make_steps(hidden=6)  # another first layer, so another head
    initial = make_state(steps)
    fresh, weights = logical(steps, initial), checkpoint.flatten(initial)
    state, lines = start(folder, steps, ("tables/*/user", "network/*"))
    found = logical(steps, state)
    assert_rows(found["user"], expected["user"])
    for name in ("item", "site", "hour", "day"):
        assert_rows(found[name], fresh[name])
    assert "fresh tables/embedding/item 333 rows; not asked for" in lines
    kernel = "network/backbone/mlp/linears/0/kernel"
    assert f"fresh {kernel} float32[20, 6]; float32[20, 8] there" in lines
    taken = checkpoint.flatten(state)
    np.testing.assert_array_equal(
        taken[f"params/{kernel}"], weights[f"params/{kernel}"]
    )
    bias = "network/head/linear/bias"
    assert f"kept {bias} float32[2]" in lines
    for name in (f"params/{bias}", f"opt_state/0/mu/{bias}", f"opt_state/0/nu/{bias}"):
        np.testing.assert_array_equal(taken[name], checkpoint.flatten(old)[name])


def test_a_table_of_another_dim_is_an_error_or_fresh(other):
    folder, _, _ = other
    steps = make_steps(dim=6)
    with pytest.raises(
        ConfigError, match=r"fresh .*/user  200 rows; dim 4 there, 6 he"
    ):
        start(folder, steps)
    fresh = logical(steps, make_state(steps))
    state, lines = start(folder, steps, ("*",))
    assert "fresh tables/embedding/user 200 rows; dim 4 there, 6 here" in lines
    assert_rows(logical(steps, state)["user"], fresh["user"])


def test_the_default_row_stays_that_of_unknown_ids_when_a_table_grows(tmp_path):
    old = make_steps(out_of_range="default_row")
    expected = logical(old, save(tmp_path, old))
    steps = make_steps({**TABLES, "user": 230, "day": 9}, out_of_range="default_row")
    fresh = logical(steps, make_state(steps))
    state, _ = start(tmp_path, steps, ("*",))
    found = logical(steps, state)
    for name, rows, more in (("user", 200, 230), ("day", 7, 9)):
        assert_rows(found[name], expected[name], rows=slice(rows))
        assert_rows(found[name], fresh[name], rows=slice(rows, more))
        for what, values in found[name].items():
            np.testing.assert_array_equal(values[more], expected[name][what][rows])


def test_rows_of_hashed_ids_are_of_no_use_under_another_size_or_name(tmp_path):
    old = make_steps(hashed=("user", "item", "site"))
    expected = logical(old, save(tmp_path, old))
    steps = make_steps(
        {"user": 260, "thing": 333, "site": 150}, hashed=("user", "thing", "site")
    )
    state, lines = start(tmp_path, steps, ("*",), ("thing=item",))
    why = "hashed ids have other rows under another size or name"
    assert f"fresh tables/embedding/user 260 rows; {why}" in lines
    assert f"fresh tables/embedding/thing 333 rows; {why}" in lines
    assert_rows(logical(steps, state)["site"], expected["site"])


def test_another_row_optimizer_starts_with_its_own_state(other):
    folder, expected, _ = other
    steps = make_steps(track_last_step=False)
    with pytest.raises(ConfigError, match=r"kept .*user  200 rows; last_step dropped"):
        start(folder, steps)
    state, _ = start(folder, steps, ("tables/*",))
    found = logical(steps, state)["user"]
    for what in ("rows", "m", "v"):
        np.testing.assert_array_equal(found[what], expected["user"][what])
    assert "last_step" not in found


def test_what_names_nothing_is_told(other, tmp_path):
    folder, _, _ = other
    steps = make_steps()
    with pytest.raises(ConfigError, match=r"'tables/\*/users' fits no entry; did you"):
        start(folder, steps, ("tables/*/users",))
    with pytest.raises(ConfigError, match="this run has no table 'usr'; did you mean"):
        start(folder, steps, (), ("usr=user",))
    with pytest.raises(ConfigError, match="the other run has no table 'ite'; did you"):
        start(folder, steps, (), ("user=ite",))
    with pytest.raises(ConfigError, match=r"holds no checkpoint; name a run folder"):
        start(tmp_path, steps)
    with pytest.raises(
        DataError, match=r"checkpoints/8 is damaged: its record .* Name"
    ):
        (folder / "checkpoints" / "8").mkdir()
        start(folder / "checkpoints" / "8", steps)
    (folder / "checkpoints" / "8").rmdir()
    with pytest.raises(ConfigError, match="nothing there fits this run"):
        start(folder, make_steps({"a": 200, "b": 300}, dim=6), ("tables/*",))


def test_what_to_start_from_is_part_of_what_a_run_is():
    plain, warm = ExperimentConfig(), ExperimentConfig()
    warm.checkpoint.init_from = "runs/a"
    assert run_folder.hash_of(plain) != run_folder.hash_of(warm)
    warm.checkpoint.init_from = ""
    warm.checkpoint.keep_last = 5
    assert run_folder.hash_of(plain) == run_folder.hash_of(warm)
    assert config_hash(plain) != config_hash(warm)
    config = CheckpointConfig(init_patterns=("*",), init_rename=("a=b", "c"))
    assert [problem.split(" ")[0] for problem in config.broken_rules()] == [
        "init_rename",
        "init_patterns",
        "init_rename",
    ]
