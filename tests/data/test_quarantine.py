import dataclasses
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.data import quarantine
from rankax.data.card import Card, CategoricalField, DataError, Label, Split, Table
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema

ROWS, SHARDS, GROUP = 120, 4, 10  # three row groups a shard
CARD = Card(
    name="made",
    tables=(Table(name="row", num_rows=ROWS),),
    fields=(CategoricalField(name="row", table="row"),),
    labels=(Label(name="click"),),
    splits={"train": Split(num_rows=ROWS)},
)
SCHEMA = Schema.select(CARD)


def rows_of(numbers) -> pa.Table:
    row = np.asarray(numbers, np.int64)
    return pa.table({"row": row, "click": row % 2})


@pytest.fixture
def folder(tmp_path):
    with DatasetWriter(tmp_path / "made", rows_per_group=GROUP) as writer:
        for shard in range(SHARDS):
            with writer.part(shard) as part:
                part.write("train", rows_of(np.arange(30) + 30 * shard))
                part.finish({})
        writer.finish(CARD)
    return tmp_path / "made"


def flip(path, row_group: int) -> None:
    """Changes one bit of a row group's column "row"."""
    column = pq.read_metadata(path).row_group(row_group).column(0)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset - 1] ^= 1
    path.write_bytes(bytes(content))


def found_in(folder, *, share=0.5, follow=lambda total: lambda done: None):
    return quarantine.find(
        str(folder), "train", SCHEMA, share=share, num_threads=2, follow=follow
    )


def places(left_out):
    return [(entry.file, entry.row_group, entry.num_rows) for entry in left_out]


def read_rows(source):
    groups = range(len(source.rows_per_group))
    return sorted(x for g in groups for x in source.read(g)["row"].to_pylist())


def test_nothing_is_left_out_of_a_sound_split(folder):
    seen = []
    assert (
        found_in(folder, follow=lambda total: lambda n: seen.append((n, total))) == ()
    )
    assert seen == [(n, 12) for n in range(1, 13)]
    alone = ParquetSplit(folder, "train", SCHEMA)
    assert ParquetSplit(folder, "train", SCHEMA, left_out=()).fingerprint == (
        alone.fingerprint
    )


def test_damage_of_each_kind_is_named_and_the_rest_is_read(folder):
    sound = ParquetSplit(folder, "train", SCHEMA).fingerprint
    train = folder / "train"
    flip(train / "00000.parquet", 1)
    os.truncate(train / "00001.parquet", 200)
    left_out = found_in(folder, share=0.4)
    assert places(left_out) == [
        ("00001.parquet", -1, -1),
        ("00000.parquet", 1, 10),
    ]
    assert "CRC" in left_out[1].why
    assert "00000.parquet row group 1, 10 rows (" in str(left_out[1])
    source = ParquetSplit(folder, "train", SCHEMA, left_out=left_out)
    assert read_rows(source) == [*range(10), *range(20, 30), *range(60, 120)]
    assert source.fingerprint != sound
    assert source.fingerprint == (
        ParquetSplit(folder, "train", SCHEMA, left_out=left_out[::-1]).fingerprint
    )


def test_a_shard_of_other_columns_is_left_out_wherever_it_stands(folder):
    path = folder / "train/00000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(0, "row", table["row"].cast(pa.int32())), path)
    (entry,) = found_in(folder)
    assert places([entry]) == [("00000.parquet", -1, 30)]
    assert entry.why == "column 'row' is int32, but int64 in most shards"
    pq.write_table(table.rename_columns(["raw", "click"]), path)
    (entry,) = found_in(folder)
    assert entry.why == "column 'row' is missing, but int64 in most shards"


def test_more_than_the_share_is_an_error_that_names_files(folder):
    for shard in range(2):
        os.truncate(folder / f"train/0000{shard}.parquet", 200)
    assert len(found_in(folder, share=0.5)) == 2
    with pytest.raises(
        DataError, match=r"60 of 120 rows cannot be read, more than .* 0\.4[\s\S]*00001"
    ):
        found_in(folder, share=0.4)
    for shard in range(4):
        os.truncate(folder / f"train/0000{shard}.parquet", 200)
    with pytest.raises(DataError, match=r"00000.parquet is not a readable"):
        found_in(folder, share=0.99)


def test_what_is_out_of_reach_is_not_left_out(folder, monkeypatch):
    """A file that cannot be opened today may be there tomorrow."""

    def refuse(self, place):
        raise PermissionError(13, "Permission denied", place.path)

    monkeypatch.setattr(ParquetSplit, "_check_unchanged", refuse)
    with pytest.raises(DataError, match="Permission denied"):
        found_in(folder)


def test_a_missing_shard_stays_an_error(folder):
    (folder / "train/00002.parquet").unlink()
    with pytest.raises(DataError, match="a shard is missing"):
        found_in(folder)
    flip(folder / "train/00000.parquet", 0)
    with pytest.raises(DataError, match="a shard is missing"):
        found_in(folder)


def test_wrong_values_stay_errors(folder):
    path = folder / "train/00003.parquet"
    table = pq.read_table(path)
    clicks = table["click"].to_numpy() + 7
    pq.write_table(table.set_column(1, "click", [clicks]), path, row_group_size=GROUP)
    assert found_in(folder) == ()


def test_a_shard_that_cannot_tell_its_rows_may_have_had_none(folder):
    (folder / "train/00009.parquet").touch()
    left_out = found_in(folder)
    assert places(left_out) == [("00009.parquet", -1, -1)]
    source = ParquetSplit(folder, "train", SCHEMA, left_out=left_out)
    assert read_rows(source) == list(range(ROWS))


def test_a_split_that_lost_more_than_it_was_told_of_is_refused(folder):
    flip(folder / "train/00000.parquet", 1)
    (entry,) = found_in(folder)
    wrong = dataclasses.replace(entry, num_rows=11)
    with pytest.raises(
        DataError, match=r"110 rows, dataset.json says 109 without the 11"
    ):
        ParquetSplit(folder, "train", SCHEMA, left_out=[wrong])
