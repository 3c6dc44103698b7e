"""Several processes train as one, and end as one."""

from concurrent import futures
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from final_states import final_state
import jax
import numpy as np
import pytest
import topologies
from topologies import make_float32_config

from rankax.config.base import ConfigError
from rankax.observe.writers import read_metrics
from rankax.parallel import processes
from rankax.train import train

HERE = pathlib.Path(__file__).parent
TIMEOUT_SECONDS = 240


def address():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def environment(devices):
    flag = f"--xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join([str(HERE), *sys.path])
    return os.environ | {"XLA_FLAGS": flag, "PYTHONPATH": paths}


class Together:
    """The command line of a run as two processes of four devices; logs in files."""

    def __init__(self, folder, *options):
        config = folder / "config.py"
        config.write_text(
            "from topologies import make_float32_config\n"
            "def get_config(arg=''):\n    return make_float32_config()\n"
        )
        coordinator = address()
        self.logs = [folder / f"log-{index}" for index in range(2)]
        self.processes = []
        for index, log in enumerate(self.logs):
            command = [
                *(sys.executable, "-m", "rankax.main", f"--config={config}"),
                *(f"--workdir={folder / 'run'}", f"--coordinator={coordinator}"),
                *("--num_processes=2", f"--process_index={index}", *options),
            ]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, env=environment(4), stdout=file, stderr=file
                    )
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def wait(self):
        """Returns the exit codes."""
        return [process.wait(TIMEOUT_SECONDS) for process in self.processes]

    def log(self, index):
        """What a process said; Gloo has a line for every connection."""
        lines = self.logs[index].read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("[Gloo]"))

    def wait_for(self, path):
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not path.exists():
            codes = [process.poll() for process in self.processes]
            assert codes == [None, None], [self.log(0), self.log(1)]
            assert time.monotonic() < deadline
            time.sleep(0.05)


def assert_close(folder, expected_folder):
    """Compares what two runs made of the same examples, on different machines."""
    found, expected = (
        json.loads((path / "result.json").read_text())
        for path in (folder, expected_folder)
    )
    assert found["examples_seen"] == expected["examples_seen"]
    for name, value in expected["metrics"].items():
        assert found["metrics"][name] == pytest.approx(value, abs=1e-6), name
    counted = [
        {
            name: [counts["looked_up"], counts["out_of_vocabulary"]]
            for name, counts in result["tables"]["train"].items()
        }
        for result in (found, expected)
    ]
    assert counted[0] == counted[1]
    config = make_float32_config()
    step, a, _ = final_state(config, folder)
    expected_step, b, _ = final_state(config, expected_folder)
    assert step == expected_step
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), a, b)


@pytest.mark.slow
def test_two_processes_train_as_one_and_end_as_one(tmp_path):
    with Together(tmp_path) as run:
        run.wait_for(tmp_path / "run/checkpoints/10")
        run.processes[1].kill()
        killed = time.monotonic()
        assert run.wait() == [1, -signal.SIGKILL]
        assert time.monotonic() - killed < 20
        assert re.search(
            r"process 1 has ended without a word; process 0 of 2 ends too\. Start all "
            r"of them again with the same command",
            run.log(0),
        )
    with Together(tmp_path) as run:
        assert run.wait() == [0, 0], [run.log(0), run.log(1)]
        assert re.search(r"continuing .* from step [1-3]0", run.log(0))
        assert run.log(1) == ""  # the first process alone tells
    train(make_float32_config(), str(tmp_path / "alone"))
    assert_close(tmp_path / "run", tmp_path / "alone")
    lines = [read_metrics(tmp_path / name) for name in ("run", "alone")]
    losses = [[(x["step"], x["loss"]) for x in own if "loss" in x] for own in lines]
    assert [x for x, _ in losses[0]] == [x for x, _ in losses[1]] != []
    np.testing.assert_allclose(*[[x for _, x in own] for own in losses], atol=1e-6)


def test_a_process_without_the_others_says_whom_it_waits_for(tmp_path):
    command = [
        *(sys.executable, "-m", "rankax.main", "--num_processes=2"),
        *("--config=experiments/quickstart.py:lr", f"--workdir={tmp_path / 'run'}"),
        *("--process_index=1", f"--coordinator={address()}"),
        "--start_timeout_seconds=2",
    ]
    done = subprocess.run(
        command, env=environment(1), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert re.search(
        r"process 1 waited 2 s for 2 processes at 127\.0\.0\.1:\d+, and not all of them "
        r"came; start every one of them",
        done.stderr,
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_auto_where_there_is_no_cluster_says_where_it_works(tmp_path):
    command = [
        *(sys.executable, "-m", "rankax.main", "--coordinator=auto"),
        *("--config=experiments/quickstart.py:lr", f"--workdir={tmp_path / 'run'}"),
    ]
    own = {
        name: value
        for name, value in environment(1).items()
        if not name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_"))
    }
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "ConfigError: --coordinator=auto: no connection" in done.stderr
    assert "in a step of Slurm (start it by srun)" in done.stderr
    assert "Traceback" not in done.stderr


def test_process_0_is_reached_by_its_address_where_its_name_is_unknown(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "pod-0")
    monkeypatch.setattr(socket, "gethostbyname", {"pod-0": "127.0.0.1"}.__getitem__)
    names = processes._own_names()
    assert names == ["pod-0", "127.0.0.1"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        # RFC 6761: no resolver knows a name under .invalid.
        peer = processes._reach(["pod-0.invalid", *names[1:]], port)
        with peer, server.accept()[0] as accepted:
            assert accepted.getpeername() == peer.getsockname()
    with pytest.raises(OSError):
        processes._reach(["pod-0.invalid"], port)

    def unknown(name):
        raise socket.gaierror(name)

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert processes._own_names() == ["pod-0"]


@pytest.fixture
def lifelines(monkeypatch):
    """Makes the lifelines of two processes, which are threads here."""
    own, barrier, sent = threading.local(), threading.Barrier(2, timeout=30), []
    monkeypatch.setattr(jax, "process_index", lambda: own.index)
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def make(strangers):
        """Takes what connects to process 0 before the other one learns its port."""

        def broadcast(value):
            if own.index == 0:
                if not sent:
                    _, port, _ = value
                    strangers(port)
                sent.append(value)
            barrier.wait()
            said = sent[-1]
            barrier.wait()
            return said

        def start(index):
            own.index = index
            return processes.Lifeline("127.0.0.1")

        monkeypatch.setattr(processes, "broadcast", broadcast)
        with futures.ThreadPoolExecutor(2) as pool:
            return list(pool.map(start, range(2)))

    return make


def test_strangers_at_the_port_keep_no_process_from_the_others(lifelines, monkeypatch):
    monkeypatch.setattr(processes, "_HELLO_SECONDS", 0.2)
    silent = socket.socket()

    def strangers(port):
        silent.connect(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"\x16\x03\x01\xff\n")  # a handshake of TLS
        reset = socket.create_connection(("127.0.0.1", port))
        no_linger = struct.pack("ii", 1, 0)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_linger)
        reset.close()

    with silent:
        zero, one = lifelines(strangers)
    assert [*zero._peers] == [1] and [*one._peers] == [0]
    one.close()
    zero.close()


def test_a_process_that_came_too_late_goes_on_without_a_lifeline(
    lifelines, monkeypatch, capsys
):
    monkeypatch.setattr(processes, "_CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(processes, "_HELLO_SECONDS", 0.4)
    ended = []
    monkeypatch.setattr(processes, "_leave", ended.append)
    with socket.socket() as silent:
        zero, one = lifelines(lambda port: silent.connect(("127.0.0.1", port)))
    assert zero._peers == one._peers == {} and not ended
    assert "only 0 of 1 processes reached port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "message"),
    [
        ("auto", 2, 0, "or --coordinator=auto alone"),
        ("host:1234", None, 0, "give all three"),
        ("host:1234", 2, None, "give all three"),
        ("host", 2, 0, "must be HOST:PORT of process 0"),
        ("host:http", 2, 0, "must be HOST:PORT of process 0"),
        ("host:1234", 2, 2, r"--process_index=2 must be at least 0 and below"),
        ("host:1234", 2, -1, r"--process_index=-1 must be at least 0"),
    ],
)
def test_processes_that_do_not_fit_are_refused(coordinator, count, index, message):
    with pytest.raises(ConfigError, match=message):
        processes.start(coordinator, num_processes=count, process_index=index)


def test_one_process_agrees_with_itself_at_once():
    assert [processes.Votes(lag=2).cast(x) for x in (0, 15)] == [0, 15]
    arrays = {"group": np.array([2**40, -1])}
    assert processes.gather(arrays) == arrays
    assert processes.broadcast({"a": [1.5]}) == {"a": [1.5]}


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
    with Together(tmp_path) as run:
        run.wait_for(tmp_path / "run/checkpoints/10")
        run.processes[1].send_signal(signal.SIGTERM)
        assert run.wait() == [128 + signal.SIGTERM] * 2
        told = [re.search(r"stopped by SIGTERM .*", run.log(i))[0] for i in range(2)]
        assert told[0] == told[1]
    with Together(tmp_path) as run:
        assert run.wait() == [0, 0], [run.log(0), run.log(1)]
    train(make_float32_config(), str(tmp_path / "alone"))
    assert_close(tmp_path / "run", tmp_path / "alone")


@pytest.mark.slow
def test_the_others_tell_why_a_process_has_failed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("do not touch")
    with Together(tmp_path) as run:
        assert run.wait() == [1, 1]
        assert "ConfigError: --workdir=" in run.log(0)
        assert "process 0 has failed: ConfigError: --workdir=" in run.log(1)
        assert "process 1 of 2 ends too" in run.log(1)


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_others_at_the_end_of_its_heartbeat(tmp_path):
    with Together(tmp_path) as run:
        run.wait_for(tmp_path / "run/checkpoints/10")
        run.processes[1].send_signal(signal.SIGSTOP)
        code = run.processes[0].wait(processes.HEARTBEAT_SECONDS + 60)
        assert code != 0
        assert "another task died" in run.log(0)  # JAX's words


# ---------------------------------------------------------------- any machine

TOPOLOGIES = [(1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (4, 2), (8, 2)]


def run_on(devices, count, folders, *, die_after=None):
    """Runs `topologies.py` on folder after folder."""
    command = [sys.executable, str(HERE / "topologies.py"), f"--devices={devices}"]
    command += map(str, folders)
    if die_after:
        command.append(f"--die_after={die_after}")
    if count > 1:
        command += [f"--coordinator={address()}", f"--processes={count}"]
    members = [
        subprocess.Popen([*command, f"--index={index}"], env=environment(1))
        for index in range(count)
    ]
    try:
        assert [member.wait(900) for member in members] == [0] * count
    finally:
        for member in members:
            member.kill()
            member.wait()


def notes_of(folder, count):
    return [json.loads((folder / f"notes-{i}.json").read_text()) for i in range(count)]


def examples_of(notes):
    """Returns the digests of the global batches, from those of each process."""
    batches = zip(*[own["examples"] for own in notes], strict=False)
    return [list(itertools.chain(*parts)) for parts in batches]


@pytest.mark.slow
def test_what_one_machine_saved_any_other_goes_on_from(tmp_path):
    half = topologies.NUM_STEPS // 2
    saved = {}
    for devices, count in TOPOLOGIES:
        saved[devices, count] = folder = tmp_path / f"saved-{devices}-{count}"
        # Read ahead, the last batches of one process may not be noted by another.
        run_on(devices, count, [folder], die_after=half)
        first = examples_of(notes_of(folder, count))[:half]
        assert first == examples_of(notes_of(saved[1, 1], 1))[:half]

    whole = tmp_path / "whole"
    run_on(1, 1, [whole])
    second = examples_of(notes_of(whole, 1))[half : 2 * half]
    assert len(second) == half
    digests = {}
    for devices, count in TOPOLOGIES:
        folders = {origin: tmp_path / f"{devices}-{count}-{origin}" for origin in saved}
        for origin, folder in folders.items():
            shutil.copytree(saved[origin], folder)
        run_on(devices, count, folders.values())
        for origin, folder in folders.items():
            notes = notes_of(folder, count)
            assert examples_of(notes)[:half] == second
            restored = digests.setdefault(origin, notes[0]["restored"])
            assert notes[0]["restored"] == restored
            assert_close(folder, whole)
            shutil.rmtree(folder)
