"""The conversion of raw rows to a dataset folder, part by part, in two passes.

The first pass counts the ids of the training data, the second encodes and writes the
rows of all splits (`data_pipelines.engine.parts`). Where nothing has to be counted,
there is only the second. Parts are worked on by the threads of this machine, or by a
cluster (`data_pipelines.engine.cluster`); the files are the same. Memory holds the
vocabularies, and one chunk of rows, or one bucket of users, for each part in work. A
conversion that was killed goes on with the parts that are missing.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import sys
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from data_pipelines.engine import broken_rows, parts, raw_files
from data_pipelines.engine import cluster as clusters
from data_pipelines.engine.encoding import Encoder
from data_pipelines.engine.parts import Found, Job, Rows
from data_pipelines.engine.plan import SPECIAL_KINDS, Plan
from data_pipelines.engine.vocabulary import Hashed, SliceValues, Vocabulary
from rankax.data import card as cards
from rankax.data import storage
from rankax.data.card import Card, DataError, Label, Slice, Split
from rankax.data.dataset_writer import ROWS_PER_GROUP, DatasetWriter
from rankax.data.schema import Schema
from rankax.data.storage import Location

RECORD_NAME = "conversion.json"
MAX_THREADS = 8

Run = Callable[[Callable[[Job, Any], int], Job, Iterable[Any]], Iterator[int]]


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
        raw_files.check_id_types(plan.id_columns(), columns)
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

    num_parts = 1
    inputs = ""

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows)."""
        for name in self.names:
            table = self._tables[name]
            for start in range(0, table.num_rows, raw_files.PARQUET_ROWS):
                yield name, table.slice(start, raw_files.PARQUET_ROWS)


def convert(
    plan: Plan,
    rows: Rows,
    out: str | os.PathLike[str] | Location,
    *,
    overwrite: bool = False,
    rows_per_group: int = ROWS_PER_GROUP,
    cluster: str = "",
) -> Card:
    """Writes the dataset folder, and shows its progress on a terminal.

    Besides the card, the vocabularies and the rows, the folder gets conversion.json:
    of each split what was missing or unknown, "<column>: missing", "<column>: unknown"
    -> count, without zeros; and of each file of text the lines that were skipped.

    Args:
        plan: what to make.
        rows: of what.
        out: dataset folder to make, a path or URI.
        overwrite: replace a dataset folder that is there.
        rows_per_group: of the Parquet files.
        cluster: address of a Ray cluster, "local" = start one here; "" = none.

    Raises:
        DataError: a value that the reader would refuse, or an empty split.
    """
    tables = plan.tables()
    if rows_per_group < 1:
        raise DataError(f"--rows_per_group={rows_per_group}: expected 1 or more")
    if cluster and not storage.locate(out).is_local:
        raise DataError(
            f"--cluster: the workers share scratch space beside --out, and {out} is no "
            "folder; write to a shared disk and copy it"
        )
    run = clusters.runner(cluster) if cluster else _run_here
    with (
        _progress() as progress,
        DatasetWriter(
            out,
            overwrite=overwrite,
            rows_per_group=rows_per_group,
            inputs=_inputs(plan, rows, rows_per_group),
        ) as writer,
    ):
        scratch = writer.scratch("parts")
        scratch.mkdir(parents=True, exist_ok=True)
        unknown_slices = set(plan.slices) - plan.slice_values.keys()
        is_spooled = bool(plan.vocabularies() or unknown_slices)
        job = Job(plan=plan, rows=rows, scratch=scratch, is_spooled=is_spooled)
        found = Found(plan)
        if is_spooled:
            found = _first_pass(job, run, progress)

        def encoder(table: str) -> Encoder:
            if table in plan.hashed:
                return Hashed(table, plan.hashed[table])
            counts = found.counts.pop(table)  # which takes more memory
            return Vocabulary(table, counts, min_count=plan.min_count)

        with _pool() as pool:
            encoders = dict(zip(tables, pool.map(encoder, tables), strict=True))
        slices = {
            column: SliceValues(column, pa.array(plan.slice_values[column]))
            if column in plan.slice_values
            else SliceValues(column, found.sorted_values(column))
            for column in plan.slices
        }
        empty = _card(plan, encoders, slices, {}, rows.rule)
        job = dataclasses.replace(
            job, encoders=encoders, slices=slices, schema=Schema.select(empty)
        )
        finished = writer.records()
        todo = [i for i in range(rows.num_parts) if i not in finished]
        items = ((part, writer.part(part)) for part in todo)
        with futures.ThreadPoolExecutor(1) as beside:
            vocabularies = beside.submit(_write_vocabularies, encoders, writer)
            work = run(parts.write, job, items)
            for _ in _followed(work, "rows", rows, len(todo), progress):
                pass
            vocabularies.result()
        record, done = _sum(plan, rows, writer, found)
        path = writer.extra_file(RECORD_NAME)
        path.write_text(json.dumps(record, indent=1) + "\n")
        card = _card(plan, encoders, slices, done, rows.rule)
        writer.finish(card)
    return card


def summary(folder: str | os.PathLike[str] | Location) -> str:
    """Returns what a dataset folder holds, for people to read.

    What was missing or unknown is told where `convert` made the folder.
    """
    card, record = cards.load(folder), storage.locate(folder) / RECORD_NAME
    found, bad_lines = {}, {}
    if record.is_file():
        record = json.loads(record.read_text())
        found, bad_lines = record["missing_and_unknown"], record.get("bad_lines", {})
    lines = []
    for name, split in card.splits.items():
        rates = [f"{label} {rate:.4f}" for label, rate in split.positive_rate.items()]
        lines.append(f"{name}: {split.num_rows:,} rows, positive {', '.join(rates)}")
        lines += [f"  {what} {n:,}" for what, n in found.get(name, {}).items()]
    for file, entry in bad_lines.items():
        lines.append(f"{file}: {entry['count']:,} bad lines left out")
        lines.append(f"  the first, {entry['first']}")
    lines.append("tables:")
    for table in card.tables:
        hashed = " (hashed)" if table.ids == "hash" else ""
        lines.append(f"  {table.name}: {table.num_rows:,} rows{hashed}")
    return "\n".join(lines)


def _first_pass(job: Job, run: Run, progress: Progress) -> Found:
    places = [parts.found_path(job.scratch, i) for i in range(job.rows.num_parts)]
    done = {part for part, place in enumerate(places) if place.exists()}
    todo = [part for part in range(len(places)) if part not in done]
    work = run(parts.read, job, todo)
    total = Found(job.plan)
    with contextlib.closing(
        _followed(work, "vocabularies", job.rows, len(todo), progress)
    ) as followed:
        for part, place in enumerate(places):  # in order, while others are in work
            while part not in done:
                done.add(next(followed))
            total.merge(pickle.loads(place.read_bytes()))
    if not total.num_train_rows:
        raise DataError("split 'train' is empty; there is nothing to learn from")
    return total


def _write_vocabularies(encoders: Mapping[str, Encoder], writer: DatasetWriter) -> None:
    for name, encoder in encoders.items():
        if isinstance(encoder, Vocabulary):
            path = writer.extra_file(f"vocabularies/{name}.parquet")
            pq.write_table(encoder.to_table(), path)


def _sum(
    plan: Plan, rows: Rows, writer: DatasetWriter, found: Found
) -> tuple[dict[str, Any], dict[str, Split]]:
    """Returns the content of conversion.json, and the splits for the card."""
    counts = {split: Counter() for split in rows.names}
    positives = {split: Counter() for split in rows.names}
    bad_lines = dict(found.bad_lines)
    for _, record in sorted(writer.records().items()):
        for split, more in record["missing_and_unknown"].items():
            counts[split].update(more)
        for split, more in record["positives"].items():
            names = [label.name for label in plan.labels]
            positives[split].update(dict(zip(names, more, strict=True)))
        broken_rows.merge(bad_lines, record["bad_lines"])
    empty = [split for split in rows.names if not writer.num_rows.get(split)]
    if empty:
        raise DataError(f"split {empty[0]!r} is empty; give it rows, or leave it out")
    done = {
        split: Split(
            num_rows=writer.num_rows[split],
            positive_rate={
                label.name: positives[split][label.name] / writer.num_rows[split]
                for label in plan.labels
            },
        )
        for split in rows.names
    }
    record: dict[str, Any] = {
        "missing_and_unknown": {
            split: {key: n for key, n in sorted(counter.items()) if n}
            for split, counter in counts.items()
        }
    }
    if bad_lines:
        record["bad_lines"] = bad_lines
    return record, done


def _run_here(
    function: Callable[[Job, Any], int], job: Job, items: Iterable[Any]
) -> Iterator[int]:
    """Yields the results in the order of the items."""
    with _pool() as pool:
        running = [pool.submit(function, job, item) for item in items]
        try:
            for future in running:
                yield future.result()
        finally:
            for future in running:
                future.cancel()


def _pool() -> futures.ThreadPoolExecutor:
    return futures.ThreadPoolExecutor(min(os.cpu_count() or 1, MAX_THREADS))


def _followed(
    work: Iterator[int], what: str, rows: Rows, num_todo: int, progress: Progress
) -> Generator[int, None, None]:
    done = rows.num_parts - num_todo
    task = progress.add_task(what, total=rows.num_parts, completed=done)
    for part in work:
        progress.advance(task)
        yield part


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed} of {task.total} parts"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _inputs(plan: Plan, rows: Rows, rows_per_group: int) -> str:
    """Returns what a folder is made from; "" = a killed conversion starts anew."""
    if not rows.inputs:
        return ""
    code = hashlib.sha256()
    # Ours, and that by which text is hashed, rows are checked, and files written.
    for folder in (
        pathlib.Path(__file__).parents[1],
        pathlib.Path(cards.__file__).parent,
    ):
        for path in sorted(folder.rglob("*.py")):
            code.update(path.read_bytes())
    made_from = [rows.inputs, rows.rule, rows.num_parts, repr(plan), rows_per_group]
    return json.dumps([*made_from, code.hexdigest()])


def _card(
    plan: Plan,
    encoders: Mapping[str, Encoder],
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
            Slice(name=name, column=f"_slice_{name}", values=values.names)
            for name, values in slices.items()
        ),
    )
