"""Group AUC: the AUC inside each group (user, query), averaged by impressions.

GAUC = Σ_g w_g·AUC_g / Σ_g w_g, w_g = weight of the examples of group g (arXiv
1706.06978, section 6.2). A group with one class only has no AUC: it is left out of both
sums, and counted.
"""

import dataclasses

import numpy as np

from rankax.metrics import grouped


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

    Arguments and errors are those of `grouped.sort`.
    """
    groups = grouped.sort(group, probability, label, weight)
    value, impressions = groups.auc(), groups.total(groups.sums).sum(axis=0)
    both = np.isfinite(value)
    return GroupAuc(
        value=float(np.average(value[both], weights=impressions[both]))
        if both.any()
        else float("nan"),
        num_groups=int(both.sum()),
        num_excluded_groups=int((~both).sum()),
    )
