import glob
import json
import pathlib
import re

from fake_run import write_run
import numpy as np
import pytest
from scipy import stats

from rankax import compare


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


def test_runs_that_differ_in_seed_alone_are_one_model(runs, capsys):
    lines = table(capsys, *runs).splitlines()
    assert lines[0].split("  ")[0] == "model"
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["DNN", "3"], ["DCNv2", "3"], ["LR", "1"],
    ]  # fmt: skip
    assert "0.78100 ± 0.00100" in lines[2] and "baseline" in lines[2]
    assert "ctr/auc 0.78000" in lines[2] and "81,250" in lines[2]
    assert "1.23 M" in lines[2] and "16 M" in lines[2]
    assert "no interval: one seed" in lines[4] and "-0.03100  " in lines[4]


def test_common_seeds_are_paired(runs, capsys):
    line = table(capsys, *runs).splitlines()[3]
    deltas = np.array([0.784, 0.785, 0.786]) - [0.780, 0.782, 0.781]
    low, high = stats.ttest_1samp(deltas, 0).confidence_interval(0.95)
    assert f"{deltas.mean():+.5f} [{low:+.5f}, {high:+.5f}] * better" in line
    assert "paired t, 3 seeds" in line


def test_other_seeds_give_welch(runs, capsys):
    line = table(capsys, *runs[:3], *runs[4:6]).splitlines()[3]
    test = stats.ttest_ind(
        [0.785, 0.786], [0.780, 0.782, 0.781], equal_var=False
    ).confidence_interval(0.95)
    assert f"+0.00450 [{test.low:+.5f}, {test.high:+.5f}]" in line
    assert "Welch t, 2 and 3 seeds" in line


def test_identical_values_have_an_interval_of_no_width():
    same = np.array([0.5, 0.5])
    for paired in (False, True):
        delta = compare.difference(same, same, paired=paired)
        assert (delta.value, delta.low, delta.high) == (0, 0, 0)


def test_lower_log_loss_is_better(runs, capsys):
    out = table(capsys, *runs[:6], "--metric=ctr/auc,ctr/log_loss")
    assert "test ctr/auc ↑" in out and "test ctr/log_loss ↓" in out
    assert out.splitlines()[3].count("* better") == 2


def test_metric_without_direction_is_neither_better_nor_worse(runs, capsys):
    out = table(capsys, *runs[:6], "--metric=ctr/calibration")
    assert "better" not in out and "worse" not in out


def test_any_model_can_be_the_baseline(runs, capsys):
    out = table(capsys, *runs, "--baseline=DCNv2")
    assert "minus DCNv2" in out
    assert "* worse" in out.splitlines()[2]
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
    assert cell["difference"]["method"] == "paired t, 3 seeds"
    single = tree["models"][2]["metrics"]["ctr/auc"]
    assert single["sd"] is None and single["difference"]["low"] is None


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
    for text in ("RUN", "--metric", "--baseline", "--json", "--markdown", "95%"):
        assert text in out
