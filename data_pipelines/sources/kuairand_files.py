"""The files of KuaiRand in its sizes and forms."""

import functools
import pathlib
from typing import NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.csv

from data_pipelines.engine import buckets, raw_files
from rankax.data.card import DataError

SPLITS = {  # first and last date
    "train": (20220425, 20220503),
    "valid": (20220504, 20220505),
    "test": (20220506, 20220508),
}
LAST_DATE = SPLITS["test"][1]
USER_TEXTS = (
    "user_active_degree",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
)
USER_CODES = (
    "is_live_streamer",
    "is_video_author",
    *(f"onehot_feat{i}" for i in range(18)),
)


class History(NamedTuple):
    """One sequence of past events."""

    listed: str  # list column of user_history_to_0424
    flag: str  # column of the log that is 1 for such events; "" = all are
    max_length: int


HISTORIES = {
    "watched": History("watch_seq", "", 30),
    "liked": History("like_seq", "is_like", 10),
    "long_viewed": History("long_watch_seq", "long_view", 30),
}


class Form(NamedTuple):
    """One size of KuaiRand, and its files."""

    title: str
    dataset: str  # name of the dataset folder's card
    logs: tuple[str, ...]
    users: str
    videos: str
    history: str = ""


def _published(title: str, *, num_files: int = 1) -> Form:
    """Returns the names of the CSV files; the log may be cut into several files."""
    size = title.rpartition("-")[2].lower()
    cuts = [f"_part{i + 1}" for i in range(num_files)] if num_files > 1 else [""]
    days = ("4_08_to_4_21", "4_22_to_5_08")
    return Form(
        title,
        "kuairand" if size == "pure" else f"kuairand_{size}",
        tuple(f"log_standard_{part}_{size}{cut}.csv" for part in days for cut in cuts),
        f"user_features_{size}.csv",
        f"video_features_basic_{size}.csv",
    )


PARQUET = Form(
    "KuaiRand-Pure",
    "kuairand",
    ("log_0425_0430.parquet", "log_0501_0508.parquet"),
    "user_features.parquet",
    "video_features_basic.parquet",
    "user_history_to_0424.parquet",
)
PUBLISHED = (
    _published("KuaiRand-Pure"),
    _published("KuaiRand-1K"),
    _published("KuaiRand-27K", num_files=2),
)


def _schema(required: str, **optional: pa.DataType) -> pa.Schema:
    ids = [pa.field(name, pa.int64(), nullable=False) for name in required.split()]
    return pa.schema([*ids, *optional.items()])


LOG = _schema("user_id video_id date time_ms is_click is_like long_view tab")
USERS = _schema(
    "user_id",
    **dict.fromkeys(USER_TEXTS, pa.string()),
    **dict.fromkeys(USER_CODES, pa.int64()),
)
VIDEOS = _schema(
    "video_id",
    author_id=pa.int64(),
    video_duration=pa.int64(),
    music_type=pa.int64(),
    video_type=pa.string(),
    upload_type=pa.string(),
    tag=pa.string(),
)
USER_HISTORY = _schema(
    "user_id last_time_ms",
    **{history.listed: pa.list_(pa.int64()) for history in HISTORIES.values()},
)


def find(raw: pathlib.Path) -> tuple[pathlib.Path, Form]:
    """Returns the folder of the files, and the form that they have.

    Raises:
        DataError: there are no such files, or those of several sizes.
    """
    places = [(raw, PARQUET)]
    for form in PUBLISHED:
        folders = (raw, raw / "data", raw / form.title / "data")
        places += [(folder, form) for folder in folders]
    found = [
        (folder, form)
        for folder, form in places
        if any((folder / name).is_file() for name in (*form.logs, form.users))
    ]
    if not found:
        raise DataError(
            f"{raw}: found neither {PARQUET.logs[0]} nor data/{PUBLISHED[0].logs[0]} "
            "nor the log of KuaiRand-1K or -27K; --raw must be the folder of the "
            "Parquet files, or one of these as it is published"
        )
    if len(found) > 1:
        names = ", ".join(f"{form.title} in {folder}" for folder, form in found)
        raise DataError(f"{raw} holds {names}; --raw must be the folder of one of them")
    return found[0]


def check_log(folder: pathlib.Path, form: Form) -> int:
    """Reads the log once and returns how many rows it has.

    Raises:
        DataError: a file is missing, or has values or dates that it should not have.
    """
    files = [folder / name for name in form.logs]
    found = buckets.survey(files, LOG, pl.col("date").max().alias("last"))
    for file, figures in zip(files, found, strict=True):
        if figures["num_rows"] and figures["last"] > LAST_DATE:
            raise DataError(
                f"{file}: the log goes to date {figures['last']}, expected {LAST_DATE} "
                "at most; this is not KuaiRand"
            )
    return sum(figures["num_rows"] for figures in found)


def read(path: pathlib.Path, schema: pa.Schema) -> pa.Table:
    """Reads a small table whole."""
    if path.suffix == ".parquet":
        return raw_files.read_whole(path, schema)
    # Where an integer can be missing, all stand there as 9.0.
    types = {
        field.name: field.type if field.type == pa.string() else pa.float64()
        for field in schema
    }
    options = pyarrow.csv.ConvertOptions(
        column_types=types, include_columns=schema.names, strings_can_be_null=True
    )
    reader = functools.partial(pyarrow.csv.read_csv, convert_options=options)
    return raw_files.read_whole(path, schema, reader)
