"""The kinds of fields that a dataset card can name, and the tables of their ids."""

import dataclasses
import math

from rankax.config.base import suggest
from rankax.data.errors import DataError

COMBINERS = ("mean", "sum", "none")
ID_MODES = ("direct", "hash")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A set of ids that fields and sequences may share.

    Attributes:
        name: unique in the card.
        num_rows: V, the number of rows after hashing or direct lookup.
        ids: "direct": the id is the row, in [0, V); "hash": any 64-bit integer, and
            any text, is hashed to a row. The salt is the table's name, not the field's,
            so that fields and sequences that share a table agree on every id's row.
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
        default: the id that a null stands for, a text where the column holds texts;
            None = a null is an error. A null list is empty if there is a default.
        boundaries: rising numbers; the column holds numbers x, and the id is how many
            boundaries are <= x. Empty = the column holds ids.
    """

    name: str
    table: str
    column: str = ""
    max_length: int = 0
    combiner: str = "mean"
    weights: str = ""
    default: int | str | None = None
    boundaries: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """min(max(x, minimum), maximum); None = no bound on that side."""

    minimum: float | None = None
    maximum: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Log1p:
    """sign(x) · log(1 + |x|)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standardise:
    """(x − mean) / deviation, of the training split."""

    mean: float
    deviation: float


Transform = Clip | Log1p | Standardise


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NumericField:
    """One float per example.

    Attributes:
        name: field name.
        column: Parquet column; "" = `name`.
        default: the number that a null stands for; None = a null is an error.
        transforms: steps in order, after the default, in float64.
    """

    name: str
    column: str = ""
    default: float | None = None
    transforms: tuple[Transform, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VectorField:
    """A list of floats per example, such as an embedding made elsewhere.

    Attributes:
        name: field name.
        width: length of every list.
        column: Parquet column; "" = `name`.
        default: the number that a null element stands for, and all of a null list;
            None = a null is an error.
    """

    name: str
    width: int
    column: str = ""
    default: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceColumn:
    """One aspect of a sequence's events ("item", "category", ...), a list column.

    `default` is the id that a null event stands for, as in `CategoricalField`.
    """

    name: str
    table: str
    column: str
    default: int | str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SequenceField:
    """Ordered past events, oldest first, as aligned list columns of equal lengths."""

    name: str
    columns: tuple[SequenceColumn, ...]
    max_length: int


Field = CategoricalField | NumericField | VectorField | SequenceField


def check_table(table: Table) -> None:
    """Raises where a table cannot be what it says."""
    if table.ids not in ID_MODES:
        raise DataError(
            f"table {table.name!r}: ids = {table.ids!r} is unknown; "
            f"{suggest(table.ids, ID_MODES)}"
        )
    if not 0 < table.num_rows <= 2**31 - 1:
        raise DataError(
            f"table {table.name!r}: num_rows = {table.num_rows} is not in 1 .. 2^31 - "
            "1, what 32-bit row ids reach; hash its ids to fewer rows"
        )


def check_field(field: Field, tables: dict[str, Table]) -> None:
    """Raises where a field contradicts itself or the tables that it names."""
    used: list[tuple[str, int | str | None]] = []
    if isinstance(field, CategoricalField):
        used.append((field.table, field.default))
        if field.combiner not in COMBINERS:
            raise DataError(
                f"field {field.name!r}: combiner {field.combiner!r} is unknown; "
                f"{suggest(field.combiner, COMBINERS)}"
            )
        _check_weights(field)
    elif isinstance(field, SequenceField):
        used += [(column.table, column.default) for column in field.columns]
        if field.max_length < 1 or not field.columns:
            raise DataError(
                f"sequence {field.name!r} needs columns and max_length >= 1"
            )
    else:
        _check_numbers(field)
    for name, default in used:
        if name not in tables:
            raise DataError(
                f"field {field.name!r} uses table {name!r}, which the card does not "
                f"define; {suggest(name, tuple(tables))}"
            )
        _check_default(field.name, default, tables[name])
    if isinstance(field, CategoricalField) and field.boundaries:
        _check_boundaries(field, tables[field.table])


def _check_default(field: str, default: int | str | None, table: Table) -> None:
    """Raises unless the table has a row for what nulls stand for."""
    if default is None:
        return
    found = f"field {field!r}: default {default!r}"
    if table.ids == "hash":
        if isinstance(default, int) and not -(2**63) <= default < 2**63:
            raise DataError(f"{found} is not a 64-bit integer; choose a smaller one")
    elif isinstance(default, str):
        raise DataError(
            f"{found} is a text, but the ids of table {table.name!r} are 'direct'; "
            "give an integer, or make the table's ids 'hash'"
        )
    elif not 0 <= default < table.num_rows:
        raise DataError(
            f"{found} is outside table {table.name!r} with num_rows = "
            f"{table.num_rows}; choose one of its rows, or raise num_rows"
        )


def _check_boundaries(field: CategoricalField, table: Table) -> None:
    """Raises unless the boundaries rise and every range has a row of the table."""
    found, limits = f"field {field.name!r}", field.boundaries
    for low, high in zip((-math.inf, *limits), (*limits, math.inf), strict=True):
        if not low < high:
            raise DataError(
                f"{found}: boundaries must be finite and rise, found {high} after "
                f"{low}; sort them and name each once"
            )
    if table.ids != "direct":
        raise DataError(
            f"{found} has boundaries, whose ids are rows, but the ids of table "
            f"{table.name!r} are {table.ids!r}; make them 'direct'"
        )
    if table.num_rows <= len(limits):
        raise DataError(
            f"{found}: {len(limits)} boundaries make {len(limits) + 1} ids, but table "
            f"{table.name!r} has num_rows = {table.num_rows}; raise it"
        )


def _check_numbers(field: NumericField | VectorField) -> None:
    """Raises where a number or a step of a field makes no sense."""
    found = f"field {field.name!r}"
    if field.default is not None and not math.isfinite(field.default):
        raise DataError(f"{found}: default = {field.default} must be finite")
    if isinstance(field, VectorField):
        if field.width < 1:
            raise DataError(
                f"{found}: width = {field.width} must be at least 1, the length of "
                "every list"
            )
        return
    for i, step in enumerate(field.transforms):
        at = f"{found}: transforms[{i}]"
        if isinstance(step, Clip):
            low = -math.inf if step.minimum is None else step.minimum
            high = math.inf if step.maximum is None else step.maximum
            if not low <= high:
                raise DataError(f"{at}: minimum = {low} must be <= maximum = {high}")
            if (low, high) == (-math.inf, math.inf):
                raise DataError(f"{at}: a clip needs a minimum or a maximum")
        elif isinstance(step, Standardise) and not (
            math.isfinite(step.mean) and 0 < step.deviation < math.inf
        ):
            raise DataError(
                f"{at}: mean = {step.mean} must be finite and deviation = "
                f"{step.deviation} finite and > 0; leave a constant column away"
            )


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
