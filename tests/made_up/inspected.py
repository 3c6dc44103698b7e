"""Dataset folders made of plain lists, for the tests of `data_pipelines.inspect`."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import pyarrow as pa

from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.dataset_writer import DatasetWriter


def write(
    folder: pathlib.Path,
    splits: Mapping[str, Mapping[str, Any]],
    *,
    ids: Sequence[str] = (),
    lists: Sequence[str] = (),
    numbers: Sequence[str] = (),
    more: Sequence[Any] = (),
    sequences: Mapping[str, str] | None = None,
    labels: Sequence[str] = ("click",),
    table_of: Mapping[str, str] | None = None,
    rows_of: Mapping[str, int] | None = None,
    time: str = "",
    group: str = "",
    rule: str = "",
    rows_per_group: int = 100,
) -> pathlib.Path:
    """Writes a folder; every column not named otherwise has a hashed table of its own.

    Args:
        folder: to make.
        splits: split -> column -> values.
        ids: columns of single ids.
        lists: columns of lists of ids.
        numbers: columns of numbers.
        more: further fields of the card.
        sequences: sequence -> its only column.
        labels: columns.
        table_of: column -> table.
        rows_of: table -> num_rows, which makes its ids direct.
        time: column.
        group: column.
        rule: of the splits.
        rows_per_group: rows of a row group.
    """
    of, rows_of = dict(table_of or {}), dict(rows_of or {})
    sequences = dict(sequences or {})
    fields = [CategoricalField(name=c, table=of.get(c, c)) for c in ids]
    fields += [
        CategoricalField(name=c, table=of.get(c, c), max_length=5) for c in lists
    ]
    fields += [NumericField(name=c) for c in numbers]
    fields += more
    fields += [
        SequenceField(
            name=name,
            columns=(SequenceColumn(name="item", table=of.get(c, c), column=c),),
            max_length=50,
        )
        for name, c in sequences.items()
    ]
    tables = [of.get(c, c) for c in (*ids, *lists, *sequences.values())]
    tables += [field.table for field in more if hasattr(field, "table")]
    with DatasetWriter(folder, rows_per_group=rows_per_group) as writer:
        for split, columns in splits.items():
            writer.write(split, pa.table(dict(columns)))
        writer.finish(
            Card(
                name="made_up",
                tables=tuple(
                    Table(
                        name=table,
                        num_rows=rows_of.get(table, 1000),
                        ids="direct" if table in rows_of else "hash",
                    )
                    for table in dict.fromkeys(tables)
                ),
                fields=tuple(fields),
                labels=tuple(Label(name=label) for label in labels),
                splits={s: Split(num_rows=n) for s, n in writer.num_rows.items()},
                time=time,
                group=group,
                split_rule=rule,
            )
        )
    return folder
