r"""From CSV or Parquet to a dataset folder that rankax trains on.

    python -m data_pipelines.tabular \
        --train=train.csv --valid=valid.csv --test=test.parquet \
        --out=datasets/shop --name=shop \
        --categorical=user,item,device --list=tags:10 --numeric=price \
        --sequence=history:20:item=hist_items,tags=hist_tags \
        --label=click --label='like=rating>=4' \
        --group=user --time=timestamp --hash=item:1000000

One file instead of three: --data=all.csv with --split=random:0.8,0.1,0.1:seed=0, or
--split=time:timestamp:0.8,0.1,0.1 (the oldest rows train), or --split=column:NAME.

Tables: a categorical or list field has a table of its own name, and an aspect of a
sequence has the table of the aspect's name. So "item=hist_items" shares the table of
the field "item"; --share=COLUMN=TABLE says otherwise. A table is a vocabulary of the
training data by falling count, its row 0 for what is unknown, unless --hash sets its
number of rows: then ids are hashed when they are read, and none is unknown.

Values: ids are integers or text; a missing id is an id too, with a row of its own if
training has any (hashed: that of the empty text), a missing number is 0. Missing ids
and numbers and unknown ids are counted, printed and kept in conversion.json. A missing
list is empty. Labels are 0 or 1, or a number compared with another one.
"""

import argparse
import pathlib
import re

from data_pipelines.engine import command, conversion, file_rows, raw_files, splits
from data_pipelines.engine.plan import SPECIAL_KINDS, LabelRule, Plan
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Field,
    NumericField,
    SequenceColumn,
    SequenceField,
    VectorField,
)
from rankax.data.dataset_writer import ROWS_PER_GROUP


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    flags = _parser().parse_args(arguments)
    command.run(lambda: convert(flags), flags.out)


def convert(flags: argparse.Namespace) -> Card:
    """Writes the dataset folder that the flags describe.

    Raises:
        DataError: flags or files that cannot be used.
    """
    plan = make_plan(flags)
    rule = splits.SplitRule.parse(flags.split) if flags.split else None
    form = raw_files.Format(
        text=flags.text,
        missing=flags.missing,
        separator=flags.separator,
        on_bad_line=flags.on_bad_line,
    )
    return conversion.convert(
        plan,
        file_rows.FileRows(_files(flags), plan, form=form, rule=rule),
        flags.out,
        overwrite=flags.overwrite,
        rows_per_group=flags.rows_per_group,
        cluster=flags.cluster,
    )


def make_plan(flags: argparse.Namespace) -> Plan:
    """Understands the flags.

    Raises:
        DataError: a flag that does not follow its grammar, or that another contradicts.
    """
    share = dict(_pair(text, "share", "COLUMN=TABLE", "=") for text in flags.share)
    fields: list[Field] = [
        CategoricalField(name=name, table=share.pop(name, name))
        for name in flags.categorical
    ]
    for text in flags.list:
        name, length = _pair(text, "list", "COLUMN:LENGTH", ":")
        field = CategoricalField(
            name=name,
            table=share.pop(name, name),
            max_length=_count(length, f"--list={text}"),
            combiner=flags.combiner,
        )
        fields.append(field)
    fields += [NumericField(name=name) for name in flags.numeric]
    for text in flags.vector:
        name, width = _pair(text, "vector", "COLUMN:WIDTH", ":")
        width = _count(width, f"--vector={text}")
        fields.append(VectorField(name=name, width=width))
    fields += [_sequence(text, share) for text in flags.sequence]
    if share:
        raise DataError(
            f"--share={next(iter(share))}=...: no categorical, list or sequence column "
            "has this name"
        )
    hashed = {}
    for text in flags.hash:
        table, num_rows = _pair(text, "hash", "TABLE:ROWS", ":")
        hashed[table] = _count(num_rows, f"--hash={text}")
    return Plan(
        name=flags.name or flags.out.name,
        fields=tuple(fields),
        labels=tuple(_label(text) for text in flags.label),
        special={
            name: getattr(flags, name) for name in SPECIAL_KINDS if getattr(flags, name)
        },
        hashed=hashed,
        min_count=flags.min_count,
        slices=tuple(flags.slice),
        origin=flags.origin,
        licence=flags.licence,
    )


def _files(flags: argparse.Namespace) -> dict[str, list[pathlib.Path]]:
    given = {name: getattr(flags, name) for name in splits.SPLITS}
    given = {name: path for name, path in given.items() if path}
    if bool(flags.data) != bool(flags.split) or bool(flags.data) == bool(given):
        raise DataError(
            "give either --train (and --valid, --test), or --data with --split"
        )
    if flags.data:
        given = {"data": flags.data}
    elif "train" not in given:
        raise DataError("--train is missing: vocabularies are built on it")
    return {name: raw_files.find(path) for name, path in given.items()}


def _sequence(text: str, share: dict[str, str]) -> SequenceField:
    grammar = "NAME:LENGTH:ASPECT=COLUMN,..."
    match = re.fullmatch(r"([^:]+):([^:]+):(.+)", text)
    if not match:
        raise DataError(f"--sequence={text}: expected {grammar}")
    name, length, aspects = match.groups()
    columns = []
    for aspect_text in aspects.split(","):
        aspect, column = _pair(aspect_text, "sequence", grammar, "=")
        table = share.pop(column, aspect)
        columns.append(SequenceColumn(name=aspect, table=table, column=column))
    max_length = _count(length, f"--sequence={text}")
    return SequenceField(name=name, columns=tuple(columns), max_length=max_length)


def _label(text: str) -> LabelRule:
    match = re.fullmatch(r"(?:([^=>]+)=)?([^=>]+)(?:>=([^=>]+))?", text)
    if not match:
        raise DataError(
            f"--label={text}: expected COLUMN, NAME=COLUMN or NAME=COLUMN>=NUMBER"
        )
    name, column, threshold = match.groups()
    try:
        number = None if threshold is None else float(threshold)
    except ValueError as error:
        raise DataError(f"--label={text}: {threshold!r} is not a number") from error
    return LabelRule(name=name or column, column=column, threshold=number)


def _pair(text: str, flag: str, grammar: str, separator: str) -> tuple[str, str]:
    left, _, right = text.partition(separator)
    if not left or not right:
        raise DataError(f"--{flag}: found {text!r}, expected {grammar}")
    return left, right


def _count(text: str, where: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise DataError(f"{where}: {text!r} is not a whole number from 1 on")
    return int(text)


class _Names(argparse.Action):
    """Collects comma-separated values of a flag that may be repeated."""

    def __call__(self, parser, namespace, values, option_string=None):
        known = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*known, *filter(None, str(values).split(","))])


def _names(group: argparse._ArgumentGroup, flag: str, metavar: str, text: str) -> None:
    group.add_argument(flag, action=_Names, default=[], metavar=metavar, help=text)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("tabular", __doc__, has_raw=False)
    files = parser.add_argument_group(
        "files", ".csv, .tsv (also .gz) with a header, .parquet, or a folder of them"
    )
    files.add_argument("--train", metavar="FILE", help="training rows")
    files.add_argument("--valid", metavar="FILE", help="validation rows")
    files.add_argument("--test", metavar="FILE", help="test rows")
    files.add_argument("--data", metavar="FILE", help="all rows, together with --split")
    files.add_argument("--split", metavar="RULE", help=splits.GRAMMAR)
    files.add_argument(
        "--separator", default="|", help="of lists in a CSV cell (default: %(default)s)"
    )
    _names(
        files, "--missing", "TEXT,...", "missing values in CSV, besides an empty cell"
    )
    _names(
        files, "--text", "COLUMN,...", "ids to take as text though they look numeric"
    )
    command.add_on_bad_line(files)
    add_plan_flags(parser)
    return parser


def add_plan_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `make_plan` reads, and --rows_per_group."""
    fields = parser.add_argument_group("fields (lists with commas, or repeated flags)")
    _names(fields, "--categorical", "COLUMN,...", "one id an example")
    _names(
        fields, "--list", "COLUMN:LENGTH,...", "a list of ids, the latest LENGTH kept"
    )
    fields.add_argument(
        "--combiner",
        default="mean",
        choices=("mean", "sum"),
        help="of the lists' embeddings (default: %(default)s)",
    )
    _names(fields, "--numeric", "COLUMN,...", "one number an example")
    _names(fields, "--vector", "COLUMN:WIDTH,...", "lists of WIDTH numbers (Parquet)")
    fields.add_argument(
        "--sequence",
        action="append",
        default=[],
        metavar="NAME:LENGTH:ASPECT=COLUMN,...",
        help="past events, oldest first: list columns of equal lengths",
    )
    _names(fields, "--hash", "TABLE:ROWS,...", "tables to hash instead of numbering")
    command.add_min_count(fields, default=1)
    _names(fields, "--share", "COLUMN=TABLE,...", "the table of a column's ids")

    others = parser.add_argument_group("labels and the rest")
    others.add_argument(
        "--label",
        action="append",
        required=True,
        metavar="LABEL",
        help="COLUMN, NAME=COLUMN or NAME=COLUMN>=NUMBER; repeat for several tasks",
    )
    others.add_argument("--weight", metavar="COLUMN", help="weight of the example")
    others.add_argument("--group", metavar="COLUMN", help="user, for grouped AUC")
    others.add_argument("--time", metavar="COLUMN", help="time of the event")
    others.add_argument("--domain", metavar="COLUMN", help="scenario, an integer")
    _names(others, "--slice", "COLUMN,...", "report metrics by the column's values too")

    result = parser.add_argument_group("result")
    result.add_argument("--name", default="", help="default: the name of --out")
    result.add_argument("--origin", default="", help="where the data come from")
    result.add_argument("--licence", default="", help="of the data")
    result.add_argument(
        "--rows_per_group",
        type=int,
        default=ROWS_PER_GROUP,
        metavar="N",
        help="rows of a Parquet row group, the unit of reading (default: %(default)s)",
    )


if __name__ == "__main__":
    main()
