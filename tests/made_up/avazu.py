"""Made-up click logs in the two forms of the Avazu data.

    python tests/made_up/avazu.py --out=DIR

writes both into DIR. The values are ours; header, types, order and odd values (C20 of
-1, codes with leading zeros, ids seen once) are as in the real files.
"""

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_ROWS = 600
HEX = (
    *("site_id", "site_domain", "site_category"),
    *("app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model"),
)
INTEGERS = {
    "C1": (1005, 1002, 1010),
    "banner_pos": (0, 1),
    "device_type": (1, 0, 4),
    "device_conn_type": (0, 2, 3),
    "C14": tuple(range(15_700, 15_730)),
    "C15": (320, 300),
    "C16": (50, 250),
    "C17": tuple(range(1700, 1720)),
    "C18": (0, 3, 2),
    "C19": (35, 39, 167),
    "C20": (-1, 100_084, 100_148),
    "C21": (79, 61, 157),
}
NAMES = (
    *("id", "click", "hour", "C1", "banner_pos"),
    *HEX,
    *("device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22))),
)


def write_parquet(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes a file with a split, and the label under its other name."""
    table = make_table(seed).rename_columns({"click": "label"})
    split = np.repeat(["train", "valid", "test"], [450, 60, 90])
    table = table.append_column("source", pa.array(["first_rows"] * NUM_ROWS))
    table = table.append_column("split", pa.array(split))
    pq.write_table(table, folder / "avazu_32k.parquet")


def write_published(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes `train.csv` with the same rows."""
    write_text(folder / "train.csv", make_table(seed))


def make_table(seed: int) -> pa.Table:
    """Returns the 24 columns with the types of the real Parquet file."""
    rng = np.random.default_rng(seed)
    hours = np.sort(rng.integers(0, 60, NUM_ROWS))
    columns: dict[str, pa.Array] = {
        "id": pa.array(rng.integers(10**18, 2**63, NUM_ROWS).astype(np.uint64)),
        "hour": pa.array(
            np.datetime64("2014-10-24T20", "ms") + hours * np.timedelta64(1, "h")
        ),
    }
    for name in HEX:
        codes = rng.integers(0, 2**32, 200)
        codes[1] %= 2**16  # a code with leading zeros
        place = (len(codes) * rng.random(NUM_ROWS) ** 3).astype(int)
        columns[name] = pa.array(codes[place], pa.uint32())
    for name, values in INTEGERS.items():
        columns[name] = pa.array(rng.choice(values, NUM_ROWS), pa.int32())
    score = 0.05 + 0.3 * (np.asarray(columns["C21"]) == 79)
    columns["click"] = pa.array(rng.random(NUM_ROWS) < score).cast(pa.int8())
    return pa.table({name: columns[name] for name in NAMES})


def write_text(path: pathlib.Path, table: pa.Table) -> None:
    """Writes the table as Kaggle does: a header, hours as YYMMDDHH, hex codes."""
    with path.open("w") as file:
        file.write(",".join(NAMES) + "\n")
        for row in table.to_pylist():
            row |= {name: f"{row[name]:08x}" for name in HEX}
            row["hour"] = row["hour"].strftime("%y%m%d%H")
            file.write(",".join(str(row[name]) for name in NAMES) + "\n")


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
