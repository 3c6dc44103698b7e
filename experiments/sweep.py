r"""Runs every model on every set: four trials, validation chooses, three seeds, one test.

python -m experiments.sweep --sets=frappe_x1,kuairand --models=dnn,dcnv2 --runs=runs/sweep
python -m experiments.sweep --plan               # what is done, what is left, how long
python -m experiments.sweep --table=frappe_x1    # Markdown, from results.jsonl

Trials (`experiments/spaces.py`) have seed 0 and leave the test split unread. The one
that validation likes best goes on in its folder and reads it; seeds 1 and 2 follow.
Every run is a process of its own, `python -m rankax.main ...`, and its row in
`experiments/results.jsonl` holds that command. Stop and start the driver as you like, or
start several on the same folder: what is finished is skipped, what was interrupted goes
on from its checkpoint, and a run is one driver's at a time. What failed stays failed
until --retry; a model's seeds wait until all its trials are finished.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
from typing import IO, Any

from experiments import results
from experiments.protocol import ROOT, RUNS, Group, Run
from experiments.results import Row
from experiments.spaces import SETS
from rankax.config.base import ConfigError, suggest

RESULTS = ROOT / "experiments/results.jsonl"
_POLL_SECONDS = 2.0  # between looks at what other workers and drivers do


def groups_of(sets: Sequence[str], models: Sequence[str]) -> list[Group]:
    """Returns what can be run; what cannot is told and left out."""
    groups = []
    for name in sets:
        for model in models or tuple(SETS[name].trials):
            try:
                groups.append(Group(SETS[name], model))
            except ConfigError as error:
                print(f"skipped: {name}/{model}: {error}", file=sys.stderr, flush=True)
    return groups


# ---------------------------------------------------------------- driver


class Driver:
    """Hands out runs to its workers, and shares them with other drivers by locks."""

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        runs: pathlib.Path,
        datasets: str = "",
        file: pathlib.Path = RESULTS,
        jobs: int = 1,
        threads_per_run: int = 0,
        retry: bool = False,
    ):
        """Keeps what the command line says; --retry forgets failures."""
        self.groups = groups
        self.runs = runs.absolute()
        self.datasets = datasets and os.path.abspath(datasets)
        self.file = file
        self.jobs = jobs
        self.threads_per_run = threads_per_run
        self._stop = threading.Event()
        self._children: set[subprocess.Popen] = set()
        self._mutex = threading.Lock()
        if retry:
            for group in groups:
                for path in (self.runs / group.set.name / group.model).glob("*.failed"):
                    path.unlink()

    def run(self) -> None:
        """Works until nothing is left that can be run."""
        self._tell("start")
        workers = [
            threading.Thread(target=self._work, args=(number,))
            for number in range(self.jobs)
        ]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                worker.join()
        finally:  # Ctrl-C, SIGTERM
            self._stop.set()
            with self._mutex:
                for child in self._children:
                    child.terminate()
            for worker in workers:
                worker.join()
        for run in self.states()["failed"]:
            print(f"failed: {run.name}: {self._failure(run).read_text()}", flush=True)

    def states(self) -> dict[str, list[Run]]:
        """Returns runs by state: done, failed, open, and waiting (seeds to be)."""
        rows = {results.key(row): row for row in results.read(self.file)}
        states: dict[str, list[Run]] = {
            state: [] for state in ("done", "failed", "open", "waiting")
        }
        for group in self.groups:
            for run in group.trials:
                states[self._state(run, rows)].append(run)
            chosen = group.chosen(rows)
            for run in group.seeds(chosen["trial"] if chosen else 1):
                state = self._state(run, rows) if chosen else "waiting"
                states[state].append(run)
        return states

    def _state(self, run: Run, rows: dict[tuple[Any, ...], Row]) -> str:
        if run.key() in rows:
            return "done"
        return "failed" if self._failure(run).exists() else "open"

    def _failure(self, run: Run) -> pathlib.Path:
        # Beside the folder: rankax takes no folder that holds the files of others.
        return self.runs / f"{run.name}.{run.kind}.failed"

    def _work(self, number: int) -> None:
        """Takes run after run."""
        environment = _pin(number, self.threads_per_run)
        while not self._stop.is_set():
            taken = self._take()
            if taken is None:
                return
            run, lock = taken
            with lock:
                if run is None:  # others are at work, and may leave work
                    self._stop.wait(_POLL_SECONDS)
                elif not self._one(run, lock, environment):
                    return

    def _take(self) -> tuple[Run | None, Any] | None:
        """Returns a run and its lock, no run yet, or None when nothing will be left."""
        runs = self.states()["open"]
        for run in runs:
            path = self.runs / f"{run.name}.lock"
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("w")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.close()
                continue
            if run in self.states()["open"]:  # nobody finished it in the meantime
                return run, lock
            lock.close()
        return (None, contextlib.nullcontext()) if runs else None

    def _one(self, run: Run, lock: IO[str], environment: dict[str, str]) -> bool:
        """Does one run; returns whether to go on."""
        folder = self.runs / run.name
        if not run.is_finished(folder):
            self._tell(f"start {run.name}")
            arguments = run.arguments(str(self.runs), self.datasets)
            code, text = self._process(arguments, folder, lock, environment)
            if self._stop.is_set():
                return False
            if code or not run.is_finished(folder):
                self._fail(run, folder, f"exit status {code}: {_error(text)}")
                return True
        row = run.row(folder)
        results.append(self.file, row)
        best = f"valid {row['metric']} {row['value']}"
        self._tell(f"finished {run.name}: {best} ({row['wall_seconds']:.0f} s)")
        return True

    def _fail(self, run: Run, folder: pathlib.Path, error: str) -> None:
        """Records an error; a trial whose loss was not finite has lost, for good."""
        if run.kind == "trial" and "NonFiniteError" in error:
            results.append(self.file, run.row(folder, lost=error))
        else:
            self._failure(run).write_text(f"{error}\n")
        self._tell(f"FAILED {run.name}: {error}")

    def _process(
        self,
        arguments: Sequence[str],
        folder: pathlib.Path,
        lock: IO[str],
        environment: dict[str, str],
    ) -> tuple[int, str]:
        """Runs `python` with these arguments; returns exit status and output."""
        path = folder.with_name(folder.name + ".log")
        with path.open("ab") as log:
            start = log.tell()
            with self._mutex:
                if self._stop.is_set():
                    return -signal.SIGTERM, ""
                child = subprocess.Popen(
                    [sys.executable, *arguments],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # A run that outlives a killed driver keeps its folder locked.
                    pass_fds=(lock.fileno(),),
                )
                self._children.add(child)
            code = child.wait()
            with self._mutex:
                self._children.discard(child)
        return code, path.read_bytes()[start:].decode(errors="replace")

    # ------------------------------------------------ what it tells

    def _tell(self, event: str) -> None:
        states = self.states()
        left = states["open"] + states["waiting"]
        with self._mutex:
            running = len(self._children)
            print(
                f"{len(states['done'])} done, {running} running, {len(left)} left "
                f"(about {_duration(sum(self.seconds(left)) / self.jobs)}), "
                f"{len(states['failed'])} failed; {event}",
                flush=True,
            )

    def seconds(self, runs: Sequence[Run]) -> Iterator[float]:
        """Yields the time that each will take, by the rows of its model and set."""
        known: dict[tuple[str, str], list[float]] = {}
        for row in results.read(self.file):
            if "wall_seconds" in row:
                name = row["set"], row["model"]
                known.setdefault(name, []).append(row["wall_seconds"])
        for run in runs:
            name = run.set.name, run.model
            is_trained = run.kind == "seed" and run.seed == 0
            usual = statistics.mean(known.get(name, [run.set.seconds]))
            yield 0.0 if is_trained else usual

    def plan(self) -> str:
        """Returns a line per model: what is done, what is left, how long."""
        states = self.states()
        lines, total = [], 0.0
        for group in self.groups:
            name = group.set.name, group.model
            counts = {
                state: [run for run in runs if (run.set.name, run.model) == name]
                for state, runs in states.items()
            }
            left = counts["open"] + counts["waiting"]
            seconds = sum(self.seconds(left))
            total += seconds
            lines.append(
                f"{'/'.join(name):34} {len(counts['done'])} done "
                f"{len(counts['failed'])} failed {len(left)} left  {_duration(seconds)}"
            )
        jobs = f", {_duration(total / self.jobs)} by {self.jobs} jobs"
        lines.append(f"{'all':34} {_duration(total)}{jobs if self.jobs > 1 else ''}")
        return "\n".join(lines)


def _pin(number: int, num_threads: int) -> dict[str, str]:
    """Binds the calling thread to cores of its own; returns its runs' environment.

    A child inherits the cores of the thread that starts it, and XLA makes as many
    threads as it may use cores.
    """
    environment = dict(os.environ)
    if num_threads:
        environment["OMP_NUM_THREADS"] = str(num_threads)
        if hasattr(os, "sched_setaffinity"):  # Linux
            cores = sorted(os.sched_getaffinity(0))
            first = number * num_threads % len(cores)
            os.sched_setaffinity(0, (cores * 2)[first : first + num_threads])
    return environment


def _error(output: str) -> str:
    """Returns the last error that the output of a run tells, else its last line."""
    lines = output.strip().splitlines() or ["no output"]
    for number in reversed(range(len(lines))):
        if re.match(r"[\w.]+(Error|Exception)\b", lines[number]):
            return "\n".join(lines[number:])
    return lines[-1]


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


def table(name: str, file: pathlib.Path = RESULTS) -> str:
    """Returns the Markdown table of a set's models that have all their trials."""
    rows = {results.key(row): row for row in results.read(file)}
    found = []
    for group in groups_of([name], ()):
        trial = group.chosen(rows)
        if trial:
            seeds = [rows.get(run.key()) for run in group.seeds(trial["trial"])]
            found.append((group.model, trial, [row for row in seeds if row]))
    return results.table(found, dict(SETS[name].published))


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", default=",".join(SETS), help="default: all")
    parser.add_argument("--models", default="", help="default: all of each set")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path(RUNS))
    parser.add_argument(
        "--datasets", default="", help="folder of the data sets, if not datasets"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--threads-per-run", type=int, default=0, help="cores of one run; 0 = all"
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--plan", action="store_true", help="tell, run nothing")
    parser.add_argument("--table", default="", metavar="SET", help="print its table")
    flags = parser.parse_args(arguments)
    sets = flags.sets.split(",")
    for name in [*sets, *filter(None, [flags.table])]:
        if name not in SETS:
            parser.error(f"no set {name!r}; {suggest(name, tuple(SETS))}")
    if flags.table:
        print(table(flags.table, flags.results))
        return
    driver = Driver(
        groups_of(sets, [model for model in flags.models.split(",") if model]),
        runs=flags.runs,
        datasets=flags.datasets,
        file=flags.results,
        jobs=flags.jobs,
        threads_per_run=flags.threads_per_run,
        retry=flags.retry and not flags.plan,
    )
    if flags.plan:
        print(driver.plan())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    driver.run()


if __name__ == "__main__":
    main()
