r"""Avazu click logs: 21 categories of mobile advertisements, and the hour.

    python -m data_pipelines.avazu --raw=DIR --out=datasets/avazu [--file=NAME]

DIR holds what Kaggle publishes, `train.csv` or `train.gz`: comma separated, a header
of 24 names, the ids of site, app and device as hex codes of 8 digits, the hour as
YYMMDDHH; or a Parquet file with the same columns (`click` may be called `label`), the
hour as a timestamp. Files are read in parts, and never whole.

--split says which rows train, are valid, and test:

    column   a column `split` says it (where there is one, the default)
    time     the first 80 % of the rows by hour, the next 10 %, the last 10 %; rows of
             one hour stay together
    bars_x4  random 8:1:1 in each class, as Avazu_x4 of the BARS leaderboards

As for the leaderboards, `id` is dropped and the hour becomes three fields: hour of the
day, weekday (0 = Sunday) and weekend (1 on Saturday and Sunday). Licence of the data:
Kaggle's rules of the challenge; nothing of it is in this repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import dataclasses
import os
import pathlib

import numpy as np
import pyarrow as pa

from data_pipelines.engine import command, conversion, line_rows
from data_pipelines.engine.line_rows import ByColumn, LineRows, ParquetFile, Rule
from data_pipelines.engine.plan import LabelRule, Plan
from data_pipelines.engine.text import Block, Layout, TextFile
from rankax.data.card import Card, CategoricalField, DataError
from rankax.data.storage import Location

IDS = tuple(
    f"{what}_{part}"
    for what, parts in {
        "site": ("id", "domain", "category"),
        "app": ("id", "domain", "category"),
        "device": ("id", "ip", "model"),
    }.items()
    for part in parts
)
OTHERS = ("device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22)))
CATEGORICAL = ("C1", "banner_pos", *IDS, *OTHERS)
OF_HOUR = ("hour", "weekday", "weekend")
DEFAULT_FILES = ("train.csv", "train.gz", "avazu_32k.parquet")
SPLIT_RULES = ("column", "time", "bars_x4")

LAYOUT = Layout(
    {
        "id": "any",
        "click": "label",
        "hour": "hour",
        "C1": "int",
        "banner_pos": "int",
        **dict.fromkeys(IDS, "hex"),
        **dict.fromkeys(OTHERS, "int"),
    },
    separator=",",
    has_header=True,
)


def make_plan(file: pathlib.Path, *, min_count: int) -> Plan:
    """Returns what the dataset folder made of this file shall hold."""
    return Plan(
        name="avazu",
        fields=tuple(
            CategoricalField(name=name, table=name) for name in (*OF_HOUR, *CATEGORICAL)
        ),
        labels=(LabelRule(name="ctr", column="click"),),
        special={"time": "time"},
        min_count=min_count,
        slices=("hour", "banner_pos"),
        origin=f"Avazu Click-Through Rate Prediction (Kaggle, 2014), file {file.name}",
        licence="rules of the Kaggle challenge",
    )


def convert(
    raw: pathlib.Path,
    out: str | os.PathLike[str] | Location,
    *,
    overwrite: bool = False,
    cluster: str = "",
    file: str = "",
    split: str = "",
    min_count: int = 2,
    on_bad_line: str = "error",
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the raw files.
        out: dataset folder to make, a path or URI.
        overwrite: replace a dataset folder that is there.
        cluster: address of a Ray cluster; "" = this machine alone.
        file: which file of `raw`; "" = the first of `DEFAULT_FILES` that is there.
        split: one of `SPLIT_RULES`; "" = by column, or by time where there is none.
        min_count: ids that training has less often are unknown ids.
        on_bad_line: "error" or "skip".

    Raises:
        DataError: the file is missing or is not what this module knows.
    """
    path = command.find_file(raw, file, DEFAULT_FILES)
    rows = file_rows(path, split=split, on_bad_line=on_bad_line)
    plan = make_plan(path, min_count=min_count)
    return conversion.convert(plan, rows, out, overwrite=overwrite, cluster=cluster)


def file_rows(
    path: pathlib.Path, *, split: str = "", on_bad_line: str = "error"
) -> LineRows:
    """Returns the examples of one file.

    Raises:
        DataError: the file is not what this module knows, or has no such split.
    """
    label, has_column = "click", False
    if path.suffix == ".parquet":
        file = ParquetFile(path, ["hour", *CATEGORICAL], one_of=("click", "label"))
        label, has_column = file.choice, file.has_split
    else:
        file = TextFile(path, LAYOUT, on_bad_line=on_bad_line)
    rule: Rule
    match split or ("column" if has_column else "time"):
        case "column" if has_column:
            rule = ByColumn(path.name)
        case "column":
            raise DataError(f"--split=column: {path} has no column 'split'")
        case "bars_x4":
            rule = line_rows.as_bars_x4([file], label)
        case _:
            rule = _by_time(file)
    return LineRows([file], make_examples, rule, flags=on_bad_line)


def make_examples(rows: pa.Table) -> pa.Table:
    """Derives the columns of the fields.

    Args:
        rows: click or label, hour (a timestamp, or the integer YYMMDDHH), and the
            categories as integers.
    """
    label = "click" if "click" in rows.column_names else "label"
    time = _hours(rows["hour"])
    day = time.astype("datetime64[D]")
    weekday = (day.view(np.int64) + 4) % 7  # 1970 began on a Thursday
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        "click": rows[label],
        "time": pa.array(time.astype("datetime64[us]")),
        "hour": pa.array((time - day).view(np.int64)),
        "weekday": pa.array(weekday),
        "weekend": pa.array(np.isin(weekday, (0, 6)).astype(np.int64)),
    }
    columns |= {name: rows[name].cast(pa.int64()) for name in CATEGORICAL}
    return pa.table(columns)


@dataclasses.dataclass(frozen=True)
class ByTime:
    """Hours before the first cut train, from the second on they test."""

    cuts: np.ndarray

    @property
    def text(self) -> str:
        """In words."""
        return f"by hour: valid from {self.cuts[0]}, test from {self.cuts[1]} on"

    def split(self, part: int, block: Block) -> np.ndarray:
        """Returns the place in `splits.SPLITS` [rows] of each row of a block."""
        return np.searchsorted(self.cuts, _hours(block.rows["hour"]), side="right")


def _by_time(file: TextFile | ParquetFile) -> ByTime:
    counts: dict[np.datetime64, int] = {}
    for part in range(file.num_parts):
        for block in file.blocks(part, ["hour"]):
            found, more = np.unique(_hours(block.rows["hour"]), return_counts=True)
            for hour, count in zip(found, more, strict=True):
                counts[hour] = counts.get(hour, 0) + int(count)
    if not counts:
        raise DataError(f"{file.path} has no rows")
    hours = np.array(sorted(counts))
    before = np.cumsum([0, *(counts[hour] for hour in hours)])
    # The first hour before which there are that many rows.
    cuts = np.searchsorted(before, [before[-1] * 8 / 10, before[-1] * 9 / 10])
    return ByTime(hours[np.minimum(cuts, len(hours) - 1)])


def _hours(hour: pa.ChunkedArray) -> np.ndarray:
    """Returns the hours, datetime64[h], of timestamps or of integers YYMMDDHH.

    Raises:
        DataError: an hour is missing.
    """
    if hour.null_count:
        raise DataError(f"column 'hour' has {hour.null_count} missing values")
    if pa.types.is_timestamp(hour.type):
        return hour.cast(pa.timestamp("s")).to_numpy().astype("datetime64[h]")
    number = hour.to_numpy()
    year, month, day = number // 1_000_000, number // 10_000 % 100, number // 100 % 100
    months = ((2000 - 1970 + year) * 12 + month - 1).astype("datetime64[M]")
    hours = (day - 1) * 24 + number % 100
    return months.astype("datetime64[D]").astype("datetime64[h]") + hours


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("avazu", __doc__)
    parser.add_argument("--file", default="", metavar="NAME", help="file in --raw")
    parser.add_argument(
        "--split",
        default="",
        choices=SPLIT_RULES,
        help="see above (default: column, or time where there is none)",
    )
    command.add_min_count(parser, default=2)
    command.add_on_bad_line(parser)
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
