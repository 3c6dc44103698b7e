import collections
import pathlib
import shutil

from made_up import amazon as made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from data_pipelines import amazon
from rankax.data import card as cards
from rankax.data.card import DataError
from rankax.models import backbones  # noqa: F401

FILES = {"train": "train", "valid": "dev", "test": "test"}
CATEGORY = {item: category for item, category, _, _ in made_up.items(0)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    """A folder with the made-up files in both forms."""
    folder = tmp_path_factory.mktemp("amazon")
    made_up.write_parquet(folder / "parquet")
    made_up.write_published(folder / "published")
    return folder


@pytest.fixture(scope="module")
def converted(raw) -> pathlib.Path:
    amazon.convert(raw / "parquet", raw / "converted")
    return raw / "converted"


@pytest.fixture(scope="module")
def real_out(real_data, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("real") / "out"
    amazon.convert(real_data / "amazon-grocery", out)
    return out


def decoded(out: pathlib.Path, split: str, places=None) -> list[dict]:
    """Rows with the ids of the raw files again; None stands for an unknown id."""
    table = pq.read_table(out / split)
    if places is not None:
        table = table.take(places)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for name, column_of in (
        ("user", ["user"]),
        ("item", ["item", "history_item"]),
        ("category", ["category", "history_category"]),
    ):
        vocabulary = pq.read_table(out / "vocabularies" / f"{name}.parquet")
        ids = vocabulary["id"].to_pylist()
        for column in column_of:
            columns[column] = [
                [ids[v] for v in value] if isinstance(value, list) else ids[value]
                for value in columns[column]
            ]
    names = cards.load(out).slices[0].values
    columns["slice"] = [names[value] for value in columns["_slice_history"]]
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def groups_of(out: pathlib.Path, split: str, count: int) -> list[list[dict]]:
    """The positive and the `count` negatives of each interaction."""
    rows = decoded(out, split)
    size = count + 1
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def touched(files: list[str]) -> dict[int, set[int]]:
    items = collections.defaultdict(set)
    for name in files:
        for user, item, _ in made_up.interactions(0)[name]:
            items[user].add(item)
    return items


def expected_history(split: str, place: int, *, same_day: bool) -> list[int]:
    """Items of the user's interactions before the target, by a loop over the files."""
    files = made_up.interactions(0)
    user, _, time = files[FILES[split]][place]
    past = []
    for name in {"train": ["train"], "valid": ["train"], "test": ["train", "dev"]}[
        split
    ]:
        for other, (u, item, t) in enumerate(files[name]):
            is_before = name != FILES[split] or other < place
            if u == user and (t < time or (same_day and t == time and is_before)):
                past.append((t, item))
    return [item for _, item in sorted(past, key=lambda event: event[0])]


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("same_day", [False, True])
def test_positives_and_histories_are_those_of_a_loop_over_the_files(
    raw, tmp_path, same_day
):
    amazon.convert(raw / "parquet", tmp_path / "out", same_day=same_day)
    slices, lengths = set(), []
    for split, count in (("train", 4), ("valid", 99), ("test", 99)):
        groups = groups_of(tmp_path / "out", split, count)
        files = made_up.interactions(0)[FILES[split]]
        assert len(groups) == len(files)
        for place, ((user, item, time), rows) in enumerate(
            zip(files, groups, strict=True)
        ):
            assert [row["next_item"] for row in rows] == [1] + [0] * count
            assert rows[0]["item"] == item
            past = expected_history(split, place, same_day=same_day)
            lengths.append(len(past))
            for row in rows:
                assert row["user"] == row["_group"] == user and row["_time"] == time
                assert row["category"] == CATEGORY[row["item"]]
                assert row["history_item"] == past[-20:]
                assert row["history_category"] == [CATEGORY[i] for i in past[-20:]]
                n = len(past)
                assert row["slice"] == (
                    "0" if n == 0 else "1-4" if n < 5 else "5-9" if n < 10 else "10+"
                )
                slices.add(row["slice"])
    assert slices == {"0", "1-4", "5-9", "10+"} and max(lengths) > 20
    rule = cards.load(tmp_path / "out").split_rule
    assert ("of its own day those that stand before it" in rule) == same_day


def test_negatives_are_distinct_items_that_the_user_does_not_have(converted):
    for split, count, files in (
        ("train", 4, ["train"]),
        ("valid", 99, list(FILES.values())),
        ("test", 99, list(FILES.values())),
    ):
        known = touched(files)
        for rows in groups_of(converted, split, count):
            drawn = {row["item"] for row in rows[1:]}
            assert len(drawn) == count
            assert not drawn & known[rows[0]["user"]]
            assert rows[0]["item"] not in drawn
            assert drawn <= set(CATEGORY)


def test_training_draws_do_not_depend_on_dev_and_test(raw, converted, tmp_path):
    shutil.copytree(raw / "parquet", tmp_path / "raw")
    for name in ("dev", "test"):
        path = tmp_path / "raw" / f"{name}.parquet"
        table = pq.read_table(path)
        other = made_up.NUM_ITEMS + 1 - table["item_id"].to_numpy()
        other = pa.array(other, pa.int32())
        pq.write_table(table.set_column(1, "item_id", other).slice(3), path)
    amazon.convert(tmp_path / "raw", tmp_path / "out")
    ours, theirs = (
        pq.read_table(out / "train") for out in (tmp_path / "out", converted)
    )
    assert ours == theirs
    # A user's dev and test items may be drawn: leaving them out would tell them.
    later = touched(["dev", "test"])
    rows = decoded(converted, "train")
    assert any(not r["next_item"] and r["item"] in later[r["user"]] for r in rows)


def test_the_seed_and_the_number_of_negatives_are_the_users(raw, converted, tmp_path):
    again = amazon.convert(raw / "parquet", tmp_path / "again", seed=0)
    for split in FILES:
        same = pq.read_table(tmp_path / "again" / split)
        assert same == pq.read_table(converted / split)
    amazon.main(
        [
            f"--raw={raw / 'parquet'}",
            f"--out={tmp_path / 'out'}",
            "--seed=1",
            "--num_negatives=2",
        ]
    )
    card = cards.load(tmp_path / "out")
    assert card.splits["train"].positive_rate["next_item"] == pytest.approx(1 / 3)
    assert "2 drawn" in card.split_rule and "seed 1" in card.split_rule
    assert "4 drawn" in again.split_rule
    other, before = decoded(tmp_path / "out", "test"), decoded(converted, "test")
    assert [row["item"] for row in other] != [row["item"] for row in before]


def test_published_negatives_are_taken_as_they_are(raw, tmp_path):
    amazon.convert(raw / "published", tmp_path / "out")
    for split in ("valid", "test"):
        lines = (raw / "published" / f"{FILES[split]}.csv").read_text().splitlines()[1:]
        given = [
            [int(item) for item in line.split("\t")[3].strip("[]").split(",")]
            for line in lines
        ]
        groups = groups_of(tmp_path / "out", split, 99)
        assert [[row["item"] for row in rows[1:]] for rows in groups] == given
    assert "valid 99 of neg_items" in cards.load(tmp_path / "out").split_rule


def test_given_negatives_that_are_positives_are_refused(raw, tmp_path):
    shutil.copytree(raw / "published", tmp_path / "raw")
    path = tmp_path / "raw" / "test.csv"
    lines = path.read_text().splitlines()
    user, item, *others = lines[1].split("\t")
    lines[1] = "\t".join([user, item, others[0], f"[{item}, {others[1][1:]}"])
    lines[1] = lines[1].rpartition(",")[0] + "]"  # 99 as before
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match=rf"of 1 users hold items .* of user {user};"):
        amazon.convert(tmp_path / "raw", tmp_path / "out")


def test_negatives_of_training_are_drawn_whatever_the_file_holds(raw, tmp_path):
    shutil.copytree(raw / "parquet", tmp_path / "raw")
    path = tmp_path / "raw" / "train.parquet"
    table = pq.read_table(path)
    given = pa.array([[1, 2]] * table.num_rows)
    pq.write_table(table.append_column("neg_items", given), path)
    card = amazon.convert(tmp_path / "raw", tmp_path / "out", num_negatives=4)
    rate = card.splits["train"].positive_rate["next_item"]
    assert rate == pytest.approx(0.2)


def test_both_forms_give_the_same_data_set(converted, tmp_path):
    made_up.write_published(tmp_path / "raw", neg_items=False)
    amazon.convert(tmp_path / "raw", tmp_path / "out")
    for split in FILES:
        ours = pq.read_table(tmp_path / "out" / split)
        assert ours == pq.read_table(converted / split)
    assert cards.load(tmp_path / "out") == cards.load(converted)


# ---------------------------------------------------------------- draws


def test_draws_are_uniform_over_unseen_items():
    num_items, count = 12, 3
    seen = np.array([0, 5, 11, 1 * 12 + 2])
    user = np.repeat([0, 1, 2], 4000)
    drawn = amazon.draw_unseen(
        user, seen, count, num_items=num_items, rng=np.random.default_rng(0)
    )
    assert all(len(set(row)) == count for row in drawn.tolist())
    for u, left_out in ((0, {0, 5, 11}), (1, {2}), (2, set())):
        free = sorted(set(range(num_items)) - left_out)
        for column in range(count):
            found = np.bincount(drawn[user == u, column], minlength=num_items)
            assert not found[sorted(left_out)].any()
            assert stats.chisquare(found[free]).pvalue > 1e-3
        # All sets, not only all items, are equally likely.
        sets = collections.Counter(map(frozenset, drawn[user == u].tolist()))
        assert len(sets) == len(free) * (len(free) - 1) * (len(free) - 2) // 6
        assert stats.chisquare(list(sets.values())).pvalue > 1e-3


def test_all_unseen_items_can_be_drawn_but_not_one_more():
    seen = np.array([0, 2])
    rng = np.random.default_rng(0)
    drawn = amazon.draw_unseen(np.zeros(50, int), seen, 4, num_items=6, rng=rng)
    assert {tuple(sorted(row)) for row in drawn.tolist()} == {(1, 3, 4, 5)}
    with pytest.raises(amazon.DataError, match=r"one has only 4"):
        amazon.draw_unseen(np.zeros(1, int), seen, 5, num_items=6, rng=rng)
    # A user that is not drawn for does not count.
    amazon.draw_unseen(np.ones(1, int), seen, 6, num_items=6, rng=rng)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        ("train.csv", "item_id", "item", r"train.csv: .*item_id.*tab-separated"),
        ("train.csv", "\t", ",", r"train.csv: .*tab-separated"),
        ("item_meta.csv", "\n12\t", "\n13\t", r"several rows of one item_id"),
        ("item_meta.csv", "\n12\t", "\n900\t", r"item 12 .* is not in item_meta"),
        ("dev.csv", "[", "[7, ", r"dev.csv: neg_items has \[99, 100\] items a row"),
        ("test.csv", "[", "[x, ", r"test.csv: .*'x'"),
    ],
)
def test_wrong_content_is_refused_and_leaves_nothing(
    raw, tmp_path, name, before, after, message
):
    shutil.copytree(raw / "published", tmp_path / "raw")
    path = tmp_path / "raw" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1 if before != "\t" else -1))
    with pytest.raises(SystemExit, match=message) as error:
        amazon.main([f"--raw={tmp_path / 'raw'}", f"--out={tmp_path / 'out'}"])
    assert str(error.value).startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_missing_values_second_rows_of_a_user_and_no_negatives_are_refused(
    raw, tmp_path
):
    table = pq.read_table(raw / "parquet" / "dev.parquet")
    twice = pa.concat_tables([table, table.slice(0, 1)])
    users = pa.array([None, *table["user_id"].to_pylist()[1:]], pa.int32())
    for changed, message in (
        (twice, r"dev.parquet: a user has several rows"),
        (table.set_column(0, "user_id", users), r"'user_id' has missing values"),
    ):
        folder = tmp_path / "raw"
        shutil.copytree(raw / "parquet", folder, dirs_exist_ok=True)
        pq.write_table(changed, folder / "dev.parquet")
        with pytest.raises(amazon.DataError, match=message):
            amazon.convert(folder, tmp_path / "out")
    with pytest.raises(amazon.DataError, match=r"--num_negatives=0: expected 1"):
        amazon.convert(raw / "parquet", tmp_path / "out", num_negatives=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train", "dev", "test", "item_meta"])
def test_a_missing_file_is_named(raw, tmp_path, name):
    shutil.copytree(raw / "published", tmp_path / "raw")
    (tmp_path / "raw" / f"{name}.csv").unlink()
    with pytest.raises(amazon.DataError, match=rf"{name}.csv is missing; --raw must"):
        amazon.convert(tmp_path / "raw", tmp_path / "out")


# ---------------------------------------------------------------- real data, training


def test_made_up_files_have_the_schemas_of_the_real_ones(real_data, raw):
    for name in ("train", "dev", "test", "item_meta"):
        real = pq.read_schema(real_data / "amazon-grocery" / f"{name}.parquet")
        ours = pq.read_schema(raw / "parquet" / f"{name}.parquet")
        assert ours.remove_metadata() == real.remove_metadata(), name


def test_real_files_convert_to_the_known_counts(real_data, real_out):
    card = cards.load(real_out)
    assert {name: split.num_rows for name, split in card.splits.items()} == {
        "train": 121_892 * 5,
        "valid": 14_681 * 100,
        "test": 14_681 * 100,
    }
    for split, rate in (("train", 0.2), ("valid", 0.01), ("test", 0.01)):
        assert card.splits[split].positive_rate["next_item"] == pytest.approx(rate)
    # Row 0 is the unknown id; all items and categories are known.
    sizes = {table.name: table.num_rows for table in card.tables}
    assert sizes == {"user": 14_682, "item": 8_714, "category": 58}


def test_real_candidates_and_histories_are_those_of_a_loop(real_data, real_out):
    files = {
        name: pq.read_table(
            real_data / "amazon-grocery" / f"{name}.parquet"
        ).to_pylist()
        for name in ("train", "dev", "test")
    }
    by_user = collections.defaultdict(list)
    for row in files["train"] + files["dev"] + files["test"]:
        by_user[row["user_id"]].append(row)
    targets = np.random.default_rng(0).choice(14_681, 100, replace=False)
    places = targets[:, None] * 100 + np.arange(100)
    all_rows = decoded(real_out, "test", places.ravel())
    for number, place in enumerate(targets.tolist()):
        target, rows = files["test"][place], all_rows[number * 100 : number * 100 + 100]
        past = [r for r in by_user[target["user_id"]] if r["time"] < target["time"]]
        expected = [r["item_id"] for r in past][-20:]
        assert all(row["history_item"] == expected for row in rows)
        assert rows[0]["item"] == target["item_id"]
        known = {row["item_id"] for row in by_user[target["user_id"]]}
        drawn = {row["item"] for row in rows[1:]}
        assert len(drawn) == 99 and not drawn & known
