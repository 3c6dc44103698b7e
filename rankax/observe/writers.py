"""Metrics over time: `metrics.jsonl` and TensorBoard events in the run folder.

Each line of `metrics.jsonl` is one JSON object: step, split, epoch, then flat numbers.
A number that is not finite is written as null, so that every line is valid JSON.
A run folder on a store gets the files as a whole, when `send` is called.
"""

from collections.abc import Mapping
import json
import math
import time
from typing import Any

from etils import epath
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter

# Made when the package is loaded, which the checker does not see.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore

from rankax.data.errors import DataError
from rankax.observe import stores

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends to a run's `metrics.jsonl` and, if asked, to its TensorBoard events."""

    def __init__(
        self,
        workdir: epath.PathLike,
        *,
        tensorboard: bool,
        resume_step: int = 0,
        quiet: bool = False,
    ) -> None:
        """Opens the files; what an interrupted run wrote after its checkpoint goes.

        Args:
            workdir: existing run folder.
            tensorboard: whether to write TensorBoard events as well.
            resume_step: step of the checkpoint that the run goes on from. Lines of
                later steps, and the test split's, are dropped, because the run will
                write them again; 0 = from the start, which drops all.
            quiet: write nothing at all, as every process but the first should.
        """
        self._lines = self._events = self._outbox = None
        if quiet:
            return
        folder = stores.locate(workdir)
        self._outbox = stores.Outbox(folder)
        path = self._outbox.path / FILE_NAME
        kept = []
        if resume_step and stores.is_there(folder / FILE_NAME):
            kept = [
                line
                for line in read_metrics(folder)
                if line["step"] <= resume_step and line["split"] != "test"
            ]
        # A kill between truncation and writing would lose the history: replace at once.
        text = "".join(json.dumps(line) + "\n" for line in kept)
        stores.write_text(epath.Path(path), text)
        self._lines = path.open("a")
        if tensorboard:
            # Names hold whole seconds: with nanoseconds, too, a quick restart does not
            # write over the file before it, and sorts after it, as TensorBoard reads.
            # Not tensorboardX's SummaryWriter: its thread dies of a full disk, and the
            # run would wait for it.
            suffix = f".{time.time_ns()}.from{resume_step}"
            self._events = EventsWriter(str(self._outbox.path / "events"), suffix)
            start = SessionLog(status=SessionLog.START)
            first_step = resume_step + 1 if resume_step else 0
            self._add_event(step=first_step, session_log=start)

    def write(
        self, *, step: int, split: str, epoch: float, values: Mapping[str, float]
    ) -> None:
        """Appends one line and flushes it.

        Args:
            step: updates done so far.
            split: "train", "valid", "test" or "tables".
            epoch: passes over the training split so far, with its fraction.
            values: name -> number; nan and infinity become null.
        """
        if self._lines is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        line = {"step": int(step), "split": split, "epoch": float(epoch), **finite}
        self._lines.write(json.dumps(line, allow_nan=False) + "\n")
        self._lines.flush()
        if self._events is not None:
            for name, value in finite.items():
                if value is not None:
                    scalar = summary.scalar(f"{split}/{name}", value)
                    self._add_event(step=int(step), summary=scalar)
            self._events.flush()

    def _add_event(self, **values: Any) -> None:
        assert self._events is not None
        self._events.write_event(Event(wall_time=time.time(), **values))

    def send(self) -> None:
        """Brings a run folder on a store up to date; one on a disk is so already."""
        if self._outbox is not None:
            self._outbox.send()

    def close(self) -> None:
        """Closes the files."""
        if self._lines is not None:
            self._lines.close()
        if self._events is not None:
            self._events.close()
        if self._outbox is not None:
            self._outbox.send()
            self._outbox.close()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """Returns the lines of a run's `metrics.jsonl`, without a torn last one.

    Raises:
        FileNotFoundError: the run wrote none.
        DataError: a line before the last is not one of ours.
    """
    path = stores.locate(workdir) / FILE_NAME
    try:
        texts = stores.read_text(path).split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged ({error}); remove it") from error
    lines = []
    # After the last line end is nothing, or what a kill or a full disk left of a line.
    for number, text in enumerate(texts[:-1], start=1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise _wrong_line(path, number, "is not JSON", text) from error
        if not (
            isinstance(line, dict)
            and type(line.get("step")) is int
            and isinstance(line.get("split"), str)
        ):
            raise _wrong_line(path, number, "has no step and split", text)
        lines.append(line)
    return lines


def _wrong_line(path: epath.Path, number: int, what: str, text: str) -> DataError:
    return DataError(f"{path}, line {number} {what}: {text!r:.80}; remove the line")
