"""One life of the run that test_soak.py kills again and again.

python soak_run.py DATA RUN DEVICES

Trains until a signal ends it, on simulated devices, and notes beside the run folder what
each batch held (`examples.jsonl`) and how much memory the process has (`memory.jsonl`).
"""

import json
import os
import pathlib
import re
import sys
import threading
import time

from absl import flags
import jax
from killed_runs import note_examples
import small_run

from rankax.train import train
from rankax.training.interruption import Interrupted

SECONDS_BETWEEN_NOTES = 2.0


def note_memory(log: pathlib.Path) -> None:
    """Appends the resident memory of this process, now and then."""
    status = pathlib.Path("/proc/self/status")
    while True:
        kilobytes = int(re.findall(r"VmRSS:\s*(\d+) kB", status.read_text())[0])
        line = {"process": os.getpid(), "time": time.time(), "rss_mb": kilobytes / 1024}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        time.sleep(SECONDS_BETWEEN_NOTES)


def main() -> None:
    """Trains, without an end of its own."""
    data, folder, devices = sys.argv[1:]
    flags.FLAGS.mark_as_parsed()
    jax.config.update("jax_num_cpu_devices", int(devices))
    run = pathlib.Path(folder)
    note_examples(run.with_name("examples.jsonl"))
    log = run.with_name("memory.jsonl")
    threading.Thread(target=note_memory, args=(log,), daemon=True).start()
    config = small_run.make_config(pathlib.Path(data))
    config.train.num_epochs = 10**6
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 100
    config.observe.log_every = 50
    try:
        train(config, folder)
    except Interrupted as error:
        sys.exit(128 + error.signal)


if __name__ == "__main__":
    main()
