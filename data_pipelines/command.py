"""What the command lines of all pipelines have in common."""

import argparse
from collections.abc import Callable
import pathlib
import sys

from data_pipelines import conversion
from rankax.data.card import DataError


def parser(
    pipeline: str, doc: str | None, *, has_raw: bool = True
) -> argparse.ArgumentParser:
    """Returns a parser of --raw, --out and --overwrite.

    Args:
        pipeline: name of the module in data_pipelines.
        doc: its docstring, shown by --help.
        has_raw: the pipeline reads one folder of files with known names.
    """
    result = argparse.ArgumentParser(
        prog=f"python -m data_pipelines.{pipeline}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def folder(flag: str, text: str) -> None:
        result.add_argument(
            flag, type=pathlib.Path, required=True, metavar="DIR", help=text
        )

    if has_raw:
        folder("--raw", "folder of the raw files")
    folder("--out", "dataset folder to make")
    result.add_argument(
        "--overwrite", action="store_true", help="replace the dataset folder --out"
    )
    return result


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


def run(convert: Callable[[], object], out: pathlib.Path) -> None:
    """Makes the dataset folder and prints what it holds; an error ends the program."""
    try:
        convert()
    except DataError as error:
        sys.exit(f"error: {error}")
    print(conversion.summary(out))
    print(f"written to {out}")
