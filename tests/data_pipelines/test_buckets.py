import collections
import pathlib
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.engine import buckets
from rankax.data.card import DataError

SCHEMA = pa.schema(
    [
        pa.field("user", pa.int64(), nullable=False),
        ("width", pa.int64()),
        ("name", pa.string()),
    ]
)
CSV = 'name,user,unused,width\na,7,x,9.0\n,-2,y,\n"b, c",7,z,11.0\n'
ROWS = [(7, 9, "a"), (-2, None, None), (7, 11, "b, c")]


@pytest.fixture
def csv_file(tmp_path) -> pathlib.Path:
    path = tmp_path / "log [1].csv"  # no pattern of names
    path.write_text(CSV)
    return path


def rows_of(table: pa.Table) -> list[tuple]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def read(frame: pl.LazyFrame) -> list[tuple]:
    return rows_of(buckets.read(frame, SCHEMA, where="here"))


# ---------------------------------------------------------------- reading


def test_text_and_parquet_give_the_same_rows_in_the_order_of_the_files(csv_file):
    table = pa.table(
        {
            "width": pa.array([9, None, 11], pa.int16()),
            "name": ["a", None, "b, c"],
            "user": pa.array([7, -2, 7], pa.int32()),
        }
    )
    parquet = csv_file.with_suffix(".parquet")
    pq.write_table(table, parquet)
    assert read(buckets.scan([csv_file], SCHEMA)) == ROWS
    assert read(buckets.scan([parquet], SCHEMA)) == ROWS
    both = buckets.read(buckets.scan([csv_file, parquet], SCHEMA), SCHEMA, where="")
    assert rows_of(both) == ROWS + ROWS
    assert both.schema.types == SCHEMA.types


def test_a_survey_counts_rows_and_more_of_each_file(csv_file):
    more = csv_file.with_name("more.csv")
    more.write_text("user,width,name\n")
    figures = buckets.survey(
        [csv_file, more], SCHEMA, pl.col("user").max().alias("last")
    )
    assert figures == [{"num_rows": 3, "last": 7}, {"num_rows": 0, "last": None}]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (",7,", ",,", r"column 'user' has 2 null values; every row needs one"),
        ('b, c",7,z,11.0', 'b"', r"column 'user' has 1 null values"),  # a short line
        (",-2,", ",x,", r"could not parse `x` as dtype `i64` at column 'user'"),
        (",user", ",users", r"column 'user' is missing; .*'users'"),
        (CSV, "", "empty CSV"),
    ],
)
def test_a_survey_tells_the_file_of_a_wrong_value(csv_file, before, after, message):
    good = csv_file.with_name("good.csv")
    good.write_text(CSV)
    assert before in CSV
    csv_file.write_text(CSV.replace(before, after))
    with pytest.raises(DataError, match=rf"log \[1\].csv: {message}"):
        buckets.survey([good, csv_file], SCHEMA)


def test_numbers_that_are_not_whole_or_no_numbers_are_refused(csv_file):
    csv_file.write_text(CSV.replace("9.0", "9.5"))
    with pytest.raises(DataError, match=r"^here: .*9.5.* was truncated"):
        read(buckets.scan([csv_file], SCHEMA))
    path = csv_file.with_suffix(".parquet")
    pq.write_table(pa.table({"user": [1.5], "width": [1], "name": ["a"]}), path)
    with pytest.raises(DataError, match="column 'user' has type Float64, expected Int"):
        buckets.scan([path], SCHEMA)
    path.unlink()
    with pytest.raises(DataError, match=r"parquet is missing; --raw must be"):
        buckets.scan([path], SCHEMA)


# ---------------------------------------------------------------- dealing


@settings(max_examples=25, deadline=None)
@given(
    users=st.lists(st.integers(-3, 12), max_size=60),
    num_buckets=st.integers(2, 9),
)
def test_every_user_is_in_one_bucket_with_all_rows_in_order(
    tmp_path_factory, users, num_buckets
):
    folder = tmp_path_factory.mktemp("dealt")
    log = pl.LazyFrame(
        {"user": users, "row": range(len(users))},
        schema={"user": pl.Int64, "row": pl.Int64},
    )
    parts = buckets.deal(log, "user", num_buckets=num_buckets, folder=folder)
    assert len(parts) == num_buckets
    found = [pickle.loads(pickle.dumps(part)).collect().rows() for part in parts]
    expected = collections.defaultdict(list)
    for row, user in enumerate(users):
        expected[user % num_buckets].append((user, row))
    assert found == [expected[bucket] for bucket in range(num_buckets)]


def test_one_bucket_is_the_log_itself_and_nothing_is_written(tmp_path):
    log = pl.LazyFrame({"user": [3, 1]})
    assert buckets.deal(log, "user", num_buckets=1, folder=tmp_path) == [log]
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_made_for_every_two_million_rows():
    sizes = (0, 1, 2_000_000, 2_000_001, 322_278_385)
    assert [buckets.number_for(n, 0) for n in sizes] == [1, 1, 1, 2, 162]
    assert buckets.number_for(5, 3) == 3
    with pytest.raises(DataError, match="--num_buckets=-1: expected 0 or more"):
        buckets.number_for(5, -1)


def test_rows_of_a_large_table_are_found_by_their_keys(tmp_path):
    table = pl.LazyFrame({"id": range(100), "square": [i * i for i in range(100)]})
    kept = buckets.keep(table, tmp_path / "kept.parquet")
    ids = pa.chunked_array([[5, 300, 5], [99]])
    found = buckets.having(kept, "id", ids).collect().rows()
    assert sorted(found) == [(5, 25), (99, 9801)]


@settings(max_examples=50, deadline=None)
@given(split=st.lists(st.integers(-1, 3), max_size=40), size=st.integers(1, 7))
def test_chunks_have_every_row_of_the_named_splits_once(split, size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CHUNK_ROWS", size)
        found = list(buckets.chunks(np.array(split, np.int64), ("a", "b")))
    assert all(1 <= len(places) <= size for _, places in found)
    for number, name in enumerate(("a", "b")):
        places = [place for one, some in found if one == name for place in some]
        assert places == [i for i, value in enumerate(split) if value == number]
    assert [name for name, _ in found] == sorted(name for name, _ in found)


def test_only_planned_columns_stay_with_the_types_of_their_kinds():
    columns = {
        "id": pa.array([1], pa.int16()),
        "left": [1],
        "stars": pa.array([4], pa.int8()),
        "ids": pa.array([[1]], pa.large_list(pa.int32())),
        "when": pa.array([1], pa.timestamp("s")),
    }
    kinds = {"when": "time", "id": "id", "stars": "number", "ids": "list"}
    table = buckets.as_planned(columns, kinds)
    assert table.column_names == list(kinds)
    types = [pa.timestamp("us"), pa.int64(), pa.float64(), pa.list_(pa.int64())]
    assert table.schema.types == types


# ---------------------------------------------------------------- scratch folder


def test_the_scratch_folder_is_new_and_gone_afterwards(tmp_path):
    left = tmp_path / ".out.buckets" / "log" / "bucket=0"  # of a run that was killed
    left.mkdir(parents=True)
    with buckets.scratch(tmp_path / "out") as folder:
        assert folder == tmp_path / ".out.buckets" and not folder.exists()
        parts = buckets.deal(
            pl.LazyFrame({"user": [1, 2]}), "user", num_buckets=2, folder=folder
        )
        assert [part.collect().rows() for part in parts] == [[(2,)], [(1,)]]
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), buckets.scratch(tmp_path / "out") as folder:
        folder.mkdir()
        _ = 1 / 0
    assert not list(tmp_path.iterdir())


def test_a_dataset_folder_that_is_there_is_told_before_the_work(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="pass --overwrite"), buckets.scratch(tmp_path):
        raise AssertionError("too late")
    with buckets.scratch(tmp_path, overwrite=True):
        pass


def test_for_an_object_store_it_is_a_new_folder_of_the_temporary_ones(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with (
        buckets.scratch("memory://store/sets/mine") as one,
        buckets.scratch("memory://another/mine") as other,
    ):
        assert one != other and one.parent == other.parent == tmp_path
    assert not list(tmp_path.iterdir())
