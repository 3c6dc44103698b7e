"""The conversion of raw rows to a dataset folder, in two passes.

The first pass counts the ids of the training data, the second encodes and writes the
rows of all splits. Memory holds the vocabularies and one chunk of rows.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections import Counter
from collections.abc import Iterator, Mapping
import json
import pathlib
import sys
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_pipelines import raw_files, splits
from data_pipelines.plan import SPECIAL_KINDS, Plan
from data_pipelines.vocabulary import Hashed, SliceValues, Vocabulary, stable_ids
from rankax.data import card as cards
from rankax.data import packing
from rankax.data.card import (
    Card,
    DataError,
    Label,
    NumericField,
    Slice,
    Split,
)
from rankax.data.parquet import ROWS_PER_GROUP, DatasetWriter
from rankax.data.schema import Schema

RECORD_NAME = "conversion.json"


class Rows(Protocol):
    """The rows of every split in chunks, as often as asked for.

    Attributes:
        names: the splits, "train" among them.
        rule: how the splits were made, in words, for the card.
    """

    names: tuple[str, ...]
    rule: str

    def chunks(self, *, only_train: bool = False) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows); columns of the types that `Plan.kinds` asks for."""
        ...


class RawRows:
    """The raw rows of every split in chunks, as often as asked for."""

    def __init__(
        self,
        files: dict[str, list[pathlib.Path]],
        plan: Plan,
        *,
        form: raw_files.Format,
        rule: splits.SplitRule | None = None,
    ):
        """Finds the types of the columns, and with a rule the split of every row.

        Args:
            files: split -> its files; with a rule {"data": files}.
            plan: names the columns.
            form: format of the files.
            rule: how the rows of "data" are split.

        Raises:
            DataError: a column is missing or of a wrong type.
        """
        self._files, self._form, self._split = files, form, None
        kinds = plan.kinds()
        for name, kind in rule.columns.items() if rule is not None else ():
            if kinds.setdefault(name, kind) != kind:
                raise DataError(
                    f"--split: column {name!r} cannot be read as {kind} and as "
                    f"{kinds[name]}; write it under two names"
                )
        for name in form.text:
            if kinds.get(name) not in ("id", "list"):
                raise DataError(f"--text={name}: no column of ids has this name")
        first = next(iter(files.values()))[0]
        self._columns = raw_files.find_columns(first, kinds, form)
        _check_id_types(plan, self._columns)
        self.rule, self.names = "files as given", tuple(files)
        if rule is not None:
            self.names = splits.SPLITS
            self.rule, self._split = rule.assign(lambda: self._read("data"))

    def chunks(self, *, only_train: bool = False) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows)."""
        if self._split is None:
            for name in ("train",) if only_train else self.names:
                for chunk in self._read(name):
                    yield name, chunk
            return
        for chunk in self._split():
            number = chunk[splits.SPLIT_COLUMN]
            for i, name in enumerate(self.names[: 1 if only_train else None]):
                yield name, chunk.filter(pc.equal(number, i))

    def _read(self, name: str) -> Iterator[pa.Table]:
        for file in self._files[name]:
            yield from raw_files.chunks(file, self._columns, self._form)


class TableRows:
    """Rows that are in memory already, by split; columns as `Plan.kinds` asks."""

    def __init__(self, tables: Mapping[str, pa.Table], plan: Plan, *, rule: str):
        """Casts the columns in use.

        Args:
            tables: split -> rows, "train" among them.
            plan: names the columns.
            rule: how the splits were made, in words, for the card.

        Raises:
            DataError: a column is missing, of a wrong type or not the same everywhere.
        """
        columns: dict[str, raw_files.Column] = {}
        for split in ("train", *tables):  # the types are those of train
            for name, kind in plan.kinds().items():
                found = raw_files.column_of(
                    tables[split].schema, name, kind, where=split
                )
                expected = columns.setdefault(name, found).type
                if found.type != expected:
                    raise DataError(
                        f"{split}: column {name!r} has {found.type} values, but "
                        f"{expected} in train; give it one type"
                    )
        _check_id_types(plan, columns)
        self.rule, self.names = rule, tuple(tables)
        self._tables = {
            split: pa.table(
                {
                    name: table[name].combine_chunks().cast(column.type)
                    for name, column in columns.items()
                }
            )
            for split, table in tables.items()
        }

    def chunks(self, *, only_train: bool = False) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows)."""
        for name in ("train",) if only_train else self.names:
            table = self._tables[name]
            for start in range(0, table.num_rows, raw_files.PARQUET_ROWS):
                yield name, table.slice(start, raw_files.PARQUET_ROWS)


def convert(
    plan: Plan,
    rows: Rows,
    out: pathlib.Path,
    *,
    overwrite: bool = False,
    rows_per_group: int = ROWS_PER_GROUP,
) -> Card:
    """Writes the dataset folder, and shows its progress on a terminal.

    Besides the card, the vocabularies and the rows, the folder gets conversion.json:
    of each split what was missing or unknown, "<column>: missing", "<column>: unknown"
    -> count, without zeros.

    Raises:
        DataError: a value that the reader would refuse, or an empty split.
    """
    encoders = plan.encoders()
    with (
        _progress() as progress,
        DatasetWriter(
            out, overwrite=overwrite, rows_per_group=rows_per_group
        ) as writer,
    ):
        _count_ids(plan, rows, encoders, progress)
        slices = {column: SliceValues(column) for column in plan.slices}
        schema = Schema.select(_card(plan, encoders, slices, {}, rows.rule))
        positives: dict[str, np.ndarray] = {}
        counts: dict[str, Counter] = {}
        task = progress.add_task("2/2 rows", total=None)
        for split, chunk in rows.chunks():
            start = writer.num_rows.get(split, 0)
            count = counts.setdefault(split, Counter())
            encoded = _encode(plan, chunk, encoders, slices, count)
            # Packing is the reader's own check: what passes here can be trained on.
            arrays = packing.pack(
                encoded, schema, where=f"{split} (row 0 is row {start} of the split)"
            )
            positives[split] = positives.get(split, 0) + arrays["labels"].sum(0)
            writer.write(split, _labels_as_int8(encoded, plan))
            progress.advance(task, chunk.num_rows)
        empty = [split for split in rows.names if not writer.num_rows.get(split)]
        if empty:
            raise DataError(
                f"split {empty[0]!r} is empty; give it rows, or leave it out"
            )
        done = {
            split: Split(
                num_rows=num_rows,
                positive_rate={
                    label.name: float(positive / num_rows)
                    for label, positive in zip(
                        plan.labels, positives[split], strict=True
                    )
                },
            )
            for split, num_rows in writer.num_rows.items()
        }
        found = {
            split: {key: n for key, n in sorted(counter.items()) if n}
            for split, counter in counts.items()
        }
        for name, encoder in encoders.items():
            if isinstance(encoder, Vocabulary):
                path = writer.extra_file(f"vocabularies/{name}.parquet")
                pq.write_table(encoder.to_table(), path)
        record = writer.extra_file(RECORD_NAME)
        record.write_text(json.dumps({"missing_and_unknown": found}, indent=1) + "\n")
        card = _card(plan, encoders, slices, done, rows.rule)
        writer.finish(card)
    return card


def summary(folder: pathlib.Path) -> str:
    """Returns what a dataset folder holds, for people to read.

    What was missing or unknown is told where `convert` made the folder.
    """
    card, record, found = cards.load(folder), folder / RECORD_NAME, {}
    if record.is_file():
        found = json.loads(record.read_text())["missing_and_unknown"]
    lines = []
    for name, split in card.splits.items():
        rates = [f"{label} {rate:.4f}" for label, rate in split.positive_rate.items()]
        lines.append(f"{name}: {split.num_rows:,} rows, positive {', '.join(rates)}")
        lines += [f"  {what} {n:,}" for what, n in found.get(name, {}).items()]
    lines.append("tables:")
    for table in card.tables:
        hashed = " (hashed)" if table.ids == "hash" else ""
        lines.append(f"  {table.name}: {table.num_rows:,} rows{hashed}")
    return "\n".join(lines)


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,.0f} rows"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _card(
    plan: Plan,
    encoders: dict[str, Vocabulary | Hashed],
    slices: dict[str, SliceValues],
    done: dict[str, Split],
    rule: str,
) -> Card:
    # Underlined columns stand beside the fields, which may be made of the same ones.
    special = {
        name: f"_{name}" if name in plan.special else "" for name in SPECIAL_KINDS
    }
    return Card(
        name=plan.name,
        tables=tuple(encoder.card_table() for encoder in encoders.values()),
        fields=plan.fields,
        labels=tuple(Label(name=label.name) for label in plan.labels),
        splits=done,
        split_rule=rule,
        origin=plan.origin,
        licence=plan.licence,
        weight=special["weight"],
        group=special["group"],
        time=special["time"],
        domain=special["domain"],
        slices=tuple(
            Slice(name=name, column=f"_slice_{name}", values=tuple(values.names))
            for name, values in slices.items()
        ),
    )


def _check_id_types(plan: Plan, columns: dict[str, raw_files.Column]) -> None:
    """Raises where one table would get integers from one column and text of another."""
    first: dict[str, tuple[str, pa.DataType]] = {}
    for name, (table, kind) in plan.id_columns().items():
        found = columns[name].type
        found = found.value_type if kind == "list" else found
        first_name, expected = first.setdefault(table, (name, found))
        if found != expected:
            number = name if found == pa.int64() else first_name
            raise DataError(
                f"table {table!r} is shared by column {first_name!r} with {expected} "
                f"ids and column {name!r} with {found} ids; pass --text={number}"
            )


def _count_ids(
    plan: Plan,
    rows: Rows,
    encoders: dict[str, Vocabulary | Hashed],
    progress: Progress,
) -> None:
    task = progress.add_task("1/2 vocabularies", total=None)
    num_rows = 0
    for _, chunk in rows.chunks(only_train=True):
        num_rows += chunk.num_rows
        for column, (table, kind) in plan.id_columns().items():
            encoder = encoders[table]
            if isinstance(encoder, Vocabulary):
                values = chunk[column].combine_chunks()
                encoder.count(raw_files.ragged(values)[0] if kind == "list" else values)
        progress.advance(task, chunk.num_rows)
    if not num_rows:
        raise DataError("split 'train' is empty; there is nothing to learn from")
    for encoder in encoders.values():
        if isinstance(encoder, Vocabulary):
            encoder.finish()


def _encode(
    plan: Plan,
    chunk: pa.Table,
    encoders: dict[str, Vocabulary | Hashed],
    slices: dict[str, SliceValues],
    counts: Counter,
) -> pa.Table:
    """Makes the columns of the dataset folder, labels still as numbers."""
    chunk = chunk.combine_chunks()
    raw = {name: _one_chunk(chunk[name]) for name in chunk.column_names}
    encoded: dict[str, pa.Array] = {}
    for name, (table, kind) in plan.id_columns().items():
        offsets, values = None, raw[name]
        if kind == "list":
            values, offsets = raw_files.ragged(values)
        ids, num_unknown = encoders[table].encode(values)
        counts[f"{name}: missing"] += values.null_count
        counts[f"{name}: unknown"] += num_unknown
        encoded[name] = pa.array(ids)
        if offsets is not None:
            encoded[name] = pa.ListArray.from_arrays(offsets, encoded[name])
    for field in plan.fields:
        if isinstance(field, NumericField):
            values = _nan_as_null(raw[field.name])
            counts[f"{field.name}: missing"] += values.null_count
            encoded[field.name] = _to_float32(pc.fill_null(values, 0.0))
    for label in plan.labels:
        values = _nan_as_null(raw[label.column])
        if label.threshold is not None:
            values = pc.greater_equal(values, label.threshold)
        encoded[label.name] = values.cast(pa.float64())
    for name, column in plan.special.items():
        values = raw[column]
        if name == "group":
            if column not in plan.id_columns():  # else counted above
                counts[f"{column}: missing"] += values.null_count
            values = pa.array(stable_ids(values))
        elif name == "weight":
            values = _to_float32(values)
        encoded[f"_{name}"] = values
    for name, values in slices.items():
        encoded[f"_slice_{name}"] = pa.array(values.encode(raw[name]))
    return pa.table(encoded)


def _to_float32(values: pa.Array) -> pa.Array:
    # Arrow would refuse what rounds; what overflows to infinity, the packing refuses.
    return values.cast(pa.float32(), safe=False)


def _nan_as_null(values: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(values), None, values)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    merged = column.combine_chunks()
    return merged if isinstance(merged, pa.Array) else pa.concat_arrays(merged.chunks)


def _labels_as_int8(encoded: pa.Table, plan: Plan) -> pa.Table:
    for label in plan.labels:
        place = encoded.column_names.index(label.name)
        small = encoded[label.name].cast(pa.int8())
        encoded = encoded.set_column(place, label.name, small)
    return encoded
