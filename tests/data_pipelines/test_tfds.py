import json
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from data_pipelines import tfds as pipeline
from data_pipelines.engine.plan import LabelRule, Plan
from data_pipelines.sources import tfds_records
from rankax.data import card as cards
from rankax.data.card import CategoricalField, DataError, NumericField, VectorField

NUM_TRAIN, NUM_TEST = 300, 40
KINDS = ("news", "shop", "film")


def row(i: int) -> dict:
    """One made-up example, from its number alone."""
    return {
        "id": i,
        "user": i * 7919 % 50 - 10,
        "city": f"zürich {i % 5}" if i % 3 else "",
        "kind": KINDS[i % 3],
        "is_new": i % 4 == 0,
        "price": i / 7,
        "stars": i % 6,
        "when": 1_700_000_000 + i,
        "text_vector": np.arange(3, dtype=np.float32) - i,
        "tags": [f"t{j}" for j in range(i % 4)],
        "sizes": np.array([i % 2, 5]),
        "seller": {"name": f"s{i % 9}", "age": i % 11},
        "past": [{"shop": j, "note": f"n{j}"} for j in range(i % 5)],
        "thumbnail": np.zeros((2, 2), np.float32),
    }


class Bazaar(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        whole = tfds.features.Scalar(np.int64)
        features = {
            "id": whole,
            "user": whole,
            "city": tfds.features.Text(),
            "kind": tfds.features.ClassLabel(names=KINDS),
            "is_new": tfds.features.Scalar(np.bool_),
            "price": tfds.features.Scalar(np.float32),
            "stars": tfds.features.Scalar(np.int32),
            "when": whole,
            "text_vector": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "tags": tfds.features.Sequence(tfds.features.Text()),
            "sizes": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            "seller": {"name": tfds.features.Text(), "age": whole},
            "past": tfds.features.Sequence(
                {"shop": whole, "note": tfds.features.Text()}
            ),
            "thumbnail": tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            homepage="https://example.org/bazaar",
            license="made up",
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, NUM_TRAIN),
            "test": self._generate_examples(NUM_TRAIN, NUM_TRAIN + NUM_TEST),
        }

    def _generate_examples(self, first, last):
        for i in range(first, last):
            yield i, row(i)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    tfds.disable_progress_bar()
    place = tmp_path_factory.mktemp("tfds")
    builder = Bazaar(data_dir=place, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=3)
    )
    return place


@pytest.fixture
def run(data_dir, tmp_path):
    def convert(*flags: str, dataset: str = "bazaar") -> cards.Card:
        label = () if any("label" in flag for flag in flags) else ("--label=is_new",)
        pipeline.main(
            [
                *(dataset, f"--data_dir={data_dir}", f"--out={tmp_path / 'out'}"),
                *("--overwrite", *label, *flags),
            ]
        )
        return cards.load(tmp_path / "out")

    return convert


@pytest.fixture
def fails(run, tmp_path):
    def convert(*flags: str, dataset: str = "bazaar") -> str:
        with pytest.raises(SystemExit) as error:
            run(*flags, dataset=dataset)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    return convert


def rows_of(folder: pathlib.Path, split: str) -> list[dict]:
    """Reads the rows of a split, ids as they were before they were numbered."""
    tables = [
        pq.read_table(path) for path in sorted((folder / split).glob("*.parquet"))
    ]
    rows = pa.concat_tables(tables).to_pylist()
    card = cards.load(folder)
    ids = {}
    for table in card.tables:
        found = pq.read_table(folder / "vocabularies" / f"{table.name}.parquet")
        ids[table.name] = found["id"].to_pylist()
    for field in card.fields:
        columns = {}
        if isinstance(field, CategoricalField):
            columns = {field.name: field.table}
        elif isinstance(field, cards.SequenceField):
            columns = {column.column: column.table for column in field.columns}
        for column, table in columns.items():
            for example in rows:
                value, known = example[column], ids[table]
                is_list = isinstance(value, list)
                example[column] = [known[v] for v in value] if is_list else known[value]
    return rows


def test_every_row_arrives_in_the_order_of_tfds(run, data_dir, tmp_path):
    run("--time=when", "--group=user")
    builder = tfds.builder_from_directory(data_dir / "bazaar/1.2.0")
    for split, num_rows in {"train": NUM_TRAIN, "test": NUM_TEST}.items():
        rows = rows_of(tmp_path / "out", split)
        source = builder.as_data_source(split=split)
        assert len(rows) == len(source) == num_rows
        for found, theirs in zip(rows, source, strict=True):
            expected = row(theirs["id"])
            if split == "train":  # ids of test alone are unknown ids
                assert found["id"] == theirs["id"]
                assert found["kind"] == KINDS.index(expected["kind"])
                for name in ("user", "city", "stars"):
                    assert found[name] == expected[name]
                assert found["tags"] == expected["tags"]
                assert found["sizes"] == expected["sizes"].tolist()
                assert found["seller_name"] == expected["seller"]["name"]
                assert found["seller_age"] == expected["seller"]["age"]
                assert found["past_shop"] == [e["shop"] for e in expected["past"]]
                assert found["past_note"] == [e["note"] for e in expected["past"]]
            assert found["price"] == np.float32(expected["price"])
            assert found["text_vector"] == expected["text_vector"].tolist()
            assert found["_time"] == expected["when"]
            assert found["is_new"] == expected["is_new"]


def test_features_become_fields_by_their_type(run, capsys):
    card = run("--time=when", "--label=like=stars>=4", "--max_length=7")
    assert "left out, as no field holds such values: thumbnail (Tensor)" in (
        capsys.readouterr().out
    )
    fields = {field.name: field for field in card.fields}
    single = {"id", "user", "city", "kind", "is_new", "seller_name", "seller_age"}
    for name in single:
        assert fields.pop(name) == CategoricalField(name=name, table=name)
    for name in ("tags", "sizes"):
        assert fields.pop(name) == CategoricalField(name=name, table=name, max_length=7)
    assert fields.pop("price") == NumericField(name="price")
    assert fields.pop("text_vector") == VectorField(name="text_vector", width=3)
    past = fields.pop("past")
    assert [(c.name, c.column) for c in past.columns] == [
        ("note", "past_note"),
        ("shop", "past_shop"),
    ]
    assert past.max_length == 7 and not fields
    assert card.labels[0].name == "like" and card.time == "_time"
    assert card.split_rule == "of bazaar/1.2.0: train = train, test = test"
    assert card.origin == "TFDS bazaar/1.2.0, https://example.org/bazaar"
    assert card.licence == "made up"


def test_flags_say_otherwise(run):
    card = run(
        *("--numeric=stars,user", "--list=tags:2", "--hash=city:100,tags:50"),
        *("--vector=sizes:2", "--share=seller_name=city", "--origin=ours"),
        *("--skip=past_shop,past_note,thumbnail", "--skip=id", "--weight=price"),
    )
    fields = {field.name: field for field in card.fields}
    assert {name for name, f in fields.items() if type(f) is NumericField} == {
        "stars",
        "user",
    }
    assert fields["tags"].max_length == 2
    assert fields["sizes"] == VectorField(name="sizes", width=2)
    assert fields["seller_name"].table == "city" and card.origin == "ours"
    assert not {"past", "thumbnail", "id", "price"} & fields.keys()
    assert {t.name: t.num_rows for t in card.tables if t.ids == "hash"} == {
        "city": 100,
        "tags": 50,
    }


def test_splits_are_slices_of_tfds(run, data_dir, tmp_path):
    run("--train=train[:70%]", "--valid=train[70%:]", "--test=test[:10]")
    builder = tfds.builder_from_directory(data_dir / "bazaar/1.2.0")
    whole = [example["price"] for example in builder.as_data_source(split="train")]
    found = {
        split: [example["price"] for example in rows_of(tmp_path / "out", split)]
        for split in ("train", "valid", "test")
    }
    assert found["train"] + found["valid"] == whole
    assert [len(part) for part in found.values()] == [210, 90, 10]


def test_split_errors(fails):
    assert "--train and --valid share rows" in fails(
        "--train=train", "--valid=train[:5]"
    )
    assert "--valid=valid" in (text := fails("--train=train", "--valid=valid"))
    assert "train, test" in text
    assert "--train is missing" in fails("--test=test")


def test_parts_and_chunks_do_not_change_the_rows(run, tmp_path, monkeypatch):
    run()
    expected = rows_of(tmp_path / "out", "train")
    monkeypatch.setattr(tfds_records, "ROWS_PER_PART", 100)
    monkeypatch.setattr(tfds_records, "ROWS_PER_CHUNK", 33)
    run()
    assert rows_of(tmp_path / "out", "train") == expected
    shards = [path.name for path in (tmp_path / "out" / "train").iterdir()]
    assert sorted(shards) == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert (tmp_path / "out" / "test" / "00003.parquet").is_file()


def test_flags_that_do_not_suit_the_features(fails):
    assert "'prize' is missing; did you mean 'price'" in fails("--numeric=prize")
    assert "column 'city' has type string, expected a number" in fails("--numeric=city")
    assert "column 'price' has type float, expected an id" in fails(
        "--categorical=price"
    )
    assert "column 'tags' has type list" in fails("--vector=tags:3")
    assert "is also a field" in fails("--label=stars", "--numeric=stars")
    assert "--skip=thumbnails: did you mean 'thumbnail'" in fails("--skip=thumbnails")


def test_newest_version_is_read_unless_one_is_named(fails, tmp_path):
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        folder = tmp_path / "sets" / "made_up" / version
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    sets = tmp_path / "sets"
    assert tfds_records.find("made_up", sets).name == "1.10.0"
    assert tfds_records.find("made_up:1.2.0", sets).name == "1.2.0"
    assert tfds_records.find(str(folder), tmp_path) == folder
    with pytest.raises(
        DataError, match=r"\['1.10.0', '1.2.0', '1.9.0'\], expected 2.0.0"
    ):
        tfds_records.find("made_up:2.0.0", sets)
    assert "tfds build bazar --file_format=array_record" in fails(dataset="bazar")


def test_files_that_only_tensorflow_reads_are_refused(data_dir, tmp_path, monkeypatch):
    folder = tmp_path / "1.2.0"
    folder.mkdir()
    source = data_dir / "bazaar/1.2.0"
    for name in ("dataset_info.json", "features.json"):
        text = (source / name).read_text()
        (folder / name).write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="prepared as tfrecord, which only TensorFlow"):
        tfds_records.open_builder(folder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'rankax\[tfds\]'"):
        tfds_records.open_builder(source)


def test_records_that_are_not_as_the_features_say_are_refused(data_dir, tmp_path):
    folder = tmp_path / "1.2.0"
    folder.mkdir()
    for path in (data_dir / "bazaar/1.2.0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tree = json.loads((folder / "features.json").read_text())
    tensor = tree["featuresDict"]["features"]["text_vector"]["tensor"]
    tensor["shape"]["dimensions"] = ["4"]
    (folder / "features.json").write_text(json.dumps(tree))
    builder = tfds_records.open_builder(folder)
    features, _ = tfds_records.find_features(builder)
    plan = Plan(
        name="made_up",
        fields=(VectorField(name="text_vector", width=4),),
        labels=(LabelRule(name="is_new", column="is_new"),),
    )
    records = tfds_records.Records(folder, {"train": "train"}, features, plan)
    records = pickle.loads(pickle.dumps(records))  # as to the workers of a cluster
    with pytest.raises(
        DataError, match="'text_vector': a record has 3 values, expected 4"
    ):
        list(records.chunks(0))


WITHOUT = """
import sys
from data_pipelines import tfds
tfds.main(sys.argv[1:])
assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
"""


def test_no_tensorflow_is_imported(data_dir, tmp_path):
    flags = ("bazaar", f"--data_dir={data_dir}", f"--out={tmp_path / 'out'}")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *flags, "--label=is_new"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"train: {NUM_TRAIN} rows, positive is_new 0.2500" in done.stdout
