"""The noise of a seed: how much a metric varies when nothing but the seed does.

σ² is pooled within sizes: squared deviations from the mean of each size, over Σ (S - 1)
degrees of freedom ν. Its interval is that of ν·s² / χ²_ν, exact for normal noise. A
difference below 2 σ is no difference.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
from scipy import stats

from scaling import rows as rows_lib
from scaling.rows import Row

FLOOR_IN_SIGMAS = 2.0
# Sizes are given noises of their own if equal ones would look this unequal so rarely.
_UNEQUAL = 0.01
# Degrees of freedom that the usual noise counts for in the noise of one size.
_PRIOR_FREEDOM = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Standard deviation of a metric over seeds.

    Attributes:
        sigma: pooled within sizes.
        freedom: degrees of freedom of it, ν.
        low: lower end of its 90 % interval.
        high: upper end.
        by_size: of each size with two seeds or more: mean, standard deviation, seeds.
        p_equal: of Bartlett's test that all sizes have one noise; nan where fewer than
            two sizes have one.
    """

    sigma: float
    freedom: int
    low: float
    high: float
    by_size: Mapping[str, tuple[float, float, int]]
    p_equal: float

    @property
    def floor(self) -> float:
        """The smallest difference that is one: 2 σ."""
        return FLOOR_IN_SIGMAS * self.sigma

    @property
    def is_equal(self) -> bool:
        """Whether one σ may stand for all sizes."""
        return not self.p_equal < _UNEQUAL

    def of_size(self, size: str) -> float:
        """Returns σ of one size: the pooled one, unless noises differ between sizes.

        The variance of a few seeds is itself noise, so it is averaged with the
        geometric mean over sizes (which one noisy size does not rule), counting for 4
        degrees of freedom.
        """
        if self.is_equal or size not in self.by_size:
            return self.sigma
        _, own, count = self.by_size[size]
        logs = [math.log(sd) for _, sd, _ in self.by_size.values() if sd > 0]
        usual = math.exp(sum(logs) / len(logs))
        total = _PRIOR_FREEDOM * usual**2 + (count - 1) * own**2
        return math.sqrt(total / (_PRIOR_FREEDOM + count - 1))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as JSON."""
        return {
            "sigma": self.sigma,
            "degrees_of_freedom": self.freedom,
            "low": self.low,
            "high": self.high,
            "floor": self.floor,
            "p_equal": None if math.isnan(self.p_equal) else self.p_equal,
            "by_size": {
                size: {"mean": mean, "sd": deviation, "seeds": count}
                for size, (mean, deviation, count) in self.by_size.items()
            },
        }


def pooled(groups: Mapping[str, Sequence[float]]) -> Noise | None:
    """Returns the noise pooled within groups, None where no group has two values.

    Args:
        groups: size -> metric of each of its seeds.
    """
    arrays = {name: np.asarray(values) for name, values in groups.items()}
    arrays = {name: values for name, values in arrays.items() if len(values) > 1}
    freedom = sum(len(values) - 1 for values in arrays.values())
    if not freedom:
        return None
    squares = sum(((v - v.mean()) ** 2).sum() for v in arrays.values())
    sigma = math.sqrt(squares / freedom)
    upper, lower = stats.chi2.ppf([0.95, 0.05], freedom)
    varied = [v for v in arrays.values() if v.std() > 0]
    return Noise(
        sigma=sigma,
        freedom=freedom,
        low=math.sqrt(squares / upper),
        high=math.sqrt(squares / lower),
        by_size={
            name: (float(v.mean()), float(v.std(ddof=1)), len(v))
            for name, v in arrays.items()
        },
        p_equal=float(stats.bartlett(*varied).pvalue) if len(varied) > 1 else math.nan,
    )


def measure(rows: Iterable[Row], metric: str, *, split: str) -> Noise | None:
    """Returns the noise of a metric, pooled over all sizes of all models in the rows.

    Args:
        rows: of runs; those of the learning-rate search, diverged and incomplete ones
            are left out, and so are all checkpoints but the last.
        metric: one of `scaling.rows.METRICS`.
        split: on which it was measured.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        value = rows_lib.metric_value(row, metric)
        is_final = row["final"] and row["split"] == split
        if is_final and value is not None and rows_lib.flaw(row) is None:
            groups.setdefault("/".join(rows_lib.size_key(row)), []).append(value)
    return pooled(groups)


def is_difference(first: float, second: float, sigma: float) -> bool:
    """Whether two runs differ by 2 σ or more."""
    return abs(first - second) >= FLOOR_IN_SIGMAS * sigma
