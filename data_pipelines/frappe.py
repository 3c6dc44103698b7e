r"""Frappe_x1: mobile app usage in context, in the split of the BARS leaderboard.

    python -m data_pipelines.frappe --raw=DIR --out=datasets/frappe_x1

DIR holds `train.csv`, `valid.csv` and `test.csv` as RecZoo publishes them (DIR may also
be the folder around; `python -m data_pipelines.download frappe_x1` fetches them), or
`train_reconstructed.parquet`, `valid.parquet` and `test.parquet`, whose training
negatives are drawn anew; where both are there the published files are read, byte for
byte as their md5 says. Integer columns: label and ten id fields, whose ids share one
space of 5,382. The data set gets one table per field, so each field's offset is
subtracted. Licence of the data: research, non-commercial, no redistribution; nothing
of it is in this repository.
"""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from data_pipelines.engine import command, raw_files
from rankax.data.card import Card, CategoricalField, DataError, Label, Split, Table
from rankax.data.dataset_writer import DatasetWriter

# Field -> number of its ids; a field's ids follow those of the field before it.
FIELDS = {
    "user": 957,
    "item": 4082,
    "daytime": 7,
    "weekday": 7,
    "isweekend": 2,
    "homework": 3,
    "cost": 2,
    "weather": 9,
    "country": 80,
    "city": 233,
}
SCHEMA = pa.schema(
    [
        pa.field("label", pa.int8(), nullable=False),
        *(pa.field(name, pa.int32(), nullable=False) for name in FIELDS),
    ]
)


class RawSplit(NamedTuple):
    """One file, and what it must hold."""

    file: str
    num_rows: int
    positive_rate: float  # to four decimals
    md5: str = ""  # of the whole file


class Form(NamedTuple):
    """The files of one form of the data set, and what the card says of them."""

    splits: dict[str, RawSplit]
    split_rule: str
    origin: str


PUBLISHED = Form(
    {
        "train": RawSplit(
            "train.csv", 202_027, 0.3346, "ba7306e6c4fc19dd2cd84f2f0596d158"
        ),
        "valid": RawSplit(
            "valid.csv", 57_722, 0.3303, "88d51bf2173505436d3a8f78f2a59da8"
        ),
        "test": RawSplit(
            "test.csv", 28_860, 0.3304, "3470f6d32713dc5f7715f198ca7c612a"
        ),
    },
    split_rule="train, valid and test are exactly BARS Frappe_x1 (random 7:2:1)",
    origin=(
        "Frappe (Baltrunas et al., arXiv 1505.03014); "
        "huggingface.co/datasets/reczoo/Frappe_x1"
    ),
)
RECONSTRUCTED = Form(
    {
        "train": RawSplit("train_reconstructed.parquet", 202_027, 0.3346),
        "valid": RawSplit("valid.parquet", 57_722, 0.3303),
        "test": RawSplit("test.parquet", 28_860, 0.3304),
    },
    split_rule=(
        "valid and test are exactly those of BARS Frappe_x1 (random 7:2:1); the train "
        "positives and contexts follow from the raw log by subtraction, which unused "
        "app each train negative names is drawn anew"
    ),
    origin=(
        "Frappe (Baltrunas et al., arXiv 1505.03014); valid and test from "
        "WeiyuCheng/AFN-AAAI-20@25d7bd9, log from irecsys/CARSKit@0a1789f"
    ),
)
PUBLISHED_FOLDER = "Frappe_x1"
READERS = {".csv": pyarrow.csv.read_csv, ".parquet": pq.read_table}

CARD = Card(
    name="frappe_x1",
    tables=tuple(Table(name=name, num_rows=ids) for name, ids in FIELDS.items()),
    fields=tuple(CategoricalField(name=name, table=name) for name in FIELDS),
    labels=(Label(name="ctr", column="label"),),
    splits={},
    group="user",
    licence="research, no redistribution, non-commercial",
)


def convert(raw: pathlib.Path, out: pathlib.Path, *, overwrite: bool = False) -> Card:
    """Writes the dataset folder.

    Args:
        raw: folder of the three files, in either form.
        out: dataset folder to make.
        overwrite: replace a dataset folder that is there.

    Raises:
        DataError: a file is missing or is not the data that this module knows.
    """
    folder, form = _find(raw)
    splits = {}
    with DatasetWriter(out, overwrite=overwrite) as writer:
        for split, expected in form.splits.items():
            path = folder / expected.file
            table = raw_files.read_whole(path, SCHEMA, READERS[path.suffix])
            rate = float(np.mean(table["label"]))
            _check(path, table.num_rows, rate, expected)
            writer.write(split, _subtract_offsets(table, path))
            splits[split] = Split(num_rows=table.num_rows, positive_rate={"ctr": rate})
        card = dataclasses.replace(
            CARD, splits=splits, split_rule=form.split_rule, origin=form.origin
        )
        writer.finish(card)
    return card


def _find(raw: pathlib.Path) -> tuple[pathlib.Path, Form]:
    """Returns the folder of the files and the form that they have."""
    for folder in (raw, raw / PUBLISHED_FOLDER):
        if (folder / PUBLISHED.splits["train"].file).is_file():
            return folder, PUBLISHED
    return raw, RECONSTRUCTED


def _check(
    path: pathlib.Path, num_rows: int, positive_rate: float, expected: RawSplit
) -> None:
    found = hashlib.md5(path.read_bytes()).hexdigest()
    if expected.md5 and found != expected.md5:
        raise DataError(
            f"{path} has md5 {found}, expected {expected.md5} as RecZoo publishes it; "
            "fetch it again: python -m data_pipelines.download frappe_x1"
        )
    if num_rows != expected.num_rows or abs(positive_rate - expected.positive_rate) > (
        0.00005
    ):
        raise DataError(
            f"{path}: {num_rows} rows with positive rate {positive_rate:.4f}, expected "
            f"{expected.num_rows} rows with {expected.positive_rate:.4f}; this is not "
            "the Frappe_x1 whose published figures can be compared"
        )


def _subtract_offsets(table: pa.Table, path: pathlib.Path) -> pa.Table:
    """Numbers the ids of each field from 0."""
    columns = {"label": table["label"]}
    offset = 0
    for name, num_ids in FIELDS.items():
        ids = table[name].to_numpy() - offset
        if ids.min() < 0 or ids.max() >= num_ids:
            raise DataError(
                f"{path}: ids of {name!r} go from {ids.min() + offset} to "
                f"{ids.max() + offset}, expected {offset} .. {offset + num_ids - 1}"
            )
        columns[name] = pa.array(ids)
        offset += num_ids
    return pa.table(columns)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command.parser("frappe", __doc__, has_cluster=False)
    flags = command.parse(parser, arguments)
    command.run(lambda: convert(**vars(flags)), flags.out)


if __name__ == "__main__":
    main()
