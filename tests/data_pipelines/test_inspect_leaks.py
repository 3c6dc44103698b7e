import collections
import itertools

from made_up import inspected
import numpy as np
import polars as pl
import pytest

from data_pipelines.engine.histories import past_events
from data_pipelines.inspection import future, past, report, sameness, splits
from data_pipelines.inspection.folder import Folder

DAY = 86_400
START = 1_650_000_000


def findings(folder, check):
    found = report.make(folder)["findings"]
    return [f for f in found if f["check"] == check]


# ---------------------------------------------------------------- sameness


def sameness_splits():
    rng = np.random.default_rng(0)
    result = {}
    for split, n in (("train", 600), ("valid", 200)):
        item, x = rng.integers(0, 40, n), rng.random(n)
        result[split] = {
            "item": item,
            "item_code": (item * 7) % 41,  # another number for each item
            "page": rng.integers(0, 40, n),
            "x": x,
            "x_again": x,
            "x_other": x + 1e-9 * (np.arange(n) == 5),
            "tags": [[int(i), 3] for i in item],
            "tags_again": [[int(i), 3] for i in item],
            "same": np.full(n, 5),
            "zero": np.zeros(n),
            "never": [[]] * n,
            "click": rng.integers(0, 2, n),
        }
    return result


@pytest.fixture(scope="module")
def same(tmp_path_factory):
    rows = sameness_splits()
    for columns in rows.values():
        columns["never"] = pl.Series(
            columns["never"], dtype=pl.List(pl.Int64)
        ).to_arrow()
    return Folder(
        inspected.write(
            tmp_path_factory.mktemp("same") / "folder",
            rows,
            ids=("item", "item_code", "page", "same"),
            lists=("tags", "tags_again", "never"),
            numbers=("x", "x_again", "x_other", "zero"),
        )
    )


def test_constant_columns_are_found_and_no_others(same):
    found = findings(same, "constant column")
    assert {f["subject"] for f in found} == {"same", "zero", "never"}


def test_constant_with_nulls_is_not_constant(tmp_path):
    columns = {"x": [1.0, None, 1.0], "click": [0, 1, 0]}
    path = inspected.write(tmp_path / "folder", {"train": columns}, numbers=("x",))
    assert not findings(Folder(path), "constant column")


def test_duplicate_columns_are_found_and_no_others(same):
    found = findings(same, "duplicate column")
    pairs = {(f["subject"], f["figures"]["same_as"]): f["found"] for f in found}
    assert pairs.keys() == {
        ("item_code", "item"),
        ("x_again", "x"),
        ("tags_again", "tags"),
    }
    assert "renumbering" in pairs["item_code", "item"]
    assert "equal to" in pairs["x_again", "x"]


def test_ids_of_equal_counts_are_not_yet_a_renumbering(tmp_path):
    columns = {"a": [1, 1, 2, 2], "b": [5, 6, 5, 6], "click": [0, 1, 1, 0]}
    path = inspected.write(tmp_path / "folder", {"train": columns}, ids=("a", "b"))
    assert not findings(Folder(path), "duplicate column")


def test_duplicate_rows_are_those_of_a_loop(tmp_path):
    rng = np.random.default_rng(1)
    rows = {
        split: {
            "item": rng.integers(0, 30, n),
            "tags": [rng.integers(0, 3, k).tolist() for k in rng.integers(0, 3, n)],
            "click": rng.integers(0, 2, n),
        }
        for split, n in (("train", 300), ("valid", 100), ("test", 80))
    }
    path = inspected.write(tmp_path / "folder", rows, ids=("item",), lists=("tags",))
    found, warnings = sameness.duplicate_rows(Folder(path))
    keys = {
        split: list(zip(c["item"].tolist(), map(tuple, c["tags"]), strict=True))
        for split, c in rows.items()
    }
    for split, of_split in keys.items():
        twice = len(of_split) - len(set(of_split))
        assert found["within"][split] == pytest.approx(twice / len(of_split))
    for split in ("valid", "test"):
        known = sum(key in set(keys["train"]) for key in keys[split])
        assert found["in_train"][split] == pytest.approx(known / len(keys[split]))
    assert {f.subject for f in warnings} == {"valid", "test"}


def test_rows_without_a_twin_in_training_are_no_finding(same):
    found, warnings = sameness.duplicate_rows(same)
    assert found["in_train"] == {"valid": 0} and not warnings


# ---------------------------------------------------------------- statistics


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """Items of unequal popularity and quality, new ones among them, with statistics."""
    rng = np.random.default_rng(0)
    num_items = 1500
    popularity = rng.pareto(1.2, num_items) + 0.05
    quality = np.clip(rng.normal(0.4, 0.25, num_items), 0.02, 0.98)
    born = np.where(rng.random(num_items) < 0.25, rng.integers(1, 12, num_items), 0)
    length = rng.normal(size=num_items) + 0.8 * quality  # honest, and good to know
    rows = []
    for day in range(12):
        share = popularity * (born <= day)
        item = rng.choice(num_items, 2500, p=share / share.sum())
        rows.append(
            pl.DataFrame(
                {
                    "day": np.full(2500, day),
                    "item": item,
                    "user": rng.integers(0, 800, 2500),
                    "click": (rng.random(2500) < quality[item]).astype(np.int8),
                }
            )
        )
    log = pl.concat(rows).with_columns(
        split=pl.when(pl.col("day") < 8)
        .then(pl.lit("train"))
        .when(pl.col("day") < 10)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("test"))
    )
    sums = (pl.len(), pl.col("click").sum(), pl.col("click").mean().alias("rate"))
    of_all = log.group_by("item").agg(sums).rename(lambda c: f"all_{c}")
    of_train = log.filter(pl.col("split") == "train").group_by("item").agg(sums)
    of_train = of_train.rename(lambda c: f"train_{c}")
    # What was known on the evening before: no function of the item.
    daily = log.group_by("item", "day").agg(pl.len(), pl.col("click").sum())
    daily = daily.sort("day").with_columns(
        earlier_clicks=pl.col("click").cum_sum().over("item") - pl.col("click")
    )
    log = (
        log.join(of_all, left_on="item", right_on="all_item")
        .join(of_train, left_on="item", right_on="train_item", how="left")
        .join(daily.select("item", "day", "earlier_clicks"), on=["item", "day"])
        .with_columns(
            pl.Series("length", length).gather(log["item"]),
            maker=pl.col("item") // 3,
            group=pl.col("item") % 11,
        )
        .fill_null(0)
    )
    log = log.with_columns(
        all_code=(pl.col("all_click") + 1).log(2).round().cast(pl.Int64),
        train_code=(pl.col("train_click") + 1).log(2).round().cast(pl.Int64),
    )
    return log


STATISTICS = {
    "leaks": ("all_len", "all_click", "all_rate", "all_code"),
    "honest": (
        *("train_len", "train_click", "train_rate", "train_code"),
        *("length", "maker", "group", "earlier_clicks"),
    ),
}
CODES = ("all_code", "train_code", "maker", "group")


def counted_folder(path, log, *, unknown_is_zero=False):
    if unknown_is_zero:  # as a vocabulary of the training ids makes it
        known = log.filter(pl.col("split") == "train")["item"].unique()
        item = pl.when(pl.col("item").is_in(known.implode())).then(pl.col("item") + 1)
        log = log.with_columns(item=item.otherwise(0))
    names = [n for group in STATISTICS.values() for n in group]
    columns = ["item", "user", "click", *names]
    inspected.write(
        path,
        {
            str(split): rows.select(columns).to_dict(as_series=False)
            for (split,), rows in log.group_by("split", maintain_order=True)
        },
        ids=("item", "user", *CODES),
        rows_per_group=5000,
        numbers=[n for n in names if n not in CODES],
    )
    return Folder(path)


@pytest.mark.parametrize("unknown_is_zero", [False, True])
def test_statistics_with_the_future_are_found_and_no_others(
    counted, tmp_path, unknown_is_zero
):
    folder = counted_folder(
        tmp_path / "folder", counted, unknown_is_zero=unknown_is_zero
    )
    tree = report.make(folder)
    found = {
        name: f["level"]
        for f in tree["findings"]
        if f["check"] == "knows the future"
        for name in f["figures"]
    }
    assert found.keys() >= set(STATISTICS["leaks"])
    assert not found.keys() & set(STATISTICS["honest"])
    # Where all unknown items are one id, those of equal counts cannot be told apart.
    if not unknown_is_zero:
        assert found["all_click"] == found["all_rate"] == "error"


def test_field_that_changes_with_time_is_no_function_of_its_id(counted, tmp_path):
    tree = report.make(counted_folder(tmp_path / "folder", counted))
    functions = {f["name"] for f in tree["fields"] if "function_of" in f}
    assert {*STATISTICS["leaks"], "train_len", "length"} <= functions
    assert not {"earlier_clicks", "item", "user"} & functions


def test_figures_of_a_statistic_are_those_of_a_loop(counted, tmp_path):
    folder = counted_folder(tmp_path / "folder", counted)
    tree = report.make(folder)
    (entry,) = (f for f in tree["fields"] if f["name"] == "all_click")
    train = counted.filter(pl.col("split") == "train")
    later = counted.filter(pl.col("split") != "train")
    rows, clicks = collections.Counter(), collections.Counter()
    for item, click in train.select("item", "click").iter_rows():
        rows[item] += 1
        clicks[item] += click
    pairs = better = new = 0
    strata = collections.defaultdict(lambda: ([], []))
    for item, click, score in later.select("item", "click", "all_click").iter_rows():
        new += rows[item] == 0
        if rows[item] <= future.RARE:
            strata[rows[item], clicks[item]][click].append(score)
    for negatives, positives in strata.values():
        for positive in positives:
            for negative in negatives:
                pairs += 1
                better += (positive > negative) + (positive == negative) / 2
    assert entry["function_of"]["id"] == "item"
    assert entry["function_of"]["unseen_rows"] == new > 30
    assert entry["function_of"]["auc"] == pytest.approx(better / pairs)


def test_honest_statistic_has_one_value_for_all_unseen_ids(counted, tmp_path):
    tree = report.make(counted_folder(tmp_path / "folder", counted))
    of_field = {f["name"]: f.get("function_of") for f in tree["fields"]}
    assert of_field["train_click"]["largest_share"] == 1
    assert of_field["all_click"]["largest_share"] < 0.5


# ---------------------------------------------------------------- histories


@pytest.fixture(scope="module")
def log():
    """Impressions of users who meet few items twice, at times that may be equal."""
    rng = np.random.default_rng(0)
    n = 6000
    time = START + np.sort(rng.integers(0, 20 * DAY, n)) // 900 * 900
    return {
        "user": rng.integers(0, 150, n),
        "item": rng.integers(1, 500, n),
        "click": (rng.random(n) < 0.3).astype(np.int8),
        "time": time,
    }


def with_history(log, *, when="before", clicked=True, max_length=20):
    """Adds histories whose events lie before, until or around the row's time."""
    is_event = log["click"] == 1 if clicked else np.ones(len(log["click"]), bool)
    found = past_events(
        user=log["user"],
        time=log["time"] + {"before": 0, "until": 1, "around": DAY}[when],
        event_user=log["user"][is_event],
        event_time=log["time"][is_event],
        max_length=max_length,
    )
    return {
        **log,
        "seen": found.take(log["item"][is_event]).to_pylist(),
        "seen_time": found.take(log["time"][is_event]).to_pylist(),
    }


def history_folder(path, rows, *, times=False, **more):
    cut = len(rows["click"]) * 3 // 4
    order = np.random.default_rng(0).permutation(cut)  # files are in no order of time
    columns = {k: v for k, v in rows.items() if times or k != "seen_time"}
    parts = {
        "train": {k: [v[i] for i in order] for k, v in columns.items()},
        "test": {k: list(v[cut:]) for k, v in columns.items()},
    }
    inspected.write(
        path,
        parts,
        ids=("item",),
        sequences={"seen": "seen"},
        table_of={"seen": "item"},
        **{"time": "time", "group": "user", **more},
    )
    return Folder(path)


FUTURE = "history from the future"


@pytest.mark.parametrize("clicked", [True, False])
def test_honest_histories_pass(log, tmp_path, clicked):
    folder = history_folder(tmp_path / "folder", with_history(log, clicked=clicked))
    found, figures = past.findings(folder, "seconds")
    assert found == []
    assert figures["seen"]["followed"]["num_new"] > 1000
    assert figures["seen"]["followed"]["at"] == 0
    assert figures["seen"]["followed"]["after"] == 0


@pytest.mark.parametrize("clicked", [True, False])
def test_histories_until_the_row_are_found(log, tmp_path, clicked):
    rows = with_history(log, when="until", clicked=clicked)
    found, figures = past.findings(history_folder(tmp_path / "a", rows), "seconds")
    assert {f.level for f in found if f.check == FUTURE} == {"error"}
    assert figures["seen"]["followed"]["at"] > 0.5


@pytest.mark.parametrize("clicked", [True, False])
def test_histories_with_the_next_day_are_found(log, tmp_path, clicked):
    rows = with_history(log, when="around", clicked=clicked)
    found, figures = past.findings(history_folder(tmp_path / "a", rows), "seconds")
    assert {f.level for f in found if f.check == FUTURE} == {"error"}
    assert figures["seen"]["followed"]["after"] > 0.3


def test_followed_figures_are_those_of_a_loop(log, tmp_path):
    rows = with_history(log, when="around", max_length=8)
    folder = history_folder(tmp_path / "folder", rows)
    aspect = next(c for c in folder.columns if c.aspect_of)
    target = next(c for c in folder.columns if c.kind == "id")
    found = past.follow(folder, aspect, target)
    met = collections.defaultdict(list)
    histories = collections.defaultdict(dict)
    for user, item, time, seen in zip(
        *(np.asarray(rows[k]).tolist() for k in ("user", "item", "time")),
        rows["seen"],
        strict=True,
    ):
        met[user, item].append(time)
        histories[user][time] = set(seen), len(seen)
    new = at = after = elsewhere = steps = shrinks = 0
    for user, of_user in histories.items():
        ordered = sorted(of_user.items())
        for (before, old), (time, now) in itertools.pairwise(ordered):
            steps += 1
            shrinks += now[1] < old[1]
            for item in now[0] - old[0]:
                new += 1
                times = met[user, item]
                if not any(before <= t < time for t in times):
                    at += time in times
                    after += time not in times and any(t > time for t in times)
                    elsewhere += not any(t >= time for t in times)
    assert (found.num_new, found.num_steps) == (new, steps)
    assert found.at == pytest.approx(at / new) and found.at > 0
    assert found.after == pytest.approx(after / new) and found.after > 0
    assert found.elsewhere == pytest.approx(elsewhere / new)
    assert found.shrinks == pytest.approx(shrinks / steps)


def test_histories_of_other_events_are_no_error(log, tmp_path):
    rng = np.random.default_rng(5)
    other = {
        "user": rng.integers(0, 150, 6000),
        "item": rng.integers(1, 1500, 6000),
        "click": np.ones(6000, np.int8),
        "time": log["time"],
    }
    found = past_events(
        user=log["user"],
        time=log["time"],
        event_user=other["user"],
        event_time=other["time"],
        max_length=20,
    )
    rows = {**log, "seen": found.take(other["item"]).to_pylist()}
    judged, figures = past.findings(history_folder(tmp_path / "a", rows), "seconds")
    assert figures["seen"]["followed"]["elsewhere"] > 0.8
    assert all(f.level == "warning" for f in judged)


def test_target_at_the_end_of_its_own_history_is_found_without_times(log, tmp_path):
    rows = with_history(log, when="until")
    folder = history_folder(tmp_path / "folder", rows, time="", group="")
    (found,) = past.findings(folder, "")[0]
    assert found.check == "target in its own history"
    own = np.array(
        [
            bool(s) and s[-1] == i
            for s, i in zip(rows["seen"], rows["item"], strict=True)
        ]
    )
    filled = np.array([bool(s) for s in rows["seen"]])
    click = rows["click"] == 1
    positives, negatives = own[filled & click].mean(), own[filled & ~click].mean()
    assert found.figures["auc"] == pytest.approx(0.5 + (positives - negatives) / 2)
    assert not past.findings(
        history_folder(tmp_path / "b", with_history(log), time="", group=""), ""
    )[0]


def test_times_of_events_are_compared_where_the_folder_has_them(log, tmp_path):
    for when, expected in (("before", 0), ("until", 1), ("around", 1)):
        rows = with_history(log, when=when)
        folder = history_folder(tmp_path / when, rows, times=True)
        found, figures = past.findings(folder, "seconds")
        of_times = [f for f in found if "rows_at" in f.figures]
        assert len(of_times) == expected, when
        filled = [
            (max(times), time)
            for times, time in zip(rows["seen_time"], rows["time"], strict=True)
            if times
        ]
        after = sum(last > time for last, time in filled) / len(filled)
        assert figures["seen"]["rows_after"] == pytest.approx(after)


def test_history_that_shrinks_is_a_warning(log, tmp_path):
    rows = with_history(log)
    rows["seen"] = [s[: i % 5] for i, s in enumerate(rows["seen"])]
    found, _ = past.findings(history_folder(tmp_path / "folder", rows), "seconds")
    (shrinking,) = (f for f in found if f.check == "history shrinks")
    assert shrinking.level == "warning"


def test_users_of_a_large_folder_are_sampled_whole(log, tmp_path, monkeypatch):
    folder = history_folder(tmp_path / "folder", with_history(log))
    whole = past.findings(folder, "seconds")[1]["seen"]["followed"]
    monkeypatch.setattr(past, "SAMPLED_ROWS", 1500)
    found, figures = past.findings(folder, "seconds")
    some = figures["seen"]["followed"]
    assert found == [] and 0 < some["num_steps"] < 0.6 * whole["num_steps"]


# ---------------------------------------------------------------- splits


def split_folder(path, train, test, *, rule="", users=((0, 1), (2, 3))):
    parts = {
        split: {
            "item": [1, 2] * (len(times) // 2),
            "user": list(of_split) * (len(times) // 2),
            "click": [0, 1] * (len(times) // 2),
            "time": list(times),
        }
        for split, times, of_split in zip(
            ("train", "test"), (train, test), users, strict=True
        )
    }
    inspected.write(path, parts, ids=("item",), time="time", group="user", rule=rule)
    return Folder(path)


@pytest.mark.parametrize(
    ("rule", "level"),
    [
        ("by time: oldest 80 % train", "error"),
        ("by date: train 1 .. 9", "error"),
        ("by when: valid from 5, test from 7 on", "error"),
        ("at random, shares (0.8, 0.1, 0.1), seed 0", "info"),
        ("each user's last; histories: by time", "warning"),
        ("", "warning"),
    ],
)
def test_overlap_in_time_is_judged_by_the_rule(tmp_path, rule, level):
    times = [START + i for i in range(20)]
    folder = split_folder(tmp_path / "folder", times[:14], times[10:], rule=rule)
    figures, (found,) = splits.time_overlap(folder, "seconds")
    assert found.level == level
    assert found.figures["rows"] == 4
    assert figures["train"]["first"] == "2022-04-15 05:20:00"


def test_splits_apart_in_time_are_no_finding(tmp_path):
    times = [START + i for i in range(20)]
    folder = split_folder(tmp_path / "a", times[:14], times[14:], rule="by time")
    assert splits.time_overlap(folder, "seconds")[1] == []


def test_few_rows_across_a_cut_by_date_are_a_warning(tmp_path):
    times = [START + i for i in range(1000)]
    folder = split_folder(tmp_path / "a", times[:992], times[990:], rule="by date")
    (found,) = splits.time_overlap(folder, "seconds")[1]
    assert found.level == "warning" and found.figures["rows"] == 2


def test_one_time_in_both_splits_is_but_told(tmp_path):
    times = [START + i for i in range(20)]
    train = [*times[:13], times[13]]
    folder = split_folder(tmp_path / "a", train, times[13:19], rule="by time")
    (found,) = splits.time_overlap(folder, "seconds")[1]
    assert found.level == "info"


@pytest.mark.parametrize(
    ("rule", "is_error"),
    [
        ("by user, shares 8:1:1", True),
        ("user-disjoint", True),
        ("by time", False),
        ("", False),
    ],
)
def test_shared_users_are_an_error_where_the_rule_forbids_them(
    tmp_path, rule, is_error
):
    times = [START + i for i in range(20)]
    folder = split_folder(
        tmp_path / "a", times[:14], times[14:], rule=rule, users=((0, 1), (1, 2))
    )
    figures, found = splits.shared_users(folder)
    assert figures["test"] == {"users": 2, "in_train": 1}
    assert [f.level for f in found] == ["error"] * is_error


def test_users_apart_are_no_finding(tmp_path):
    times = [START + i for i in range(20)]
    folder = split_folder(tmp_path / "a", times[:14], times[14:], rule="by user")
    figures, found = splits.shared_users(folder)
    assert figures["test"] == {"users": 2, "in_train": 0} and found == []
