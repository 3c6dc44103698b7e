"""What a conversion shall make of raw columns: fields, labels, tables."""

import dataclasses

from rankax.config.base import suggest
from rankax.data.card import (
    CategoricalField,
    DataError,
    Field,
    NumericField,
    SequenceField,
    VectorField,
)

SPECIAL_KINDS = {"weight": "number", "group": "id", "time": "time", "domain": "id"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelRule:
    """`column` itself is 0 or 1, or, with a threshold, column >= threshold."""

    name: str
    column: str
    threshold: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the dataset folder shall hold.

    Attributes:
        name: of the data set.
        fields: fields of the card; their names and columns are raw columns.
        labels: how each label is made.
        special: "weight", "group", "time", "domain" -> raw column.
        hashed: table -> number of rows; all other tables are vocabularies.
        min_count: ids that training has less often are unknown ids.
        slices: raw columns of few values, by which evaluation reports metrics.
        slice_values: slice column -> its values, where they are known beforehand; all
            that the data have.
        origin: for the card.
        licence: for the card.
    """

    name: str
    fields: tuple[Field, ...]
    labels: tuple[LabelRule, ...]
    special: dict[str, str] = dataclasses.field(default_factory=dict)
    hashed: dict[str, int] = dataclasses.field(default_factory=dict)
    min_count: int = 1
    slices: tuple[str, ...] = ()
    slice_values: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    origin: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise DataError(f"--min_count={self.min_count}: expected 1 or more")

    def id_columns(self) -> dict[str, tuple[str, str]]:
        """Returns raw column -> (its table, "id" or "list")."""
        columns: dict[str, tuple[str, str]] = {}
        for field in self.fields:
            used = []
            if isinstance(field, CategoricalField):
                used = [(field.name, field.table, "list" if field.max_length else "id")]
            elif isinstance(field, SequenceField):
                used = [(c.column, c.table, "list") for c in field.columns]
            for column, table, kind in used:
                known = columns.setdefault(column, (table, kind))
                if known != (table, kind):
                    raise DataError(
                        f"column {column!r} is used twice, as {known[1]} of table "
                        f"{known[0]!r} and as {kind} of table {table!r}; use it in one "
                        f"way, perhaps with --share={column}={table}"
                    )
        return columns

    def kinds(self) -> dict[str, str]:
        """Returns raw column -> its kind in `raw_files.find_columns`."""
        kinds = {column: kind for column, (_, kind) in self.id_columns().items()}
        others = [(f.name, "number") for f in self.fields if type(f) is NumericField]
        others += [(f.name, "vector") for f in self.fields if type(f) is VectorField]
        others += [(label.column, "number") for label in self.labels]
        others += [(column, SPECIAL_KINDS[k]) for k, column in self.special.items()]
        for column in self.slices:
            if kinds.get(column) == "list":
                raise DataError(f"{column!r} cannot be sliced by: it holds lists")
            others.append((column, kinds.get(column, "id")))
        for column, kind in others:
            if kinds.setdefault(column, kind) != kind:
                raise DataError(
                    f"column {column!r} cannot be read as {kind} and as "
                    f"{kinds[column]}; write it under two names"
                )
        fields = {*self.id_columns(), *(field.name for field in self.fields)}
        for label in self.labels:
            if {label.name, label.column} & fields:
                raise DataError(
                    f"label {label.name!r} is also a field: the model would see what "
                    "it has to predict; remove or rename one"
                )
        return kinds

    def tables(self) -> tuple[str, ...]:
        """Returns the tables of the ids, each once.

        Raises:
            DataError: flags that contradict each other.
        """
        tables = dict.fromkeys(table for table, _ in self.id_columns().values())
        for column, (table, _) in self.id_columns().items():
            if "/" in table:
                raise DataError(
                    f"column {column!r} has table {table!r}, but a file of the "
                    "vocabulary is called as its table; give it a name without '/', "
                    f"perhaps with --share={column}=NAME"
                )
        for table in self.hashed:
            if table not in tables:
                raise DataError(
                    f"--hash={table}: no field uses this table; "
                    f"{suggest(table, tuple(tables))}"
                )
        if self.min_count > 1 and tables.keys() == self.hashed.keys():
            raise DataError(
                f"--min_count={self.min_count}: all tables are hashed, and rare ids "
                "are left out of vocabularies only; leave it at 1"
            )
        return tuple(tables)

    def vocabularies(self) -> tuple[str, ...]:
        """Returns the tables that are not hashed."""
        return tuple(table for table in self.tables() if table not in self.hashed)
