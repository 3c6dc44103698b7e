"""Evaluation through the whole path, and what a run leaves behind."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sk

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import card as cards
from rankax.data import synthetic
from rankax.evaluate import evaluate
from rankax.metrics import bootstrap
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe.console import Console
from rankax.observe.writers import read_metrics
from rankax.train import train
from rankax.training import resampling
from rankax.training.evaluator import tell_worst_slices
from rankax.training.progress import NonFiniteError
from rankax.training.setup import set_up


def make_config(backbone="dnn"):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=8_000,
        num_valid_rows=777,
        num_test_rows=1_333,
        rows_per_group=400,
    )
    config.data.lanes = 8
    options = {} if backbone == "lr" else {"embedding_dim": 4, "hidden_dims": (8,)}
    config.model.backbone = named_config(backbone, **options)
    config.train.batch_size = 256
    config.train.num_epochs = 1
    config.optimizer.dense.learning_rate = 0.01
    config.eval.save_predictions = True
    config.observe.tensorboard = True
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return make_config(), folder, train(make_config(), str(folder))


def test_every_metric_can_be_recomputed_from_the_predictions(finished):
    _, folder, result = finished
    table = pq.read_table(folder / "predictions.parquet").to_pydict()
    weight = np.array(table["weight"])
    assert len(weight) == 1_333 and np.all(weight == 1)
    for task in ("ctr", "ctcvr"):
        label = np.array(table[f"{task}/label"])
        p = np.array(table[f"{task}/probability"])
        true = np.array(table[f"{task}/true_probability"])
        got = {
            k: result["metrics"][f"{task}/{k}"]
            for k in ("auc", "log_loss", "calibration", "gauc")
        }
        groups = [np.array(table["group"]) == g for g in set(table["group"])]
        mixed = [own for own in groups if 0 < label[own].mean() < 1]
        areas = [own.sum() * sk.roc_auc_score(label[own], p[own]) for own in mixed]
        assert got["gauc"] == pytest.approx(sum(areas) / sum(map(np.sum, mixed)))
        assert got["auc"] == pytest.approx(
            sk.roc_auc_score(label, p),
            abs=result["metrics"][f"{task}/auc_bound"] + 1e-12,
        )
        assert got["log_loss"] == pytest.approx(sk.log_loss(label, p), rel=1e-5)
        assert got["calibration"] == pytest.approx(p.sum() / label.sum(), rel=1e-5)
        oracle = result["metrics"][f"{task}/oracle_auc"]
        assert oracle == pytest.approx(sk.roc_auc_score(label, true), abs=1e-4)
        assert result["metrics"][f"{task}/num_examples"] == 1_333


def test_the_predictions_can_be_resampled(finished):
    _, folder, result = finished
    names = [f"ctr/{name}" for name in bootstrap.NAMES] + ["ctr/calibration"]
    resampled = resampling.resample(
        [folder, folder], [result["metrics"]] * 2, names, groups=True, console=Console()
    )
    assert resampled.num == 1_000 and resampled.values.keys() == set(names[:-1])
    for name, values in resampled.values.items():
        np.testing.assert_array_equal(*values)
        low, high = np.quantile(values[0], [0.025, 0.975])
        assert low < result["metrics"][name] < high


def test_the_result_has_the_promised_keys(finished):
    config, folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == json.loads(
        json.dumps(result)
    )
    for key in [
        "metrics",
        "best_validation",
        "step",
        "epoch",
        "examples_seen",
        "examples_per_second",
        "input_wait",
        "seed",
        "config_hash",
        "dataset_fingerprint",
        "versions",
        "hardware",
        "model",
        "dataset",
        "num_dense_parameters",
        "num_active_dense_parameters",
        "num_table_parameters",
        "flops_per_example",
        "table_bytes_per_example",
        "wire_bytes_per_step",
    ]:
        assert key in result, key
    assert result["mfu"] is None  # nobody tells the peak of a CPU
    assert result["examples_seen"] == 8_000  # the padded last batch counts as it is
    assert result["step"] == 32 and result["epoch"] == pytest.approx(1.0)
    assert result["seed"] == config.train.seed
    assert result["best_validation"]["metric"] == "ctr/auc"


def test_the_run_folder_holds_curves_events_and_a_report(finished):
    _, folder, result = finished
    lines = read_metrics(folder)
    assert [x["split"] for x in lines] == [
        "train",
        "tables",
        "valid",
        "test",
    ]
    assert lines[0]["loss"] > 0 and 0 <= lines[0]["input_wait"] <= 1
    rate = (
        3 * result["product_flops_per_example"] * lines[0]["examples_per_second"] / 1e12
    )
    num_devices = result["hardware"]["num_devices"]
    assert lines[0]["tflops_per_second"] == pytest.approx(rate / num_devices)
    assert "mfu" not in lines[0]
    assert list(folder.glob("events.out.tfevents.*"))
    assert "<svg" in (folder / "report.html").read_text()


def test_evaluation_reads_every_example_once_at_any_batch_size(finished):
    _, folder, result = finished
    config = make_config()
    config.eval.batch_size = 8 * 13 * 8
    config.eval.exact_auc = True
    again = evaluate(config, str(folder))
    assert again["test"]["ctr/num_examples"] == 1_333
    assert again["valid"]["ctr/num_examples"] == 777
    assert again["test"]["ctr/log_loss"] == pytest.approx(
        result["metrics"]["ctr/log_loss"]
    )
    assert again["test"]["ctr/auc"] == pytest.approx(
        result["metrics"]["ctr/auc"], abs=1e-4
    )
    assert again["test"]["ctr/auc_bound"] == 0


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """A run on a dataset folder with slices that selects by a mean ranking metric."""
    data = tmp_path_factory.mktemp("data") / "clicks"
    card = synthetic.write(make_config().data.source, data)
    slices = (
        cards.Slice(name="place", column="domain"),
        cards.Slice(name="order", column="ctcvr", values=("no", "yes")),
    )
    dataclasses.replace(card, slices=slices).save(data)
    config = make_config()
    config.data.source = ParquetConfig(path=str(data))
    config.data.lanes = 1  # predictions in the order of the file
    config.eval.top_k = 5
    config.eval.metric = "mean/ndcg@5"
    folder = tmp_path_factory.mktemp("sliced")
    return config, data, folder, train(config, str(folder))


def test_slices_can_be_recomputed_from_the_predictions(sliced):
    _, data, folder, result = sliced
    rows = {(row["slice"], row["value"]): row for row in result["slices"]["ctr"]}
    table = pq.read_table(folder / "predictions.parquet")
    raw = pq.read_table(data / "test")
    label = raw["ctr"].to_numpy()
    p = table["ctr/probability"].to_numpy()
    np.testing.assert_array_equal(table["ctr/label"].to_numpy(), label)
    domain = raw["domain"].to_numpy()
    assert {name for name, _ in rows} == {"place", "order"}
    assert sum(name == "place" for name, _ in rows) == len(np.unique(domain)) > 1
    for value in np.unique(domain):
        own, row = domain == value, rows["place", str(value)]
        assert row["num_examples"] == own.sum()
        assert row["auc"] == pytest.approx(sk.roc_auc_score(label[own], p[own]))
        assert row["log_loss"] == pytest.approx(
            sk.log_loss(label[own], p[own]), rel=1e-5
        )
    bought = rows["order", "yes"]  # an order needs a click
    assert bought["positive_rate"] == 1 and np.isnan(bought["auc"])
    written = json.loads((folder / "result.json").read_text())["slices"]
    assert {task: len(own) for task, own in written.items()} == {
        task: len(own) for task, own in result["slices"].items()
    }
    assert written["ctr"][-1]["auc"] is None and written["ctr"][-1]["is_small"]
    assert "<h2>Slices</h2>" in (folder / "report.html").read_text()


def test_a_mean_of_ranking_metrics_selects_and_is_logged(sliced):
    _, _, folder, result = sliced
    best = result["best_validation"]
    parts = [best["metrics"][f"{task}/ndcg@5"] for task in ("ctr", "ctcvr")]
    assert best["metric"] == "mean/ndcg@5"
    assert best["value"] == pytest.approx(np.mean(parts))
    for line in read_metrics(folder)[2:]:  # valid and test
        assert line["mean/ndcg@5"] == pytest.approx(
            (line["ctr/ndcg@5"] + line["ctcvr/ndcg@5"]) / 2
        )
        assert 0 < line["ctr/ndcg@5"] < 1 and 0 < line["ctr/hit_rate@5"] <= 1


def test_evaluation_reports_the_chosen_slices_of_both_splits(sliced):
    config, _, folder, result = sliced
    config = copy.deepcopy(config)
    config.eval.slices = ("place",)
    again = evaluate(config, str(folder))
    expected = [row for row in result["slices"]["ctr"] if row["slice"] == "place"]
    assert again["test_slices"]["ctr"] == [
        pytest.approx(row, abs=1e-6) for row in expected
    ]
    counts = [row["num_examples"] for row in again["valid_slices"]["ctr"]]
    assert sum(counts) == 777
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["test_slices"]["ctr"][0]["slice"] == "place"
    config.eval.slices = ("plaec",)
    with pytest.raises(ValueError, match=r"eval.slices names 'plaec'.*'place'"):
        set_up(config)


def test_the_worst_slice_is_told_if_it_is_surely_below(capsys):
    def row(value, low, auc, high):
        return {
            "slice": "tab", "value": value, "num_examples": 1_234, "is_small": False,
            "auc_low": low, "auc": auc, "auc_high": high,
        }  # fmt: skip

    rows = {"ctr": [row("a", 0.5, 0.6, 0.72), row("b", 0.6, 0.62, 0.64)], "cvr": []}
    tell_worst_slices(Console(), "test", {"ctr/auc": 0.7, "cvr/auc": 0.7}, rows)
    out, err = capsys.readouterr()
    told = " ".join((out + err).split())
    assert (
        told
        == "test ctr: worst slice tab=b, AUC 0.6200 [0.6000, 0.6400] of 1,234 examples"
    )


def test_a_group_metric_needs_a_group_column(sliced, tmp_path):
    _, data, *_ = sliced
    card = dataclasses.replace(cards.load(data), group="")
    for split in ("train", "valid", "test"):
        shutil.copytree(data / split, tmp_path / split)
    card.save(tmp_path)
    config = make_config("lr")
    config.data.source = ParquetConfig(path=str(tmp_path))
    config.eval.top_k = 5
    with pytest.raises(ConfigError, match=r"eval\.top_k = 5 needs a group column"):
        set_up(config)
    config.eval.top_k = 0
    config.eval.metric = "mean/gauc"
    with pytest.raises(ConfigError, match="'mean/gauc' needs a group column"):
        set_up(config)


def test_evaluating_what_was_never_trained_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no run \(config\.json is missing\)"):
        evaluate(make_config(), str(tmp_path / "nothing"))


def test_a_diverging_run_stops_with_advice_and_keeps_its_last_checkpoint(tmp_path):
    config = make_config()
    config.optimizer.dense.name = "sgd"
    config.optimizer.dense.learning_rate = 1e30
    config.observe.log_every = 5
    with pytest.raises(
        NonFiniteError, match=r"step \d+ was NaN or infinite[\s\S]*clip_norm"
    ):
        train(config, str(tmp_path))
    assert not (tmp_path / "result.json").exists()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 24, "data.lanes": 3}, None),
        (
            {"train.batch_size": 100, "data.lanes": 10},
            "multiple of the 8 devices; use 80",
        ),
        (
            {"eval.batch_size": 36, "data.lanes": 4},
            "eval.batch_size = 36 must be a multiple",
        ),
        ({"eval.metric": "cvr/auc"}, "names no task of the run"),
        ({"eval.metric": "ctr/acu"}, "did you mean 'auc'"),
        ({"eval.metric": "mean/acu"}, "did you mean 'auc'"),
        ({"eval.metric": "ctr/ndcg"}, "did you mean 'ndcg@K'"),
        ({"eval.metric": "ctr/ndcg@5"}, r"first 5, but eval\.top_k = 0"),
        ({"eval.metric": "meen/auc"}, "did you mean 'mean/auc'"),
        ({"data.tasks": ("cttr",)}, "data.tasks names 'cttr'.*did you mean 'ctr'"),
        ({"data.fields": ("userid",)}, "data.fields names 'userid'.*'user_id'"),
        ({"mesh.data": 3}, "but there are 8 devices"),
        ({"tables.num_shards": 4}, "8 devices do not divide tables.num_shards = 4"),
        ({"model.task_weights": (1.0,)}, "1 values for 2 tasks"),
    ],
)
def test_options_that_do_not_fit_data_or_devices_are_refused(changes, message):
    config = make_config("lr")
    for path, value in changes.items():
        section, option = path.split(".")
        setattr(getattr(config, section), option, value)
    if message is None:
        set_up(config)
        return
    with pytest.raises(ValueError, match=message):
        set_up(config)


def test_selected_fields_and_tasks_are_the_only_ones_read():
    config = make_config("lr")
    config.data.fields = ("user_id", "item_id")
    config.data.tasks = ("ctcvr",)
    setup = set_up(config)
    assert [slot.name for slot in setup.schema.slots] == ["user_id", "item_id"]
    assert setup.selection_metric == "ctcvr/auc"
    assert setup.steps.engine.plan.num_columns == 2
