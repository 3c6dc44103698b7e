r"""MovieLens 100K: will a user like a film, with the user's past as a sequence.

    python -m data_pipelines.movielens --raw=DIR --out=datasets/movielens_100k

DIR holds `ratings.parquet`, `users.parquet` and `items.parquet`, or, as GroupLens ships
the set, `u.data`, `u.user` and `u.item`; where both are there the Parquet files are
read. Label: `like` = rating >= 4. Split by time: the oldest 80 % train, the newest 10 %
test. Hour and weekday are those of UTC. Everything is done in memory: 100,000 rows.
Licence of the data: research, no redistribution; nothing of it is in this repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import functools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data_pipelines import command, conversion, histories, raw_files
from data_pipelines.columns import look_up, ranges
from data_pipelines.plan import LabelRule, Plan
from data_pipelines.splits import SPLITS
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    SequenceColumn,
    SequenceField,
)

HISTORY_LENGTH = 50
LIKED_FROM = 4  # stars

# Columns of the raw tables that are used, with the types that they get.
RATINGS = {
    "user_id": pa.int64(),
    "item_id": pa.int64(),
    "rating": pa.int64(),
    "timestamp": pa.timestamp("s"),
}
USERS = {
    "user_id": pa.int64(),
    "age": pa.int64(),
    "gender": pa.string(),
    "occupation": pa.string(),
    "zip_code": pa.string(),
}
ITEMS = {
    "item_id": pa.int64(),
    "release_date": pa.string(),
    "genres": pa.list_(pa.string()),
}
# The text form has a column of 0 and 1 for each, in this order.
GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)

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

IDS = (
    "user",
    "item",
    "age",
    "gender",
    "occupation",
    "zip_area",
    "release_year",
    "hour",
    "weekday",
)
FIELDS = (
    *(CategoricalField(name=name, table=name) for name in IDS),
    CategoricalField(name="genres", table="genres", max_length=6),
    *(
        SequenceField(
            name=name,
            columns=(SequenceColumn(name="item", table="item", column=f"{name}_item"),),
            max_length=HISTORY_LENGTH,
        )
        for name in ("liked", "disliked")
    ),
)
PLAN = Plan(
    name="movielens_100k",
    fields=FIELDS,
    labels=(LabelRule(name="like", column="rating", threshold=LIKED_FROM),),
    special={"group": "user", "time": "timestamp"},
    slices=("age", "gender", "history"),
    origin="GroupLens MovieLens 100K (Harper and Konstan, doi 10.1145/2827872)",
    licence="GroupLens: research, no redistribution without permission",
)


def convert(raw: pathlib.Path, out: pathlib.Path, *, overwrite: bool = False) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the raw files, in one of the two forms.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.

    Raises:
        DataError: a file is missing or is not what this module knows.
    """
    try:
        if (raw / "ratings.parquet").is_file():
            ratings, users, items = _read_parquet(raw)
            split = ratings["split_time"].to_numpy()
            rule = "by time, column split_time of ratings.parquet"
        elif (raw / "u.data").is_file():
            ratings, users, items = _read_text(raw)
            split = time_split(ratings["timestamp"].cast(pa.int64()).to_numpy())
            rule = (
                "by time: oldest 80 % train, next 10 % valid, newest 10 % test; equal "
                "times in the order of u.data"
            )
        else:
            raise DataError(
                f"{raw} holds neither ratings.parquet nor u.data; --raw must be the "
                "folder of the Parquet files or of GroupLens's ml-100k"
            )
        _check(ratings, split, raw)
        examples = make_examples(ratings, users, items)
    except pa.ArrowException as error:
        raise DataError(f"{raw}: {error}") from error
    tables = {name: examples.filter(pa.array(split == name)) for name in SPLITS}
    rows = conversion.TableRows(tables, PLAN, rule=rule)
    return conversion.convert(PLAN, rows, out, overwrite=overwrite)


def time_split(seconds: np.ndarray) -> np.ndarray:
    """Returns the split [n] of ratings by time; equal times split in the given order.

    The oldest 80 % are "train", the next 10 % "valid" and the newest 10 % "test".
    """
    n = len(seconds)
    ends = [n * 8 // 10, n * 9 // 10]
    split = np.empty(n, dtype=object)
    order = np.argsort(seconds, kind="stable")
    for name, rows in zip(SPLITS, np.split(order, ends), strict=True):
        split[rows] = name
    return split


def make_examples(ratings: pa.Table, users: pa.Table, items: pa.Table) -> pa.Table:
    """Joins users and films to the ratings, and derives time, past and ranges.

    Args:
        ratings: columns `RATINGS`.
        users: columns `USERS`; a rating of another user has no user columns (null).
        items: columns `ITEMS`, likewise.
    """
    user, item = ratings["user_id"].to_numpy(), ratings["item_id"].to_numpy()
    time = ratings["timestamp"].combine_chunks()
    seconds = time.cast(pa.int64()).to_numpy()
    of_user = look_up(users, ratings["user_id"], users.column_names)
    of_item = look_up(items, ratings["item_id"], items.column_names)
    is_liked = ratings["rating"].to_numpy() >= LIKED_FROM

    def past(chosen: np.ndarray, max_length: int) -> histories.Past:
        return histories.past_events(
            user=user,
            time=seconds,
            event_user=user[chosen],
            event_time=seconds[chosen],
            max_length=max_length,
        )

    everything = past(np.full(len(user), True), 0)
    return pa.table(
        {
            "user": user,
            "item": item,
            "rating": ratings["rating"],
            "timestamp": time,
            "age": ranges(of_user["age"], AGES),
            "gender": of_user["gender"],
            "occupation": of_user["occupation"],
            # The first digit is a region of the United States, a letter one of Canada.
            "zip_area": pc.utf8_slice_codeunits(of_user["zip_code"], 0, 1),
            "genres": of_item["genres"],
            "release_year": pc.utf8_slice_codeunits(of_item["release_date"], -4).cast(
                pa.int64()
            ),
            "hour": pc.hour(time),
            "weekday": pc.day_of_week(time),  # Monday is 0
            "liked_item": past(is_liked, HISTORY_LENGTH).take(item[is_liked]),
            "disliked_item": past(~is_liked, HISTORY_LENGTH).take(item[~is_liked]),
            "history": ranges(everything.num_earlier, NUM_EARLIER),
        }
    )


def _read_parquet(raw: pathlib.Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    def read(name: str, types: dict[str, pa.DataType]) -> pa.Table:
        return raw_files.read_whole(raw / name, pa.schema(types))

    return (
        read("ratings.parquet", {**RATINGS, "split_time": pa.string()}),
        read("users.parquet", USERS),
        read("items.parquet", ITEMS),
    )


def _read_text(raw: pathlib.Path) -> tuple[pa.Table, pa.Table, pa.Table]:
    def read(name: str, types: dict[str, pa.DataType], separator: str) -> pa.Table:
        reader = functools.partial(
            pyarrow.csv.read_csv,
            read_options=pyarrow.csv.ReadOptions(
                column_names=list(types), encoding="latin-1"
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=separator, quote_char=False
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )
        return raw_files.read_whole(raw / name, pa.schema(types), reader)

    ratings = read("u.data", {**RATINGS, "timestamp": pa.int64()}, "\t")
    texts = ("title", "release_date", "video_release_date", "url")
    types = {"item_id": pa.int64(), **dict.fromkeys(texts, pa.string())}
    items = read("u.item", {**types, **dict.fromkeys(GENRES, pa.int8())}, "|")
    flags = np.stack([items[genre].to_numpy() for genre in GENRES], axis=1)
    if not np.isin(flags, (0, 1)).all():
        raise DataError(f"{raw / 'u.item'}: the last 19 columns must all be 0 or 1")
    genre = pa.array(np.nonzero(flags)[1])
    ends = np.cumsum(np.count_nonzero(flags, axis=1))
    genres = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(GENRES).take(genre)
    )
    return (
        ratings.cast(pa.schema(RATINGS)),
        read("u.user", USERS, "|"),
        items.select(["item_id", "release_date"]).append_column("genres", genres),
    )


def _check(ratings: pa.Table, split: np.ndarray, raw: pathlib.Path) -> None:
    """Raises on ratings that the joins and histories would take for something else."""
    for name in RATINGS:
        if ratings[name].null_count:
            raise DataError(
                f"{raw}: {ratings[name].null_count} ratings have no {name}; every "
                "rating needs one"
            )
    stars = ratings["rating"].to_numpy()
    if not np.isin(stars, np.arange(1, 6)).all():
        raise DataError(
            f"{raw}: ratings go from {stars.min()} to {stars.max()}, expected 1 .. 5"
        )
    if not np.isin(split, SPLITS).all():
        raise DataError(f"{raw}: split_time must be one of {SPLITS} in every row")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    flags = command.parser("movielens", __doc__).parse_args(arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
