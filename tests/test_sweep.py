"""The sweep's driver on made-up sets; its runs are made up too, but for one slow test."""

import collections
import dataclasses
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

from command_lines import parsed
import numpy as np
import pytest

from experiments import commit, protocol, results, sweep, synthetic
from experiments import driver as drivers
from experiments.spaces import SETS, ExperimentSet
from rankax.config.base import ConfigError
from rankax.models import base
from rankax.training import run_folder

EXPERIMENT = """
from experiments import quickstart

def get_config(arg):
    config = quickstart.get_config(arg)
    source = config.data.source
    source.num_train_rows, source.num_valid_rows, source.num_test_rows = 512, 256, 256
    source.rows_per_group = 128
    config.data.lanes = 4
    config.train.batch_size, config.eval.batch_size = 64, 256
    config.eval.every_steps = 4
    config.observe.tensorboard = config.observe.report = False
    return config
"""
# Validation AUC of the made-up runs by dropout: the second trial is the best of each.
AUC = {0.0: 0.7, 0.1: 0.8, 0.2: 0.6, 0.3: 0.75}
MODELS = ("dnn", "dcnv2")
CHECK = protocol.Group.check


@pytest.fixture(autouse=True)
def _made_up_set(tmp_path, monkeypatch):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    trials = tuple({"dropout": dropout} for dropout in AUC if dropout)
    made_up = ExperimentSet(
        name="made_up",
        config=f"{tmp_path}/experiment.py:{{model}}-mean",
        dataset="",
        seconds=60,
        trials=dict.fromkeys(MODELS, trials),
        overrides={"eval.metric": "mean/auc"},
        published={"dnn": "0.8123"},
    )
    monkeypatch.setitem(SETS, "made_up", made_up)
    monkeypatch.setattr(drivers, "_POLL_SECONDS", 0.01)


def without_hash(name):
    return re.sub(r"-[0-9a-f]{12}(?=$|\.)", "", name)


class FakeRuns:
    """Stands for `python -m rankax.main`; counts starts, and fails when told to."""

    def __init__(self):
        self.started = collections.Counter()
        self.errors = {}  # folder name -> what it says
        self.stop_at = None  # folder name whose process ends the driver
        self.seconds = 0.0

    def __call__(self, driver, arguments, folder, lock, environment):
        workdir, config = parsed(arguments)
        assert workdir == folder
        name = f"{folder.parts[-2]}/{without_hash(folder.name)}"
        self.started[name, config.eval.test] += 1
        time.sleep(self.seconds)
        if name == self.stop_at:
            driver._stop.set()
            return -signal.SIGTERM, ""
        if name in self.errors:
            return 1, f"Traceback ...\nsome.{self.errors[name]}\nand more\n"
        folder.mkdir(exist_ok=True)
        auc = AUC[config.model.backbone.dropout]
        best = {"metric": "mean/auc", "value": auc, "step": 8}
        best["metrics"] = {"ctr/auc": auc, "ctr/log_loss": 0.5, "ctr/num_examples": 256}
        test = {"ctr/auc": auc - 0.1 + 0.01 * config.train.seed, "ctr/gauc": None}
        result = {
            "metrics": test if config.eval.test else {},
            "best_validation": best,
            "step": 8,
            "config_hash": run_folder.hash_of(config),
            "num_dense_parameters": 1234,
            "num_table_parameters": 56_789,
            "flops_per_example": 2e6,
            "examples_per_second": 1e5 / 3,
            "wall_seconds": 30.0,
            "hardware": {"cpu": "made-up", "cpu_cores": 1, "memory_bytes": 1},
        }
        (folder / "result.json").write_text(json.dumps(result))
        if config.eval.save_predictions:
            (folder / "predictions.parquet").touch()
        return 0, ""


@pytest.fixture
def fake(monkeypatch):
    runs = FakeRuns()
    monkeypatch.setattr(drivers.Driver, "_process", lambda *args: runs(*args))
    # Setting up the made-up runs would take most of the time.
    monkeypatch.setattr(protocol.Group, "check", lambda group: "")
    return runs


def driver(tmp_path, models=MODELS, **options):
    groups = sweep.groups_of(["made_up"], models)
    file = results.Results(tmp_path / "results.jsonl")
    return drivers.Driver(groups, runs=tmp_path / "runs", results=file, **options)


def rows_of(tmp_path):
    return results.Results(tmp_path / "results.jsonl").read()


# ---------------------------------------------------------------- the protocol


def test_validation_chooses_and_only_the_chosen_trial_reads_the_test_split(
    tmp_path, fake
):
    driver(tmp_path).run()
    expected = collections.Counter()
    for model in MODELS:
        for trial in (1, 2, 3, 4):
            expected[f"{model}/trial-{trial}", False] = 1
        for name in ("trial-2", "trial-2-seed-1", "trial-2-seed-2"):
            expected[f"{model}/{name}", True] = 1
    assert fake.started == expected
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * 7
    for row in rows:
        if row["kind"] == "trial":
            assert row["test"] == {}
        else:
            assert row["overrides"] == {"model.backbone.dropout": 0.1}
            assert row["test"] == {"ctr/auc": pytest.approx(0.7 + 0.01 * row["seed"])}
    read = {
        without_hash(path.parent.name) for path in tmp_path.rglob("predictions.parquet")
    }
    assert read == {"trial-2", "trial-2-seed-1", "trial-2-seed-2"}


def test_the_command_of_a_row_is_that_of_its_run_without_folders_of_this_machine(
    tmp_path, fake
):
    driver(tmp_path, ["dnn"]).run()
    for row in rows_of(tmp_path):
        python, *arguments = shlex.split(row["command"])
        assert python == "python"
        workdir, config = parsed(arguments)
        seed = f"-seed-{row['seed']}" if row["seed"] else ""
        name = f"runs/sweep/made_up/dnn/trial-{row['trial']}{seed}"
        assert workdir == pathlib.Path(f"{name}-{row['config_hash']}")
        assert run_folder.hash_of(config) == row["config_hash"]
        assert config.eval.metric == "mean/auc"
        assert config.eval.test == (row["kind"] == "seed")


def test_datasets_are_looked_for_where_the_command_line_says():
    there = protocol.Group(SETS["frappe_x1"], "dnn", "/data").trials[0]
    assert "--config.data.source.path=/data/frappe_x1" in there.arguments("runs")
    usual = protocol.Group(SETS["frappe_x1"], "dnn").trials[0]
    assert not any("path" in argument for argument in usual.arguments("runs"))


# ---------------------------------------------------------------- stopping, sharing


def test_a_stopped_sweep_goes_on_without_doing_anything_twice(tmp_path, fake):
    fake.stop_at = "dcnv2/trial-3"
    driver(tmp_path).run()
    assert {row["model"] for row in rows_of(tmp_path)} == {"dnn", "dcnv2"}
    assert len(rows_of(tmp_path)) < 14
    # A run that finished, but whose row the driver did not come to write.
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:2] + lines[3:]))
    fake.stop_at = None
    driver(tmp_path).run()
    assert fake.started.pop(("dcnv2/trial-3", False)) == 2
    assert set(fake.started.values()) == {1}
    keys = [results.Results(tmp_path).key(row) for row in rows_of(tmp_path)]
    assert len(keys) == len(set(keys)) == 14

    driver(tmp_path).run()
    assert len(rows_of(tmp_path)) == 14
    assert sum(fake.started.values()) == 13


def test_rows_alone_are_enough_to_skip_a_run(tmp_path, fake):
    driver(tmp_path, ["dnn"]).run()
    copy = drivers.Driver(
        sweep.groups_of(["made_up"], ["dnn"]),
        runs=tmp_path / "elsewhere",
        results=results.Results(tmp_path / "results.jsonl"),
    )
    copy.run()
    assert set(fake.started.values()) == {1}


def test_two_drivers_of_two_jobs_share_the_runs(tmp_path, fake):
    fake.seconds = 0.01
    drivers = [driver(tmp_path, jobs=2) for _ in range(2)]
    threads = [threading.Thread(target=each.run) for each in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows_of(tmp_path)) == 14
    assert set(fake.started.values()) == {1}


def test_a_row_is_written_once(tmp_path):
    file = results.Results(tmp_path / "results.jsonl")
    row = {"set": "a", "model": "b", "config_hash": "c", "seed": 0, "kind": "trial"}
    assert file.append([row])
    assert not file.append([row | {"value": 1.0}])
    assert file.append([row | {"kind": "seed"}])
    assert [each["kind"] for each in file.read()] == ["trial", "seed"]


def test_a_torn_last_line_is_no_row_and_is_written_again(tmp_path):
    file = results.Results(tmp_path / "results.jsonl")
    row = {"set": "a", "model": "b", "config_hash": "c", "seed": 0, "kind": "trial"}
    file.append([row])
    whole = file.path.read_bytes()
    file.path.write_bytes(whole + whole[:20])
    assert file.read() == [row]
    assert file.append([row | {"seed": 1}])
    assert [each["seed"] for each in file.read()] == [0, 1]


def test_folders_are_those_that_compare_takes(tmp_path, fake, capsys):
    driver(tmp_path).run()
    options = [f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results.jsonl'}"]
    capsys.readouterr()
    sweep.main(["--folders=made_up", "--models=dcnv2", *options])
    folders = [pathlib.Path(line) for line in capsys.readouterr().out.split()]
    assert [without_hash(folder.name) for folder in folders] == [
        *("trial-2", "trial-2-seed-1", "trial-2-seed-2")
    ]
    assert all((folder / "predictions.parquet").exists() for folder in folders)
    assert {folder.parent.name for folder in folders} == {"dcnv2"}


def test_a_finished_seed_without_predictions_is_run_again(tmp_path, fake):
    driver(tmp_path, ["dnn"]).run()
    (path,) = (tmp_path / "runs").rglob("trial-2-seed-1-*/predictions.parquet")
    path.unlink()
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if "trial-2-seed-1" not in line]
    (tmp_path / "results.jsonl").write_text("".join(kept))
    assert driver(tmp_path, ["dnn"]).run()
    assert fake.started["dnn/trial-2-seed-1", True] == 2
    assert path.exists()


def test_rows_tell_the_commit_of_the_code_that_trained(tmp_path, fake, monkeypatch):
    monkeypatch.setattr(commit, "now", lambda: "0123456789ab")
    driver(tmp_path, ["dnn"]).run()
    assert {row["commit"] for row in rows_of(tmp_path)} == {"0123456789ab"}
    # Folders that finished earlier, whose rows another version collects.
    (tmp_path / "results.jsonl").unlink()
    for path in (tmp_path / "runs").rglob("result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"versions": {"commit": "earlier"}}))
    driver(tmp_path, ["dnn"]).run()
    assert {row["commit"] for row in rows_of(tmp_path)} == {"earlier"}


def test_a_run_is_told_its_commit_when_it_starts(tmp_path, monkeypatch):
    one = driver(tmp_path)
    say = ["-c", "import os; print(os.environ['RANKAX_COMMIT'])"]
    with (tmp_path / "lock").open("w") as lock:
        for name in ("first", "second"):  # the checkout moves on under the sweep
            monkeypatch.setattr(commit, "now", lambda name=name: name)
            said = one._process(say, tmp_path / "run", lock, dict(os.environ))
            assert said == (0, f"{name}\n")


# ---------------------------------------------------------------- failures


def test_no_trial_starts_where_one_of_them_cannot_run(
    tmp_path, fake, monkeypatch, capsys
):
    wrong = ({"dropout": 0.1}, {"gate1_fields": ("nobody",)})
    good = SETS["made_up"].trials["dnn"]
    changed = dataclasses.replace(
        SETS["made_up"], trials={"dnn": good, "finalmlp": (*wrong, *good[1:])}
    )
    monkeypatch.setitem(SETS, "made_up", changed)
    monkeypatch.setattr(protocol.Group, "check", CHECK)
    groups = sweep.groups_of(["made_up"], ())
    file = results.Results(tmp_path / "results.jsonl")
    one = drivers.Driver(groups, runs=tmp_path / "runs", results=file)
    assert not one.run()
    assert {name.partition("/")[0] for name, _ in fake.started} == {"dnn"}
    assert "skipped: made_up/finalmlp/trial-3-" in capsys.readouterr().err


def test_rows_of_other_data_are_refused_before_a_run_starts(
    tmp_path, fake, monkeypatch
):
    driver(tmp_path, ["dnn"]).run()
    lines = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(lines[0]) | {"dataset_fingerprint": "of other data"}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(protocol.Group, "check", CHECK)
    before = sum(fake.started.values())
    with pytest.raises(
        ValueError, match=r"rows of made_up are of the data \['of other"
    ):
        driver(tmp_path, ["dnn"]).run()
    assert sum(fake.started.values()) == before


def test_other_files_of_the_same_examples_are_taken_when_told(tmp_path):
    path = tmp_path / "results.jsonl"
    row = {"set": "a", "model": "b", "config_hash": "c", "seed": 0, "kind": "trial"}
    other = row | {"seed": 1, "dataset_fingerprint": "new"}
    assert results.Results(path).append([row | {"dataset_fingerprint": "old"}])
    with pytest.raises(ValueError, match="say --any-data"):
        results.Results(path).append([other])
    assert results.Results(path, any_data=True).append([other])


def test_an_error_of_a_worker_is_raised(tmp_path, fake, monkeypatch):
    def full(file, row):
        raise OSError("no space left on device")

    monkeypatch.setattr(results.Results, "append", full)
    with pytest.raises(OSError, match="no space left"):
        driver(tmp_path, jobs=2).run()


def test_a_failed_run_is_recorded_stops_no_other_and_is_retried_on_demand(
    tmp_path, fake, capsys
):
    fake.errors["dnn/trial-3"] = "DataError: no such file"
    assert not driver(tmp_path).run()
    rows = rows_of(tmp_path)
    assert len([row for row in rows if row["model"] == "dcnv2"]) == 7
    # Seeds wait for the fourth trial.
    assert [row["trial"] for row in rows if row["model"] == "dnn"] == [1, 2, 4]
    (failed,) = (tmp_path / "runs").rglob("*.failed")
    assert without_hash(failed.name) == "trial-3.trial.failed"
    message = "exit status 1: some.DataError: no such file\nand more"
    assert failed.read_text() == f"{message}\n"
    told = without_hash(capsys.readouterr().out)
    assert re.search(rf"failed: made_up/dnn/trial-3-\w+: {message}", told)

    del fake.errors["dnn/trial-3"]
    driver(tmp_path).run()
    assert fake.started["dnn/trial-3", False] == 1
    assert driver(tmp_path, retry=True).run()
    assert fake.started["dnn/trial-3", False] == 2
    assert len(rows_of(tmp_path)) == 14


def test_a_trial_whose_loss_was_not_finite_has_lost(tmp_path, fake):
    fake.errors["dnn/trial-2"] = "NonFiniteError: the loss of step 3"
    driver(tmp_path, ["dnn"]).run()
    rows = rows_of(tmp_path)
    (lost,) = (row for row in rows if row["value"] is None)
    assert lost["trial"] == 2
    assert "NonFiniteError: the loss of step 3" in lost["error"]
    assert {row["trial"] for row in rows if row["kind"] == "seed"} == {4}  # 0.75
    driver(tmp_path, ["dnn"], retry=True).run()
    assert fake.started["dnn/trial-2", False] == 1


def test_a_model_that_does_not_exist_yet_is_told_and_left_out(capsys):
    groups = sweep.groups_of(["made_up", "movielens_100k"], ["dnn", "dmn"])
    assert [(each.set.name, each.model) for each in groups] == [
        ("made_up", "dnn"),
        ("movielens_100k", "dnn"),
    ]
    told = capsys.readouterr().err
    assert "made_up/dmn: made_up has no trials of 'dmn'; did you mean 'dnn'?" in told


def test_two_trials_that_are_one_run_are_refused():
    same = ExperimentSet(
        name="same",
        config=SETS["made_up"].config,
        dataset="",
        seconds=1,
        trials={"dnn": ({"dropout": 0.0},)},
    )
    with pytest.raises(ConfigError, match="two trials of 'dnn' are the same run"):
        protocol.Group(same, "dnn")


# ---------------------------------------------------------------- table and plan


def test_the_table_is_made_of_the_rows(tmp_path, fake):
    fake.errors["dcnv2/trial-2-seed-1"] = "DataError: gone"
    driver(tmp_path).run()
    header, rule, dnn, dcnv2 = sweep.table(
        "made_up", file=tmp_path / "results.jsonl"
    ).split("\n")
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    assert rule.count("---") == len(columns)
    cells = dict(zip(columns, map(str.strip, dnn.strip("|").split("|")), strict=True))
    scores = np.array([0.70, 0.71, 0.72])
    assert cells["test ctr/auc"] == f"{scores.mean():.4f} ± {scores.std(ddof=1):.4f}"
    assert cells["valid mean/auc"] == "0.8000"
    assert cells["published"] == "0.8123"
    assert cells["trial"] == "2: dropout 0.1"
    assert cells["FLOPs an example"] == "2,000,000"
    assert cells["dense parameters"] == "1,234"
    assert f"{0.71:.4f} ± {np.std([0.70, 0.72], ddof=1):.4f}" in dcnv2  # two seeds


def test_tables_of_several_sets_stand_beside_each_other():
    scores = {
        "a ctr/auc": {"dnn": [0.70, 0.71, 0.72], "lr": [0.6]},
        "b mean/auc": {"fm": [0.5, 0.7], "lr": [0.65, 0.65]},
    }
    assert results.overview(scores).split("\n") == [
        "| model | a ctr/auc | b mean/auc |",
        "| --- | ---: | ---: |",
        "| dnn | 0.7100 ± 0.0100 | – |",
        "| lr | 0.6000 | 0.6500 ± 0.0000 |",
        "| fm | – | 0.6000 ± 0.1414 |",
    ]


def test_the_plan_tells_what_is_left_and_how_long(tmp_path, fake):
    fake.stop_at = "dnn/trial-3"
    driver(tmp_path).run()
    first, second, total = driver(tmp_path, jobs=2).plan().split("\n")
    # Five runs of 30 s are left, one of which only has to be tested.
    assert re.fullmatch(r"made_up/dnn +2 done 0 failed 5 left +2 min", first)
    assert re.fullmatch(r"made_up/dcnv2 +0 done 0 failed 7 left +6 min", second)
    assert re.fullmatch(r"all +8 min, 4 min by 2 jobs", total)


# ---------------------------------------------------------------- the real sets


def test_every_model_has_four_trials_on_every_set():
    listed = {"lr", "dnn", "finalmlp", "dcnv2", "wukong", "mc_mlcc"}
    listed |= {"tokenmixer_large", "infnet"}
    for name, each in SETS.items():
        if name != "made_up":
            assert listed <= set(each.trials)
        assert {len(each.options(model)) for model in each.trials} == {4}
        for model in each.trials:
            assert each.options(model)[0] == {}


@pytest.mark.parametrize("name", [name for name in SETS if name != "made_up"])
def test_trials_of_every_model_that_exists_can_be_run(name):
    for model in base.registered().keys() & SETS[name].trials.keys():
        group = protocol.Group(SETS[name], model)
        commands = {tuple(run.arguments("runs")) for run in group.trials}
        assert len(commands) == 4
        for run in group.trials:
            workdir, config = parsed(run.arguments("runs"))
            assert workdir.name == f"trial-{run.trial}-{run.config_hash}"
            assert run_folder.hash_of(config) == run.config_hash


def test_every_set_chooses_by_an_auc():
    for each in SETS.values():
        assert each.overrides.get("eval.metric", "mean/auc").endswith("/auc")
    assert SETS["kuairand"].overrides["eval.metric"] == "mean/auc"


def test_readme_has_the_scores_of_the_rows(capsys):
    sets = ",".join(name for name in SETS if name != "made_up")
    sweep.main([f"--table={sets}"])
    readme = (drivers.ROOT / "README.md").read_text()
    assert f"--table={sets}`" in readme
    assert capsys.readouterr().out in readme


def test_the_hard_synthetic_world_differs_from_the_plain_one():
    plain, hard = (
        synthetic.get_config(f"{name}-dcnv2").to_dict()["data"]["source"]
        for name in ("plain", "hard")
    )
    assert plain["num_train_rows"] == hard["num_train_rows"] == 500_000
    assert hard["main_scale"] < plain["main_scale"]
    assert hard["triple_scale"] > plain["triple_scale"]
    assert synthetic.get_config().to_dict() == synthetic.get_config("plain").to_dict()
    with pytest.raises(ConfigError, match="unknown difficulty 'hrad'; did you mean"):
        synthetic.get_config("hrad-dnn")


# ---------------------------------------------------------------- processes

DRIVE = """
import sys
from experiments import spaces, sweep
from experiments.spaces import ExperimentSet
spaces.SETS["made_up"] = ExperimentSet(
    name="made_up",
    config=sys.argv[1] + ":{model}-mean",
    dataset="",
    seconds=60,
    trials={"dnn": ({"dropout": 0.2},)},
)
sweep.main(["--sets=made_up", "--models=dnn", *sys.argv[2:]])
"""


@pytest.mark.slow
def test_a_killed_sweep_of_real_runs_goes_on(tmp_path):
    command = [
        *(sys.executable, "-c", DRIVE, str(tmp_path / "experiment.py")),
        *(f"--runs={tmp_path / 'runs'}", f"--results={tmp_path / 'results.jsonl'}"),
        *("--jobs=2", "--threads-per-run=1"),
    ]
    environment = os.environ | {"PYTHONPATH": str(drivers.ROOT)}
    first = subprocess.Popen(command, env=environment, cwd=tmp_path)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert first.wait(240) != 0  # its runs end after the step that they are at
    assert len(rows_of(tmp_path)) < 5

    subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=600)
    rows = rows_of(tmp_path)
    assert sorted((row["kind"], row["seed"]) for row in rows) == [
        ("seed", 0),
        ("seed", 1),
        ("seed", 2),
        ("trial", 0),
        ("trial", 0),
    ]
    (chosen,) = {row["trial"] for row in rows if row["kind"] == "seed"}
    for folder in (tmp_path / "runs/made_up/dnn").iterdir():
        if not folder.is_dir():
            continue
        metrics = json.loads((folder / "result.json").read_text())["metrics"]
        splits = {
            json.loads(line)["split"]
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        }
        is_read = folder.name.startswith(f"trial-{chosen}")
        assert bool(metrics) == is_read
        assert ("test" in splits) == is_read
        assert (folder / "predictions.parquet").exists() == is_read
    for row in rows:
        assert row["hardware"]["cpu_cores"] == 1
        assert 0 < row["valid"]["ctr/auc"] < 1
        assert ("ctr/oracle_auc" in row["test"]) == (row["kind"] == "seed")
