"""What the command lines of all pipelines have in common."""

import argparse
from collections.abc import Callable, Sequence
import pathlib
import sys

from data_pipelines import download
from data_pipelines.engine import conversion
from data_pipelines.sources.public_sets import SETS
from rankax.data import storage
from rankax.data.card import DataError
from rankax.data.storage import Location


def parser(
    pipeline: str, doc: str | None, *, has_raw: bool = True, has_cluster: bool = True
) -> argparse.ArgumentParser:
    """Returns a parser of --raw, --download, --out, --overwrite and --cluster.

    Args:
        pipeline: name of the module in data_pipelines.
        doc: its docstring, shown by --help.
        has_raw: the pipeline reads one folder of files with known names.
        has_cluster: the pipeline can work on a cluster.
    """
    result = argparse.ArgumentParser(
        prog=f"python -m data_pipelines.{pipeline}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    if has_raw:
        result.add_argument(
            "--raw",
            type=pathlib.Path,
            required=True,
            metavar="DIR",
            help="folder of the raw files",
        )
        result.add_argument(
            "--download",
            default="",
            choices=[
                name for name, found in SETS.items() if found.pipeline == pipeline
            ],
            help="fetch this set into --raw first, see data_pipelines.download",
        )
        result.add_argument(
            "--accept_licence",
            action="store_true",
            help="accept its licence without being asked",
        )
    result.add_argument(
        "--out",
        type=_place,
        required=True,
        metavar="DIR",
        help="dataset folder to make, or its URI (s3://bucket/name)",
    )
    result.add_argument(
        "--overwrite", action="store_true", help="replace the dataset folder --out"
    )
    if has_cluster:
        result.add_argument(
            "--cluster",
            default="",
            metavar="ADDRESS",
            help="Ray cluster to work on, local = start one here (needs rankax[ray])",
        )
    return result


def parse(
    parser: argparse.ArgumentParser, arguments: list[str] | None
) -> argparse.Namespace:
    """Parses a command line, and fetches the raw files if it says so."""
    flags = parser.parse_args(arguments)
    name = vars(flags).pop("download", "")
    accept_licence = vars(flags).pop("accept_licence", False)
    if name:
        try:
            download.download(name, flags.raw, accept_licence=accept_licence)
        except DataError as error:
            sys.exit(f"error: {error}")
    elif accept_licence:
        parser.error("--accept_licence goes with --download")
    return flags


def add_min_count(
    to: argparse.ArgumentParser | argparse._ArgumentGroup, *, default: int
) -> None:
    """Adds --min_count."""
    to.add_argument(
        "--min_count",
        type=int,
        default=default,
        metavar="N",
        help="ids that training has less often are unknown ids, except in hashed "
        "tables (default: %(default)s)",
    )


def add_on_bad_line(to: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds --on_bad_line."""
    to.add_argument(
        "--on_bad_line",
        default="error",
        choices=("error", "skip"),
        help="lines of text that are broken: stop, or leave them out and count them "
        "(default: %(default)s)",
    )


def find_file(raw: pathlib.Path, name: str, defaults: Sequence[str]) -> pathlib.Path:
    """Returns the file of --raw that --file names, or the first default there is.

    Raises:
        DataError: it is not there.
    """
    for candidate in (name,) if name else defaults:
        if (raw / candidate).is_file():
            return raw / candidate
    found = sorted(path.name for path in raw.iterdir()) if raw.is_dir() else []
    raise DataError(
        f"{raw}: {name or ' and '.join(defaults)} not there, found {found[:20]}; pass "
        "--file=NAME of a file in --raw"
    )


def run(convert: Callable[[], object], out: pathlib.Path | Location) -> None:
    """Makes the dataset folder and prints what it holds; an error ends the program."""
    try:
        convert()
    except DataError as error:
        sys.exit(f"error: {error}")
    print(conversion.summary(out))
    print(f"written to {out}")


def _place(text: str) -> pathlib.Path | Location:
    place = storage.locate(text)
    return pathlib.Path(text) if place.is_local and "://" not in text else place
