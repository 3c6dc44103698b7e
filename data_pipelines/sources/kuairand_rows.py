"""The rows of a dataset folder that are made of the files of KuaiRand."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import buckets, raw_files
from data_pipelines.engine.columns import look_up, ranges
from data_pipelines.engine.histories import Past, past_events
from data_pipelines.sources import own_features
from data_pipelines.sources.kuairand_files import (
    HISTORIES,
    LOG,
    SPLITS,
    USER_HISTORY,
    USERS,
    VIDEOS,
    Form,
    read,
)
from rankax.data.card import DataError

RULE = (
    "by date: "
    + ", ".join(f"{split} {first} .. {last}" for split, (first, last) in SPLITS.items())
    + "; histories: events strictly before the row's time_ms"
)
NUM_EARLIER = {0: "0", 1: "1-9", 10: "10-49", 50: "50+"}  # start of a range -> name
BEIJING_MS = 8 * 3600 * 1000
# What is known of an event; nearly every video has an author of its own.
EVENT_TABLES = ("video", "main_tag")


@dataclasses.dataclass(kw_only=True)
class KuaiRandRows:
    """The rows of `conversion.convert`; a part is a bucket of users.

    Attributes:
        folder: of the raw files.
        form: their names.
        log: the impressions by bucket, columns `LOG`.
        videos: columns `VIDEOS`.
        trained: the videos of all training rows, once each, column video_id; None if
            the only bucket has all training rows.
        own: a file of the user's own features of videos.
        kinds: the columns in use, with their kinds.
        inputs: see `parts.Rows`, as are the others.
    """

    folder: pathlib.Path
    form: Form
    log: Sequence[pl.LazyFrame]
    videos: pl.LazyFrame
    trained: pl.LazyFrame | None
    own: pathlib.Path | None
    kinds: dict[str, str]
    inputs: str
    num_parts: int = dataclasses.field(init=False)
    names: tuple[str, ...] = tuple(SPLITS)
    rule: str = RULE

    def __post_init__(self) -> None:
        self.num_parts = len(self.log)

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows) of the users of a bucket."""
        log = buckets.read(self.log[part], LOG, where=self.folder)
        split = _split(log)
        is_row = split >= 0
        rows, split = log.filter(pa.array(is_row)), split[is_row]
        is_new = self._is_new(rows)
        events = self._events(log)
        videos = self._videos(events)
        joined = [
            _Joined.make(read(self.folder / self.form.users, USERS), rows["user_id"]),
            _Joined.make(videos, rows["video_id"]),
        ]
        if self.own:
            joined.append(_Joined.make(own_features.read(self.own), rows["video_id"]))
        sequences = [
            _Sequence.make(name, rows, events_of, videos)
            for name, events_of in events.items()
        ]
        for name, places in buckets.chunks(split, self.names):
            columns = _row_columns(rows.take(pa.array(places)))
            columns["is_new_video"] = is_new.take(pa.array(places))
            for source in (*joined, *sequences):
                columns |= source.columns(places)
            yield name, buckets.as_planned(columns, self.kinds)

    def _is_new(self, rows: pa.Table) -> pa.Array:
        """Tells whether no row of the training data has the row's video."""
        if self.trained is None:
            is_train = pc.less_equal(rows["date"], SPLITS["train"][1])
            known = rows["video_id"].filter(is_train)
        else:
            schema = pa.schema([LOG.field("video_id")])
            trained = buckets.having(self.trained, "video_id", rows["video_id"])
            known = buckets.read(trained, schema, where=self.folder)["video_id"]
        is_known = pc.is_in(rows["video_id"], value_set=known.combine_chunks())
        return pc.if_else(is_known, "no", "yes").combine_chunks()

    def _videos(self, events: dict[str, pa.Table]) -> pa.Table:
        """Returns the fields of the videos that the bucket has."""
        ids = pa.concat_tables([one.select(["video_id"]) for one in events.values()])
        where = self.folder / self.form.videos
        videos = buckets.having(self.videos, "video_id", ids["video_id"])
        return _video_columns(buckets.read(videos, VIDEOS, where=where), where)

    def _events(self, log: pa.Table) -> dict[str, pa.Table]:
        """Returns what each history is made of: columns user_id, video_id, time_ms."""
        listed = None
        if self.form.history:
            listed = read(self.folder / self.form.history, USER_HISTORY)
            listed = listed.filter(pc.is_in(listed["user_id"], log["user_id"].unique()))
        result = {}
        for name, (column, flag, _) in HISTORIES.items():
            events = log.filter(pc.equal(log[flag], 1)) if flag else log
            events = events.select(["user_id", "video_id", "time_ms"])
            if listed is not None:
                events = pa.concat_tables([_listed_events(listed, column), events])
            result[name] = events
        return result


def _split(log: pa.Table) -> np.ndarray:
    """Returns the number of each row's split, -1 before the first one."""
    firsts = [first for first, _ in SPLITS.values()]
    return np.searchsorted(firsts, log["date"].to_numpy(), side="right") - 1


class _Joined(NamedTuple):
    """A table by the ids of rows: looked up once, then taken a chunk at a time."""

    table: pa.Table
    places: np.ndarray  # [n] rows of the table; its number of rows = no such id

    @classmethod
    def make(cls, table: pa.Table, ids: pa.ChunkedArray) -> "_Joined":
        key = table.column_names[0]
        numbered = table.select([key]).append_column(
            "place", pa.array(np.arange(table.num_rows))
        )
        found = look_up(numbered, ids, ["place"])["place"]
        return cls(table.drop_columns([key]), found.combine_chunks())

    def columns(self, places: np.ndarray) -> dict[str, pa.ChunkedArray]:
        found = self.table.take(self.places.take(pa.array(places)))
        return dict(zip(found.column_names, found.columns, strict=True))


class _Sequence(NamedTuple):
    """One history of all rows, of which the lists are made a chunk at a time."""

    name: str
    past: Past
    of_event: dict[str, pa.Array]

    @classmethod
    def make(
        cls, name: str, rows: pa.Table, events: pa.Table, videos: pa.Table
    ) -> "_Sequence":
        past = past_events(
            user=rows["user_id"].to_numpy(),
            time=rows["time_ms"].to_numpy(),
            event_user=events["user_id"].to_numpy(),
            event_time=events["time_ms"].to_numpy(),
            max_length=HISTORIES[name].max_length,
        )
        of_event = look_up(videos, events["video_id"], ["main_tag"])
        of_event["video"] = events["video_id"]
        values = {table: of_event[table].combine_chunks() for table in EVENT_TABLES}
        return cls(name, past, values)

    def columns(self, places: np.ndarray) -> dict[str, pa.Array]:
        past = self.past.rows(places)
        columns = {
            f"{self.name}_{table}": past.take(values)
            for table, values in self.of_event.items()
        }
        if self.name == "watched":
            columns["history"] = ranges(past.num_earlier, NUM_EARLIER)
        return columns


def _video_columns(videos: pa.Table, where: pathlib.Path) -> pa.Table:
    """Makes the fields of videos; "tag" is text such as "12,65", or empty."""
    tag = videos["tag"].combine_chunks()
    parts = pc.split_pattern(pc.if_else(pc.equal(tag, ""), None, tag), ",")
    elements, offsets = raw_files.ragged(parts)
    try:
        tags = pa.ListArray.from_arrays(offsets, elements.cast(pa.int64()))
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{where}, column 'tag': {error}; expected numbers like 12,65"
        ) from error
    main_tag = pc.list_slice(tags, 0, 1, return_fixed_size_list=True).flatten()
    # KuaiRand-27K has durations of zero, which say as little as a missing one.
    seconds = np.asarray(pc.fill_null(videos["video_duration"], 0)) / 1000
    is_known = seconds > 0
    ranges = np.floor(2 * np.log2(seconds, where=is_known, out=np.zeros(len(tags))))
    return pa.table(
        {
            "video_id": videos["video_id"],
            "author": videos["author_id"],
            "main_tag": main_tag,
            "tags": tags,
            "video_type": videos["video_type"],
            "upload_type": videos["upload_type"],
            "music_type": videos["music_type"],
            "duration": pa.array(ranges.astype(np.int64), mask=~is_known),
        }
    )


def _row_columns(rows: pa.Table) -> dict:
    """Makes the columns of the rows themselves."""
    times = pa.array(rows["time_ms"].to_numpy() + BEIJING_MS).cast(pa.timestamp("ms"))
    same = ("tab", "time_ms", "is_click", "is_like", "long_view")
    return {
        "user": rows["user_id"],
        "video": rows["video_id"],
        "hour": pc.hour(times),
        "weekday": pc.day_of_week(times),
        **{name: rows[name] for name in same},
    }


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
