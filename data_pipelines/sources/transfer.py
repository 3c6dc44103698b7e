"""Brings a file over HTTP, over as many connections as it takes.

What has arrived is NAME.part; NAME.part.json says which version of which file it is the
beginning of, so a killed transfer goes on where it stopped, and only with that version.
"""

from collections.abc import Callable, Mapping
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import time
from typing import Any, BinaryIO
import urllib.error
import urllib.request

from rankax.data.card import DataError

BLOCK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60
WAITS_SECONDS = (1, 2, 4, 8, 16, 32)  # before each new try, while nothing arrives
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)

Advance = Callable[[int, int], None]  # bytes that are there, bytes in all or 0


class NotThereError(DataError):
    """A URL does not give the file; another one may."""


def transfer(
    url: str,
    part: pathlib.Path,
    *,
    headers: Mapping[str, str],
    size_bytes: int = 0,
    spare_bytes: int = 0,
    advance: Advance = lambda done, total: None,
) -> None:
    """Completes the part.

    Args:
        url: where the file is.
        part: what is there of it, perhaps nothing.
        headers: credentials, sent to the host of the URL and to no other.
        size_bytes: about how large the file is, if the server does not say; 0 = not
            known.
        spare_bytes: room on the disk that is needed besides the file.
        advance: called as bytes arrive.

    Raises:
        NotThereError: the URL does not give the file.
        DataError: no room for it, or the connections keep breaking.
    """
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, headers, size_bytes, spare_bytes, advance):
                return
            reason = "the connection ended early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == 416:  # what is there is no beginning of what they have
                part.unlink(missing_ok=True)
            elif error.code not in RETRIED_STATUS:
                hint = "the file may have moved"
                if error.code in (401, 403):
                    hint = "it is given to those who accept its terms and log in"
                raise NotThereError(
                    f"{url}: {reason}; {hint}, see the page of the data set"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if _size(part) > before:
            failures = 0
        if failures == len(WAITS_SECONDS):
            told = f"{url}: {reason}, {failures + 1} times without progress"
            if not _size(part):
                raise NotThereError(f"{told}; is there a network?")
            raise DataError(
                f"{told}; what has arrived is kept in {part.name}, and the same "
                "command goes on with it"
            )
        time.sleep(WAITS_SECONDS[failures])
        failures += 1


def discard(part: pathlib.Path) -> None:
    """Removes what has arrived, and what is known of it."""
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def finish(part: pathlib.Path, target: pathlib.Path) -> None:
    """Gives a complete part its name."""
    part.replace(target)
    discard(part)


def check_room(folder: pathlib.Path, needed_bytes: int, name: str) -> None:
    """Raises where the disk of a folder has less room than is needed."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise DataError(
            f"{name} needs {needed_bytes:,} bytes more in {folder}, where {free:,} are "
            "free; make room, or choose another --raw"
        )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns what a small JSON file holds; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text())
    return {}


def write_json(path: pathlib.Path, tree: dict[str, Any]) -> None:
    """Writes a small JSON file, in one step."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(tree, indent=1) + "\n")
    temporary.replace(path)


def _receive(
    url: str,
    part: pathlib.Path,
    headers: Mapping[str, str],
    size_bytes: int,
    spare_bytes: int,
    advance: Advance,
) -> bool:
    """Appends to the part over one connection; says whether it is complete."""
    state = read_json(_state_file(part))
    start = _size(part) if state.get("url") == url else 0
    if start and start == state["total"]:
        return True
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)
    if start:
        request.add_header("Range", f"bytes={start}-")
        if state["validator"]:
            request.add_header("If-Range", state["validator"])
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        validator = _validator(response)
        if response.status == 206:
            total = _total(response, start)
            if total != state["total"] or validator not in ("", state["validator"]):
                discard(part)  # another version by now, and If-Range did not tell
                return False
        else:
            start, total = 0, int(response.headers.get("Content-Length") or 0)
            state = {"url": url, "validator": validator, "total": total}
        needed = max((total or size_bytes) - start, 0) + spare_bytes
        check_room(part.parent, needed, part.stem)
        write_json(_state_file(part), state)
        with part.open("r+b" if start else "wb", buffering=0) as output:
            output.seek(start)
            while block := response.read1(BLOCK_BYTES):
                _write(output, block, part)
                advance(output.tell(), total)
            return not total or output.tell() == total


def _write(output: BinaryIO, block: bytes, part: pathlib.Path) -> None:
    try:
        output.write(block)
    except OSError as error:  # of the disk: no new connection helps
        raise DataError(
            f"{part}: {error}; make room, and the same command goes on from here"
        ) from error


def _total(response: http.client.HTTPResponse, start: int) -> int:
    """Returns the size of the whole file, of which the answer is the end."""
    text = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", text)
    if not match or int(match[1]) != start:
        raise OSError(f"asked for bytes {start} and on, got Content-Range {text!r}")
    return int(match[2])


def _validator(response: http.client.HTTPResponse) -> str:
    """Returns what tells two versions of a file apart, for If-Range; "" = nothing."""
    tag = response.headers.get("ETag", "")
    is_strong = tag and not tag.startswith("W/")
    return tag if is_strong else response.headers.get("Last-Modified", "")


def _size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _state_file(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(f"{part.name}.json")
