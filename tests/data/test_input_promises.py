"""What the reader promises on files: bounded memory, and going on after a kill."""

from itertools import chain
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

from rankax.config.experiment import ParquetConfig
from rankax.data import card as cards
from rankax.data import lanes, packing, source
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.order import Position
from rankax.data.schema import Schema

LANES = 4


def make_folder(folder, *, num_groups, rows, num_columns):
    """Writes a split "train" whose field "row" numbers its rows."""
    fields = (
        CategoricalField(name="row", table="row"),
        *(NumericField(name=f"x{i}") for i in range(num_columns)),
        SequenceField(
            name="past",
            columns=(SequenceColumn(name="row", table="row", column="past"),),
            max_length=num_columns,
        ),
    )
    num_rows = num_groups * rows
    rng = np.random.default_rng(0)
    with DatasetWriter(folder, rows_per_group=rows) as writer:
        for group in range(num_groups):
            first = group * rows
            columns = {
                f"x{i}": rng.random(rows, np.float32) for i in range(num_columns)
            }
            row = np.arange(first, first + rows, dtype=np.int32)
            # Row groups of different sizes in memory.
            lengths = rng.integers(0, num_columns // (1 + group % 2) + 1, rows)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            events = rng.integers(0, num_rows, offsets[-1]).astype(np.int32)
            past = pa.ListArray.from_arrays(offsets, events)
            columns |= {"row": row, "click": row % 2, "past": past}
            writer.write("train", pa.table(columns))
        card = Card(
            name="made",
            tables=(Table(name="row", num_rows=num_rows),),
            fields=fields,
            labels=(Label(name="click"),),
            splits={"train": Split(num_rows=num_rows)},
        )
        writer.finish(card)
    return folder


def open_train(folder, fields=()):
    schema = Schema.select(cards.load(folder), fields=fields)
    return source.open_split(ParquetConfig(path=str(folder)), "train", schema), schema


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("shuffle", "shard_count"),
    [(True, 1), (False, 2)],
    ids=["training", "evaluation by two processes"],
)
def test_memory_is_bounded_by_lanes_and_prefetch(tmp_path, shuffle, shard_count):
    num_threads, rows, size = 1, 8192, 512
    in_use = LANES // shard_count + num_threads + 1
    # The constant: each thread reads one row group and packs it.
    bound = in_use + 4 * num_threads
    folder = make_folder(
        tmp_path / "data", num_groups=10 * bound, rows=rows, num_columns=20
    )
    train, schema = open_train(folder)
    table = train.read(0)  # one of the larger
    block = packing.encode(table, schema, where="")  # and the list's values as they are
    arrays = (block.words, block.starts, block.lengths, table["past"])
    group_bytes = sum(array.nbytes for array in arrays)
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    default = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        batches = lanes.read_batches(
            train,
            schema,
            batch_size=size,
            lanes=LANES,
            seed=0,
            shuffle=shuffle,
            num_epochs=2,  # where one ends and the next begins, too
            shard_count=shard_count,
            num_threads=num_threads,
        )
        seen = 0
        for batch, _ in batches:
            seen += np.count_nonzero(batch["weight"])
        _, of_numpy = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert seen == 2 * 10 * bound * rows // shard_count
    # Two batches wait, one is made, one is here.
    of_batches = 4 * sum(array.nbytes for array in batch.values())
    peak = (of_numpy + pool.max_memory() - of_batches) / group_bytes
    assert in_use / 2 < peak < bound, f"{peak:.1f} row groups, expected <= {bound}"


# ---------------------------------------------------------------- kill


def note_what_is_read(folder: str, out: str) -> None:
    """Reads with threads; after every batch notes its rows and the position."""
    train, schema = open_train(folder, fields=("row",))
    batches = lanes.read_batches(
        train,
        schema,
        batch_size=64,
        lanes=LANES,
        seed=3,
        shuffle=True,
        num_epochs=1,
        num_threads=2,
    )
    with open(out, "w") as file:
        for batch, position in batches:
            note = {"rows": real_rows(batch), "position": position.to_dict()}
            file.write(json.dumps(note) + "\n")
            file.flush()
            print("read", flush=True)
            sys.stdin.readline()  # the parent says when to go on


def real_rows(batch):
    return batch["ids"][batch["weight"] > 0, 0].tolist()


def read_and_kill(folder, out, *, after: int) -> list[dict]:
    """Lets another process read some batches, kills it, and returns its notes."""
    root = pathlib.Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, __file__, str(folder), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    )
    try:
        for _ in range(after):
            assert child.stdout.readline() == b"read\n"
            child.stdin.write(b"\n")
            child.stdin.flush()
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    lines = [line for line in out.read_text().splitlines() if line.endswith("}")]
    return [json.loads(line) for line in lines]


def test_after_a_kill_other_processes_read_every_other_example_once(tmp_path):
    folder = make_folder(tmp_path / "data", num_groups=9, rows=100, num_columns=1)
    notes = read_and_kill(folder, tmp_path / "notes", after=6)[:6]
    position = Position.from_dict(notes[-1]["position"])
    assert 0 < position.rows_per_lane < 900 // LANES
    train, schema = open_train(folder, fields=("row",))

    def go_on(shard, count):
        return [
            real_rows(batch)
            for batch, _ in lanes.read_batches(
                train,
                schema,
                batch_size=64,
                lanes=LANES,
                seed=3,
                shuffle=True,
                num_epochs=1,
                position=position,
                shard_index=shard,
                shard_count=count,
                num_threads=2,
            )
        ]

    before = [row for note in notes for row in note["rows"]]
    for count in (1, 2, 4):
        parts = [go_on(shard, count) for shard in range(count)]
        assert len({len(part) for part in parts}) == 1  # steps are equal everywhere
        after = [row for part in parts for batch in part for row in batch]
        assert sorted(before + after) == list(range(900))
        # Side by side they are the batches that one process reads.
        whole = [list(chain(*own)) for own in zip(*parts, strict=True)]
        assert whole == go_on(0, 1)


def test_a_position_in_other_files_is_refused(tmp_path):
    folder = make_folder(tmp_path / "data", num_groups=8, rows=50, num_columns=1)
    train, schema = open_train(folder)
    options = dict(lanes=LANES, seed=0, shuffle=True)
    position = lanes.start_position(train, **options)
    other = make_folder(tmp_path / "other", num_groups=8, rows=50, num_columns=2)
    shutil.copy(other / "train/00000.parquet", folder / "train/00000.parquet")
    changed, _ = open_train(folder)
    with pytest.raises(DataError, match="the position to go on from belongs to the"):
        lanes.read_batches(
            changed, schema, batch_size=64, num_epochs=1, position=position, **options
        )


if __name__ == "__main__":
    note_what_is_read(*sys.argv[1:])
