"""Progress: a bar on a terminal, plain lines in a log.

    console = Console()
    train = console.track("train", total=num_steps, start=step)
    train.update(step, loss=0.41, examples_per_second=52_000, input_wait=0.01)
    console.message("valid  step 500  ctr/auc 0.7812")
    console.close()

A terminal shows a bar per track, which messages scroll past. Elsewhere (a file, a CI
log) a track prints a line every `seconds_between_lines`, however often it is updated.
"""

import sys
import time
from typing import TextIO

import rich.console
import rich.progress


class Console:
    """The one place that a program prints its progress to."""

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        seconds_between_lines: float = 10.0,
        quiet: bool = False,
    ) -> None:
        """Prints nothing yet.

        Args:
            stream: where to; None = standard output.
            seconds_between_lines: how often a log gets a line of each track.
            quiet: print nothing at all, as every process but the first should.
        """
        self.seconds_between_lines = seconds_between_lines
        self._out = rich.console.Console(
            file=stream or sys.stdout, quiet=quiet, highlight=False, soft_wrap=True
        )
        self._bars: rich.progress.Progress | None = None
        if self._out.is_terminal and not quiet:
            self._bars = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=20),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=self._out,
                transient=True,
                refresh_per_second=4,
            )

    def track(self, name: str, *, total: int, start: int = 0) -> "Track":
        """Starts following something that counts from `start` to `total`."""
        if self._bars is not None:
            self._bars.start()
        return Track(self, name, total=total, start=start)

    def message(self, text: str) -> None:
        """Prints a line that stays."""
        self._out.print(text, markup=False)

    def close(self) -> None:
        """Removes the bars; messages stay."""
        if self._bars is not None:
            self._bars.stop()

    def __enter__(self) -> "Console":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes, so that an error does not leave a bar behind."""
        self.close()


class Track:
    """One thing that goes on; made by `Console.track`."""

    def __init__(self, console: Console, name: str, *, total: int, start: int) -> None:
        """See `Console.track`."""
        self._console = console
        self._name = name
        self._total = total
        self._note = ""
        self._clock_start = (0.0, 0)  # time and step, set by the first update
        self._printed_at = time.monotonic()
        self._num_updates = 0
        self._bar = None
        if console._bars is not None:
            self._bar = console._bars.add_task(
                name, total=total, completed=start, text=f"{start:,}/{total:,}"
            )

    def note(self, text: str) -> None:
        """Sets what stands at the end of the line, such as the last validation."""
        self._note = text

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        examples_per_second: float | None = None,
        input_wait: float | None = None,
    ) -> None:
        """Shows how far it is. Numbers left out are not shown.

        Args:
            step: what has been done of `total`, counted from 0.
            loss: mean training loss since the last update.
            examples_per_second: throughput since the last update.
            input_wait: share of the time spent waiting for input, 0 to 1.
        """
        now = time.monotonic()
        # The first update ends a stretch with compilation in it: no measure of speed.
        if not self._num_updates:
            self._clock_start = (now, step)
        self._num_updates += 1
        parts = [f"{step:,}/{self._total:,}"]
        if loss is not None:
            parts.append(f"loss {loss:.4f}")
        if examples_per_second is not None:
            parts.append(f"{examples_per_second:,.0f} examples/s")
        if input_wait is not None:
            parts.append(f"input wait {input_wait:.1%}")
        since, first = self._clock_start
        if step > first and step < self._total:
            remaining = (self._total - step) * (now - since) / (step - first)
            parts.append(f"ETA {clock(remaining)}")
        if self._note:
            parts.append(self._note)
        if self._bar is not None and self._console._bars is not None:
            text = "  ".join(parts)
            self._console._bars.update(self._bar, completed=step, text=text)
            return
        # A log wants the first sign of life and the end of a training, and otherwise
        # a line now and then; an evaluation that is over soon says nothing.
        notable = loss is not None and (self._num_updates == 1 or step == self._total)
        if notable or now - self._printed_at >= self._console.seconds_between_lines:
            self._printed_at = now
            self._console.message("  ".join([self._name, *parts]))

    def close(self) -> None:
        """Removes its bar."""
        if self._bar is not None and self._console._bars is not None:
            self._console._bars.remove_task(self._bar)
            self._bar = None


def amount(number: float) -> str:
    """Returns a number in three digits, as in "1.23 M"."""
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * limit:  # which three digits round up
            return f"{number / limit:.3g} {unit}"
    return f"{number:.3g}"


def clock(seconds: float) -> str:
    """Returns a duration as "m:ss" or "h:mm:ss"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
