"""Reading a split of a dataset folder, on a disk or an object store, by row group.

    <folder>/dataset.json            the card (`rankax.data.card`)
    <folder>/<split>/*.parquet       shards, read in the order of their names

Reading costs one look at the footer of each shard when the split is opened, and
afterwards one decode of the columns in need per row group, for which a store is asked
for the bytes of these columns only.
"""

from collections import OrderedDict
from collections.abc import Sequence
from concurrent import futures
import dataclasses
import hashlib
import json
import os
import threading
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankax.config.base import suggest
from rankax.data import packing, storage
from rankax.data.card import FILE_NAME, Card
from rankax.data.columns import Columns, text_ids
from rankax.data.errors import DataError
from rankax.data.schema import Schema
from rankax.data.storage import Location

OPEN_FILES = 16  # per reading thread
FOOTER_THREADS = 16  # for a store, where each look takes a round trip
FOOTER_BYTES = 2**19  # read at once from the end of a file; most footers are smaller


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A shard, or a row group of one, that a split does without.

    Attributes:
        file: name of the shard.
        row_group: its number in the shard; -1 = the whole shard.
        num_rows: what is lost; -1 = unknown, for the shard does not even tell that.
        why: what is wrong with it.
    """

    file: str
    row_group: int
    num_rows: int
    why: str

    def __str__(self) -> str:
        part = f" row group {self.row_group}" if self.row_group >= 0 else ""
        rows = f", {self.num_rows:,} rows" if self.num_rows >= 0 else ""
        return f"{self.file}{part}{rows} ({self.why})"


class ParquetSplit:
    """A `rankax.data.source.SplitSource` over `<folder>/<split>/*.parquet`."""

    def __init__(
        self,
        folder: str | os.PathLike[str] | Location,
        split: str,
        schema: Schema,
        *,
        left_out: Sequence[LeftOut] = (),
    ):
        """Reads the footers of all shards and compares them with the card.

        Args:
            folder: the dataset folder.
            split: name of the split.
            schema: fields and tasks in use.
            left_out: what to do without (`rankax.data.quarantine`).

        Raises:
            DataError: no folder, no split, no rows, a shard that is not Parquet, that
                lacks a column or types it differently, or another number of rows than
                the card states.
        """
        card = schema.card
        self.name = f"{card.name}/{split}"
        without = {(entry.file, entry.row_group) for entry in left_out}
        places = [
            place
            for place in shards(folder, split, card)
            if (place.name, -1) not in without
        ]
        self._columns = list(packing.needed_columns(schema))
        self._labels = [label.column or label.name for label in schema.labels]
        self._time = card.time
        footers = _footers(places)
        self._metadata = {
            place: footer.metadata
            for place, footer in zip(places, footers, strict=True)
        }
        self._files = {
            place: (footer.size_bytes, footer.modified_nanoseconds)
            for place, footer in zip(places, footers, strict=True)
        }
        kinds = self._check_columns()
        # Empty row groups exist (some writers make them) and hold no example.
        self._groups = [
            (place, i)
            for place, metadata in self._metadata.items()
            for i in range(metadata.num_row_groups)
            if metadata.row_group(i).num_rows and (place.name, i) not in without
        ]
        self.rows_per_group = np.array(
            [self._metadata[place].row_group(i).num_rows for place, i in self._groups],
            np.int64,
        )
        self._check_rows(int(self.rows_per_group.sum()), split, card, left_out)
        self.text_ids = text_ids(kinds, schema)
        digests = [footer.digest for footer in footers]
        self.fingerprint = self._fingerprint(card, digests, sorted(without))
        self._verified: set[int] = set()  # row groups
        self._open = threading.local()  # ParquetFile is not safe to share

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _open=threading.local())

    def read(self, group: int) -> pa.Table:
        """Returns the columns in need of one row group."""
        return self._read(group, self._columns)

    def times(self, group: int) -> np.ndarray:
        """Returns the card's time column [n] int64 of one row group."""
        table = self._read(group, [self._time])
        return Columns(table, self.where(group)).times(self._time)

    def time_range(self, group: int) -> tuple[int, int] | None:
        """Returns its least and its largest time, if the footer tells them."""
        place, index = self._groups[group]
        metadata = self._metadata[place]
        schema = metadata.schema
        paths = [schema.column(i).path for i in range(len(schema))]
        column = paths.index(self._time)
        found = metadata.row_group(index).column(column).statistics
        unit = _microseconds(schema.column(column))
        if not unit or found is None or not found.has_min_max or found.null_count:
            return None
        return found.min_raw * unit, found.max_raw * unit

    def place(self, group: int) -> tuple[Location, int]:
        """Returns the file of a row group and its number there."""
        return self._groups[group]

    def where(self, group: int) -> str:
        """Names a row group in messages: data set, split, file."""
        place, index = self._groups[group]
        return f"{self.name}, {place.name} row group {index}"

    def _read(self, group: int, columns: list[str]) -> pa.Table:
        place, index = self._groups[group]
        # Checksums cost a quarter of the decoding, so they are looked at once.
        verify = group not in self._verified
        try:
            self._check_unchanged(place)
            # Parallelism belongs to the caller's threads: see `rankax.data.lanes`.
            table = self._file(place, verify=verify).read_row_group(
                index, columns=columns, use_threads=False
            )
        except (pa.ArrowException, OSError) as error:
            todo = "restore the file or convert the data set again"
            raise DataError(
                f"{place}: row group {index} cannot be read ({error}); "
                f"{storage.advice(error, todo)}"
            ) from error
        if columns is self._columns:
            self._verified.add(group)
        return table

    def _check_unchanged(self, place: Location) -> None:
        """Raises if a file has been written since the split was opened.

        Files are mapped into memory: reading past the end would end the process, and
        other examples in the same places would be taken for those of the plan.
        """
        if not place.is_local:
            return
        found, (size_bytes, modified_nanoseconds) = (
            place.local.stat(),
            self._files[place],
        )
        if found.st_size != size_bytes:
            raise OSError("its size has changed since the split was opened")
        if found.st_mtime_ns != modified_nanoseconds:
            raise OSError("it has been written again since the split was opened")

    def _file(self, place: Location, *, verify: bool) -> pq.ParquetFile:
        """Returns this thread's handle of a shard; the latest few stay open."""
        if not hasattr(self._open, "files"):
            self._open.files = OrderedDict()
        files: OrderedDict[tuple[str, bool], pq.ParquetFile] = self._open.files
        key = (place.path, verify)
        if key not in files:
            files[key] = pq.ParquetFile(
                place.path,
                filesystem=place.filesystem,
                metadata=self._metadata[place],
                pre_buffer=not place.is_local,  # one request for adjacent columns
                page_checksum_verification=verify,
            )
            # A handle of a store keeps the bytes that it fetched last.
            if len(files) > (OPEN_FILES if place.is_local else 1):
                files.popitem(last=False)[1].close()
        files.move_to_end(key)
        return files[key]

    def _check_columns(self) -> dict[str, pa.DataType]:
        """Returns the types of the columns in need, which all shards have alike."""
        expected: dict[str, tuple[pa.DataType, Location]] = {}
        for place, metadata in self._metadata.items():
            schema = metadata.schema.to_arrow_schema()
            for name in self._columns:
                if schema.names.count(name) > 1:
                    raise DataError(
                        f"{place}: {schema.names.count(name)} columns are named "
                        f"{name!r}; rename all but one"
                    )
                if name not in schema.names:
                    there = ""
                    if name in expected:
                        there = f", but {expected[name][1].name} has it"
                    advice = suggest(name, schema.names)
                    if name in self._labels:
                        advice += (
                            ". It is a label: examples without labels, which are only "
                            f'to be scored, need "labels": [] in {FILE_NAME}'
                        )
                    raise DataError(
                        f"{place}: column {name!r} is missing{there}; {advice}"
                    )
                found = schema.field(name).type
                first, first_place = expected.setdefault(name, (found, place))
                if found != first:
                    raise DataError(
                        f"{place}: column {name!r} has type {found}, but {first} in "
                        f"{first_place.name}; write all shards of a split with one "
                        "schema"
                    )
        return {name: kind for name, (kind, _) in expected.items()}

    def _check_rows(
        self, found: int, split: str, card: Card, left_out: Sequence[LeftOut]
    ) -> None:
        expected = card.splits[split].num_rows
        lost = [entry.num_rows for entry in left_out if entry.num_rows >= 0]
        is_unknown = len(lost) < len(left_out)  # of shards that cannot even tell
        expected -= sum(lost)
        if found and is_unknown and found <= expected:
            return
        if not found:
            raise DataError(
                f"{self.name}: the split is empty, {len(self._metadata)} shards hold "
                "no row; convert the data set again with rows in this split"
            )
        if found != expected:
            raise DataError(
                f"{self.name}: {len(self._metadata)} shards hold {found} rows, "
                f"{FILE_NAME} says {expected}"
                + (f" without the {sum(lost)} left out; " if lost else "; ")
                + ("a shard is missing" if found < expected else "a shard is too many")
                + ", restore the folder or convert the data set again"
            )

    def _fingerprint(
        self, card: Card, digests: list[str], without: list[tuple[str, int]]
    ) -> str:
        names = [place.name for place in self._metadata]
        # How results are cut into slices is not part of the data.
        card = dataclasses.replace(card, slices=())
        parts = [card.to_json(), self.name, names, digests]
        if without:
            parts.append(without)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _microseconds(column: pq.ColumnSchema) -> int:
    """Returns the factor that makes stored times those of `Columns.times`.

    0 = there is none: unsigned, or nanoseconds, which are rounded.
    """
    if column.physical_type not in ("INT32", "INT64"):
        return 0
    kind = json.loads(column.logical_type.to_json())
    if kind["Type"] == "Date":
        return 86_400_000_000
    if kind["Type"] == "Timestamp":
        return {"milliseconds": 1000, "microseconds": 1}.get(kind["timeUnit"], 0)
    is_signed = kind["Type"] == "None" or (kind["Type"] == "Int" and kind["isSigned"])
    return int(is_signed)


def shards(
    folder: str | os.PathLike[str] | Location, split: str, card: Card
) -> list[Location]:
    """Returns the shards of a split in their order.

    Raises:
        DataError: there is no such split, it holds none, or one outside the folder.
    """
    folder = storage.locate(folder)
    if split not in card.splits:
        raise DataError(
            f"data set {card.name!r} has no split {split!r}; "
            f"{suggest(split, tuple(card.splits))}"
        )
    if not (folder / split).is_folder():
        raise DataError(
            f"{folder / split} is missing, but {FILE_NAME} names the split; restore "
            "the folder or convert the data set again"
        )
    places = (folder / split).files(".parquet")
    if not places:
        raise DataError(
            f"{folder / split} holds no *.parquet file; restore the folder or convert "
            "the data set again"
        )
    for place in places:
        if place.leaves(folder):
            raise DataError(
                f"{place} is a link that leads out of the dataset folder {folder}; "
                "copy what it leads to"
            )
    return places


class Footer(NamedTuple):
    """What stands at the end of a shard.

    It tells sizes and the least and the largest values, and with shards of ours the
    digest of the content (`rankax.data.shards`).
    """

    metadata: pq.FileMetaData
    digest: str
    size_bytes: int
    modified_nanoseconds: int  # 0 on a store


def _footers(places: list[Location]) -> list[Footer]:
    if places[0].is_local:
        return [footer(place) for place in places]
    with futures.ThreadPoolExecutor(FOOTER_THREADS) as pool:
        return list(pool.map(footer, places))


def footer(place: Location) -> Footer:
    """Reads the end of a shard.

    Raises:
        DataError: it is not a Parquet file, or cannot be reached.
    """
    with storage.explained(place, "cannot be read"), place.open() as file:
        modified_nanoseconds = place.local.stat().st_mtime_ns if place.is_local else 0
        size = file.size()
        end = file.read_at(min(size, FOOTER_BYTES), max(size - FOOTER_BYTES, 0))
        # Thrift metadata, its length in 4 bytes, "PAR1".
        length = int.from_bytes(end[-8:-4], "little") + 8
        if end.endswith(b"PAR1") and len(end) < length <= size:
            end = file.read_at(length, size - length)
    try:
        metadata = pq.read_metadata(pa.BufferReader(end))
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{place} is not a readable Parquet file ({error}); remove it or convert "
            "the data set again"
        ) from error
    # The bytes themselves: what another version of Arrow makes of them may differ.
    digest = hashlib.sha256(end[-length:]).hexdigest()
    return Footer(metadata, digest, size, modified_nanoseconds)
