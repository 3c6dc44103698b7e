"""Synthetic clicks: rows, known probabilities, the quickstart setting, the command.

    python tests/data/test_synthetic.py

rewrites the golden file; do that only for a change of the quickstart setting that is
wanted, with a line in the pull request saying why.
"""

import dataclasses
import hashlib
import itertools
import json
import pathlib

import numpy as np
import pyarrow as pa
import pytest
from sklearn import metrics

from rankax.config.base import ConfigError
from rankax.config.synthetic import SyntheticConfig
from rankax.data import packing, synthetic
from rankax.data import synthetic_world as worlds
from rankax.data.card import DataError, load
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema

GOLDEN = pathlib.Path(__file__).parent / "golden" / "synthetic_quickstart.json"
GOLDEN_ROWS = 4096
SMALL = {"num_train_rows": 60_000, "num_valid_rows": 500, "num_test_rows": 1_000}


def read(config, split, **selection):
    """All rows of a split as one table."""
    schema = Schema.select(synthetic.card(config), **selection)
    source = synthetic.SyntheticSplit(config, split, schema)
    return pa.concat_tables(map(source.read, range(source.rows_per_group.size)))


@pytest.fixture(scope="module")
def config():
    return SyntheticConfig(**SMALL)


@pytest.fixture(scope="module")
def train(config):
    return read(config, "train")


@pytest.fixture(scope="module")
def packed(config, train):
    schema = Schema.select(synthetic.card(config))
    return packing.pack(train, schema, where="synthetic/train")


def column(table, name):
    return table[name].to_numpy()


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("size", [1, 7, 997])
def test_rows_are_the_same_in_any_pieces(config, size):
    world = worlds.World(config)
    whole = world.rows(59_500, 1_000)  # across the end of the train split
    pieces = [
        world.rows(59_500 + start, min(size, 1_000 - start))
        for start in range(0, 1_000, size)
    ]
    for name, values in whole.items():
        joined = np.concatenate([piece[name] for piece in pieces])
        assert joined.dtype == values.dtype, name
        assert np.array_equal(joined, values), name


def test_row_groups_hold_the_split_once_and_in_order(config, train):
    other = SyntheticConfig(**SMALL, rows_per_group=1_000)
    schema = Schema.select(synthetic.card(other))
    source = synthetic.SyntheticSplit(other, "train", schema)
    assert source.rows_per_group.tolist() == [1_000] * 60
    assert source.rows_per_group.dtype == np.int64
    assert source.read(59).equals(train.slice(59_000))
    assert source.name == "synthetic/train"
    short = SyntheticConfig(**SMALL, rows_per_group=300)
    last = synthetic.SyntheticSplit(short, "valid", schema)
    assert last.rows_per_group.tolist() == [300, 200]
    assert last.read(1).num_rows == 200


def test_another_seed_is_another_world(config, train):
    other = read(SyntheticConfig(**SMALL, seed=1), "train")
    for name in ("user_id", "brand", "price", "ctr_probability", "history_item"):
        assert not other[name].equals(train[name]), name
    probability = [column(t, "ctr_probability") for t in (train, other)]
    assert abs(np.corrcoef(probability)[0, 1]) < 0.1


def test_fingerprint_changes_with_settings_and_split(config):
    def fingerprint(split="train", **options):
        settings = SyntheticConfig(**(SMALL | options))
        schema = Schema.select(synthetic.card(settings))
        return synthetic.SyntheticSplit(settings, split, schema).fingerprint

    found = [
        fingerprint(),
        fingerprint("test"),
        fingerprint(seed=1),
        fingerprint(num_train_rows=60_001),
        fingerprint(cross_scale=0.5),
    ]
    assert len(set(found)) == 5
    assert fingerprint() == found[0]
    assert all(len(f) == 12 and int(f, 16) >= 0 for f in found)


def test_only_the_columns_in_need_are_made(config):
    table = read(config, "valid", fields=("slot", "history"), tasks=("ctr",))
    assert set(table.column_names) == {
        *("slot", "history_item", "history_category", "ctr", "ctr_probability"),
        *("user_id", "time", "domain"),
    }


def test_ids_lie_in_their_tables_and_the_whole_table_is_reached(config, packed):
    schema = Schema.select(synthetic.card(config))
    for slot in schema.slots:
        ids = packed["ids"][:, slot.start : slot.start + slot.width]
        ids = ids[ids >= 0]
        assert ids.max() < schema.tables[slot.table].num_rows, slot.name
        if slot.table not in ("site", "brand"):
            assert np.unique(ids).size > 0.95 * schema.tables[slot.table].num_rows


def test_lists_are_aligned_and_vary_in_length(train):
    events = train["history_item"].combine_chunks()
    categories = train["history_category"].combine_chunks()
    lengths = events.value_lengths().to_numpy()
    assert lengths.tolist() == categories.value_lengths().to_pylist()
    assert set(lengths) == set(range(worlds.MAX_HISTORY + 1))
    assert 0.05 < (lengths == 0).mean() < 0.4  # users without a past
    # The category is the same function of the item in the history as in the fields.
    category_of = dict(
        zip(column(train, "item_id"), column(train, "category"), strict=True)
    )
    known = [i in category_of for i in events.values.to_pylist()]
    expected = [category_of.get(i) for i in events.values.to_pylist()]
    found = categories.values.to_pylist()
    assert np.mean(known) > 0.99
    assert all(f == e for f, e, k in zip(found, expected, known, strict=True) if k)
    tags = train["tags"].combine_chunks().value_lengths().to_numpy()
    assert set(tags) == set(range(worlds.MAX_TAGS + 1))


def test_time_never_falls_and_splits_follow_each_other(config, train):
    times = np.concatenate(
        [column(train, "time")]
        + [column(read(config, split), "time") for split in ("valid", "test")]
    )
    assert times.dtype == np.int64
    assert (np.diff(times) >= 0).all()
    assert times[0] == worlds.START_SECONDS
    assert times[-1] < worlds.START_SECONDS + worlds.SPAN_SECONDS
    moments = times.astype("datetime64[s]")
    hours = moments.astype("datetime64[h]").astype(int) % 24
    assert (column(train, "hour") == hours[: train.num_rows]).all()


def test_numeric_fields_are_of_order_one(train):
    for name in ("price", "quality", "idle"):
        values = column(train, name)
        assert values.dtype == np.float32
        assert abs(values.mean()) < 0.5
        assert 0.7 < values.std() < 1.6


# ---------------------------------------------------------------- the past


def test_history_only_grows_at_its_newest_end():
    config = SyntheticConfig(**SMALL, num_users=50)
    table = read(config, "train", fields=("history", "idle"))
    user, idle = column(table, "user_id"), column(table, "idle")
    history = table["history_item"].to_pylist()
    time = column(table, "time")
    grown = 0
    for u in range(50):
        rows = np.flatnonzero(user == u)
        for before, after in itertools.pairwise(rows):
            old, new = history[before], history[after]
            num_new = next(
                n
                for n in range(worlds.MAX_HISTORY + 1)
                if (old + new[len(new) - n :])[-worlds.MAX_HISTORY :] == new
            )
            grown += num_new
            if num_new == 0 and old and time[before] < time[after]:
                assert idle[before] < idle[after]  # the last event grows older
    assert grown > 500


def test_interests_last_for_a_while_and_change(packed):
    categories = packed["ids"][:, -worlds.MAX_HISTORY :]
    full = categories[packed["lengths"][:, -1] == worlds.MAX_HISTORY]
    same = [np.mean(full[:, -1] == full[:, -1 - gap]) for gap in (1, 5, 9)]
    assert same[0] > same[1] > same[2] > 0.1
    assert same[0] > 0.5


def test_recent_events_move_the_click_more_than_old_ones(config):
    world = worlds.World(config)
    rows = world.rows(0, 2_000)
    full = np.flatnonzero(rows["num_events"] == worlds.MAX_HISTORY)
    rows = {name: values[full] for name, values in rows.items()}
    changes = []
    for place in range(worlds.MAX_HISTORY):
        history = rows["history_item"].copy()
        history[:, place] = 7
        changed = world.affinity(rows | {"history_item": history})
        changes.append(np.abs(changed - world.affinity(rows)).mean())
    ratio = np.array(changes[1:]) / np.array(changes[:-1])
    assert (ratio > 1.1).all()


# ---------------------------------------------------------------- probabilities


def test_conversion_implies_a_click(train):
    click, conversion = column(train, "ctr"), column(train, "ctcvr")
    assert set(click) == set(conversion) == {0, 1}
    assert (conversion <= click).all()
    assert (column(train, "ctcvr_probability") < column(train, "ctr_probability")).all()


@pytest.mark.parametrize("task", synthetic.TASKS)
def test_labels_come_true_as_often_as_the_probability_says(train, task):
    label = column(train, task)
    probability = column(train, f"{task}_probability").astype(np.float64)
    for part in np.array_split(np.argsort(probability), 10):
        p = probability[part]
        deviation = label[part].sum() - p.sum()
        assert abs(deviation) < 4 * np.sqrt((p * (1 - p)).sum())


def test_conversions_of_clicks_come_true_as_often_as_they_should(train):
    clicked = column(train, "ctr") == 1
    p = column(train, "ctcvr_probability") / column(train, "ctr_probability")
    p = p[clicked].astype(np.float64)
    deviation = column(train, "ctcvr")[clicked].sum() - p.sum()
    assert abs(deviation) < 4 * np.sqrt((p * (1 - p)).sum())


def test_probability_is_the_sum_of_planted_effects(config):
    world = worlds.World(config)
    rows = world.rows(40_000, 50)
    latent = world._item_latent.astype(np.float64)
    progress = np.arange(40_000, 40_050) / world.total_rows
    for n in range(50):
        row = {name: values[n] for name, values in rows.items()}
        item = row["item_id"]
        z = worlds.CLICK_BIAS + 0.2 * (progress[n] - 0.5)
        for name, table in world.click.main.items():
            effect = float(table[row[name]])
            if name == "item_id":
                later = worlds.FIELDS[name].click * world._item_later[item]
                angle = 0.25 * progress[n]
                effect = np.cos(angle) * effect + np.sin(angle) * later
            z += effect
        latents = iter(world.click.latents)
        for cross in worlds.CLICK_CROSSES:
            tables = [next(latents)[row[name]] for name in cross.fields]
            for r in range(cross.rank):
                z += np.prod([float(table[r]) for table in tables])
        x, y, w = (float(row[name]) for name in ("price", "quality", "idle"))
        numeric = 1.5 * np.exp(-x * x) + 1.2 * np.sin(1.5 * y) + np.tanh(2 * w)
        z += worlds.NUMERIC_EFFECT * numeric
        z += worlds.TAG_EFFECT * world._item_tag_effect[item]
        if row["num_events"]:
            events = row["history_item"][-row["num_events"] :]
            weights = worlds.RECENCY ** np.arange(len(events))[::-1]
            recent = weights @ latent[events] / weights.sum()
            z += worlds.SEQUENCE_EFFECT * latent[item] @ recent
        assert row["ctr_probability"] == pytest.approx(1 / (1 + np.exp(-z)), rel=1e-5)


def test_crosses_of_two_fields_carry_no_main_effect(config):
    world = worlds.World(config)
    latents = iter(world.click.latents)
    for cross in worlds.CLICK_CROSSES:
        for name in cross.fields:
            mean = world.probability[name] @ next(latents)
            assert (len(cross.fields) == 3) == (np.abs(mean).max() > 1e-6), cross


def test_knobs_scale_their_effects_and_leave_the_rows_alone(config, train):
    scales = ("main_scale", "cross_scale", "triple_scale", "sequence_scale")
    off = dict.fromkeys((*scales, "drift_scale"), 0.0)
    base = read(SyntheticConfig(**SMALL, **off), "train")
    nothing = column(base, "ctr_probability")
    assert nothing == pytest.approx(1 / (1 + np.exp(-worlds.CLICK_BIAS)), rel=1e-6)
    deviations = []
    for knob in scales:
        for scale in (0.5, 1.0):
            table = read(SyntheticConfig(**SMALL, **off | {knob: scale}), "train")
            for name in ("user_id", "item_id", "history_item", "price", "tags"):
                assert table[name].equals(base[name])
            p = column(table, "ctr_probability").astype(np.float64)
            deviations.append(np.log(p / (1 - p)).std())
    deviations = np.array(deviations).reshape(4, 2)
    assert deviations[:, 1] == pytest.approx(2 * deviations[:, 0], rel=1e-4)
    assert (deviations[:, 1] > 0.25).all()
    drifting = read(SyntheticConfig(**SMALL, **off | {"drift_scale": 1.0}), "train")
    assert (np.diff(column(drifting, "ctr_probability")) >= 0).all()
    assert not drifting["item_id"].equals(base["item_id"])


# ---------------------------------------------------------------- oracle


def test_oracle_scores_are_those_of_the_true_probability():
    config = SyntheticConfig(**SMALL | {"num_test_rows": 30_000})
    table = read(config, "test")
    scores = synthetic.oracle(config, "test")
    for task in synthetic.TASKS:
        label, p = column(table, task), column(table, f"{task}_probability")
        assert scores[f"{task}/oracle_auc"] == pytest.approx(
            metrics.roc_auc_score(label, p), abs=1e-9
        )
        assert scores[f"{task}/oracle_log_loss"] == pytest.approx(
            metrics.log_loss(label, p.astype(np.float64)), abs=1e-6
        )
        assert scores[f"{task}/positive_rate"] == pytest.approx(label.mean())


def quickstart():
    """What the golden file fixes."""
    config = SyntheticConfig()
    schema = Schema.select(synthetic.card(config))
    splits = {}
    for split in synthetic.SPLITS:
        source = synthetic.SyntheticSplit(config, split, schema)
        table = source.read(0).slice(0, GOLDEN_ROWS)
        whole = hashlib.sha256()
        floats = {}
        for name, values in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_floating(values.type):
                floats[name] = float(values.to_numpy().astype(np.float64).sum())
            else:
                whole.update(json.dumps([name, values.to_pylist()]).encode())
        splits[split] = {
            "first_row": table.slice(0, 1).to_pylist()[0],
            "fingerprint": source.fingerprint,
            "integers_of_4096_rows": whole.hexdigest()[:16],
            "sums_of_4096_rows": floats,
        }
        if split != "train":
            splits[split]["oracle"] = synthetic.oracle(config, split)
    return {"settings": config.to_dict(), "splits": splits}


def test_quickstart_setting_is_the_golden_one():
    golden, found = json.loads(GOLDEN.read_text()), quickstart()
    assert found["settings"] == golden["settings"]
    for split, expected in golden["splits"].items():
        values = found["splits"][split]
        for name, value in expected["first_row"].items():
            assert values["first_row"][name] == pytest.approx(value, rel=1e-5), name
        for name, value in expected["sums_of_4096_rows"].items():
            assert values["sums_of_4096_rows"][name] == pytest.approx(value, abs=0.01)
        for name in ("fingerprint", "integers_of_4096_rows"):
            assert values[name] == expected[name], f"{split} {name}"
        if split != "train":
            assert values["oracle"] == pytest.approx(expected["oracle"], abs=1e-5)


def test_quickstart_is_as_hard_as_promised():
    test = json.loads(GOLDEN.read_text())["splits"]["test"]["oracle"]
    assert 0.75 < test["ctr/oracle_auc"] < 0.85


# ---------------------------------------------------------------- dataset folder


def command(folder, *flags):
    synthetic.main(["--rows=3_000", f"--out={folder}", "--seed=5", *flags])


def test_command_writes_the_rows_of_the_source(tmp_path, capsys):
    command(tmp_path / "clicks", "--test_rows=500")
    printed = capsys.readouterr().out
    config = SyntheticConfig(
        seed=5, num_train_rows=3_000, num_valid_rows=300, num_test_rows=500
    )
    card = load(tmp_path / "clicks")
    assert {name: split.num_rows for name, split in card.splits.items()} == {
        "train": 3_000,
        "valid": 300,
        "test": 500,
    }
    plain = dataclasses.replace(card, splits=synthetic.card(config).splits)
    assert plain == synthetic.card(config)
    schema = Schema.select(card)
    for split in synthetic.SPLITS:
        expected = read(config, split)
        source = ParquetSplit(tmp_path / "clicks", split, schema)
        assert source.rows_per_group.tolist() == [expected.num_rows]
        found = source.read(0)
        assert found.select(expected.column_names).equals(expected)
        rate = column(expected, "ctcvr").mean()
        assert card.splits[split].positive_rate["ctcvr"] == pytest.approx(rate)
    score = synthetic.oracle(config, "test")["ctr/oracle_auc"]
    assert f"oracle AUC {score:.4f}" in printed
    assert "train: 3,000 rows" in printed


def test_command_does_not_overwrite_unless_told_to(tmp_path, capsys):
    command(tmp_path / "clicks")
    with pytest.raises(SystemExit, match="exists; choose another folder"):
        command(tmp_path / "clicks")
    command(tmp_path / "clicks", "--overwrite", "--valid_rows=7")
    assert load(tmp_path / "clicks").splits["valid"].num_rows == 7


def test_command_names_a_bad_number(tmp_path):
    with pytest.raises(SystemExit, match=r"num_train_rows = -4 must be in 1 \.\."):
        synthetic.main(["--rows=-4", f"--out={tmp_path / 'clicks'}"])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is refused


def test_every_setting_out_of_range_is_named():
    config = SyntheticConfig(num_users=1, num_items=1_001, drift_scale=3)
    with pytest.raises(ConfigError) as error:
        synthetic.card(config)
    message = str(error.value)
    assert "num_users = 1 must be in 2 .. 16777216" in message
    assert "num_items = 1001 must be a multiple of the 40 categories" in message
    assert "drift_scale = 3.0 must be in 0 .. 2" in message


def test_unknown_split_is_refused(config):
    schema = Schema.select(synthetic.card(config))
    with pytest.raises(DataError, match="no split 'dev'; known: train, valid, test"):
        synthetic.SyntheticSplit(config, "dev", schema)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(quickstart(), indent=1) + "\n")
