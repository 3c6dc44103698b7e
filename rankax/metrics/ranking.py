"""Ranking metrics of the first k candidates of each group (user, query).

The candidates of a group stand by falling probability. Over the groups with at least
one positive, each of which counts once:

    hit_rate@k = share of groups with a positive among the first k
    ndcg@k     = mean of DCG / IDCG, DCG = Σ 1/log2(r + 1) over the ranks r <= k of
                 positives, IDCG = DCG if the positives came first

Candidates of equal probability stand in random order, and both metrics are their exact
expectations over it. In a tie of s candidates with p positives, each of its ranks holds
a positive with probability p / s, and m of its ranks hold none with the hypergeometric
C(s - p, m) / C(s, m).
"""

import dataclasses

import numpy as np
from scipy import stats

from rankax.metrics import grouped


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """Result of `top_k`; nan if no group has a positive."""

    hit_rate: float
    ndcg: float


EMPTY = TopK(hit_rate=float("nan"), ndcg=float("nan"))


def top_k(
    group: np.ndarray,
    probability: np.ndarray,
    label: np.ndarray,
    weight: np.ndarray | None = None,
    *,
    k: int,
) -> TopK:
    """Returns the ranking metrics of a whole split.

    Args:
        group: [n] integers.
        probability: [n] float32 in [0, 1].
        label: [n], 0 or 1.
        weight: [n]; 0 = padding; otherwise its size does not matter.
        k: number of first candidates, at least 1.

    Raises:
        ValueError: as `grouped.sort`.
    """
    is_real = None if weight is None else np.asarray(weight) > 0
    groups = grouped.sort(group, probability, label, is_real)
    positives, size = groups.sums[1], groups.sums.sum(axis=0)
    found = np.flatnonzero(positives)  # ties with a positive
    if not len(found):
        return EMPTY
    ahead = groups.spread(groups.total(size)) - groups.below(size) - 0.5 * size

    # A hit depends on the best tie with a positive alone, the last one of its group.
    of_tie = groups.spread(np.arange(len(groups.group)))[found]
    best = found[np.r_[of_tie[1:] != of_tie[:-1], True]]
    slots = np.clip(k - ahead[best], 0, size[best])
    miss = stats.hypergeom.pmf(0, size[best], positives[best], slots)

    k = min(k, int(size.sum()))
    discounts = np.r_[0, np.cumsum(1 / np.log2(np.arange(2, k + 2)))]  # of ranks 1..k

    def of_first(ranks: np.ndarray) -> np.ndarray:
        return discounts[np.minimum(ranks, k).astype(np.int64)]

    gain = of_first(ahead + size) - of_first(ahead)
    total = groups.total(positives / size * gain)
    ndcg = grouped.ratio(total, of_first(groups.total(positives)))
    return TopK(hit_rate=float(np.mean(1 - miss)), ndcg=float(np.nanmean(ndcg)))
