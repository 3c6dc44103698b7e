r"""What saving costs a training run, and how fast a run is restored.

python -m benchmarks.checkpoint --json=checkpoint.json   # 1 GB and 2.5 GB of tables
python -m benchmarks.checkpoint --quick                  # 50 MB

Trains a small DNN on made-up examples in Criteo's form, whose hashed tables fill the
size asked for (rows of 16 numbers and row-wise Adagrad's one), saves seven times and
goes on training meanwhile, each size in a process of its own:

    blocked    seconds that the call takes that starts a save
    lost       seconds by which the steps up to the end of the save were later than as
               many steps without a save: what blocks and what is slowed
    write      seconds that the steps lose in the same way to a thread that does nothing
               but write as many bytes to a file and flush it
    memcpy     seconds to copy as many bytes between buffers that are already mapped
    peak       most memory during the saves beyond what the process held before, in
               states, plus the state itself
    restore    bytes of the state by seconds until it is on the device; the files are in
               the page cache
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import gc
import json
import math
import os
import pathlib
import re
import statistics
import tempfile
import threading
import time

import numpy as np

from benchmarks import measure
from benchmarks.input_layouts import LAYOUTS
from benchmarks.measure import Record

DIM = 16
ROW_BYTES = 4 * (DIM + 1)
SIZES, QUICK_SIZES = (1_000, 2_500), (50,)  # MB of tables
NUM_SAVES = 7
EXAMPLES = 400_000
BATCH = 4096


def write_data(folder: pathlib.Path, table_mb: int) -> None:
    """Writes the examples, and a card whose tables fill `table_mb`."""
    layout = LAYOUTS["criteo64"]
    rows = round(table_mb * 1e6 / ROW_BYTES / len(layout.tables))
    tables = tuple(
        dataclasses.replace(table, num_rows=rows, ids="hash") for table in layout.tables
    )
    dataclasses.replace(layout, tables=tables).write("criteo", EXAMPLES, folder)


def measure_size(folder: pathlib.Path, table_mb: int) -> Record:
    """Measures one size of tables; call it in a process of its own."""
    import jax

    from rankax.config.experiment import (
        CheckpointConfig,
        ExperimentConfig,
        ParquetConfig,
    )
    from rankax.data import lanes
    from rankax.models import backbones  # noqa: F401
    from rankax.models.base import named_config
    from rankax.training.checkpoint import Checkpoints
    from rankax.training.setup import set_up

    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder / "data"))
    config.model.backbone = named_config(
        "dnn", embedding_dim=DIM, hidden_dims=(256, 128)
    )
    config.train.batch_size = BATCH
    config.train.num_epochs = 1
    config.tables.replicate_below_bytes = 0
    setup = set_up(config)
    steps = setup.steps
    state = steps.init_state()
    batches = lanes.read_batches(
        setup.splits["train"],
        setup.schema,
        batch_size=BATCH,
        lanes=config.data.lanes,
        seed=0,
        shuffle=True,
        num_epochs=None,
        map_batch=steps.to_devices,
    )
    num_steps = 0

    def step() -> None:
        nonlocal state, num_steps
        state, metrics, _ = steps.train(state, next(batches)[0], factor=1.0)
        metrics["loss"].block_until_ready()
        num_steps += 1

    for _ in range(measure.WARMUP_STEPS):
        step()
    times = measure.time_warm(step, lambda: None, 2.0)
    step_seconds = statistics.median(times.wall)
    state_bytes = sum(x.nbytes for x in jax.tree.leaves(state))
    memcpy_seconds = _memcpy_seconds(state_bytes)
    checkpoints = Checkpoints(folder / f"saved-{table_mb}", CheckpointConfig())

    def disturb(start: Callable[[], None], wait: Callable[[], None]) -> Record:
        """Trains beside what `start` starts, until `wait` returns."""
        first, begin = num_steps, time.perf_counter()
        start()
        blocked = time.perf_counter() - begin
        end = threading.Thread(target=wait)
        end.start()
        step()
        first_step = time.perf_counter() - begin - blocked
        while end.is_alive():
            step()
        seconds = time.perf_counter() - begin
        lost = seconds - (num_steps - first) * step_seconds
        for _ in range(5):
            step()
        return {
            "blocked_seconds": blocked,
            "first_step_seconds": first_step,
            "save_seconds": seconds,
            "lost_seconds": lost,
        }

    def start_save() -> None:
        plan = steps.engine.plan
        checkpoints.save(num_steps, state, {}, plan=plan, origin={}, is_best=False)

    def write() -> None:
        _write(folder / "written", state_bytes)

    gc.collect()
    before = _memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    saves = [disturb(start_save, checkpoints.wait) for _ in range(NUM_SAVES)]
    peak = _memory("VmHWM")
    writes = [disturb(lambda: None, write) for _ in range(NUM_SAVES)]
    saved_step = checkpoints.latest_step
    assert saved_step is not None
    abstract = steps.abstract_state()
    batches.close()
    state = None
    gc.collect()
    begin = time.perf_counter()
    restored = checkpoints.restore(abstract, plan=steps.engine.plan, step=saved_step)
    jax.block_until_ready(restored)
    restore_seconds = time.perf_counter() - begin
    checkpoints.close()
    lost = statistics.median(save["lost_seconds"] for save in saves)
    return {
        "status": "ok",
        "table_mb": table_mb,
        "state_bytes": state_bytes,
        "step_ms": 1e3 * step_seconds,
        "memcpy_seconds": memcpy_seconds,
        "saves": saves,
        **{key: statistics.median(save[key] for save in saves) for key in saves[0]},
        "writes": writes,
        "write_lost_seconds": statistics.median(x["lost_seconds"] for x in writes),
        "lost_memcpys": lost / memcpy_seconds,
        "peak_states": 1 + (peak - before) / state_bytes,
        "restore_seconds": restore_seconds,
        "restore_gb_per_second": state_bytes / restore_seconds / 1e9,
    }


def _memcpy_seconds(num_bytes: int) -> float:
    """Times a plain copy, in pieces that are mapped before."""
    source = np.ones(2**28, np.uint8)
    target = np.ones_like(source)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds) * num_bytes / source.nbytes


def _write(path: pathlib.Path, num_bytes: int) -> None:
    """Writes a new file from memory that is there, and flushes it to the disk."""
    piece = np.ones(2**24, np.uint8)
    with path.open("wb", buffering=0) as file:
        for _ in range(math.ceil(num_bytes / piece.nbytes)):
            file.write(piece)
        os.fsync(file.fileno())
    path.unlink()


def _memory(entry: str) -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.findall(rf"{entry}:\s*(\d+) kB", status)[0]) * 1024


def table(records: Sequence[Record]) -> str:
    """Returns the results as a Markdown table."""
    return measure.table(
        records,
        cell={"tables, MB": "{table_mb:,}"},
        measured={
            "step, ms": "{step_ms:.0f}",
            "save, s": "{save_seconds:.1f}",
            "blocked, s": "{blocked_seconds:.2f}",
            "first step, s": "{first_step_seconds:.2f}",
            "lost, s": "{lost_seconds:.2f}",
            "write, s": "{write_lost_seconds:.2f}",
            "memcpy, s": "{memcpy_seconds:.2f}",
            "lost / memcpy": "{lost_memcpys:.1f}",
            "peak, states": "{peak_states:.2f}",
            "restore, GB/s": "{restore_gb_per_second:.2f}",
        },
    )


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoint",
        description="What saving costs a training run, and how fast it is restored.",
    )
    parser.add_argument("--quick", action="store_true", help="50 MB of tables")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument(
        "--sizes", type=measure.number, nargs="+", help="of the tables, in MB"
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, help="on the disk to save to; default TMPDIR"
    )
    args = parser.parse_args(argv)
    args.sizes = args.sizes or (QUICK_SIZES if args.quick else SIZES)
    return args


def main() -> None:
    """Measures every size in a fresh process, prints a table, writes the JSON file."""
    args = parse_arguments()
    content = measure.introduce()
    records: list[Record] = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
            folder = pathlib.Path(scratch)
            write_data(folder / "data", size)
            measure.tell(f"{size:,} MB of tables")
            records.append(measure.run_alone(measure_size, folder, size))
    print(f"\n{table(records)}")
    if args.json:
        content |= {"checkpoints": records}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
