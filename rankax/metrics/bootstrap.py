"""Bootstrap over test examples: a metric of many resamples of a split, exactly.

A resample draws n of the n examples with replacement, or G of the G groups (users) with
all of their examples. An example that comes c times weighs c·w, so the metric of a
resample is the weighted metric. Scores are sorted once. With C(k) the weight of the
first k negatives by rising probability, and of positive i the numbers lo_i of negatives
below it and hi_i of those not above it,

    AUC = Σ_i c_i·w_i·½·(C(lo_i) + C(hi_i)) / (P·N)

counts ties half, and each resample costs a gather and a cumulative sum.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy import special

from rankax.metrics import auc, grouped

# Maps how often each example was drawn, [n], to the metric of that resample.
Statistic = Callable[[np.ndarray], float]

NAMES = ("auc", "gauc", "log_loss", "normalized_entropy")

MAX_RESAMPLES = 1000
MIN_RESAMPLES = 200
_MAX_READINGS = 1e10  # of a score in a resample: some minutes


def num_resamples(num_scores: int) -> int:
    """Returns R: 1000, or down to 200 where the scores of all runs are many."""
    affordable = int(_MAX_READINGS / max(num_scores, 1))
    return min(MAX_RESAMPLES, max(MIN_RESAMPLES, affordable))


class Resamples:
    """R resamples of n examples, the same ones in every iteration.

    Memory: 16 bytes an example while iterating.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        num: int,
        group: np.ndarray | None = None,
        seed: int = 0,
    ) -> None:
        """Draws nothing yet.

        Args:
            num_examples: n.
            num: R.
            group: [n] integers: draw whole groups; None = draw examples.
            seed: of the draws.
        """
        self.num = num
        self._seed = seed
        self._num_units, self._unit = num_examples, None
        if group is not None:
            groups, self._unit = np.unique(group, return_inverse=True)
            self._num_units = len(groups)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields how often each example was drawn, uint8 [n]."""
        rng = np.random.default_rng(self._seed)
        for _ in range(self.num):
            drawn = rng.integers(self._num_units, size=self._num_units)
            # One byte each stays in the processor's caches. The mean is 1, and no unit
            # is ever drawn 256 times (the chance is below 1e-500).
            counts = np.bincount(drawn, minlength=self._num_units).astype(np.uint8)
            yield counts if self._unit is None else counts[self._unit]


def replicates(
    statistics: Sequence[Statistic],
    resamples: Resamples,
    *,
    tell: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Returns [statistics, R] of every resample; `tell` is called after each."""
    values = np.empty((len(statistics), resamples.num))
    for r, counts in enumerate(resamples):
        values[:, r] = [statistic(counts) for statistic in statistics]
        tell()
    return values


def statistic(
    name: str,
    probability: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray,
    group: np.ndarray | None,
) -> Statistic:
    """Returns a metric of `NAMES` as a function of a resample.

    Args:
        name: of the metric; "gauc" needs groups.
        probability: [n] float32.
        label: [n], 0 or 1.
        weight: [n], positive.
        group: [n] integers; None = there are none.
    """
    if name in ("auc", "gauc"):
        group = group if name == "gauc" else None
        return ResampledAuc(probability, label, weight, group)
    is_normalized = name == "normalized_entropy"
    return ResampledLoss(probability, label, weight, is_normalized=is_normalized)


class ResampledAuc:
    """AUC inside each group, averaged by its weight (GAUC); plain AUC without groups.

    Memory: about 10 bytes an example and 20 a positive; up to 100 while it is made.
    """

    def __init__(
        self,
        probability: np.ndarray,
        label: np.ndarray,
        weight: np.ndarray,
        group: np.ndarray | None = None,
    ) -> None:
        """Sorts the examples.

        Args:
            probability: [n] float32.
            label: [n], 0 or 1.
            weight: [n], positive.
            group: [n] integers; None = all are one group.
        """
        if group is None:
            group = np.zeros(len(label), np.int8)
            order = np.argsort(probability)
        else:
            order = np.lexsort((probability, group))
        # A group of one class has no AUC in any resample.
        order = order[_is_in_mixed_group(group[order], label[order])]
        group, probability = group[order], probability[order]
        is_negative = label[order] == 0
        self._negative, self._positive = order[is_negative], order[~is_negative]
        self._negative_weight = weight[self._negative].astype(np.float64)
        self._positive_weight = weight[self._positive].astype(np.float64)

        # Borders between examples as numbers of negatives before them.
        before = np.r_[0, np.cumsum(is_negative)]
        is_first = np.ones(len(order), bool)
        is_first[1:] = (group[1:] != group[:-1]) | (probability[1:] != probability[:-1])
        ties = np.r_[np.flatnonzero(is_first), len(order)]
        tie = np.cumsum(is_first)[~is_negative] - 1
        self._low, self._high = before[ties[tie]], before[ties[tie + 1]]
        groups = np.r_[auc.run_starts(group), len(order)]
        self._group_low, self._group_high = before[groups[:-1]], before[groups[1:]]
        self._first_positive = groups[:-1] - self._group_low

    def __call__(self, counts: np.ndarray) -> float:
        """Returns the metric of a resample; nan if it has no group of two classes."""
        if not len(self._positive):
            return float("nan")
        below = np.zeros(len(self._negative) + 1)
        np.cumsum(counts[self._negative] * self._negative_weight, out=below[1:])
        weight = counts[self._positive] * self._positive_weight
        area = weight * (below[self._low] + below[self._high])
        positives = np.add.reduceat(weight, self._first_positive)
        start = below[self._group_low]
        negatives = below[self._group_high] - start
        area = 0.5 * np.add.reduceat(area, self._first_positive) - start * positives
        value = grouped.ratio(area, positives * negatives)
        both = np.isfinite(value)
        mass = (positives + negatives)[both]
        return float(value[both] @ mass / mass.sum()) if both.any() else float("nan")


def _is_in_mixed_group(group: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Which examples, sorted by group, are in a group of both classes; bool [n]."""
    first = auc.run_starts(group)
    if not len(first):
        return np.zeros(0, bool)
    size = np.diff(np.r_[first, len(group)])
    positives = np.add.reduceat(label.astype(np.int64), first)
    return np.repeat((positives > 0) & (positives < size), size)


class ResampledLoss:
    """Log loss of probabilities, or the normalized entropy of the same.

    A float32 probability that rounded to 1 or 0 counts as half a step away from it,
    which understates the loss of an example that is wrong with a logit above 17.3.
    Memory: 24 bytes an example.
    """

    def __init__(
        self,
        probability: np.ndarray,
        label: np.ndarray,
        weight: np.ndarray,
        *,
        is_normalized: bool,
    ) -> None:
        """Computes the loss of every example; arguments as `ResampledAuc`."""
        p = probability.astype(np.float64)
        p = np.where(
            label == 1,
            np.maximum(p, np.finfo(np.float32).smallest_subnormal),
            np.maximum(1 - p, 2.0**-25),
        )
        self._columns = np.stack([weight, weight * label, -weight * np.log(p)])
        self._is_normalized = is_normalized

    def __call__(self, counts: np.ndarray) -> float:
        """Returns the metric of a resample; nan where it is not defined."""
        weight, positive, loss = self._columns @ counts.astype(np.float64)
        if not weight:
            return float("nan")
        if not self._is_normalized:
            return float(loss / weight)
        rate = positive / weight
        entropy = special.entr(rate) + special.entr(1 - rate)
        return float(loss / weight / entropy) if entropy else float("nan")
