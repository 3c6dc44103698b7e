"""A rendered batch script is run, on this machine, by programs that stand for Slurm's."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from test_slurm import fake, options_of

from tpu import render

ROOT = pathlib.Path(__file__).parents[2]
TIMEOUT_SECONDS = 300
NUM_STEPS, BATCH_SIZE = 400, 256
CONFIG = f"""\
from experiments import quickstart
from rankax.config.synthetic import SyntheticConfig


def get_config(arg=""):
    config = quickstart.get_config("lr-none")
    config.data.source = SyntheticConfig(
        num_train_rows=20_000, num_valid_rows=2_000, num_test_rows=2_000
    )
    config.train.batch_size = config.eval.batch_size = {BATCH_SIZE}
    config.train.num_epochs, config.train.num_steps = 0, {NUM_STEPS}
    config.eval.every_steps = {NUM_STEPS}
    config.checkpoint.every_steps = 20
    return config
"""
# Starts SLURM_NTASKS tasks, hands signals on to them, and ends as the worst of them.
SRUN = f"""\
#!{sys.executable}
import os
import pathlib
import signal
import subprocess
import sys

words = [word for word in sys.argv[1:] if word != "--kill-on-bad-exit=0"]
tasks = []
for index in range(int(os.environ.get("SLURM_NTASKS", "1"))):
    own = {{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)}}
    own["SLURM_STEP_NODELIST"] = "localhost"
    tasks.append(subprocess.Popen(words, env=os.environ | own))


def hand_on(number, frame):
    for task in tasks:
        task.send_signal(number)


signal.signal(signal.SIGTERM, hand_on)
pathlib.Path(os.environ["SRUN_PID"]).write_text(str(os.getpid()))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


def job_id():
    """A number whose port for the coordinator, by JAX's rule, is free."""
    for number in range(os.getpid(), os.getpid() + 1_000):
        with socket.socket() as server:
            try:
                server.bind(("127.0.0.1", 65535 - 4096 + 1 + number % 4096))
            except OSError:
                continue
            return number
    raise AssertionError("no free port")


class Slurm:
    """What sbatch, srun and scontrol would do for one script."""

    def __init__(self, folder):
        self.folder = folder
        self.requeued = folder / "requeued"
        self.bin = folder / "bin"
        self.bin.mkdir()
        fake(self.bin, "srun", SRUN)
        fake(self.bin, "scontrol", f'#!/bin/bash\necho "$@" >> {self.requeued}\n')
        fake(self.bin, "python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')

    def submit(self, script, **environment):
        options = options_of(script)
        self.pid = self.folder / "srun.pid"
        self.pid.unlink(missing_ok=True)
        self.job = str(job_id())
        own = {
            "PATH": f"{self.bin}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            "SLURM_JOB_ID": self.job,
            "SLURM_NTASKS": options.get("ntasks", "1"),
            "SRUN_PID": str(self.pid),
            "XLA_FLAGS": "",
        }
        path = self.folder / "job.sh"
        path.write_text(script)
        self.log = self.folder / "log"
        with self.log.open("w") as log:
            return subprocess.Popen(
                ["bash", str(path)],
                cwd=ROOT,
                env=os.environ | own | environment,
                stdout=log,
                stderr=log,
            )

    def signal(self, process, number):
        """As --signal=TERM@... does: to the tasks, not to the script."""
        assert process.poll() is None, self.log.read_text()
        os.kill(int(self.pid.read_text()), number)


def wait_for(path, process, log):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not path.exists():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_batch_script_trains_saves_on_its_signal_and_goes_on_when_queued_again(
    tmp_path,
):
    (tmp_path / "config.py").write_text(CONFIG)
    folder = tmp_path / "run"
    script = render.run(
        "slurm",
        config=str(tmp_path / "config.py"),
        workdir=str(folder),
        name="ctr",
        topology="cpu:2",
    )
    slurm = Slurm(tmp_path)

    first = slurm.submit(script)
    wait_for(folder / "checkpoints/20", first, slurm.log)
    slurm.signal(first, signal.SIGTERM)
    assert first.wait(TIMEOUT_SECONDS) == 128 + signal.SIGTERM, slurm.log.read_text()
    assert slurm.requeued.read_text() == f"requeue {slurm.job}\n"
    stopped = re.search(
        r"stopped by SIGTERM after step ([\d,]+)", slurm.log.read_text()
    )
    step = int(stopped[1].replace(",", ""))
    assert 20 <= step < NUM_STEPS
    assert not (folder / "result.json").exists()

    second = slurm.submit(script)
    assert second.wait(TIMEOUT_SECONDS) == 0, slurm.log.read_text()
    assert f"continuing {folder} from step {step}" in slurm.log.read_text()
    result = json.loads((folder / "result.json").read_text())
    assert (result["step"], result["examples_seen"]) == (
        NUM_STEPS,
        examples_of(NUM_STEPS),
    )
    assert result["hardware"]["num_processes"] == 2

    before = (folder / "result.json").stat().st_mtime_ns
    third = slurm.submit(script)  # finished: it ends at once
    assert third.wait(TIMEOUT_SECONDS) == 0, slurm.log.read_text()
    assert (folder / "result.json").stat().st_mtime_ns == before
    assert slurm.requeued.read_text().count("requeue") == 1


def examples_of(num_steps):
    """Batches are full but for an epoch's last."""
    per_epoch = -(-20_000 // BATCH_SIZE)
    epochs, rest = divmod(num_steps, per_epoch)
    return epochs * 20_000 + rest * BATCH_SIZE


@pytest.mark.slow
def test_the_tasks_of_an_array_run_and_end_at_once_when_submitted_again(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG.replace(f", {NUM_STEPS}\n", ", 20\n"))
    commands = [
        f"python -m rankax.main --config={tmp_path}/config.py "
        f"--workdir={tmp_path}/run-{seed} --config.train.seed={seed}"
        for seed in range(2)
    ]
    script = render.array(commands, route="slurm", name="seeds")
    slurm = Slurm(tmp_path)
    for index in (0, 1, 1):  # task 1 once more, when it is finished
        path = tmp_path / f"run-{index}/result.json"
        before = path.stat().st_mtime_ns if path.exists() else 0
        task = slurm.submit(script, SLURM_ARRAY_TASK_ID=str(index))
        assert task.wait(TIMEOUT_SECONDS) == 0, slurm.log.read_text()
        assert json.loads(path.read_text())["seed"] == index
        assert before in (0, path.stat().st_mtime_ns)
    assert "is finished at step 20" in slurm.log.read_text()
