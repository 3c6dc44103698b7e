"""Made-up ratings in the forms of MovieLens 100K, 1M and 25M.

    python tests/made_up/movielens.py --out=DIR

writes both forms of 100K into DIR. The values are ours; headers, types, missing values and odd values
(a film without a date, Canadian zip codes, many ratings in one second) are as in the
real files.
"""

import argparse
import calendar
import csv
import datetime
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_USERS, NUM_ITEMS, NUM_RATINGS = 40, 60, 800
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
OCCUPATIONS = ("student", "other", "educator", "none", "writer")


def write_parquet(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes `ratings.parquet`, `users.parquet` and `items.parquet`."""
    for name, table in make_tables(seed).items():
        pq.write_table(table, folder / f"{name}.parquet")


def write_published(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes `u.data`, `u.user` and `u.item` with the same content."""
    write_text(folder, make_tables(seed))


def make_tables(seed: int) -> dict[str, pa.Table]:
    """Returns ratings, users and items with the columns and types of the real files."""
    rng = np.random.default_rng(seed)
    return {"ratings": _ratings(rng), "users": _users(rng), "items": _items(rng)}


def write_text(folder: pathlib.Path, tables: dict[str, pa.Table]) -> None:
    """Writes the tables as GroupLens does."""
    ratings = _plain(tables["ratings"])
    items = []
    for r in tables["items"].to_pylist():
        url = "http://films.example/" if r["release_date"] else ""
        flags = (int(genre in r["genres"]) for genre in GENRES)
        date = r["release_date"] or ""
        items.append((r["item_id"], r["title"], date, "", url, *flags))
    users = [tuple(r.values()) for r in tables["users"].to_pylist()]
    for name, rows, separator in (
        ("u.data", ratings, "\t"),
        ("u.item", items, "|"),
        ("u.user", users, "|"),
    ):
        lines = [separator.join(map(str, row)) + "\n" for row in rows]
        (folder / name).write_text("".join(lines), encoding="latin-1")


def write_1m(folder: pathlib.Path, tables: dict[str, pa.Table]) -> None:
    """Writes `ratings.dat`, `users.dat` and `movies.dat` as GroupLens does."""
    ratings = [(*row[:2], int(row[2]), row[3]) for row in _plain(tables["ratings"])]
    users = [
        (r["user_id"], r["gender"], r["age"], r["occupation"], r["zip_code"])
        for r in tables["users"].to_pylist()
    ]
    items = [
        (r["item_id"], r["title"], "|".join(r["genres"]))
        for r in tables["items"].to_pylist()
    ]
    for name, rows in (("ratings", ratings), ("users", users), ("movies", items)):
        lines = ["::".join(map(str, row)) + "\n" for row in rows]
        (folder / f"{name}.dat").write_text("".join(lines), encoding="latin-1")


def write_25m(folder: pathlib.Path, tables: dict[str, pa.Table]) -> None:
    """Writes `ratings.csv` and `movies.csv` as GroupLens does."""
    ratings = [(*row[:2], float(row[2]), row[3]) for row in _plain(tables["ratings"])]
    items = [
        (r["item_id"], r["title"], "|".join(r["genres"]) or "(no genres listed)")
        for r in tables["items"].to_pylist()
    ]
    for name, header, rows in (
        ("ratings", ("userId", "movieId", "rating", "timestamp"), ratings),
        ("movies", ("movieId", "title", "genres"), items),
    ):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])


def _plain(ratings: pa.Table) -> list[tuple]:
    return [
        (r["user_id"], r["item_id"], r["rating"], int(r["timestamp"].timestamp()))
        for r in ratings.to_pylist()
    ]


def _ratings(rng: np.random.Generator) -> pa.Table:
    """One rating of a pair at most; users come back, and rate quickly."""
    pairs = rng.choice(NUM_USERS * NUM_ITEMS, NUM_RATINGS, replace=False)
    user, item = pairs // NUM_ITEMS + 1, pairs % NUM_ITEMS + 1
    first = datetime.datetime(1997, 9, 20, tzinfo=datetime.UTC)
    visits = int(first.timestamp()) + rng.integers(0, 200 * 86_400, (NUM_USERS, 3))
    visit = rng.integers(0, 3, NUM_RATINGS)
    # Several films in the same second, as on the page that GroupLens had.
    seconds = visits[user - 1, visit] + 30 * rng.integers(0, 4, NUM_RATINGS)
    # Some ratings of the very second at which the training part ends.
    order = np.argsort(seconds, kind="stable")
    end = NUM_RATINGS * 8 // 10
    seconds[order[end - 3 : end + 4]] = seconds[order[end]]
    taste = np.sin(user + item) + rng.normal(0, 0.5, NUM_RATINGS)
    rating = np.clip(np.round(3.6 + 1.3 * taste), 1, 5)
    fold = rng.integers(1, 6, NUM_RATINGS)
    return pa.table(
        {
            "user_id": pa.array(user, pa.int32()),
            "item_id": pa.array(item, pa.int32()),
            "rating": pa.array(rating, pa.int8()),
            "label": pa.array(rating >= 4).cast(pa.int8()),
            "timestamp": pa.array(seconds * 1000, pa.timestamp("ms", tz="UTC")),
            "fold": pa.array(fold, pa.int8()),
            "in_ua_test": fold == 1,
            "in_ub_test": fold == 2,
            "split_time": _split(seconds.tolist()),
        }
    )


def _split(seconds: list[int]) -> list[str]:
    n = len(seconds)
    split = [""] * n
    # Rows of the same second follow each other as in the file.
    for place, row in enumerate(sorted(range(n), key=lambda row: (seconds[row], row))):
        part = place * 10 // n
        split[row] = "train" if part < 8 else "valid" if part == 8 else "test"
    return split


def _users(rng: np.random.Generator) -> pa.Table:
    zips = [f"{code:05}" for code in rng.integers(0, 100_000, NUM_USERS)]
    zips[3], zips[7] = "V9Z0X", "K0A9Z"
    return pa.table(
        {
            "user_id": pa.array(range(1, NUM_USERS + 1), pa.int32()),
            "age": pa.array(rng.integers(7, 74, NUM_USERS), pa.int8()),
            "gender": rng.choice(["M", "F"], NUM_USERS, p=[0.7, 0.3]),
            "occupation": rng.choice(OCCUPATIONS, NUM_USERS),
            "zip_code": zips,
        }
    )


def _items(rng: np.random.Generator) -> pa.Table:
    years = rng.integers(1922, 1999, NUM_ITEMS).tolist()
    months = rng.integers(1, 13, NUM_ITEMS).tolist()
    titles = [f"Film {i + 1} ({years[i]})" for i in range(NUM_ITEMS)]
    dates: list[str | None] = [
        f"01-{calendar.month_abbr[month]}-{year}"
        for month, year in zip(months, years, strict=True)
    ]
    genres = [
        [GENRES[g] for g in sorted(rng.choice(18, rng.integers(1, 7), False) + 1)]
        for _ in range(NUM_ITEMS)
    ]
    titles[5], dates[5], genres[5] = "unknown", None, ["unknown"]
    titles[9], dates[9], genres[9] = "Été à Nîmes (1971)", "4-Feb-1971", ["unknown"]
    titles[11] = 'The "Quoted" Film, Part 2 (1990)'
    element = pa.list_(pa.field("element", pa.string()))
    return pa.table(
        {
            "item_id": pa.array(range(1, NUM_ITEMS + 1), pa.int32()),
            "title": titles,
            "release_date": pa.array(dates, pa.string()),
            "genres": pa.array(genres, element),
        }
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    flags.out.mkdir(parents=True, exist_ok=True)
    write_parquet(flags.out, seed=flags.seed)
    write_published(flags.out, seed=flags.seed)
