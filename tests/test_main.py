"""The command line: flags, overrides, advice, exit codes."""

import importlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import types

import pytest

from rankax import main as program
from rankax import malloc

REPOSITORY = pathlib.Path(__file__).parents[1]
QUICKSTART = "--config=experiments/quickstart.py"
TINY = (
    "--config.data.source.num_train_rows=4000",
    "--config.data.source.num_valid_rows=500",
    "--config.data.source.num_test_rows=500",
    "--config.train.batch_size=256",
    "--config.observe.tensorboard=False",
)


def run(*arguments, check=False):
    return subprocess.run(
        [sys.executable, "-m", "rankax.main", *arguments],
        cwd=REPOSITORY,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=check,
    )


def test_train_then_evaluate_with_overrides_from_the_command_line(tmp_path):
    common = (
        f"{QUICKSTART}:lr",
        f"--workdir={tmp_path / 'run'}",
        *TINY,
    )
    trained = run(*common)
    assert trained.returncode == 0, trained.stderr
    assert "LRConfig on" in trained.stdout and "test ctr: AUC" in trained.stdout
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["config"]["train"]["batch_size"] == 256
    assert len(saved["hash"]) == 12
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["config_hash"] == saved["hash"]
    assert (tmp_path / "run" / "report.html").exists()
    again = run(*common, "--mode=evaluate")
    assert again.returncode == 0, again.stderr
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["test"] == result["metrics"]


@pytest.mark.slow
def test_a_plan_needs_a_topology_and_no_run_folder(tmp_path):
    path = tmp_path / "plan.json"
    done = run(
        f"{QUICKSTART}:lr", *TINY, "--mode=plan", "--plan.topology=cpu:2",
        f"--plan.json={path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "it fits cpu:2" in done.stdout
    compiling = "cpu:2: compiling, which can take minutes\n"
    assert done.stderr == f"{compiling}written: {path}\n"
    assert json.loads(path.read_text())["batch_size"] == 256
    without = run(f"{QUICKSTART}:lr", "--mode=plan")
    assert without.returncode == 1
    assert "--mode=plan needs --plan.topology" in without.stderr
    other = run(f"{QUICKSTART}:lr", "--plan.topology=cpu:2", f"--workdir={tmp_path}")
    assert "--plan.topology is for --mode=plan, not for --mode=train" in other.stderr
    neither = run(f"{QUICKSTART}:lr")
    assert "--workdir must have a value other than None" in neither.stderr


# Arguments beside --workdir -> what is told.
WRONG_FLAGS = [
    ([QUICKSTART, "--config.train.batchsize=3"], "--config.train.batch_size?"),
    ([QUICKSTART, "--config.trian.seed=3"], "did you mean --config.train.seed?"),
    (
        [
            QUICKSTART,
            "--config.model.backbone.num_heads=2",
            "--config.model.backbone.drop_out=0",
        ],
        "did you mean --config.model.backbone.dropout?",
    ),
    ([QUICKSTART, "--config.train.seed=abc"], "invalid literal for int"),
    ([QUICKSTART, "--config.train.batch_size=100"], "must be a multiple of data.lanes"),
    (
        [QUICKSTART, "--mode=exports"],
        "<train|evaluate|predict|replay|export|progressive|publish|plan>",
    ),
    ([QUICKSTART, "--mode=predict"], "needs --predict_data=FOLDER/SPLIT"),
    (
        [QUICKSTART, "--step=3"],
        "--step is for --mode=predict, export and publish, not for --mode=train",
    ),
    ([QUICKSTART, "stray"], "unknown argument 'stray'"),
    ([f"{QUICKSTART}:dcnv3"], "unknown model 'dcnv3'; did you mean 'dcnv2'?"),
    (["--config=missing.py"], "No such file or directory: 'missing.py'"),
    ([], "--config"),
]
# Lines of a configuration file -> what is told.
WRONG_LINES = [
    ("config.train.batch_size = '4096'", "TrainConfig.batch_size: expected int"),
    ("config.train.batchsize = 4096", "did you mean 'batch_size'?"),
    ("config.train.num_steps = 5", "data.source.path is empty"),
    ("config = {}", "must return"),
]


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """Arguments -> exit status and output of a command with mistakes."""
    folder = tmp_path_factory.mktemp("wrong")
    cases = {tuple(arguments): arguments for arguments, _ in WRONG_FLAGS}
    for number, (line, _) in enumerate(WRONG_LINES):
        path = folder / f"config_{number}.py"
        path.write_text(
            "from rankax.config.experiment import ExperimentConfig\n"
            "def get_config(arg=''):\n"
            f" config = ExperimentConfig()\n {line}\n return config\n"
        )
        cases[line] = [f"--config={path}"]
    commands = [[*own, f"--workdir={folder}/run"] for own in cases.values()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.main_in_forks"],
        cwd=REPOSITORY,
        input=json.dumps(commands),
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    assert not (folder / "run").exists()
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("arguments", "message"), WRONG_FLAGS)
def test_wrong_flags_end_with_advice_and_no_traceback(ends, arguments, message):
    status, output = ends[tuple(arguments)]
    assert status != 0
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(("line", "message"), WRONG_LINES)
def test_a_wrong_type_or_key_in_the_file_is_told(ends, line, message):
    status, output = ends[line]
    assert status != 0
    assert message in output


def test_a_mistake_ends_the_command_itself(tmp_path):
    done = run(QUICKSTART, f"--workdir={tmp_path}/r", "--config.train.batchsize=3")
    assert done.returncode == 1
    assert "did you mean --config.train.batch_size?" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_help_explains_both_flags():
    done = run("--help")
    text = done.stdout + done.stderr
    assert "--workdir" in text and "run folder" in text and "FILE.py:arg" in text


def test_advice_names_a_section_when_nothing_is_close():
    text = program._advice("unused", ["--config.zzz=3"])
    assert text.startswith("--config.zzz: no such option")


def test_large_blocks_are_kept_where_the_threshold_to_map_them_is_limited(monkeypatch):
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h

    def given_to_glibc(largest):
        taken = {}

        def mallopt(option, value):
            if option == mmap_threshold and value > largest:
                return 0
            taken[option] = value
            return 1

        library = types.SimpleNamespace(mallopt=mallopt)
        monkeypatch.setattr("ctypes.CDLL", lambda name: library)
        importlib.reload(malloc)
        assert taken[trim_threshold] == -1
        return taken

    assert given_to_glibc(2**25)[mmap_max] == 0  # version 2.34
    assert mmap_max not in given_to_glibc(2**31)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_what_a_thread_has_freed_does_not_come_from_the_system_again():
    script = """
import resource, threading
from rankax import main

size = 2**27

def allocate():
    b"x" * size

for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1_000  # of the 32,768 pages
