import concurrent.futures
import dataclasses
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ParquetConfig, SourceConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import parquet, synthetic
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Label,
    NumericField,
    Slice,
    Split,
    Table,
)
from rankax.data.parquet import DatasetWriter
from rankax.data.schema import Schema
from rankax.data.source import load_card, open_split


def made_card(**num_rows: int) -> Card:
    return Card(
        name="made",
        tables=(Table(name="item", num_rows=1000),),
        fields=(
            CategoricalField(name="item", table="item"),
            NumericField(name="price"),
        ),
        labels=(Label(name="click"),),
        splits={split: Split(num_rows=n) for split, n in num_rows.items()},
    )


def made_table(start: int, stop: int) -> pa.Table:
    item = np.arange(start, stop, dtype=np.int32)
    return pa.table(
        {
            "unused": pa.array([["text"]] * len(item), pa.list_(pa.string())),
            "item": item,
            "price": item.astype(np.float32) / 2,
            "click": item % 2 == 0,
        }
    )


@pytest.fixture
def folder(tmp_path):
    """train = 25 rows in three shards with row groups 4, 4, 2 | 5, 5 | 5."""
    path = tmp_path / "made"
    (path / "train").mkdir(parents=True)
    pq.write_table(made_table(0, 10), path / "train" / "a.parquet", row_group_size=4)
    pq.write_table(made_table(10, 20), path / "train" / "b.parquet", row_group_size=5)
    pq.write_table(made_table(20, 25), path / "train" / "c.parquet")
    made_card(train=25).save(path)
    return path


def opened(folder, split="train", **select):
    config = ParquetConfig(path=str(folder))
    return open_split(config, split, Schema.select(load_card(config), **select))


# ---------------------------------------------------------------- reading


def test_row_groups_of_all_shards_in_order_of_names(folder):
    source = opened(folder)
    assert source.name == "made/train"
    assert source.rows_per_group.tolist() == [4, 4, 2, 5, 5, 5]
    assert source.rows_per_group.dtype == np.int64
    tables = [source.read(group) for group in range(6)]
    assert pa.concat_tables(tables)["item"].to_pylist() == list(range(25))


def test_only_needed_columns_are_read(folder):
    assert opened(folder).read(0).column_names == ["item", "price", "click"]
    assert opened(folder, fields=["price"]).read(0).column_names == ["price", "click"]


def test_many_threads_and_more_shards_than_open_files(folder, monkeypatch):
    monkeypatch.setattr(parquet, "OPEN_FILES", 1)
    source = opened(folder)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        order = [5, 0, 3, 1, 4, 2] * 20
        tables = list(pool.map(source.read, order))
    starts = np.concatenate([[0], np.cumsum(source.rows_per_group)])
    for group, table in zip(order, tables, strict=True):
        expected = list(range(starts[group], starts[group + 1]))
        assert table["item"].to_pylist() == expected


def test_empty_row_groups_and_shards_are_passed_over(folder):
    pq.write_table(made_table(0, 0), folder / "train" / "aa.parquet")
    assert opened(folder).rows_per_group.tolist() == [4, 4, 2, 5, 5, 5]


def test_fingerprint_changes_with_files_and_card(folder, tmp_path):
    first = opened(folder).fingerprint
    assert len(first) == 12 and int(first, 16) >= 0
    shutil.copytree(folder, tmp_path / "copy")
    assert opened(tmp_path / "copy").fingerprint == first  # wherever the folder is
    dataclasses.replace(made_card(train=25), licence="other").save(tmp_path / "copy")
    assert opened(tmp_path / "copy").fingerprint != first
    made_card(train=25).save(tmp_path / "copy")
    shard = tmp_path / "copy" / "train" / "b.parquet"
    pq.write_table(made_table(10, 20), shard, row_group_size=6)
    assert opened(tmp_path / "copy").fingerprint != first
    sliced = dataclasses.replace(made_card(train=25), slices=(Slice(name="item"),))
    sliced.save(folder)
    assert opened(folder).fingerprint == first  # slices cut results, not data
    (folder / "train" / "b.parquet").rename(folder / "train" / "bb.parquet")
    assert opened(folder).fingerprint != first


def test_fingerprint_changes_with_the_weights_of_a_list(folder):
    def fingerprint(weights: str) -> str:
        field = CategoricalField(
            name="tags", table="item", column="unused", max_length=2, weights=weights
        )
        dataclasses.replace(made_card(train=25), fields=(field,)).save(folder)
        return opened(folder).fingerprint

    assert len({fingerprint(weights) for weights in ("", "item", "price")}) == 3


def test_configuration_class_chooses_the_kind_of_source(folder):
    assert isinstance(opened(folder), parquet.ParquetSplit)
    config = SyntheticConfig()
    schema = Schema.select(load_card(config))
    assert load_card(config) == synthetic.card(config)
    assert isinstance(open_split(config, "test", schema), synthetic.SyntheticSplit)


# ---------------------------------------------------------------- what is refused


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is not a dataset folder"):
        load_card(ParquetConfig(path=str(tmp_path / "nowhere")))


def test_split_that_the_card_does_not_name(folder):
    with pytest.raises(DataError, match=r"no split 'train2'; did you mean 'train'\?"):
        opened(folder, "train2")


def test_split_folder_that_is_missing_or_without_files(folder):
    made_card(train=25, valid=5).save(folder)
    with pytest.raises(DataError, match=r"valid is missing, but dataset.json names"):
        opened(folder, "valid")
    (folder / "valid").mkdir()
    with pytest.raises(DataError, match=r"valid holds no \*.parquet file"):
        opened(folder, "valid")


def test_empty_split(folder):
    (folder / "valid").mkdir()
    pq.write_table(made_table(0, 0), folder / "valid" / "0.parquet")
    made_card(train=25, valid=0).save(folder)
    with pytest.raises(DataError, match=r"made/valid: the split is empty, 1 shards"):
        opened(folder, "valid")


def test_missing_shard(folder):
    (folder / "train" / "b.parquet").unlink()
    expected = "2 shards hold 15 rows, dataset.json says 25; a shard is missing"
    with pytest.raises(DataError, match=expected):
        opened(folder)


def test_shard_too_many(folder):
    shutil.copy(folder / "train" / "b.parquet", folder / "train" / "d.parquet")
    expected = "4 shards hold 35 rows, dataset.json says 25; a shard is too many"
    with pytest.raises(DataError, match=expected):
        opened(folder)


def test_missing_column_names_the_file(folder):
    path = folder / "train" / "b.parquet"
    names = ["unused", "item", "prize", "click"]
    pq.write_table(made_table(10, 20).rename_columns(names), path)
    expected = r"b.parquet: column 'price' is missing; did you mean 'prize'\?"
    with pytest.raises(DataError, match=expected):
        opened(folder)


def test_shard_with_another_type_names_the_file(folder):
    path = folder / "train" / "c.parquet"
    table = made_table(20, 25)
    wide = table.set_column(1, "item", table["item"].cast(pa.int64()))
    pq.write_table(wide, path)
    expected = "c.parquet: column 'item' has type int64, but int32 in a.parquet"
    with pytest.raises(DataError, match=expected):
        opened(folder)
    unread = table.set_column(0, "unused", pa.array([1] * 5))
    pq.write_table(unread, path)
    assert opened(folder).rows_per_group.sum() == 25  # columns not in use may differ


@pytest.mark.parametrize("content", [b"", b"PAR1", b"a,b\n1,2\n" * 100])
def test_foreign_file(folder, content):
    (folder / "train" / "b.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"b.parquet is not a readable Parquet file"):
        opened(folder)


def test_damaged_row_group_is_named_when_read(folder):
    path = folder / "train" / "a.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196  # the first pages; the footer stays
    path.write_bytes(bytes(data))
    source = opened(folder)
    with pytest.raises(DataError, match=r"a.parquet: row group 0 cannot be read"):
        source.read(0)


def test_source_without_a_kind_is_a_configuration_error():
    with pytest.raises(
        ConfigError, match=r"data.source is a SourceConfig; use Parquet"
    ):
        load_card(SourceConfig())
    with pytest.raises(ConfigError, match=r"data.source is a SourceConfig"):
        open_split(SourceConfig(), "train", Schema.select(made_card()))


# ---------------------------------------------------------------- writing


def test_writer_regroups_rows_to_groups_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUPS_PER_SHARD", 2)
    with DatasetWriter(tmp_path / "made", rows_per_group=10) as writer:
        for start, stop in ((0, 3), (3, 3), (3, 37), (37, 45)):
            writer.write("train", made_table(start, stop))
        writer.write("valid", made_table(0, 4))
        writer.finish(made_card(train=45, valid=4))
    files = sorted(p.name for p in (tmp_path / "made" / "train").iterdir())
    assert files == ["00000.parquet", "00001.parquet", "00002.parquet"]
    source = opened(tmp_path / "made")
    assert source.rows_per_group.tolist() == [10, 10, 10, 10, 5]
    rows = pa.concat_tables([source.read(group) for group in range(5)])
    assert rows["item"].to_pylist() == list(range(45))
    assert opened(tmp_path / "made", "valid").rows_per_group.tolist() == [4]
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "made") as writer:
        writer.write("train", made_table(0, 5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_leftover_of_a_killed_writer_is_replaced(tmp_path):
    (tmp_path / ".made.partial" / "train").mkdir(parents=True)
    (tmp_path / ".made.partial" / "train" / "99999.parquet").write_bytes(b"half")
    with DatasetWriter(tmp_path / "made") as writer:
        writer.write("train", made_table(0, 5))
        writer.finish(made_card(train=5))
    assert opened(tmp_path / "made").rows_per_group.tolist() == [5]


def test_existing_folder_is_replaced_only_when_asked_and_only_a_dataset(folder):
    with pytest.raises(DataError, match=r"made exists; .* pass --overwrite"):
        DatasetWriter(folder)
    with DatasetWriter(folder, overwrite=True) as writer:
        writer.write("train", made_table(0, 5))
        writer.finish(made_card(train=5))
    assert opened(folder).rows_per_group.tolist() == [5]
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"is not a dataset folder .* not be replaced"):
        DatasetWriter(folder, overwrite=True)


def test_failed_overwriting_keeps_the_old_folder(folder):
    writer = DatasetWriter(folder, overwrite=True)
    with pytest.raises(ZeroDivisionError), writer:
        writer.write("train", made_table(0, 5))
        raise ZeroDivisionError
    assert opened(folder).rows_per_group.sum() == 25


def test_card_that_states_other_rows_is_not_written(tmp_path):
    expected = r"states rows \{'train': 6\}, written were \{'train': 5\}"
    with (
        pytest.raises(DataError, match=expected),
        DatasetWriter(tmp_path / "made") as writer,
    ):
        writer.write("train", made_table(0, 5))
        writer.finish(made_card(train=6))
    assert list(tmp_path.iterdir()) == []
