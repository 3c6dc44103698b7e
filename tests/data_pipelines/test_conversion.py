"""Parts: on threads, after a kill, and with other inputs."""

import pathlib
import signal
import subprocess
import sys

from dataset_arrays import assert_same_datasets
from made_up import criteo as made_up
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import conversion as benchmark
from data_pipelines import criteo
from data_pipelines.engine import conversion, parts, text
from data_pipelines.engine.plan import LabelRule, Plan
from rankax.data import storage
from rankax.data.card import CategoricalField, DataError, VectorField
from rankax.models import backbones  # noqa: F401

PART_BYTES = 20_000
# Converts day_0 of the folder argv[1], and dies when a function comes to a part.
DYING = f"""
import os, pathlib, signal, sys
from benchmarks import conversion as benchmark
from data_pipelines.engine import conversion, parts, text
from data_pipelines import criteo

text.PART_BYTES, conversion.MAX_THREADS = {PART_BYTES}, 1
folder, name, last = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
function = getattr(parts, name)

def dying(job, item):
    if (item if name == "read" else item[0]) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(job, item)

setattr(parts, name, dying)
criteo.convert(folder, folder / "out", file="day_0")
"""


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def raw(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setattr(text, "PART_BYTES", PART_BYTES)
    made_up.write_published(tmp_path)
    return tmp_path


@pytest.fixture
def calls(monkeypatch) -> dict[str, list[int]]:
    """The parts that each pass works on."""
    done = {"read": [], "write": []}
    read, write = parts.read, parts.write

    def noted_read(job, part):
        done["read"].append(part)
        return read(job, part)

    def noted_write(job, item):
        done["write"].append(item[0])
        return write(job, item)

    monkeypatch.setattr(parts, "read", noted_read)
    monkeypatch.setattr(parts, "write", noted_write)
    return done


def test_each_part_is_a_shard_whatever_the_number_of_threads(raw, monkeypatch):
    num_parts = criteo.file_rows([raw / "day_0"]).num_parts
    assert num_parts > 5
    for threads in (1, 5):
        monkeypatch.setattr(conversion, "MAX_THREADS", threads)
        criteo.convert(raw, raw / f"out{threads}", file="day_0")
    files = files_of(raw / "out1")
    assert files == files_of(raw / "out5")
    shards = {f"train/{i:05d}.parquet" for i in range(num_parts - 2)}
    assert shards < set(files) and f"test/{num_parts - 1:05d}.parquet" in files
    assert not any("found" in name or "arrow" in name for name in files)
    monkeypatch.undo()
    criteo.convert(raw, raw / "whole", file="day_0")
    assert_same_datasets(raw / "out1", raw / "whole")


@pytest.mark.parametrize("name", ["read", "write"])
def test_a_killed_conversion_goes_on_with_the_missing_parts(raw, calls, name):
    root = pathlib.Path(__file__).parents[2]
    arguments = [sys.executable, "-c", DYING, str(raw), name, "3"]
    killed = subprocess.run(arguments, cwd=root, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (raw / "out").exists() and (raw / ".out.partial").exists()
    criteo.convert(raw, raw / "out", file="day_0")
    num_parts = criteo.file_rows([raw / "day_0"]).num_parts
    later, every = list(range(3, num_parts)), list(range(num_parts))
    read = later if name == "read" else []
    write = later if name == "write" else every
    assert sorted(calls["read"]) == read and sorted(calls["write"]) == write
    assert not (raw / ".out.partial").exists()
    criteo.convert(raw, raw / "at_once", file="day_0")
    assert files_of(raw / "out") == files_of(raw / "at_once")


@pytest.mark.parametrize("change", ["flags", "file"])
def test_other_flags_or_files_start_anew(raw, calls, change, monkeypatch):
    def fail(*arguments):
        raise DataError("on the way")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write", fail)
        with pytest.raises(DataError, match="on the way"):
            criteo.convert(raw, raw / "out", file="day_0")
    every = list(range(criteo.file_rows([raw / "day_0"]).num_parts))
    assert sorted(calls["read"]) == every
    calls["read"].clear()
    if change == "file":
        lines = (raw / "day_0").read_text().splitlines(keepends=True)
        (raw / "day_0").write_text("".join(reversed(lines)))
    min_count = 5 if change == "flags" else 2
    criteo.convert(raw, raw / "out", file="day_0", min_count=min_count)
    assert sorted(calls["read"]) == every
    criteo.convert(raw, raw / "at_once", file="day_0", min_count=min_count)
    assert files_of(raw / "out") == files_of(raw / "at_once")


class Given:
    """Rows that are given part by part."""

    names, rule, inputs = ("train", "valid"), "", ""

    def __init__(self, given: list[dict[str, pa.Table]]):
        self.given, self.num_parts = given, len(given)

    def chunks(self, part):
        yield from self.given[part].items()


PLAN = Plan(
    name="t",
    fields=(
        CategoricalField(name="user", table="user"),
        CategoricalField(name="tags", table="tags", max_length=3),
        VectorField(name="image", width=2),
    ),
    labels=(LabelRule(name="click", column="click"),),
    slices=("place",),
)


def rows(user: list, place: list) -> pa.Table:
    vectors = [[i, i + 0.5] for i in range(len(user))]
    return pa.table(
        {
            "user": pa.array(user, pa.string()),
            "tags": pa.array([[u, "x", None] for u in user], pa.list_(pa.string())),
            "image": pa.array(vectors, pa.list_(pa.float32())),
            "click": pa.array([1.0] * len(user)),
            "place": pa.array(place, pa.int64()),
        }
    )


def test_numbers_do_not_depend_on_the_order_of_parts(tmp_path):
    given = [
        {"train": rows(["b", "a", None], [10, 9, None])},
        {"valid": rows(["z"], [2])},
        {"train": rows(["a", "c"], [9, 10]), "valid": rows(["c", None], [9, 10])},
    ]
    folders = []
    for i, parts_given in enumerate((given, given[::-1])):
        folders.append(tmp_path / str(i))
        card = conversion.convert(PLAN, Given(parts_given), folders[-1])
        assert card.slices[0].values == ("2", "9", "10", "missing")
    one, other = map(files_of, folders)
    for name in ("dataset.json", "conversion.json", "vocabularies/user.parquet"):
        assert one[name] == other[name]
    assert one["train/00000.parquet"] == other["train/00002.parquet"]
    first = pq.read_table(folders[0] / "train" / "00000.parquet").to_pylist()
    assert [row["user"] for row in first] == [2, 1, 4]  # a twice, b, c, missing
    assert [row["_slice_place"] for row in first] == [2, 1, 3]
    assert [row["image"] for row in first] == [[0, 0.5], [1, 1.5], [2, 2.5]]
    valid = pq.read_table(folders[0] / "valid" / "00001.parquet").to_pylist()
    assert valid[0]["user"] == 0 and valid[0]["tags"] == [0, 1, 5]


def test_a_wrong_value_is_told_with_split_and_part(tmp_path):
    wrong = rows(["a"], [1]).set_column(3, "click", pa.array([0.5]))
    given = [{"train": rows(["b"], [10]), "valid": rows(["b"], [1])}, {"valid": wrong}]
    with pytest.raises(DataError, match=r"valid/00001 \(row 0 is row 0 of the part\)"):
        conversion.convert(PLAN, Given(given), tmp_path / "out")
    assert not list(tmp_path.iterdir())  # without inputs nothing is kept


def test_too_many_values_of_a_slice(tmp_path):
    places = list(range(1001))
    given = [{"train": rows(["a"] * 1001, places), "valid": rows(["a"], [1])}]
    with pytest.raises(DataError, match="slice column 'place' has more than 1000"):
        conversion.convert(PLAN, Given(given), tmp_path / "out")


def test_an_object_store_gets_the_same_files(raw):
    place = storage.locate("memory://bucket/out")
    criteo.main([f"--raw={raw}", "--file=day_0", "--out=memory://bucket/out"])
    criteo.convert(raw, raw / "here", file="day_0")
    for name, content in files_of(raw / "here").items():
        with (place / name).open() as file:
            assert file.read() == content, name
    with pytest.raises(
        DataError, match=r"--cluster: the workers share .* is no folder"
    ):
        criteo.convert(raw, "memory://bucket/b", file="day_0", cluster="local")


def test_the_benchmark_converts_what_polars_rewrites(tmp_path):
    path = tmp_path / "train.txt"
    benchmark.write_text(path, 700)
    results = {
        "polars": benchmark.fresh("rewrite", path),
        "hashed": benchmark.fresh("convert", path, 1000),
        "vocabularies": benchmark.fresh("convert", path, 0),
    }
    assert all(record["wall_seconds"] > 0 for record in results.values())
    text_table = benchmark.table(results, 700)
    assert (
        text_table.splitlines()[2].startswith("| polars |") and "| 1.00 |" in text_table
    )
    (block,) = text.TextFile(path, criteo.LAYOUT, on_bad_line="error").blocks(0)
    assert block.rows.num_rows == 700 and 40 < block.rows["C1"].null_count < 110
    assert list(tmp_path.iterdir()) == [path]
