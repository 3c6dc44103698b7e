r"""Criteo click logs: 13 counts and 26 categories of display advertisements.

    python -m data_pipelines.criteo --raw=DIR --out=datasets/criteo [--file=NAME]

DIR holds what Criteo publishes: `train.txt` of the Kaggle challenge, or days of the
1 TB logs (`day_0` .. `day_23`, or packed as `day_0.gz`), tab separated, no header, the
categories as hex codes of 8 digits, empty = missing; or Parquet files with columns
label, I1 .. I13 and C1 .. C26. Without --file the first of these that is there is
taken, of days all of them. Files are read in parts, and never whole.

--split says which rows train, are valid, and test:

    column   a column `split` says it (where there is one, the default)
    order    rows are in the order of time: the first 80 %, the next 10 %, the last 10 %
    bars_x4  random 8:1:1 in each class, as Criteo_x4 of the BARS leaderboards
    mlperf   days 0 .. 22, the first half of day 23, its second half

Every count is there twice: I1 .. I13 are numbers, sign(x)·log(1 + |x|), and
I1_bucket .. I13_bucket ids, floor(ln(x)²) where x > 2, else x, the rule of the
leaderboards. Choose by config.data.fields. --hash=ROWS makes no vocabularies: the
tables of C1 .. C26 have that many rows, to which ids are hashed when they are read, and
all is done in one pass. Licence of the data: Criteo's terms; nothing of it is in this
repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Callable, Sequence
import os
import pathlib
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import command, conversion, line_rows
from data_pipelines.engine.columns import ranges
from data_pipelines.engine.line_rows import (
    ByColumn,
    ByLine,
    LineRows,
    ParquetFile,
    Rule,
)
from data_pipelines.engine.plan import LabelRule, Plan
from data_pipelines.engine.text import Layout, TextFile
from rankax.data.card import Card, CategoricalField, DataError, NumericField
from rankax.data.storage import Location

NUMERIC = tuple(f"I{i}" for i in range(1, 14))
BUCKETS = tuple(f"{name}_bucket" for name in NUMERIC)
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
DEFAULT_FILES = ("criteo_kaggle_16k.parquet", "train.txt")
NUM_DAYS = 24
SPLIT_RULES = ("column", "order", "bars_x4", "mlperf")
# Some 100 buckets are in use; in so many rows hardly two of them meet.
BUCKET_ROWS = 1 << 14

LAYOUT = Layout(
    {
        "label": "label",
        **dict.fromkeys(NUMERIC, "int"),
        **dict.fromkeys(CATEGORICAL, "hex"),
    }
)
# Start of a range of the number of missing values -> its name.
NUM_MISSING = {0: "0", 1: "1-4", 5: "5-9", 10: "10+"}


def make_plan(
    files: Sequence[pathlib.Path], *, min_count: int = 2, hash_rows: int = 0
) -> Plan:
    """Returns what the dataset folder made of these files shall hold."""
    ids, hashed = (*BUCKETS, *CATEGORICAL), {}
    if hash_rows:
        hashed = dict.fromkeys(BUCKETS, min(hash_rows, BUCKET_ROWS))
        hashed |= dict.fromkeys(CATEGORICAL, hash_rows)
    return Plan(
        name="criteo",
        fields=(
            *(NumericField(name=name) for name in NUMERIC),
            *(CategoricalField(name=name, table=name) for name in ids),
        ),
        labels=(LabelRule(name="ctr", column="label"),),
        hashed=hashed,
        min_count=min_count,
        # The values of C9 are not known before all is read, which takes two passes.
        slices=("num_missing",) if hash_rows else ("num_missing", "C9"),
        slice_values={"num_missing": tuple(NUM_MISSING.values())},
        origin=(
            "Criteo Display Advertising Challenge (Kaggle, 2014) or Criteo 1 TB click "
            f"logs, {_named(files)}"
        ),
        licence="Criteo's terms",
    )


def convert(
    raw: pathlib.Path,
    out: str | os.PathLike[str] | Location,
    *,
    overwrite: bool = False,
    cluster: str = "",
    file: str = "",
    split: str = "",
    hash_rows: int = 0,
    min_count: int | None = None,
    on_bad_line: str = "error",
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the raw files.
        out: dataset folder to make, a path or URI.
        overwrite: replace a dataset folder that is there.
        cluster: address of a Ray cluster; "" = this machine alone.
        file: which file of `raw`; "" = what is there.
        split: one of `SPLIT_RULES`; "" = by column, or in order where there is none.
        hash_rows: rows of the tables of C1 .. C26; 0 = vocabularies.
        min_count: ids that training has less often are unknown ids; None = 2 for
            vocabularies.
        on_bad_line: "error" or "skip".

    Raises:
        DataError: a file is missing or is not what this module knows.
    """
    if hash_rows and min_count is not None:
        raise DataError(
            f"--min_count={min_count}: with --hash there are no vocabularies that rare "
            "ids could be left out of; leave one of the two away"
        )
    paths = _find(raw, file, split)
    min_count = 1 if hash_rows else 2 if min_count is None else min_count
    plan = make_plan(paths, min_count=min_count, hash_rows=hash_rows)
    rows = file_rows(paths, split=split, on_bad_line=on_bad_line)
    return conversion.convert(plan, rows, out, overwrite=overwrite, cluster=cluster)


def file_rows(
    paths: Sequence[pathlib.Path], *, split: str = "", on_bad_line: str = "error"
) -> LineRows:
    """Returns the examples of text files, or of one Parquet file.

    Raises:
        DataError: a file is not what this module knows, or has no such split.
    """
    if paths[0].suffix == ".parquet":
        files = [ParquetFile(paths[0], (*NUMERIC, *CATEGORICAL), one_of=("label",))]
    else:
        files = [TextFile(path, LAYOUT, on_bad_line=on_bad_line) for path in paths]
    has_column = isinstance(files[0], ParquetFile) and files[0].has_split
    rule: Rule
    match split or ("column" if has_column else "order"):
        case "column" if has_column:
            rule = ByColumn(paths[0].name)
        case "column":
            raise DataError(f"--split=column: {paths[0]} has no column 'split'")
        case "order":
            rule = line_rows.in_order(files)
        case "bars_x4":
            rule = line_rows.as_bars_x4(files, "label")
        case _:
            rule = _as_mlperf(files)
    return LineRows(files, make_examples, rule, flags=on_bad_line)


def make_examples(rows: pa.Table) -> pa.Table:
    """Derives the columns of the fields and slices; missing values stay null.

    Args:
        rows: integers label, I1 .. I13, C1 .. C26.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {"label": rows["label"]}
    for name, bucket in zip(NUMERIC, BUCKETS, strict=True):
        count = rows[name]
        is_null = np.asarray(count.is_null(), bool)
        values = np.asarray(pc.fill_null(count, 0))
        columns[name] = pa.array(_of_counts(values, _logs, _LOGS), mask=is_null)
        buckets = _of_counts(values, _buckets, _BUCKETS)
        columns[bucket] = pa.array(buckets, mask=is_null)
    missing = np.zeros(rows.num_rows, np.uint8)
    for name in (*NUMERIC, *CATEGORICAL):
        if rows[name].null_count:
            missing += np.asarray(rows[name].is_null(), bool)
    for name in CATEGORICAL:
        columns[name] = rows[name].cast(pa.int64())
    columns["num_missing"] = ranges(missing, NUM_MISSING)
    return pa.table(columns)


def _logs(counts: np.ndarray) -> np.ndarray:
    """Returns sign(x)·log(1 + |x|)."""
    return np.sign(counts) * np.log1p(np.abs(counts))


def _buckets(counts: np.ndarray) -> np.ndarray:
    """Returns floor(ln(x)²) where x > 2, else x."""
    large = np.floor(np.log(np.maximum(counts, 1)) ** 2)
    return np.where(counts > 2, large, counts).astype(np.int64)


# Nearly all counts are small, and a table is quicker than a logarithm.
_SMALL = np.arange(-8, 1 << 16)
_LOGS, _BUCKETS = _logs(_SMALL), _buckets(_SMALL)


def _of_counts(
    counts: np.ndarray,
    function: Callable[[np.ndarray], np.ndarray],
    table: np.ndarray,
) -> np.ndarray:
    """Returns function(counts); `table` is function(_SMALL)."""
    place = counts - _SMALL[0]
    result = table.take(place, mode="clip")
    is_large = (place < 0) | (place >= len(table))
    if is_large.any():
        result[is_large] = function(counts[is_large])
    return result


def _as_mlperf(files: Sequence[TextFile | ParquetFile]) -> ByLine:
    """Cuts the last day into halves; its first has the odd row."""
    starts = line_rows.first_lines(files[-1:])
    num_train_parts = sum(file.num_parts for file in files[:-1])
    half = (int(starts[-1]) + 1) // 2
    # All lines of the other days stand before the first cut.
    starts = np.concatenate([np.full(num_train_parts, -(2**62)), starts])
    text = "days 0-22 train, first half of day 23 valid, second half test (MLPerf)"
    return ByLine(starts, (0, half), text)


def _find(raw: pathlib.Path, name: str, split: str) -> list[pathlib.Path]:
    there = sorted(raw.iterdir()) if raw.is_dir() else []
    days = {
        int(match[1]): path
        for path in there
        if (match := re.fullmatch(r"day_(\d+)(?:\.gz)?", path.name))
    }
    if split == "mlperf":
        missing = [day for day in range(NUM_DAYS) if day not in days]
        if missing or name:
            raise DataError(
                f"{raw}: --split=mlperf takes the {NUM_DAYS} files day_0 .. "
                f"day_{NUM_DAYS - 1} (or .gz) and no --file, missing are {missing}"
            )
        return [days[day] for day in range(NUM_DAYS)]
    is_default = any((raw / default).is_file() for default in DEFAULT_FILES)
    if days and not name and not is_default:
        return [days[day] for day in sorted(days)]
    return [command.find_file(raw, name, DEFAULT_FILES)]


def _named(files: Sequence[pathlib.Path]) -> str:
    if len(files) == 1:
        return f"file {files[0].name}"
    return f"{len(files)} files {files[0].name} .. {files[-1].name}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("criteo", __doc__)
    parser.add_argument("--file", default="", metavar="NAME", help="file in --raw")
    parser.add_argument(
        "--split",
        default="",
        choices=SPLIT_RULES,
        help="see above (default: column, or order where there is none)",
    )
    parser.add_argument(
        "--hash",
        dest="hash_rows",
        type=int,
        default=0,
        metavar="ROWS",
        help="hash C1 .. C26 to tables of so many rows, instead of vocabularies",
    )
    parser.add_argument(
        "--min_count",
        type=int,
        metavar="N",
        help="ids that training has less often are unknown ids (default: 2)",
    )
    command.add_on_bad_line(parser)
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
