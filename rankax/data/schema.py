"""Which columns a run reads, and where each stands in the packed arrays.

`Schema` is derived from the dataset card and the configuration. Everything after the
reader (routing, models, metrics) knows arrays by their place in the schema, not by
Parquet column names.

Packed arrays of n examples (all row-major):
    ids               [n, K] int32    row within its table; -1 = padding
    lengths           [n, M] int32    valid ids of each list field or sequence
    bag_weights       [n, P] float32  only if a list has weights; 0 = padding
    numeric           [n, N] float32  numeric fields and vectors, in card order
    labels            [n, T] float32  0 or 1
    weight            [n] float32     0 = padding example
    group             [n] int64       only if the card names a group column
    time              [n] int64       only if the card names a time column
    domain            [n] int32       only if the card names a domain column
    slices            [n, G] int32    only if the run reports by slices
    true_probability  [n, T] float32  only if every task's label has one
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools

from rankax.config.base import suggest
from rankax.data.card import (
    Card,
    CategoricalField,
    Field,
    Label,
    NumericField,
    SequenceField,
    Slice,
    Table,
    VectorField,
)
from rankax.data.errors import DataError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IdSlot:
    """A run of columns in `ids` that comes from one Parquet column.

    Attributes:
        field: name of the field or sequence.
        name: name of the slot: the field's, or "<sequence>/<column>".
        column: Parquet column.
        table: table of the ids.
        start: first column in `ids`.
        width: number of columns: 1, or L of a list or sequence.
        bag: column in `lengths`; -1 for a single id.
        combiner: "mean", "sum" or "none" for a list; "" for a single id and for
            sequences.
        weights: Parquet column of the weights of a list; "" = none.
        weights_start: first of its `width` columns in `bag_weights`; -1 = none.
        default: the id that a null stands for; None = a null is an error.
        boundaries: of a column of numbers, whose ids they make; () = it holds ids.
    """

    field: str
    name: str
    column: str
    table: str
    start: int
    width: int
    bag: int
    combiner: str
    weights: str = ""
    weights_start: int = -1
    default: int | str | None = None
    boundaries: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
    """The fields and tasks in use, in the card's order; see the module.

    Attributes:
        card: the dataset card.
        fields: fields in use.
        labels: labels in use, one per task.
        slices: slices to report by.
        has_default_row: whether `direct` tables end in a trained default row.
        hashed_rows: table name -> rows into which the run hashes its ids, whatever the
            card says of them.
    """

    card: Card
    fields: tuple[Field, ...]
    labels: tuple[Label, ...]
    slices: tuple[Slice, ...]
    has_default_row: bool = False
    hashed_rows: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def select(
        cls,
        card: Card,
        *,
        fields: Sequence[str] = (),
        tasks: Sequence[str] = (),
        slices: Sequence[str] = (),
        default_row: bool = False,
        hashed_rows: Mapping[str, int] | None = None,
    ) -> "Schema":
        """Selects fields, tasks and slices by name; an empty selection takes all.

        Args:
            card: the dataset card.
            fields: names of fields.
            tasks: names of labels.
            slices: names of slices.
            default_row: gives every `direct` table one row more than the card says;
                ids outside [0, V) are looked up there, in row V, and train it.
            hashed_rows: table name -> rows into which its ids are hashed.

        Raises:
            DataError: a name that the card does not have, no label at all, or ids to
                hash that are numbers of ranges.
        """
        if not card.labels:
            raise DataError(
                f"card {card.name!r} names no label, so its examples can only be "
                "scored (--mode=predict); name one in dataset.json"
            )
        schema = cls(
            card=card,
            fields=_pick("data.fields", card.fields, fields, card.name),
            labels=_pick("data.tasks", card.labels, tasks, card.name),
            slices=_pick("eval.slices", card.slices, slices, card.name),
            has_default_row=default_row,
            hashed_rows=dict(hashed_rows or {}),
        )
        for name in schema.hashed_rows:
            if name not in schema.tables:
                raise DataError(
                    f"tables.hashed_rows names {name!r}, which is no table of the "
                    f"fields in use of data set {card.name!r}; "
                    f"{suggest(name, tuple(schema.tables))}"
                )
            for slot in schema.slots:
                if slot.table == name and slot.boundaries:
                    raise DataError(
                        f"tables.hashed_rows names {name!r}, but the ids of field "
                        f"{slot.field!r} are the numbers of its ranges (boundaries), "
                        "of which there are few; leave that table out"
                    )
        return schema

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, T of them."""
        return tuple(label.name for label in self.labels)

    @property
    def numeric(self) -> tuple[NumericField | VectorField, ...]:
        """Numeric and vector fields."""
        kinds = (NumericField, VectorField)
        return tuple(field for field in self.fields if isinstance(field, kinds))

    @property
    def numeric_names(self) -> tuple[str, ...]:
        """Names of the N columns of `numeric`; "<field>/<place>" in a vector."""
        names: list[str] = []
        for field in self.numeric:
            is_vector = isinstance(field, VectorField)
            names += (
                [f"{field.name}/{place}" for place in range(field.width)]
                if is_vector
                else [field.name]
            )
        return tuple(names)

    @property
    def num_numeric(self) -> int:
        """N, the columns of `numeric`."""
        return len(self.numeric_names)

    @property
    def sequences(self) -> tuple[SequenceField, ...]:
        """Sequence fields."""
        return tuple(f for f in self.fields if isinstance(f, SequenceField))

    @functools.cached_property
    def slots(self) -> tuple[IdSlot, ...]:
        """Slots of `ids`: categorical fields first, then sequences, in card order."""
        slots: list[IdSlot] = []
        start = bag = weights_start = 0
        for field in self.fields:
            if not isinstance(field, CategoricalField):
                continue
            is_list = field.max_length > 0
            slot = IdSlot(
                field=field.name,
                name=field.name,
                column=field.column or field.name,
                table=field.table,
                start=start,
                width=field.max_length if is_list else 1,
                bag=bag if is_list else -1,
                combiner=field.combiner if is_list else "",
                weights=field.weights,
                weights_start=weights_start if field.weights else -1,
                default=field.default,
                boundaries=field.boundaries,
            )
            slots.append(slot)
            start += slot.width
            bag += is_list
            weights_start += slot.width if field.weights else 0
        for field in self.sequences:
            for column in field.columns:
                slot = IdSlot(
                    field=field.name,
                    name=f"{field.name}/{column.name}",
                    column=column.column,
                    table=column.table,
                    start=start,
                    width=field.max_length,
                    bag=bag,
                    combiner="",
                    default=column.default,
                )
                slots.append(slot)
                start += slot.width
            bag += 1
        return tuple(slots)

    @property
    def num_id_columns(self) -> int:
        """K, the columns of `ids`."""
        return sum(slot.width for slot in self.slots)

    @property
    def num_bags(self) -> int:
        """M, the columns of `lengths`."""
        return max((slot.bag for slot in self.slots), default=-1) + 1

    @property
    def num_bag_weights(self) -> int:
        """P, the columns of `bag_weights`."""
        return sum(slot.width for slot in self.slots if slot.weights)

    @functools.cached_property
    def tables(self) -> dict[str, Table]:
        """Tables that the selected fields use, in the card's order."""
        used = {slot.table for slot in self.slots}
        return {
            table.name: self._as_hashed(table)
            for table in self.card.tables
            if table.name in used
        }

    def _as_hashed(self, table: Table) -> Table:
        rows = self.hashed_rows.get(table.name)
        return dataclasses.replace(table, num_rows=rows, ids="hash") if rows else table

    @property
    def card_in_use(self) -> Card:
        """The card with the rows that the run hashes into."""
        tables = tuple(map(self._as_hashed, self.card.tables))
        return dataclasses.replace(self.card, tables=tables)

    @functools.cached_property
    def default_rows(self) -> dict[str, int]:
        """Table name -> its default row V, the last one; empty where ids are checked.

        Hashed tables have none: every id has a row there.
        """
        if not self.has_default_row:
            return {}
        direct = [table for table in self.tables.values() if table.ids == "direct"]
        return {table.name: table.num_rows for table in direct}

    @property
    def num_rows(self) -> dict[str, int]:
        """Table name -> rows of the embedding table, the default row included."""
        return {
            name: table.num_rows + (name in self.default_rows)
            for name, table in self.tables.items()
        }

    @property
    def has_true_probability(self) -> bool:
        """Whether there are tasks, and the true probability of every one is known."""
        return bool(self.labels) and all(
            label.true_probability for label in self.labels
        )


def _pick(option: str, known: Sequence, names: Sequence[str], card: str) -> tuple:
    by_name = {entry.name: entry for entry in known}
    for name in names:
        if name not in by_name:
            advice = "its card names none"
            if by_name:
                advice = suggest(name, tuple(by_name))
            raise DataError(
                f"{option} names {name!r}, which data set {card!r} does not have; "
                f"{advice}"
            )
    wanted = set(names) or by_name.keys()
    return tuple(entry for entry in known if entry.name in wanted)
