"""Group AUC: the AUC inside each group (user, query), averaged by impressions.

GAUC = Σ_g w_g·AUC_g / Σ_g w_g, w_g = weight of the examples of group g (arXiv
1706.06978, section 6.2). A group with one class only has no AUC: it is left out of both
sums, and counted.
"""

import dataclasses

import numpy as np

from rankax.metrics import auc


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GroupAuc:
    """Result of `gauc`.

    Attributes:
        value: GAUC; nan if no group has both classes.
        num_groups: groups with both classes, which `value` averages.
        num_excluded_groups: groups with one class only.
    """

    value: float
    num_groups: int
    num_excluded_groups: int


EMPTY = GroupAuc(value=float("nan"), num_groups=0, num_excluded_groups=0)


def gauc(
    group: np.ndarray,
    probability: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
) -> GroupAuc:
    """Returns the GAUC of a whole split; parts of a split are concatenated first.

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

    # Ties are runs of equal probability inside a group; `ties` holds their first
    # example, `groups` the first tie of each group.
    ties = np.flatnonzero(
        np.r_[
            len(group) > 0,
            (group[1:] != group[:-1]) | (probability[1:] != probability[:-1]),
        ]
    )
    groups = auc.run_starts(group[ties])
    if not len(groups):
        return EMPTY
    negatives, positives = auc.class_sums(label[order], weight[order], ties)
    num_negative = np.add.reduceat(negatives, groups)
    num_positive = np.add.reduceat(positives, groups)
    before = np.cumsum(negatives) - negatives
    sizes = np.diff(np.r_[groups, len(ties)])
    below = before - np.repeat(before[groups], sizes) + 0.5 * negatives
    area = np.add.reduceat(below * positives, groups)

    both = (num_negative > 0) & (num_positive > 0)
    impressions = (num_negative + num_positive)[both]
    value = area[both] / (num_negative * num_positive)[both]
    return GroupAuc(
        value=float(np.average(value, weights=impressions)) if both.any() else np.nan,
        num_groups=int(both.sum()),
        num_excluded_groups=int((~both).sum()),
    )
