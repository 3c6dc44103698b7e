"""Made-up click logs in the two forms of the Criteo data.

    python tests/made_up/criteo.py --out=DIR

writes both into DIR. The values are ours; headers, types and odd values (counts of -1
and -2, columns that are missing together, codes with leading zeros, ids seen once) are
as in the real files.
"""

import argparse
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NUM_ROWS = 600
NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
# Columns that are missing in the same rows, and how often.
MISSING = (
    (("I1", "I10"), 0.45),
    (("I3",), 0.2),
    (("I4", "I13"), 0.2),
    (("I5",), 0.05),
    (("I6",), 0.25),
    (("I7", "I9", "I11"), 0.05),
    (("I12",), 0.77),
    (("C3", "C4", "C12", "C16", "C21", "C24"), 0.04),
    (("C6",), 0.14),
    (("C19", "C20", "C25", "C26"), 0.44),
    (("C22",), 0.82),
)
NUM_IDS = {"C9": 3, "C6": 8, "C14": 20, "C17": 9, "C20": 4, "C22": 8, "C23": 12}


def write_parquet(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes a Kaggle file with a split and a file of the 1 TB logs without one."""
    kaggle = make_table(seed)
    split = np.repeat(["train", "valid", "test"], [400, 110, 90])
    source = np.repeat(["first_10000", "x4_valid_head", "x4_test_head"], [400, 110, 90])
    kaggle = kaggle.append_column("source", pa.array(source))
    kaggle = kaggle.append_column("split", pa.array(split))
    pq.write_table(kaggle, folder / "criteo_kaggle_16k.parquet")
    pq.write_table(make_table(seed + 1), folder / "criteo_terabyte_day0_10k.parquet")


def write_published(folder: pathlib.Path, *, seed: int = 0) -> None:
    """Writes `train.txt` and `day_0` with the rows of the two Parquet files."""
    write_text(folder / "train.txt", make_table(seed))
    write_text(folder / "day_0", make_table(seed + 1))


def make_table(seed: int) -> pa.Table:
    """Returns label, I1 .. I13 and C1 .. C26 with the types of the real files."""
    rng = np.random.default_rng(seed)
    missing = {}
    for names, rate in MISSING:
        missing |= dict.fromkeys(names, rng.random(NUM_ROWS) < rate)
    columns: dict[str, pa.Array] = {}
    for name in NUMERIC:
        counts = np.floor(rng.lognormal(1, 2, NUM_ROWS))
        if name == "I2":
            counts -= 2
        columns[name] = pa.array(counts, pa.int32(), mask=missing.get(name))
    for name in CATEGORICAL:
        codes = rng.integers(0, 2**32, NUM_IDS.get(name, 400))
        codes[1] %= 2**16  # a code with leading zeros
        place = (len(codes) * rng.random(NUM_ROWS) ** 3).astype(int)
        columns[name] = pa.array(codes[place], pa.uint32(), mask=missing.get(name))
    score = columns["I6"].fill_null(0).to_numpy() < rng.lognormal(0, 1, NUM_ROWS)
    return pa.table({"label": pa.array(score).cast(pa.int8()), **columns})


def write_text(path: pathlib.Path, table: pa.Table) -> None:
    """Writes the table as Criteo does: no header, hex codes, empty = missing."""
    with path.open("w") as file:
        for row in table.to_pylist():
            numbers = ["" if row[n] is None else str(row[n]) for n in NUMERIC]
            codes = ["" if row[n] is None else f"{row[n]:08x}" for n in CATEGORICAL]
            file.write("\t".join([str(row["label"]), *numbers, *codes]) + "\n")


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
