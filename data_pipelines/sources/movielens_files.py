"""The files of MovieLens in its sizes, read to tables that are alike."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import functools
import pathlib
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from data_pipelines.engine import buckets, raw_files
from data_pipelines.engine.splits import SPLITS
from rankax.data.card import DataError

# The text form of 100K has a column of 0 and 1 for each, in this order.
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
FOLDERS = ("ml-100k", "ml-1m", "ml-25m")  # in the published archives
NO_GENRES = "(no genres listed)"
YEAR = r"\((?P<year>[0-9]{4})\)\s*$"  # the end of most titles

# Every rating needs all of these; `timestamp` is in seconds, `split` 0 .. 2.
RATINGS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.int64()),
        ("rating", pa.float64()),
        ("timestamp", pa.int64()),
        ("split", pa.int64()),
    ]
)
USERS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("age", pa.int64()),
        ("gender", pa.string()),
        ("occupation", pa.string()),  # in 1M a number
        ("zip_code", pa.string()),
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.int64()),
        ("release_year", pa.int64()),
        ("genres", pa.list_(pa.string())),
    ]
)


class Tables(NamedTuple):
    """What the files of one form hold.

    Attributes:
        size: "100K", "1M" or "25M".
        files: all that were read, the ratings first.
        ratings: columns of `RATINGS`, in the order of the file, `split` only if there
            is a column of it.
        users: columns `USERS`; None where nothing is told of users.
        items: columns `ITEMS`.
    """

    size: str
    files: tuple[pathlib.Path, ...]
    ratings: pl.LazyFrame
    users: pa.Table | None
    items: pa.Table


def read(raw: pathlib.Path) -> Tables:
    """Reads the one size that a folder holds; the ratings of 25M only when used.

    Args:
        raw: the folder of the files, or the one around it.

    Raises:
        DataError: no such files, those of several sizes, or not what they should be.
    """
    forms = {
        "ratings.parquet": _read_parquet,
        "u.data": _read_100k,
        "ratings.dat": _read_1m,
        "ratings.csv": _read_25m,
    }
    places = [raw / folder for folder in ("", *FOLDERS)]
    found = [
        (place, name) for place in places for name in forms if (place / name).is_file()
    ]
    if not found:
        raise DataError(
            f"{raw} holds none of {', '.join(forms)}; --raw must be the folder of the "
            "Parquet files, or GroupLens's ml-100k, ml-1m or ml-25m"
        )
    names = [name for _, name in found]
    if len(found) > 1 and names != ["ratings.parquet", "u.data"]:
        several = [f"{(place / name).relative_to(raw)}" for place, name in found]
        raise DataError(
            f"{raw} holds {' and '.join(several)}, which are of different sizes; --raw "
            "must be the folder of one of them"
        )
    folder, name = found[0]
    try:
        return forms[name](folder)
    except pa.ArrowException as error:
        raise DataError(f"{raw}: {error}") from error


def _read_parquet(raw: pathlib.Path) -> Tables:
    files = tuple(raw / f"{name}.parquet" for name in ("ratings", "users", "items"))
    types = {name: RATINGS.field(name).type for name in RATINGS.names}
    types |= {"timestamp": pa.timestamp("s")}
    del types["split"]
    schema = pa.schema([*types.items(), ("split_time", pa.string())])
    ratings = raw_files.read_whole(files[0], schema)
    split = pc.index_in(ratings["split_time"], value_set=pa.array(SPLITS))
    if split.null_count:
        raise DataError(f"{raw}: split_time must be one of {SPLITS} in every row")
    ratings = ratings.set_column(4, "split", split)
    dated = pa.schema([("item_id", pa.int64()), ("release_date", pa.string())])
    items = raw_files.read_whole(files[2], dated.append(ITEMS.field("genres")))
    return Tables(
        "100K",
        files,
        _lazy(ratings.cast(RATINGS)),
        raw_files.read_whole(files[1], USERS),
        _items(items["item_id"], _year_of_date(items["release_date"]), items["genres"]),
    )


def _read_100k(raw: pathlib.Path) -> Tables:
    def read_text(
        path: pathlib.Path, types: dict[str, pa.DataType], separator: str
    ) -> pa.Table:
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
        return raw_files.read_whole(path, pa.schema(types), reader)

    files = (raw / "u.data", raw / "u.user", raw / "u.item")
    types = {field.name: field.type for field in RATINGS if field.name != "split"}
    ratings = read_text(files[0], types, "\t")
    users = read_text(files[1], {field.name: field.type for field in USERS}, "|")
    texts = ("title", "release_date", "video_release_date", "url")
    types = {"item_id": pa.int64(), **dict.fromkeys(texts, pa.string())}
    items = read_text(files[2], {**types, **dict.fromkeys(GENRES, pa.int8())}, "|")
    flags = np.stack([items[genre].to_numpy() for genre in GENRES], axis=1)
    if not np.isin(flags, (0, 1)).all():
        raise DataError(f"{files[2]}: the last 19 columns must all be 0 or 1")
    genre = pa.array(np.nonzero(flags)[1])
    ends = np.cumsum(np.count_nonzero(flags, axis=1))
    genres = pa.ListArray.from_arrays(
        pa.array(np.concatenate([[0], ends]), pa.int32()), pa.array(GENRES).take(genre)
    )
    years = _year_of_date(items["release_date"])
    items = _items(items["item_id"], years, genres)
    return Tables("100K", files, _lazy(ratings), users, items)


def _read_1m(raw: pathlib.Path) -> Tables:
    def read_text(path: pathlib.Path, types: dict[str, pa.DataType]) -> pa.Table:
        reader = functools.partial(_split_lines, names=list(types))
        return raw_files.read_whole(path, pa.schema(types), reader)

    files = (raw / "ratings.dat", raw / "users.dat", raw / "movies.dat")
    types = {field.name: field.type for field in RATINGS if field.name != "split"}
    ratings = read_text(files[0], types)
    order = ("user_id", "gender", "age", "occupation", "zip_code")
    users = read_text(files[1], {name: USERS.field(name).type for name in order})
    texts = {"item_id": pa.int64(), "title": pa.string(), "genres": pa.string()}
    items = _titled_items(read_text(files[2], texts))
    return Tables("1M", files, _lazy(ratings), users.select(USERS.names), items)


def _read_25m(raw: pathlib.Path) -> Tables:
    files = (raw / "ratings.csv", raw / "movies.csv")
    names = {"userId": "user_id", "movieId": "item_id", "rating": "rating"}
    names["timestamp"] = "timestamp"
    schema = pa.schema(
        [pa.field(a, RATINGS.field(b).type, nullable=False) for a, b in names.items()]
    )
    ratings = buckets.scan(files[:1], schema).rename(names)
    schema = pa.schema(
        [
            pa.field("movieId", pa.int64(), nullable=False),
            ("title", pa.string()),
            ("genres", pa.string()),
        ]
    )
    items = buckets.read(buckets.scan(files[1:], schema), schema, where=files[1])
    items = _titled_items(items.rename_columns(["item_id", "title", "genres"]))
    return Tables("25M", files, ratings, None, items)


def _lazy(table: pa.Table) -> pl.LazyFrame:
    return pl.DataFrame(table).lazy()


def _split_lines(path: pathlib.Path, names: list[str]) -> pa.Table:
    """Reads lines whose values stand between double colons."""
    text = path.read_text("latin-1").replace("\r\n", "\n")
    lines = pa.array(text.removesuffix("\n").split("\n"))
    values = pc.split_pattern(lines, "::")
    is_bad = np.asarray(pc.not_equal(pc.list_value_length(values), len(names)))
    if is_bad.any():
        first = int(np.argmax(is_bad))
        raise ValueError(
            f"{is_bad.sum()} lines have not {len(names)} values, first line "
            f"{first + 1}: {lines[first].as_py()[:200]!r}"
        )
    columns = [pc.list_element(values, i) for i in range(len(names))]
    return pa.table(dict(zip(names, columns, strict=True)))


def _titled_items(items: pa.Table) -> pa.Table:
    """Makes the table of films whose year stands in the title."""
    genres = items["genres"].combine_chunks()
    genres = pc.if_else(pc.equal(genres, NO_GENRES), None, genres)
    elements, offsets = raw_files.ragged(pc.split_pattern(genres, "|"))
    years = pc.extract_regex(items["title"], YEAR).combine_chunks()
    return _items(
        items["item_id"],
        pc.struct_field(years, "year").cast(pa.int64()),
        pa.ListArray.from_arrays(offsets, elements),
    )


def _year_of_date(dates: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns the last four letters of dates such as 01-Jan-1995 as numbers."""
    return pc.utf8_slice_codeunits(dates, -4).cast(pa.int64())


def _items(
    ids: pa.ChunkedArray,
    years: pa.Array | pa.ChunkedArray,
    genres: pa.Array | pa.ChunkedArray,
) -> pa.Table:
    columns = dict(zip(ITEMS.names, (ids, years, genres), strict=True))
    return pa.table(columns).cast(ITEMS).combine_chunks()
