"""A split of another data set, read as a run reads its own, to be scored.

What the model reads must be described alike on both cards: fields, tables, transforms.
Labels, weight and group are the other card's own, as far as it names them.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from rankax.config.base import ConfigError
from rankax.data import card as cards
from rankax.data import storage
from rankax.data.card import Card
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema


def open_split(path: str, run: Schema) -> tuple[ParquetSplit, Schema]:
    """Opens a split, and says what of it is read.

    Args:
        path: the folder of the split, beside which its data set's card is.
        run: fields and tasks of the run.

    Returns:
        The split, and the run's fields with the labels of its tasks that are there.

    Raises:
        ConfigError: a whole data set, or one whose card describes other input.
        DataError: no data set, no such split, or one that differs from its card.
    """
    place = storage.locate(path)
    if (place / cards.FILE_NAME).is_file():
        known = [str(place / name) for name in cards.load(place).splits]
        raise ConfigError(
            f"{place} is a whole data set; name the folder of one of its splits: "
            f"{', '.join(known)}"
        )
    card = cards.load(place.parent)
    found = differences(run, card)
    if found:
        raise ConfigError(
            f"{place.parent / cards.FILE_NAME} describes other input than the model of "
            "this run reads:\n"
            + "\n".join(f"  - {line}" for line in found)
            + "\nmake the data set as that of the run was made; only name, splits, "
            "labels, weight, group and what the model does not read may differ"
        )
    schema = schema_of(run, card)
    return ParquetSplit(place.parent, place.name, schema), schema


def schema_of(run: Schema, card: Card) -> Schema:
    """Returns what is read of a data set whose card does not differ."""
    labels = tuple(
        dataclasses.replace(label, true_probability="")
        for name in run.tasks
        for label in card.labels
        if label.name == name
    )
    own = dataclasses.replace(
        run.card,
        name=card.name,
        labels=labels,
        splits=card.splits,
        weight=card.weight,
        group=card.group,
        time="",
        domain="",
    )
    return dataclasses.replace(run, card=own, labels=labels, slices=())


def differences(run: Schema, card: Card) -> list[str]:
    """Lists what a card says otherwise of the fields and tables of a run."""
    tables = [table for table in run.card.tables if table.name in run.tables]
    return [
        *_differences("table", tables, card.tables),
        *_differences("field", run.fields, card.fields),
    ]


def _differences(kind: str, wanted: Sequence[Any], there: Sequence[Any]) -> list[str]:
    found, by_name = [], {entry.name: entry for entry in there}
    for entry in wanted:
        where, other = f"{kind} {entry.name!r}", by_name.get(entry.name)
        if other is None:
            found.append(f"{where} is missing")
        elif type(other) is not type(entry):
            names = type(other).__name__, type(entry).__name__
            found.append("{} is a {}, not a {}".format(where, *names))
        else:
            for name in (field.name for field in dataclasses.fields(entry)):
                own, value = getattr(other, name), getattr(entry, name)
                if own != value:
                    found.append(f"{where}: {name} = {own!r:.200}, not {value!r:.200}")
    return found
