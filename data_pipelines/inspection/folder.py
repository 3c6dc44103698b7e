"""A dataset folder as polars sees it, and what can be wrong with it.

Every question is a lazy query over one column or a few, run by polars' streaming
engine: memory holds the columns of one row group per thread, and the answer.
"""

import dataclasses
import functools
import pathlib
from typing import Any, Literal

import polars as pl

from rankax.data import card as cards
from rankax.data.card import (
    CategoricalField,
    DataError,
    NumericField,
    SequenceField,
)
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema

TRAIN = "train"
Level = Literal["error", "warning", "info"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found.

    Attributes:
        check: its name, such as "knows the future".
        level: "error" = a leak, or data that cannot be trained on.
        subject: field, column or split.
        found: the fact, with its figures.
        why: what it does to a model.
        advice: what to do.
        figures: the same as numbers.
    """

    check: str
    level: Level
    subject: str
    found: str
    why: str = ""
    advice: str = ""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One Parquet column of features.

    Attributes:
        name: of the field, or "<sequence>/<aspect>".
        column: in the Parquet files.
        kind: "id", "list" (of ids), "number" or "vector".
        table: of the ids.
        aspect_of: the sequence; "" = the column is a field of its own.
        boundaries: of a bucketised field.
    """

    name: str
    column: str
    kind: Literal["id", "list", "number", "vector"]
    table: str = ""
    aspect_of: str = ""
    boundaries: tuple[float, ...] = ()

    @property
    def values(self) -> pl.Expr:
        """The ids or numbers as the model gets them, but for defaults and transforms.

        NaN is null.
        """
        values = pl.col(self.column)
        if self.boundaries:
            ends = pl.lit(pl.Series(self.boundaries, dtype=pl.Float64))
            ids = ends.search_sorted(values.cast(pl.Float64), side="right")
            return pl.when(values.is_not_null()).then(ids)
        if self.kind == "number":
            return values.cast(pl.Float64).fill_nan(None)
        return values


class Folder:
    """Opens the splits of a dataset folder; see the module."""

    def __init__(self, path: pathlib.Path, *, max_rows: int = 0):
        """Reads the card and the footers of all shards.

        Args:
            path: dataset folder.
            max_rows: look at this many rows of a split at most, evenly spread over
                it; 0 = at all of them.

        Raises:
            DataError: not a dataset folder, or shards that are not what the card says.
        """
        self.path = path
        self.card = cards.load(path)
        if TRAIN not in self.card.splits:
            raise DataError(
                f"{path} has splits {tuple(self.card.splits)}, but no {TRAIN!r}; what "
                "is unseen, and what a field tells, is measured against training rows"
            )
        held_out = [name for name in self.card.splits if name != TRAIN]
        self.splits = (TRAIN, *held_out)
        for split in self.splits:
            ParquetSplit(path, split, Schema.select(self.card))  # checks them
        self.columns = _columns(self.card)
        self.labels = {
            label.name: label.column or label.name for label in self.card.labels
        }
        self._step = {
            split: max(1, -(-self.card.splits[split].num_rows // max_rows))
            if max_rows
            else 1
            for split in self.splits
        }

    @property
    def is_sampled(self) -> bool:
        """Whether `max_rows` leaves rows out."""
        return max(self._step.values()) > 1

    def rows(self, *, whole: bool = False) -> pl.LazyFrame:
        """Returns the rows of all splits, with one more column " split", 0 = train.

        Args:
            whole: do not leave out rows for `max_rows`.
        """
        return pl.concat(
            [
                self._split(i, 1 if whole else self._step[s])
                for i, s in enumerate(self.splits)
            ]
        )

    def select(self, **columns: pl.Expr) -> pl.LazyFrame:
        """Returns named columns, "split", and the labels as "label 0", "label 1"."""
        labels = {
            f"label {i}": pl.col(column).cast(pl.Float64)
            for i, column in enumerate(self.labels.values())
        }
        return self.rows().select(split=pl.col(" split"), **labels, **columns)

    def _split(self, number: int, step: int) -> pl.LazyFrame:
        shards = sorted((self.path / self.splits[number]).glob("*.parquet"))
        rows = pl.scan_parquet(shards, glob=False)
        if step > 1:
            rows = rows.with_row_index(" row").filter(pl.col(" row") % step == 0)
            rows = rows.drop(" row")
        return rows.with_columns(pl.lit(number, pl.Int8).alias(" split"))

    @functools.cached_property
    def num_rows(self) -> dict[str, int]:
        """Rows of each split that are looked at."""
        found = collect(self.rows().group_by(" split").len())
        counts = dict(found.iter_rows())
        return {name: counts.get(i, 0) for i, name in enumerate(self.splits)}


def collect(query: pl.LazyFrame) -> pl.DataFrame:
    """Runs a query without holding more of its input than the threads work on."""
    result = query.collect(engine="streaming")
    assert isinstance(result, pl.DataFrame)
    return result


def _columns(card: cards.Card) -> tuple[Column, ...]:
    columns = []
    for field in card.fields:
        if isinstance(field, SequenceField):
            columns += [
                Column(
                    name=f"{field.name}/{aspect.name}",
                    column=aspect.column,
                    kind="list",
                    table=aspect.table,
                    aspect_of=field.name,
                )
                for aspect in field.columns
            ]
        elif isinstance(field, CategoricalField):
            columns.append(
                Column(
                    name=field.name,
                    column=field.column or field.name,
                    kind="list" if field.max_length else "id",
                    table=field.table,
                    boundaries=field.boundaries,
                )
            )
        else:
            is_number = isinstance(field, NumericField)
            columns.append(
                Column(
                    name=field.name,
                    column=field.column or field.name,
                    kind="number" if is_number else "vector",
                )
            )
    return tuple(columns)
