"""Works through the runs of a sweep, alone or beside other drivers on the same folder."""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import threading
from typing import IO, Any, Protocol

from experiments import commit
from experiments.results import Results, Row
from rankax.config.base import ConfigError
from rankax.observe import environment as observed

ROOT = pathlib.Path(__file__).parents[1]
_POLL_SECONDS = 2.0  # between looks at what other workers and drivers do


class Run(Protocol):
    """One process, and the rows that its finished folder gives."""

    @property
    def name(self) -> str:
        """Its folder below that of all runs."""
        ...

    @property
    def kind(self) -> str:
        """Tells it from others that go on in the same folder."""
        ...

    @property
    def like(self) -> tuple[Any, ...]:
        """That of `Columns.like` in its rows: which runs take as long as it does."""
        ...

    @property
    def seconds(self) -> float:
        """How long it takes, as long as there is no row like it."""
        ...

    def key(self) -> tuple[Any, ...]:
        """That of `Columns.key` in its rows."""
        ...

    def arguments(self, runs: str) -> list[str]:
        """Returns those of `python`."""
        ...

    def is_finished(self, folder: pathlib.Path) -> bool:
        """Returns whether its folder holds what its rows need."""
        ...

    def rows(self, folder: pathlib.Path) -> list[Row]:
        """Returns the rows of its finished folder."""
        ...

    def told(self, row: Row) -> str:
        """Says in a few words what its last row says."""
        ...

    def lost(self, error: str) -> list[Row]:
        """Returns the rows of a run whose loss was not finite; [] = it has failed."""
        ...


@dataclasses.dataclass(frozen=True)
class Todo:
    """What a group consists of.

    Attributes:
        runs: those that are known.
        waiting: as many as will be known once those are finished.
    """

    runs: Sequence[Run]
    waiting: Sequence[Run] = ()


class Group(Protocol):
    """Runs that belong together."""

    @property
    def name(self) -> str:
        """The folder that holds the folders of its runs."""
        ...

    @property
    def data(self) -> str:
        """What names its data in the first of `Columns.data`."""
        ...

    def todo(self, rows: dict[tuple[Any, ...], Row]) -> Todo:
        """Returns its runs, by what the rows, which come by key, have decided."""
        ...

    def check(self) -> str:
        """Sets up its runs without training; returns the fingerprint of the data.

        Raises:
            ConfigError: one that cannot run.
        """
        ...


class Driver:
    """Hands out runs to its workers, and shares them with other drivers by locks."""

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        runs: pathlib.Path,
        results: Results,
        jobs: int = 1,
        threads_per_run: int = 0,
        retry: bool = False,
    ):
        """Keeps what the command line says; --retry forgets failures."""
        self.groups = list(groups)
        self.runs = runs.absolute()
        self.results = results
        self.jobs = jobs
        self.threads_per_run = threads_per_run
        self._stop = threading.Event()
        self._children: set[subprocess.Popen] = set()
        self._mutex = threading.Lock()
        self._errors: list[BaseException] = []  # that ended a worker
        if retry:
            for group in groups:
                for path in (self.runs / group.name).glob("*.failed"):
                    path.unlink()

    def run(self) -> bool:
        """Works until nothing is left that can be run; returns whether nothing failed.

        Raises:
            ValueError: a set has rows of other data.
        """
        refused = self._check()
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
        if self._errors:
            raise self._errors[0]
        failed = self.states()["failed"]
        for run in failed:
            print(f"failed: {run.name}: {self._failure(run).read_text()}", flush=True)
        return not failed and not refused

    def _check(self) -> bool:
        """Leaves out models with a trial that cannot run; returns whether there are."""
        groups = list(self.groups)
        for group in groups:
            if not self.states([group])["open"]:
                continue
            try:
                fingerprint = group.check()
            except ConfigError as error:
                print(f"skipped: {error}", file=sys.stderr, flush=True)
                self.groups.remove(group)
            else:
                self.results.check_same_data(group.data, fingerprint)
        return len(self.groups) < len(groups)

    def states(self, groups: Sequence[Group] | None = None) -> dict[str, list[Run]]:
        """Returns runs by state: done, failed, open, and waiting (not yet known)."""
        rows = self.results.by_key()
        states: dict[str, list[Run]] = {
            state: [] for state in ("done", "failed", "open", "waiting")
        }
        for group in self.groups if groups is None else groups:
            todo = group.todo(rows)
            for run in todo.runs:
                states[self._state(run, rows)].append(run)
            states["waiting"] += todo.waiting
        return states

    def _state(self, run: Run, rows: dict[tuple[Any, ...], Row]) -> str:
        if run.key() in rows:
            return "done"
        return "failed" if self._failure(run).exists() else "open"

    def _failure(self, run: Run) -> pathlib.Path:
        # Beside the folder: rankax takes no folder that holds the files of others.
        return self.runs / f"{run.name}.{run.kind}.failed"

    def _work(self, number: int) -> None:
        """Takes run after run; an error stops the other workers too."""
        try:
            environment = _pin(number, self.threads_per_run)
            while not self._stop.is_set():
                taken = self._take()
                if taken is None:
                    return
                run, lock = taken
                with lock:
                    if run is None:  # others are at work, and may leave work
                        self._stop.wait(_POLL_SECONDS)
                    else:
                        self._one(run, lock, environment)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

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

    def _one(self, run: Run, lock: IO[str], environment: dict[str, str]) -> None:
        """Does one run."""
        folder = self.runs / run.name
        if not run.is_finished(folder):
            self._tell(f"start {run.name}")
            arguments = run.arguments(str(self.runs))
            code, text = self._process(arguments, folder, lock, environment)
            if self._stop.is_set():
                return
            if code or not run.is_finished(folder):
                self._fail(run, f"exit status {code}: {_error(text)}")
                return
        rows = run.rows(folder)
        self.results.append(rows)
        self._tell(f"finished {run.name}: {run.told(rows[-1])}")

    def _fail(self, run: Run, error: str) -> None:
        """Records an error; some runs whose loss was not finite have lost for good."""
        lost = run.lost(error) if "NonFiniteError" in error else []
        if lost:
            self.results.append(lost)
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
                    env=environment | {observed.COMMIT: commit.now()},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,  # Ctrl-C reaches the driver, which ends its runs
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
        """Yields the time that each will take, by the rows of runs like it."""
        known = self.results.seconds()
        for run in runs:
            usual = statistics.mean(known.get(run.like, [run.seconds]))
            yield usual if run.seconds else 0.0

    def plan(self) -> str:
        """Returns a line per group: what is done, what is left, how long."""
        lines, total = [], 0.0
        for group in self.groups:
            counts = self.states([group])
            left = counts["open"] + counts["waiting"]
            seconds = sum(self.seconds(left))
            total += seconds
            lines.append(
                f"{group.name:34} {len(counts['done'])} done "
                f"{len(counts['failed'])} failed {len(left)} left  {_duration(seconds)}"
            )
        jobs = f", {_duration(total / self.jobs)} by {self.jobs} jobs"
        lines.append(f"{'all':34} {_duration(total)}{jobs if self.jobs > 1 else ''}")
        return "\n".join(lines)


def _pin(number: int, num_threads: int) -> dict[str, str]:
    """Binds the calling thread to cores of its own; returns its runs' environment.

    A child inherits the cores of the thread that starts it, and XLA makes as many
    threads as it may use cores. Several drivers on one machine share the cores that
    each may use from its first on: start them under `taskset` to part them.
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
