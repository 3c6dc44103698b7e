"""A full disk, wherever it is met: told, nothing lost, and the run goes on."""

import contextlib
import errno
import os
import resource
import subprocess
import sys

from final_states import final_state
import pyarrow.parquet as pq
import pytest
from small_run import ROWS, assert_same_run, make_config

from rankax.observe import writers
from rankax.observe.writers import read_metrics
from rankax.train import train
from rankax.training import run_folder
from rankax.training.checkpoint import Checkpoints
from rankax.training.predictions import PredictionWriter
from rankax.training.run_folder import RunFolderError


@contextlib.contextmanager
def no_file_longer_than(size_bytes):
    """What the system refuses to every writer, in whatever language and thread."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def limited(patch, owner, name, *, size_bytes, when=lambda *args, **kwargs: True):
    """Limits the size of files within some calls of a function."""
    original = getattr(owner, name)

    def calling(*args, **kwargs):
        if not when(*args, **kwargs):
            return original(*args, **kwargs)
        with no_file_longer_than(size_bytes):
            return original(*args, **kwargs)

    patch.setattr(owner, name, calling)


def fails(config, folder, told):
    with pytest.raises(RunFolderError) as error:
        train(config, str(folder))
    message = str(error.value)
    assert message.startswith(f"--workdir={folder} cannot be written (")
    assert told in message and "free space" in message and "goes on from" in message
    assert not (folder / "result.json").exists()


def goes_on(config, folder, whole):
    result = train(config, str(folder))
    assert result["metrics"] == whole[1]["metrics"]
    assert_same_run(config, whole[0], folder)
    return result


def test_a_checkpoint_that_finds_no_room_leaves_the_one_before(
    clean, whole, tmp_path, monkeypatch
):
    config = make_config(clean)
    original = Checkpoints.save

    def save(self, step, *args, **kwargs):
        if step != 8:
            return original(self, step, *args, **kwargs)
        self.wait()  # for that of step 4
        with no_file_longer_than(1_000):
            original(self, step, *args, **kwargs)
            self.wait()  # else the next save, or the end, would meet the error

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        fails(config, tmp_path, "File too large")
    step, _, record = final_state(config, tmp_path)
    assert step == 4 and record["examples_seen"] == 64
    goes_on(config, tmp_path, whole)


def test_a_log_that_finds_no_room_ends_the_run_and_loses_no_line(
    clean, whole, tmp_path, monkeypatch
):
    config = make_config(clean)
    with monkeypatch.context() as patch:
        limited(
            patch,
            writers.MetricsWriter,
            "write",
            size_bytes=700,  # ends in the middle of a line
            when=lambda *args, step, **kwargs: step == 6,
        )
        fails(config, tmp_path, "File too large")
    goes_on(config, tmp_path, whole)
    lines = [[x["step"], x["split"]] for x in read_metrics(tmp_path)]
    assert lines == [[x["step"], x["split"]] for x in read_metrics(whole[0])]


def test_predictions_and_result_that_find_no_room_are_written_later(
    clean, whole, tmp_path, monkeypatch
):
    config = make_config(clean)
    config.eval.save_predictions = True
    with monkeypatch.context() as patch:
        limited(patch, PredictionWriter, "close", size_bytes=100)
        fails(config, tmp_path, "File too large")
    assert not (tmp_path / "predictions.parquet").exists()
    with monkeypatch.context() as patch:
        limited(
            patch,
            run_folder,
            "write_json",
            size_bytes=100,
            when=lambda path, tree: path.name == "result.json",
        )
        fails(config, tmp_path, "File too large")
    goes_on(config, tmp_path, whole)
    assert len(pq.read_table(tmp_path / "predictions.parquet")) == ROWS["test"]


def test_tensorboard_events_that_find_no_room_do_not_hang_the_run(
    clean, tmp_path, monkeypatch
):
    config = make_config(clean)
    config.observe.tensorboard = True

    def refuse(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers.EventsWriter, "flush", refuse)
        fails(config, tmp_path, "No space left on device")


# The first checkpoint finds no room, at step 4.
WITH_A_SMALL_DISK = """
import resource
from rankax import main
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000))
main.run()
"""


@pytest.mark.slow
def test_the_command_line_tells_of_a_full_disk_in_one_line(clean, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(
        f"import pathlib, sys\nsys.path[:0] = {sys.path!r}\n"
        "import small_run\n"
        "def get_config(arg=''):\n"
        f"    return small_run.make_config(pathlib.Path({str(clean)!r}))\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, "-c", WITH_A_SMALL_DISK),
            *(f"--config={config}", f"--workdir={tmp_path / 'run'}"),
        ],
        env=os.environ | {"XLA_FLAGS": "", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "File too large" in line]
    assert line.startswith("RunFolderError: --workdir=") and "free space" in line
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made_is_told(clean, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunFolderError, match=r"cannot be written .*Not a directory"):
        train(make_config(clean), str(tmp_path / "file/run"))
