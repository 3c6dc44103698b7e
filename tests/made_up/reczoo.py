"""Made-up rows in the form of two sets that RecZoo publishes as CSV.

    python tests/made_up/reczoo.py --out=DIR

writes MovielensLatest_x1 and TaobaoAd_x1 into DIR. The values are ours; names, order of
columns, line ends, empty histories and 0 for a missing id are as published.
"""

import argparse
import csv
import pathlib

import numpy as np

NUM_ROWS = {"train": 400, "valid": 120, "test": 100}
# Columns of TaobaoAd_x1 in their order -> number of ids; those of one table agree.
HISTORIES = {"btag_his": 4, "cate_his": 30, "brand_his": 40}
PROFILE = {
    "userid": 50,
    "cms_segid": 9,
    "cms_group_id": 12,
    "final_gender_code": 2,
    "age_level": 6,
    "pvalue_level": 4,
    "shopping_level": 3,
    "occupation": 2,
    "new_user_class_level": 5,
}
AD = {"adgroup_id": 60, "cate_id": 30, "campaign_id": 40, "customer": 40, "brand": 40}


def write_movielens_latest(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes train.csv, valid.csv and test.csv; ids of all columns share one space."""
    rng = np.random.default_rng(seed)
    names = ["label", "user_id", "item_id", "tag_id"]
    for split, num_rows in NUM_ROWS.items():
        user, item, tag = (
            first + (size * rng.random(num_rows) ** 2).astype(int)
            for first, size in ((0, 40), (40, 30), (70, 25))
        )
        label = (rng.random(num_rows) < 0.2 + 0.3 * (tag % 2)).astype(int)
        _write(folder / f"{split}.csv", names, zip(label, user, item, tag, strict=True))


def write_taobao_ad(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes train.csv, the two parts that the experiment makes of it, and test.csv."""
    rng = np.random.default_rng(seed)
    names = ["clk", *HISTORIES, *PROFILE, *AD, "price", "pid", "btag"]
    rows = [_taobao_row(rng) for _ in range(sum(NUM_ROWS.values()))]
    first, train = NUM_ROWS["train"], NUM_ROWS["train"] + NUM_ROWS["valid"]
    for name, part in (
        ("train", rows[:train]),
        ("first", rows[:first]),
        ("last", rows[first:train]),
        ("test", rows[train:]),
    ):
        _write(folder / f"{name}.csv", names, part)


def _taobao_row(rng: np.random.Generator) -> list[object]:
    num_events = int(rng.integers(0, 51))
    histories = []
    for num_ids in HISTORIES.values():
        events = _ids(rng, num_ids, num_events)
        histories.append("^".join(str(event) for event in events if event))
    ids = [_ids(rng, num_ids, 1)[0] for num_ids in (PROFILE | AD).values()]
    label = int(rng.random() < 0.1 + 0.3 * (ids[0] % 2))
    price = rng.choice([0.0, rng.normal(1, 0.02)])
    return [label, *histories, *ids, price, rng.integers(2), 1]


def _ids(rng: np.random.Generator, num_ids: int, size: int) -> np.ndarray:
    """Returns ids from 1 on, the first ones often, and sometimes 0."""
    ids = 1 + (num_ids * rng.random(size) ** 2).astype(int)
    return np.where(rng.random(size) < 0.1, 0, ids)


def _write(path: pathlib.Path, names, rows) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)  # which ends lines with CR and LF
        writer.writerow(names)
        writer.writerows(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    for name, write in (
        ("MovielensLatest_x1", write_movielens_latest),
        ("TaobaoAd_x1", write_taobao_ad),
    ):
        (flags.out / name).mkdir(parents=True, exist_ok=True)
        write(flags.out / name, seed=flags.seed)
