r"""MovieLens: will a user like a film, with the user's past as a sequence.

    python -m data_pipelines.movielens --raw=DIR --out=datasets/movielens_100k

DIR is GroupLens's ml-100k (`u.data`), ml-1m (`ratings.dat`) or ml-25m (`ratings.csv`),
or the folder around it, or holds 100K as `ratings.parquet`, `users.parquet` and
`items.parquet`; where these and `u.data` are both there the Parquet files are read.
Label: `like` = rating >= 4. Split by time: the oldest 80 % train, the newest 10 % test;
ratings of the same second in the order of the file, or as the column `split_time` of
ratings.parquet says. Hour and weekday are those of UTC. 25M has half stars and knows
nothing of its users; it is dealt by user into temporary files beside --out, which are
then in memory one at a time for each thread or worker. Licence of the data: research,
no redistribution; nothing of it is in this repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import buckets, command, conversion, histories, text
from data_pipelines.engine.columns import look_up, ranges
from data_pipelines.engine.plan import LabelRule, Plan
from data_pipelines.engine.splits import SPLITS
from data_pipelines.sources.movielens_files import ITEMS, RATINGS, Tables, read
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    SequenceColumn,
    SequenceField,
)

HISTORY_LENGTH = 50
LIKED_FROM = 4  # stars
STAR_STEP = {"100K": 1.0, "1M": 1.0, "25M": 0.5}  # also the smallest rating
MAX_GENRES = {"100K": 6, "1M": 6, "25M": 10}
DOI = "Harper and Konstan, doi 10.1145/2827872"

# Start of a range -> its name. The ages are those of MovieLens 1M.
AGES = {
    0: "under 18",
    18: "18-24",
    25: "25-34",
    35: "35-44",
    45: "45-49",
    50: "50-55",
    56: "56+",
}
NUM_EARLIER = {0: "0", 1: "1-9", 10: "10-49", 50: "50+"}
OF_USER = ("age", "gender", "occupation", "zip_area")


def plan_of(size: str) -> Plan:
    """Returns what a dataset folder of a size holds."""
    has_users = size != "25M"
    ids = ["user", "item", *(OF_USER if has_users else ())]
    ids += ["release_year", "hour", "weekday"]
    genres = CategoricalField(
        name="genres", table="genres", max_length=MAX_GENRES[size]
    )
    sequences = (
        SequenceField(
            name=name,
            columns=(SequenceColumn(name="item", table="item", column=f"{name}_item"),),
            max_length=HISTORY_LENGTH,
        )
        for name in ("liked", "disliked")
    )
    return Plan(
        name=f"movielens_{size.lower()}",
        fields=(
            *(CategoricalField(name=name, table=name) for name in ids),
            genres,
            *sequences,
        ),
        labels=(LabelRule(name="like", column="rating", threshold=LIKED_FROM),),
        special={"group": "user", "time": "timestamp"},
        slices=("age", "gender", "history") if has_users else ("history",),
        origin=f"GroupLens MovieLens {size} ({DOI})",
        licence="GroupLens: research, no redistribution without permission",
    )


def convert(
    raw: pathlib.Path,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    num_buckets: int = 0,
    cluster: str = "",
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the raw files of one size.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.
        num_buckets: parts of the ratings, by user; 0 makes one for 2 M rows.
        cluster: see `conversion.convert`.

    Raises:
        DataError: a file is missing or is not what this module knows.
    """
    tables = read(raw.absolute())
    plan, where = plan_of(tables.size), tables.files[0]
    count = buckets.number_for(_check(tables), num_buckets)
    ratings, rule = tables.ratings, f"by time, column split_time of {where.name}"
    if "split" not in ratings.collect_schema():
        seconds = ratings.select("timestamp").collect(engine="streaming").to_series()
        ratings = with_split(ratings, time_cuts(seconds.to_numpy()))
        rule = (
            "by time: oldest 80 % train, next 10 % valid, newest 10 % test; equal "
            f"times in the order of {where.name}"
        )
    with buckets.scratch(out, overwrite=overwrite) as scratch:
        rows = MovieLensRows(
            ratings=buckets.deal(ratings, "user_id", num_buckets=count, folder=scratch),
            users=tables.users,
            items=tables.items,
            where=where,
            kinds=plan.kinds(),
            rule=rule,
            inputs=text.stamp(tables.files) if count > 1 else "",
        )
        return conversion.convert(plan, rows, out, overwrite=overwrite, cluster=cluster)


def time_cuts(seconds: np.ndarray) -> list[tuple[int, int]]:
    """Returns time and place of the first rating of valid, and of the first of test.

    The oldest 80 % of the ratings [n] are train, the newest 10 % test; those of the
    same time stay in the given order. No sorting, which would need more memory.
    """
    cuts = []
    for end in (len(seconds) * 8 // 10, len(seconds) * 9 // 10):
        time = np.partition(seconds, end)[end]
        num_before = np.count_nonzero(seconds < time)
        place = np.flatnonzero(seconds == time)[end - num_before]
        cuts.append((int(time), int(place)))
    return cuts


def with_split(ratings: pl.LazyFrame, cuts: list[tuple[int, int]]) -> pl.LazyFrame:
    """Adds the column `split`: how many cuts come before a rating, or are at it."""
    time, place = pl.col("timestamp"), pl.col("place")
    passed = [(time > t) | ((time == t) & (place >= p)) for t, p in cuts]
    split = sum((one.cast(pl.Int64) for one in passed), start=pl.lit(0, pl.Int64))
    return ratings.with_row_index("place").with_columns(split=split).drop("place")


@dataclasses.dataclass(kw_only=True)
class MovieLensRows:
    """The rows of `conversion.convert`; a part is a bucket of users.

    Attributes:
        ratings: columns `RATINGS`, by bucket.
        users: see `movielens_files.Tables`, as for `items`; a rating of another user
            or film has no such columns (null).
        where: the file of the ratings.
        kinds: the columns in use, with their kinds.
        rule: see `parts.Rows`, as for the others.
    """

    ratings: Sequence[pl.LazyFrame]
    users: pa.Table | None
    items: pa.Table
    where: pathlib.Path
    kinds: dict[str, str]
    rule: str
    inputs: str = ""
    names: tuple[str, ...] = SPLITS
    num_parts: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.num_parts = len(self.ratings)

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows) of the users of a bucket."""
        ratings = buckets.read(self.ratings[part], RATINGS, where=self.where)
        is_liked = pc.greater_equal(ratings["rating"], LIKED_FROM)
        chosen = {"liked": is_liked, "disliked": pc.invert(is_liked)}
        events = {name: ratings.filter(which) for name, which in chosen.items()}
        everything = _past(ratings, ratings)
        pasts = {name: _past(ratings, events[name]) for name in chosen}
        items = {name: events[name]["item_id"].combine_chunks() for name in chosen}
        splits = ratings["split"].to_numpy()
        for split, places in buckets.chunks(splits, self.names):
            columns = self._columns(ratings.take(pa.array(places)))
            for name, past in pasts.items():
                columns[f"{name}_item"] = past.rows(places).take(items[name])
            num_earlier = everything.rows(places).num_earlier
            columns["history"] = ranges(num_earlier, NUM_EARLIER)
            yield split, buckets.as_planned(columns, self.kinds)

    def _columns(self, ratings: pa.Table) -> dict:
        """Makes the columns of ratings but for what needs their past."""
        time = ratings["timestamp"].cast(pa.timestamp("s"))
        columns = {
            "user": ratings["user_id"],
            "item": ratings["item_id"],
            "rating": ratings["rating"],
            "timestamp": time,
            "hour": pc.hour(time),
            "weekday": pc.day_of_week(time),  # Monday is 0
            **look_up(self.items, ratings["item_id"], ITEMS.names[1:]),
        }
        if self.users is not None:
            names = self.users.column_names[1:]
            columns |= look_up(self.users, ratings["user_id"], names)
            columns["age"] = ranges(columns["age"], AGES)
            # The first digit is a region of the United States, a letter one of Canada.
            zip_code = columns.pop("zip_code")
            columns["zip_area"] = pc.utf8_slice_codeunits(zip_code, 0, 1)
        return columns


def _past(ratings: pa.Table, events: pa.Table) -> histories.Past:
    return histories.past_events(
        user=ratings["user_id"].to_numpy(),
        time=ratings["timestamp"].to_numpy(),
        event_user=events["user_id"].to_numpy(),
        event_time=events["timestamp"].to_numpy(),
        max_length=HISTORY_LENGTH,
    )


def _check(tables: Tables) -> int:
    """Returns the number of ratings.

    Raises:
        DataError: a rating that the rest would take for something else.
    """
    where, step = tables.files[0], STAR_STEP[tables.size]
    rating = pl.col("rating")
    is_wrong = ~rating.is_between(step, 5) | (rating % step != 0)
    figures = tables.ratings.select(
        num_rows=pl.len(),
        num_wrong=is_wrong.sum(),
        smallest=rating.min(),
        largest=rating.max(),
        **{
            f"no {name}": pl.col(name).null_count()
            for name in ("user_id", "item_id", "rating", "timestamp")
        },
    )
    types = {name: pa.int64() for name in figures.collect_schema()}
    types |= {"smallest": pa.float64(), "largest": pa.float64()}
    (found,) = buckets.read(figures, pa.schema(types), where=where).to_pylist()
    for name, count in found.items():
        if name.startswith("no ") and count:
            raise DataError(
                f"{where}: {count} ratings have {name}; every rating needs one"
            )
    if not found["num_rows"]:
        raise DataError(f"{where} holds no ratings")
    if found["num_wrong"]:
        raise DataError(
            f"{where}: {found['num_wrong']} ratings go from {found['smallest']:g} to "
            f"{found['largest']:g}, expected {step:g} .. 5 in steps of {step:g}"
        )
    return found["num_rows"]


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("movielens", __doc__)
    buckets.add_num_buckets(parser)
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
