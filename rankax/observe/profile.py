"""A trace of some steps of a run, for TensorBoard's profiler or Perfetto.

    --config.observe.profile_steps=100:110      the ten steps after step 100

The files lie in `profile/` of the run folder, one trace for every time that a process
passes through the range, each process of a run in a folder of its own. A run that is
continued inside of the range traces what is left of it; after it, nothing.
"""

from collections.abc import Iterator
import contextlib
import pathlib
import tempfile
from typing import Any

from etils import epath
import jax

from rankax.config.experiment import step_range
from rankax.observe import stores

FOLDER = "profile"
_STEP = "train"  # the name of a step in the trace; its number is that of the log


class StepTrace:
    """Starts and stops the profiler of jax as the steps go by."""

    def __init__(self, folder: epath.Path, steps: str):
        """Starts nothing.

        Args:
            folder: of the run, on a disk or a store.
            steps: `observe.profile_steps`, "" = none.
        """
        self._range = step_range(steps)
        self._folder = folder / FOLDER / f"process_{jax.process_index()}"
        self._local: tempfile.TemporaryDirectory[str] | None = None

    @contextlib.contextmanager
    def step(self, done: int, state: Any) -> Iterator[None]:
        """Goes around step `done` + 1.

        Args:
            done: steps done so far.
            state: what they made; waited for before the trace starts, so that steps
                before the range are not in it.
        """
        first, last = self._range
        if not first <= done < last:
            yield
            return
        if self._local is None:
            jax.block_until_ready(state)
            self._start()
        with jax.profiler.StepTraceAnnotation(_STEP, step_num=done + 1):
            yield

    def stop_after(self, done: int, results: Any) -> None:
        """Ends the trace if step `done` is the last of the range.

        Args:
            done: steps done so far.
            results: of the last one; waited for, so that all of it is in the trace.
        """
        if self._local is not None and done >= self._range[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes the files of a trace that is under way, however the run ends."""
        if self._local is None:
            return
        local, self._local = self._local, None
        with local as name:
            jax.profiler.stop_trace()
            root = pathlib.Path(name)
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    place = self._folder / path.relative_to(root).as_posix()
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with stores.explained(place, "cannot be written"):
                        place.write_bytes(path.read_bytes())

    def _start(self) -> None:
        self._local = tempfile.TemporaryDirectory(prefix="rankax-profile-")
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0  # calls of Python would hide the steps
        jax.profiler.start_trace(self._local.name, profiler_options=options)
