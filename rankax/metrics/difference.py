"""The difference of two models' mean metrics, with an interval for it.

Each model was trained with a few seeds and read one test split. `over_seeds` is the t
interval over the seeds, as if the split were all there is. `over_examples_and_seeds` is
a percentile interval that varies both: resample r holds test examples drawn with
replacement, the same for all runs, and seeds J_r drawn with replacement,

    D_r = mean_s D_rs + κ·(mean_{s ∈ J_r} D_rs - mean_s D_rs),
    κ = √(S / (S - 1))·t_{S-1} / z

with D_rs the metric of seed s on resample r, model minus baseline. Without κ, S seeds
drawn from S vary too little: where seeds are all that varies, plain 95 % intervals
(κ = 1) of three seeds hold the truth three times in four. κ, of the quantiles of
Student's t and of the normal distribution, makes them about as wide as t intervals
there, tends to 1 with more seeds, and does nothing where test examples are all that
varies. (`tests/metrics/test_difference.py` counts how often they hold it.)
"""

import dataclasses
import math

import numpy as np
from scipy import special, stats

LEVEL = 0.95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean difference to the baseline and its interval.

    Attributes:
        value: mean of the model minus mean of the baseline.
        low: lower end of the interval; nan if there is none.
        high: upper end.
        method: how the interval was made, or why there is none.
        is_of_models: whether the interval covers other seeds too; with one seed it
            speaks of two runs at most.
    """

    value: float
    low: float
    high: float
    method: str
    is_of_models: bool = True

    @property
    def sign(self) -> int:
        """1 or -1 if the interval tells the models apart, else 0."""
        if not self.is_of_models:
            return 0
        return int(self.low > 0) - int(self.high < 0)


def half_width(error: float, freedom: float, *, level: float = LEVEL) -> float:
    """Returns half the width of the t interval of a mean.

    Args:
        error: standard error of the mean.
        freedom: degrees of freedom of the error; n - 1 for the mean of n values.
        level: coverage of the interval.
    """
    return float(stats.t.ppf((1 + level) / 2, freedom)) * error


def over_seeds(
    values: np.ndarray, baseline: np.ndarray, *, paired: bool, level: float = LEVEL
) -> Difference:
    """Returns the difference of two means over seeds with its t interval.

    Args:
        values: [n] of the model.
        baseline: [m] of the baseline.
        paired: n = m runs with the same seeds in the same order: the interval is that
            of the mean of their differences; else Welch's (unequal variances).
        level: coverage of the interval.
    """
    value = float(values.mean() - baseline.mean())
    if min(len(values), len(baseline)) < 2:
        nan = float("nan")
        method = "no interval: one seed"
        return Difference(
            value=value, low=nan, high=nan, method=method, is_of_models=False
        )
    if paired:
        error = float(np.std(values - baseline, ddof=1)) / math.sqrt(len(values))
        freedom = len(values) - 1.0
        method = f"paired t, {len(values)} seeds"
    else:
        parts = [np.var(v, ddof=1) / len(v) for v in (values, baseline)]
        error = math.sqrt(sum(parts))
        below = sum(
            p**2 / (len(v) - 1) for p, v in zip(parts, (values, baseline), strict=True)
        )
        freedom = sum(parts) ** 2 / below if below else 1.0
        method = f"Welch t, {len(values)} and {len(baseline)} seeds"
    half = half_width(error, float(freedom), level=level)
    return Difference(value=value, low=value - half, high=value + half, method=method)


def over_examples_and_seeds(
    values: np.ndarray,
    baseline: np.ndarray,
    resampled: np.ndarray,
    resampled_baseline: np.ndarray,
    *,
    paired: bool,
    unit: str = "examples",
    level: float = LEVEL,
    seed: int = 0,
) -> Difference:
    """Returns the difference of two means over seeds with its bootstrap interval.

    With one seed on either side only test examples vary.

    Args:
        values: [n] of the model.
        baseline: [m] of the baseline.
        resampled: [n, R] of the model on R resamples of the test examples; nan where
            a resample does not define the metric, which then leaves it out.
        resampled_baseline: [m, R] of the baseline on the same resamples.
        paired: n = m runs with the same seeds in the same order: they are drawn
            together; else independently of each other.
        unit: what was resampled, for `method`.
        level: coverage of the interval.
        seed: of the drawing of seeds.
    """
    rng = np.random.default_rng((seed, 1))
    has_seeds = min(len(values), len(baseline)) > 1
    if paired:
        draws = _draws(resampled - resampled_baseline, level, rng, vary=has_seeds)
    else:
        sides = [(values, resampled, 1), (baseline, resampled_baseline, -1)]
        sides.sort(key=lambda side: tuple(side[0]))  # A − B shall be −(B − A)
        draws = np.zeros(resampled.shape[1])
        for _, own, sign in sides:
            draws += sign * _draws(own, level, rng, vary=has_seeds)
    draws = draws[np.isfinite(draws)]
    low = high = float("nan")
    if len(draws):
        low, high = map(float, np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]))
    if not has_seeds:
        seeds = "one seed"
    elif paired:
        seeds = f"× {len(values)} seeds, paired"
    else:
        seeds = f"× {len(values)} and {len(baseline)} seeds"
    return Difference(
        value=float(values.mean() - baseline.mean()),
        low=low,
        high=high,
        method=f"bootstrap, {unit}{' ' if has_seeds else ', '}{seeds}",
        is_of_models=has_seeds,
    )


def _draws(
    values: np.ndarray, level: float, rng: np.random.Generator, *, vary: bool
) -> np.ndarray:
    """D_r [R] of D_rs [S, R]; without `vary`, the mean over seeds."""
    mean = values.mean(axis=0)
    if not vary:
        return mean
    num_seeds = len(values)
    drawn = rng.integers(num_seeds, size=values.shape)
    stretch = math.sqrt(num_seeds / (num_seeds - 1)) * float(
        stats.t.ppf((1 + level) / 2, num_seeds - 1) / special.ndtri((1 + level) / 2)
    )
    of_drawn = np.take_along_axis(values, drawn, axis=0).mean(axis=0)
    return mean + stretch * (of_drawn - mean)
