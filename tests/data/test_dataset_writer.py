from concurrent import futures
import errno
import os
import pickle
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.data import card as cards
from rankax.data import dataset_writer, parquet, shards
from rankax.data.card import Card, DataError, Label, NumericField, Split
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.schema import Schema


def made_card(**num_rows: int) -> Card:
    return Card(
        name="made",
        tables=(),
        fields=(NumericField(name="x"),),
        labels=(Label(name="click"),),
        splits={split: Split(num_rows=n) for split, n in num_rows.items()},
    )


def made_table(start: int, stop: int) -> pa.Table:
    x = list(range(start, stop))
    return pa.table(
        {
            "x": pa.array(x, pa.float32()),
            "click": pa.array([i % 2 for i in x], pa.int8()),
        }
    )


def opened(folder, split="train"):
    schema = Schema.select(cards.load(folder))
    return parquet.ParquetSplit(folder, split, schema)


def rows_of(folder, split="train"):
    source = opened(folder, split)
    groups = [source.read(group)["x"] for group in range(len(source.rows_per_group))]
    return [x for group in groups for x in group.to_pylist()]


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path):
    """A finished folder of 25 rows."""
    with DatasetWriter(tmp_path / "made") as writer:
        writer.write("train", made_table(0, 25))
        writer.finish(made_card(train=25))
    return tmp_path / "made"


# ---------------------------------------------------------------- a stream of rows


def test_rows_are_regrouped_to_groups_and_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_writer, "GROUPS_PER_SHARD", 2)
    with DatasetWriter(tmp_path / "made", rows_per_group=10) as writer:
        for start, stop in ((0, 3), (3, 3), (3, 37), (37, 45)):
            writer.write("train", made_table(start, stop))
        writer.write("valid", made_table(0, 4))
        assert writer.num_rows == {"train": 45, "valid": 4}
        writer.finish(made_card(train=45, valid=4))
    assert names(tmp_path) == [
        "made",
        "made/dataset.json",
        "made/train",
        "made/train/00000.parquet",
        "made/train/00001.parquet",
        "made/train/00002.parquet",
        "made/valid",
        "made/valid/00000.parquet",
    ]
    assert opened(tmp_path / "made").rows_per_group.tolist() == [10, 10, 10, 10, 5]
    assert rows_of(tmp_path / "made") == list(range(45))
    assert opened(tmp_path / "made", "valid").rows_per_group.tolist() == [4]


def test_footer_holds_a_digest_of_the_content(tmp_path):
    digests = []
    for name, start in (("one", 0), ("two", 1), ("three", 0)):
        with DatasetWriter(tmp_path / name) as writer:
            writer.write("train", made_table(start, start + 9))
            writer.finish(made_card(train=9))
        metadata = pq.read_metadata(tmp_path / name / "train" / "00000.parquet")
        digests.append(metadata.metadata[shards.CONTENT_DIGEST.encode()])
    assert digests[0] == digests[2] != digests[1]
    assert len(digests[0]) == 64


def test_extra_files_stay_and_scratch_goes(tmp_path):
    with DatasetWriter(tmp_path / "made") as writer:
        writer.write("train", made_table(0, 5))
        writer.extra_file("vocabularies/a.csv").write_text("a")
        writer.scratch("deep/spool").write_text("b")
        writer.finish(made_card(train=5))
    assert (tmp_path / "made" / "vocabularies" / "a.csv").read_text() == "a"
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == [
        "dataset.json",
        "train",
        "vocabularies",
    ]


def test_interrupted_writing_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "made") as writer:
        writer.write("train", made_table(0, 5))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_existing_folder_is_replaced_only_when_asked_and_only_a_dataset(folder):
    with pytest.raises(DataError, match=r"made exists; .* pass --overwrite"):
        DatasetWriter(folder)
    with DatasetWriter(folder, overwrite=True) as writer:
        writer.write("train", made_table(0, 5))
        assert rows_of(folder) == list(range(25))  # until the new one is finished
        writer.finish(made_card(train=5))
    assert rows_of(folder) == list(range(5))
    assert names(folder.parent) == [
        "made",
        "made/dataset.json",
        "made/train",
        "made/train/00000.parquet",
    ]
    (folder / "dataset.json").unlink()
    with pytest.raises(DataError, match=r"is not a dataset folder .* not be replaced"):
        DatasetWriter(folder, overwrite=True)


def test_file_is_never_replaced_by_a_folder(tmp_path):
    (tmp_path / "made").write_text("precious")
    with pytest.raises(DataError, match=r"is not a dataset folder .* not be replaced"):
        DatasetWriter(tmp_path / "made", overwrite=True)


def test_failed_overwriting_keeps_the_old_folder(folder):
    writer = DatasetWriter(folder, overwrite=True)
    with pytest.raises(ZeroDivisionError), writer:
        writer.write("train", made_table(0, 5))
        raise ZeroDivisionError
    assert rows_of(folder) == list(range(25))


def test_card_that_states_other_rows_is_not_written(tmp_path):
    expected = r"states rows \{'train': 6\}, written were \{'train': 5\}"
    with (
        pytest.raises(DataError, match=expected),
        DatasetWriter(tmp_path / "made") as writer,
    ):
        writer.write("train", made_table(0, 5))
        writer.finish(made_card(train=6))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- parts


def write_part(part, start, stop, *, valid=0):
    with part:
        for row in range(start, stop, 7):
            part.write("train", made_table(row, min(row + 7, stop)))
        part.write("valid", made_table(start, start + valid))
        return part.finish({"first": start})


def test_parts_come_from_several_writers_in_any_order(tmp_path):
    with DatasetWriter(tmp_path / "made", rows_per_group=10) as writer:
        sent = {i: pickle.loads(pickle.dumps(writer.part(i))) for i in (3, 0, 1)}
        with futures.ThreadPoolExecutor(3) as pool:
            done = {
                0: pool.submit(write_part, sent[0], 0, 25),
                1: pool.submit(write_part, sent[1], 25, 40, valid=2),
                3: pool.submit(write_part, sent[3], 40, 41),
            }
        assert done[1].result() == {"num_rows": {"train": 15, "valid": 2}, "first": 25}
        assert list(writer.records()) == [0, 1, 3]
        assert writer.records() == {i: part.result() for i, part in done.items()}
        assert writer.num_rows == {"train": 41, "valid": 2}
        writer.finish(made_card(train=41, valid=2))
    assert names(tmp_path / "made") == [
        "dataset.json",
        "train",
        "train/00000.parquet",
        "train/00001.parquet",
        "train/00003.parquet",
        "valid",
        "valid/00001.parquet",
    ]
    assert opened(tmp_path / "made").rows_per_group.tolist() == [10, 10, 5, 10, 5, 1]
    assert rows_of(tmp_path / "made") == list(range(41))


def test_part_that_fails_leaves_nothing_and_can_be_written_again(tmp_path):
    with DatasetWriter(tmp_path / "made", rows_per_group=2) as writer:
        with pytest.raises(ZeroDivisionError), writer.part(0) as part:
            part.write("train", made_table(0, 9))
            raise ZeroDivisionError
        assert names(tmp_path) == [
            ".made.partial",
            ".made.partial/.writing",
            ".made.partial/train",
        ]
        assert writer.records() == {}
        write_part(writer.part(0), 0, 5)
        write_part(writer.part(0), 0, 6)
        writer.finish(made_card(train=6))
    assert rows_of(tmp_path / "made") == list(range(6))


@pytest.mark.parametrize("inputs", ["", "same", "other"])
def test_a_second_writer_is_refused_while_the_first_writes(tmp_path, inputs):
    folder = tmp_path / "made"
    with DatasetWriter(folder, rows_per_group=10, inputs="same") as writer:
        write_part(writer.part(0), 0, 5)
        with pytest.raises(DataError, match=r"made\S* is being written by another"):
            DatasetWriter(folder, rows_per_group=10, inputs=inputs).__enter__()
        writer.finish(made_card(train=5))
    with DatasetWriter(folder, overwrite=True, rows_per_group=10) as writer:
        writer.write("train", made_table(5, 9))
        writer.finish(made_card(train=4))
    assert rows_of(folder) == list(range(5, 9))


KILLED = """
import os, signal, sys
import pyarrow as pa
from rankax.data.dataset_writer import DatasetWriter
from test_dataset_writer import made_table, write_part

with DatasetWriter(sys.argv[1], rows_per_group=10, inputs=sys.argv[2]) as writer:
    write_part(writer.part(0), 0, 25)
    write_part(writer.part(1), 25, 40, valid=2)
    writer.scratch("spool").write_text("kept")
    with writer.part(2) as part:
        part.write("train", made_table(40, 60))
        os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_writer(folder, inputs):
    paths = [os.path.dirname(__file__), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), inputs],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def test_killed_writer_can_be_gone_on_from(tmp_path):
    folder = tmp_path / "made"
    killed_writer(folder, inputs="those files")
    assert not folder.exists()
    assert (tmp_path / ".made.partial/train/.00002.parquet.partial").exists()
    for _ in range(2):  # an error in between keeps them as well
        with (
            pytest.raises(ZeroDivisionError),
            DatasetWriter(folder, rows_per_group=10, inputs="those files") as writer,
        ):
            assert list(writer.records()) == [0, 1]
            raise ZeroDivisionError
    with DatasetWriter(folder, rows_per_group=10, inputs="those files") as writer:
        assert writer.records()[1]["first"] == 25
        assert writer.scratch("spool").read_text() == "kept"
        write_part(writer.part(2), 40, 45)
        writer.finish(made_card(train=45, valid=2))
    assert rows_of(folder) == list(range(45))
    assert names(tmp_path) == [
        "made",
        "made/dataset.json",
        "made/train",
        "made/train/00000.parquet",
        "made/train/00001.parquet",
        "made/train/00002.parquet",
        "made/valid",
        "made/valid/00001.parquet",
    ]


@pytest.mark.parametrize("inputs", ["", "other files"])
def test_writer_of_other_inputs_starts_anew_after_a_kill(tmp_path, inputs):
    folder = tmp_path / "made"
    killed_writer(folder, inputs="those files" if inputs else "")
    assert not folder.exists()
    with DatasetWriter(folder, inputs=inputs) as writer:
        assert writer.records() == {}
        assert names(tmp_path) == [".made.partial", ".made.partial/.writing"]
        writer.write("train", made_table(0, 5))
        writer.finish(made_card(train=5))
    assert rows_of(folder) == list(range(5))
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def full_disk(monkeypatch):
    """Takes 2000 bytes."""
    written = []

    def write(self, data):
        written.append(len(data))
        if sum(written) > 2000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    monkeypatch.setattr(shards._Digested, "write", write)


def test_full_disk_is_told_and_nothing_stays(tmp_path, full_disk):
    expected = (
        r"train/00000.parquet cannot be written \(.*No space left on device.*\); "
        "free space, or choose a folder on another disk"
    )
    with (
        pytest.raises(DataError, match=expected),
        DatasetWriter(tmp_path / "made", rows_per_group=100) as writer,
    ):
        for start in range(0, 100_000, 1000):
            writer.write("train", made_table(start, start + 1000))
    assert list(tmp_path.iterdir()) == []


def test_full_disk_at_the_last_row_group_leaves_no_shard(tmp_path, full_disk):
    with DatasetWriter(tmp_path / "made", inputs="files") as writer:
        with pytest.raises(DataError, match="free space"), writer.part(0) as part:
            part.write("train", made_table(0, 60_000))  # less than a row group
            part.finish({})
        assert writer.records() == {}
    assert names(tmp_path) == [
        ".made.partial",
        ".made.partial/.writing",
        ".made.partial/train",
    ]


def test_folder_that_may_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"cannot be written .*check the path"),
        DatasetWriter(tmp_path / "file" / "made"),
    ):
        pass
