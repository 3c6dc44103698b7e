"""The command line: flags, overrides, advice, exit codes."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from rankax import main as program

REPOSITORY = pathlib.Path(__file__).parents[1]
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
        "--config=experiments/quickstart.py:lr",
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.train.batchsize=3"], "did you mean --config.train.batch_size?"),
        (["--config.trian.seed=3"], "did you mean --config.train.seed?"),
        (
            [
                "--config.model.backbone.num_heads=2",
                "--config.model.backbone.drop_out=0",
            ],
            "did you mean --config.model.backbone.dropout?",
        ),
        (["--config.train.seed=abc"], "invalid literal for int"),
        (["--config.train.batch_size=100"], "must be a multiple of data.lanes"),
        (["--mode=export"], "<train|evaluate|replay>"),
        (["stray"], "unknown argument 'stray'"),
    ],
)
def test_bad_flags_end_with_advice_and_no_traceback(tmp_path, arguments, message):
    done = run(
        "--config=experiments/quickstart.py", f"--workdir={tmp_path}/r", *arguments
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert message in output
    assert "Traceback" not in output
    assert not (tmp_path / "r").exists()


def test_an_unknown_model_is_named_with_the_closest_one(tmp_path):
    done = run("--config=experiments/quickstart.py:dcnv3", f"--workdir={tmp_path}/r")
    assert done.returncode != 0
    assert "unknown model 'dcnv3'; did you mean 'dcnv2'?" in done.stdout + done.stderr


def test_a_wrong_type_or_key_in_the_file_is_told(tmp_path):
    for line, message in (
        ("config.train.batch_size = '4096'", "TrainConfig.batch_size: expected int"),
        ("config.train.batchsize = 4096", "did you mean 'batch_size'?"),
        ("config.train.num_steps = 5", "data.source.path is empty"),
        ("config = {}", "must return"),
    ):
        path = tmp_path / "config.py"
        path.write_text(
            "from rankax.config.experiment import ExperimentConfig\n"
            f"def get_config(arg=''):\n config = ExperimentConfig()\n {line}\n return config\n"
        )
        done = run(f"--config={path}", f"--workdir={tmp_path}/r")
        assert done.returncode != 0
        assert message in done.stdout + done.stderr, line


def test_missing_flags_are_told():
    done = run("--workdir=somewhere")
    assert done.returncode != 0 and "--config" in done.stdout + done.stderr


def test_help_explains_both_flags():
    done = run("--help")
    text = done.stdout + done.stderr
    assert "--workdir" in text and "run folder" in text and "FILE.py:arg" in text


def test_advice_names_a_section_when_nothing_is_close():
    text = program._advice("unused", ["--config.zzz=3"])
    assert text.startswith("--config.zzz: no such option")
