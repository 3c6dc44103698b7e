from concurrent import futures
import pickle
import shutil
import tempfile

from moto.core import set_initial_no_auth_action_count
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.config.experiment import ParquetConfig
from rankax.data import lanes, storage
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Label,
    NumericField,
    Split,
    Table,
)
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.schema import Schema
from rankax.data.source import load_card, open_split

NUM_ROWS = 5000
CARD = Card(
    name="made",
    tables=(Table(name="item", num_rows=NUM_ROWS),),
    fields=(CategoricalField(name="item", table="item"), NumericField(name="price")),
    labels=(Label(name="click"),),
    splits={"train": Split(num_rows=NUM_ROWS)},
)


def made_table(start: int, stop: int) -> pa.Table:
    item = np.arange(start, stop, dtype=np.int32)
    return pa.table(
        {"item": item, "price": np.sqrt(item.astype(np.float32)), "click": item % 2}
    )


def write_folder(folder) -> None:
    with DatasetWriter(folder, rows_per_group=300) as writer:
        for number, start in enumerate(range(0, NUM_ROWS, 1000)):
            with writer.part(number) as part:
                part.write("train", made_table(start, start + 1000))
                part.finish({})
        writer.extra_file("vocabularies/item.txt").write_text("1 2 3")
        writer.scratch("spool").write_text("gone")
        writer.finish(CARD)


def opened(folder, split="train", **select):
    config = ParquetConfig(path=str(folder))
    return open_split(config, split, Schema.select(load_card(config), **select))


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local") / "made"
    write_folder(folder)
    return folder


@pytest.fixture
def memory():
    """An empty folder in fsspec's store in memory."""
    place = storage.locate("memory://test/made")
    place.delete()
    return place


# ---------------------------------------------------------------- names


def test_local_paths_and_file_uris(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = storage.locate("a/b")
    assert place.is_local
    assert place.local == tmp_path / "a" / "b"
    assert str(place) == str(tmp_path / "a" / "b")
    assert place.name == "b"
    assert storage.locate(tmp_path / "a") / "b" == place
    assert storage.locate(f"file://{tmp_path}/a/b") == place
    assert storage.locate(place) is place


def test_uris_keep_their_query_out_of_the_path():
    uri = "s3://key:secret@bucket/a/b/?region=us-east-1&endpoint_override=127.0.0.1:9"
    place = storage.locate(uri)
    assert not place.is_local
    assert str(place / "c") == "s3://bucket/a/b/c"
    assert (place / "c").name == "c"
    assert pickle.loads(pickle.dumps(place)) == place
    with pytest.raises(DataError, match=r"s3://bucket/a/b is not on a disk"):
        _ = place.local
    assert str(storage.locate("gs://bucket/a")) == "gs://bucket/a"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("nope://a/b", r"nope://a/b: nothing here reads nope://.*use a local path, s3"),
        ("s3:///a", r"s3:///a is not a usable URI: Missing bucket name"),
        ("s3://k:secret@b/a?zone=1", r"^s3://b/a is not a usable URI: .*'zone'"),
    ],
)
def test_uri_that_cannot_be_used(uri, expected):
    with pytest.raises(DataError, match=expected):
        storage.locate(uri)


# ---------------------------------------------------------------- files and folders


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path, memory):
    return storage.locate(tmp_path / "made") if request.param == "disk" else memory


def test_files_and_folders(folder):
    assert not folder.is_folder()
    assert folder.files() == []
    for name in ("b.txt", "a.txt", "c.json"):
        (folder / name).write_text(name + " ü")
    (folder / "deep" / "d.txt").write_text("d")
    assert folder.is_folder()
    assert not folder.is_file()
    assert (folder / "a.txt").is_file()
    assert [place.name for place in folder.files(".txt")] == ["a.txt", "b.txt"]
    assert [place.name for place in folder.files()] == ["a.txt", "b.txt", "c.json"]
    assert (folder / "b.txt").read_text() == "b.txt ü"
    (folder / "b.txt").write_text("new")
    assert (folder / "b.txt").read_text() == "new"
    (folder / "b.txt").delete()
    (folder / "b.txt").delete()  # is gone already
    assert not (folder / "b.txt").is_file()
    folder.clear(keep="c.json")
    assert [place.name for place in folder.files()] == ["c.json"]
    assert not (folder / "deep" / "d.txt").is_file()
    folder.delete()
    assert not folder.is_folder()


def test_text_that_is_not_there_or_not_text(folder):
    with pytest.raises(DataError, match=r"made/a.txt cannot be read"):
        (folder / "a.txt").read_text()
    (folder / "b").write_text("")
    with folder.filesystem.open_output_stream((folder / "b").path) as file:
        file.write(b"\xff\xfe")
    with pytest.raises(DataError, match=r"made/b is not a text in UTF-8"):
        (folder / "b").read_text()


def test_draft_that_fails_keeps_the_old_file(folder):
    (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), storage.Draft(folder / "a") as draft:
        draft.path.write_text("new")
        raise ZeroDivisionError
    assert (folder / "a").read_text() == "old"
    assert not draft.path.exists()


def test_upload_that_fails_leaves_no_file(memory, monkeypatch):
    def copy(source, sink, size):
        sink.write(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    with pytest.raises(DataError, match=r"made/a cannot be written \(connection lost"):
        (memory / "a").write_text("whole")
    assert not (memory / "a").is_file()


@pytest.mark.parametrize(
    ("message", "expected"),
    [  # as the stores' clients word them
        (
            "When listing objects under key 'a/' in bucket 'b': AWS Error "
            "NO_SUCH_BUCKET during ListObjectsV2 operation",
            "the bucket does not exist",
        ),
        (
            "When getting information for key 'a' in bucket 'b': AWS Error "
            "ACCESS_DENIED during HeadObject operation: No response body.",
            "set AWS_ACCESS_KEY_ID",
        ),
        (
            "AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, "
            "Could not connect to server",
            "AWS_ENDPOINT_URL",
        ),
        (
            "google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with a last "
            "message of PerformWork() - CURL error [6]=Could not resolve hostname",
            "cannot be reached",
        ),
        # as fsspec's clients do
        ("The specified bucket does not exist", "the bucket does not exist"),
        ("Access Denied", "set AWS_ACCESS_KEY_ID"),
        ("The AWS Access Key Id you provided does not exist", "set AWS_ACCESS_KEY_ID"),
        ("Unable to locate credentials", "set AWS_ACCESS_KEY_ID"),
        ('Could not connect to the endpoint URL: "http://s3/b"', "cannot be reached"),
        ("[Errno 13] Permission denied: '/locked/a'", "check the path and the rights"),
        ("[Errno 28] No space left on device", "free space"),
    ],
)
def test_errors_say_what_to_do(message, expected):
    with (
        pytest.raises(DataError, match=f"here cannot be read .*{expected}"),
        storage.explained("here", "cannot be read"),
    ):
        raise OSError(message)


# ---------------------------------------------------------------- dataset folders


def test_store_has_what_the_disk_has(memory, local):
    write_folder(memory)
    here = {str(path.relative_to(local)) for path in local.rglob("*.*")}
    selector = pa.fs.FileSelector(memory.path, recursive=True)
    infos = memory.filesystem.get_file_info(selector)
    there = {info.path.partition("/made/")[2] for info in infos if info.is_file}
    assert there == here >= {"dataset.json", "vocabularies/item.txt"}
    for name in here:
        with memory.filesystem.open_input_file((memory / name).path) as file:
            assert file.read() == (local / name).read_bytes(), name


def test_writing_to_a_store_leaves_nothing_in_the_temporary_folder(
    memory, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    write_folder(memory)
    assert list(tmp_path.iterdir()) == []


def test_folder_in_a_store_is_a_dataset_only_when_finished(memory):
    with pytest.raises(ZeroDivisionError), DatasetWriter(memory) as writer:
        writer.write("train", made_table(0, 5))
        with pytest.raises(DataError, match="is not a dataset folder"):
            load_card(ParquetConfig(path=str(memory)))
        raise ZeroDivisionError
    assert not memory.is_folder()


def test_killed_writer_of_a_store_can_be_gone_on_from(memory):
    writer = DatasetWriter(memory, inputs="files").__enter__()
    with writer.part(0) as part:
        part.write("train", made_table(0, 1000))
        part.finish({"first": 0})
    writer.part(1).write("train", made_table(1000, 2000))  # no end of it
    with DatasetWriter(memory, inputs="files") as writer:
        assert writer.records() == {0: {"num_rows": {"train": 1000}, "first": 0}}
        with writer.part(1) as part:
            part.write("train", made_table(1000, NUM_ROWS))
            part.finish({})
        writer.finish(CARD)
    assert opened(memory).rows_per_group.tolist() == [1000, 4000]
    assert [place.name for place in memory.files()] == ["dataset.json"]


def test_killed_writer_of_a_store_is_cleared_away(memory):
    writer = DatasetWriter(memory, inputs="files").__enter__()
    with writer.part(7) as part:
        part.write("train", made_table(0, 1000))
        part.finish({})
    write_folder(memory)
    assert [place.name for place in (memory / "train").files()] == [
        f"{number:05d}.parquet" for number in range(5)
    ]


def test_folder_in_a_store_is_replaced_only_when_asked_and_only_a_dataset(memory):
    write_folder(memory)
    with pytest.raises(DataError, match=r"made exists; .* pass --overwrite"):
        DatasetWriter(memory)
    with DatasetWriter(memory, overwrite=True) as writer:
        writer.write("train", made_table(0, NUM_ROWS))
        writer.finish(CARD)
    assert [p.name for p in (memory / "train").files()] == ["00000.parquet"]
    (memory / "dataset.json").delete()
    with pytest.raises(DataError, match=r"is not a dataset folder .* not be replaced"):
        DatasetWriter(memory, overwrite=True)


# ---------------------------------------------------------------- S3


@pytest.fixture
def remote(s3, local):
    """The local folder, copied by other means."""
    for path in local.rglob("*.*"):
        name = f"copied/{path.relative_to(local)}"
        s3.upload_file(str(path), "bucket", name)
    return "s3://bucket/copied"


def batches(folder, **options):
    source = opened(folder)
    found = lanes.read_batches(
        source,
        Schema.select(CARD),
        batch_size=64,
        lanes=4,
        seed=3,
        shuffle=True,
        num_epochs=2,
        num_threads=2,
        **options,
    )
    return list(found)


def test_batches_from_s3_are_those_from_the_disk(s3, local):
    write_folder("s3://bucket/written")
    expected, found = batches(local), batches("s3://bucket/written")
    assert len(found) == len(expected) == 2 * 79
    for (batch, position), (local_batch, local_position) in zip(
        found, expected, strict=True
    ):
        assert position == local_position  # hence the fingerprint too
        assert batch.keys() == local_batch.keys()
        for name, array in batch.items():
            np.testing.assert_array_equal(array, local_batch[name])
            assert array.dtype == local_batch[name].dtype


def test_objects_in_s3_are_the_files_on_the_disk(s3, local):
    write_folder("s3://bucket/equal")
    listing = s3.list_objects_v2(Bucket="bucket", Prefix="equal/")["Contents"]
    found = {entry["Key"] for entry in listing if entry["Size"]}
    assert found == {
        f"equal/{path.relative_to(local)}"
        for path in local.rglob("*")
        if path.is_file()
    }
    body = s3.get_object(Bucket="bucket", Key="equal/train/00002.parquet")["Body"]
    assert body.read() == (local / "train/00002.parquet").read_bytes()


def test_server_named_in_the_uri(s3, s3_server, remote, local, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    host = s3_server.removeprefix("http://")
    uri = f"{remote}?endpoint_override={host}&scheme=http&region=us-east-1"
    assert opened(uri).fingerprint == opened(local).fingerprint


def test_threads_read_one_source_in_s3(remote, local):
    source, on_disk = opened(remote), opened(local)
    order = np.random.default_rng(0).permutation(len(source.rows_per_group)).tolist()
    with futures.ThreadPoolExecutor(2) as pool:
        tables = list(pool.map(source.read, order))
    for group, table in zip(order, tables, strict=True):
        assert table.equals(on_disk.read(group))
    assert pickle.loads(pickle.dumps(source)).read(3).equals(on_disk.read(3))


def test_only_the_columns_in_need_are_fetched(s3, remote, local):
    path = local / "train" / "00003.parquet"
    price = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    start = price.dictionary_page_offset
    content[start : start + price.total_compressed_size] = bytes(
        price.total_compressed_size
    )
    key = "copied/train/00003.parquet"
    s3.put_object(Bucket="bucket", Key=key, Body=bytes(content))
    group = 3 * 4
    with pytest.raises(DataError, match=r"copied/train/00003.parquet: row group 0"):
        opened(remote).read(group)
    table = opened(remote, fields=["item"]).read(group)
    assert table.column_names == ["item", "click"]
    assert table["item"].to_pylist() == list(range(3000, 3300))


def test_bucket_or_folder_that_is_not_there(s3):
    with pytest.raises(DataError, match=r"s3://none/a.* the bucket does not exist"):
        load_card(ParquetConfig(path="s3://none/a"))
    with pytest.raises(DataError, match=r"the bucket does not exist"):
        write_folder("s3://none/a")
    with pytest.raises(DataError, match=r"s3://bucket/none is not a dataset folder"):
        load_card(ParquetConfig(path="s3://bucket/none"))


def test_truncated_object(s3, remote, local):
    content = (local / "train/00004.parquet").read_bytes()
    key = "copied/train/00004.parquet"
    s3.put_object(Bucket="bucket", Key=key, Body=content[:-500])
    expected = r"s3://bucket/copied/train/00004.parquet is not a readable Parquet file"
    with pytest.raises(DataError, match=expected):
        opened(remote)


def test_missing_object(s3, remote):
    source = opened(remote)
    s3.delete_object(Bucket="bucket", Key="copied/train/00001.parquet")
    with pytest.raises(DataError, match=r"00001.parquet: row group 0 cannot be read"):
        source.read(4)
    with pytest.raises(DataError, match=r"4 shards hold 4000 rows, .*shard is missing"):
        opened(remote)


@set_initial_no_auth_action_count(0)
def test_wrong_credentials(remote):
    with pytest.raises(DataError, match=r"copied.*; access is refused; for s3 set"):
        load_card(ParquetConfig(path=remote))


@pytest.mark.slow  # the client tries for 6 s
def test_server_that_does_not_answer(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"bucket/a.*; the store cannot be reached"):
        load_card(ParquetConfig(path="s3://bucket/a"))
