r"""Fetches the files of a public data set: resumed, checked, unpacked.

    python -m data_pipelines.download --list
    python -m data_pipelines.download criteo_kaggle --raw=raw/criteo
    python -m data_pipelines.download criteo_1tb --raw=raw/criteo_1tb --file=day_0.gz

The licence is shown first and is to be accepted, by typing "yes" or with
--accept_licence. A file that is on its way is NAME.part, and a killed download goes on
where it stopped; NAME itself appears only with the published checksum. Archives (.zip,
.tar.gz) are unpacked into --raw and deleted, a lone .gz stays as it is.
--raw/download.json tells what came from where, and what is there already is not
fetched again.

Avazu is given only to those who accept the rules of its Kaggle competition: make a
token at kaggle.com, Settings, API, and set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and
KAGGLE_KEY, or keep kaggle.json in ~/.kaggle.
"""

import argparse
import base64
from collections.abc import Mapping, Sequence
import hashlib
import os
import pathlib
import shutil
import sys
import tarfile
import zipfile

from rich.console import Console
import rich.progress as bars

from data_pipelines.sources import transfer
from data_pipelines.sources.public_sets import SETS, PublicFile, PublicSet
from rankax.config.base import suggest
from rankax.data.card import DataError

RECORD_NAME = "download.json"


def download(
    name: str,
    raw: pathlib.Path,
    *,
    only: Sequence[str] = (),
    accept_licence: bool = False,
) -> None:
    """Fetches a data set into a folder.

    Args:
        name: one of `SETS`.
        raw: folder to fill.
        only: names of the files to fetch; none = all.
        accept_licence: accept the licence without being asked.

    Raises:
        DataError: the licence is not accepted, or a file cannot be had as published.
    """
    if name not in SETS:
        raise DataError(f"{name!r} is no public set; {suggest(name, tuple(SETS))}")
    chosen = SETS[name]
    names = [file.name for file in chosen.files]
    for wanted in only:
        if wanted not in names:
            raise DataError(f"--file={wanted}: {suggest(wanted, names)}")
    _ask(name, chosen, accept_licence=accept_licence)
    headers = _kaggle_headers() if chosen.needs_kaggle else {}
    raw.mkdir(parents=True, exist_ok=True)
    with _progress() as progress:
        for file in chosen.files:
            if only and file.name not in only:
                continue
            task = progress.add_task(file.name, total=file.size_bytes or None)

            def advance(done: int, total: int, task: bars.TaskID = task) -> None:
                progress.update(task, completed=done, total=total or None)

            print(fetch(file, raw, headers=headers, advance=advance), flush=True)


def fetch(
    file: PublicFile,
    raw: pathlib.Path,
    *,
    headers: Mapping[str, str],
    advance: transfer.Advance = lambda done, total: None,
) -> str:
    """Fetches one file, checks it and unpacks it.

    Args:
        file: what to fetch.
        raw: folder to fill.
        headers: credentials, sent to the hosts of `file.urls` only.
        advance: called as bytes arrive.

    Returns:
        One line that says what has been done.

    Raises:
        DataError: no URL gives the file as published, or it cannot be unpacked.
    """
    record = transfer.read_json(raw / RECORD_NAME)
    if _is_there(record.get(file.name), raw):
        return f"{file.name}: there already"
    target, url = raw / file.name, ""
    if target.is_file():  # put here by hand, or by a run that was killed right then
        checksum = _check(target, file.checksum)
    else:
        url, checksum = _fetch_from_any(file, target, headers, advance)
    size_bytes = target.stat().st_size
    told = f"{file.name}: {size_bytes:,} bytes, {checksum}"
    if not file.checksum:
        told += " (as found; none is published)"
    names = [file.name]
    if file.is_archive:
        try:
            names = _unpack(file, target, raw)
        except DataError:
            if not file.checksum:  # nothing says that it is the right one
                target.unlink()
            raise
        told += f", {len(names)} files unpacked"
    record[file.name] = {
        "url": url,
        "size_bytes": size_bytes,
        "checksum": checksum,
        "files": {name: (raw / name).stat().st_size for name in names},
    }
    transfer.write_json(raw / RECORD_NAME, record)
    if file.is_archive:
        target.unlink()
    return told


def _is_there(entry: dict | None, raw: pathlib.Path) -> bool:
    return entry is not None and all(
        (raw / name).is_file() and (raw / name).stat().st_size == size
        for name, size in entry["files"].items()
    )


def _fetch_from_any(
    file: PublicFile,
    target: pathlib.Path,
    headers: Mapping[str, str],
    advance: transfer.Advance,
) -> tuple[str, str]:
    """Returns the URL that gave the file, and the checksum."""
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in file.urls:
        try:
            transfer.transfer(
                url,
                part,
                headers=headers,
                size_bytes=file.size_bytes,
                spare_bytes=file.unpacked_bytes,
                advance=advance,
            )
        except transfer.NotThereError as error:
            failures.append(str(error))
            continue
        try:
            checksum = _check(part, file.checksum)
        except DataError as error:
            transfer.discard(part)
            failures.append(f"{url}: {error}")
            continue
        transfer.finish(part, target)
        return url, checksum
    raise DataError("\n".join(failures))


def _check(path: pathlib.Path, published: str) -> str:
    """Returns the checksum of a file, which is the published one if there is any."""
    kind = published.partition(":")[0] or "sha256"
    with path.open("rb") as opened:
        found = f"{kind}:{hashlib.file_digest(opened, kind).hexdigest()}"
    if published and found != published:
        raise DataError(
            f"{path.name} has {found}, but {published} is published; it is damaged, or "
            "the origin has changed it"
        )
    return found


def _unpack(file: PublicFile, archive: pathlib.Path, raw: pathlib.Path) -> list[str]:
    """Unpacks an archive into the folder; returns the names of its files."""
    hidden = raw / f".{file.name}.unpacking"
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        _extract(file, archive, hidden)
        found = [path for path in hidden.rglob("*") if path.is_file()]
        for name, published in file.unpacked.items():
            path = next((path for path in found if path.name == name), None)
            if path is None:
                raise DataError(f"{archive}: {name} is missing in it")
            _check(path, published)
        names = sorted(path.relative_to(hidden).as_posix() for path in found)
        for name in names:
            (raw / name).parent.mkdir(parents=True, exist_ok=True)
            (hidden / name).replace(raw / name)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return names


def _extract(file: PublicFile, archive: pathlib.Path, folder: pathlib.Path) -> None:
    """Extracts all of an archive that keeps to the folder."""
    try:
        if file.name.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                root = folder.resolve()
                for name in opened.namelist():  # extractall would bend such names
                    if not (root / name).resolve().is_relative_to(root):
                        raise zipfile.BadZipFile(f"{name!r} lies outside the folder")
                size = sum(member.file_size for member in opened.infolist())
                transfer.check_room(folder.parent, size, f"unpacking {file.name}")
                opened.extractall(folder)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from error


def _kaggle_headers() -> dict[str, str]:
    """Returns the user's credentials as a header."""
    if token := os.environ.get("KAGGLE_API_TOKEN"):
        return {"Authorization": f"Bearer {token}"}
    user, key = os.environ.get("KAGGLE_USERNAME"), os.environ.get("KAGGLE_KEY")
    if not (user and key):
        folder = os.environ.get("KAGGLE_CONFIG_DIR") or pathlib.Path.home() / ".kaggle"
        found = transfer.read_json(pathlib.Path(folder) / "kaggle.json")
        user, key = found.get("username"), found.get("key")
    if not (user and key):
        raise DataError(
            "this set needs a Kaggle token, and none is there; make one at kaggle.com "
            "(Settings, API) and set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and "
            "KAGGLE_KEY, or keep its kaggle.json in ~/.kaggle"
        )
    basic = base64.b64encode(f"{user}:{key}".encode()).decode()
    return {"Authorization": f"Basic {basic}"}


def _ask(name: str, chosen: PublicSet, *, accept_licence: bool) -> None:
    """Shows the licence, and goes on only if it is accepted."""
    print(f"{name}, {chosen.page}\nLicence: {chosen.licence}", flush=True)
    if accept_licence:
        return
    if not sys.stdin.isatty():
        raise DataError("the licence is not accepted; pass --accept_licence")
    if input('Type "yes" to accept: ').strip().lower() != "yes":
        raise DataError("the licence is not accepted; nothing is fetched")


def _progress() -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


def _listing() -> str:
    """Returns a table of the sets, for people to read."""
    lines = []
    for name, chosen in SETS.items():
        size = sum(file.size_bytes for file in chosen.files) / 1e6
        told = [f"{len(chosen.files)} files", f"{size:,.0f} MB" if size else "size ?"]
        told += ["Kaggle token"] if chosen.needs_kaggle else []
        lines.append(f"{name}: {', '.join(told)}; for data_pipelines.{chosen.pipeline}")
        lines += [f"  {line}" for line in (chosen.page, *chosen.licence.splitlines())]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.download",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?", default="", help="the set; see --list")
    parser.add_argument("--list", action="store_true", help="show the sets")
    parser.add_argument(
        "--raw", type=pathlib.Path, metavar="DIR", help="folder of the raw files"
    )
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="NAME",
        help="only this file of the set; may be repeated",
    )
    parser.add_argument(
        "--accept_licence", action="store_true", help="accept it without being asked"
    )
    flags = parser.parse_args(arguments)
    if flags.list:
        print(_listing())
        return
    if not flags.name or flags.raw is None:
        parser.error("give a set and --raw=DIR, or --list")
    try:
        download(
            flags.name,
            flags.raw,
            only=flags.file,
            accept_licence=flags.accept_licence,
        )
    except DataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
