"""Whose a run folder is, also after another version has changed the options."""

import errno
import json
import os
import subprocess
import sys

import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.training import run_folder


def make_config():
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="somewhere")
    config.model.backbone = named_config("dcnv2")
    return config


def claimed_by_other_version(tmp_path, change):
    """A folder of the same run; `change` makes its options those of the other version."""
    run_folder.claim(str(tmp_path), make_config())
    path = tmp_path / run_folder.CONFIG
    tree = json.loads(path.read_text())
    change(tree["config"])
    path.write_text(json.dumps(tree))


def test_a_folder_is_claimed_again_where_the_other_version_lacks_an_option(tmp_path):
    claimed_by_other_version(tmp_path, lambda tree: tree["train"].pop("num_steps"))
    assert run_folder.claim(str(tmp_path), make_config()) == tmp_path


def test_a_folder_is_claimed_again_where_the_other_version_has_one_more(tmp_path):
    claimed_by_other_version(tmp_path, lambda tree: tree["train"].update(later=1))
    assert run_folder.find(str(tmp_path), make_config()) == tmp_path


def test_an_option_that_is_used_makes_another_run(tmp_path):
    claimed_by_other_version(tmp_path, lambda tree: tree["train"].pop("num_steps"))
    config = make_config()
    config.train.num_steps = 7
    with pytest.raises(ConfigError, match=r"train.num_steps: 'absent' -> 7"):
        run_folder.claim(str(tmp_path), config)


def test_a_default_that_another_version_changed_is_told(tmp_path):
    def change(tree):
        tree["model"]["backbone"]["num_cross_layers"] = 9

    claimed_by_other_version(tmp_path, change)
    with pytest.raises(ConfigError, match=r"num_cross_layers: 9 -> 3"):
        run_folder.claim(str(tmp_path), make_config())


def test_a_first_write_that_failed_or_was_killed_leaves_a_new_folder(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)  # as late as it can be
        with pytest.raises(OSError, match="No space left"):
            run_folder.claim(str(tmp_path), make_config())
    assert not any(tmp_path.iterdir())
    (tmp_path / "config.json.part").write_text("{")  # of a process that was killed
    run_folder.claim(str(tmp_path), make_config())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def refuse(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


HOLD = """
import pathlib, sys
from rankax.training import run_folder
with run_folder.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_until_its_process_ends_however(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout and holder.stdout.readline() == "locked\n"
    with (
        pytest.raises(
            ConfigError, match=rf"in use by process {holder.pid} on \S+; wait"
        ),
        run_folder.locked(tmp_path),
    ):
        pass
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with run_folder.locked(tmp_path):
            pass
