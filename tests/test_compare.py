import glob
import json
import pathlib
import re

from fake_run import write_predictions, write_run
import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from rankax import compare
from rankax.training import resampling


@pytest.fixture
def runs(tmp_path):
    """Three models: two with the same three seeds, one with a single seed."""
    write = {
        "DNNConfig": [0.780, 0.782, 0.781],
        "DCNv2Config": [0.784, 0.785, 0.786],
        "LRConfig": [0.75],
    }
    return [
        write_run(tmp_path / f"{model}-{seed}", model=model, seed=seed, auc=auc)
        for model, values in write.items()
        for seed, auc in enumerate(values)
    ]


def table(capsys, *args):
    compare.main([str(arg) for arg in args])
    return capsys.readouterr().out


def failure(*args):
    with pytest.raises(SystemExit) as error:
        compare.main([str(arg) for arg in args])
    return str(error.value)


def column(out, title):
    """Cells of a Markdown table's column, after the header and its rule."""
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in out.splitlines()
        if line[:1] == "|"
    ]
    return [row[rows[0].index(title)] for row in rows[2:]]


def edit_result(run, **changes):
    path = run / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_option_that_a_later_version_has_added_stands_at_its_default(runs, capsys):
    """One seed of before, one of after; another value of it is another model."""
    for run, kept in ((runs[0], {}), (runs[2], {"hashed_rows": ["user=7"]})):
        path = run / "config.json"
        saved = json.loads(path.read_text())
        del saved["config"]["tables"]["hashed_rows"], saved["config"]["observe"]
        saved["config"]["tables"] |= kept
        path.write_text(json.dumps(saved))
    lines = table(capsys, *runs[:2], *runs[3:6]).splitlines()
    assert [line.split()[:2] for line in lines[2:4]] == [["DNN", "2"], ["DCNv2", "3"]]
    lines = table(capsys, *runs[:3]).splitlines()
    assert [line.split()[1] for line in lines[2:4]] == ["2", "1"]


def test_runs_that_differ_in_seed_alone_are_one_model(runs, capsys):
    lines = table(capsys, *runs).splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["DNN", "3"], ["DCNv2", "3"], ["LR", "1"],
    ]  # fmt: skip
    assert "0.78100 ± 0.00100" in lines[2] and "baseline" in lines[2]
    assert "ctr/auc 0.78000" in lines[2] and "81,250" in lines[2]
    assert "1.23 M / 16 M" in lines[2]
    assert "no interval: one seed" in lines[4] and "-0.03100  " in lines[4]


def test_common_seeds_are_paired(runs, capsys):
    line = table(capsys, *runs).splitlines()[3]
    deltas = np.array([0.784, 0.785, 0.786]) - [0.780, 0.782, 0.781]
    low, high = stats.ttest_1samp(deltas, 0).confidence_interval(0.95)
    assert (
        f"{deltas.mean():+.5f} [{low:+.5f}, {high:+.5f}]  DCNv2 beats DNN  paired t, 3 seeds"
        in line
    )


def test_other_seeds_give_welch(runs, capsys):
    line = table(capsys, *runs[:3], *runs[4:6]).splitlines()[3]
    test = stats.ttest_ind(
        [0.785, 0.786], [0.780, 0.782, 0.781], equal_var=False
    ).confidence_interval(0.95)
    assert f"+0.00450 [{test.low:+.5f}, {test.high:+.5f}]" in line
    assert "Welch t, 2 and 3 seeds" in line


def test_lower_log_loss_is_better(runs, capsys):
    out = table(capsys, *runs[:6], "--metric=ctr/auc,ctr/log_loss")
    assert "test ctr/auc ↑" in out and "test ctr/log_loss ↓" in out
    assert out.splitlines()[3].count("DCNv2 beats DNN") == 2


def test_metric_without_direction_is_neither_better_nor_worse(runs, capsys):
    out = table(capsys, *runs[:6], "--metric=ctr/calibration")
    assert "beats" not in out.splitlines()[3]
    for run in runs[3:6]:
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        edit_result(run, metrics=metrics | {"ctr/calibration": 1.2})
    out = table(capsys, *runs[:6], "--metric=ctr/calibration")
    assert "DCNv2 and DNN differ" in out


def test_any_model_can_be_the_baseline(runs, capsys):
    out = table(capsys, *runs, "--baseline=DCNv2")
    assert "minus DCNv2" in out
    assert "DCNv2 beats DNN" in out.splitlines()[2]
    assert "'DCN2' is no model of these runs; did you mean 'DCNv2'?" in failure(
        *runs, "--baseline=DCN2"
    )


def test_markdown_and_json_hold_the_same_numbers(runs, capsys, tmp_path):
    path = tmp_path / "table.json"
    lines = table(capsys, *runs, "--markdown", f"--json={path}").splitlines()
    assert lines[1].startswith("| --- | --: |")
    assert lines[3].startswith("| DCNv2 | 3 | 0.78500 ± 0.00100 | +0.00400 [")
    tree = json.loads(path.read_text())
    cell = tree["models"][1]["metrics"]["ctr/auc"]
    assert cell["values"] == [0.784, 0.785, 0.786]
    assert cell["differences"]["DNN"]["method"] == "paired t, 3 seeds"
    assert cell["differences"]["DNN"]["verdict"] == "DCNv2 beats DNN"
    single = tree["models"][2]["metrics"]["ctr/auc"]
    assert single["sd"] is None and single["differences"]["DNN"]["low"] is None


def test_several_baselines_stand_in_one_table(runs, capsys):
    more = [
        write_run(runs[0].parent / f"FM-{seed}", model="FMConfig", seed=seed, auc=auc)
        for seed, auc in enumerate([0.79, 0.77, 0.782])
    ]
    out = table(capsys, *runs[:6], *more, "--baseline=DNN,DCNv2", "--markdown")
    assert column(out, "model") == ["DNN", "DCNv2", "FM"]
    assert column(out, "minus DNN")[0] == column(out, "minus DCNv2")[1] == "–"
    assert column(out, "minus DCNv2")[0].startswith("-0.00400 [")
    assert column(out, "verdict") == [
        "DCNv2 beats DNN", "DCNv2 beats DNN", "cannot tell from DNN; cannot tell from DCNv2",
    ]  # fmt: skip
    assert "3 comparisons, not corrected" in out  # DNN and DCNv2 are compared once


def test_active_parameters_and_flops_are_shown_where_runs_know_them(runs, capsys):
    out = table(capsys, *runs[:4], "--markdown")
    assert column(out, "FLOPs/example") == ["–", "–"]
    for run in runs[3:6]:
        edit_result(run, num_active_dense_parameters=400_000, flops_per_example=2.5e6)
    for run in runs[:3]:
        edit_result(
            run, num_active_dense_parameters=1_234_567, examples_per_second=None
        )
    out = table(capsys, *runs[:6], "--markdown")
    assert column(out, "dense / table parameters") == [
        "1.23 M / 16 M", "1.23 M (400 k active) / 16 M",
    ]  # fmt: skip
    assert column(out, "FLOPs/example") == ["–", "2.5 M"]
    assert column(out, "examples/s") == ["–", "81,250"]


def test_one_model_in_two_settings_is_named_by_folder(tmp_path, capsys):
    folders = [
        write_run(tmp_path / f"{name}_seed{seed}", seed=seed, num_cross_layers=layers)
        for name, layers in (("shallow", 1), ("deep", 4))
        for seed in range(2)
    ]
    out = table(capsys, *folders).splitlines()
    assert [line.split()[0] for line in out[2:4]] == ["shallow", "deep"]


def test_oracle_stands_below_the_models(runs, capsys):
    for run in runs:
        path = run / "result.json"
        result = json.loads(path.read_text())
        result["metrics"]["ctr/oracle_auc"] = 0.79
        path.write_text(json.dumps(result))
    assert "\noracle" in (out := table(capsys, *runs))
    assert "0.79000" in out


# ---------------------------------------------------------------- predictions


def write_model(folder, name, *, skill, seeds, like=None, **options):
    """Runs with predictions; `like` makes those of all seeds the same."""
    runs = []
    for seed in range(seeds):
        run = write_run(folder / f"{name}-{seed}", model=f"{name}Config", seed=seed)
        own = 100 * len(name) + seed if like is None else like
        write_predictions(run, skill=skill, seed=own, **options)
        runs.append(run)
    return runs


@pytest.fixture
def predicted(tmp_path):
    """Two models of other skill and one like the first, three seeds each."""
    skills = {"DNN": 0.6, "DCNv2": 1.6, "FM": 0.6}
    return [
        run
        for name, skill in skills.items()
        for run in write_model(tmp_path, name, skill=skill, seeds=3)
    ]


def differences(capsys, folder, *args):
    """(model, metric) -> difference to the first model, of the JSON output."""
    table(capsys, *args, f"--json={folder / 'table.json'}")
    first, *others = json.loads((folder / "table.json").read_text())["models"]
    return {
        (row["model"], name): cell["differences"][first["model"]]
        for row in others
        for name, cell in row["metrics"].items()
    }


def test_predictions_give_intervals_over_examples_and_seeds(
    predicted, capsys, tmp_path, monkeypatch
):
    metrics = ["ctr/auc", "ctr/log_loss", "ctr/normalized_entropy", "ctr/gauc"]
    path = tmp_path / "table.json"
    args = (*predicted, f"--metric={','.join(metrics)}", f"--json={path}", "--markdown")
    out = table(capsys, *args)
    assert column(out, "interval") == [
        "baseline", *["bootstrap, examples × 3 seeds, paired"] * 2,
    ]  # fmt: skip
    assert "1,000 resamples of the test examples and of the seeds" in out
    assert "8 comparisons" in out and "predictions.parquet" not in out
    rows = json.loads(path.read_text())["models"]
    for metric in metrics:
        _, better, same = (
            row["metrics"][metric]["differences"].get("DNN") for row in rows
        )
        assert better["verdict"] == "DCNv2 beats DNN"
        assert same["verdict"] == "cannot tell"
        assert better["low"] < better["value"] < better["high"]
    monkeypatch.setattr(resampling, "_MAX_SCORES", 1)  # a run at a time
    assert out == table(capsys, *args)  # nothing is left to chance


def test_intervals_are_those_of_a_plain_bootstrap_where_seeds_agree(tmp_path, capsys):
    runs, examples = [], []
    for name, skill in (("DNN", 0.6), ("FM", 0.8)):
        runs += write_model(tmp_path, name, skill=skill, seeds=2, like=5)
        examples.append(pq.read_table(runs[-1] / "predictions.parquet"))
    delta = differences(capsys, tmp_path, *runs)["FM", "ctr/auc"]

    def mann_whitney(rows, table):
        positive = table["ctr/label"].to_numpy()[rows] == 1
        ranks = stats.rankdata(table["ctr/probability"].to_numpy()[rows])[positive]
        num = len(ranks)
        return (ranks.sum() - num * (num + 1) / 2) / num / (len(rows) - num)

    rng = np.random.default_rng(123)
    drawn = []
    for _ in range(1_000):
        rows = rng.integers(0, 400, 400)
        baseline, model = (mann_whitney(rows, table) for table in examples)
        drawn.append(model - baseline)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tolerance = 0.1 * (high - low)
    assert delta["low"] == pytest.approx(low, abs=tolerance)
    assert delta["high"] == pytest.approx(high, abs=tolerance)


def test_groups_are_resampled_whole(predicted, capsys):
    out = table(capsys, *predicted, "--resample=groups")
    assert "bootstrap, groups × 3 seeds, paired" in out
    assert "resamples of the test groups" in out
    write_predictions(predicted[0], skill=0.6, has_groups=False)
    assert "has no groups to draw" in failure(*predicted, "--resample=groups")


def test_gauc_without_groups_has_a_t_interval(predicted, capsys):
    for path in (run / "predictions.parquet" for run in predicted):
        pq.write_table(pq.read_table(path).drop(["group"]), path)
    out = table(capsys, *predicted, "--metric=ctr/auc,ctr/gauc", "--markdown")
    assert column(out, "interval")[1] == (
        "bootstrap, examples × 3 seeds, paired (ctr/auc); paired t, 3 seeds (ctr/gauc)"
    )


def test_the_mean_over_tasks_is_resampled_too(tmp_path, capsys):
    runs = []
    for name, skill in (("DNN", 0.6), ("DCNv2", 1.6)):
        options = {"skill": skill, "seeds": 2, "tasks": ("ctr", "cvr")}
        runs += write_model(tmp_path, name, **options)
    for run in runs:
        metrics = json.loads((run / "result.json").read_text())["metrics"]
        mean = (metrics["ctr/auc"] + metrics["cvr/auc"]) / 2
        edit_result(run, metrics=metrics | {"mean/auc": mean})
    names = ("ctr/auc", "cvr/auc", "mean/auc")
    deltas = differences(capsys, tmp_path, *runs, f"--metric={','.join(names)}")
    ctr, cvr, mean = (deltas["DCNv2", name] for name in names)
    assert mean["method"] == "bootstrap, examples × 2 seeds, paired"
    assert mean["low"] < mean["value"] < mean["high"]
    widest = max(own["high"] - own["low"] for own in (ctr, cvr))
    assert mean["high"] - mean["low"] < widest


def test_runs_without_predictions_fall_back_to_seeds_and_say_so(predicted, capsys):
    (predicted[-1] / "predictions.parquet").unlink()
    out = table(capsys, *predicted, "--markdown")
    assert column(out, "interval")[1:] == [
        "bootstrap, examples × 3 seeds, paired", "paired t, 3 seeds",
    ]  # fmt: skip
    assert "Not every run of FM has predictions.parquet" in out
    assert "--mode=evaluate --config.eval.save_predictions=True" in out
    out = table(capsys, *predicted, "--resample=seeds", "--markdown")
    assert column(out, "interval")[1:] == ["paired t, 3 seeds"] * 2
    assert "bootstrap" not in out.lower() and "predictions" not in out


def test_one_seed_gives_an_interval_but_no_verdict(predicted, capsys):
    out = table(capsys, predicted[0], predicted[3], "--markdown")
    assert column(out, "interval")[1] == "bootstrap, examples, one seed"
    assert "[" in column(out, "minus DNN")[1]
    assert column(out, "verdict")[1] == "cannot tell"
    assert "One seed tells two runs apart, not two models" in out


def test_predictions_of_other_examples_are_refused(predicted):
    path = predicted[4] / "predictions.parquet"
    rows = pq.read_table(path)
    order = np.r_[0, 2, 1, np.arange(3, 400)]
    pq.write_table(rows.take(order), path)
    message = failure(*predicted)
    assert "differs from example 1 on" in message
    assert "data.lanes" in message and "eval.batch_size" in message
    assert "--resample=seeds" in message
    pq.write_table(rows.slice(0, 399), path)
    assert "400 and 399 examples" in failure(*predicted)
    for run in (predicted[4], predicted[0]):
        (run / "predictions.parquet").write_bytes(b"PAR1")
        assert f"{run.name}/predictions.parquet cannot be read" in failure(*predicted)


def test_predictions_of_another_checkpoint_are_refused(predicted):
    metrics = json.loads((predicted[2] / "result.json").read_text())["metrics"]
    edit_result(predicted[2], metrics=metrics | {"ctr/auc": metrics["ctr/auc"] + 0.01})
    message = failure(*predicted)
    assert "DNN-2/predictions.parquet gives ctr/auc" in message
    assert "not of one checkpoint" in message and "--mode=evaluate" in message


def test_a_loss_that_probabilities_do_not_tell_is_left_to_the_seeds(predicted):
    path = predicted[2] / "predictions.parquet"
    rows = pq.read_table(path)
    wrong = np.flatnonzero(rows["ctr/label"].to_numpy() == 0)[:7]
    probability = rows["ctr/probability"].to_numpy().copy()
    probability[wrong] = 1
    place = rows.column_names.index("ctr/probability")
    pq.write_table(rows.set_column(place, "ctr/probability", [probability]), path)
    message = failure(*predicted, "--metric=ctr/log_loss")
    assert "7 probabilities are exactly 0 or 1 and wrong" in message
    assert "--resample=seeds" in message


def test_a_run_that_has_not_read_its_test_split_is_refused(runs):
    edit_result(runs[1], metrics={})
    message = failure(*runs)
    assert "DNNConfig-1 has not read its test split (eval.test=False)" in message
    assert "--config.eval.test=True" in message


# ---------------------------------------------------------------- refused runs


def test_unfinished_run_is_refused(runs):
    (runs[1] / "result.json").unlink()
    message = failure(*runs)
    assert "DNNConfig-1 has no result.json: the run has not finished" in message


def test_folder_that_is_no_run_is_refused(tmp_path):
    assert f"{tmp_path} is not a run folder: config.json is missing" in failure(
        tmp_path
    )


def test_broken_json_is_refused(runs):
    (runs[0] / "result.json").write_text("{")
    assert "result.json is not valid JSON" in failure(*runs)


def test_other_data_is_refused_unless_forced(runs, capsys):
    path = runs[0] / "result.json"
    path.write_text(path.read_text().replace("fedcba987654", "aaaaaaaaaaaa"))
    message = failure(*runs)
    assert "(synthetic_clicks, aaaaaaaaaaaa)" in message
    assert "used different data" in message and "--force" in message
    assert "DCNv2" in table(capsys, *runs, "--force")


def test_same_seed_twice_is_refused(runs, tmp_path):
    again = write_run(tmp_path / "again", model="DNNConfig", seed=0)
    assert "one configuration with one seed (0)" in failure(*runs, again)


def test_unknown_metric_is_refused_with_advice(runs):
    message = failure(*runs, "--metric=ctr/logloss")
    assert "has no test metric 'ctr/logloss'; did you mean 'ctr/log_loss'?" in message


def test_undefined_metric_is_refused(runs):
    path = runs[0] / "result.json"
    result = json.loads(path.read_text())
    result["metrics"]["ctr/auc"] = None
    path.write_text(json.dumps(result))
    assert "ctr/auc is undefined on its test split" in failure(*runs)


def test_command_of_the_docs_works(tmp_path, monkeypatch, capsys):
    docs = pathlib.Path(__file__).parents[1] / "docs" / "metrics.md"
    (command,) = re.findall(r"^python -m rankax.compare (.*)$", docs.read_text(), re.M)
    for name in ("dnn-0", "dnn-1", "dcnv2-0", "dcnv2-1"):
        model = {"dnn": "DNNConfig", "dcnv2": "DCNv2Config"}[name[:-2]]
        write_run(tmp_path / "runs" / name, model=model, seed=int(name[-1]))
    monkeypatch.chdir(tmp_path)
    args = [a for word in command.split() for a in sorted(glob.glob(word)) or [word]]
    assert "paired t, 2 seeds" in table(capsys, *args)


def test_help_helps(capsys):
    with pytest.raises(SystemExit):
        compare.main(["--help"])
    out = capsys.readouterr().out
    for text in ("RUN", "--metric", "--baseline", "--resample", "--json", "95%"):
        assert text in out
