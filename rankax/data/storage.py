"""Files and folders on a disk or an object store, by one kind of name.

    /data/mine, file:///data/mine    a disk
    s3://bucket/prefix               Amazon S3 and what speaks its protocol
    gs://bucket/prefix               Google Cloud Storage
    <scheme>://...                   whatever fsspec finds installed

Credentials come from where the tools of each store look for them. Another S3 server
is named by AWS_ENDPOINT_URL, or by `?endpoint_override=host:port&scheme=http`.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import tempfile

import pyarrow as pa
from pyarrow import fs

from rankax.data.errors import DataError

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")
# Google's client tries for 15 minutes, too long for somebody who looks at a terminal.
_GS_RETRY = "retry_limit_seconds=60"
_ADVICE = {
    "NO_SUCH_BUCKET|[Bb]ucket not found|bucket does not exist": (
        "the bucket does not exist; check its name and region, or make it"
    ),
    "ACCESS_DENIED|Access Denied|INVALID_ACCESS_KEY|Access Key|SIGNATURE|EXPIRED|TOKEN"
    "|PERMISSION_DENIED|UNAUTHENTICATED|[Cc]redential|[Ff]orbidden": (
        "access is refused; for s3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
        "AWS_PROFILE, for gs GOOGLE_APPLICATION_CREDENTIALS, and check the rights"
    ),
    "NETWORK_CONNECTION|UNAVAILABLE|DEADLINE_EXCEEDED|CURL|curl|[Tt]imed out"
    "|[Cc]annot connect|Could not connect|Connection was closed": (
        "the store cannot be reached; check the network and, for another S3 server "
        "than Amazon's, AWS_ENDPOINT_URL"
    ),
    "No space left|quota exceeded|File too large": (
        "free space, or choose a folder on another disk"
    ),
}


@dataclasses.dataclass(frozen=True)
class Location:
    """A file or folder, there or not; made by `locate`, safe to pickle.

    Attributes:
        filesystem: what reads and writes it.
        path: its path in the file system.
        prefix: what a reader has to see before `path`, for example "s3://".
    """

    filesystem: fs.FileSystem = dataclasses.field(compare=False)
    path: str
    prefix: str

    def __str__(self) -> str:
        return self.prefix + self.path

    def __truediv__(self, name: str) -> "Location":
        return dataclasses.replace(self, path=f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The folder that it lies in."""
        path = self.path.rstrip("/").rpartition("/")[0]
        return dataclasses.replace(self, path=path)

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def local(self) -> pathlib.Path:
        """The path of a location on a disk."""
        if not self.is_local:
            raise DataError(f"{self} is not on a disk; choose a folder that is")
        return pathlib.Path(self.path)

    def exists(self) -> bool:
        """Tells whether there is a file or a folder."""
        return self._type() != fs.FileType.NotFound

    def is_file(self) -> bool:
        """Tells whether there is a file."""
        return self._type() == fs.FileType.File

    def is_folder(self) -> bool:
        """Tells whether there is a folder; a store has those that hold something."""
        return self._type() == fs.FileType.Directory

    def files(self, suffix: str = "") -> list["Location"]:
        """Returns the files of a folder in the order of their names."""
        return [
            self / info.base_name
            for info in self._entries()
            if info.type == fs.FileType.File and info.base_name.endswith(suffix)
        ]

    def leaves(self, folder: "Location") -> bool:
        """Tells whether a link leads it out of a folder; stores have no links."""
        if not self.is_local:
            return False
        root = os.path.realpath(folder.path)
        return not pathlib.Path(os.path.realpath(self.path)).is_relative_to(root)

    def open(self) -> pa.NativeFile:
        """Opens a file for reading at any place."""
        with explained(self, "cannot be read"):
            return self.filesystem.open_input_file(self.path)

    def read_text(self) -> str:
        """Returns the content of a text file."""
        with explained(self, "cannot be read"), self.open() as file:
            content = file.read()
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self} is not a text in UTF-8 ({error})") from error

    def write_text(self, text: str) -> None:
        """Makes a text file, whole or not at all."""
        with explained(self, "cannot be written"), Draft(self) as draft:
            draft.path.write_text(text, encoding="utf-8")
            draft.publish()

    def clear(self, *, keep: str = "") -> None:
        """Deletes all that a folder holds, except a file of the name `keep`."""
        with explained(self, "cannot be deleted"):
            for info in self._entries():
                if info.type == fs.FileType.Directory:
                    self.filesystem.delete_dir(info.path)
                elif info.base_name != keep:
                    self.filesystem.delete_file(info.path)

    def delete(self) -> None:
        """Deletes a file, or a folder with all that it holds, if it is there."""
        with explained(self, "cannot be deleted"):
            kind = self._type()
            if kind == fs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind != fs.FileType.NotFound:
                self.filesystem.delete_file(self.path)

    def upload(self, folder: pathlib.Path) -> None:
        """Copies all that a local folder holds to here."""
        with explained(self, "cannot be written"):
            fs.copy_files(
                str(folder),
                self.path,
                source_filesystem=fs.LocalFileSystem(),
                destination_filesystem=self.filesystem,
            )

    def _type(self) -> fs.FileType:
        with explained(self, "cannot be read"):
            found = self.filesystem.get_file_info(self.path).type
            bucket = self.path.lstrip("/").partition("/")[0]
            if (
                found == fs.FileType.NotFound
                and isinstance(self.filesystem, fs.S3FileSystem | fs.GcsFileSystem)
                and self.filesystem.get_file_info(bucket).type == fs.FileType.NotFound
            ):
                raise FileNotFoundError(f"bucket not found: {bucket!r}")
            return found

    def _entries(self) -> list[fs.FileInfo]:
        with explained(self, "cannot be listed"):
            selector = fs.FileSelector(self.path, allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        return sorted(found, key=lambda info: info.base_name)


def locate(path: "str | os.PathLike[str] | Location") -> Location:
    """Returns the location of a local path or a URI; nothing needs to be there.

    Raises:
        DataError: a scheme that nothing here can read, or a store without an answer.
    """
    if isinstance(path, Location):
        return path
    text = os.fspath(path)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Location(fs.LocalFileSystem(use_mmap=True), os.path.abspath(text), "")
    if scheme[0] in ("gs://", "gcs://") and "retry_limit_seconds" not in text:
        text += ("&" if "?" in text else "?") + _GS_RETRY
    shown = re.sub(r"//[^/@]*@", "//", text.partition("?")[0])  # without passwords
    with explained(shown, "cannot be opened"):
        try:
            filesystem, inner = fs.FileSystem.from_uri(text)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise DataError(f"{shown} is not a usable URI: {error}") from error
            filesystem, inner = _by_fsspec(text, scheme[0])
    if isinstance(filesystem, fs.LocalFileSystem):
        return Location(fs.LocalFileSystem(use_mmap=True), inner, "")
    return Location(filesystem, inner.rstrip("/"), scheme[0])


def _by_fsspec(uri: str, scheme: str) -> tuple[fs.FileSystem, str]:
    try:
        return fs.FileSystem.from_uri(f"fsspec+{uri}")
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{uri.partition('?')[0]}: nothing here reads {scheme} ({error}); use a "
            "local path, s3:// or gs://, or install fsspec and its package for this "
            "scheme"
        ) from error


class Draft:
    """A file in the making: leaving the `with` block without `publish` deletes it.

    Attributes:
        path: local path to write to.
    """

    def __init__(self, place: Location):
        """Chooses a path, beside the place or, for a store, in a temporary folder."""
        self._place = place
        if place.is_local:
            place.local.parent.mkdir(parents=True, exist_ok=True)
            self.path = place.local.with_name(f".{place.name}.partial")
        else:
            handle, name = tempfile.mkstemp(prefix="rankax-")
            os.close(handle)
            self.path = pathlib.Path(name)

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def publish(self) -> None:
        """Moves the file to its place, over the one that may be there."""
        if self._place.is_local:
            self.path.replace(self._place.local)
            return
        filesystem, target = self._place.filesystem, self._place.path
        try:
            with self.path.open("rb") as file:
                sink = filesystem.open_output_stream(target)
                with sink:
                    shutil.copyfileobj(file, sink, 2**23)
        except BaseException:
            # Closing the sink of a store completes what has been sent so far.
            with contextlib.suppress(OSError):
                filesystem.delete_file(target)
            raise
        self.discard()

    def discard(self) -> None:
        """Deletes the file if it is still there."""
        self.path.unlink(missing_ok=True)


def advice(error: Exception, otherwise: str) -> str:
    """Says what to do about an error of a disk or a store."""
    found = (text for signs, text in _ADVICE.items() if re.search(signs, str(error)))
    return next(found, otherwise)


@contextlib.contextmanager
def explained(place: Location | str, what: str) -> Iterator[None]:
    """Makes an error of the system one that names the place and says what to do."""
    try:
        yield
    except OSError as error:
        todo = advice(error, "check the path and the rights on it")
        raise DataError(f"{place} {what} ({error}); {todo}") from error


def replace_folder(new: pathlib.Path, target: pathlib.Path) -> None:
    """Renames a folder; the old one goes away whole, for deleting takes time."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)
