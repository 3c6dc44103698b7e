r"""Criteo click logs: 13 counts and 26 categories of display advertisements.

    python -m data_pipelines.criteo --raw=DIR --out=datasets/criteo [--file=NAME]

DIR holds Parquet files with columns label, I1 .. I13 and C1 .. C26, or the text that
Criteo publishes: `train.txt` of the Kaggle challenge or a day of the 1 TB logs
(`day_0.gz`), tab separated, no header, the categories as hex codes of 8 digits, empty =
missing. Where the file has a column `split`, that is kept; else its rows are in the
order of time: the first 80 % train, the next 10 % are valid, the last 10 % test. It is
read in chunks, as often as needed.

Every count is there twice: I1 .. I13 are numbers, sign(x)·log(1 + |x|), and
I1_bucket .. I13_bucket ids, floor(ln(x)²) where x > 2, else x, the rule of the
leaderboards. Choose by config.data.fields. Licence of the data: Criteo's terms; nothing
of it is in this repository.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Iterator
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines import command, conversion, raw_files
from data_pipelines.columns import ranges
from data_pipelines.plan import LabelRule, Plan
from data_pipelines.splits import SPLITS
from rankax.data.card import Card, CategoricalField, DataError, NumericField

NUMERIC = tuple(f"I{i}" for i in range(1, 14))
BUCKETS = tuple(f"{name}_bucket" for name in NUMERIC)
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
DEFAULT_FILES = ("criteo_kaggle_16k.parquet", "train.txt")

# Start of a range of the number of missing values -> its name.
NUM_MISSING = {0: "0", 1: "1-4", 5: "5-9", 10: "10+"}


def make_plan(file: pathlib.Path, *, min_count: int) -> Plan:
    """Returns what the dataset folder made of this file shall hold."""
    ids = (*BUCKETS, *CATEGORICAL)
    return Plan(
        name="criteo",
        fields=(
            *(NumericField(name=name) for name in NUMERIC),
            *(CategoricalField(name=name, table=name) for name in ids),
        ),
        labels=(LabelRule(name="ctr", column="label"),),
        min_count=min_count,
        slices=("num_missing", "C9"),
        origin=(
            "Criteo Display Advertising Challenge (Kaggle, 2014) or Criteo 1 TB click "
            f"logs, file {file.name}"
        ),
        licence="Criteo's terms",
    )


def convert(
    raw: pathlib.Path,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    file: str = "",
    min_count: int = 2,
) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the raw files.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.
        file: which file of `raw`; "" = the first of `DEFAULT_FILES` that is there.
        min_count: ids that training has less often are unknown ids.

    Raises:
        DataError: the file is missing or is not what this module knows.
    """
    path = _find(raw, file)
    plan = make_plan(path, min_count=min_count)
    return conversion.convert(plan, FileRows(path), out, overwrite=overwrite)


class FileRows:
    """The examples of one file by split, read anew for every pass."""

    def __init__(self, file: pathlib.Path):
        """Finds out how the file is split.

        Raises:
            DataError: a column is missing, or the file cannot be read.
        """
        self._file = file
        self._columns = ["label", *NUMERIC, *CATEGORICAL]
        self._is_parquet = file.suffix == ".parquet"
        self._has_split = False
        self.names: tuple[str, ...] = SPLITS
        try:
            if self._is_parquet:
                found = pq.read_schema(file).names
                missing = [name for name in self._columns if name not in found]
                if missing:
                    raise DataError(
                        f"{file}: columns {missing} are missing, found {found}"
                    )
                self._has_split = "split" in found
                num_rows = pq.read_metadata(file).num_rows
            else:
                num_rows = sum(chunk.num_rows for chunk in self._open_text(["label"]))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: {error}") from error
        self._cuts = [num_rows * 8 // 10, num_rows * 9 // 10]
        self.rule = (
            "in file order, which is that of time: first 80 % train, next 10 % valid, "
            "last 10 % test"
        )
        if self._has_split:
            self.rule = f"by column split of {file.name}"

    def chunks(self, *, only_train: bool = False) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, examples)."""
        start = 0
        try:
            for batch in self._open():
                number = self._split_numbers(batch, start)
                start += batch.num_rows
                for i, name in enumerate(self.names[: 1 if only_train else None]):
                    part = batch.filter(pa.array(number == i))
                    if part.num_rows:
                        yield name, make_examples(part)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._file}, after row {start}: {error}") from error

    def _open(self) -> Iterator[pa.RecordBatch]:
        if not self._is_parquet:
            return self._open_text(self._columns)
        columns = [*self._columns, "split"] if self._has_split else self._columns
        file = pq.ParquetFile(self._file)
        return file.iter_batches(raw_files.PARQUET_ROWS, columns=columns)

    def _open_text(self, columns: list[str]) -> pyarrow.csv.CSVStreamingReader:
        types = dict.fromkeys(self._columns, pa.int64())
        types |= dict.fromkeys(CATEGORICAL, pa.binary(8))
        return pyarrow.csv.open_csv(
            self._file,
            pyarrow.csv.ReadOptions(
                column_names=self._columns, block_size=raw_files.CSV_BLOCK_BYTES
            ),
            pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            pyarrow.csv.ConvertOptions(
                include_columns=columns, column_types=types, null_values=[""]
            ),
        )

    def _split_numbers(self, batch: pa.RecordBatch, start: int) -> np.ndarray:
        if not self._has_split:
            row = np.arange(start, start + batch.num_rows)
            return np.searchsorted(self._cuts, row, side="right")
        number = pc.index_in(batch["split"], value_set=pa.array(SPLITS))
        if number.null_count:
            wrong = batch["split"].filter(number.is_null()).unique().to_pylist()
            raise DataError(
                f"{self._file}: column 'split' holds {wrong[:3]}, expected "
                f"only {SPLITS}"
            )
        return number.to_numpy()


def make_examples(batch: pa.RecordBatch) -> pa.Table:
    """Derives the columns of the fields and slices; missing values stay null.

    Args:
        batch: label, I1 .. I13 integers, C1 .. C26 integers or hex codes of 8 digits.
    """
    columns = {"label": batch["label"]}
    for name, bucket in zip(NUMERIC, BUCKETS, strict=True):
        count = batch[name].cast(pa.float64())
        columns[name] = pc.multiply(pc.sign(count), pc.log1p(pc.abs(count)))
        large = pc.floor(pc.power(pc.ln(count), 2))
        columns[bucket] = pc.if_else(pc.greater(count, 2), large, count).cast(
            pa.int64()
        )
    for name in CATEGORICAL:
        is_hex = pa.types.is_fixed_size_binary(batch[name].type)
        codes = _from_hex(batch[name], name) if is_hex else batch[name]
        columns[name] = codes.cast(pa.int64())
    missing = sum(
        batch[name].is_null().to_numpy(zero_copy_only=False).astype(int)
        for name in (*NUMERIC, *CATEGORICAL)
    )
    columns["num_missing"] = ranges(np.asarray(missing), NUM_MISSING)
    return pa.table(columns)


# Value of each byte as a hex digit; 255 = it is none.
_DIGITS = np.full(256, 255, np.uint8)
_DIGITS[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_DIGITS[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)


def _from_hex(codes: pa.Array, column: str) -> pa.Array:
    """Returns the numbers int64 of hex codes of 8 digits; null stays null."""
    full = pc.fill_null(codes, b"0" * 8)
    text = np.frombuffer(full.buffers()[1], np.uint8)[8 * full.offset :]
    digits = _DIGITS[text[: 8 * len(full)].reshape(-1, 8)]
    is_bad = (digits == 255).any(axis=1)
    if is_bad.any():
        found = full[int(np.argmax(is_bad))].as_py()
        raise DataError(
            f"column {column!r} holds {found!r}, expected hex codes of 8 digits"
        )
    values = digits @ (16 ** np.arange(7, -1, -1, dtype=np.int64))
    return pa.array(values, mask=codes.is_null().to_numpy(zero_copy_only=False))


def _find(raw: pathlib.Path, name: str) -> pathlib.Path:
    for candidate in (name,) if name else DEFAULT_FILES:
        if (raw / candidate).is_file():
            return raw / candidate
    found = sorted(path.name for path in raw.iterdir()) if raw.is_dir() else []
    raise DataError(
        f"{raw}: {name or ' and '.join(DEFAULT_FILES)} not there, found {found[:20]}; "
        "pass --file=NAME of a file in --raw"
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("criteo", __doc__)
    parser.add_argument("--file", default="", metavar="NAME", help="file in --raw")
    command.add_min_count(parser, default=2)
    flags = parser.parse_args(arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
