import concurrent.futures
import dataclasses
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig, SourceConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import order, parquet, synthetic
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
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.parquet import ParquetSplit
from rankax.data.schema import Schema
from rankax.data.source import load_card, open_split
from rankax.models.base import named_config
from rankax.training.setup import set_up


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


def test_shards_stay_open_between_row_groups(folder, monkeypatch):
    source = opened(folder)
    opened_shards = []

    class Counting(pq.ParquetFile):
        def __init__(self, path, **options):
            opened_shards.append(path.rpartition("/")[2])
            super().__init__(path, **options)

    monkeypatch.setattr(pq, "ParquetFile", Counting)
    for group in (0, 1, 3, 2, 4):
        source.read(group)
    assert opened_shards == ["a.parquet", "b.parquet"]


def test_empty_row_groups_and_shards_are_passed_over(folder):
    shards = folder / "train"
    pq.write_table(made_table(0, 0), shards / "aa.parquet")  # without a row group
    with pq.ParquetWriter(shards / "b.parquet", made_table(0, 0).schema) as writer:
        for start, stop in ((10, 15), (15, 15), (15, 20)):
            writer.write_table(made_table(start, stop))
    assert pq.read_metadata(shards / "b.parquet").num_row_groups == 3
    source = opened(folder)
    assert source.rows_per_group.tolist() == [4, 4, 2, 5, 5, 5]
    assert source.read(4)["item"].to_pylist() == list(range(15, 20))
    assert source.where(4) == "made/train, b.parquet row group 2"


def test_a_row_group_is_named_by_its_file(folder):
    source = opened(folder)
    assert source.where(0) == "made/train, a.parquet row group 0"
    assert source.where(4) == "made/train, b.parquet row group 1"


def test_times_of_a_row_group(folder):
    card = dataclasses.replace(made_card(train=25), time="item")
    source = parquet.ParquetSplit(folder, "train", Schema.select(card))
    assert source.times(3).tolist() == [10, 11, 12, 13, 14]
    assert source.times(3).dtype == np.int64


@pytest.mark.parametrize(
    ("kind", "is_told"),
    [
        (pa.int64(), True),
        (pa.int32(), True),
        (pa.uint64(), False),
        (pa.timestamp("s"), True),
        (pa.timestamp("ms"), True),
        (pa.timestamp("us", tz="UTC"), True),
        (pa.timestamp("ns"), False),
        (pa.date32(), True),
    ],
)
def test_footer_tells_the_time_range_that_reading_does(folder, kind, is_told):
    for path, start in (("a", 0), ("b", 10), ("c", 20)):
        path = folder / "train" / f"{path}.parquet"
        when = pa.array(range(start, start + pq.read_metadata(path).num_rows))
        when = when.cast(pa.int32()) if kind == pa.date32() else when
        rows = pq.read_table(path).append_column("when", when.cast(kind))
        pq.write_table(rows, path, row_group_size=4)
    dataclasses.replace(load_card(ParquetConfig(path=str(folder))), time="when").save(
        folder
    )
    source = opened(folder)
    for group in range(len(source.rows_per_group)):
        times = source.times(group)
        expected = (times.min(), times.max()) if is_told else None
        assert source.time_range(group) == expected


def test_windows_read_only_the_row_groups_that_lie_in_several(folder, monkeypatch):
    path = folder / "train" / "a.parquet"
    for other in ("b", "c"):
        (folder / "train" / f"{other}.parquet").unlink()
    rows = made_table(0, 12).append_column(
        "when", pa.array([1] * 4 + [1, 1, 12, 12] + [15] * 4)
    )
    pq.write_table(rows, path, row_group_size=4)
    dataclasses.replace(made_card(train=12), time="when").save(folder)
    source = opened(folder)
    read = []
    times = source.times
    monkeypatch.setattr(
        source, "times", lambda group: read.append(group) or times(group)
    )
    assert order.time_windows(source, "when", 10) == [
        [(0, 0, 4), (1, 0, 2)],
        [(1, 2, 4), (2, 0, 4)],
    ]
    assert read == [1]


def test_source_can_be_sent_to_another_process(folder):
    source = opened(folder)
    source.read(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.fingerprint == source.fingerprint
    assert copy.read(5).equals(source.read(5))


def test_footer_longer_than_the_first_look(folder, monkeypatch):
    source = opened(folder)
    monkeypatch.setattr(parquet, "FOOTER_BYTES", 16)
    assert opened(folder).fingerprint == source.fingerprint
    assert opened(folder).rows_per_group.tolist() == source.rows_per_group.tolist()


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


def test_fingerprint_changes_with_a_value_of_a_foreign_shard(folder):
    first = opened(folder).fingerprint
    path = folder / "train" / "c.parquet"
    table = made_table(20, 25)
    size = path.stat().st_size
    for price in (99.0, 98.0):  # seen in the statistics of the footer
        column = pa.array([price] * 5, pa.float32())
        pq.write_table(table.set_column(2, "price", column), path)
    changed = opened(folder).fingerprint
    pq.write_table(table, path)
    assert path.stat().st_size == size
    assert opened(folder).fingerprint == first != changed


def test_fingerprint_changes_with_the_order_of_rows(tmp_path):
    def written(name: str, order: list[int]) -> ParquetSplit:
        rows = {
            "item": pa.array(order, pa.int32()),
            "price": pa.array(order, pa.float32()),
            "click": pa.array([True] * 4),
        }
        with DatasetWriter(tmp_path / name) as writer:
            writer.write("train", pa.table(rows))
            writer.finish(made_card(train=4))
        return opened(tmp_path / name)

    sources = {
        name: written(name, order)
        for name, order in (
            ("one", [0, 1, 2, 3]),
            ("two", [0, 2, 1, 3]),
            ("three", [0, 1, 2, 3]),
        )
    }
    sizes = {
        (tmp_path / name / "train/00000.parquet").stat().st_size for name in sources
    }
    assert len(sizes) == 1  # nor do the statistics tell them from each other
    assert sources["one"].fingerprint == sources["three"].fingerprint
    assert sources["one"].fingerprint != sources["two"].fingerprint


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
    expected = (
        r"b.parquet: column 'price' is missing, but a.parquet has it; "
        r"did you mean 'prize'\?"
    )
    with pytest.raises(DataError, match=expected):
        opened(folder)
    pq.write_table(made_table(0, 10).rename_columns(names), folder / "train/a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: column 'price' is missing; did"):
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


def test_ids_are_texts_or_integers_in_all_splits(tmp_path):
    card = Card(
        name="made",
        tables=(Table(name="item", num_rows=9, ids="hash"),),
        fields=(
            CategoricalField(name="item", table="item"),
            CategoricalField(name="tags", table="item", max_length=2),
        ),
        labels=(Label(name="click"),),
        splits={split: Split(num_rows=8) for split in ("train", "valid", "test")},
    )
    numbers = list(range(8))
    tags = [[str(number)] for number in numbers]
    table = pa.table({"item": numbers, "tags": tags, "click": [0, 1] * 4})
    texts = table.set_column(0, "item", table["item"].cast(pa.string()))
    for split in card.splits:
        (tmp_path / split).mkdir()
        pq.write_table(table, tmp_path / split / "0.parquet")
    card.save(tmp_path)
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(tmp_path))
    config.data.lanes = config.train.batch_size = config.eval.batch_size = 8
    config.train.num_epochs = 1
    config.model.backbone = named_config("lr")
    assert set_up(config, "").splits["test"].text_ids == {"tags"}
    pq.write_table(texts, tmp_path / "test" / "0.parquet")
    with pytest.raises(DataError, match=r"made/test: column 'item' holds texts, and"):
        set_up(config, "")


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


def test_truncated_file(folder):
    path = folder / "train" / "b.parquet"
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2, 12):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"b.parquet is not a readable Parquet"):
            opened(folder)


def test_one_wrong_bit_is_found_and_named(tmp_path):
    with DatasetWriter(tmp_path / "made", rows_per_group=10) as writer:
        writer.write("train", made_table(0, 30))
        writer.finish(made_card(train=30))
    path = tmp_path / "made" / "train" / "00000.parquet"
    price = pq.read_metadata(path).row_group(1).column(2)
    content = bytearray(path.read_bytes())
    content[price.data_page_offset - 1] ^= 1  # the end of the dictionary
    path.write_bytes(bytes(content))
    # Without checksums the wrong values would pass.
    assert pq.read_table(path)["price"] != made_table(0, 30)["price"]
    source = opened(tmp_path / "made")
    with pytest.raises(
        DataError, match=r"00000.parquet: row group 1 cannot be read \(.*CRC"
    ):
        source.read(1)
    for group in (0, 2):
        rows = made_table(10 * group, 10 * group + 10)
        assert source.read(group).equals(rows.drop_columns("unused"))


def test_shard_cut_off_while_it_is_read_is_named(folder):
    source = opened(folder)
    source.read(0)
    path = folder / "train" / "a.parquet"
    os.truncate(path, path.stat().st_size // 2)  # its mapped pages are gone
    with pytest.raises(DataError, match=r"a.parquet: row group 0 .* size has changed"):
        source.read(0)


def test_two_columns_of_one_name_are_an_error(folder):
    path = folder / "train" / "b.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("item", rows["item"]), path)
    with pytest.raises(DataError, match=r"b.parquet: 2 columns are named 'item'"):
        opened(folder)


def test_shard_that_disappears_is_named(folder):
    source = opened(folder)
    (folder / "train" / "b.parquet").unlink()
    with pytest.raises(DataError, match=r"b.parquet: row group 1 cannot be read"):
        source.read(4)


def test_source_without_a_kind_is_a_configuration_error():
    with pytest.raises(
        ConfigError, match=r"data.source is a SourceConfig; use Parquet"
    ):
        load_card(SourceConfig())
    with pytest.raises(ConfigError, match=r"data.source is a SourceConfig"):
        open_split(SourceConfig(), "train", Schema.select(made_card()))
