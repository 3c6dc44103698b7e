r"""Looks at a dataset folder before a model is trained on it.

    python -m data_pipelines.inspect datasets/shop --html=shop.html

Prints rows, positive rates, cardinalities, collisions, and what seems wrong: constant
and equal columns, rows that come twice, and leaks: a field that predicts too well
alone, a statistic that knows the future, histories with events at or after the
impression, splits that overlap in time or share users against their rule.

The exit code is 1 if something is an error, 0 otherwise; a folder that cannot be read
is an error too. Warnings want a look.

Values are counted one by one up to 4 million of a column; beyond that ids are sampled
and numbers rounded to 4 digits, and "~" stands before the figure. Memory holds these
counts, 8 bytes a row (of 20 million rows at most) for the search for equal rows, and
200,000 rows with their histories: 2.9 GB for 10 million rows of 11 columns, two of
which have over a million ids.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys

from data_pipelines.inspection import alone, page, report, text
from data_pipelines.inspection.folder import Folder
from rankax.data import storage
from rankax.data.card import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.inspect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("dataset", help="dataset folder, on a disk")
    for kind in ("json", "html"):
        parser.add_argument(
            f"--{kind}", type=pathlib.Path, metavar="FILE", help=f"write {kind} as well"
        )
    parser.add_argument(
        "--max_rows",
        type=int,
        default=0,
        metavar="N",
        help="look at N rows of a split at most, evenly spread over it; 0 = all",
    )
    parser.add_argument(
        "--auc_threshold",
        type=float,
        default=alone.THRESHOLD,
        metavar="X",
        help="AUC above which one field alone is a leak (default: %(default)s)",
    )
    flags = parser.parse_args(arguments)
    for name, path in (("json", flags.json), ("html", flags.html)):
        if path and not path.parent.is_dir():
            parser.error(f"--{name}={path}: there is no folder {path.parent}")
    try:
        path = storage.locate(flags.dataset).local
        folder = Folder(path, max_rows=flags.max_rows)
        tree = report.make(folder, auc_threshold=flags.auc_threshold)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text.render(tree))
    if flags.json:
        flags.json.write_text(json.dumps(tree, indent=1) + "\n")
    if flags.html:
        flags.html.write_text(page.render(tree))
    return int(any(finding["level"] == "error" for finding in tree["findings"]))


if __name__ == "__main__":
    sys.exit(main())
