"""Writing a dataset folder, on a disk or an object store, whole or not at all."""

from collections import Counter
from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from types import TracebackType
from typing import Any

import pyarrow as pa

from rankax.data import shards, storage
from rankax.data.card import FILE_NAME, Card
from rankax.data.errors import DataError
from rankax.data.shards import PartWriter, ShardWriter
from rankax.data.storage import Location

ROWS_PER_GROUP = 65_536
GROUPS_PER_SHARD = 64
# In a folder that is being written; holds the `inputs` of its writer.
MARKER = ".writing"
SCRATCH = ".scratch"


class DatasetWriter:
    """Writes a dataset folder that appears whole or not at all.

    Rows go to a hidden folder beside the target, which `finish` completes with the
    card and renames. An object store cannot rename: there rows go to their place, and
    `finish` makes it a dataset folder by writing the card last. Leaving the `with`
    block without `finish` removes what was written.

        with DatasetWriter("datasets/mine") as writer:
            writer.write("train", table)  # as often as needed, any number of rows
            writer.finish(card)

    Instead of `write`, the rows can come in numbered parts (`part`), from any number of
    processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Location,
        *,
        overwrite: bool = False,
        rows_per_group: int = ROWS_PER_GROUP,
        inputs: str = "",
    ):
        """Prepares the folder.

        Args:
            folder: local path or URI.
            overwrite: replace the dataset folder that is there. On a disk it stays
                until the new one is finished.
            rows_per_group: rows of a row group; the last one of a shard has fewer.
            inputs: tells what the folder is made from. If not "", the finished parts of
                a writer that was stopped stay, and a writer with the same inputs finds
                them in `records`.

        Raises:
            DataError: the target exists and is not to be overwritten, or is something
                else than a dataset folder.
        """
        self.folder = storage.locate(folder)
        self.rows_per_group = rows_per_group
        self._inputs = inputs
        _check_target(self.folder, overwrite=overwrite)
        self._work = self.folder
        if self.folder.is_local:
            hidden = self.folder.local.with_name(f".{self.folder.name}.partial")
            self._work = storage.locate(hidden)
        self._marker = self._work / MARKER
        self._num_rows: dict[str, int] = {}
        self._open: dict[str, ShardWriter] = {}
        self._is_finished = False

    def __enter__(self) -> "DatasetWriter":
        with contextlib.ExitStack() as stack:
            if self._work.is_local:
                stack.enter_context(_locked(self._work))
            self._prepare()
            self._lock = stack.pop_all()
        return self

    def _prepare(self) -> None:
        same = self._inputs and self._marker.is_file()
        if not (same and self._marker.read_text() == self._inputs):
            # If it is stopped while it clears, the next writer must take what is left
            # neither for its own nor for somebody's files.
            self._marker.write_text("")
            self._work.clear(keep=MARKER)
            self._marker.write_text(self._inputs)
        # For a store, the files beside the shards wait on a disk.
        self._beside = (
            self._work.local
            if self._work.is_local
            else pathlib.Path(tempfile.mkdtemp(prefix="rankax-"))
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            for shard in self._open.values():
                shard.abandon()  # of no effect after `finish`
            if not self._work.is_local:
                shutil.rmtree(self._beside, ignore_errors=True)
            if not (self._is_finished or self._inputs):
                self._work.delete()

    @property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split so far; of parts, those that are finished."""
        total = Counter(self._num_rows)
        for record in self.records().values():
            total.update(record["num_rows"])
        return dict(total)

    def write(self, split: str, table: pa.Table) -> None:
        """Appends rows; every table of a split has the same schema.

        Raises:
            DataError: the disk is full or refuses.
        """
        done = self._num_rows.setdefault(split, 0)
        self._num_rows[split] += table.num_rows
        rows_per_shard = GROUPS_PER_SHARD * self.rows_per_group
        while table.num_rows:
            number, row = divmod(done, rows_per_shard)
            if row == 0:
                self._close(split)
                place = self._work / split / f"{number:05d}.parquet"
                self._open[split] = ShardWriter(place, self.rows_per_group)
            rows = table.slice(0, rows_per_shard - row)
            self._open[split].write(rows)
            done += rows.num_rows
            table = table.slice(rows.num_rows)

    def part(self, number: int) -> PartWriter:
        """Returns the writer of a part, which any process can use that sees the folder.

        Parts and `write` do not go together: both number their shards from 0.
        """
        return PartWriter(self._work, number, self.rows_per_group)

    def records(self) -> dict[int, dict[str, Any]]:
        """Returns the records of the finished parts, in order; reads a file of each."""
        return shards.records(self._work)

    def extra_file(self, name: str) -> pathlib.Path:
        """Returns where to write one more file, for example "vocabularies/a.csv"."""
        path = self._beside / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def scratch(self, name: str) -> pathlib.Path:
        """Returns where to write a file that goes when the folder is finished.

        On a disk it stays as long as finished parts do: see `inputs`.
        """
        return self.extra_file(f"{SCRATCH}/{name}")

    def finish(self, card: Card) -> None:
        """Writes the card and moves the folder to its place.

        Raises:
            DataError: the card's splits are not the rows that were written, or the disk
                is full or refuses.
        """
        for split in self._open:
            self._close(split)
        stated = {name: split.num_rows for name, split in card.splits.items()}
        written = self.num_rows
        if stated != written:
            raise DataError(
                f"card {card.name!r} states rows {stated}, written were {written}"
            )
        (self._work / shards.RECORDS).delete()
        shutil.rmtree(self._beside / SCRATCH, ignore_errors=True)
        if not self._work.is_local:
            self._work.upload(self._beside)
        card.save(self._work)
        self._marker.delete()
        if self._work.is_local:
            storage.replace_folder(self._work.local, self.folder.local)
        self._is_finished = True

    def _close(self, split: str) -> None:
        if split in self._open:
            self._open[split].close()
            self._open[split].publish()


@contextlib.contextmanager
def _locked(folder: Location) -> Iterator[None]:
    """Makes a local folder and keeps other writers off; it may be renamed meanwhile.

    Raises:
        DataError: another process, or this one, writes there, or none can.
    """
    with storage.explained(folder, "cannot be written"):
        folder.local.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder.local, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"{folder} is being written by another process; wait for its end, or "
                "name another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _check_target(folder: Location, *, overwrite: bool) -> None:
    # On a store a writer that was killed leaves the folder itself.
    if not folder.exists() or (folder / MARKER).is_file():
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
