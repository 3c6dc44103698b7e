"""The dense learning rate of every size, from a search at a few of them.

At each tuned size the loss of three or more rates is known; a parabola in ln(rate)
through the best one and its neighbours gives the optimum. The optima of the tuned sizes
give lr = c · N^(−k), N the dense parameters, by least squares in logarithms. Beyond the
tuned sizes the law extrapolates, but never leaves the range of rates that were tried.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from experiments.results import Row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RateLaw:
    """lr = exp(log_scale) · N^(−exponent), within [least, most].

    Attributes:
        log_scale: ln c.
        exponent: k.
        least: smallest rate that was tried.
        most: largest.
        optima: tuned size -> its best rate.
        edges: tuned sizes whose best rate was the smallest or the largest tried, where
            the optimum may lie further out.
    """

    log_scale: float
    exponent: float
    least: float
    most: float
    optima: Mapping[str, float]
    edges: tuple[str, ...]

    def rate(self, num_parameters: float) -> float:
        """Returns the rate of N dense parameters, to two digits."""
        rate = math.exp(self.log_scale) * num_parameters**-self.exponent
        return float(f"{min(max(rate, self.least), self.most):.2g}")


def law(rows: Sequence[Row]) -> RateLaw:
    """Fits the law to the rows of a ladder's search, one per size and rate.

    A run that diverged counts as infinitely bad.
    """
    sizes: dict[str, list[Row]] = {}
    for row in rows:
        sizes.setdefault(row["size_name"], []).append(row)
    optima, edges = {}, []
    for name, own in sizes.items():
        own = sorted(own, key=lambda row: row["lr_dense"])
        losses = [math.inf if r["diverged"] else r["logloss"] for r in own]
        rates = [row["lr_dense"] for row in own]
        optima[name] = _optimum(rates, losses)
        if int(np.argmin(losses)) in (0, len(own) - 1):
            edges.append(name)
    numbers = [max(own[0]["n_dense_total"], 1) for own in sizes.values()]
    slope, intercept = np.polyfit(np.log(numbers), np.log(list(optima.values())), 1)
    tried = [row["lr_dense"] for row in rows]
    return RateLaw(
        log_scale=float(intercept),
        exponent=-float(slope),
        least=min(tried),
        most=max(tried),
        optima=optima,
        edges=tuple(edges),
    )


def _optimum(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Returns the vertex of a parabola in ln(rate), or the best rate at an edge."""
    best = int(np.argmin(losses))
    if best in (0, len(rates) - 1):
        return rates[best]
    x = np.log(rates[best - 1 : best + 2])
    y = np.array(losses[best - 1 : best + 2])
    if not np.isfinite(y).all():
        return rates[best]
    a, b, _ = np.polyfit(x, y, 2)
    return float(np.exp(np.clip(-b / (2 * a), x[0], x[-1]))) if a > 0 else rates[best]
