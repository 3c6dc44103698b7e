"""An hour of random kills and device counts; by hand:

RANKAX_SOAK_SECONDS=3600 python -m pytest -m soak -s tests/faults/test_soak.py
"""

from collections import Counter, defaultdict
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
from small_run import ROWS, write_dataset
import soak_run

SECONDS = int(os.environ.get("RANKAX_SOAK_SECONDS", "3600"))
LONG_LIFE = 0.2  # share of the time for one life without a kill, to look at memory


def live(data, run, *, devices, seconds, number):
    """Starts the run, ends it by a signal and returns how it ended."""
    command = [sys.executable, soak_run.__file__, str(data), str(run), str(devices)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    del environment["XLA_FLAGS"]  # says eight devices
    with run.with_name("log").open("a") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            time.sleep(seconds)
            assert process.poll() is None, run.with_name("log").read_text()[-3_000:]
            process.send_signal(number)
            return process.pid, process.wait(120)
        finally:
            process.kill()
            process.wait()


def lost_and_repeated(log: pathlib.Path) -> tuple[int, int, int]:
    """Counts whole epochs, and examples lost and repeated in them.

    A batch that came again after a kill, at the same position, counts once; it must
    hold what it held before.
    """
    by_epoch = defaultdict(dict)
    with log.open() as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the kill came in the middle of it
            position = line["position"]
            start = position["epoch"], position["rows_per_lane"]
            # The position is the one after the batch: that of an epoch's last is the
            # start of the next.
            epoch = start[0] - 1 if start[1] == 0 else start[0]
            own = by_epoch[epoch].setdefault(start, line["rows"])
            assert own == line["rows"], f"another batch at {position}"
    lost = repeated = 0
    epochs = range(max(by_epoch))  # the last one is not whole
    for epoch in epochs:
        counts = Counter(row for rows in by_epoch[epoch].values() for row in rows)
        lost += sum(not counts[row] for row in range(ROWS["train"]))
        repeated += sum(count - 1 for count in counts.values())
    return len(epochs), lost, repeated


@pytest.mark.soak
def test_an_hour_of_kills_loses_and_repeats_nothing_and_memory_stays_flat(tmp_path):
    rng = np.random.default_rng(0)
    data, run = write_dataset(tmp_path / "data"), tmp_path / "run"
    begin, ends, devices_used = time.monotonic(), Counter(), Counter()
    while time.monotonic() - begin < SECONDS * (1 - LONG_LIFE):
        devices = int(rng.choice([1, 2, 4, 8]))
        number = signal.SIGTERM if rng.random() < 0.25 else signal.SIGKILL
        seconds = float(rng.uniform(15, 60))
        _, status = live(data, run, devices=devices, seconds=seconds, number=number)
        # A signal that comes before the trainer listens ends the process as it does
        # any other.
        assert status in (-number, 128 + number)
        ends[signal.Signals(number).name] += 1
        devices_used[devices] += 1
    long_life = SECONDS * LONG_LIFE
    pid, status = live(data, run, devices=2, seconds=long_life, number=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM

    num_epochs, lost, repeated = lost_and_repeated(tmp_path / "examples.jsonl")
    lines = (tmp_path / "memory.jsonl").read_text().splitlines()
    own = [x for x in map(json.loads, lines) if x["process"] == pid]
    memory = [line["rss_mb"] for line in own]
    third = len(memory) // 3
    warm, last = statistics.median(memory[third : 2 * third]), memory[-third:]
    growth = statistics.median(last) - warm
    report = {
        "seconds": round(time.monotonic() - begin),
        "kills_survived": dict(ends),
        "lives_by_devices": dict(devices_used),
        "whole_epochs": num_epochs,
        "examples": num_epochs * ROWS["train"],
        "examples_lost": lost,
        "examples_repeated": repeated,
        "memory_mb": [round(warm, 1), round(statistics.median(last), 1)],
        "memory_seconds": round(own[-1]["time"] - own[0]["time"]),
    }
    print("\n" + json.dumps(report, indent=1))
    assert (lost, repeated) == (0, 0) and num_epochs > 0
    assert growth < 0.02 * warm
