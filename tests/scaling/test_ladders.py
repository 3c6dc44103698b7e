"""A study from its ladders to its rows: real runs of a toy world, in this process."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from command_lines import parsed
import numpy as np
import pytest

from experiments import driver as drivers
from experiments.results import Results
from rankax.config.base import ConfigError
from rankax.data import collisions, synthetic
from rankax.train import train
from rankax.training.progress import NonFiniteError
from rankax.training.run_folder import hash_of
from scaling import collect, fit, ladders, plot, rates, report, spend, study, sweep
from scaling.runs import COLUMNS, LadderGroup

EXPERIMENT = """
from experiments import arguments
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig

def get_config(arg):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=4096, num_valid_rows=512, num_test_rows=64, rows_per_group=512,
        num_users=50, num_items=80,
    )
    config.data.tasks = ("ctr",)
    config.data.shuffle = False
    config.data.fields = ("user_id", "slot", "topic")
    config.data.lanes = 4
    arguments.set_model(config, arg, "mean", embedding_dim=4, dropout=0.0)
    config.train.batch_size = config.eval.batch_size = 256
    config.train.num_epochs = 1
    config.eval.every_steps = 2
    config.observe.log_every = 1
    config.observe.tensorboard = config.observe.report = False
    return config
"""
STUDY = """
from scaling import ladders
from scaling.study import Ladder, Size, Study

def get_study():
    return Study(
        name="toy",
        title="Toy",
        config={experiment!r} + ":{{model}}",
        task="ctr",
        ladders=({ladders},),
    )
"""
WIDTH = (
    'ladders.ladder("dnn", "width", {f"h{h}": {"model.backbone.hidden_dims": (h,)} '
    'for h in (2, 8, 16)}, is_tuned=IS_TUNED, seeds={"h2": (0, 1), "h8": (0, 1)})'
)


def make(folder, *, of=WIDTH, is_tuned=False):
    """Writes a study and returns it with its folder."""
    folder.mkdir(exist_ok=True)
    experiment = folder / "experiment.py"
    experiment.write_text(EXPERIMENT)
    text = STUDY.format(experiment=str(experiment), ladders=of)
    (folder / "study.py").write_text(text.replace("IS_TUNED", str(is_tuned)))
    return study.load(f"{folder}/")


@pytest.fixture
def started(monkeypatch):
    """Names of the runs that were started, which train in this process."""
    names = []

    def run(driver, arguments, folder, lock, environment):
        workdir, config = parsed(arguments)
        assert workdir == folder
        names.append(folder.name)
        try:
            train(config, str(folder))
        except NonFiniteError as error:
            return 1, f"rankax.training.progress.NonFiniteError: {error}"
        return 0, ""

    monkeypatch.setattr(drivers.Driver, "_process", run)
    return names


def rows_of(folder):
    return Results(folder / collect.FILE_NAME, COLUMNS).read()


# What a machine and its load decide.
TIMES = ("wall_s", "samples_per_s", "mfu")


def without_times(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


# ---------------------------------------------------------------- a whole toy study


@pytest.mark.slow  # 20 s
def test_a_toy_study_gives_a_row_per_run_and_checkpoint(tmp_path, started):
    toy, folder = make(tmp_path / "toy")
    assert sweep.sweep(toy, folder, runs=tmp_path / "runs").run()
    rows = collect.collect(toy, folder, allow=["git_sha"])
    assert len(started) == len(set(started)) == 4
    # 16 steps of 256 rows, evaluated after every second one.
    assert [row["samples_seen"] for row in rows] == [512, 1024, 2048, 4096] * 4
    assert [row["final"] for row in rows] == [False, False, False, True] * 4
    oracle = synthetic.oracle(parsed(arguments(toy))[1].data.source, "valid")
    for row in rows:
        path = tmp_path / "runs/toy/dnn" / row["config_hash"] / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        step = row["samples_seen"] // 256
        (line,) = [x for x in lines if x["split"] == "valid" and x["step"] == step]
        assert row["logloss"] == pytest.approx(line["ctr/log_loss"], rel=1e-7)
        assert row["auc"] == pytest.approx(line["ctr/auc"], rel=1e-7)
        window = range(step - step // 8 + 1, step + 1) if step >= 8 else [step]
        losses = [x["loss"] for x in lines if "loss" in x and x["step"] in window]
        assert row["progressive_logloss"] == pytest.approx(np.mean(losses), rel=1e-7)
        assert row["oracle_logloss"] == pytest.approx(oracle["ctr/oracle_log_loss"])
        # user_id, slot and topic in rows of 4, into layers of h and 1.
        h = row["shape"]["model.backbone.hidden_dims"][0]
        assert row["n_dense_total"] == (12 * h + h) + (h + 1)
        assert row["n_table"] == 4 * row["table_rows"] == 4 * (50 + 10 + 60)
        flops = row["flops_fwd_per_sample"]
        assert row["c_train"] == 3 * flops * row["samples_seen"]
        assert row["complete"] and not row["diverged"] and not row["lr_stage"]
    finals = {(r["size_name"], r["seed"]): r["logloss"] for r in rows if r["final"]}
    assert len(set(finals.values())) == 4  # seeds differ

    # Nothing is left to do, with the rows alone or with the folders alone.
    sweep.sweep(toy, folder, runs=tmp_path / "elsewhere").run()
    assert len(started) == 4
    again = collect.collect(
        toy, folder, runs=(tmp_path / "runs").absolute(), allow=["git_sha"]
    )
    assert without_times(again) == without_times(rows)


def arguments(toy, **options):
    group = LadderGroup(toy, toy.ladders[0])
    return group.todo({}).runs[0].arguments("runs", **options)


@pytest.mark.slow
def test_a_stopped_sweep_resumes_to_the_same_rows(tmp_path, started, monkeypatch):
    toy, folder = make(tmp_path / "toy")
    sweep.sweep(toy, folder, runs=tmp_path / "runs").run()
    whole = without_times(collect.collect(toy, folder, allow=["git_sha"]))
    (folder / collect.FILE_NAME).unlink()

    train_alone = drivers.Driver._process

    def stopped(driver, *args):
        if len(started) == 6:  # of the second sweep, the third run
            driver._stop.set()
            return -signal.SIGTERM, ""
        return train_alone(driver, *args)

    monkeypatch.setattr(drivers.Driver, "_process", stopped)
    sweep.sweep(toy, folder, runs=tmp_path / "again").run()
    assert len({row["run_id"] for row in rows_of(folder)}) == 2
    monkeypatch.setattr(drivers.Driver, "_process", train_alone)
    sweep.sweep(toy, folder, runs=tmp_path / "again").run()
    assert without_times(collect.collect(toy, folder, allow=["git_sha"])) == whole


@pytest.mark.slow
def test_the_search_decides_the_rate_of_every_size(tmp_path, started):
    toy, folder = make(tmp_path / "toy", is_tuned=True)
    driver = sweep.sweep(toy, folder, runs=tmp_path / "runs")
    (group,) = driver.groups
    todo = group.todo({})
    assert {run.kind for run in todo.runs} == {"search"}
    assert [run.rate for run in todo.runs] == [0.0005, 0.001, 0.002] * 2
    assert len(todo.waiting) == 4
    assert driver.run()
    rows = driver.results.by_key()
    law = group.law(rows)
    assert law is not None
    for run in group.todo(rows).runs[6:]:
        assert run.rate == law.rate(group.costs(run.size)["n_dense_total"])
    finals = [row for row in rows_of(folder) if row["final"]]
    assert [row["lr_stage"] for row in finals].count(True) == 6
    assert len({row["run_id"] for row in finals}) == len(finals) == 10


def test_a_run_that_diverges_has_a_row_that_says_so(tmp_path, started):
    toy, folder = make(tmp_path / "toy")
    experiment = folder / "experiment.py"
    # Steps of 1e30 overflow the network's float32 products at the second one.
    wild = "    config.optimizer.dense.learning_rate = 1e30\n    return config"
    experiment.write_text(EXPERIMENT.replace("    return config", wild))
    assert sweep.sweep(toy, folder, runs=tmp_path / "runs").run()
    rows = collect.collect(toy, folder, allow=["git_sha"])
    assert len(rows) == 4
    for row in rows:
        assert row["diverged"] and not row["complete"]
        assert row["logloss"] is None
        assert "NonFiniteError" in row["error"]
    assert len(started) == 4
    sweep.sweep(toy, folder, runs=tmp_path / "runs").run()
    assert len(started) == 4


# ---------------------------------------------------------------- collecting


def made_up(size, seed, seen, loss, **own):
    base = dict.fromkeys(("error", "c_train"))
    return base | {
        "run_id": f"dnn-width/{size}/run-{seed}",
        "model": "dnn",
        "ladder": "width",
        "size_name": size,
        "flops_fwd_per_sample": {"a": 10.0, "b": 20.0, "c": 40.0}[size],
        "n_table": 7,
        "seed": seed,
        "samples_seen": seen,
        "final": seen == 1000,
        "logloss": loss,
        "complete": True,
        "lr_stage": False,
        "data_limited": False,
        "eval_hash": "e",
        "data_hash": "d",
        "git_sha": "g",
        **own,
    }


def test_sizes_that_still_fall_faster_are_data_limited():
    # What the second half of each run brought, by size and seed; σ is 0.001.
    falls = {"a": (0.010, 0.012), "b": (0.011, 0.013), "c": (0.030, 0.032)}
    rows = []
    for size, own in falls.items():
        for seed, fall in enumerate(own):
            rows += [
                made_up(size, seed, 500, 0.5),
                made_up(size, seed, 1000, 0.5 - fall),
            ]
            rows += [made_up(size, seed, 250, 0.9)]  # too early to count
    collect.flag_data_limited(rows)
    assert {r["size_name"] for r in rows if r["data_limited"]} == {"c"}
    alone = [r for r in rows if r["seed"] == 0]
    collect.flag_data_limited(alone)  # one seed a size has no noise to compare with
    assert not any(r["data_limited"] for r in alone)


@pytest.mark.parametrize("column", list(collect.COMMON))
def test_rows_of_other_data_code_or_windows_are_not_mixed(column):
    rows = [made_up("a", 0, 1000, 0.5)]
    rows.append(made_up("b", 0, 1000, 0.5, **{column: "other"}))
    with pytest.raises(collect.MixedRowsError, match=f"2 values of {column}.*b/run-0"):
        collect.check(rows)
    collect.check(rows, allow=[column])
    collect.check([rows[0], rows[1] | {column: None}])  # a run that diverged


def finish(run, runs, *, loss):
    """Writes the folder that a run leaves, without training."""
    folder = runs / run.name
    folder.mkdir(parents=True)
    dense = run.group.costs(run.size)["n_dense_total"]
    result = {
        **dict.fromkeys(("wall_seconds", "examples_per_second"), 1.0),
        **dict.fromkeys(("flops_per_example", "table_bytes_per_example"), 2.0),
        **dict.fromkeys(("num_dense_parameters", "num_active_dense_parameters"), dense),
        "num_table_parameters": 3,
        "mfu": None,
        "metrics": {},
        "step": 16,
        "config_hash": run.config_hash,
        "dataset_fingerprint": "train-valid-test",
        "versions": {"commit": "g"},
        "hardware": {"device_kind": "cpu", "num_devices": 1},
    }
    scores = dict.fromkeys(("ctr/normalized_entropy", "ctr/auc", "ctr/calibration"), 1)
    line = {"step": 16, "split": "valid", "epoch": 1.0, "ctr/log_loss": loss, **scores}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def test_collecting_keeps_a_ladder_whose_search_has_a_run_that_diverged(tmp_path):
    toy, folder = make(tmp_path / "toy", is_tuned=True)
    runs = tmp_path / "runs"
    group = LadderGroup(toy, toy.ladders[0])
    *searched, wild = group.searched()
    for run in searched:
        finish(run, runs, loss=np.log(run.rate / 1.2e-3) ** 2)
    # The runs of the ladder depend on a search that the folders do not complete.
    open_search = collect.collect(toy, folder, runs=runs)
    known = {(row["run_id"],): row for row in open_search}
    assert len(known) == 5
    decided = group.todo(known | {wild.key(): wild.lost("NonFiniteError")[0]}).runs
    depending = {run.name: run for run in decided[6:]}
    for name in depending.keys() - {run.name for run in searched}:  # some meet in one
        finish(depending[name], runs, loss=0.5)
    before = (folder / collect.FILE_NAME).read_bytes()
    with pytest.raises(
        ConfigError, match=f"finished folders.*: {wild.run_id}\\. Finish"
    ):
        collect.collect(toy, folder, runs=runs)
    assert (folder / collect.FILE_NAME).read_bytes() == before

    # The file of the sweep says that it diverged; or else the run's folder does.
    Results(folder / collect.FILE_NAME, COLUMNS).append(
        [wild.lost("NonFiniteError")[0] | {"git_sha": "g"}]
    )
    kept = collect.collect(toy, folder, runs=runs)
    (folder / collect.FILE_NAME).unlink()
    (runs / wild.name).mkdir()
    (runs / wild.name / "bad_step.json").write_text('{"step": 7}')
    made = collect.collect(toy, folder, runs=runs)
    for rows in (kept, made):
        assert {row["run_id"] for row in rows} == {run.run_id for run in decided}
        (lost,) = [row for row in rows if row["diverged"]]
        assert lost["run_id"] == wild.run_id and "NonFiniteError" in lost["error"]
    assert "step 7" in str([row.get("error") for row in made])
    assert {row["git_sha"] for row in made} == {"g", None}


def test_a_study_without_rows_says_how_to_make_some(tmp_path):
    toy, folder = make(tmp_path / "toy")
    with pytest.raises(ConfigError, match=r"no finished run.*scaling\.sweep toy"):
        collect.collect(toy, folder)
    with pytest.raises(ConfigError, match=r"'synthetics'.*did you mean 'synthetic'"):
        study.load("synthetics")


# ---------------------------------------------------------------- rates


def searched(size, number, losses, least=1e-3):
    return [
        {
            "size_name": size,
            "n_dense_total": number,
            "lr_dense": least * 2**k,
            "logloss": loss,
            "diverged": loss is None,
        }
        for k, loss in enumerate(losses)
    ]


def test_a_parabola_finds_the_optimum_and_a_line_in_logarithms_the_law():
    # Loss (ln lr - ln lr*)² with lr* = 0.1 · N^-0.5.
    rows = []
    for size, number in (("s", 1000.0), ("m", 4000.0), ("l", 16000.0)):
        best = 0.1 * number**-0.5
        tried = [best * 0.6, best * 1.1, best * 2.3]
        for rate in tried:
            loss = 0.5 + np.log(rate / best) ** 2
            (one,) = searched(size, number, [loss], least=rate)
            rows.append(one)
    law = rates.law(rows)
    assert law.exponent == pytest.approx(0.5)
    assert law.edges == ()
    assert law.rate(9000) == float(f"{0.1 * 9000**-0.5:.2g}")
    # It does not leave what was tried.
    assert law.rate(1e-3) == float(f"{law.most:.2g}")
    assert law.rate(1e12) == float(f"{law.least:.2g}")


def test_an_optimum_at_an_edge_is_told_and_a_diverged_rate_is_never_best():
    rows = searched("s", 10, [0.5, 0.6, 0.7]) + searched("l", 20, [0.7, 0.5, None])
    law = rates.law(rows)
    assert law.optima == {"s": 1e-3, "l": 2e-3}
    assert law.edges == ("s",)


# ---------------------------------------------------------------- ladders, dry run


@pytest.mark.slow
def test_ladders_say_what_sizes_cost_without_a_run(capsys):
    ladders.main(["synthetic"])
    lines = capsys.readouterr().out.splitlines()
    (line,) = [x for x in lines if x.startswith("dnn-width") and " h64 " in x]
    # 323 inputs (20 of 16 and 3 numbers) into three layers of 64 and one of 1.
    dense = 323 * 64 + 64 + 2 * (64 * 64 + 64) + 64 + 1
    assert f" {dense:,} " in line
    assert len(lines) == 1 + 30


def test_hash_sizes_bring_their_collisions(tmp_path):
    of = 'ladders.table_rows("dnn", {"user_id": 50, "slot": 10}, ("1/2", "1"))'
    toy, _ = make(tmp_path / "toy", of=of)
    (one,) = toy.ladders
    group = LadderGroup(toy, one)
    half, whole = (group.costs(size) for size in one.sizes)
    assert (half["table_rows"], whole["table_rows"]) == (25 + 5 + 60, 50 + 10 + 60)
    shares = [collisions.forecast(n, v).sharing for n, v in ((50, 25), (10, 5))]
    expected = (50 * shares[0] + 10 * shares[1]) / 60
    assert half["collision_share"] == pytest.approx(expected)
    assert half["collision_share"] > whole["collision_share"] > 0
    assert one.doubled is not None
    assert one.doubled.name == "2"


def test_a_dry_run_forecasts_hours_and_runs_nothing(tmp_path, started, capsys):
    _, folder = make(tmp_path / "toy")
    options = [f"{folder}/", "--dry_run", "--flops_per_second=1e6", "--jobs=2"]
    sweep.main(options)
    *_, h2, h8, total = capsys.readouterr().out.splitlines()
    flops = 3 * 57 * 4096  # of h2: see the toy study
    minutes = (15 + flops / 1e6) / 60
    assert h2.split()[:4] == ["dnn-width", "h2", "2", "57"]
    assert f"{minutes:.1f}" in h2
    assert "h8" in h8
    assert "4 left" in total
    assert not started


def test_the_commands_of_a_sweep_are_for_a_cluster(tmp_path, started, capsys):
    toy, folder = make(tmp_path / "toy", is_tuned=True)
    sweep.main([f"{folder}/", "--commands", "--runs=shared/runs"])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert len(set(lines)) == len(lines) == 6
    assert "4 runs follow" in said.err
    run = LadderGroup(toy, toy.ladders[0]).todo({}).runs[0]
    workdir, config = parsed(shlex.split(lines[0]))
    assert workdir == pathlib.Path("shared/runs") / run.name
    assert hash_of(config) == run.config_hash
    assert not started


# ---------------------------------------------------------------- processes


@pytest.mark.slow
def test_a_killed_sweep_of_processes_resumes_to_the_same_rows(tmp_path):
    _, folder = make(tmp_path / "toy")
    _, other = make(tmp_path / "other")

    def command(of, runs):
        return [
            *(sys.executable, "-m", "scaling.sweep", f"{of}/", "--allow=git_sha"),
            *(f"--runs={tmp_path / runs}", "--jobs=2", "--threads-per-run=1"),
        ]

    environment = os.environ | {"PYTHONPATH": str(drivers.ROOT)}
    first = subprocess.Popen(command(folder, "runs"), env=environment)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs").rglob("metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    first.kill()
    first.wait()
    for each in (command(folder, "runs"), command(other, "others")):
        subprocess.run(each, env=environment, check=True, timeout=600)
    finals = [row for row in rows_of(folder) if row["final"]]
    assert len(finals) == 4
    assert without_times(rows_of(folder)) == without_times(rows_of(other))


@pytest.mark.slow
def test_the_commands_of_the_page_lead_from_ladders_to_a_report(
    tmp_path, started, capsys
):
    sizes = WIDTH.replace("(2, 8, 16)", "(2, 4, 8, 16)")
    _, folder = make(tmp_path / "toy", of=sizes.replace('{"h2"', '{"h4": (0, 1), "h2"'))
    name = f"{folder}/"
    page = (drivers.ROOT / "docs/scaling.md").read_text()
    with pytest.raises(SystemExit):
        sweep.main([name, f"--runs={tmp_path / 'runs'}", "--allow=git-sha"])
    sweep.main([name, f"--runs={tmp_path / 'runs'}", "--allow=git_sha"])
    for module, arguments in (
        (ladders, [name]),
        (collect, [name, "--allow=git_sha"]),
        (fit, [str(folder), "--replicates=20"]),
        (spend, [name, "--replicates=20"]),
        (plot, [str(folder)]),
        (report, [str(folder)]),
    ):
        assert f"python -m {module.__name__} " in page
        module.main(arguments)
    fits = json.loads((folder / "fits.json").read_text())
    (line,) = [x for x in fits["fits"] if x["id"] == "dnn/width/logloss/n_dense_active"]
    finals = [row for row in rows_of(folder) if row["final"]]
    assert line["num_sizes"] == 2
    assert [each["size_name"] for each in line["held_out"]] == ["h8"]
    entries = json.loads((folder / "spend.json").read_text())
    assert {entry["axis"] for entry in entries} >= {"dnn-width"}
    text = (folder / "report.md").read_text()
    losses = [r["logloss"] for r in finals if r["size_name"] == "h8"]
    assert f"{np.mean(losses):.5f}" in text
    assert "h8 to h16" in text
    assert (folder / "report.html").stat().st_size > 10_000
    for picture in (folder / "figures").glob("*.png"):
        assert picture.with_suffix(".svg").exists()
        assert picture.with_suffix(".csv").exists()
    assert (folder / "figures/loss_vs_params.png").exists()
