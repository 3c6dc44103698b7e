r"""How long raw text takes to become a dataset folder, beside Polars' plain rewriting.

python -m benchmarks.conversion --json=conversion.json   # 10 M rows, some minutes
python -m benchmarks.conversion --quick                  # 300,000 rows

A made-up file in the form of Criteo's `train.txt` is written once. Then, in turns and
in a process of their own each, Polars parses it and writes it as Parquet, all with its
defaults and codes left as text, and `data_pipelines.criteo` makes a dataset folder of
it, with hashed ids (one pass) and with vocabularies (two). All may use every core; the
file is in the page cache. Ratios are of medians over the rounds.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import shutil
import tempfile
import time

import numpy as np
import polars as pl

from benchmarks import measure
from benchmarks.measure import Record
from data_pipelines import criteo

ROWS, QUICK_ROWS = 10_000_000, 300_000
ROWS_AT_A_TIME = 500_000
HASH_ROWS = 1_000_000
# Ids of each category at 10 M rows and more, from a few to about half of the rows.
NUM_IDS = (
    *(1_460, 583, 5_000_000, 2_200_000, 305, 24, 12_517, 633, 3, 93_145, 5_683),
    *(4_000_000, 3_194, 27, 14_992, 3_000_000, 10, 5_652, 2_173, 4, 3_500_000, 18),
    *(15, 286_181, 105, 142_572),
)
BARE = "polars"


def write_text(path: pathlib.Path, num_rows: int) -> None:
    """Writes made-up rows: skewed counts and codes, a tenth of the cells missing."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, num_rows, ROWS_AT_A_TIME):
            rows = _rows(rng, min(ROWS_AT_A_TIME, num_rows - start))
            rows.write_csv(file, separator="\t", include_header=False)


def _rows(rng: np.random.Generator, n: int) -> pl.DataFrame:
    columns = {"label": pl.Series((rng.random(n) < 0.25).astype(np.int8))}
    for name in criteo.NUMERIC:
        columns[name] = pl.Series(np.floor(rng.lognormal(1, 2, n)).astype(np.int64))
    for name, num_ids in zip(criteo.CATEGORICAL, NUM_IDS, strict=True):
        ids = (num_ids * rng.random(n) ** 4).astype(np.uint64)
        # An odd factor shuffles the 32-bit codes, and no two ids get the same one.
        codes = ((ids * np.uint64(2_654_435_761)) & np.uint64(2**32 - 1)).astype(">u4")
        texts = np.frombuffer(codes.tobytes().hex().encode(), "S8").astype("U8")
        columns[name] = pl.Series(texts)
    missing = pl.Series(rng.random(n) < 0.1)
    for name in (*criteo.NUMERIC[::3], *criteo.CATEGORICAL[::5]):
        columns[name] = columns[name].set(missing, None)
    return pl.DataFrame(columns)


def rewrite(text: pathlib.Path, out: pathlib.Path) -> Record:
    """Parses the text by Polars and writes it as one Parquet file."""
    numbers = dict.fromkeys(("label", *criteo.NUMERIC), pl.Int64)
    types = numbers | dict.fromkeys(criteo.CATEGORICAL, pl.String)
    start = _clocks()
    pl.scan_csv(
        text, separator="\t", has_header=False, schema=types, quote_char=None
    ).sink_parquet(out / "plain.parquet")
    return _record(start)


def convert(text: pathlib.Path, out: pathlib.Path, hash_rows: int) -> Record:
    """Makes a dataset folder of the text."""
    start = _clocks()
    criteo.convert(text.parent, out / "dataset", file=text.name, hash_rows=hash_rows)
    return _record(start)


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _record(start: tuple[float, float]) -> Record:
    wall, cpu = _clocks()
    return {
        "wall_seconds": wall - start[0],
        "cpu_seconds": cpu - start[1],
        "peak_mb": measure.peak_memory_bytes() / 1e6,
    }


def fresh(function: str, text: pathlib.Path, *arguments: int) -> Record:
    """Calls `rewrite` or `convert` with a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=text.parent) as out:
        return globals()[function](text, pathlib.Path(out), *arguments)


def table(results: dict[str, Record], num_rows: int) -> str:
    """Returns the results as Markdown."""
    lines = [
        f"| {num_rows:,} rows | s | × Polars | s of processor | × Polars | peak MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    bare = results[BARE]
    for name, record in results.items():
        wall, cpu = record["wall_seconds"], record["cpu_seconds"]
        ratios = wall / bare["wall_seconds"], cpu / bare["cpu_seconds"]
        lines.append(
            f"| {name} | {wall:.1f} | {ratios[0]:.2f} | {cpu:.1f} | {ratios[1]:.2f} | "
            f"{record['peak_mb']:,.0f} |"
        )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conversion",
        description="How long raw text takes to become a dataset folder.",
    )
    parser.add_argument("--quick", action="store_true", help="one round, few rows")
    parser.add_argument("--rows", type=int, help=f"default: {ROWS:,}")
    parser.add_argument("--rounds", type=int, help="trials each (default: 3)")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--folder", type=pathlib.Path, help="for the files, removed")
    args = parser.parse_args(argv)
    if args.rows is None:
        args.rows = QUICK_ROWS if args.quick else ROWS
    if args.rounds is None:
        args.rounds = 1 if args.quick else 3
    if args.rows < 1 or args.rounds < 1:
        parser.error("--rows and --rounds are positive numbers")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: there is no folder {args.json.parent}")
    return args


def main() -> None:
    """Writes the text, runs the trials, prints a table, writes the JSON file."""
    args = parse_arguments()
    machine, versions = measure.run_alone(measure.describe)
    print(measure.hardware_line(machine, machine["cpu_cores"]))
    if args.folder is not None:
        args.folder.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(dir=args.folder))
    try:
        text = folder / "train.txt"
        write_text(text, args.rows)
        measure.tell(f"{text.stat().st_size / 1e6:,.0f} MB of text")
        results = measure.in_turn(
            {
                BARE: (fresh, "rewrite", text),
                "hashed ids": (fresh, "convert", text, HASH_ROWS),
                "vocabularies": (fresh, "convert", text, 0),
            },
            num_rounds=args.rounds,
        )
    finally:
        shutil.rmtree(folder)
    print(f"\n{table(results, args.rows)}")
    if args.json:
        content = {
            "hardware": machine,
            "versions": versions | {"polars": pl.__version__},
            "rows": args.rows,
            "results": results,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
