"""Examples sorted inside groups: the AUC of every group at once, and its variance.

A tie t is a run of equal probability inside a group g. With w⁻_t and w⁺_t the weight of
its negatives and positives, N and P those of the group, and below_t(w) the weight w
under the tie plus half of its own:

    AUC_g = Σ_t w⁺_t·below_t(w⁻) / (P·N)

The variance is DeLong's (Biometrics 44, 1988): the spread of the placements V, which
are below_t(w⁻) / N of a positive and below_t(w⁺) / P of a negative. Weights say how
much an example counts, not how often it was seen (examples are independent draws):

    var AUC_g = Σ_classes Σ_i w_i²·(V_i - V̄)² / ((Σw)² - Σw²)

which with weights of 1 is DeLong's Σ (V - V̄)² / (n·(n - 1)).
"""

import dataclasses

import numpy as np

from rankax.metrics import auc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SortedGroups:
    """R ties of examples by rising group, and inside it by rising probability.

    Attributes:
        group: [G] the groups, each once.
        first: [G] first tie of each group.
        sums: [2, R] weight of negatives and positives in each tie.
        label: [n] of the sorted examples.
        weight: [n] of the sorted examples.
        starts: [R] first example of each tie.
    """

    group: np.ndarray
    first: np.ndarray
    sums: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    starts: np.ndarray

    def total(self, values: np.ndarray) -> np.ndarray:
        """Returns sums [..., G] over the ties of each group of values [..., R]."""
        if not len(self.first):
            return np.zeros((*values.shape[:-1], 0))
        return np.add.reduceat(values, self.first, axis=-1)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Returns [..., R]: the value of each tie's group, of values [..., G]."""
        num_ties = np.diff(np.r_[self.first, self.sums.shape[1]])
        return np.repeat(values, num_ties, axis=-1)

    def below(self, values: np.ndarray) -> np.ndarray:
        """Returns [..., R]: sum of values [..., R] under each tie, half of its own."""
        before = np.cumsum(values, axis=-1) - values
        return before - self.spread(before[..., self.first]) + 0.5 * values

    def auc(self) -> np.ndarray:
        """Returns the AUC [G]; nan where a class is missing."""
        negatives, positives = self.sums
        area = self.total(self.below(negatives) * positives)
        return ratio(area, self.total(self.sums).prod(axis=0))

    def auc_variance(self) -> np.ndarray:
        """Returns DeLong's variance [G]; nan with less than two examples of a class."""
        total, area = self.total(self.sums), self.auc()
        placement = ratio(self.below(self.sums), self.spread(total))[::-1]
        mean = self.spread(np.stack([1 - area, area]))
        squares = auc.class_sums(self.label, self.weight**2, self.starts)
        deviation = self.total(squares * (placement - mean) ** 2)
        return ratio(deviation, total**2 - self.total(squares)).sum(axis=0)


def sort(
    group: np.ndarray,
    probability: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
) -> SortedGroups:
    """Sorts the examples of a whole split.

    Args:
        group: [n] integers.
        probability: [n] float32 in [0, 1].
        label: [n], 0 or 1.
        weight: [n], not negative; 0 = padding; None = all 1.

    Raises:
        ValueError: as `AucHistogram.update`, or groups that are not integers.
    """
    group = np.asarray(group)
    if not np.issubdtype(group.dtype, np.integer) or group.shape != np.shape(label):
        raise ValueError(
            f"group is {group.dtype} {list(group.shape)}; expected integers, one per "
            f"label {list(np.shape(label))}"
        )
    if weight is not None:
        group = group[np.asarray(weight) > 0]
    probability, label, weight = auc.checked(probability, label, weight)
    order = np.lexsort((probability, group))
    group, probability = group[order], probability[order]
    label, weight = label[order], weight[order]
    starts = np.flatnonzero(
        np.r_[
            len(group) > 0,
            (group[1:] != group[:-1]) | (probability[1:] != probability[:-1]),
        ]
    )
    of_tie = group[starts]
    first = auc.run_starts(of_tie)
    return SortedGroups(
        group=of_tie[first],
        first=first,
        sums=auc.class_sums(label, weight, starts),
        label=label,
        weight=weight,
        starts=starts,
    )


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Returns the quotient float64; nan where the denominator is 0."""
    result = np.full(np.shape(denominator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator != 0)
