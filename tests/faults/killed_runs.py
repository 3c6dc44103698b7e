"""A run whose processes are killed one after the other; test_killed.py starts it.

    python killed_runs.py PLAN.json

The plan names the data set, the run folder, epochs and where each process dies. All
processes are forked from this one, which has the imports done and no thread started.
"""

import json
import os
import pathlib
import signal
import sys
import threading
import time

from absl import flags
import numpy as np
import small_run

from rankax.train import train
from rankax.training.checkpoint import Checkpoints
from rankax.training.setup import Setup
from rankax.training.step import Steps


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(owner, name: str, number: int) -> None:
    """Kills the process once a method has been called for this number of times."""
    original, calls = getattr(owner, name), []

    def calling(*args, **kwargs):
        calls.append(None)
        result = original(*args, **kwargs)
        if len(calls) == number:
            die()
        return result

    setattr(owner, name, calling)


def die_in_save(folder: pathlib.Path, number: int) -> None:
    """Kills the process while the save of this number is being written."""
    original, calls = Checkpoints.save, []

    def save(self, *args, **kwargs):
        self.wait()  # what is begun now is the only one
        calls.append(None)
        original(self, *args, **kwargs)
        if len(calls) == number:
            while not [*folder.glob("checkpoints/*tmp*")]:
                time.sleep(0.001)
            die()

    Checkpoints.save = save


def note_examples(log: pathlib.Path) -> None:
    """Appends to a file what each batch given to the training loop holds."""
    original = Setup.training_batches

    def noting(self, config, position, *, map_batch):
        def with_rows(arrays):
            rows = arrays["ids"][:, 0][arrays["weight"] > 0]
            return map_batch(arrays), rows.tolist()

        batches = original(self, config, position, map_batch=with_rows)
        for (batch, rows), after in batches:
            line = {"position": after.to_dict(), "rows": rows}
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
            yield batch, after

    Setup.training_batches = noting


def run(plan: dict, point: list) -> None:
    """Trains in this process, which dies at a point [kind, number], or ends."""
    folder = pathlib.Path(plan["folder"])
    kind, number = point
    if kind == "step":
        die_at(Steps, "train", number)
    elif kind == "evaluation":
        die_at(Steps, "evaluate", number)
    elif kind == "save":
        die_in_save(folder, number)
    elif kind == "time":
        threading.Timer(number, die).start()
    note_examples(folder.with_name("examples.jsonl"))
    config = small_run.make_config(pathlib.Path(plan["data"]))
    config.train.num_epochs = plan["num_epochs"]
    with small_run.on_one_device():
        train(config, str(folder))


def in_a_fork(plan: dict, point: list) -> int:
    """Returns how a process that does `run` ended."""
    process = os.fork()
    if not process:
        status = 1
        try:
            run(plan, point)
            status = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    """Prints for every process how it ended, and whether it left half a save."""
    flags.FLAGS.mark_as_parsed()
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    ends = []
    for point in [*plan["points"], ["end", 0]]:
        status = in_a_fork(plan, point)
        halves = pathlib.Path(plan["folder"]).glob("checkpoints/*tmp*")
        ends.append([*point, status, bool([*halves])])
        if status == 0:
            break
    print("\n" + json.dumps(ends))


def points(num: int, seed: int) -> list[list]:
    """Returns random points to die at."""
    rng = np.random.default_rng(seed)
    kinds = {
        "step": lambda: int(rng.integers(1, 12)),
        "evaluation": lambda: int(rng.integers(1, 4)),
        "save": lambda: int(rng.integers(1, 3)),
        "time": lambda: float(rng.uniform(0.2, 3)),
    }
    return [[kind, kinds[kind]()] for kind in rng.choice([*kinds], num).tolist()]


if __name__ == "__main__":
    main()
