"""The work of a conversion that is done part by part, on any machine and in any order.

`read` is the first pass over a part: it prepares the rows, spools them to scratch space
and counts the ids of the training data. `write` is the second one: it makes the shards
of the part. Both give the same for a part wherever and whenever they run.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections import Counter
from collections.abc import Iterator
import dataclasses
import pathlib
import pickle
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.engine import broken_rows, encoding
from data_pipelines.engine.encoding import Encoder
from data_pipelines.engine.plan import Plan
from data_pipelines.engine.vocabulary import IdCounts, SliceValues
from rankax.data import packing
from rankax.data.schema import Schema
from rankax.data.shards import PartWriter


class Rows(Protocol):
    """The rows of every split, in parts that can be read one by one.

    It is pickled and sent to the workers of a cluster.

    Attributes:
        names: the splits, "train" among them.
        rule: how the splits were made, in words, for the card.
        num_parts: units of work.
        inputs: what the rows are made of: flags, and files with sizes and times of
            change. A killed conversion goes on if this is the same; "" = never.
    """

    names: tuple[str, ...]
    rule: str
    num_parts: int
    inputs: str

    def chunks(self, part: int) -> Iterator[tuple[str, pa.Table]]:
        """Yields (split, rows) of a part: the same whenever and wherever it is called.

        Columns are of the types that `Plan.kinds` asks for. One chunk fits in memory
        several times.
        """
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What the workers need to know.

    Attributes:
        plan: what to make.
        rows: of what.
        scratch: folder that all workers see.
        encoders: of every table, from the second pass on.
        slices: of every slice column, from the second pass on.
        schema: of the folder, from the second pass on.
        is_spooled: there is a first pass.
    """

    plan: Plan
    rows: Rows
    scratch: pathlib.Path
    encoders: dict[str, Encoder] = dataclasses.field(default_factory=dict)
    slices: dict[str, SliceValues] = dataclasses.field(default_factory=dict)
    schema: Schema | None = None
    is_spooled: bool = True


class Found:
    """What the first pass finds out about one part, or several."""

    def __init__(self, plan: Plan):
        self.num_train_rows = 0
        self.counts = {table: IdCounts() for table in plan.vocabularies()}
        self.slices: dict[str, pa.Array] = {}
        self.bad_lines: dict[str, dict] = {}

    def merge(self, other: "Found") -> None:
        """Takes in what was found in the next part."""
        self.num_train_rows += other.num_train_rows
        for table, counts in other.counts.items():
            self.counts[table].merge(counts)
        for column, values in other.slices.items():
            self._add_values(column, values)
        broken_rows.merge(self.bad_lines, other.bad_lines)

    def add_slice(self, column: str, values: pa.ChunkedArray) -> None:
        """Takes in dictionary arrays of a slice column."""
        for chunk in values.chunks:
            missing = pa.nulls(int(chunk.null_count > 0), chunk.dictionary.type)
            self._add_values(column, pa.concat_arrays([chunk.dictionary, missing]))

    def sorted_values(self, column: str) -> pa.Array:
        """Returns the different values of a slice column, missing last."""
        values = self.slices[column]
        return values.take(pc.array_sort_indices(values))

    def _add_values(self, column: str, values: pa.Array) -> None:
        known = self.slices.get(column)
        values = values if known is None else pa.concat_arrays([known, values])
        self.slices[column] = pc.unique(values)


def read(job: Job, part: int) -> int:
    """Spools the prepared rows of a part, and what was found in them; returns it."""
    found, spools = Found(job.plan), {}
    try:
        for split, chunk in job.rows.chunks(part):
            prepared = encoding.prepare(job.plan, chunk)
            broken_rows.merge(found.bad_lines, broken_rows.of_chunk(chunk))
            if split == "train":
                found.num_train_rows += prepared.num_rows
                encoding.count_ids(job.plan, prepared, found.counts)
            for column in job.plan.slices:
                if column not in job.plan.slice_values:
                    found.add_slice(column, prepared[f"_slice_{column}"])
            if split not in spools:
                path = _spool(job, split, part)
                spools[split] = pa.ipc.new_stream(path, prepared.schema)
            spools[split].write_table(prepared)
    finally:
        for spool in spools.values():
            spool.close()
    for counts in found.counts.values():
        counts.total()  # merges, so that less is pickled
    place = found_path(job.scratch, part)
    partial = place.with_suffix(".partial")
    partial.write_bytes(pickle.dumps(found))
    partial.rename(place)
    return part


def write(job: Job, item: tuple[int, PartWriter]) -> int:
    """Writes the shards of a part, and returns which one it was."""
    part, writer = item
    assert job.schema is not None
    num_rows: Counter[str] = Counter()
    counts: dict[str, Counter] = {split: Counter() for split in job.rows.names}
    positives: dict[str, np.ndarray] = {}
    bad_lines: dict[str, dict] = {}
    with writer:
        for split, prepared in _prepared(job, part, bad_lines):
            encoded = encoding.finish(
                job.plan, prepared, job.encoders, job.slices, counts[split]
            )
            where = f"{split}/{part:05d} (row 0 is row {num_rows[split]} of the part)"
            # Packing is the reader's own check: what passes here can be trained on.
            packing.encode(encoded, job.schema, where=where)
            labels = [encoded[label.name].to_numpy().sum() for label in job.plan.labels]
            positives[split] = positives.get(split, 0) + np.array(labels)
            num_rows[split] += encoded.num_rows
            writer.write(split, encoding.labels_as_int8(encoded, job.plan))
        record = {
            "positives": {name: list(map(int, n)) for name, n in positives.items()},
            "missing_and_unknown": counts,
            "bad_lines": bad_lines,
        }
        writer.finish(record)
    for split in job.rows.names:
        _spool(job, split, part).unlink(missing_ok=True)
    return part


def found_path(scratch: pathlib.Path, part: int) -> pathlib.Path:
    """Returns where `read` leaves what it found in a part."""
    return scratch / f"{part:05d}.found"


def _prepared(
    job: Job, part: int, bad_lines: dict[str, dict]
) -> Iterator[tuple[str, pa.Table]]:
    if not job.is_spooled:
        for split, chunk in job.rows.chunks(part):
            broken_rows.merge(bad_lines, broken_rows.of_chunk(chunk))
            yield split, encoding.prepare(job.plan, chunk)
        return
    for split in job.rows.names:
        path = _spool(job, split, part)
        if path.exists():
            with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as spool:
                for batch in spool:
                    yield split, pa.table(batch)


def _spool(job: Job, split: str, part: int) -> pathlib.Path:
    return job.scratch / f"{part:05d}-{split}.arrow"
