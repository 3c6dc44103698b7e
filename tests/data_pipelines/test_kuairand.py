import collections
import csv
import datetime
import math
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

from made_up import kuairand as made_up
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import kuairand
from rankax.data import card as cards
from rankax.data.card import CategoricalField, SequenceField
from rankax.models import backbones  # noqa: F401

SPLITS = ("train", "valid", "test")
SIZES = ("pure", "1k", "27k")
FILES = (
    "log_0425_0430",
    "log_0501_0508",
    "user_features",
    "video_features_basic",
    "user_history_to_0424",
)
UNKNOWN = "unknown"
HISTORIES = (  # sequence, its list, its flag in the log, how many events are kept
    ("watched", "watch_seq", None, 30),
    ("liked", "like_seq", "is_like", 10),
    ("long_viewed", "long_watch_seq", "long_view", 30),
)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> pathlib.Path:
    """A folder with the made-up files in both forms."""
    folder = tmp_path_factory.mktemp("kuairand")
    made_up.write_parquet(folder / "parquet")
    for size in SIZES:
        made_up.write_published(folder / size, size=size)
    return folder


@pytest.fixture(scope="module")
def converted(raw) -> pathlib.Path:
    kuairand.convert(raw / "parquet", raw / "converted")
    return raw / "converted"


@pytest.fixture(scope="module")
def real_out(real_data, tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("real") / "out"
    kuairand.convert(real_data / "kuairand-pure-late", out)
    return out


def stored(out: pathlib.Path, split: str) -> pa.Table:
    return pq.read_table(out / split)


def known_ids(out: pathlib.Path, table: str) -> list:
    """The id of each row of a table; row 0 is the unknown one."""
    vocabulary = pq.read_table(out / "vocabularies" / f"{table}.parquet")
    return [UNKNOWN, *vocabulary["id"].to_pylist()[1:]]


def id_tables(card: cards.Card) -> dict[str, str]:
    """The table of each column of ids."""
    tables = {}
    for field in card.fields:
        if isinstance(field, SequenceField):
            tables |= {column.column: column.table for column in field.columns}
        elif isinstance(field, CategoricalField):
            tables[field.name] = field.table
    return tables


def decoded(out: pathlib.Path, split: str, places=None) -> list[dict]:
    """Rows with the ids of the raw files again."""
    card = cards.load(out)
    table = stored(out, split)
    if places is not None:
        table = table.take(places)
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for column, name in id_tables(card).items():
        ids = known_ids(out, name)
        columns[column] = [
            [ids[v] for v in value] if isinstance(value, list) else ids[value]
            for value in columns[column]
        ]
    for entry in card.slices:
        columns[entry.name + " slice"] = [
            entry.values[value] for value in columns[entry.column]
        ]
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def number(text: str) -> int | None:
    return int(float(text)) if text else None


def read_published(folder: pathlib.Path) -> tuple[list[dict], dict, dict]:
    """The log in the order of the files, users and videos, by the csv module."""

    def rows(name: str) -> list[dict]:
        found = []
        for path in sorted((folder / "data").glob(name)):
            with path.open(newline="") as file:
                found += csv.DictReader(file)
        return found

    log = [
        {key: int(value) for key, value in row.items()}
        for row in rows("log_standard_*.csv")
    ]
    users = {int(row["user_id"]): row for row in rows("user_features_*.csv")}
    videos = {int(row["video_id"]): row for row in rows("video_features_basic_*.csv")}
    return log, users, videos


def split_of(date: int) -> str:
    return "train" if date <= 20220503 else "valid" if date <= 20220505 else "test"


def expected_row(row: dict, users: dict, videos: dict) -> dict:
    """What a row should hold besides its histories."""
    time = datetime.datetime.fromtimestamp(row["time_ms"] / 1000, made_up.BEIJING)
    video = videos[row["video_id"]]
    tags = [int(tag) for tag in video["tag"].split(",") if tag]
    milliseconds = number(video["video_duration"])
    user = users.get(row["user_id"], collections.defaultdict(str))
    return {
        "user": row["user_id"],
        "video": row["video_id"],
        "author": number(video["author_id"]),
        "main_tag": tags[0] if tags else None,
        "tags": tags,
        "tab": row["tab"],
        "hour": time.hour,
        "weekday": time.weekday(),
        "video_type": video["video_type"],
        "upload_type": video["upload_type"],
        "music_type": number(video["music_type"]),
        "duration": math.floor(2 * math.log2(milliseconds / 1000))
        if milliseconds
        else None,
        **{name: user[name] or None for name in kuairand.USER_TEXTS},
        **{name: number(user[name]) for name in kuairand.USER_CODES},
    }


def expected_histories(row: dict, log: list[dict], videos: dict) -> dict:
    """The latest of what the user did before the row, by looking at the whole log."""
    past = [
        event
        for event in log
        if event["user_id"] == row["user_id"] and event["time_ms"] < row["time_ms"]
    ]
    past.sort(key=lambda event: event["time_ms"])
    columns = {}
    for name, _, flag, length in HISTORIES:
        kept = [e["video_id"] for e in past if flag is None or e[flag]][-length:]
        columns[f"{name}_video"] = kept
        columns[f"{name}_main_tag"] = [
            number(videos[v]["tag"].split(",")[0]) for v in kept
        ]
    n = len(past)
    ranges = "0" if n == 0 else "1-9" if n < 10 else "10-49" if n < 50 else "50+"
    columns["history slice"] = ranges
    return columns


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize(
    ("size", "num_buckets"), [("pure", 1), ("1k", 7), ("27k", 1), ("27k", 3)]
)
def test_every_row_is_what_a_loop_over_the_published_files_makes_of_it(
    raw, tmp_path, size, num_buckets
):
    out = tmp_path / "out"
    kuairand.convert(raw / size, out, num_buckets=num_buckets)
    log, users, videos = read_published(raw / size)
    rows = [row for row in log if row["date"] >= 20220425]
    rows.sort(key=lambda row: row["user_id"] % num_buckets)
    trained = {r["video_id"] for r in rows if split_of(r["date"]) == "train"}
    lengths, slices = {name: set() for name, *_ in HISTORIES}, set()
    tables = id_tables(cards.load(out))
    ids = {name: set(known_ids(out, name)) for name in tables.values()}

    def as_known(value, column: str):
        """Puts what no training row has as the unknown id."""
        table = tables.get(column)
        if isinstance(value, list):
            return [as_known(one, column) for one in value]
        return value if table is None or value in ids[table] else UNKNOWN

    for split in SPLITS:
        expected = [row for row in rows if split_of(row["date"]) == split]
        found = decoded(out, split)
        assert len(found) == len(expected) > 20
        for row, got in zip(expected, found, strict=True):
            want = expected_row(row, users, videos)
            want |= expected_histories(row, log, videos)
            for name, found_lengths in lengths.items():
                found_lengths.add(len(want[f"{name}_video"]))
            slices.add(want["history slice"])
            is_new = row["video_id"] not in trained
            want["is_new_video slice"] = "yes" if is_new else "no"
            for column, value in want.items():
                assert got[column] == as_known(value, column), column
            assert got["_time"] == row["time_ms"] and got["_domain"] == row["tab"]
            assert got["_group"] == row["user_id"]
            labels = [got[name] for name in ("click", "like", "long_view")]
            assert labels == [row[n] for n in ("is_click", "is_like", "long_view")]
    for name, _, _, length in HISTORIES:
        assert min(lengths[name]) == 0 and max(lengths[name]) == length
    assert slices == {"0", "1-9", "10-49", "50+"}
    assert "yes" in {row["is_new_video slice"] for row in found}  # of test
    shards = [path.name for path in sorted((out / "train").glob("*.parquet"))]
    assert shards == [f"{part:05d}.parquet" for part in range(num_buckets)]


def test_the_published_files_give_the_same_data_set(raw, converted, tmp_path):
    for place in (raw / "pure", raw / "pure" / "data"):
        kuairand.convert(place, tmp_path / "out", overwrite=True)
        for split in SPLITS:
            assert stored(tmp_path / "out", split) == stored(converted, split)
    moved = tmp_path / "KuaiRand-Pure"
    shutil.copytree(raw / "pure", moved)
    kuairand.convert(tmp_path, tmp_path / "out", overwrite=True)
    assert cards.load(tmp_path / "out") == cards.load(converted)


def in_any_order(out: pathlib.Path, split: str) -> list[str]:
    return sorted(map(str, stored(out, split).to_pylist()))


@pytest.mark.parametrize(
    ("form", "size", "num_buckets"),
    [("parquet", "pure", 4), ("27k", "27k", 6)],
)
def test_the_number_of_buckets_changes_the_order_of_rows_and_nothing_else(
    raw, tmp_path, form, size, num_buckets
):
    one, many = tmp_path / "one", tmp_path / "many"
    kuairand.convert(raw / form, one)
    flags = [f"--raw={raw / form}", f"--out={many}", f"--num_buckets={num_buckets}"]
    kuairand.main(flags)
    for split in SPLITS:
        assert in_any_order(one, split) == in_any_order(many, split)
    for path in (one / "vocabularies").iterdir():
        same = pq.read_table(many / "vocabularies" / path.name)
        assert pq.read_table(path) == same
    card = cards.load(many)
    assert card == cards.load(one)
    assert card.name == ("kuairand" if size == "pure" else f"kuairand_{size}")
    assert f"KuaiRand-{size}".casefold() in card.origin.casefold()
    # No scratch folder is left.
    assert {path.name for path in tmp_path.iterdir()} == {"one", "many"}


def test_workers_that_get_the_rows_pickled_read_the_same(raw, tmp_path, monkeypatch):
    seen, num_buckets = [], made_up.NUM_USERS + 1

    def convert(plan, rows, out, **_):
        sent = pickle.loads(pickle.dumps(rows))
        assert (sent.num_parts, sent.names, sent.rule) == (
            num_buckets,
            SPLITS,
            rows.rule,
        )
        assert not list(rows.chunks(num_buckets - 1))  # no user is in the last one
        for part in (2, 0, 1, 0):
            chunks = list(rows.chunks(part))
            assert list(sent.chunks(part)) == chunks
            assert all(list(t.schema.names) == list(plan.kinds()) for _, t in chunks)
            seen.extend(split for split, _ in chunks)

    monkeypatch.setattr(kuairand.conversion, "convert", convert)
    kuairand.convert(raw / "1k", tmp_path / "out", num_buckets=num_buckets)
    assert set(seen) == set(SPLITS)


KILLED = """
import os, signal, sys
from data_pipelines import kuairand
from data_pipelines.engine import parts

write = parts.write


def write_three(job, item):
    if item[0] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return write(job, item)


parts.write = write_three
kuairand.main(sys.argv[1:])
"""


def test_a_killed_conversion_leaves_nothing_that_the_next_one_trips_over(raw, tmp_path):
    flags = [f"--raw={raw / '27k'}", f"--out={tmp_path / 'out'}", "--num_buckets=6"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *flags], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {".out.partial", ".out.buckets"}
    kuairand.main(flags)
    kuairand.convert(raw / "27k", tmp_path / "whole", num_buckets=6)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}
    for split in SPLITS:
        assert stored(tmp_path / "out", split) == stored(tmp_path / "whole", split)


def test_impressions_of_the_same_time_are_in_no_history_of_each_other(raw, converted):
    log, _, _ = read_published(raw / "pure")
    count = collections.Counter((row["user_id"], row["time_ms"]) for row in log)
    rows = decoded(converted, "train")
    same = [row for row in rows if count[row["_group"], row["_time"]] > 1]
    assert len(same) > 30
    # The one user whose history ends at the very time of his first row.
    tied = [r for r in same if r["_group"] == 4 and not r["watched_video"]]
    assert len(tied) == 1 and tied[0]["history slice"] == "0"


def test_rare_ids_are_unknown_when_asked(raw, converted, tmp_path):
    flags = [f"--raw={raw / 'parquet'}", f"--out={tmp_path / 'out'}"]
    kuairand.main([*flags, "--min_count=200"])
    assert len(known_ids(tmp_path / "out", "author")) < len(
        known_ids(converted, "author")
    )


# ---------------------------------------------------------------- leaks


def test_the_statistics_are_not_read_where_they_just_lie_there(
    raw, converted, tmp_path
):
    for form, name in (
        ("parquet", "video_statistics_LEAKY.parquet"),
        ("pure", "data/video_features_statistic_pure.csv"),
    ):
        shutil.copytree(raw / form, tmp_path / form)
        (tmp_path / form / name).write_bytes(b"\x00 no table at all")
        kuairand.convert(tmp_path / form, tmp_path / "out", overwrite=True)
        assert stored(tmp_path / "out", "test") == stored(converted, "test")


@pytest.mark.parametrize(
    "name",
    [
        "parquet/video_statistics_LEAKY.parquet",
        "pure/data/video_features_statistic_pure.csv",
    ],
)
def test_the_statistics_are_refused_as_features(raw, tmp_path, name):
    flags = [f"--raw={raw / 'parquet'}", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match=r"test days included, so they tell the label"):
        kuairand.main([*flags, f"--video_features={raw / name}"])
    assert not list(tmp_path.iterdir())


def test_every_column_of_the_real_statistics_is_refused(real_data, tmp_path):
    path = real_data / "kuairand-pure-late" / "video_statistics_LEAKY.parquet"
    table = pq.read_table(path).slice(0, 3)
    names = [name for name in table.column_names if name != "video_id"]
    assert len(names) == 51
    for name in names:
        one = table.select(["video_id", name])
        pq.write_table(one, tmp_path / "one.parquet")
        with pytest.raises(kuairand.DataError, match=rf"{name} \(1 such columns\)"):
            kuairand.convert(
                path.parent, tmp_path / "out", video_features=tmp_path / "one.parquet"
            )


def test_own_features_of_videos_become_fields(raw, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text(
        "video_id,topic,series\n"
        + "".join(f"{v},t{v % 3},{v % 5}\n" for v in range(50))
    )
    card = kuairand.convert(raw / "parquet", tmp_path / "out", video_features=path)
    assert [field.name for field in card.fields[-2:]] == ["topic", "series"]
    for row in decoded(tmp_path / "out", "train"):
        video = row["video"]
        expected = (f"t{video % 3}", video % 5) if video < 50 else (None, None)
        assert (row["topic"], row["series"]) == expected


# ---------------------------------------------------------------- bad input


def edited(raw, tmp_path, name, change) -> pathlib.Path:
    """A copy of the Parquet form in which one table is changed."""
    folder = tmp_path / "raw"
    shutil.copytree(raw / "parquet", folder, dirs_exist_ok=True)
    path = folder / f"{name}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    return folder


def replace(name: str, value) -> object:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[name].to_pylist()[1:]]
        place = table.column_names.index(name)
        return table.set_column(place, name, pa.array(values))

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("log_0425_0430", replace("tab", None), r"log_0425_0430.parquet: .*null value"),
        (
            "log_0501_0508",
            replace("date", 20220509),
            r"goes to date 20220509, expected",
        ),
        ("log_0501_0508", replace("is_like", 3), r"column 'like' has 1 of 397"),
        ("log_0501_0508", lambda t: t.drop_columns(["long_view"]), r"long_view"),
        ("video_features_basic", replace("tag", "12;65"), r"12;65"),
        ("video_features_basic", replace("video_id", 1), r"the same video_id"),
        (
            "user_features",
            replace("onehot_feat4", 0.5),
            r"user_features.parquet: .*0.5",
        ),
    ],
)
def test_wrong_content_is_refused_and_leaves_nothing(
    raw, tmp_path, name, change, message
):
    folder = edited(raw, tmp_path, name, change)
    with pytest.raises(SystemExit, match=message) as error:
        kuairand.main([f"--raw={folder}", f"--out={tmp_path / 'out'}"])
    assert str(error.value).startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(raw, tmp_path, name):
    folder = tmp_path / "raw"
    shutil.copytree(raw / "parquet", folder)
    (folder / f"{name}.parquet").unlink()
    with pytest.raises(SystemExit, match=rf"{name}.parquet is missing"):
        kuairand.main([f"--raw={folder}", f"--out={tmp_path / 'out'}"])


def test_a_folder_without_the_data_is_told_what_to_hold(tmp_path):
    with pytest.raises(SystemExit, match=r"found neither log_0425_0430.parquet nor"):
        kuairand.main([f"--raw={tmp_path}", f"--out={tmp_path / 'out'}"])


def test_a_folder_with_two_sizes_is_refused(raw, tmp_path):
    for size in ("1k", "pure"):
        shutil.copytree(raw / size, tmp_path, dirs_exist_ok=True)
    with pytest.raises(kuairand.DataError, match=r"Pure in .*, KuaiRand-1K in .*one"):
        kuairand.convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "before", "after", "message"),
    [
        (
            "log_standard_4_22_to_5_08_27k_part2.csv",
            ",tab",
            ",tabs",
            "'tab' is missing",
        ),
        ("log_standard_4_08_to_4_21_27k_part2.csv", ",0,1\n", "\n", "null values"),
        ("log_standard_4_22_to_5_08_27k_part1.csv", ",0,4\n", ",0,x\n", "parse `x`"),
        ("video_features_basic_27k.csv", ",NORMAL,", ",9.5,NORMAL,", r"column 'tag'"),
        ("video_features_basic_27k.csv", "\n3,", "\n5,", "the same video_id"),
        ("user_features_27k.csv", "\n3,", "\nx,", "user_features_27k.csv: .*'x'"),
    ],
)
def test_wrong_text_is_refused_and_leaves_nothing(
    raw, tmp_path, name, before, after, message
):
    shutil.copytree(raw / "27k", tmp_path / "raw")
    path = tmp_path / "raw" / "data" / name
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    with pytest.raises(kuairand.DataError, match=message):
        kuairand.convert(tmp_path / "raw", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("video_id,mean_play\n1,0.25\n", r"'mean_play' has type double"),
        ("video_id,author\n1,7\n", r"has columns \['author'\] already"),
        ("video_id,topic\n1,a\n1,b\n", r"the same video_id"),
        ("video,topic\n1,a\n", r"column 'video_id' is missing"),
    ],
)
def test_own_features_that_cannot_be_joined_are_refused(raw, tmp_path, text, message):
    path = tmp_path / "own.csv"
    path.write_text(text)
    with pytest.raises(kuairand.DataError, match=message):
        kuairand.convert(raw / "parquet", tmp_path / "out", video_features=path)


# ---------------------------------------------------------------- real data, training


def test_made_up_files_have_the_schemas_of_the_real_ones(real_data, raw):
    for name in FILES:
        real = pq.read_schema(real_data / "kuairand-pure-late" / f"{name}.parquet")
        ours = pq.read_schema(raw / "parquet" / f"{name}.parquet")
        assert ours.remove_metadata() == real.remove_metadata(), name


def test_real_files_convert_to_the_known_counts(real_data, real_out):
    card = cards.load(real_out)
    sizes = {name: split.num_rows for name, split in card.splits.items()}
    assert sizes == {"train": 154_071, "valid": 30_990, "test": 43_268}
    for name, rate in (("click", 0.442), ("like", 0.0171), ("long_view", 0.311)):
        positives = [s.num_rows * s.positive_rate[name] for s in card.splits.values()]
        assert sum(positives) / 228_329 == pytest.approx(rate, abs=0.0006)
    log = real_log(real_data)
    for split in SPLITS:
        times = [row["time_ms"] for row in log if row["split"] == split]
        assert stored(real_out, split)["_time"].to_pylist() == times


def real_log(real_data) -> list[dict]:
    columns = ["user_id", "video_id", "time_ms", "is_like", "long_view", "split"]
    return [
        row
        for name in FILES[:2]
        for row in pq.read_table(
            real_data / "kuairand-pure-late" / f"{name}.parquet", columns=columns
        ).to_pylist()
    ]


def test_histories_of_real_rows_are_those_of_a_loop(real_data, real_out):
    log = real_log(real_data)
    by_user = collections.defaultdict(list)
    for row in log:
        by_user[row["user_id"]].append(row)
    path = real_data / "kuairand-pure-late" / "user_history_to_0424.parquet"
    listed = {row["user_id"]: row for row in pq.read_table(path).to_pylist()}
    ids = set(known_ids(real_out, "video"))
    rng = np.random.default_rng(0)
    for split in SPLITS:
        rows = [row for row in log if row["split"] == split]
        places = np.sort(rng.choice(len(rows), 300, replace=False))
        for place, got in zip(places, decoded(real_out, split, places), strict=True):
            row = rows[place]
            before = listed.get(row["user_id"])
            if before and before["last_time_ms"] >= row["time_ms"]:
                before = None
            past = [e for e in by_user[row["user_id"]] if e["time_ms"] < row["time_ms"]]
            past.sort(key=lambda event: event["time_ms"])
            for name, column, flag, length in HISTORIES:
                videos = [e["video_id"] for e in past if flag is None or e[flag]]
                videos = [*(before[column] if before else []), *videos][-length:]
                expected = [v if v in ids else UNKNOWN for v in videos]
                assert got[f"{name}_video"] == expected


def write_as_27k(real: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the real files as KuaiRand-27K has them, as pandas would."""
    data = folder / "data"
    data.mkdir(parents=True)
    early, late = (pl.read_parquet(real / f"{name}.parquet") for name in FILES[:2])
    for name, table in {
        "log_standard_4_08_to_4_21_27k_part1": early.clear(),
        "log_standard_4_08_to_4_21_27k_part2": early.clear(),
        "log_standard_4_22_to_5_08_27k_part1": early,
        "log_standard_4_22_to_5_08_27k_part2": late,
        "user_features_27k": pl.read_parquet(real / "user_features.parquet"),
        "video_features_basic_27k": pl.read_parquet(
            real / "video_features_basic.parquet"
        ),
    }.items():
        floats = [c.name for c in table if c.dtype.is_integer() and c.null_count()]
        table = table.with_columns(pl.col(floats).cast(pl.Float64))
        table.write_csv(data / f"{name}.csv")


def ids_and_labels(out: pathlib.Path, split: str) -> pl.DataFrame:
    """Rows but for their histories, with the ids of the raw files, in one order."""
    table = stored(out, split)
    lists = [name for name in table.column_names if pa.types.is_list(table[name].type)]
    table = table.drop_columns([*lists, "_slice_history"])
    for column, name in id_tables(cards.load(out)).items():
        if column not in lists:
            vocabulary = pq.read_table(out / "vocabularies" / f"{name}.parquet")
            ids = vocabulary["id"].cast(pa.string()).take(table[column])
            place = table.column_names.index(column)
            table = table.set_column(place, column, ids)
    return pl.DataFrame(table).sort(pl.all())


def test_real_rows_in_the_form_of_27k_give_the_same_rows(real_data, real_out, tmp_path):
    write_as_27k(real_data / "kuairand-pure-late", tmp_path / "raw")
    out = tmp_path / "out"
    card = kuairand.convert(tmp_path / "raw", out, num_buckets=3)
    assert card.slices[:2] == cards.load(real_out).slices[:2]
    for split in SPLITS:
        ours, theirs = (ids_and_labels(o, split) for o in (out, real_out))
        if split != "train":  # the lists of the other form make more of these known
            ours, theirs = (one.drop("video", "main_tag") for one in (ours, theirs))
            ours, theirs = (one.sort(pl.all()) for one in (ours, theirs))
        assert ours.height > 30_000 and ours.equals(theirs)
