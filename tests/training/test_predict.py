"""Predictions for a dataset folder: equal to evaluation's, with labels or without."""

import contextlib
import copy
import dataclasses

from etils import epath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_processes import Together
from test_resume import make_config
from topologies import make_float32_config

from rankax import predict as prediction
from rankax.config.base import ConfigError
from rankax.data import card as cards
from rankax.data import lanes, new_examples, packing, synthetic
from rankax.data.errors import DataError
from rankax.data.fields import Log1p
from rankax.data.shards import ShardWriter
from rankax.data.source import open_split
from rankax.observe.console import Console
from rankax.predict import predict
from rankax.train import train
from rankax.training import scoring
from rankax.training import setup as setups
from rankax.training.checkpoint import Checkpoints
from rankax.training.evaluator import evaluate
from rankax.training.step import Steps

TASKS = ("ctr", "ctcvr")
NUM_ROWS = 1_000  # of the test split


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Configuration, run folder, and its source as a dataset folder."""
    config = make_config(num_epochs=0, num_steps=20)
    config.tables.out_of_range = "default_row"
    config.eval.save_predictions = True
    config.eval.batch_size = 104
    config.checkpoint.keep_last = 2
    data = tmp_path_factory.mktemp("data") / "clicks"
    synthetic.write(config.data.source, data)
    workdir = tmp_path_factory.mktemp("run")
    train(config, str(workdir))
    return config, workdir, data


def columns_of(path):
    table = pq.read_table(path)
    return {name: table[name].to_numpy() for name in table.column_names}


@pytest.fixture(scope="module")
def predicted(run, tmp_path_factory):
    config, workdir, data = run
    out = tmp_path_factory.mktemp("out") / "new" / "test.parquet"
    result = predict(config, str(workdir), data=f"{data}/test", out=str(out))
    assert result["num_examples"] == NUM_ROWS
    return columns_of(out)


def rewrite(data, to, *, card=lambda card: card, table=lambda table: table):
    """Copies the test split with another card and other columns."""
    rows = table(pq.read_table(data / "test"))
    splits = {"new": cards.Split(num_rows=rows.num_rows)}
    new = dataclasses.replace(cards.load(data), name="later", splits=splits)
    (to / "new").mkdir(parents=True)
    for part in range(2):
        half = rows.num_rows // 2 + 50
        piece = rows.slice(part * half, half)
        pq.write_table(piece, to / "new" / f"{part}.parquet", row_group_size=170)
    card(new).save(to)
    return f"{to}/new"


# ---------------------------------------------------------------- what is written


def test_predictions_are_evaluations_to_the_bit(run, predicted, tmp_path):
    config, workdir, _ = run
    config = copy.deepcopy(config)
    config.data.lanes = 1  # the order of the files
    setup = setups.set_up(config)
    state, _ = scoring.restore(epath.Path(workdir), setup.steps)
    evaluate(
        setup.steps,
        state,
        setup.splits["test"],
        config,
        console=Console(quiet=True),
        is_final=True,
        predictions=tmp_path / "evaluated.parquet",
    )
    evaluated = columns_of(tmp_path / "evaluated.parquet")
    for name in ("ctr/label", "ctr/probability", "ctcvr/label", "ctcvr/probability"):
        assert predicted[name].dtype == evaluated[name].dtype
        np.testing.assert_array_equal(predicted[name], evaluated[name])
    np.testing.assert_array_equal(predicted["group"], evaluated["group"])


def test_rows_are_those_of_the_files_whatever_the_lanes_of_the_run(run, predicted):
    config, workdir, data = run
    raw = pq.read_table(data / "test")
    np.testing.assert_array_equal(predicted["row"], np.arange(NUM_ROWS))
    np.testing.assert_array_equal(predicted["ctr/label"], raw["ctr"].to_numpy())
    saved = columns_of(workdir / "predictions.parquet")
    source = open_split(config.data.source, "test", setups.schema_of(config))
    order = np.concatenate(list(lanes.row_numbers(source, batch_size=104, lanes=8)))
    order = order[order >= 0]
    for name in ("ctr/label", "ctr/probability", "ctcvr/probability", "group"):
        found = predicted[name][order]
        np.testing.assert_allclose(found, saved[name], rtol=1e-5, atol=0)


def test_probabilities_are_the_sigmoid_of_the_logits(predicted):
    for task in TASKS:
        logit, probability = (
            predicted[f"{task}/logit"],
            predicted[f"{task}/probability"],
        )
        assert logit.dtype == probability.dtype == np.float32
        expected = 1 / (1 + np.exp(-logit.astype(np.float64)))
        np.testing.assert_array_equal(probability, expected.astype(np.float32))


def test_the_columns_are_those_that_the_card_names(run, predicted, tmp_path):
    config, workdir, data = run
    names = [f"{t}/{n}" for t in TASKS for n in ("label", "logit", "probability")]
    assert list(predicted) == ["row", *names, "group"]

    def unlabelled(card):
        return dataclasses.replace(card, labels=(), group="", weight="importance")

    def weighted(table):
        weight = pa.array(np.arange(NUM_ROWS) % 3, pa.float32())
        table = table.append_column("importance", weight)
        return table.drop_columns([*TASKS, *(f"{t}_probability" for t in TASKS)])

    split = rewrite(data, tmp_path / "new", card=unlabelled, table=weighted)
    out = tmp_path / "new.parquet"
    predict(config, str(workdir), data=split, out=str(out))
    found = columns_of(out)
    names = [name for name in names if "label" not in name]
    assert list(found) == ["row", *names, "weight"]
    # Examples of weight 0 are examples, too.
    np.testing.assert_array_equal(found["weight"], np.arange(NUM_ROWS) % 3)
    for name in ("row", *names):
        np.testing.assert_array_equal(found[name], predicted[name])


def test_a_label_of_one_task_alone_comes_with_its_task(run, predicted, tmp_path):
    config, workdir, data = run

    def one_label(card):
        return dataclasses.replace(card, labels=(cards.Label(name="ctcvr"),))

    split = rewrite(data, tmp_path / "new", card=one_label)
    out = tmp_path / "new.parquet"
    predict(config, str(workdir), data=split, out=str(out))
    found = columns_of(out)
    assert "ctr/label" not in found
    np.testing.assert_array_equal(found["ctcvr/label"], predicted["ctcvr/label"])


def test_a_few_examples_are_enough(run, predicted, tmp_path):
    config, workdir, data = run
    split = rewrite(data, tmp_path / "new", table=lambda table: table.slice(0, 3))
    predict(config, str(workdir), data=split, out=str(tmp_path / "few.parquet"))
    found = columns_of(tmp_path / "few.parquet")
    np.testing.assert_allclose(
        found["ctr/logit"], predicted["ctr/logit"][:3], rtol=1e-5, atol=1e-6
    )


def test_the_file_is_written_as_batches_come(run, tmp_path, monkeypatch):
    config, workdir, data = run
    monkeypatch.setattr(prediction, "ROWS_PER_GROUP", 300)
    started, written, ahead = [], [], []
    evaluate, write = Steps.evaluate, ShardWriter.write

    def count_started(*args):
        started.append(None)
        return evaluate(*args)

    def count_written(self, table):
        written.append(table.num_rows)
        ahead.append(len(started) - len(written))
        write(self, table)
        assert self._num_waiting < 300

    monkeypatch.setattr(Steps, "evaluate", count_started)
    monkeypatch.setattr(ShardWriter, "write", count_written)
    out = tmp_path / "test.parquet"
    predict(config, str(workdir), data=f"{data}/test", out=str(out))
    assert written == [104] * 9 + [64]
    assert max(ahead) == 2
    metadata = pq.read_metadata(out)
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert groups == [300, 300, 300, 100]


def test_a_file_that_is_not_whole_has_no_name(run, tmp_path):
    config, workdir, data = run

    def one_label_wrong(table):
        labels = np.where(np.arange(NUM_ROWS) == NUM_ROWS - 1, 7, table["ctr"])
        place = table.column_names.index("ctr")
        return table.set_column(place, "ctr", pa.array(labels))

    split = rewrite(data, tmp_path / "new", table=one_label_wrong)
    (tmp_path / "out").mkdir()
    out = str(tmp_path / "out" / "new.parquet")
    with pytest.raises(DataError, match=r"later/new, 1\.parquet .*labels 0 or 1"):
        predict(config, str(workdir), data=split, out=out)
    assert not list((tmp_path / "out").iterdir())


def far_users(*ids):
    """Gives the examples users that no table has."""

    def change(table):
        place = table.column_names.index("user_id")
        users = np.resize(ids, table.num_rows)
        return table.set_column(place, "user_id", pa.array(users))

    return change


def test_ids_outside_a_table_get_the_default_row_of_a_run_that_has_one(
    run, tmp_path, capsys
):
    config, workdir, data = run
    scored = []
    for name, ids in (("a", (10**6, -5)), ("b", (2**40, 10**6))):
        split = rewrite(data, tmp_path / name, table=far_users(*ids))
        out = str(tmp_path / f"{name}.parquet")
        predict(config, str(workdir), data=split, out=out)
        scored.append(columns_of(out)["ctr/logit"])
    np.testing.assert_array_equal(*scored)
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "later/new: 1,000 of 1,000 ids are outside table embedding/user_id and got its "
        "default row"
    ) in told


def test_ids_outside_a_table_are_errors_in_a_run_without_a_default_row(run, tmp_path):
    config, _, data = run
    split = rewrite(data, tmp_path / "new", table=far_users(10**6))
    for option, is_error in (("default_row", False), ("error", True)):
        config = copy.deepcopy(config)
        config.tables.out_of_range = option
        source, schema = new_examples.open_split(split, setups.schema_of(config))
        expected = contextlib.nullcontext()
        if is_error:
            expected = pytest.raises(DataError, match=r"later/new.*table 'user_id'")
        with expected:
            packing.pack(source.read(0), schema, where=source.where(0))


# ---------------------------------------------------------------- which checkpoint


def test_a_step_can_be_named(run, predicted, tmp_path):
    config, workdir, data = run
    steps = Checkpoints(workdir / "checkpoints", None).steps
    best = Checkpoints(workdir / "checkpoints", None).best_step()
    assert len(steps) > 1
    out = str(tmp_path / "named.parquet")
    for step in steps:
        options = {"data": f"{data}/test", "out": out, "step": step}
        assert predict(config, str(workdir), **options)["step"] == step
        is_same = np.array_equal(columns_of(out)["ctr/logit"], predicted["ctr/logit"])
        assert is_same == (step == best)
    with pytest.raises(ConfigError, match=r"--step=7: .* no such checkpoint, only"):
        predict(config, str(workdir), data=f"{data}/test", out=out, step=7)


# ---------------------------------------------------------------- what is refused


def changed(card, kind, name, **values):
    """A card with another field or table."""
    entries = tuple(
        dataclasses.replace(entry, **values) if entry.name == name else entry
        for entry in getattr(card, kind)
    )
    return dataclasses.replace(card, **{kind: entries})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda card: changed(card, "fields", "price", transforms=(Log1p(),)),
            r"field 'price': transforms = \(Log1p\(\),\), not \(\)",
        ),
        (
            lambda card: changed(card, "tables", "user_id", num_rows=10**7),
            r"table 'user_id': num_rows = 10000000, not \d+",
        ),
        (
            lambda card: changed(card, "tables", "item_id", ids="hash"),
            "table 'item_id': ids = 'hash', not 'direct'",
        ),
        (
            lambda card: dataclasses.replace(
                card, fields=tuple(f for f in card.fields if f.name != "quality")
            ),
            "field 'quality' is missing",
        ),
        (
            lambda card: dataclasses.replace(
                card,
                fields=(
                    *(f for f in card.fields if f.name != "idle"),
                    cards.VectorField(name="idle", width=1),
                ),
            ),
            "field 'idle' is a VectorField, not a NumericField",
        ),
    ],
)
def test_a_card_that_describes_other_input_is_refused(run, tmp_path, change, message):
    config, workdir, data = run
    split = rewrite(data, tmp_path / "new", card=change)
    with pytest.raises(ConfigError, match=message):
        predict(config, str(workdir), data=split, out=str(tmp_path / "x.parquet"))


def test_what_the_model_does_not_read_may_differ(run, predicted, tmp_path):
    config, workdir, data = run

    def change(card):
        card = dataclasses.replace(card, fields=card.fields[::-1], domain="", time="")
        return dataclasses.replace(
            card, fields=(cards.NumericField(name="more"), *card.fields)
        )

    split = rewrite(data, tmp_path / "new", card=change)
    out = str(tmp_path / "new.parquet")
    predict(config, str(workdir), data=split, out=out)
    found = columns_of(out)
    np.testing.assert_array_equal(found["ctr/logit"], predicted["ctr/logit"])


def test_mistakes_are_told_before_anything_is_scored(run, tmp_path):
    config, workdir, data = run

    def refused(kind, message, *, data=f"{data}/test", out=tmp_path / "x", run=workdir):
        with pytest.raises(kind, match=message):
            predict(config, str(run), data=str(data), out=str(out))

    refused(ConfigError, "is a whole data set; name the folder of one", data=data)
    refused(DataError, "no split 'tset'; did you mean 'test'", data=f"{data}/tset")
    refused(DataError, "is not a dataset folder", data=tmp_path / "none" / "test")
    refused(ConfigError, "is a folder; name a file in it", out=tmp_path)
    refused(ConfigError, "holds no run", run=tmp_path / "nowhere")
    split = rewrite(
        data, tmp_path / "new", table=lambda table: table.drop_columns(["ctcvr"])
    )
    refused(DataError, r"'ctcvr' is missing.*need \"labels\": \[\] in dat", data=split)
    other = copy.deepcopy(config)
    other.train.seed = 5
    with pytest.raises(ConfigError, match="belongs to a run of another configuration"):
        predict(other, str(workdir), data=f"{data}/test", out=str(tmp_path / "x"))
    assert not (tmp_path / "x").exists()


# ---------------------------------------------------------------- other machines


def test_a_split_on_a_store_is_scored_into_a_file_there(run, predicted, s3, tmp_path):
    config, workdir, data = run
    for path in [data / "dataset.json", *(data / "test").iterdir()]:
        s3.upload_file(str(path), "bucket", f"clicks/{path.relative_to(data)}")
    out = "s3://bucket/scored/test.parquet"
    predict(config, str(workdir), data="s3://bucket/clicks/test", out=out)
    s3.download_file("bucket", "scored/test.parquet", str(tmp_path / "test.parquet"))
    found = columns_of(tmp_path / "test.parquet")
    np.testing.assert_array_equal(found["ctr/logit"], predicted["ctr/logit"])


@pytest.mark.slow
def test_two_processes_predict_as_one(tmp_path):
    config = make_float32_config()
    synthetic.write(config.data.source, tmp_path / "clicks")
    train(config, str(tmp_path / "run"))
    options = {"data": f"{tmp_path}/clicks/test", "out": f"{tmp_path}/one.parquet"}
    predict(config, str(tmp_path / "run"), **options)
    with Together(
        tmp_path,
        "--mode=predict",
        f"--predict_data={tmp_path}/clicks/test",
        f"--predict_out={tmp_path}/two.parquet",
    ) as both:
        assert both.wait() == [0, 0], [both.log(0), both.log(1)]
        assert f"wrote {tmp_path}/two.parquet" in both.log(0)
        assert both.log(1) == ""
    one, two = (columns_of(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    order = np.argsort(two["row"])
    assert list(one) == list(two)
    for name, values in one.items():
        np.testing.assert_allclose(two[name][order], values, rtol=0, atol=1e-6)
