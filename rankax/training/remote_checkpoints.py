"""Checkpoints in a folder on a store, by way of a temporary folder on this machine.

Orbax writes to disks and to gs:// alone. So it saves to the temporary folder; a thread
then puts the files on the store, `commit_success.txt` last: a checkpoint without it is
not complete, and is deleted after the next save. Names and files are those that Orbax
makes on a disk, so that a run folder may be copied from one to the other.

The disk has to hold one checkpoint, and another while one is restored.
"""

from collections.abc import Callable, Iterable
import re
import shutil
import threading
from typing import Any

from etils import epath
import jax

from rankax.config.base import ConfigError
from rankax.observe import stores

_COMPLETE = "commit_success.txt"
# The bulk of a checkpoint; Orbax finds its way, and what we recorded, without it.
_ARRAYS = re.compile(r"/ocdbt\.process_\d+/d/")
# In memory while they are sent: of each file at a time up to ten parts.
_FILES_AT_ONCE, _PART_BYTES = 2, 2**24


class RemoteCheckpoints:
    """Keeps the store and the temporary folder `path` in line.

    Attributes:
        path: where Orbax works. Of the checkpoints found on the store it has
            everything but the arrays, which `fetch` gets.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Gets what the store holds.

        Raises:
            ConfigError: a run of several processes, which need one disk to save to.
            StoreError: the store does not do what it is asked.
        """
        if jax.process_count() > 1:
            raise ConfigError(
                f"{folder}: a run of {jax.process_count()} processes cannot save to a "
                "store, because they write a checkpoint together; choose a folder on a "
                "file system that all of them mount, such as NFS"
            )
        self._folder = folder
        self._store, self._root = stores.filesystem(folder)
        self._scratch = stores.Scratch()
        self.path = self._scratch.path
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        listed = self._listed()
        complete = {name.partition("/")[0] for name in listed if _is_mark(name)}
        self._get(
            name
            for name in listed
            if name.partition("/")[0] in complete and not _ARRAYS.search(name)
        )

    def fetch(self, step: int) -> None:
        """Gets the arrays of a checkpoint, if they are not there yet."""
        self._get(
            name
            for name in self._listed(f"{step}/")
            if _ARRAYS.search(name) and not (self.path / name).exists()
        )

    def put(self, name: str) -> None:
        """Puts one file of a checkpoint over that on the store, whole or not at all."""
        with stores.explained(self._folder, "cannot be written"):
            self._store.put(str(self.path / name), f"{self._root}/{name}")

    def publish(self, step: int, wait_for_save: Callable[[], Any]) -> None:
        """Starts bringing the store up to date with a save that has begun."""

        def publish() -> None:
            try:
                wait_for_save()
                with stores.explained(self._folder, "cannot be written"):
                    self._put(step)
                    self._drop()
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=publish, name="publish checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when the store is up to date.

        Raises:
            StoreError: it could not be brought up to date.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Deletes the temporary folder."""
        self._scratch.close()

    def _listed(self, prefix: str = "") -> list[str]:
        """Names of the store's objects, with a step's number and "/" in front."""
        with stores.explained(self._folder, "cannot be listed"):
            found = self._store.find(f"{self._root}/{prefix}".rstrip("/"))
        names = (path.removeprefix(f"{self._root}/") for path in found)
        return [name for name in names if re.match(r"\d+/.", name)]

    def _get(self, names: Iterable[str]) -> None:
        names = list(names)
        targets = [self.path / name for name in names]
        for target in targets:
            target.parent.mkdir(parents=True, exist_ok=True)
        with stores.explained(self._folder, "cannot be read"):
            self._store.get(
                [f"{self._root}/{name}" for name in names], [str(t) for t in targets]
            )

    def _put(self, step: int) -> None:
        """Puts a saved checkpoint in an order that never shows a broken one.

        A save of this step that was cut off has left files of other names.
        """
        files = (self.path / str(step)).rglob("*")
        names = [str(f.relative_to(self.path)) for f in files if f.is_file()]
        arrays = [name for name in names if "/d/" in name]
        others = [n for n in names if "/d/" not in n and not _is_mark(n)]
        for group in (arrays, others, [f"{step}/{_COMPLETE}"]):
            self._store.put(
                [str(self.path / name) for name in group],
                [f"{self._root}/{name}" for name in group],
                batch_size=_FILES_AT_ONCE,
                chunksize=_PART_BYTES,
            )
        self._remove(set(self._listed(f"{step}/")) - set(names))

    def _drop(self) -> None:
        """Deletes the arrays here, and on the store what Orbax has dropped here."""
        for arrays in self.path.glob("*/*/ocdbt.process_*/d"):
            shutil.rmtree(arrays)
        kept = {path.name for path in self.path.iterdir()}
        dropped = {n for n in self._listed() if n.partition("/")[0] not in kept}
        # A deletion that is cut off must not leave half a checkpoint that looks whole.
        marks = {name for name in dropped if _is_mark(name)}
        self._remove(marks)
        self._remove(dropped - marks)

    def _remove(self, names: set[str]) -> None:
        if names:
            self._store.rm([f"{self._root}/{name}" for name in sorted(names)])


def _is_mark(name: str) -> bool:
    return re.fullmatch(rf"\d+/{re.escape(_COMPLETE)}", name) is not None
