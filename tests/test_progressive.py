"""Progressive training: judged on what it has not seen, published, gone on with."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from rankax import evaluate, progressive, replay, train
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import synthetic
from rankax.data.errors import DataError
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe.writers import read_metrics
from rankax.progressive import freshness
from rankax.serving import Scorer, features
from rankax.serving import delta as deltas
from rankax.training.interruption import StopRequest
from rankax.training.progress import NonFiniteError
from rankax.training.publisher import Publisher
from rankax.training.setup import set_up

WEEK = 7 * 86_400
N = 9


def make_config(**options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=2000, num_valid_rows=400, num_test_rows=400, rows_per_group=300
    )
    config.data.tasks = ("ctr",)
    config.data.lanes = 4
    config.data.time_window = WEEK // 2  # N windows
    config.tables.replicate_below_bytes = 10_000
    config.tables.num_shards = 8
    config.tables.track_last_step = True
    config.model.backbone = named_config("dnn", embedding_dim=4, hidden_dims=(8,))
    config.train.batch_size, config.train.num_epochs = 64, 1
    config.optimizer.dense.learning_rate = 0.01
    config.progressive.staleness = (0, 2)
    config.eval.exact_auc = True
    config.observe.tensorboard = False
    for name, value in options.items():
        setattr(config.observe, name, value)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(config, run folder, result) of a run without interruption."""
    folder = tmp_path_factory.mktemp("progressive") / "run"
    config = make_config()
    return config, folder, progressive.progressive(config, str(folder))


def window_lines(folder):
    return [line for line in read_metrics(folder) if line["split"] == "window"]


def test_every_window_is_judged_before_it_is_learned(whole):
    """What is published after window t scores window t + 1 + s as the line says."""
    config, folder, result = whole
    lines = {(x["window"], x["staleness"]): x for x in window_lines(folder)}
    assert {*lines} == {(t, s) for s in (0, 2) for t in range(1 + s, N)}
    assert len(window_lines(folder)) == len(lines)
    windows = progressive._windows(config, set_up(config))
    scorer = Scorer(folder / "bundle", sizes=(512,))
    assert deltas.numbers(folder / "bundle") == list(range(1, N))
    for t in range(N):  # the bundle is of window 0, delta t of window t
        if t:
            scorer.apply(deltas.file_of(folder / "bundle", t))
        for s in (0, 2):
            if t + 1 + s >= N:
                continue
            raw, labels = {}, []
            for group in range(len(windows[t + 1 + s].rows_per_group)):
                table = windows[t + 1 + s].read(group)
                labels += table["ctr"].to_pylist()
                for name in features.names(scorer.bundle.schema):
                    raw.setdefault(name, []).extend(table[name].to_pylist())
            own = scorer.score(raw)["ctr"]
            line = lines[t + 1 + s, s]
            assert line["step"] == scorer.step
            auc = sklearn_metrics.roc_auc_score(labels, own)
            assert line["ctr/auc"] == pytest.approx(auc, abs=1e-6)
            loss = sklearn_metrics.log_loss(labels, own.astype(np.float64))
            assert line["ctr/log_loss"] == pytest.approx(loss, abs=1e-6)
    assert result["examples_seen"] == 2800
    assert result["num_windows"] == N
    assert scorer.step == result["step"]


def test_the_freshness_curve_is_the_mean_over_the_same_windows(whole):
    _, folder, result = whole
    lines = {(x["window"], x["staleness"]): x["ctr/auc"] for x in window_lines(folder)}
    rows = result["freshness"]["ctr/auc"]
    for row, s in zip(rows, (0, 2), strict=True):
        values = [lines[t, s] for t in range(3, N)]
        assert row["staleness"] == s
        assert row["windows"] == N - 3
        assert row["mean"] == pytest.approx(np.mean(values))
    difference = [lines[t, 2] - lines[t, 0] for t in range(3, N)]
    assert rows[1]["difference"] == pytest.approx(np.mean(difference))
    error = np.std(difference, ddof=1) / (N - 3) ** 0.5
    assert rows[1]["difference_error"] == pytest.approx(error)
    half = stats.t.ppf(0.975, N - 4) * error  # of the mean of N - 3 windows
    text = (folder / "report.html").read_text()
    assert f"2 windows late {rows[1]['difference']:+.4f} ± {half:.4f}" in text
    assert "Freshness" in text
    assert "ctr: AUC by staleness" in text
    assert f"{rows[0]['mean']:.4f}" in text
    assert f"{N} windows, each evaluated before it was learned" in text


def test_windows_that_do_not_define_a_metric_are_left_out():
    lines = [
        {"split": "window", "step": 1, "window": w, "staleness": s, "a/auc": value}
        for w, s, value in [
            (1, 0, 0.9),
            (2, 0, 0.5),
            (2, 1, 0.4),
            (3, 0, None),
            (3, 1, 0.1),
        ]
    ]
    (rows,) = freshness([*lines, {"split": "train", "step": 1}], (0, 1)).values()
    assert [row["mean"] for row in rows] == [0.5, 0.4]
    assert rows[1]["difference"] == pytest.approx(-0.1)
    assert rows[1]["difference_error"] is None
    assert freshness(lines[:1], (0, 1)) == {}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step", "judge", "save", "publish", "signal"])
def test_a_run_that_is_ended_anywhere_goes_on_as_if_it_was_not(
    whole, tmp_path, monkeypatch, place
):
    _, expected, result = whole
    config = make_config(report=False)
    config.checkpoint.every_steps = 3
    run = tmp_path / "run"

    def killing(original, call):
        calls = []

        def own(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                raise Killed
            return original(*args, **kwargs)

        return own

    with monkeypatch.context() as patch, pytest.raises(BaseException) as error:
        if place == "step":
            counted = killing(progressive.schedule.factor, 14)
            patch.setattr(progressive.schedule, "factor", counted)
        elif place == "judge":
            patch.setattr(progressive, "evaluate", killing(progressive.evaluate, 6))
        elif place == "save":
            saving = killing(progressive.Checkpoints.save, 6)
            patch.setattr(progressive.Checkpoints, "save", saving)
        elif place == "publish":
            patch.setattr(Publisher, "publish", killing(Publisher.publish, 3))
        else:  # noticed in the middle of the third window
            numbers = iter([0] * 20 + [15] * 100)
            patch.setattr(StopRequest, "number", property(lambda _: next(numbers)))
        progressive.progressive(config, str(run))
    assert isinstance(error.value, Killed) or error.value.signal == 15
    before = deltas.numbers(run / "bundle")
    assert len(before) < N - 1
    again = progressive.progressive(config, str(run))
    assert again["step"] == result["step"]
    assert again["examples_seen"] == 2800
    assert again["freshness"] == result["freshness"]
    assert deltas.numbers(run / "bundle") == list(range(1, N))
    keys = ("step", "window", "staleness", "ctr/auc")
    found, wanted = (
        [[line[key] for key in keys] for line in window_lines(folder)]
        for folder in (run, expected)
    )
    assert found == wanted
    ends = []
    for folder in (run, expected):
        scorer = Scorer(folder / "bundle", sizes=(32,))
        assert scorer.catch_up() == N - 1
        ends.append(scorer.logits(scorer.bundle.golden["features"]).tolist())
    assert ends[0] == ends[1]


def test_a_finished_run_is_told_and_other_programs_keep_off_it(whole, capsys):
    config, folder, result = whole
    assert progressive.progressive(config, str(folder)) == result
    assert "is finished at step" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="evaluates every window before it learns it"):
        evaluate.evaluate(config, str(folder))
    with pytest.raises(ConfigError, match="is a run of --mode=progressive"):
        train.train(config, str(folder))


def test_other_programs_keep_off_a_run_that_ended_before_its_first_checkpoint(
    tmp_path,
):
    config = make_config()
    config.optimizer.dense.learning_rate = 1e30  # overflows in the first window
    with pytest.raises(NonFiniteError, match="of step 2 was NaN") as error:
        progressive.progressive(config, str(tmp_path))
    assert "--mode=replay" not in str(error.value)
    assert (tmp_path / "bad_step.json").exists()
    assert not any((tmp_path / "checkpoints").iterdir())
    for program in (evaluate.evaluate, replay.replay, train.train):
        with pytest.raises(ConfigError, match="is a run of --mode=progressive, which"):
            program(config, str(tmp_path))


def test_what_cannot_be_trained_is_told(tmp_path):
    def refused(message, kind=DataError, **options):
        config = make_config()
        for name, value in options.items():
            setattr(config.data, name, value)
        with pytest.raises(kind, match=message):
            progressive.progressive(config, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    refused("needs data.time_window", ConfigError, time_window=0)
    refused("is in one window", time_window=100 * WEEK)
    refused("examples, fewer than data.lanes = 4", time_window=60)
    config = make_config()
    config.progressive.staleness = (1, 2)
    with pytest.raises(ConfigError, match="must ascend from 0"):
        progressive.progressive(config, str(tmp_path / "run"))


def test_a_run_of_the_trainer_is_refused(tmp_path):
    config = make_config(report=False)
    config.eval.test = False
    train.train(config, str(tmp_path / "run"))
    refusal = "is a run of --mode=train; go on with that mode, or name a folder of"
    with pytest.raises(ConfigError, match=refusal):
        progressive.progressive(config, str(tmp_path / "run"))
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(ConfigError, match=refusal):
        progressive.progressive(config, str(tmp_path / "run"))


def test_what_is_left_out_stays_so(tmp_path):
    config = make_config(report=False)
    synthetic.write(config.data.source, tmp_path / "data")
    config.data.source = ParquetConfig(path=str(tmp_path / "data"))
    config.data.quarantine = 0.5
    (tmp_path / "data/train/00009.parquet").touch()
    progressive.progressive(config, str(tmp_path / "run"))
    (entry,) = json.loads((tmp_path / "run/quarantine.json").read_text())["train"]
    assert entry["file"] == "00009.parquet"


def test_a_bundle_that_is_exported_anew_is_followed(whole, tmp_path):
    """A chain of deltas that became long is folded by --mode=export at any time."""
    _, folder, _ = whole
    copy = shutil.copytree(folder, tmp_path / "run")
    config = make_config(report=False)
    publisher = Publisher(copy / "bundle", config_hash=_hash(copy))
    assert publisher.published.number == N - 1
    from rankax.export import export

    signature = export(config, str(copy))
    assert signature["step"] == publisher.published.step
    assert deltas.numbers(copy / "bundle") == []
    fresh = Publisher(copy / "bundle", config_hash=_hash(copy)).published
    assert (fresh.number, fresh.step) == (0, publisher.published.step)
    for role, tables in publisher.published.rows.items():
        for name, rows in tables.items():
            np.testing.assert_array_equal(rows, fresh.rows[role][name])


def _hash(run):
    signature = json.loads((run / "bundle/signature.json").read_text())
    return signature["origin"]["config_hash"]
