"""Rows of `runs.jsonl`, one a run and checkpoint, and which of them enter a fit."""

from collections.abc import Iterable, Sequence
import dataclasses
import math
import pathlib
from typing import Any

from experiments.results import Results, Row

FILE_NAME = "runs.jsonl"

# As they are fitted: low is good in all of them.
METRICS = ("logloss", "ne", "1-auc", "1-gauc")
TABLE_AXES = {"rows": "table_rows", "dim": "table_dim"}

LEARNING_RATE = "run of the learning-rate search"
DIVERGED = "diverged"
INCOMPLETE = "incomplete"
DATA_LIMITED = "data-limited"
HELD_OUT = "held out"
NO_VALUE = "no value of the metric"
NO_AXIS = "no value of the axis"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Rows that a fit uses, those that it predicts, and why it leaves out others."""

    used: Sequence[Row]
    held_out: Sequence[Row]
    excluded: Sequence[tuple[Row, str]]


def read(folder: pathlib.Path) -> list[Row]:
    """Returns the rows of `runs.jsonl` in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {FILE_NAME} in {folder}; train a study and collect it with "
            "`python -m scaling.collect` first, or name its folder"
        )
    return Results(path).read()


def metric_value(row: Row, metric: str) -> float | None:
    """Returns a metric of a row as it is fitted, None where it has none.

    Args:
        row: of `runs.jsonl`.
        metric: one of `METRICS`; "1-auc" is 1 - row["auc"].
    """
    name = metric.removeprefix("1-")
    value = row[name]
    if value is None or not math.isfinite(value):
        return None
    return 1 - value if name != metric else value


def size_key(row: Row) -> tuple[str, str, str]:
    """Returns (model, ladder, size) of a row."""
    return row["model"], row["ladder"], row["size_name"]


def flaw(row: Row) -> str | None:
    """Returns why a run may enter no fit at all, None if it may."""
    if row["lr_stage"]:
        return LEARNING_RATE
    if row["diverged"]:
        return DIVERGED
    if not row["complete"]:
        return INCOMPLETE
    return None


def final_split(rows: Iterable[Row]) -> str:
    """Returns the split that final rows are read on: "test" where any is."""
    return "test" if any(r["final"] and r["split"] == "test" for r in rows) else "valid"


def curve_split(rows: Iterable[Row]) -> str:
    """Returns the split with the most checkpoints."""
    counts = {"valid": 0, "test": 0}
    for row in rows:
        counts[row["split"]] += 1
    return max(counts, key=lambda name: counts[name])


def last_rows(rows: Iterable[Row], split: str) -> list[Row]:
    """Returns one row a run: the final one of the split, or else its last of any."""
    best: dict[str, tuple[Any, Row]] = {}
    for row in rows:
        rank = (row["final"] and row["split"] == split, row["samples_seen"] or 0)
        found = best.get(row["run_id"])
        if found is None or rank > found[0]:
            best[row["run_id"]] = (rank, row)
    return [row for _, row in best.values()]


def by_size(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Returns size name -> its rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["size_name"], []).append(row)
    return found


def select_final(rows: Sequence[Row], *, axis: str, metric: str) -> Selection:
    """Returns the last checkpoints of the runs of one model and ladder for a fit.

    Args:
        rows: of one (model, ladder).
        axis: name of a number in the rows.
        metric: one of `METRICS`.
    """
    return _select(last_rows(rows, final_split(rows)), (axis,), metric)


def select_checkpoints(rows: Sequence[Row], *, metric: str) -> Selection:
    """Returns all checkpoints of one (model, ladder) for a joint fit of size and data.

    Runs that are short of data stay: the law has a term for it.
    """
    split = curve_split(rows)
    # A last checkpoint may stand there twice, once as the final reading.
    of_split = {
        (row["run_id"], row["samples_seen"]): row
        for row in rows
        if row["split"] == split
    }
    axes = ("n_dense_active", "samples_seen")
    return _select(list(of_split.values()), axes, metric, keep_data_limited=True)


def _select(
    rows: Sequence[Row],
    axes: Sequence[str],
    metric: str,
    *,
    keep_data_limited: bool = False,
) -> Selection:
    used: list[Row] = []
    held_out: list[Row] = []
    excluded: list[tuple[Row, str]] = []
    for row in rows:
        reason = flaw(row)
        if reason is None and metric_value(row, metric) is None:
            reason = NO_VALUE
        if reason is None and not all((row[axis] or 0) > 0 for axis in axes):
            reason = NO_AXIS
        if reason is None and row["held_out"]:
            held_out.append(row)
            reason = HELD_OUT
        if reason is None and row["data_limited"] and not keep_data_limited:
            reason = DATA_LIMITED
        if reason is None:
            used.append(row)
        else:
            excluded.append((row, reason))
    return Selection(used=used, held_out=held_out, excluded=excluded)
