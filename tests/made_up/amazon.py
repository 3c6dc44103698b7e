"""Made-up files in the two forms of Amazon Grocery; ids and values are ours.

    python tests/made_up/amazon.py --out=DIR

writes DIR/parquet and DIR/published, which hold the same interactions.
"""

import argparse
import csv
import itertools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_USERS = 40
NUM_ITEMS = 160
DAY = 24 * 3600

INTERACTIONS = pa.schema(
    [
        ("user_id", pa.int32()),
        ("item_id", pa.int32()),
        ("time", pa.timestamp("ms", tz="UTC")),
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.int32()),
        ("category", pa.int16()),
        ("complement", pa.list_(pa.int16())),
        ("substitute", pa.list_(pa.int16())),
    ]
)


def write_parquet(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes the four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in interactions(seed).items():
        values = [
            {"user_id": user, "item_id": item, "time": seconds * 1000}
            for user, item, seconds in rows
        ]
        table = pa.Table.from_pylist(values, schema=INTERACTIONS)
        pq.write_table(table, folder / f"{name}.parquet")
    table = pa.Table.from_pylist(
        [dict(zip(ITEMS.names, row, strict=True)) for row in items(seed)], schema=ITEMS
    )
    pq.write_table(table, folder / "item_meta.parquet")


def write_published(
    folder: pathlib.Path, *, seed: int = 0, neg_items: bool = True
) -> None:
    """Writes the tab-separated files, dev and test with negatives unless told not to."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 2])
    known = interactions(seed)
    for name, rows in known.items():
        header = ["user_id", "item_id", "time"]
        if neg_items and name != "train":
            header.append("neg_items")
            touched = {user: set() for user, _, _ in rows}
            for user, item, _ in itertools.chain(*known.values()):
                touched[user].add(item)
            # As published: the same negative may stand there twice.
            rows = [
                (*row, rng.choice(free, 99).tolist())
                for row in rows
                for free in [sorted(set(range(1, NUM_ITEMS + 1)) - touched[row[0]])]
            ]
        _write(folder / f"{name}.csv", header, rows)
    header = ["item_id", "i_category", "r_complement", "r_substitute"]
    _write(folder / "item_meta.csv", header, items(seed))


def _write(path: pathlib.Path, header: list[str], rows: list[tuple]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def interactions(seed: int) -> dict[str, list[tuple[int, int, int]]]:
    """File -> (user, item, second of the day's start), by time; many share a day."""
    rng = np.random.default_rng(seed)
    files = {"train": [], "dev": [], "test": []}
    for user in range(1, NUM_USERS + 1):
        count = 30 if user == 7 else int(rng.integers(5, 15))
        bought = rng.choice(np.arange(1, NUM_ITEMS + 1), count, replace=False)
        days = np.sort(rng.integers(11_000, 11_000 + 2 * count // 3 + 1, count))
        if user % 4 == 0:
            days[-3:] = days[-1]  # the last in train, dev and test on one day
        rows = [
            (user, int(item), int(day) * DAY)
            for item, day in zip(bought, days, strict=True)
        ]
        files["train"] += rows[:-2]
        files["dev"].append(rows[-2])
        files["test"].append(rows[-1])
    return {name: sorted(rows, key=lambda row: row[2]) for name, rows in files.items()}


def items(seed: int) -> list[tuple[int, int, list[int], list[int]]]:
    """Item, category, complements and substitutes, which may be none; not in order."""
    rng = np.random.default_rng([seed, 1])

    def others() -> list[int]:
        return rng.choice(np.arange(1, NUM_ITEMS + 1), int(rng.integers(4))).tolist()

    return [
        (int(item), int(rng.integers(9)), others(), others())
        for item in rng.permutation(np.arange(1, NUM_ITEMS + 1))
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    write_parquet(flags.out / "parquet", seed=flags.seed)
    write_published(flags.out / "published", seed=flags.seed)
