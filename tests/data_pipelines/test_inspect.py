import collections
import datetime
import json
import math
import statistics as python_statistics

from made_up import inspected
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from data_pipelines import inspect
from data_pipelines.inspection import alone, report, statistics, text, values
from data_pipelines.inspection.folder import Folder
from rankax.data import collisions
from rankax.data.card import CategoricalField, VectorField

SIZES = {"train": 1500, "valid": 300, "test": 200}
DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


def made_up_rows(seed=0):
    """Rows of three splits, one after the other in time."""
    rng = np.random.default_rng(seed)
    splits, now = {}, START_MS
    for split, n in SIZES.items():
        item = rng.zipf(1.6, n) % 80
        times = now + np.sort(rng.integers(0, 3 * DAY_MS, n))
        now = int(times[-1]) + 1
        price = rng.normal(size=n).astype(np.float32).tolist()
        for i in range(0, n, 50):
            price[i] = None
        splits[split] = {
            "user": rng.integers(0, 60, n),
            "item": item if split == "train" else item + rng.integers(0, 2, n) * 40,
            "tags": [
                rng.integers(0, 9, k).tolist() for k in rng.integers(0, 5, n).tolist()
            ],
            "price": price,
            "click": (rng.random(n) < 0.2 + 0.5 * (item % 2)).astype(np.int8),
            "time": times,
        }
    return splits


@pytest.fixture(scope="module")
def rows():
    return made_up_rows()


@pytest.fixture(scope="module")
def path(rows, tmp_path_factory):
    return inspected.write(
        tmp_path_factory.mktemp("inspected") / "folder",
        rows,
        ids=("user", "item"),
        lists=("tags",),
        numbers=("price",),
        time="time",
        group="user",
        rule="by time",
        rows_of={"item": 120},
    )


@pytest.fixture(scope="module")
def tree(path):
    return report.make(Folder(path))


def entry(tree, name, kind="fields"):
    (found,) = (each for each in tree[kind] if each["name"] == name)
    return found


def flat(column):
    return [value for values in column for value in values]


def test_rows_and_positive_rates_are_those_of_a_loop(rows, tree):
    for split, columns in rows.items():
        clicks = columns["click"].tolist()
        assert tree["splits"][split]["rows"] == len(clicks)
        assert tree["splits"][split]["positive_rate"]["click"] == pytest.approx(
            sum(clicks) / len(clicks)
        )


def test_days_are_those_of_a_loop(rows, tree):
    expected = collections.defaultdict(list)
    for split, columns in rows.items():
        for time, click in zip(columns["time"], columns["click"], strict=True):
            moment = datetime.datetime.fromtimestamp(time / 1000, datetime.UTC)
            expected[split, moment.date().isoformat()].append(int(click))
    found = {(day["split"], day["day"]): day for day in tree["days"]}
    assert found.keys() == expected.keys()
    for key, clicks in expected.items():
        assert found[key]["rows"] == len(clicks)
        assert found[key]["positive_rate"]["click"] == pytest.approx(
            sum(clicks) / len(clicks)
        )
    assert tree["time"] == {"column": "time", "unit": "ms"}


@pytest.mark.parametrize("name", ["user", "item", "tags"])
def test_cardinalities_and_unseen_shares_are_those_of_a_loop(rows, tree, name):
    ids = {
        split: flat(columns[name]) if name == "tags" else columns[name].tolist()
        for split, columns in rows.items()
    }
    found = entry(tree, name)
    assert found["exact"]
    assert found["cardinality"] == {split: len(set(v)) for split, v in ids.items()}
    known = set(ids["train"])
    for split in ("valid", "test"):
        unseen = [value for value in ids[split] if value not in known]
        assert found["unseen_rows"][split] == pytest.approx(
            len(unseen) / len(ids[split])
        )
        assert found["unseen_values"][split] == pytest.approx(
            len(set(unseen)) / len(set(ids[split]))
        )
    assert name != "item" or found["unseen_rows"]["test"] > 0.01


def test_a_name_with_brackets_is_no_pattern(rows, tree, tmp_path):
    path = inspected.write(
        tmp_path / "of [1]",
        rows,
        ids=("user", "item"),
        lists=("tags",),
        numbers=("price",),
        time="time",
    )
    assert report.make(Folder(path))["splits"] == tree["splits"]


def test_top_ids_are_those_of_a_loop(rows, tree):
    items, clicks = rows["train"]["item"].tolist(), rows["train"]["click"].tolist()
    common = collections.Counter(items).most_common(3)
    for found, (item, number) in zip(entry(tree, "item")["top"], common, strict=False):
        of_item = [y for i, y in zip(items, clicks, strict=True) if i == item]
        assert found["value"] == item
        assert found["share"] == pytest.approx(number / len(items))
        assert found["positive_rate"]["click"] == pytest.approx(
            sum(of_item) / len(of_item)
        )


def test_top_ids_bear_the_names_of_the_vocabulary(rows, tmp_path):
    path = inspected.write(
        tmp_path / "folder", rows, ids=("item",), rows_of={"item": 120}
    )
    (path / "vocabularies").mkdir()
    names = pl.DataFrame(
        {
            "row": pl.Series(range(120), dtype=pl.Int32),
            "kind": ["unknown"] + ["id"] * 119,
            "id": [None] + [f"film {i}" for i in range(1, 120)],
        }
    )
    names.write_parquet(path / "vocabularies/item.parquet")
    for found in entry(report.make(Folder(path)), "item")["top"]:
        value = found["value"]
        assert found["id"] == (f"film {value}" if value else "unknown")


def test_numbers_and_lengths_are_those_of_a_loop(rows, tree):
    for split, columns in rows.items():
        price = sorted(value for value in columns["price"] if value is not None)
        found = entry(tree, "price")["numbers"][split]
        assert found["min"] == price[0] and found["max"] == price[-1]
        assert found["mean"] == pytest.approx(python_statistics.fmean(price), abs=1e-6)
        assert found["p50"] in (
            python_statistics.median_low(price),
            python_statistics.median_high(price),
        )
        assert entry(tree, "price")["nulls"][split] == math.ceil(
            len(columns["click"]) / 50
        )
        lengths = [len(tags) for tags in columns["tags"]]
        found = entry(tree, "tags")["lengths"][split]
        assert (found["min"], found["max"]) == (min(lengths), max(lengths))
        assert found["mean"] == pytest.approx(python_statistics.fmean(lengths))
        assert found["p99"] == sorted(lengths)[round(0.99 * (len(lengths) - 1))]


def test_nan_counts_as_null(tmp_path):
    columns = {"x": [1.0, math.nan, 3.0, None], "click": [0, 1, 0, 1]}
    path = inspected.write(tmp_path / "folder", {"train": columns}, numbers=("x",))
    found = entry(report.make(Folder(path)), "x")
    assert found["nulls"] == {"train": 2}
    assert found["numbers"]["train"]["mean"] == 2


def test_tables_get_the_forecast_of_all_their_ids(rows, tree):
    ids = {value for columns in rows.values() for value in columns["user"].tolist()}
    found, expected = entry(tree, "user", "tables"), collisions.forecast(len(ids), 1000)
    assert found["num_ids"] == len(ids)
    assert found["hashed_lost"] == pytest.approx(expected.lost)
    assert found["hashed_rows_suggested"] == collisions.rows_for(len(ids), 0.05)
    items = {value for columns in rows.values() for value in columns["item"].tolist()}
    assert entry(tree, "item", "tables")["largest_id"] == max(items)


def test_ids_of_a_shared_table_count_once(tmp_path):
    columns = {
        "item": pl.Series([1, 2, 3], dtype=pl.Int32).to_arrow(),
        "seen": [[2, 3], [9], []],
        "click": [0, 1, 0],
    }
    path = inspected.write(
        tmp_path / "folder",
        {"train": columns},
        ids=("item",),
        sequences={"history": "seen"},
        table_of={"seen": "item"},
    )
    assert entry(report.make(Folder(path)), "item", "tables")["num_ids"] == 4


def test_ids_outside_a_direct_table_are_an_error(tmp_path):
    columns = {"item": [0, 1, 5, 6], "click": [0, 1, 0, 1]}
    path = inspected.write(
        tmp_path / "folder", {"train": columns}, ids=("item",), rows_of={"item": 5}
    )
    (found,) = errors(report.make(Folder(path)))
    assert found["check"] == "ids outside the table"
    assert "2 ids" in found["found"]


def errors(tree):
    return [f for f in tree["findings"] if f["level"] == "error"]


def test_crowded_hashed_table_is_a_warning_with_rows_that_do(tmp_path):
    columns = {"item": list(range(2000)), "click": [0, 1] * 1000}
    path = inspected.write(tmp_path / "folder", {"train": columns}, ids=("item",))
    (found,) = (
        f for f in report.make(Folder(path))["findings"] if f["check"] == "collisions"
    )
    assert f"{collisions.rows_for(2000, 0.05):,} rows" in found["advice"]


@pytest.mark.parametrize(
    ("low", "high", "unit"),
    [
        (1_650_812_741, 1_651_593_122, "seconds"),
        (1_650_812_741_436, 1_651_593_122_968, "ms"),
        (1_650_812_741_436_000, 1_651_593_122_968_000, "us"),
        (1_650_812_741_436_000_000, 1_651_593_122_968_000_000, "ns"),
        (20_220_425, 20_220_508, "date"),
        (19_107, 19_120, "days"),
        (0, 700, ""),
        (14_102_100, 14_103_023, ""),  # YYMMDDHH
        (None, None, ""),
    ],
)
def test_unit_of_integer_times(low, high, unit):
    assert statistics.unit_of(low, high) == unit


@pytest.mark.parametrize("unit", ["seconds", "ms", "us", "ns", "date", "days"])
def test_all_units_tell_the_same_day(unit):
    seconds = 1_650_844_800  # 2022-04-25
    time = {
        "seconds": seconds,
        "ms": seconds * 10**3,
        "us": seconds * 10**6,
        "ns": seconds * 10**9,
        "date": 20_220_425,
        "days": seconds // 86_400,
    }[unit]
    found = pl.select(statistics.as_datetime(pl.lit(time), unit).dt.date()).item()
    assert found == datetime.date(2022, 4, 25)


def test_strings_buckets_and_vectors_are_fields_too(tmp_path):
    rng = np.random.default_rng(0)
    n = 400
    price = rng.random(n)
    splits = {
        split: {
            "city": [f"city {i % 7}" for i in range(n)],
            "price": price,
            "embedding": rng.random((n, 3)).tolist(),
            "click": (price > 0.5).astype(int),
        }
        for split in ("train", "test")
    }
    path = inspected.write(
        tmp_path / "folder",
        splits,
        ids=("city",),
        more=(
            CategoricalField(
                name="bucket", table="bucket", column="price", boundaries=(0.25, 0.5)
            ),
            VectorField(name="embedding", width=3),
        ),
        rows_of={"bucket": 3},
    )
    tree = report.make(Folder(path))
    assert entry(tree, "city")["cardinality"]["train"] == 7
    assert entry(tree, "city")["top"][0]["id"] == "city 0"
    assert entry(tree, "bucket")["cardinality"]["train"] == 3
    of_bucket = {top["value"]: top["share"] for top in entry(tree, "bucket")["top"]}
    assert of_bucket[1] == np.mean((price >= 0.25) & (price < 0.5))
    elements = np.array(splits["test"]["embedding"])
    assert entry(tree, "embedding")["numbers"]["test"]["max"] == elements.max()
    expected = [roc_auc_score(splits["test"]["click"], e) for e in elements.T]
    assert entry(tree, "embedding")["auc"]["click"]["test"] == pytest.approx(
        max(max(expected), 1 - min(expected)), abs=1e-6
    )


# ---------------------------------------------------------------- one field alone


def smoothed_rates(ids, clicks):
    mean = sum(clicks) / len(clicks)
    rows, positives = collections.Counter(ids), collections.Counter()
    for value, click in zip(ids, clicks, strict=True):
        positives[value] += click
    rates = {
        value: (positives[value] + values.PRIOR * mean) / (n + values.PRIOR)
        for value, n in rows.items()
    }
    return rates, mean


def test_auc_of_an_id_is_that_of_its_smoothed_training_rate(rows, tree):
    rates, mean = smoothed_rates(
        rows["train"]["item"].tolist(), rows["train"]["click"].tolist()
    )
    for split in ("valid", "test"):
        score = [rates.get(item, mean) for item in rows[split]["item"].tolist()]
        expected = roc_auc_score(rows[split]["click"], score)
        found = entry(tree, "item")["auc"]["click"][split]
        assert found == pytest.approx(expected, abs=1e-6)


def test_auc_of_a_list_is_that_of_the_mean_rate_of_its_ids(rows, tree):
    train = [
        (tag, click)
        for tags, click in zip(
            rows["train"]["tags"], rows["train"]["click"].tolist(), strict=True
        )
        for tag in tags
    ]
    rates, mean = smoothed_rates(*zip(*train, strict=True))
    score = [
        sum(rates[tag] for tag in tags) / len(tags) if tags else mean
        for tags in rows["test"]["tags"]
    ]
    found = entry(tree, "tags")["auc"]["click"]["test"]
    assert found == pytest.approx(roc_auc_score(rows["test"]["click"], score), abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_number_that_is_the_label_is_an_error_either_way_round(tmp_path, sign):
    splits = made_up_rows(3)
    for columns in splits.values():
        noise = np.random.default_rng(1).normal(size=len(columns["click"]))
        columns["watched"] = sign * (columns["click"] + 0.1 * noise)
    path = inspected.write(
        tmp_path / "folder", splits, ids=("item",), numbers=("price", "watched")
    )
    tree = report.make(Folder(path))
    (found,) = errors(tree)
    assert (found["check"], found["subject"]) == ("too good alone", "watched")
    assert all(
        a <= alone.THRESHOLD for a in entry(tree, "item")["auc"]["click"].values()
    )


def test_number_that_tells_by_its_middle_is_found_by_its_bins(tmp_path):
    splits = made_up_rows(4)
    for columns in splits.values():
        side = np.random.default_rng(2).choice([-1, 1], len(columns["click"]))
        columns["odd"] = side * np.where(columns["click"], 1.0, 5.0)
    path = inspected.write(tmp_path / "folder", splits, numbers=("odd",))
    (found,) = errors(report.make(Folder(path)))
    assert found["figures"]["auc"] == pytest.approx(1)


def test_threshold_is_the_users(path):
    best = max(entry(report.make(Folder(path)), "item")["auc"]["click"].values())
    assert not errors(report.make(Folder(path), auc_threshold=best + 0.01))
    (found,) = errors(report.make(Folder(path), auc_threshold=best - 0.01))
    assert found["subject"] == "item"


# ---------------------------------------------------------------- samples


def test_sampled_ids_estimate_what_all_say(tmp_path, monkeypatch):
    ids = np.arange(60_000) % 20_000
    test = np.arange(10_000, 30_000)  # half of them new
    splits = {
        "train": {"item": ids, "click": ids % 2},
        "test": {"item": test, "click": test % 2},
    }
    path = inspected.write(tmp_path / "folder", splits, ids=("item",))
    monkeypatch.setattr(values, "MAX_VALUES", 3000)
    tree = report.make(Folder(path))
    found = entry(tree, "item")
    assert not found["exact"]
    assert found["cardinality"]["train"] == pytest.approx(20_000, rel=0.1)
    assert found["unseen_rows"]["test"] == pytest.approx(0.5, abs=0.05)
    assert entry(tree, "item", "tables")["num_ids"] == pytest.approx(30_000, rel=0.1)
    assert "~" in text.render(tree)


def test_most_frequent_id_of_a_sampled_field_is_still_named(tmp_path, monkeypatch):
    ids = np.where(np.arange(20_000) % 4 == 0, 77, np.arange(20_000) + 1000)
    path = inspected.write(
        tmp_path / "folder",
        {"train": {"item": ids, "click": ids % 2}},
        ids=("item",),
    )
    monkeypatch.setattr(values, "MAX_VALUES", 1000)
    top = entry(report.make(Folder(path)), "item")["top"][0]
    assert (top["value"], top["share"]) == (77, 0.25)


def test_number_with_too_many_values_is_rounded_not_sampled(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    splits = {}
    for split in ("train", "test"):
        x = rng.normal(size=20_000)
        splits[split] = {"x": x, "click": (x + rng.normal(size=20_000) > 0).astype(int)}
    path = inspected.write(tmp_path / "folder", splits, numbers=("x",))
    monkeypatch.setattr(values, "MAX_VALUES", 5000)
    found = entry(report.make(Folder(path)), "x")
    expected = roc_auc_score(splits["test"]["click"], splits["test"]["x"])
    assert found["auc"]["click"]["test"] == pytest.approx(expected, abs=1e-3)
    assert not found["exact"]


def test_max_rows_spreads_its_rows_over_the_split(path, rows):
    folder = Folder(path, max_rows=100)
    assert folder.num_rows == {"train": 100, "valid": 100, "test": 100}
    found = folder.rows().filter(pl.col(" split") == 0).collect()["time"].to_list()
    assert sorted(found) == rows["train"]["time"].tolist()[::15]
    assert not report.make(folder)["all_rows"]


# ---------------------------------------------------------------- the command


def test_command_prints_and_writes_json_and_html(path, tmp_path, capsys):
    json_file, html_file = tmp_path / "a.json", tmp_path / "a.html"
    code = inspect.main([str(path), f"--json={json_file}", f"--html={html_file}"])
    printed = capsys.readouterr().out
    assert code == 0
    tree = json.loads(json_file.read_text())
    assert tree["splits"]["train"]["rows"] == SIZES["train"]
    page = html_file.read_text()
    for name in ("user", "item", "tags", "price"):
        assert name in printed and name in page
    assert page.count("<svg") == 3  # rows and click rate by day, AUC of the fields
    assert "src=" not in page and "http" not in page and "<script" not in page


def test_exit_code_is_one_for_a_leak(path, capsys):
    assert inspect.main([str(path), "--auc_threshold=0.5"]) == 1
    assert "ERROR too good alone" in capsys.readouterr().out


def test_folder_that_cannot_be_read_is_an_error(tmp_path, capsys):
    assert inspect.main([str(tmp_path)]) == 1
    assert "dataset.json is missing" in capsys.readouterr().err


def test_missing_shard_is_an_error(rows, tmp_path, capsys):
    path = inspected.write(tmp_path / "folder", rows, ids=("item",))
    for shard in (path / "test").glob("*.parquet"):
        shard.unlink()
    assert inspect.main([str(path)]) == 1
    assert "no *.parquet file" in capsys.readouterr().err


def test_folder_without_training_rows_is_an_error(rows, tmp_path, capsys):
    path = inspected.write(tmp_path / "folder", {"test": rows["test"]}, ids=("item",))
    assert inspect.main([str(path)]) == 1
    assert "no 'train'" in capsys.readouterr().err


def test_names_from_the_data_are_escaped_on_the_page(rows, tmp_path):
    splits = {s: {"<b>": c["item"], "click": c["click"]} for s, c in rows.items()}
    path = inspected.write(tmp_path / "folder", splits, ids=("<b>",))
    html_file = tmp_path / "a.html"
    inspect.main([str(path), f"--html={html_file}"])
    assert "&lt;b&gt;" in html_file.read_text()
    assert "<td><b>" not in html_file.read_text()
