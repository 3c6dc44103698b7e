"""A study as figures and reports read it: its rows, its fits, its words."""

from collections.abc import Sequence
import dataclasses
import functools
import math
import pathlib
from typing import Any

import numpy as np

from scaling import fit as fit_lib
from scaling import rows as rows_lib
from scaling.rows import Row

AXIS_LABELS = {
    "n_dense_active": "active dense parameters",
    "n_dense_total": "all dense parameters",
    "flops_fwd_per_sample": "forward FLOPs an example",
    "c_train": "training FLOPs",
    "samples_seen": "examples seen",
    "table_rows": "rows of the table",
    "table_dim": "embedding dim",
    "n_dense_active,samples_seen": "active dense parameters and examples",
}
METRIC_LABELS = {
    "logloss": "log loss, nats",
    "ne": "normalized entropy",
    "1-auc": "1 - AUC",
    "1-gauc": "1 - GAUC",
    "auc gain": "AUC gain",
}
METRIC_WORDS = {
    "logloss": "log loss",
    "ne": "normalized entropy",
    "1-auc": "1 - AUC",
    "1-gauc": "1 - GAUC",
    "auc gain": "AUC gain",
}


@dataclasses.dataclass(frozen=True)
class Findings:
    """Rows and fits of a folder."""

    name: str
    rows: Sequence[Row]
    fits: dict[str, Any]

    @functools.cached_property
    def groups(self) -> dict[tuple[str, str], list[Row]]:
        """Rows of every (model, ladder), in the order of the file."""
        found: dict[tuple[str, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((row["model"], row["ladder"]), []).append(row)
        return found

    @functools.cached_property
    def dense(self) -> list[tuple[str, str]]:
        """(model, ladder) of ladders of networks, not of tables or data."""
        out = {*rows_lib.TABLE_AXES, "data"}
        return [key for key in self.groups if key[1] not in out]

    def label(self, key: tuple[str, str]) -> str:
        """Returns what to call a (model, ladder): the model, if that is enough."""
        model, ladder = key
        others = [other for other in self.dense if other[0] == model]
        return model if len(others) == 1 else f"{model}, {ladder}"

    def finals(self, key: tuple[str, str]) -> list[Row]:
        """Returns the last rows of sound runs of a (model, ladder)."""
        group = self.groups[key]
        split = rows_lib.final_split(group)
        rows = rows_lib.last_rows(group, split)
        return [r for r in rows if r["final"] and rows_lib.flaw(r) is None]

    def checkpoints(self, key: tuple[str, str]) -> list[Row]:
        """Returns all checkpoints of sound runs of a (model, ladder), on one split."""
        group = self.groups[key]
        split = rows_lib.curve_split(group)
        return [r for r in group if r["split"] == split and rows_lib.flaw(r) is None]

    def entry(self, key: tuple[str, str], axis: str, metric: str) -> dict[str, Any]:
        """Returns the fit of a ladder; {} where there is none, or where it failed."""
        model, ladder = key
        found = fit_lib.find(
            self.fits, model=model, ladder=ladder, axis=axis, metric=metric
        )
        return found if found and found["form"] else {}


def load(folder: pathlib.Path) -> Findings:
    """Returns the study in a folder of `runs.jsonl` and `fits.json`.

    Raises:
        FileNotFoundError: one of them is missing.
    """
    name = folder.resolve().name
    return Findings(name=name, rows=rows_lib.read(folder), fits=fit_lib.read(folder))


def means(rows: Sequence[Row], axis: str, metric: str) -> list[dict[str, Any]]:
    """Returns size, x, mean and spread of a metric of each size, ascending in x."""
    found = []
    for size, of_size in rows_lib.by_size(rows).items():
        values = [rows_lib.metric_value(row, metric) for row in of_size]
        known = [v for v in values if v is not None]
        if not known or not all(row[axis] for row in of_size):
            continue
        found.append(
            {
                "size_name": size,
                "x": float(np.mean([row[axis] for row in of_size])),
                "mean": float(np.mean(known)),
                "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "seeds": len(known),
                "held_out": any(row["held_out"] for row in of_size),
                "data_limited": any(row["data_limited"] for row in of_size),
            }
        )
    return sorted(found, key=lambda each: each["x"])


def decade_change(entry: dict[str, Any]) -> tuple[float, float, float] | None:
    """Returns the change of the metric per 10× of the axis with its 90 % interval."""
    line = entry.get("loglinear")
    if not line:
        return None
    slope = line["params"]["b"]
    return tuple(math.log(10) * slope[name] for name in ("value", "p5", "p95"))  # pyright: ignore
