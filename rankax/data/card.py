"""The dataset card: what a dataset folder holds, in one JSON file.

A dataset folder is `dataset.json` and, per split, a folder of Parquet shards. The card
names the fields and their kinds, the tables that their ids live in, labels, and how
the splits were made.
"""

import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any

from rankax.data import records
from rankax.data.errors import DataError
from rankax.data.fields import (
    CategoricalField,
    Clip,
    Field,
    Log1p,
    NumericField,
    SequenceColumn,
    SequenceField,
    Standardise,
    Table,
    Transform,
    VectorField,
    check_field,
    check_table,
)

if TYPE_CHECKING:
    from rankax.data.storage import Location

FORMAT = 1
FILE_NAME = "dataset.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A binary task. `column` "" = `name`; `true_probability` is a column or ""."""

    name: str
    column: str = ""
    true_probability: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Rows and positive rate per task of one split, folder `<split>/*.parquet`."""

    num_rows: int
    positive_rate: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A column by whose values metrics are also reported one by one.

    Attributes:
        name: of the slices, such as "hour".
        column: Parquet column of integers; "" = `name`.
        values: name of each integer 0, 1, ...; empty = the integers name themselves.
    """

    name: str
    column: str = ""
    values: tuple[str, ...] = ()


_KINDS = {
    "categorical": CategoricalField,
    "numeric": NumericField,
    "vector": VectorField,
    "sequence": SequenceField,
}
_TRANSFORMS = {"clip": Clip, "log1p": Log1p, "standardise": Standardise}
# Left out of the file where unused, so that a folder keeps the fingerprint it had
# before fields could have them.
_OPTIONAL = {
    "weights": "",
    "default": None,
    "boundaries": (),
    "transforms": (),
    "minimum": None,
    "maximum": None,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """See the module. Empty column names mean that the data set has no such column.

    Attributes:
        labels: of the tasks; none in a data set that is only to be scored.
        weight: column of example weights (float).
        group: column of the group for GAUC, usually the user (integer or text).
        time: column of the event time (integer or timestamp).
        domain: column of the domain or scenario (integer).
        slices: columns by which evaluation reports metrics value by value.
    """

    name: str
    tables: tuple[Table, ...]
    fields: tuple[Field, ...]
    labels: tuple[Label, ...]
    splits: dict[str, Split]
    weight: str = ""
    group: str = ""
    time: str = ""
    domain: str = ""
    slices: tuple[Slice, ...] = ()
    split_rule: str = ""
    origin: str = ""
    licence: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Checks names and references."""
        tables = {table.name: table for table in self.tables}
        _unique("table", [table.name for table in self.tables], self.name)
        _unique("field", [field.name for field in self.fields], self.name)
        _unique("label", [label.name for label in self.labels], self.name)
        _unique("slice", [entry.name for entry in self.slices], self.name)
        if self.format != FORMAT:
            raise DataError(
                f"card {self.name!r} has format {self.format}, this version reads "
                f"{FORMAT}; convert the data set again"
            )
        for name in self.splits:
            if not name.isprintable() or re.search(r"^\.|[/\\]|^$", name):
                raise DataError(
                    f"card {self.name!r}: {name!r} cannot be the name of a split, "
                    "which is that of a folder beside the card; use letters and digits"
                )
        for table in self.tables:
            check_table(table)
        for entry in self.slices:
            texts = isinstance(entry.values, tuple)
            if not (texts and all(isinstance(value, str) for value in entry.values)):
                raise DataError(
                    f"slice {entry.name!r}: values must be texts, found "
                    f"{entry.values!r:.80}"
                )
        for field in self.fields:
            check_field(field, tables)

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` takes."""
        tree = dataclasses.asdict(self)
        tree["fields"] = [_entry(field, _KINDS) for field in self.fields]
        return tree

    def to_json(self) -> str:
        """Returns the text of `dataset.json`."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def save(self, folder: "str | os.PathLike[str] | Location") -> None:
        """Writes `dataset.json` into the folder."""
        from rankax.data import storage  # needs pyarrow, which a scorer does without

        (storage.locate(folder) / FILE_NAME).write_text(self.to_json())


def load(folder: "str | os.PathLike[str] | Location") -> Card:
    """Reads the card of a dataset folder, local or on an object store.

    Raises:
        DataError: no card there, one that cannot be understood, or no access.
    """
    from rankax.data import storage  # needs pyarrow, which a scorer does without

    place = storage.locate(folder)
    path = place / FILE_NAME
    if not path.is_file():
        raise DataError(
            f"{place} is not a dataset folder: {FILE_NAME} is missing; make one with "
            "python -m data_pipelines.tabular or another pipeline"
        )
    text = path.read_text()
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    return from_dict(tree, where=str(path))


def from_dict(tree: Any, *, where: str) -> Card:
    """Builds a card from parsed JSON; `where` opens every error message."""
    tree = dict(records.mapping(tree, where))
    tree["tables"] = tuple(
        records.build(Table, entry, f"{where}: tables[{i}]")
        for i, entry in enumerate(
            records.entries(tree.get("tables"), f"{where}: tables")
        )
    )
    tree["fields"] = tuple(
        _field(entry, f"{where}: fields[{i}]")
        for i, entry in enumerate(
            records.entries(tree.get("fields"), f"{where}: fields")
        )
    )
    tree["labels"] = tuple(
        records.build(Label, entry, f"{where}: labels[{i}]")
        for i, entry in enumerate(
            records.entries(tree.get("labels"), f"{where}: labels")
        )
    )
    tree["slices"] = tuple(
        records.build(Slice, _with_tuple(entry, "values"), f"{where}: slices[{i}]")
        for i, entry in enumerate(
            records.entries(tree.get("slices", []), f"{where}: slices")
        )
    )
    tree["splits"] = {
        name: records.build(Split, entry, f"{where}: splits[{name!r}]")
        for name, entry in records.mapping(
            tree.get("splits"), f"{where}: splits"
        ).items()
    }
    return records.build(Card, tree, where)


def _with_tuple(entry: Any, key: str) -> Any:
    """Makes the JSON list under a key a tuple, which dataclasses can hold frozen."""
    if isinstance(entry, dict) and isinstance(entry.get(key), list):
        return {**entry, key: tuple(entry[key])}
    return entry


def _field(entry: Any, where: str) -> Field:
    """Builds a field from its JSON object."""
    entry = dict(records.mapping(entry, where))
    if "columns" in entry:
        entry["columns"] = tuple(
            records.build(SequenceColumn, column, f"{where}.columns[{j}]")
            for j, column in enumerate(records.entries(entry["columns"], where))
        )
    if "transforms" in entry:
        entry["transforms"] = tuple(
            _build_kind(_TRANSFORMS, step, f"{where}.transforms[{j}]")
            for j, step in enumerate(records.entries(entry["transforms"], where))
        )
    return _build_kind(_KINDS, _with_tuple(entry, "boundaries"), where)


def _entry(part: Field | Transform, kinds: dict[str, type]) -> dict[str, Any]:
    """Returns the JSON object of a field or of a step, which starts with its kind."""
    (kind,) = (name for name, cls in kinds.items() if cls is type(part))
    entry = {"kind": kind, **dataclasses.asdict(part)}
    if isinstance(part, NumericField):
        entry["transforms"] = tuple(_entry(t, _TRANSFORMS) for t in part.transforms)
    for keyed in (entry, *entry.get("columns", ())):
        for key, unused in _OPTIONAL.items():
            if keyed.get(key) == unused:
                keyed.pop(key, None)
    return entry


def _unique(what: str, names: list[str], card: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"card {card!r} names {what} {twice[0]!r} twice")


def _build_kind(kinds: dict[str, type], entry: Any, where: str) -> Any:
    """Calls the dataclass that the key "kind" of a JSON object names."""
    entry = dict(records.mapping(entry, where))
    kind = entry.pop("kind", None)
    if kind not in tuple(kinds):  # any JSON value
        raise DataError(f"{where}: kind {kind!r} is unknown; known: {tuple(kinds)}")
    return records.build(kinds[kind], entry, where)
