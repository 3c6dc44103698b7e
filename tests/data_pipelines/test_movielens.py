import collections
import datetime
import json
import pathlib

from dataset_arrays import arrays_of, assert_same_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up import movielens as made_up
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import movielens
from data_pipelines.sources import movielens_files
from rankax.data import card as cards
from rankax.data.card import DataError, SequenceField
from rankax.data.schema import Schema
from rankax.models import backbones  # noqa: F401

FILES = ("ratings", "users", "items")
SPLITS = ("train", "valid", "test")


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
                "liked_item": [e["item_id"] for e in earlier if e["rating"] >= 4],
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


@pytest.mark.parametrize("size", ["100k", "1m", "25m"])
def test_a_published_archive_can_be_converted_where_it_was_unpacked(tmp_path, size):
    folder = tmp_path / "raw" / f"ml-{size}"
    folder.mkdir(parents=True)
    tables = made_up.make_tables(seed=2)
    if size == "100k":
        made_up.write_text(folder, tables)
    elif size == "1m":
        made_up.write_1m(folder, coded(tables))
    else:
        made_up.write_25m(folder, tables)
    movielens.convert(tmp_path / "raw", tmp_path / "a")
    movielens.convert(folder, tmp_path / "b")
    assert_same_datasets(tmp_path / "a", tmp_path / "b")
    (tmp_path / "raw" / "ratings.csv").write_text("of another size")
    message = "which are of different sizes; --raw must be the folder of one"
    assert message in fails(tmp_path / "raw", tmp_path / "c")


def examples_of(raw: pathlib.Path) -> list[dict]:
    """The examples of a folder as one list of rows, in the order of the ratings."""
    tables = movielens_files.read(raw)
    rows = movielens.MovieLensRows(
        ratings=[tables.ratings.with_columns(split=0)],
        users=tables.users,
        items=tables.items,
        where=raw,
        kinds=movielens.plan_of(tables.size).kinds(),
        rule="",
    )
    return [row for _, chunk in rows.chunks(0) for row in chunk.to_pylist()]


def test_derived_columns_equal_a_plain_loop(tmp_path):
    tables = made_up.make_tables(seed=1)
    lost = tables["ratings"]["user_id"][0]  # this user's ratings have no user columns
    users = tables["users"]
    others = [user != lost for user in users["user_id"]]
    tables["users"] = users.filter(pa.array(others))
    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    examples = examples_of(tmp_path)
    expected = examples_by_loop(tables)
    for found, wanted in zip(examples, expected, strict=True):
        assert found == wanted
    # The made-up data reach what the loop is there for.
    assert any(row["age"] is None for row in expected)
    assert any(row["release_year"] is None for row in expected)
    assert {row["zip_area"] for row in expected} >= {"V", "K", "0", None}
    counts = collections.Counter(row["history"] for row in expected)
    assert counts["0"] > 20 and counts["1-9"] > 20 and counts["10-49"] > 20


def test_long_histories_keep_the_latest_50(tmp_path):
    n = 130
    lines = [f"7,{i},{(5.0, 1.0)[i % 2]},{i}" for i in range(n)]
    header = "userId,movieId,rating,timestamp"
    (tmp_path / "ratings.csv").write_text("\n".join([header, *lines]))
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    last = examples_of(tmp_path)[-1]
    assert last["liked_item"] == list(range(30, 130, 2))
    assert last["disliked_item"] == list(range(29, 129, 2))
    assert last["history"] == "50+" and last["genres"] is None


def split_by_rule(seconds: np.ndarray) -> list[int]:
    frame = pl.LazyFrame({"timestamp": seconds})
    split = movielens.with_split(frame, movielens.time_cuts(seconds)).collect()
    assert split.columns == ["timestamp", "split"]
    return split["split"].to_list()


def test_the_split_by_time_cuts_equal_times_in_file_order():
    split = split_by_rule(np.array([5, 3, 9, 9, 9, 1, 9, 9, 0, 9]))
    assert [i for i in range(10) if split[i] == 1] == [7]
    assert [i for i in range(10) if split[i] == 2] == [9]
    ratings = made_up.make_tables(seed=2)["ratings"]
    seconds = ratings["timestamp"].cast(pa.int64()).to_numpy() // 1000
    found = [SPLITS[number] for number in split_by_rule(seconds)]
    assert found == ratings["split_time"].to_pylist()
    at_cut = np.sort(seconds)[639]
    assert {s for s, t in zip(found, seconds, strict=True) if t == at_cut} == {
        "train",
        "valid",
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60))
def test_the_split_by_time_is_that_of_sorted_rows(times):
    n = len(times)
    order = sorted(range(n), key=lambda row: (times[row], row))
    expected = [0] * n
    for place, row in enumerate(order):
        expected[row] = (place >= n * 8 // 10) + (place >= n * 9 // 10)
    assert split_by_rule(np.array(times)) == expected


# ---------------------------------------------------------------- 1M and 25M


def known_ids(out: pathlib.Path, table: str) -> list:
    """The id of each row of a table; row 0 is the unknown one."""
    vocabulary = pq.read_table(out / "vocabularies" / f"{table}.parquet")
    return ["unknown", *vocabulary["id"].to_pylist()[1:]]


def id_tables(card: cards.Card) -> dict[str, str]:
    """The table of each column of ids."""
    tables = {}
    for field in card.fields:
        if isinstance(field, SequenceField):
            tables |= {column.column: column.table for column in field.columns}
        else:
            tables[field.name] = field.table
    return tables


def mapped(value, change) -> object:
    return [change(v) for v in value] if isinstance(value, list) else change(value)


def as_known(value, known: set | None) -> object:
    """Puts what no training row has as the unknown id."""
    if known is None:
        return value
    return mapped(value, lambda one: one if one in known else "unknown")


def decoded(out: pathlib.Path, split: str) -> list[dict]:
    """Rows with the ids of the raw files again."""
    card, table = cards.load(out), pq.read_table(out / split)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for column, name in id_tables(card).items():
        ids = known_ids(out, name)
        columns[column] = [mapped(value, ids.__getitem__) for value in columns[column]]
    for entry in card.slices:
        names = [entry.values[value] for value in columns.pop(entry.column)]
        columns[entry.name] = names
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def halved(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Ratings of which every third is half a star less."""
    stars = tables["ratings"]["rating"].to_numpy() - 0.5 * (
        np.arange(tables["ratings"].num_rows) % 3 == 0
    )
    ratings = tables["ratings"].set_column(2, "rating", pa.array(stars))
    return {**tables, "ratings": ratings}


def coded(tables: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Users with ages and occupations as 1M has them: numbers that are codes."""
    users = tables["users"].to_pylist()
    for place, user in enumerate(users):
        user["age"] = (1, 18, 25, 35, 45, 50, 56)[place % 7]
        user["occupation"] = str(place % 21)
    return {**tables, "users": pa.Table.from_pylist(users)}


@pytest.mark.parametrize(
    ("size", "num_buckets"), [("1m", 1), ("1m", 3), ("25m", 1), ("25m", 7)]
)
def test_rows_of_other_sizes_are_those_of_a_plain_loop(tmp_path, size, num_buckets):
    change, write = {
        "1m": (coded, made_up.write_1m),
        "25m": (halved, made_up.write_25m),
    }[size]
    tables = change(made_up.make_tables(seed=3))
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", tables)
    out = tmp_path / "out"
    flags = [f"--raw={tmp_path / 'raw'}", f"--out={out}"]
    movielens.main([*flags, f"--num_buckets={num_buckets}"])
    card = cards.load(out)
    assert card.name == f"movielens_{size}" and "MovieLens " in card.origin
    assert card.split_rule.endswith("ratings.dat" if size == "1m" else "ratings.csv")
    names = set(pq.read_schema(out / "train" / "00000.parquet").names)
    assert ("age" in names) == ("gender" in names) == (size == "1m")

    titles = tables["items"]["title"].to_pylist()
    expected = examples_by_loop(tables)
    for row, split in zip(expected, tables["ratings"]["split_time"], strict=True):
        title = titles[row["item"] - 1]
        row["release_year"] = None if title == "unknown" else int(title[-5:-1])
        row["split"] = split.as_py()
        row["like"] = int(row["rating"] >= 4)
    expected.sort(key=lambda row: row["user"] % num_buckets)
    ids = {
        column: set(known_ids(out, table)) for column, table in id_tables(card).items()
    }
    for split in SPLITS:
        found = decoded(out, split)
        wanted = [row for row in expected if row["split"] == split]
        assert len(found) == len(wanted) >= 80
        for got, want in zip(found, wanted, strict=True):
            assert got.pop("_time") == want["timestamp"]
            assert got.pop("_group") == want["user"]
            for name, value in got.items():
                assert value == as_known(want[name], ids.get(name)), name
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "out"}


def test_titles_genres_and_years_are_read_in_all_their_forms(tmp_path):
    titles = {
        1: ("Toy Story (1995)", 1995),
        2: ('"Great Performances" Cats, The (1998) ', 1998),
        3: ("2001: A Space Odyssey (1968)", 1968),
        4: ("Série noire (Black (1979) Series) (1979)", 1979),
        5: ("A Year of (1066) Battles", None),
        6: ("Serial (2006-2007)", None),
    }
    items = pa.Table.from_pylist(
        [
            {"item_id": i, "title": title, "genres": ["Comedy", "Drama"][: i % 3]}
            for i, (title, _) in titles.items()
        ]
    )
    ratings = made_up.make_tables(0)["ratings"]
    for write, empty in ((made_up.write_1m, [""]), (made_up.write_25m, [])):
        folder = tmp_path / write.__name__
        folder.mkdir()
        users = made_up.make_tables(0)["users"]
        write(folder, {"ratings": ratings, "users": users, "items": items})
        read = movielens_files.read(folder).items.to_pylist()
        for row, (item, (_, year)) in zip(read, titles.items(), strict=True):
            assert (row["item_id"], row["release_year"]) == (item, year)
            assert row["genres"] == (["Comedy", "Drama"][: item % 3] or empty)


def test_two_sizes_in_one_folder_are_refused(raw_text, tmp_path):
    made_up.write_1m(raw_text, made_up.make_tables(0))
    assert "u.data and ratings.dat, which are of diff" in fails(
        raw_text, tmp_path / "o"
    )


@pytest.mark.parametrize(
    ("write", "name", "line", "message"),
    [
        ("1m", "ratings.dat", "1::2::3\n", "ratings.dat: 1 lines have not 4 values, "),
        ("1m", "ratings.dat", "1::2::6::4", "ratings.dat: 1 ratings go from 1 to 6"),
        (
            "1m",
            "ratings.dat",
            "1::x::3::4\n",
            "ratings.dat: Failed to parse string: 'x'",
        ),
        (
            "1m",
            "users.dat",
            "1::M::x::1::0\n",
            "users.dat: Failed to parse string: 'x'",
        ),
        (
            "1m",
            "movies.dat",
            "\n",
            "movies.dat: 1 lines have not 3 values, first line 61",
        ),
        ("25m", "ratings.csv", "1,2\n", "ratings.csv: 1 ratings have no rating"),
        ("25m", "ratings.csv", "1,x,3,4\n", "ratings.csv: could not parse `x`"),
        ("25m", "ratings.csv", "1,2,3.7,4\n", "ratings.csv: 1 ratings go from 1 to 5"),
        ("25m", "ratings.csv", "1,2,nan,4\n", "ratings.csv: 1 ratings go from"),
        ("25m", "movies.csv", "1,again,Drama\n", "the same item_id"),
    ],
)
def test_wrong_files_of_other_sizes_are_refused(tmp_path, write, name, line, message):
    folder = tmp_path / "raw"
    folder.mkdir()
    getattr(made_up, f"write_{write}")(folder, made_up.make_tables(0))
    with (folder / name).open("a") as file:
        file.write(line)
    assert message in fails(folder, tmp_path / "out")
    (folder / name).unlink()
    problem = "is missing" if not name.startswith("ratings") else "holds none of"
    assert problem in fails(folder, tmp_path / "out")


# ---------------------------------------------------------------- the folder


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
    assert "holds none of ratings.parquet, u.data, ratings.dat" in fails(
        tmp_path / "none", out
    )


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


@pytest.mark.parametrize("write", [made_up.write_1m, made_up.write_25m])
def test_real_rows_in_the_forms_of_other_sizes_give_the_same_rows(
    real_data, tmp_path, write
):
    raw = real_data / "movielens-100k"
    tables = {name: pq.read_table(raw / f"{name}.parquet") for name in FILES}
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw", tables)
    movielens.convert(raw, tmp_path / "a")
    movielens.convert(tmp_path / "raw", tmp_path / "b", num_buckets=4)
    left_out = {"release_year"}  # of the title, not of the date
    if write == made_up.write_25m:
        left_out |= {*movielens.OF_USER, "_slice_age", "_slice_gender"}
    for split in SPLITS:
        ours, theirs = (pq.read_table(tmp_path / out / split) for out in "ba")
        names = [name for name in theirs.column_names if name not in left_out]
        assert {*ours.column_names, *left_out} == set(theirs.column_names)
        ours, theirs = (
            pl.DataFrame(table.select(names)).hash_rows().sort()
            for table in (ours, theirs)
        )
        assert ours.n_unique() > 9_990
        assert ours.equals(theirs)


def test_real_films_of_1m_have_years_and_genres(real_data, tmp_path):
    items = pq.read_table(real_data / "movielens-1m-sequences" / "movies.parquet")
    tables = made_up.make_tables(0)
    rows = [
        {"item_id": row["item_id"], "title": row["title"], "genres": row["genres"]}
        for row in items.rename_columns(
            ["item_id", *items.column_names[1:]]
        ).to_pylist()
    ]
    tables["items"] = pa.Table.from_pylist(rows)
    made_up.write_1m(tmp_path, tables)
    read = movielens_files.read(tmp_path).items.to_pylist()
    assert len(read) == 3883
    for found, row in zip(read, rows, strict=True):
        year = int(row["title"][-5:-1])
        assert found == {
            "item_id": row["item_id"],
            "release_year": year,
            "genres": row["genres"],
        }
