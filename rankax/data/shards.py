"""Writing Parquet shards: one file, or all the files of one part of the data.

A shard appears at its place whole or not at all. Its pages carry checksums, which
readers verify, and its footer a digest of the content, so that who has the footer
knows whether the content is the same.
"""

import contextlib
import hashlib
import io
import json
import pathlib
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankax.data import storage
from rankax.data.storage import Location

RECORDS = ".parts"
CONTENT_DIGEST = "rankax.content"


class ShardWriter:
    """Regroups tables of any size to the row groups of one file.

    Without rows there is no file. `finish` publishes it, `abandon` deletes it.
    """

    def __init__(self, place: Location, rows_per_group: int):
        """Makes nothing yet; `place` is the file to write."""
        self.num_rows = 0
        self._place = place
        self._rows_per_group = rows_per_group
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self._draft: storage.Draft | None = None
        self._sink: _Digested | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Appends rows; every table has the same schema.

        Raises:
            DataError: the disk is full or refuses.
        """
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        self.num_rows += table.num_rows
        self._flush(self._num_waiting // self._rows_per_group * self._rows_per_group)

    def close(self) -> None:
        """Completes the file, which `publish` puts to its place."""
        self._flush(self._num_waiting)
        if self._writer is None or self._sink is None:
            return
        with storage.explained(self._place, "cannot be written"):
            digest = self._sink.digest.hexdigest()
            self._writer.add_key_value_metadata({CONTENT_DIGEST: digest})
            self._writer.close()
            self._sink.close()

    def publish(self) -> None:
        """Puts the closed file to its place."""
        if self._draft is not None:
            with storage.explained(self._place, "cannot be written"):
                self._draft.publish()

    def abandon(self) -> None:
        """Deletes what has not been published."""
        # On a full disk, closing fails as writing did.
        with contextlib.suppress(OSError, pa.ArrowException):
            if self._writer is not None:
                self._writer.close()
        with contextlib.suppress(OSError):
            if self._sink is not None:
                self._sink.close()
        if self._draft is not None:
            self._draft.discard()

    def _flush(self, num_rows: int) -> None:
        if not num_rows:
            return
        rows = pa.concat_tables(self._waiting)
        self._waiting = [rows.slice(num_rows)]
        self._num_waiting -= num_rows
        with storage.explained(self._place, "cannot be written"):
            if self._writer is None:
                self._draft = storage.Draft(self._place)
                self._sink = _Digested(self._draft.path)
                self._writer = pq.ParquetWriter(
                    self._sink, rows.schema, write_page_checksum=True
                )
            self._writer.write_table(
                rows.slice(0, num_rows), row_group_size=self._rows_per_group
            )


class _Digested(io.BufferedWriter):
    """A file that keeps a digest of what is written to it."""

    def __init__(self, path: pathlib.Path):
        super().__init__(io.FileIO(path, "wb"))
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return super().write(data)


class PartWriter:
    """Writes part i of a data set: of every split the shard i, and then a record.

    It can be sent to another process before it is entered. Who writes a part again
    replaces it. A part without a record has not been finished.

        with writer.part(3) as part:
            part.write("train", table)  # as often as needed, any number of rows
            part.finish({"positives": 17})
    """

    def __init__(self, folder: Location, part: int, rows_per_group: int):
        """Makes nothing yet; `folder` is what a `DatasetWriter` works in."""
        self._folder = folder
        self._part = part
        self._rows_per_group = rows_per_group
        self._shards: dict[str, ShardWriter] = {}

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for shard in self._shards.values():
            shard.abandon()  # of no effect after `finish`

    def write(self, split: str, table: pa.Table) -> None:
        """Appends rows of a split; every table of a split has the same schema."""
        if split not in self._shards:
            place = self._folder / split / f"{self._part:05d}.parquet"
            self._shards[split] = ShardWriter(place, self._rows_per_group)
        self._shards[split].write(table)

    def finish(self, record: dict[str, Any]) -> dict[str, Any]:
        """Publishes the shards, then the record: JSON values about this part.

        Returns:
            The record with "num_rows": split -> rows.
        """
        for shard in self._shards.values():
            shard.close()
        for shard in self._shards.values():
            shard.publish()
        num_rows = {name: shard.num_rows for name, shard in self._shards.items()}
        record = {"num_rows": {k: n for k, n in num_rows.items() if n}, **record}
        (self._folder / RECORDS / f"{self._part:05d}.json").write_text(
            json.dumps(record)
        )
        return record


def records(folder: Location) -> dict[int, dict[str, Any]]:
    """Returns the records of the finished parts of a folder, in order."""
    return {
        int(place.name.removesuffix(".json")): json.loads(place.read_text())
        for place in (folder / RECORDS).files(".json")
    }
