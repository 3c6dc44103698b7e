"""All metrics of one task over one split, in one pass and mergeable."""

from collections.abc import Mapping, Sequence
import re

import numpy as np

from rankax.config.base import suggest
from rankax.metrics import auc, calibration, gauc, ranking
from rankax.metrics.auc import AucHistogram
from rankax.metrics.binary import BinarySums, log_loss_of_probability, probability

# Metrics that can choose between models, and whether more of them is better. K stands
# for any number.
_HIGHER_IS_BETTER = {
    "auc": True,
    "gauc": True,
    "hit_rate@K": True,
    "ndcg@K": True,
    "log_loss": False,
    "normalized_entropy": False,
}

MEAN = "mean"


def higher_is_better(metric: str) -> bool:
    """Returns the direction of "auc", "<task>/auc" or "<task>/ndcg@5".

    Raises:
        ValueError: not a metric that orders models.
    """
    name = re.sub(r"@[1-9]\d*$", "@K", metric.rpartition("/")[2])
    if name not in _HIGHER_IS_BETTER:
        raise ValueError(
            f"metric {metric!r} does not order models from worse to better; "
            f"{suggest(name, tuple(_HIGHER_IS_BETTER))}"
        )
    return _HIGHER_IS_BETTER[name]


def mean_over_tasks(
    metrics: Mapping[str, float], metric: str, tasks: Sequence[str]
) -> dict[str, float]:
    """Returns {"mean/<name>": plain mean of "<task>/<name>"}, if that is the metric.

    For any other metric it is empty, also for "mean/<name>" of a task called "mean".
    """
    task, _, name = metric.rpartition("/")
    if task != MEAN or MEAN in tasks:
        return {}
    return {metric: float(np.mean([metrics[f"{task}/{name}"] for task in tasks]))}


class TaskMetrics:
    """Mergeable state of every metric of one task.

    Memory is constant (8 MB, twice that with true probabilities), plus 17 bytes an
    example with `has_group` or 9 with `exact_auc`.
    """

    def __init__(
        self,
        *,
        exact_auc: bool,
        has_group: bool,
        has_true_probability: bool,
        top_k: int = 0,
    ) -> None:
        """Starts without examples.

        Args:
            exact_auc: keep all scores and sort them, instead of the histogram alone.
            has_group: report GAUC; `update` then needs `group`.
            has_true_probability: report the oracle; `update` then needs it.
            top_k: with `has_group`, report ranking metrics of the first `top_k`
                candidates of each group; 0 = off.
        """
        self.exact_auc = exact_auc
        self.has_group = has_group
        self.has_true_probability = has_true_probability
        self.top_k = top_k
        self._sums = BinarySums()
        self._histogram = AucHistogram()
        self._oracle = AucHistogram() if has_true_probability else None
        self._oracle_loss = 0.0
        # Kept examples, column -> parts, for what no constant memory can hold.
        self._kept: dict[str, list[np.ndarray]] = {}

    def update(
        self,
        logits: np.ndarray,
        labels: np.ndarray,
        weight: np.ndarray,
        *,
        group: np.ndarray | None = None,
        true_probability: np.ndarray | None = None,
    ) -> None:
        """Adds one batch.

        Args:
            logits: [B] float32.
            labels: [B], 0 or 1.
            weight: [B]; 0 = padding, which counts nowhere.
            group: [B] integers, with `has_group`.
            true_probability: [B] in [0, 1], with `has_true_probability`.

        Raises:
            ValueError: non-finite logits, labels outside {0, 1}, negative weights, or
                a column that the constructor announced and that is missing.
        """
        for name, announced, value in (
            ("group", self.has_group, group),
            ("true_probability", self.has_true_probability, true_probability),
        ):
            if announced != (value is not None):
                raise ValueError(
                    f"{name} is {'missing' if announced else 'given'}, but the metrics "
                    f"were built with has_{name}={announced}"
                )
        score = probability(logits)
        self._sums.update(logits, labels, weight)
        self._histogram.update(score, labels, weight)
        if self._oracle is not None and true_probability is not None:
            self._oracle.update(true_probability, labels, weight)
            self._oracle_loss += log_loss_of_probability(
                true_probability, labels, weight
            )
        if self.exact_auc or group is not None:
            self._keep("probability", score, weight)
            self._keep("label", np.asarray(labels, np.int8), weight)
            self._keep("weight", np.asarray(weight, np.float32), weight)
        if group is not None:
            self._keep("group", np.asarray(group), weight)

    def _keep(self, column: str, values: np.ndarray, weight: np.ndarray) -> None:
        self._kept.setdefault(column, []).append(values[np.asarray(weight) > 0])

    def merge(self, other: "TaskMetrics") -> None:
        """Adds the examples of another state, built with the same options."""
        self._sums.merge(other._sums)
        self._histogram.merge(other._histogram)
        if self._oracle is not None and other._oracle is not None:
            self._oracle.merge(other._oracle)
            self._oracle_loss += other._oracle_loss
        for column, parts in other._kept.items():
            self._kept.setdefault(column, []).extend(parts)

    def result(self, *, interval: bool = True) -> dict[str, float]:
        """Returns metric name -> value; `docs/metrics.md` has the formulas.

        A metric that the examples do not define (AUC of one class) is nan. Keys: auc,
        auc_bound, log_loss, normalized_entropy, calibration, num_examples,
        positive_rate; auc_low and auc_high with `interval`; gauc, gauc_groups and
        gauc_excluded_groups with `has_group`; hit_rate@K and ndcg@K with K = `top_k`;
        oracle_auc and oracle_log_loss with `has_true_probability`.

        Args:
            interval: resample the AUC (0.2 s), as for a final result.
        """
        kept = {column: np.concatenate(parts) for column, parts in self._kept.items()}
        result = {"auc": self._histogram.value, "auc_bound": self._histogram.bound}
        if self.exact_auc and kept:
            scored = kept["probability"], kept["label"], kept["weight"]
            result |= {"auc": auc.exact(*scored), "auc_bound": 0.0}
        if interval:
            low, high = self._histogram.interval(0.95)
            result |= {"auc_low": low, "auc_high": high}
        if self.has_group:
            grouped = gauc.gauc(**kept) if kept else gauc.EMPTY
            result["gauc"] = grouped.value
            result["gauc_groups"] = float(grouped.num_groups)
            result["gauc_excluded_groups"] = float(grouped.num_excluded_groups)
        if self.top_k:
            top = ranking.top_k(**kept, k=self.top_k) if kept else ranking.EMPTY
            result[f"hit_rate@{self.top_k}"] = top.hit_rate
            result[f"ndcg@{self.top_k}"] = top.ndcg
        result["log_loss"] = self._sums.log_loss
        result["normalized_entropy"] = self._sums.normalized_entropy
        result["calibration"] = self._sums.calibration
        result["positive_rate"] = self._sums.positive_rate
        result["num_examples"] = float(self._sums.num_examples)
        if self._oracle is not None:
            result["oracle_auc"] = self._oracle.value
            weight = self._sums.weight
            result["oracle_log_loss"] = (
                self._oracle_loss / weight if weight else float("nan")
            )
        return result

    def calibration_table(self) -> list[list[float]]:
        """Returns `calibration.table` as lists."""
        return [list(row) for row in calibration.table(self._histogram)]
