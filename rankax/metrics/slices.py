"""Metrics of each value of some columns: where in the data a model is worse.

Everything is exact: the AUC by sorting, its 95 % interval from DeLong's variance
(`rankax.metrics.grouped`), normal and clipped to [0, 1]; the log loss against the
entropy of the slice's own base rate.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from rankax.metrics import binary, grouped

# Below these a slice is reported, but its AUC is too uncertain to rank it by.
MIN_EXAMPLES = 100
MIN_OF_CLASS = 10

_LEVEL = 0.95


class SliceMetrics:
    """Mergeable state of the slice metrics of all tasks.

    Memory: 4 + 5·T + 4·G bytes an example, T tasks and G slice columns.
    """

    def __init__(
        self, tasks: Sequence[str], columns: Mapping[str, Sequence[str]]
    ) -> None:
        """Starts without examples.

        Args:
            tasks: names of the T tasks.
            columns: name of each of the G columns -> names of its integers 0, 1, ...;
                without names, the integers stand for themselves.
        """
        self._tasks = tuple(tasks)
        self._columns = dict(columns)
        self._kept: list[tuple[np.ndarray, ...]] = []

    def update(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        weight: np.ndarray,
        slices: np.ndarray,
    ) -> None:
        """Adds one batch.

        Args:
            logits: [B, T] float32.
            labels: [B, T], 0 or 1.
            weight: [B], not negative; 0 = padding, which counts nowhere.
            slices: [B, G] integers.
        """
        real = np.asarray(weight) > 0
        part = (
            np.asarray(logits[real], np.float32),
            np.asarray(labels[real], np.int8),
            np.asarray(weight[real], np.float32),
            np.asarray(slices[real], np.int32),
        )
        self._kept.append(part)

    def merge(self, other: "SliceMetrics") -> None:
        """Adds the examples of another state of the same tasks and columns."""
        self._kept += other._kept

    def result(self) -> dict[str, list[dict[str, Any]]]:
        """Returns task -> a row per slice, JSON values; see `measure` for its numbers.

        A row opens with "slice" and "value", the names. The worst AUC comes first;
        slices below `MIN_EXAMPLES` or `MIN_OF_CLASS` of a class have "is_small" true
        and follow by falling size. What a slice does not define is nan.
        """
        rows = {task: [] for task in self._tasks}
        if not self._kept:
            return rows
        logits, labels, weight, slices = map(
            np.concatenate, zip(*self._kept, strict=True)
        )
        for t, task in enumerate(self._tasks):
            for g, (column, names) in enumerate(self._columns.items()):
                table = measure(slices[:, g], logits[:, t], labels[:, t], weight)
                keys, values = (
                    table.keys(),
                    (array.tolist() for array in table.values()),
                )
                for cells in zip(*values, strict=True):
                    row = dict(zip(keys, cells, strict=True))
                    value = row.pop("value")
                    name = names[value] if names else str(value)
                    rows[task].append({"slice": column, "value": name, **row})
            rows[task].sort(key=_order)
        return rows


def _order(row: Mapping[str, Any]) -> tuple[bool, float]:
    small = row["is_small"]
    return small, -row["num_examples"] if small else row["auc"]


def measure(
    value: np.ndarray, logits: np.ndarray, label: np.ndarray, weight: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns the metrics of every value of one column, each an array [values].

    Keys: value (rising), num_examples, positive_rate, auc, auc_low, auc_high, log_loss,
    normalized_entropy, calibration, is_small; nan where undefined.

    Args:
        value: [n] integers.
        logits: [n] float32, finite.
        label: [n], 0 or 1.
        weight: [n], positive.
    """
    groups = grouped.sort(value, binary.probability(logits), label, weight)
    place = np.searchsorted(groups.group, value)
    weight = weight.astype(np.float64)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=values, minlength=len(groups.group))

    mass, positive = total(weight), total(weight * label)
    loss = total(weight * binary.example_loss(logits, label)) / mass
    rate = positive / mass
    predicted = total(weight * special.expit(logits.astype(np.float64)))
    count, num_positive = total(np.ones(len(label))), total(label)
    area = groups.auc()
    half = special.ndtri((1 + _LEVEL) / 2) * np.sqrt(groups.auc_variance())
    rarer = np.minimum(num_positive, count - num_positive)
    return {
        "value": groups.group,
        "num_examples": count.astype(np.int64),
        "positive_rate": rate,
        "auc": area,
        "auc_low": np.clip(area - half, 0, 1),
        "auc_high": np.clip(area + half, 0, 1),
        "log_loss": loss,
        "normalized_entropy": grouped.ratio(
            loss, special.entr(rate) + special.entr(1 - rate)
        ),
        "calibration": grouped.ratio(predicted, positive),
        "is_small": (count < MIN_EXAMPLES) | (rarer < MIN_OF_CLASS),
    }


def worst(rows: Sequence[Mapping[str, Any]], auc: float) -> Mapping[str, Any] | None:
    """Returns the slice of least AUC whose interval lies below `auc`, if there is one.

    Args:
        rows: of one task, as `SliceMetrics.result` orders them.
        auc: of the whole split.
    """
    ranked = (row for row in rows if not row["is_small"])
    return next((row for row in ranked if row["auc_high"] < auc), None)
