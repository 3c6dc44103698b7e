"""Two processes of four devices compute the bits that one of eight computes."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import two_processes

pytestmark = pytest.mark.guard

SCRIPT = pathlib.Path(two_processes.__file__)
TIMEOUT_SECONDS = 120


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(index, address, folder):
    """Starts one of the processes; both write to a log, as pipes could fill up."""
    command = [sys.executable, str(SCRIPT), f"--address={address}"]
    command += [f"--index={index}", f"--out={folder / f'{index}.npz'}"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    del environment["XLA_FLAGS"]  # says eight devices
    with (folder / "log").open("a") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def wait(process):
    """Returns the exit code, None if it takes too long."""
    try:
        return process.wait(TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


@pytest.mark.slow  # 20 s
def test_two_processes_of_four_devices_equal_one_of_eight_to_the_bit(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    processes = [
        start(index, address, tmp_path) for index in range(two_processes.NUM_PROCESSES)
    ]
    try:
        want = two_processes.train_all()
        codes = [wait(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], (tmp_path / "log").read_text()

    for path in sorted(tmp_path.glob("*.npz")):
        got = np.load(path)
        assert set(got) == set(want)
        for name, x in want.items():
            assert got[name].dtype == x.dtype
            np.testing.assert_array_equal(got[name], x, err_msg=name)
    for case in two_processes.CASES:
        prefix = f"{case}/steps/%d/counts/groups/embedding_0/rounds"
        rounds = [int(want[prefix % n]) for n in range(two_processes.NUM_STEPS)]
        assert min(rounds[::2]) > 1, rounds
        assert set(rounds[1::2]) == {1}, rounds
