import collections
import datetime
import json
import pathlib

from dataset_arrays import arrays_of, assert_same_datasets
from made_up import movielens as made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import movielens
from rankax.data import card as cards
from rankax.data.card import DataError
from rankax.data.schema import Schema
from rankax.models import backbones  # noqa: F401

FILES = ("ratings", "users", "items")


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    made_up.write_parquet(folder)
    return folder


@pytest.fixture
def raw_text(tmp_path) -> pathlib.Path:
    folder = tmp_path / "raw_text"
    folder.mkdir()
    made_up.write_published(folder)
    return folder


def examples_by_loop(tables: dict[str, pa.Table]) -> list[dict]:
    """The examples row by row, from the definitions of the columns."""
    ratings = tables["ratings"].to_pylist()
    users = {row["user_id"]: row for row in tables["users"].to_pylist()}
    items = {row["item_id"]: row for row in tables["items"].to_pylist()}
    ages = ((18, "under 18"), (25, "18-24"), (35, "25-34"), (45, "35-44"))
    ages += ((50, "45-49"), (56, "50-55"), (200, "56+"))
    ranges = ((1, "0"), (10, "1-9"), (50, "10-49"), (10**9, "50+"))
    examples = []
    for row in ratings:
        time: datetime.datetime = row["timestamp"]
        earlier = [
            other
            for other in ratings
            if other["user_id"] == row["user_id"] and other["timestamp"] < time
        ]
        earlier.sort(key=lambda other: other["timestamp"])
        user = users.get(row["user_id"])
        item = items[row["item_id"]]
        date = item["release_date"]
        examples.append(
            {
                "user": row["user_id"],
                "item": row["item_id"],
                "rating": row["rating"],
                "timestamp": time.replace(tzinfo=None),
                "age": user and next(name for end, name in ages if user["age"] < end),
                "gender": user and user["gender"],
                "occupation": user and user["occupation"],
                "zip_area": user and user["zip_code"][0],
                "genres": item["genres"],
                "release_year": int(date.split("-")[2]) if date else None,
                "hour": time.hour,
                "weekday": time.weekday(),
                "liked_item": [e["item_id"] for e in earlier if e["rating"] > 3],
                "disliked_item": [e["item_id"] for e in earlier if e["rating"] < 4],
                "history": next(name for end, name in ranges if len(earlier) < end),
            }
        )
    return examples


def test_both_forms_give_the_same_arrays(raw, raw_text, tmp_path, capsys):
    movielens.main([f"--raw={raw}", f"--out={tmp_path / 'a'}"])
    assert "train: 640 rows, positive like 0.5" in capsys.readouterr().out
    movielens.main([f"--raw={raw_text}", f"--out={tmp_path / 'b'}"])
    assert_same_datasets(tmp_path / "a", tmp_path / "b")
    assert "column split_time" in cards.load(tmp_path / "a").split_rule
    assert "oldest 80 % train" in cards.load(tmp_path / "b").split_rule


def test_derived_columns_equal_a_plain_loop():
    tables = made_up.make_tables(seed=1)
    lost = tables["ratings"]["user_id"][0]  # this user's ratings have no user columns
    users = tables["users"]
    others = [user != lost for user in users["user_id"]]
    tables["users"] = users.filter(pa.array(others))
    types = (movielens.RATINGS, movielens.USERS, movielens.ITEMS)
    examples = movielens.make_examples(
        *(
            tables[name].select(list(kind)).cast(pa.schema(kind.items()))
            for name, kind in zip(FILES, types, strict=True)
        )
    ).to_pylist()
    expected = examples_by_loop(tables)
    for found, wanted in zip(examples, expected, strict=True):
        assert found == wanted
    # The made-up data reach what the loop is there for.
    assert any(row["age"] is None for row in expected)
    assert any(row["release_year"] is None for row in expected)
    assert {row["zip_area"] for row in expected} >= {"V", "K", "0", None}
    counts = collections.Counter(row["history"] for row in expected)
    assert counts["0"] > 20 and counts["1-9"] > 20 and counts["10-49"] > 20


def test_long_histories_keep_the_latest_50():
    n = 130
    ratings = pa.table(
        {
            "user_id": [7] * n,
            "item_id": range(n),
            "rating": [5, 1] * (n // 2),
            "timestamp": pa.array(range(n), pa.int64()).cast(pa.timestamp("s")),
        }
    )
    users = pa.schema(movielens.USERS.items()).empty_table()
    items = pa.schema(movielens.ITEMS.items()).empty_table()
    last = movielens.make_examples(ratings, users, items).to_pylist()[-1]
    assert last["liked_item"] == list(range(30, 130, 2))
    assert last["disliked_item"] == list(range(29, 129, 2))
    assert last["history"] == "50+" and last["genres"] is None


def test_the_split_by_time_cuts_equal_times_in_file_order():
    seconds = np.array([5, 3, 9, 9, 9, 1, 9, 9, 0, 9])
    split = movielens.time_split(seconds).tolist()
    assert [i for i in range(10) if split[i] == "valid"] == [7]
    assert [i for i in range(10) if split[i] == "test"] == [9]
    ratings = made_up.make_tables(seed=2)["ratings"]
    seconds = ratings["timestamp"].cast(pa.int64()).to_numpy() // 1000
    found = movielens.time_split(seconds).tolist()
    assert found == ratings["split_time"].to_pylist()
    at_cut = np.sort(seconds)[639]
    assert {s for s, t in zip(found, seconds, strict=True) if t == at_cut} == {
        "train",
        "valid",
    }


def test_the_card_names_fields_slices_and_special_columns(raw, tmp_path):
    card = movielens.convert(raw, tmp_path / "out")
    assert [field.name for field in card.fields] == [
        *("user", "item", "age", "gender", "occupation", "zip_area", "release_year"),
        *("hour", "weekday", "genres", "liked", "disliked"),
    ]
    tables = {table.name: table.num_rows for table in card.tables}
    assert "liked_item" not in tables and tables["item"] <= made_up.NUM_ITEMS + 1
    assert [entry.name for entry in card.slices] == ["age", "gender", "history"]
    assert set(card.slices[1].values) == {"M", "F"}
    assert card.group and card.time and not card.domain
    arrays, ratings = arrays_of(tmp_path / "out", "valid"), made_up.make_tables(0)
    valid = [
        r for r in ratings["ratings"].to_pylist() if r["split_time"] == "valid"
    ]  # in the order of the file
    assert arrays["labels"][:, 0].tolist() == [r["label"] for r in valid]
    assert arrays["group"].tolist() == [r["user_id"] for r in valid]
    times = [int(r["timestamp"].timestamp()) * 10**6 for r in valid]
    assert arrays["time"].tolist() == times


def test_films_and_users_without_a_row_are_missing_not_lost(raw, tmp_path):
    for name in ("items", "users"):
        table = pq.read_table(raw / f"{name}.parquet")
        pq.write_table(table.slice(5), raw / f"{name}.parquet")
    movielens.convert(raw, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    found = record["missing_and_unknown"]["train"]
    ratings = made_up.make_tables(0)["ratings"].to_pylist()
    lost = sum(r["user_id"] <= 5 and r["split_time"] == "train" for r in ratings)
    assert found["age: missing"] == found["zip_area: missing"] == lost > 0
    schema = Schema.select(cards.load(tmp_path / "out"))
    (bag,) = {slot.bag for slot in schema.slots if slot.column == "genres"}
    train_items = [r["item_id"] for r in ratings if r["split_time"] == "train"]
    lengths = arrays_of(tmp_path / "out", "train")["lengths"][:, bag]
    assert (lengths == 0).tolist() == [item <= 5 for item in train_items]


def fails(raw: pathlib.Path, out: pathlib.Path) -> str:
    with pytest.raises(SystemExit) as error:
        movielens.main([f"--raw={raw}", f"--out={out}"])
    assert str(error.value).startswith("error: ") and not out.exists()
    return str(error.value)


def change(path: pathlib.Path, column: str, value) -> None:
    """Sets the first value of a column."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    place = table.schema.get_field_index(column)
    changed = pa.array([value, *values[1:]], table.schema.field(column).type)
    pq.write_table(table.set_column(place, column, changed), path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("rating", 6, r"ratings go from 1 to 6, expected 1 .. 5"),
        ("timestamp", None, "1 ratings have no timestamp"),
        ("split_time", "dev", "split_time must be one of"),
    ],
)
def test_wrong_ratings_are_refused(raw, tmp_path, column, value, message):
    change(raw / "ratings.parquet", column, value)
    assert message in fails(raw, tmp_path / "out")


def test_wrong_parquet_files_are_refused(raw, tmp_path):
    out = tmp_path / "out"
    change(raw / "items.parquet", "release_date", "some day")
    assert "' day'" in fails(raw, out)
    users = pq.read_table(raw / "users.parquet")
    pq.write_table(users.drop_columns(["age"]), raw / "users.parquet")
    assert "users.parquet: columns ['age'] are missing, found" in fails(raw, out)
    (raw / "users.parquet").write_text("no Parquet")
    assert "users.parquet: Could not open Parquet" in fails(raw, out)
    (raw / "users.parquet").unlink()
    assert "users.parquet is missing; --raw must be" in fails(raw, out)
    assert "neither ratings.parquet nor u.data" in fails(tmp_path / "none", out)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("u.data", "1\t2\t3\n", "u.data: CSV parse error: Expected 4"),
        ("u.data", "1\tx\t3\t4\n", "u.data: In CSV column #1"),
        ("u.item", "1|a|||" + "|1" * 18 + "|2\n", "columns must all be 0 or 1"),
        ("u.item", "1|a|||" + "|1" * 18 + "|\n", "columns must all be 0 or 1"),
        ("u.user", "1|x|M|other|00000\n", "u.user: In CSV column #1"),
    ],
)
def test_wrong_text_files_are_refused(raw_text, tmp_path, name, line, message):
    with (raw_text / name).open("a") as file:
        file.write(line)
    assert message in fails(raw_text, tmp_path / "out")


def test_made_up_files_have_the_types_of_the_real_ones(real_data, raw):
    for name in FILES:
        real = pq.read_schema(real_data / "movielens-100k" / f"{name}.parquet")
        ours = pq.read_schema(raw / f"{name}.parquet")
        assert ours.equals(real, check_metadata=False), name


def test_real_data_convert_from_both_forms(real_data, tmp_path):
    raw = real_data / "movielens-100k"
    card = movielens.convert(raw, tmp_path / "a")
    assert {name: split.num_rows for name, split in card.splits.items()} == {
        "train": 80_000,
        "valid": 10_000,
        "test": 10_000,
    }
    rates = [card.splits[s].positive_rate["like"] for s in card.splits]
    assert np.dot(rates, [0.8, 0.1, 0.1]) == pytest.approx(0.554, abs=5e-4)
    tables = {name: pq.read_table(raw / f"{name}.parquet") for name in FILES}
    (tmp_path / "text").mkdir()
    made_up.write_text(tmp_path / "text", tables)
    movielens.convert(tmp_path / "text", tmp_path / "b")
    # With it, the rule of the text form cuts where the column split_time does.
    assert_same_datasets(tmp_path / "a", tmp_path / "b")
    record = json.loads((tmp_path / "b" / "conversion.json").read_text())
    assert record["missing_and_unknown"]["train"] == {"release_year: missing": 9}


def test_an_unknown_column_type_is_an_error_not_a_traceback(raw, tmp_path):
    users = pq.read_table(raw / "users.parquet")
    place = users.schema.get_field_index("age")
    texts = pa.array(["old"] * users.num_rows)
    pq.write_table(users.set_column(place, "age", texts), raw / "users.parquet")
    with pytest.raises(DataError, match="old"):
        movielens.convert(raw, tmp_path / "out")
