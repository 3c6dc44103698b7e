"""Logs larger than memory: dealt into buckets by user, each of which fits.

A row's history needs the earlier rows of its own user and of nobody else. `deal` goes
over a log once, as a stream, and puts each user's rows into one of `num_buckets`
temporary Parquet files; a bucket is then a part of the conversion. A log of at most
`BUCKET_ROWS` rows stays where it is, as its only bucket. Rows keep their order.

    survey = buckets.survey(files, SCHEMA)
    log = buckets.scan(files, SCHEMA)
    with buckets.scratch(out) as folder:
        parts = buckets.deal(log, "user_id", num_buckets=8, folder=folder)
        first = buckets.read(parts[0], SCHEMA, where=raw)

Polars reads; its lazy frames can be pickled, so a cluster's workers can read as well,
if they see the raw files and the scratch folder under the same names. Each thread or
worker has one bucket in memory.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import pathlib
import shutil
import tempfile

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.engine import raw_files
from rankax.config.base import suggest
from rankax.data import storage
from rankax.data.card import DataError
from rankax.data.dataset_writer import DatasetWriter

BUCKET_ROWS = 2_000_000  # of KuaiRand: some 0.9 GB in memory
CHUNK_ROWS = 65_536


def scan(files: Sequence[pathlib.Path], schema: pa.Schema) -> pl.LazyFrame:
    """Returns the columns of a schema from files that follow each other.

    Args:
        files: CSV with a header, or Parquet.
        schema: of int64, float64 and string columns. Where an integer may be null, CSV
            is read as float64, since such integers stand there as 9.0; `read` makes
            integers of them.

    Raises:
        DataError: a file or a column is missing, or a column of Parquet is no number.
    """
    return pl.concat([_scan_one(file, schema) for file in files])


def _scan_one(file: pathlib.Path, schema: pa.Schema) -> pl.LazyFrame:
    if not file.is_file():
        raise DataError(f"{file} is missing; --raw must be the folder that holds it")
    types = {field.name: _polars_type(field) for field in schema}
    with _explained(file):
        if file.suffix == ".parquet":
            frame = pl.scan_parquet(file, glob=False)
        else:
            frame = pl.scan_csv(
                file, schema_overrides=types, infer_schema=False, glob=False
            )
        found = frame.collect_schema()
    for name, wanted in types.items():
        if name not in found:
            raise DataError(
                f"{file}: column {name!r} is missing; {suggest(name, found.names())}"
            )
        is_number = found[name].is_integer() or found[name] == wanted
        if wanted.is_numeric() and not is_number:
            raise DataError(
                f"{file}: column {name!r} has type {found[name]}, expected {wanted}"
            )
    return frame.select(pl.col(name).cast(kind) for name, kind in types.items())


def _polars_type(field: pa.Field) -> pl.DataType:
    if field.type == pa.string():
        return pl.String()
    is_whole = field.type == pa.int64() and not field.nullable
    return pl.Int64() if is_whole else pl.Float64()


def survey(
    files: Sequence[pathlib.Path], schema: pa.Schema, *figures: pl.Expr
) -> list[dict]:
    """Reads all files once, and returns the number of rows and more figures of each.

    Returns:
        A dictionary for each file: "num_rows" and the figures by their names.

    Raises:
        DataError: what `scan` raises, or a file with a value of another type or with a
            null in a column that must not have one.
    """
    result = []
    required = [field.name for field in schema if not field.nullable]
    for file in files:
        lazy = scan([file], schema).select(
            pl.len().alias("num_rows"),
            *(pl.col(name).null_count().name.prefix("nulls ") for name in required),
            *figures,
        )
        with _explained(file):
            (found,) = lazy.collect(engine="streaming").to_dicts()
        for name in required:
            if count := found.pop(f"nulls {name}"):
                raise DataError(
                    f"{file}: column {name!r} has {count} null values; every row "
                    "needs one"
                )
        result.append(found)
    return result


def number_for(num_rows: int, num_buckets: int) -> int:
    """Returns how many buckets there shall be; 0 asks for as many as are needed."""
    if num_buckets < 0:
        raise DataError(f"--num_buckets={num_buckets}: expected 0 or more")
    return num_buckets or max(1, -(-num_rows // BUCKET_ROWS))


def add_num_buckets(parser: argparse.ArgumentParser) -> None:
    """Adds --num_buckets."""
    parser.add_argument(
        "--num_buckets",
        type=int,
        default=0,
        metavar="N",
        help="deal the users into N parts, one of which is in memory at a time "
        f"(default: one for {BUCKET_ROWS:,} rows of the log)",
    )


def deal(
    log: pl.LazyFrame, user: str, *, num_buckets: int, folder: pathlib.Path
) -> list[pl.LazyFrame]:
    """Deals rows into buckets by an integer column; one bucket is the log itself."""
    if num_buckets == 1:
        return [log]
    key = (pl.col(user) % num_buckets).alias("bucket")
    with _explained(folder):
        log.sink_parquet(
            pl.PartitionBy(folder / "log", key=key, include_key=False),
            maintain_order=True,
            mkdir=True,
        )
    parts = [
        sorted((folder / "log" / f"bucket={bucket}").glob("*.parquet"))
        for bucket in range(num_buckets)
    ]
    return [
        pl.scan_parquet(part, glob=False) if part else log.clear() for part in parts
    ]


def read(
    rows: pl.LazyFrame, schema: pa.Schema, *, where: str | pathlib.Path
) -> pa.Table:
    """Reads rows into memory, with the types of the schema."""
    with _explained(where):
        table = rows.collect(engine="streaming").to_arrow()
        return table.cast(pa.schema([(f.name, f.type) for f in schema]))


def keep(table: pl.LazyFrame, path: pathlib.Path) -> pl.LazyFrame:
    """Writes a large table to a Parquet file of the scratch folder, as a stream."""
    with _explained(path):
        table.sink_parquet(path, mkdir=True)
    return pl.scan_parquet(path, glob=False)


def having(table: pl.LazyFrame, key: str, ids: pa.ChunkedArray) -> pl.LazyFrame:
    """Returns the rows of a large table whose key is one of some ids."""
    wanted = pl.LazyFrame({key: pl.Series(ids)}).unique()
    return table.join(wanted, on=key, how="semi")


def chunks(split: np.ndarray, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yields (name of a split, places of some of its rows), the splits in turn.

    Args:
        split: [n] number of each row's split; others are left out.
        names: of the splits 0, 1, ...
    """
    for number, name in enumerate(names):
        places = np.flatnonzero(split == number)
        for start in range(0, len(places), CHUNK_ROWS):
            yield name, places[start : start + CHUNK_ROWS]


def as_planned(columns: dict, kinds: dict[str, str]) -> pa.Table:
    """Returns the columns that a plan names, with the types of their kinds."""
    table = pa.table(columns)
    found = {
        name: raw_files.column_of(table.schema, name, kind, where="rows").type
        for name, kind in kinds.items()
    }
    return table.select(list(found)).cast(pa.schema(found))


@contextlib.contextmanager
def scratch(
    out: str | pathlib.Path | storage.Location, *, overwrite: bool = False
) -> Iterator[pathlib.Path]:
    """Gives a folder beside the dataset folder to be, and removes it in the end.

    What a killed run has left of it is removed at the start. For a folder in an object
    store it is a new one among the system's temporary files.

    Raises:
        DataError: `out` is there and is not to be overwritten; better told before a
            log is dealt than after.
    """
    DatasetWriter(out, overwrite=overwrite)
    place = storage.locate(out)
    if place.is_local:
        folder = place.local.with_name(f".{place.name}.buckets")
        shutil.rmtree(folder, ignore_errors=True)
    else:  # stores have folders of one name in several buckets
        folder = pathlib.Path(tempfile.mkdtemp(prefix="rankax-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _explained(where: str | pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
        # The first paragraph says it; the rest of Polars' texts is for programmers.
        text = str(error).partition("\n\n")[0]
        raise DataError(f"{where}: {text}") from error
