"""The dataset card: what a dataset folder holds, in one JSON file.

A dataset folder is `dataset.json` and, per split, a folder of Parquet shards. The card
names the fields and their kinds, the tables that their ids live in, labels, and how
the splits were made.
"""

import dataclasses
import json
import pathlib
from typing import Any

from rankax.config.base import suggest

FORMAT = 1
FILE_NAME = "dataset.json"
COMBINERS = ("mean", "sum", "none")
ID_MODES = ("direct", "hash")


class DataError(ValueError):
    """Input that cannot be used; says what was found, expected and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A set of ids that fields and sequences may share.

    Attributes:
        name: unique in the card.
        num_rows: V, the number of rows after hashing or direct lookup.
        ids: "direct": the id is the row, in [0, V); "hash": any 64-bit integer is
            hashed to a row. The salt is the table's name, not the field's, so that
            fields and sequences that share a table agree on every id's row.
    """

    name: str
    num_rows: int
    ids: str = "direct"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CategoricalField:
    """One id per example, or a list (bag) of ids.

    Attributes:
        name: field name.
        table: table of its ids.
        column: Parquet column; "" = `name`.
        max_length: 0 = one id per example; L > 0 = a list, of which the latest L
            are kept.
        combiner: "mean" or "sum" over a list; "none" gives the backbone its L
            embeddings one by one.
        weights: Parquet column of a list of floats, one per id, by which "mean" and
            "sum" weigh; "" = all 1.
    """

    name: str
    table: str
    column: str = ""
    max_length: int = 0
    combiner: str = "mean"
    weights: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NumericField:
    """One float per example. `column` "" = `name`."""

    name: str
    column: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceColumn:
    """One aspect of a sequence's events ("item", "category", ...), a list column."""

    name: str
    table: str
    column: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceField:
    """Ordered past events, oldest first, as aligned list columns of equal lengths."""

    name: str
    columns: tuple[SequenceColumn, ...]
    max_length: int


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


Field = CategoricalField | NumericField | SequenceField
_KINDS = {
    "categorical": CategoricalField,
    "numeric": NumericField,
    "sequence": SequenceField,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """See the module. Empty column names mean that the data set has no such column.

    Attributes:
        weight: column of example weights (float).
        group: column of the group for GAUC, usually the user (integer).
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
        tables = {table.name for table in self.tables}
        _unique("table", [table.name for table in self.tables], self.name)
        _unique("field", [field.name for field in self.fields], self.name)
        _unique("label", [label.name for label in self.labels], self.name)
        _unique("slice", [entry.name for entry in self.slices], self.name)
        if self.format != FORMAT:
            raise DataError(
                f"card {self.name!r} has format {self.format}, this version reads "
                f"{FORMAT}; convert the data set again"
            )
        if not self.labels:
            raise DataError(f"card {self.name!r} names no label")
        for table in self.tables:
            if table.ids not in ID_MODES:
                raise DataError(
                    f"table {table.name!r}: ids = {table.ids!r} is unknown; "
                    f"{suggest(table.ids, ID_MODES)}"
                )
            if not 0 < table.num_rows <= 2**31 - 1:
                raise DataError(
                    f"table {table.name!r}: num_rows = {table.num_rows} is not in "
                    "1 .. 2^31 - 1"
                )
        for entry in self.slices:
            texts = isinstance(entry.values, tuple)
            if not (texts and all(isinstance(value, str) for value in entry.values)):
                raise DataError(
                    f"slice {entry.name!r}: values must be texts, found "
                    f"{entry.values!r:.80}"
                )
        for field in self.fields:
            used = ()
            if isinstance(field, CategoricalField):
                used = (field.table,)
                if field.combiner not in COMBINERS:
                    raise DataError(
                        f"field {field.name!r}: combiner {field.combiner!r} is "
                        f"unknown; {suggest(field.combiner, COMBINERS)}"
                    )
                _check_weights(field)
            elif isinstance(field, SequenceField):
                used = tuple(column.table for column in field.columns)
                if field.max_length < 1 or not field.columns:
                    raise DataError(
                        f"sequence {field.name!r} needs columns and max_length >= 1"
                    )
            for name in used:
                if name not in tables:
                    raise DataError(
                        f"field {field.name!r} uses table {name!r}, which the card "
                        f"does not define; {suggest(name, tuple(tables))}"
                    )

    def to_json(self) -> str:
        """Returns the text of `dataset.json`."""
        tree = dataclasses.asdict(self)
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        tree["fields"] = [
            {"kind": kinds[type(field)], **dataclasses.asdict(field)}
            for field in self.fields
        ]
        for entry in tree["fields"]:
            # Left out where unused, so that a folder keeps the fingerprint it had
            # before fields could have weights.
            if not entry.get("weights"):
                entry.pop("weights", None)
        return json.dumps(tree, indent=1) + "\n"

    def save(self, folder: str | pathlib.Path) -> None:
        """Writes `dataset.json` into the folder."""
        (pathlib.Path(folder) / FILE_NAME).write_text(self.to_json())


def load(folder: str | pathlib.Path) -> Card:
    """Reads the card of a dataset folder.

    Raises:
        DataError: no card there, or one that cannot be understood.
    """
    path = pathlib.Path(folder) / FILE_NAME
    if not path.is_file():
        raise DataError(
            f"{folder} is not a dataset folder: {FILE_NAME} is missing; make one with "
            "python -m data_pipelines.tabular or another pipeline"
        )
    try:
        tree = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    return from_dict(tree, where=str(path))


def from_dict(tree: Any, *, where: str) -> Card:
    """Builds a card from parsed JSON; `where` opens every error message."""
    tree = dict(_mapping(tree, where))
    tree["tables"] = tuple(
        _build(Table, entry, f"{where}: tables[{i}]")
        for i, entry in enumerate(_list(tree.get("tables"), f"{where}: tables"))
    )
    fields = []
    for i, entry in enumerate(_list(tree.get("fields"), f"{where}: fields")):
        at = f"{where}: fields[{i}]"
        entry = dict(_mapping(entry, at))
        kind = entry.pop("kind", None)
        if kind not in _KINDS:
            raise DataError(f"{at}: kind {kind!r} is unknown; known: {tuple(_KINDS)}")
        if kind == "sequence":
            entry["columns"] = tuple(
                _build(SequenceColumn, column, f"{at}.columns[{j}]")
                for j, column in enumerate(_list(entry.get("columns"), at))
            )
        fields.append(_build(_KINDS[kind], entry, at))
    tree["fields"] = tuple(fields)
    tree["labels"] = tuple(
        _build(Label, entry, f"{where}: labels[{i}]")
        for i, entry in enumerate(_list(tree.get("labels"), f"{where}: labels"))
    )
    tree["slices"] = tuple(
        _build(Slice, _with_tuple(entry, "values"), f"{where}: slices[{i}]")
        for i, entry in enumerate(_list(tree.get("slices", []), f"{where}: slices"))
    )
    tree["splits"] = {
        name: _build(Split, entry, f"{where}: splits[{name!r}]")
        for name, entry in _mapping(tree.get("splits"), f"{where}: splits").items()
    }
    return _build(Card, tree, where)


def _with_tuple(entry: Any, key: str) -> Any:
    """Makes the JSON list under a key a tuple, which dataclasses can hold frozen."""
    if isinstance(entry, dict) and isinstance(entry.get(key), list):
        return {**entry, key: tuple(entry[key])}
    return entry


def _check_weights(field: CategoricalField) -> None:
    """Raises where there is nothing that the weights of a field could weigh."""
    if not field.weights:
        return
    found = f"field {field.name!r} names weights {field.weights!r}"
    if field.max_length < 1:
        raise DataError(
            f"{found}, but has one id per example (max_length = {field.max_length}); "
            "weights belong to a list: set max_length, or leave weights away"
        )
    if field.combiner == "none":
        raise DataError(
            f"{found}, but combiner 'none' combines nothing; use 'sum' or 'mean', or "
            "leave weights away"
        )


def _unique(what: str, names: list[str], card: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"card {card!r} names {what} {twice[0]!r} twice")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object, found {value!r:.80}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {value!r:.80}")
    return value


def _build(cls: type, entry: Any, where: str) -> Any:
    """Calls a flat dataclass with a JSON object after checking keys and types."""
    entry = _mapping(entry, where)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in entry.items():
        if key not in known:
            raise DataError(
                f"{where}: unknown key {key!r}; {suggest(key, tuple(known))}"
            )
        expected = known[key].type
        if expected in (str, int) and type(value) is not expected:
            raise DataError(
                f"{where}: {key} must be {expected.__name__}, found {value!r:.80}"  # type: ignore
            )
    missing = [
        name
        for name, field in known.items()
        if name not in entry
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise DataError(f"{where}: key {missing[0]!r} is missing")
    return cls(**entry)
