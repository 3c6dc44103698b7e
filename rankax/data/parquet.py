"""Dataset folders on disk: reading one split by row group, and writing a folder.

    <folder>/dataset.json            the card (`rankax.data.card`)
    <folder>/<split>/*.parquet       shards, read in the order of their names

Reading costs one look at the footer of each shard when the split is opened, and
afterwards one decode of the columns in need per row group.
"""

from collections import OrderedDict
import dataclasses
import hashlib
import json
import pathlib
import shutil
import threading
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankax.config.base import suggest
from rankax.data import packing
from rankax.data.card import FILE_NAME, Card, DataError
from rankax.data.schema import Schema

OPEN_FILES = 16  # per reading thread
ROWS_PER_GROUP = 65_536
GROUPS_PER_SHARD = 64


class ParquetSplit:
    """A `rankax.data.source.SplitSource` over `<folder>/<split>/*.parquet`."""

    def __init__(self, folder: str | pathlib.Path, split: str, schema: Schema):
        """Reads the footers of all shards and compares them with the card.

        Raises:
            DataError: no folder, no split, no rows, a shard that is not Parquet, that
                lacks a column or types it differently, or another number of rows than
                the card states.
        """
        card = schema.card
        self.name = f"{card.name}/{split}"
        paths = _shards(pathlib.Path(folder), split, card)
        self._columns = list(packing.needed_columns(schema))
        self._metadata = {path: _footer(path) for path in paths}
        self._check_columns()
        # Empty row groups exist (some writers make them) and hold no example.
        self._groups = [
            (path, i)
            for path, metadata in self._metadata.items()
            for i in range(metadata.num_row_groups)
            if metadata.row_group(i).num_rows
        ]
        self.rows_per_group = np.array(
            [self._metadata[path].row_group(i).num_rows for path, i in self._groups],
            np.int64,
        )
        self._check_rows(int(self.rows_per_group.sum()), split, card)
        self.fingerprint = self._fingerprint(card)
        self._open = threading.local()  # ParquetFile is not safe to share

    def read(self, group: int) -> pa.Table:
        """Returns the columns in need of one row group."""
        path, index = self._groups[group]
        try:
            # Parallelism belongs to the caller's threads: see `rankax.data.lanes`.
            return self._file(path).read_row_group(
                index, columns=self._columns, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: row group {index} cannot be read ({error}); restore the file "
                "or convert the data set again"
            ) from error

    def _file(self, path: pathlib.Path) -> pq.ParquetFile:
        """Returns this thread's handle of a shard; the latest few stay open."""
        if not hasattr(self._open, "files"):
            self._open.files = OrderedDict()
        files: OrderedDict[pathlib.Path, pq.ParquetFile] = self._open.files
        if path not in files:
            files[path] = pq.ParquetFile(
                path, metadata=self._metadata[path], memory_map=True, pre_buffer=False
            )
            if len(files) > OPEN_FILES:
                files.popitem(last=False)[1].close()
        files.move_to_end(path)
        return files[path]

    def _check_columns(self) -> None:
        expected: dict[str, tuple[pa.DataType, pathlib.Path]] = {}
        for path, metadata in self._metadata.items():
            schema = metadata.schema.to_arrow_schema()
            for name in self._columns:
                if name not in schema.names:
                    raise DataError(
                        f"{path}: column {name!r} is missing; "
                        f"{suggest(name, schema.names)}"
                    )
                found = schema.field(name).type
                first, first_path = expected.setdefault(name, (found, path))
                if found != first:
                    raise DataError(
                        f"{path}: column {name!r} has type {found}, but {first} in "
                        f"{first_path.name}; write all shards of a split with one "
                        "schema"
                    )

    def _check_rows(self, found: int, split: str, card: Card) -> None:
        expected = card.splits[split].num_rows
        if not found:
            raise DataError(
                f"{self.name}: the split is empty, {len(self._metadata)} shards hold "
                "no row; convert the data set again with rows in this split"
            )
        if found != expected:
            raise DataError(
                f"{self.name}: {len(self._metadata)} shards hold {found} rows, "
                f"{FILE_NAME} says {expected}; "
                + ("a shard is missing" if found < expected else "a shard is too many")
                + ", restore the folder or convert the data set again"
            )

    def _fingerprint(self, card: Card) -> str:
        shards = [
            (path.name, path.stat().st_size, _rows_of(metadata))
            for path, metadata in self._metadata.items()
        ]
        # How results are cut into slices is not part of the data.
        card = dataclasses.replace(card, slices=())
        text = json.dumps([card.to_json(), self.name, shards])
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _shards(folder: pathlib.Path, split: str, card: Card) -> list[pathlib.Path]:
    if split not in card.splits:
        raise DataError(
            f"data set {card.name!r} has no split {split!r}; "
            f"{suggest(split, tuple(card.splits))}"
        )
    if not (folder / split).is_dir():
        raise DataError(
            f"{folder / split} is missing, but {FILE_NAME} names the split; restore "
            "the folder or convert the data set again"
        )
    paths = sorted((folder / split).glob("*.parquet"))
    if not paths:
        raise DataError(
            f"{folder / split} holds no *.parquet file; restore the folder or convert "
            "the data set again"
        )
    return paths


def _footer(path: pathlib.Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a readable Parquet file ({error}); remove it or convert "
            "the data set again"
        ) from error


def _rows_of(metadata: pq.FileMetaData) -> list[int]:
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


class DatasetWriter:
    """Writes a dataset folder that appears whole or not at all.

    Rows go to a hidden folder beside the target, which `finish` completes with the
    card and renames. Leaving the `with` block without `finish` removes it.

        with DatasetWriter("datasets/mine") as writer:
            writer.write("train", table)  # as often as needed, any number of rows
            writer.finish(card)
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        *,
        overwrite: bool = False,
        rows_per_group: int = ROWS_PER_GROUP,
    ):
        """Prepares the folder.

        Raises:
            DataError: the target exists and is not to be overwritten, or is something
                else than a dataset folder.
        """
        self.folder = pathlib.Path(folder)
        self.rows_per_group = rows_per_group
        _check_target(self.folder, overwrite=overwrite)
        self._partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._splits: dict[str, _SplitWriter] = {}

    def __enter__(self) -> "DatasetWriter":
        if self._partial.exists():  # of a run that was killed
            shutil.rmtree(self._partial)
        self._partial.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for split in self._splits.values():
            split.abandon()  # of no effect after `finish`
        shutil.rmtree(self._partial, ignore_errors=True)

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split so far."""
        return {name: split.num_rows for name, split in self._splits.items()}

    def write(self, split: str, table: pa.Table) -> None:
        """Appends rows; every table of a split has the same schema."""
        if split not in self._splits:
            self._splits[split] = _SplitWriter(
                self._partial / split, self.rows_per_group
            )
        self._splits[split].write(table)

    def extra_file(self, name: str) -> pathlib.Path:
        """Returns where to write one more file, for example "vocabularies/a.csv"."""
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def finish(self, card: Card) -> None:
        """Writes the card and moves the folder to its place.

        Raises:
            DataError: the card's splits are not the rows that were written.
        """
        for split in self._splits.values():
            split.finish()
        stated = {name: split.num_rows for name, split in card.splits.items()}
        if stated != self.num_rows:
            raise DataError(
                f"card {card.name!r} states rows {stated}, written were {self.num_rows}"
            )
        card.save(self._partial)
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self._partial.rename(self.folder)


class _SplitWriter:
    """Regroups tables of any size to row groups and shards of fixed sizes."""

    def __init__(self, folder: pathlib.Path, rows_per_group: int):
        self.num_rows = 0
        self._folder = folder
        self._rows_per_group = rows_per_group
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._num_groups = 0
        self._writer: pq.ParquetWriter | None = None
        folder.mkdir()

    def write(self, table: pa.Table) -> None:
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        self.num_rows += table.num_rows
        if self._num_waiting >= self._rows_per_group:
            whole = self._num_waiting // self._rows_per_group * self._rows_per_group
            self._flush(whole)

    def finish(self) -> None:
        self._flush(self._num_waiting)
        self.abandon()

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _flush(self, num_rows: int) -> None:
        if not num_rows:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting = [rows.slice(num_rows)]
        self._num_waiting -= num_rows
        for start in range(0, num_rows, self._rows_per_group):
            stop = min(start + self._rows_per_group, num_rows)
            self._write_group(rows.slice(start, stop - start))

    def _write_group(self, group: pa.Table) -> None:
        if self._num_groups % GROUPS_PER_SHARD == 0:
            if self._writer is not None:
                self._writer.close()
            shard = self._num_groups // GROUPS_PER_SHARD
            self._writer = pq.ParquetWriter(
                self._folder / f"{shard:05d}.parquet", group.schema
            )
        assert self._writer is not None
        self._writer.write_table(group, row_group_size=self._rows_per_group)
        self._num_groups += 1


def _check_target(folder: pathlib.Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise DataError(
            f"{folder} exists; choose another folder, or pass --overwrite to replace it"
        )
    # Deleting what we did not write would be unforgivable.
    if not (folder / FILE_NAME).is_file():
        raise DataError(
            f"{folder} exists and is not a dataset folder ({FILE_NAME} is missing); "
            "it will not be replaced, choose another folder"
        )
