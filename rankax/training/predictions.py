"""`predictions.parquet`: what a run said of every test example, in the split's order.

Columns: `<task>/label`, `<task>/probability` and, where the data set knows it,
`<task>/true_probability` of each task; `weight`; `group`, the card's group (its
integers, or 64-bit ids of its texts), where it names one. The order of the rows follows
from the data set, `data.lanes` and the evaluation's batch size.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from typing import IO

from etils import epath
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rankax.metrics import binary
from rankax.observe import stores

FILE_NAME = "predictions.parquet"
HOW_TO_WRITE = (
    "(the run's command with --mode=evaluate --config.eval.save_predictions=True)"
)


class PredictionsError(ValueError):
    """Predictions that cannot be used; the message says why and what to do."""


class PredictionWriter:
    """Streams the real examples of evaluated batches to Parquet."""

    def __init__(self, path: epath.PathLike, tasks: Sequence[str]) -> None:
        """Writes nothing yet; the file appears when it is closed."""
        path = stores.locate(path)
        self._outbox = stores.Outbox(path.parent)
        self._path = self._outbox.path / path.name
        self._draft = self._path.with_name(path.name + stores.DRAFT)
        self._tasks = tasks
        self._file: pq.ParquetWriter | None = None

    def write(self, logits: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Adds a batch: logits [B, T] and the host's arrays of `rankax.data.schema`."""
        real = arrays["weight"] > 0
        columns = {}
        for t, task in enumerate(self._tasks):
            columns[f"{task}/label"] = arrays["labels"][real, t].astype(np.int8)
            columns[f"{task}/probability"] = binary.probability(logits[real, t])
            if "true_probability" in arrays:
                true = arrays["true_probability"][real, t]
                columns[f"{task}/true_probability"] = true
        for name in ("weight", "group"):
            if name in arrays:
                columns[name] = arrays[name][real]
        table = pa.table(columns)
        file = self._file or pq.ParquetWriter(self._draft, table.schema)
        file.write_table(table)
        self._file = file

    def close(self) -> None:
        """Ends the file and gives it its name."""
        if self._file is not None:
            self._file.close()
            self._draft.replace(self._path)
            self._outbox.send()
        self._outbox.close()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Predictions of one run for the n examples of a split.

    Attributes:
        label: task -> [n] int8.
        probability: task -> [n] float32.
        weight: [n] float32, positive.
        group: [n] int64; None if the data set has no groups.
    """

    label: dict[str, np.ndarray]
    probability: dict[str, np.ndarray]
    weight: np.ndarray
    group: np.ndarray | None


def tasks_of(folder: epath.PathLike) -> tuple[str, ...]:
    """Returns the tasks that a run predicted.

    Raises:
        PredictionsError: a damaged file.
    """
    names = _columns(folder)
    return tuple(n.removesuffix("/label") for n in names if n.endswith("/label"))


def read(folder: epath.PathLike, tasks: Sequence[str]) -> Predictions:
    """Reads the predictions of a run for some of its tasks.

    Raises:
        PredictionsError: a damaged file, or one without these tasks.
    """
    names = [f"{task}/{name}" for task in tasks for name in ("label", "probability")]
    names.append("weight")
    known = _columns(folder)
    missing = [name for name in names if name not in known]
    if missing:
        raise PredictionsError(
            f"{folder}/{FILE_NAME} has no column {missing[0]!r}, only {known}; compare "
            "runs of the same tasks"
        )
    has_group = "group" in known
    with _opened(folder) as file:
        table = pq.read_table(file, columns=names + ["group"] * has_group)
    return Predictions(
        label={task: table[f"{task}/label"].to_numpy() for task in tasks},
        probability={task: table[f"{task}/probability"].to_numpy() for task in tasks},
        weight=table["weight"].to_numpy(),
        group=table["group"].to_numpy() if has_group else None,
    )


def _columns(folder: epath.PathLike) -> list[str]:
    with _opened(folder) as file:
        return pq.read_schema(file).names


@contextlib.contextmanager
def _opened(folder: epath.PathLike) -> Iterator[IO[bytes]]:
    path = stores.locate(folder) / FILE_NAME
    try:
        with stores.explained(path, "cannot be read"), path.open("rb") as file:
            yield file
    except (OSError, pa.ArrowInvalid) as error:
        raise PredictionsError(
            f"{path} cannot be read ({error}); write it again {HOW_TO_WRITE}"
        ) from error


def check_aligned(
    left_folder: epath.PathLike,
    left: Predictions,
    right_folder: epath.PathLike,
    right: Predictions,
) -> None:
    """Checks that two runs predicted the same examples in the same order.

    Raises:
        PredictionsError: another number of examples, or labels, weights or groups that
            differ somewhere.
    """
    found = ""
    if len(left.weight) != len(right.weight):
        found = f"{len(left.weight):,} and {len(right.weight):,} examples"
    else:
        pairs = {f"{t}/label": (y, right.label[t]) for t, y in left.label.items()}
        pairs["weight"] = left.weight, right.weight
        if left.group is not None and right.group is not None:
            pairs["group"] = left.group, right.group
        for name, (one, other) in pairs.items():
            if not np.array_equal(one, other):
                row = int((one != other).argmax())
                found = f"column {name} differs from example {row:,} on"
                break
    if found:
        raise PredictionsError(
            f"{left_folder} and {right_folder} predict different test examples, or the "
            f"same in another order ({found}). The order follows from data.lanes and "
            "eval.batch_size (0: train.batch_size): give both runs the same ones and "
            f"write {FILE_NAME} again {HOW_TO_WRITE}; or compare over seeds alone, "
            "with --resample=seeds"
        )
