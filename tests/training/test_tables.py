"""The options of the tables, through whole runs on a dataset folder."""

import dataclasses
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import card as cards
from rankax.data import packing, synthetic, transforms
from rankax.data.card import DataError
from rankax.export import export
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe.writers import read_metrics
from rankax.serving.bundle import Bundle
from rankax.train import train
from rankax.training.setup import set_up

KNOWN_USERS = 300  # of more in the data


@pytest.fixture(scope="module")
def clicks(tmp_path_factory):
    """A dataset folder whose card promises fewer users than the files hold."""
    folder = tmp_path_factory.mktemp("data") / "clicks"
    source = SyntheticConfig(
        num_train_rows=6_000,
        num_valid_rows=500,
        num_test_rows=700,
        rows_per_group=500,
    )
    card = synthetic.write(source, folder)
    tables = tuple(
        dataclasses.replace(table, num_rows=KNOWN_USERS, ids="direct")
        if table.name == "user_id"
        else table
        for table in card.tables
    )
    dataclasses.replace(card, tables=tables).save(folder)
    return folder


def make_config(folder, **tables):
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder))
    config.data.lanes = 8
    config.model.backbone = named_config("dnn", embedding_dim=4, hidden_dims=(8,))
    config.train.batch_size = 256
    config.train.num_epochs = 1
    config.observe.tensorboard = config.observe.report = False
    config.tables.num_shards = 64
    config.tables.replicate_below_bytes = 2_000  # some tables of each kind
    config.tables.out_of_range = "default_row"
    for name, value in tables.items():
        setattr(config.tables, name, value)
    return config


@pytest.fixture(scope="module")
def finished(clicks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = make_config(clicks, track_last_step=True)
    return folder, train(config, str(folder))


def users(folder, split):
    return pq.read_table(folder / split)["user_id"].to_numpy()


def test_ids_outside_a_table_are_counted_in_training_and_test(clicks, finished):
    folder, result = finished
    for split in ("train", "test"):
        ids = users(clicks, split)
        counts = result["tables"][split]["embedding/user_id"]
        outside = np.count_nonzero((ids < 0) | (ids >= KNOWN_USERS))
        assert 0 < outside < len(ids)
        assert counts["out_of_vocabulary"] == outside
        assert counts["looked_up"] == len(ids)
    lines = [x for x in read_metrics(folder) if x["split"] == "tables"]
    windows = [x for x in lines if "embedding/user_id/looked_up" in x]
    counted = sum(x["embedding/user_id/out_of_vocabulary"] for x in windows)
    whole = result["tables"]["train"]["embedding/user_id"]
    assert counted == whole["out_of_vocabulary"]
    assert all(0 < x["embedding/user_id/unique_ratio"] <= 1 for x in windows)
    assert all(x["embedding/user_id/shard_load"] >= 1 for x in windows)
    text = (folder / "tables.txt").read_text()
    assert "user_id" in text and "by row in embedding_0" in text


def test_rows_that_no_example_touched_are_counted(clicks, finished):
    folder, result = finished
    seen = np.unique(users(clicks, "train"))
    seen = np.append(seen[seen < KNOWN_USERS], KNOWN_USERS)  # and the default row
    untouched = result["never_updated"]["embedding/user_id"]
    assert untouched == KNOWN_USERS + 1 - len(np.unique(seen))
    lines = [x for x in read_metrics(folder) if "embedding/user_id/never_updated" in x]
    assert [x["embedding/user_id/never_updated"] for x in lines] == [untouched]


def test_ids_outside_a_table_are_an_error_unless_there_is_a_default_row(clicks):
    config = make_config(clicks, out_of_range="error")
    with pytest.raises(DataError, match=r"user_id.*tables\.out_of_range=default_row"):
        train(config, str(clicks.parent / "refused"))


def test_deduplication_on_the_device_gives_the_same_run(clicks, finished, tmp_path):
    _, host = finished
    config = make_config(
        clicks, track_last_step=True, deduplicate="device", capacity_margin=0.0
    )
    device = train(config, str(tmp_path))
    assert device["config_hash"] == host["config_hash"]
    assert device["metrics"] == host["metrics"]
    for name, counts in host["tables"]["train"].items():
        other = device["tables"]["train"][name]
        for counter in ("looked_up", "unique", "out_of_vocabulary"):
            assert other[counter] == counts[counter], (name, counter)
    # Without a margin some batches do not fit one round.
    rounds = [x.get("overflow_rounds", 0) for x in device["tables"]["train"].values()]
    assert max(rounds) > 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adagrad", "lazy_adam"])
def test_sixteen_bit_rows_train_nearly_as_well(clicks, tmp_path, optimizer):
    auc = {}
    for dtype in ("float32", "bfloat16"):
        config = make_config(clicks, dtype=dtype, replicate_below_bytes=0)
        config.model.backbone = named_config("lr")
        config.optimizer.sparse.name = optimizer
        config.optimizer.sparse.learning_rate = 0.05
        config.train.num_epochs = 2
        result = train(config, str(tmp_path / dtype))
        auc[dtype] = result["metrics"]["ctr/auc"]
    assert auc["float32"] > 0.6
    assert auc["bfloat16"] == pytest.approx(auc["float32"], abs=0.01)


def test_never_updated_rows_are_those_of_the_whole_run(clicks, tmp_path):
    config = make_config(clicks, track_last_step=True)
    config.eval.every_steps = 2
    config.optimizer.dense.learning_rate = 1.0  # diverges: an early checkpoint is best
    result = train(config, str(tmp_path))
    assert result["best_validation"]["step"] < result["step"]
    seen = users(clicks, "train")
    seen = np.unique(np.where(seen < KNOWN_USERS, seen, KNOWN_USERS))
    untouched = result["never_updated"]["embedding/user_id"]
    assert untouched == KNOWN_USERS + 1 - len(seen)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"dtype": "bfloat16"}, "act on tables sharded by row, but all tables are"),
        ({"track_last_step": True}, r"lower tables\.replicate_below_bytes \(1,000,000"),
        ({"out_of_range": "default_row"}, "fields in use have none"),
    ],
)
def test_table_options_without_a_use_are_refused(clicks, tmp_path, tables, message):
    config = make_config(clicks, replicate_below_bytes=1_000_000, **tables)
    config.tables.out_of_range = tables.get("out_of_range", "error")
    if "out_of_range" in tables:  # of no use where all ids are hashed
        card = cards.load(clicks)
        hashed = tuple(dataclasses.replace(t, ids="hash") for t in card.tables)
        dataclasses.replace(card, tables=hashed).save(tmp_path)
        for split in card.splits:
            shutil.copytree(clicks / split, tmp_path / split)
        config.data.source.path = str(tmp_path)
    with pytest.raises(ConfigError, match=message):
        set_up(config)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("dtype", "float16", r"tables\.dtype = 'float16' is unknown"),
        ("deduplicate", "devise", r"did you mean 'device'"),
        ("out_of_range", "drop", r"tables\.out_of_range = 'drop' is unknown"),
        ("capacity_margin", -1.0, r"capacity_margin = -1.0 must be at least 0"),
    ],
)
def test_unknown_table_options_are_refused(clicks, option, value, message):
    with pytest.raises(ConfigError, match=message):
        make_config(clicks, **{option: value}).validate()


# ---------------------------------------------------------------- another hash size


@pytest.mark.slow  # 15 s
def test_a_run_hashes_ids_into_the_rows_that_it_names(clicks, tmp_path):
    config = make_config(clicks, hashed_rows=("user_id=37",), out_of_range="error")
    setup = set_up(config)
    plain = set_up(make_config(clicks))
    assert setup.schema.tables["user_id"].ids == "hash"
    assert setup.schema.num_rows["user_id"] == 37
    # The data are the same, whatever a run makes of them.
    assert setup.dataset_fingerprint == plain.dataset_fingerprint
    read = setup.splits["train"].read(0)
    (column,) = [s.start for s in setup.schema.slots if s.name == "user_id"]
    rows = packing.pack(read, setup.schema, where="train")["ids"][:, column]
    salt = transforms.table_salt("user_id")
    ids = read["user_id"].to_numpy()
    np.testing.assert_array_equal(
        rows, transforms.hash_rows(ids, num_rows=37, salt=salt)
    )

    result = train(config, str(tmp_path / "run"))
    assert result["tables"]["train"]["embedding/user_id"]["out_of_vocabulary"] == 0
    export(config, str(tmp_path / "run"))
    bundle = Bundle(tmp_path / "run/bundle")
    assert bundle.schema.tables["user_id"] == setup.schema.tables["user_id"]


@pytest.mark.parametrize(
    ("hashed_rows", "error", "message"),
    [
        (("user_id=0",), ConfigError, r"'user_id=0'; write TABLE=ROWS"),
        (("user_id",), ConfigError, r"'user_id'; write TABLE=ROWS"),
        (("user_id=9", "user_id=8"), ConfigError, "names a table twice"),
        (("user=9",), DataError, "'user', which is no table.*'user_id'"),
    ],
)
def test_hash_sizes_that_mean_nothing_are_refused(clicks, hashed_rows, error, message):
    with pytest.raises(error, match=message):
        set_up(make_config(clicks, hashed_rows=hashed_rows))
