"""What the processes of `test_processes.py` run: the trainer, on devices of a number.

python topologies.py --devices=4 [--coordinator=HOST:PORT --processes=2 --index=0]
    [--die_after=20] RUN ...

Beside training it notes what the trainer itself does not tell: a digest of every array
that a restore returned, and one of every example that went to the devices.
"""

import argparse
import hashlib
import json
import pathlib

from absl import flags
import jax
from jax.experimental import multihost_utils
import numpy as np
from test_resume import make_config

from rankax.parallel import processes
from rankax.train import train
from rankax.training.checkpoint import Checkpoints
from rankax.training.step import Steps

NUM_STEPS = 40


def make_float32_config():
    """One whose runs differ between topologies by the order of sums alone.

    Two things would blow the last bit of a sum up: rounding rows to 16 bits, and Adam on
    a bias before batch norm, whose gradient is nothing but such bits.
    """
    config = make_config(num_epochs=0, num_steps=NUM_STEPS)
    config.tables.dtype = "float32"
    config.model.backbone.use_batch_norm = False
    config.optimizer.sparse.name = "rowwise_adagrad"
    config.checkpoint.every_steps = 10
    config.eval.every_steps = NUM_STEPS
    return config


def note_restores(notes):
    """Adds the digest of every array that `Checkpoints.restore` returns."""
    original = Checkpoints.restore

    def restore(self, *args, **kwargs):
        state = original(self, *args, **kwargs)
        for path, x in jax.tree.leaves_with_path(state):
            whole = np.asarray(multihost_utils.process_allgather(x, tiled=True))
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            notes["restored"][name] = hashlib.sha256(whole.tobytes()).hexdigest()
        return state

    Checkpoints.restore = restore


def note_examples(notes):
    """Adds, batch by batch, a digest of each of this process's examples."""
    original = Steps.to_devices

    def to_devices(self, arrays):
        digests = [hashlib.md5(row.tobytes()).hexdigest()[:8] for row in arrays["ids"]]
        notes["examples"].append(digests)
        return original(self, arrays)

    Steps.to_devices = to_devices


class Died(Exception):
    pass


def die_after(number):
    """Makes every process die after that many steps."""
    original, calls = Steps.train, []

    def dying(self, *args, **kwargs):
        calls.append(None)
        if len(calls) > number:
            raise Died
        return original(self, *args, **kwargs)

    Steps.train = dying


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--coordinator")
    parser.add_argument("--die_after", type=int)
    parser.add_argument("folders", nargs="+")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain reads absl flags
    jax.config.update("jax_num_cpu_devices", args.devices // args.processes)
    if args.coordinator:
        processes.start(
            args.coordinator,
            num_processes=args.processes,
            process_index=args.index,
            timeout_seconds=100,
        )
    notes = {}
    note_restores(notes)
    note_examples(notes)
    if args.die_after:
        die_after(args.die_after)
    for folder in args.folders:
        notes.update(restored={}, examples=[])
        try:
            train(make_float32_config(), folder)
        except Died:
            assert args.die_after
        path = pathlib.Path(folder) / f"notes-{args.index}.json"
        path.write_text(json.dumps(notes))


if __name__ == "__main__":
    main()
