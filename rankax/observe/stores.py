"""Run folders on a disk or an object store, by one type of path.

    runs/dcnv2, /data/runs/dcnv2     a disk
    s3://bucket/runs/dcnv2           Amazon S3 and what speaks its protocol
    gs://bucket/runs/dcnv2           Google Cloud Storage

Credentials and AWS_ENDPOINT_URL count as they do for data (`rankax.data.storage`). An
object appears whole or not at all, is never appended to, and has no folder around it.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import importlib.util
import os
import pathlib
import shutil
import tempfile
import time
from typing import Any

from etils import epath
import fsspec
import fsspec.config

from rankax.config.base import ConfigError
from rankax.data import storage

# An installed TensorFlow would be asked first, and reads s3:// by a plug-in alone.
os.environ.setdefault("EPATH_USE_TF", "false")

DRAFT = ".part"  # ends the name of a file that is not whole yet

_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
_SECONDS_TO_LOCK = 60.0  # by then a new temporary folder is locked by its process


class StoreError(OSError):
    """A store that did not do what a run asked of it; says what to do."""


def locate(folder: epath.PathLike) -> epath.Path:
    """Returns the path of a run folder, there or not.

    Raises:
        ConfigError: a URI that runs cannot use, or one whose package is missing.
    """
    text = os.fspath(folder)
    scheme, separator, _ = text.partition("://")
    if not separator:
        return epath.Path(text)
    package = _PACKAGES.get(scheme)
    if package is None:
        raise ConfigError(
            f"{text}: a run folder cannot be on {scheme}://; use a local path, s3:// "
            "or gs://"
        )
    if "?" in text:
        raise ConfigError(
            f"{text}: a run folder has no options after a '?'; name another server "
            "than Amazon's by AWS_ENDPOINT_URL"
        )
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{text} needs the package {package}: pip install 'rankax[{scheme}]'"
        )
    # What one process has listed, another may have changed since.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    return epath.Path(text)


def is_on_disk(path: epath.Path) -> bool:
    """Tells whether a path is one of this machine's, not of a store."""
    return "://" not in os.fspath(path)


def filesystem(path: epath.Path) -> tuple[Any, str]:
    """Returns the fsspec file system of a path on a store, and the path within it."""
    return fsspec.url_to_fs(os.fspath(path))


def name_of(folder: epath.Path) -> str:
    """Returns the name of a run folder; that of "." is the current folder's."""
    return (folder.resolve() if is_on_disk(folder) else folder).name


@contextlib.contextmanager
def explained(path: epath.Path, what: str) -> Iterator[None]:
    """Makes any error of a store one that says what to do; a disk's stay as they are.

    Only what the store does may stand in the `with` block: each client has errors of
    its own, so that all are taken for errors of the store.
    """
    try:
        yield
    except (ConfigError, StoreError):
        raise
    except Exception as error:
        if is_on_disk(path):
            raise
        todo = storage.advice(error, "check the path and the rights on it")
        # Some errors have no text but their name.
        said = str(error) or type(error).__name__
        raise StoreError(f"{path} {what} ({said}); {todo}") from error


def is_there(path: epath.Path) -> bool:
    """Tells whether a file is there; a bucket that is not there is an error."""
    with explained(path, "cannot be read"):
        if path.exists():
            return True
        if not is_on_disk(path):
            store, inner = filesystem(path)
            # Whoever may not list the whole bucket is told nothing about it.
            with contextlib.suppress(PermissionError):
                store.ls(inner.partition("/")[0])
    return False


def read_text(path: epath.Path) -> str:
    """Returns the content of a text file."""
    with explained(path, "cannot be read"):
        return path.read_text()


def write_text(path: epath.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    if is_on_disk(path):
        draft = path.with_name(path.name + DRAFT)
        try:
            draft.write_text(text)
            os.replace(draft, path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        return
    with explained(path, "cannot be written"):
        path.write_text(text)


def delete(path: epath.Path) -> None:
    """Deletes a file if it is there."""
    if is_there(path):
        with explained(path, "cannot be deleted"):
            path.unlink()


class Scratch:
    """A temporary folder; those of killed processes go when the next one is made.

    Attributes:
        path: the folder, where TMPDIR says.
    """

    _PREFIX = "rankax-scratch-"

    def __init__(self) -> None:
        """Makes the folder."""
        self._remove_leftovers()
        self._folder = tempfile.TemporaryDirectory(prefix=self._PREFIX)
        self._lock = os.open(f"{self._folder.name}/lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = pathlib.Path(self._folder.name) / "files"
        self.path.mkdir()

    def _remove_leftovers(self) -> None:
        for path in pathlib.Path(tempfile.gettempdir()).glob(f"{self._PREFIX}*/lock"):
            with contextlib.suppress(OSError), path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_new = time.time() - path.stat().st_mtime < _SECONDS_TO_LOCK
                if not is_new:
                    shutil.rmtree(path.parent, ignore_errors=True)

    def close(self) -> None:
        """Deletes the folder."""
        self._folder.cleanup()
        os.close(self._lock)


class Outbox:
    """Where to write files that a run folder is to hold, and go on writing to them.

    Attributes:
        path: the run folder itself, or, if that is on a store, a temporary folder,
            whose files `send` puts there.
    """

    def __init__(self, folder: epath.Path) -> None:
        """Takes the run folder."""
        self._folder = folder
        self._scratch = None if is_on_disk(folder) else Scratch()
        self.path = self._scratch.path if self._scratch else pathlib.Path(folder)

    def send(self) -> None:
        """Puts every file, as far as it is written, over the one on the store."""
        if self._scratch is None:
            return
        files = [path for path in self.path.iterdir() if path.is_file()]
        with explained(self._folder, "cannot be written"):
            store, root = filesystem(self._folder)
            store.put([str(p) for p in files], [f"{root}/{p.name}" for p in files])

    def close(self) -> None:
        """Deletes the temporary folder."""
        if self._scratch is not None:
            self._scratch.close()
