r"""KuaiRand-Pure, its last two weeks: click, like and long view with three histories.

    python -m data_pipelines.kuairand --raw=DIR --out=datasets/kuairand

DIR holds either five Parquet files (log_0425_0430, log_0501_0508, user_features,
video_features_basic, user_history_to_0424) or the CSV files as they are published
(kuairand.com; DIR is the folder KuaiRand-Pure or the one around it). Rows are the
impressions dated 2022-04-25 .. 05-08, split by the log's `date`. What a user watched,
liked and long-viewed before is history: earlier rows of the log, and in the Parquet
form the lists of `user_history_to_0424`, all of them at that user's `last_time_ms`.
The log's `date` lags up to 50 minutes behind `time_ms`, so less than 1 % of the rows
before a cut are later than the first row after it.

Histories hold what happened strictly before the row's `time_ms`. The impressions of a
page carry the same time and some rows stand in the log twice, so neither a row nor its
twin is in its own history. `hour` and `weekday` are those of `time_ms` in Beijing, not
of the log's `date` and `hourmin`, which run up to an hour behind the impression.

The published statistics of the videos are averages over the whole collection period,
test days included: they tell the labels. Nothing here reads them. All is in memory,
about 3 GB. Licence of the data: CC BY-SA 4.0.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import functools
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data_pipelines import command, conversion, own_features, raw_files
from data_pipelines.columns import look_up, ranges
from data_pipelines.histories import past_events
from data_pipelines.plan import LabelRule, Plan
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Field,
    SequenceColumn,
    SequenceField,
)

SPLITS = {  # first and last date
    "train": (20220425, 20220503),
    "valid": (20220504, 20220505),
    "test": (20220506, 20220508),
}
FIRST_DATE, LAST_DATE = SPLITS["train"][0], SPLITS["test"][1]
MAX_TAGS = 3  # no video has more
NUM_EARLIER = {0: "0", 1: "1-9", 10: "10-49", 50: "50+"}  # start of a range -> name
BEIJING_MS = 8 * 3600 * 1000


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
# What is known of an event; nearly every video has an author of its own.
EVENT_TABLES = ("video", "main_tag")
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
FIELDS: tuple[Field, ...] = (
    *(
        CategoricalField(name=name, table=name)
        for name in ("user", "video", "author", "main_tag")
    ),
    CategoricalField(name="tags", table="main_tag", max_length=MAX_TAGS),
    *(
        CategoricalField(name=name, table=name)
        for name in (
            *("tab", "hour", "weekday"),
            *("video_type", "upload_type", "music_type", "duration"),
            *USER_TEXTS,
            *USER_CODES,
        )
    ),
    *(
        SequenceField(
            name=name,
            columns=tuple(
                SequenceColumn(name=table, table=table, column=f"{name}_{table}")
                for table in EVENT_TABLES
            ),
            max_length=history.max_length,
        )
        for name, history in HISTORIES.items()
    ),
)


class Form(NamedTuple):
    """The files of one form of the data set."""

    logs: tuple[str, str]
    users: str
    videos: str
    history: str = ""


PARQUET = Form(
    ("log_0425_0430.parquet", "log_0501_0508.parquet"),
    "user_features.parquet",
    "video_features_basic.parquet",
    "user_history_to_0424.parquet",
)
PUBLISHED = Form(
    ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv"),
    "user_features_pure.csv",
    "video_features_basic_pure.csv",
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


def convert(
    raw: pathlib.Path,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    video_features: pathlib.Path | None = None,
    min_count: int = 1,
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the files, in either form.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.
        video_features: CSV or Parquet with video_id and further columns of ids or
            texts, each of which becomes a categorical field.
        min_count: ids that training has less often are unknown ids.

    Raises:
        DataError: a file is missing or is not what it should be, or `video_features`
            holds counters of the whole collection period.
    """
    folder, form = _find(raw)
    extra = own_features.read(video_features) if video_features else None
    logs = [_read(folder / name, LOG) for name in form.logs]
    log = pa.concat_tables(logs).combine_chunks()
    users = _read(folder / form.users, USERS)
    videos = _video_columns(_read(folder / form.videos, VIDEOS))
    history = _read(folder / form.history, USER_HISTORY) if form.history else None

    dates = log["date"].to_numpy()
    if dates.max() > LAST_DATE:
        raise DataError(
            f"{folder}: the log goes to date {dates.max()}, expected {LAST_DATE} at "
            "most; this is not KuaiRand-Pure"
        )
    rows = log.filter(pa.array(dates >= FIRST_DATE))
    columns = _row_columns(rows, users, videos)
    columns |= _history_columns(rows, log, history, videos)
    fields = FIELDS
    if extra is not None:
        names = [name for name in extra.column_names if name != "video_id"]
        if taken := [name for name in names if name in columns]:
            raise DataError(
                f"{video_features}: the data set has columns {taken} already; rename"
            )
        columns |= look_up(extra, rows["video_id"], names)
        fields += tuple(CategoricalField(name=name, table=name) for name in names)

    plan = Plan(
        name="kuairand",
        fields=fields,
        labels=tuple(
            LabelRule(name=name, column=column)
            for name, column in (
                ("click", "is_click"),
                ("like", "is_like"),
                ("long_view", "long_view"),
            )
        ),
        special={"group": "user", "time": "time_ms", "domain": "tab"},
        min_count=min_count,
        slices=("tab", "hour", "history", "is_new_video"),
        origin=(
            "KuaiRand-Pure (Gao et al., CIKM 2022, kuairand.com), standard policies, "
            "2022-04-25 .. 05-08"
        ),
        licence="CC BY-SA 4.0",
    )
    table = pa.table(columns)
    dates = rows["date"].to_numpy()
    splits = {
        split: table.filter(pa.array((first <= dates) & (dates <= last)))
        for split, (first, last) in SPLITS.items()
    }
    rule = "by date: " + ", ".join(
        f"{split} {first} .. {last}" for split, (first, last) in SPLITS.items()
    )
    rule += "; histories: events strictly before the row's time_ms"
    source = conversion.TableRows(splits, plan, rule=rule)
    return conversion.convert(plan, source, out, overwrite=overwrite)


def _find(raw: pathlib.Path) -> tuple[pathlib.Path, Form]:
    """Returns the folder of the files, and the form that they have."""
    published = [raw, raw / "data", raw / "KuaiRand-Pure" / "data"]
    places = [(raw, PARQUET), *((folder, PUBLISHED) for folder in published)]
    for folder, form in places:
        if any((folder / name).is_file() for name in (*form.logs, form.users)):
            return folder, form
    raise DataError(
        f"{raw}: found neither {PARQUET.logs[0]} nor data/{PUBLISHED.logs[0]}; --raw "
        "must be the folder of the Parquet files, or KuaiRand-Pure as it is published"
    )


def _read(path: pathlib.Path, schema: pa.Schema) -> pa.Table:
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


def _video_columns(videos: pa.Table) -> pa.Table:
    """Makes the fields of videos; "tag" is text such as "12,65", or empty."""
    tag = videos["tag"].combine_chunks()
    parts = pc.split_pattern(pc.if_else(pc.equal(tag, ""), None, tag), ",")
    elements, offsets = raw_files.ragged(parts)
    try:
        tags = pa.ListArray.from_arrays(offsets, elements.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"video features, column 'tag': {error}; expected numbers like 12,65"
        ) from error
    main_tag = pc.list_slice(tags, 0, 1, return_fixed_size_list=True).flatten()
    seconds = np.asarray(pc.fill_null(videos["video_duration"], 1)) / 1000
    ranges = np.floor(2 * np.log2(seconds)).astype(np.int64)  # two to a doubling
    return pa.table(
        {
            "video_id": videos["video_id"],
            "video": videos["video_id"],
            "author": videos["author_id"],
            "main_tag": main_tag,
            "tags": tags,
            "video_type": videos["video_type"],
            "upload_type": videos["upload_type"],
            "music_type": videos["music_type"],
            "duration": pa.array(
                ranges, mask=np.asarray(videos["video_duration"].is_null())
            ),
        }
    )


def _row_columns(rows: pa.Table, users: pa.Table, videos: pa.Table) -> dict:
    """Makes the columns of the rows but for their histories."""
    times = pa.array(rows["time_ms"].to_numpy() + BEIJING_MS).cast(pa.timestamp("ms"))
    is_train = pc.less_equal(rows["date"], SPLITS["train"][1])
    trained = rows["video_id"].filter(is_train).combine_chunks()
    is_known = pc.is_in(rows["video_id"], value_set=trained)
    of_video = [
        name for name in videos.column_names if name not in ("video_id", "video")
    ]
    return {
        "user": rows["user_id"],
        "video": rows["video_id"],
        "tab": rows["tab"],
        "hour": pc.hour(times),
        "weekday": pc.day_of_week(times),
        "time_ms": rows["time_ms"],
        "is_click": rows["is_click"],
        "is_like": rows["is_like"],
        "long_view": rows["long_view"],
        "is_new_video": pc.if_else(is_known, "no", "yes"),
        **look_up(users, rows["user_id"], [*USER_TEXTS, *USER_CODES]),
        **look_up(videos, rows["video_id"], of_video),
    }


def _history_columns(
    rows: pa.Table, log: pa.Table, history: pa.Table | None, videos: pa.Table
) -> dict:
    """Makes the sequences, and the slice by how many impressions came before."""
    columns = {}
    for name, (listed, flag, max_length) in HISTORIES.items():
        events = log.filter(pc.equal(log[flag], 1)) if flag else log
        events = events.select(["user_id", "video_id", "time_ms"])
        if history is not None:
            events = pa.concat_tables([_listed_events(history, listed), events])
        past = past_events(
            user=rows["user_id"].to_numpy(),
            time=rows["time_ms"].to_numpy(),
            event_user=events["user_id"].to_numpy(),
            event_time=events["time_ms"].to_numpy(),
            max_length=max_length,
        )
        of_event = look_up(videos, events["video_id"], ["main_tag"])
        of_event["video"] = events["video_id"]
        for table in EVENT_TABLES:
            values = of_event[table].combine_chunks()
            columns[f"{name}_{table}"] = past.take(values)
        if name == "watched":
            columns["history"] = ranges(past.num_earlier, NUM_EARLIER)
    return columns


def _listed_events(history: pa.Table, column: str) -> pa.Table:
    """Makes events of the lists that each user has, oldest first."""
    user = pc.list_parent_indices(history[column])
    return pa.table(
        {
            "user_id": history["user_id"].take(user),
            "video_id": pc.list_flatten(history[column]),
            "time_ms": history["last_time_ms"].take(user),
        }
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("kuairand", __doc__)
    parser.add_argument(
        "--video_features",
        type=pathlib.Path,
        metavar="FILE",
        help="CSV or Parquet: video_id and columns of ids or texts, each a field",
    )
    command.add_min_count(parser, default=1)
    flags = parser.parse_args(arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
