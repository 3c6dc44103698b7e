"""What the benchmarks share: a process for every trial, timed steps, the machine."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
from importlib import metadata
import itertools
import multiprocessing
import os
import pathlib
import platform
import re
import statistics
import sys
import time
from typing import Any

Record = dict[str, Any]  # what a process measured, by name

WARMUP_STEPS = 10
# For the environment of contestants: rows of large tables lie far apart.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
SPINNING = (
    "OpenMP threads spin while they wait, so PyTorch and FBGEMM lose more than rankax; "
    "repeat it before quoting a ratio."
)
# How XLA and PyTorch tell that memory ran out; neither raises a MemoryError.
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory|can't allocate memory")


# ---------------------------------------------------------------- time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a trial is: warm-up, then chunks that end when their work is done."""

    warmup_steps: int
    num_chunks: int
    steps_per_chunk: int

    @property
    def num_steps(self) -> int:
        """All steps of a trial."""
        return self.warmup_steps + self.num_chunks * self.steps_per_chunk


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Mean seconds of one step in each chunk: by the clock, and of all cores."""

    wall: list[float]
    cpu: list[float]


def time_chunks(
    schedule: Schedule, step: Callable[[], Any], finish: Callable[[], Any]
) -> Times:
    """Runs the steps; `finish` waits until all work given so far is done."""
    for _ in range(schedule.warmup_steps):
        step()
    finish()
    times = Times(wall=[], cpu=[])
    for _ in range(schedule.num_chunks):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(schedule.steps_per_chunk):
            step()
        finish()
        times.wall.append((time.perf_counter() - wall) / schedule.steps_per_chunk)
        times.cpu.append((time.process_time() - cpu) / schedule.steps_per_chunk)
    return times


def time_program(program: Any, chunk_seconds: float) -> Record:
    """Warms a `Program` up and times it; call it in a process of its own.

    Returns:
        "times", "loss" of step `WARMUP_STEPS`, "input_wait", the part of the timed
        steps that was spent waiting for batches, "peak_mb", and "load" of the machine
        before.
    """
    load = os.getloadavg()[0]
    losses = [float(program.step()) for _ in range(WARMUP_STEPS)]
    program.finish()
    warm, begin = len(program.waits), time.perf_counter()
    times = time_warm(program.step, program.finish, chunk_seconds)
    waited = sum(program.waits[warm:]) / (time.perf_counter() - begin)
    return {
        "times": times,
        "loss": losses[-1],
        "input_wait": waited,
        "peak_mb": peak_memory_bytes() / 1e6,
        "load": load,
    }


def time_warm(
    step: Callable[[], Any], finish: Callable[[], Any], chunk_seconds: float
) -> Times:
    """Times four chunks of as many steps as fit `chunk_seconds`, at least one.

    Warm up before: the first step is taken as typical.
    """
    begin = time.perf_counter()
    step()
    finish()
    steps = int(chunk_seconds / (time.perf_counter() - begin))
    schedule = Schedule(warmup_steps=0, num_chunks=4, steps_per_chunk=max(steps, 1))
    return time_chunks(schedule, step, finish)


# ---------------------------------------------------------------- processes


def run_alone(
    function: Callable[..., Any],
    *args: Any,
    num_threads: int | None = None,
    **kwargs: Any,
) -> Any:
    """Calls a function of a module in a fresh process.

    Args:
        function: what to call.
        *args: its arguments; they and the result are pickled.
        num_threads: cores that the process may use; None = all of this one's.
        **kwargs: its arguments by name.

    Raises:
        MemoryError: memory ran out, or the process died without a word, as one does
            that the system kills for its memory.
    """
    try:
        with futures.ProcessPoolExecutor(
            max_workers=1, mp_context=multiprocessing.get_context("spawn")
        ) as process:
            return process.submit(
                _limited, function, num_threads, args, kwargs
            ).result()
    except BrokenProcessPool as error:
        raise MemoryError("the process was killed") from error


def _limited(
    function: Callable, num_threads: int | None, args: tuple, kwargs: dict
) -> Any:
    # All frameworks size their thread pools by the cores that they may run on.
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    if len(cores) == 1:  # helper threads that spin would cost what they wait for
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    try:
        return function(*args, **kwargs)
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(str(error)):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise


def peak_memory_bytes() -> int:
    """Returns the most memory that this process has held.

    Of the accelerator where jax runs on one, else the highest resident size.
    """
    if "jax" in sys.modules:
        statistics = sys.modules["jax"].devices()[0].memory_stats()
        if statistics:
            return statistics["peak_bytes_in_use"]
    # Not `ru_maxrss`, which starts at the highest size of the parent process.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024


def in_turn(
    cells: Mapping[Any, tuple], *, num_rounds: int = 1, num_threads: int | None = None
) -> dict[Any, Record]:
    """Runs every cell once a round, each time in a new process.

    Args:
        cells: a function of a module and its arguments, by a name to show.
        num_rounds: processes per cell.
        num_threads: cores of a process; None = all.

    Returns:
        What each cell's processes returned, pooled, and "status": "ok" or why not. A
        cell that fails once is not run again.
    """
    results: dict[Any, list[Record]] = {key: [] for key in cells}
    failures: dict[Any, str] = {}
    for index in range(num_rounds):
        for key in [key for key in cells if key not in failures]:
            tell(f"round {index + 1} of {num_rounds}, {key}: ", end="")
            function, *arguments = cells[key]
            try:
                result = run_alone(function, *arguments, num_threads=num_threads)
            except MemoryError as error:
                failures[key] = f"does not fit: {error}"
            except ImportError as error:
                failures[key] = f"not installed: {error}"
            if key in failures:
                tell(failures[key])
                continue
            results[key].append(result)
            tell(f"{pool([result])['median_ms']:.2f} ms" if "times" in result else "ok")
    return {
        key: {"status": failures[key]}
        if key in failures
        else {"status": "ok", **pool(results[key])}
        for key in cells
    }


def pool(results: Sequence[Record]) -> Record:
    """Pools what the processes of one cell returned: medians over them.

    "times" become milliseconds by the clock and, with "cpu_" before, of all cores:
    "median_ms", "min_ms" and "chunks_ms" of all chunks, and "rounds_ms", the median of
    each process.
    """
    record = {
        key: statistics.median(result[key] for result in results)
        for key in results[0]
        if key != "times"
    }
    if "times" in results[0]:
        for name, clock in (("", "wall"), ("cpu_", "cpu")):
            rounds = [
                [1e3 * seconds for seconds in getattr(result["times"], clock)]
                for result in results
            ]
            chunks = list(itertools.chain.from_iterable(rounds))
            record |= {
                f"{name}median_ms": statistics.median(chunks),
                f"{name}min_ms": min(chunks),
                f"{name}chunks_ms": chunks,
                f"{name}rounds_ms": [statistics.median(chunks) for chunks in rounds],
            }
    return record


def number(text: str) -> int:
    """Reads a positive whole number of the command line, also written as 3e7."""
    value = float(text)
    if value < 1 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(value)


def tell(text: str, end: str = "\n") -> None:
    """Shows progress, apart from the tables on stdout."""
    print(text, end=end, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- tables


def table(
    records: Sequence[Record], *, cell: Mapping[str, str], measured: Mapping[str, str]
) -> str:
    """Returns a Markdown table.

    Args:
        records: a line each.
        cell: columns that name a line, as format strings of a record by title.
        measured: columns that only a record of status "ok" has, likewise; the others
            show their status in the first of them. A format string that asks for what
            a record has not is left empty.
    """
    titles = [*cell, *measured]
    lines = [titles, ["--:"] * len(titles)]
    for record in records:
        line = [column.format(**record) for column in cell.values()]
        values = [_format(column, record) for column in measured.values()]
        if record["status"] != "ok":
            values = [record["status"], *[""] * (len(measured) - 1)]
        lines.append(line + values)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format(column: str, record: Record) -> str:
    try:
        return column.format(**record)
    except KeyError:
        return ""


# ---------------------------------------------------------------- the machine


def describe() -> tuple[dict[str, Any], dict[str, str]]:
    """Returns hardware and versions; in a process of its own jax's memory goes too."""
    # Imported late: the processes of the peers import this file and need no jax.
    from rankax.observe import environment

    versions = environment.versions()
    for package in ("optax", "torch", "fbgemm-gpu-cpu", "fuxictr"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return environment.hardware(), versions


def introduce(num_threads: int = 0) -> dict[str, Any]:
    """Prints machine and versions; returns both, as the JSON file begins.

    Args:
        num_threads: cores in use; 0 = all.
    """
    machine, versions = run_alone(describe)
    print(hardware_line(machine, num_threads or machine["cpu_cores"]))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    return {"hardware": machine, "versions": versions}


def hardware_line(machine: dict[str, Any], num_threads: int) -> str:
    """Returns processor, cores used, memory, accelerator and Python in a line."""
    parts = [
        machine["cpu"],
        f"{num_threads} of {machine['cpu_cores']} cores",
        f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        f"Python {platform.python_version()}",
    ]
    if machine["backend"] != "cpu":
        parts.insert(3, machine["device_kind"])
    return ", ".join(parts)
