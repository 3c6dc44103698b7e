"""Forms of scaling laws, each with its gradient, its starts and its bounds.

    power_const  L(x)    = E + A·x^-α
    chinchilla   L(N, D) = E + A·N^-α + B·D^-β            (arXiv 2203.15556)
    repeat       the same of D' = U + U·R*·(1 - e^(-R/R*))  (arXiv 2305.16264)
    gain_power   Δ(x)    = c·x^γ
    loglinear    y(x)    = a + b·ln x

The laws are searched in other coordinates than they are written in. Axes are divided by
their geometric mean, so that x = 1 is the middle of the data, and theta holds the
logarithms of the loss at the middle, M = E + A, of the share r = A / M of it that is
reducible there, and of α:

    ln L = ln M + ln(1 + r·(x^-α - 1))

which is logaddexp(ln E, ln A - α ln x). What data that look like a straight line leave
open is then a straight valley, r·α = slope, along which a search walks to a bound
instead of crawling round a bend. `Form.reported` returns E, A and α in the units of the
axes.

All functions take many parameter vectors at once: theta is [R, P], x is [n, K], where
the K columns are the axes, and a prediction is [R, n].
"""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Protocol

import numpy as np

EXPONENT_BOUNDS = (1e-3, 3.0)
# An irreducible loss below this share of the smallest loss seen is none.
NO_CONSTANT = 1e-3
# Bounds of the logarithm of a reducible share: none of the loss, and all of it.
_SHARE_BOUNDS = (-25.0, -6e-6)

_EXPONENTS = (0.05, 0.1, 0.2, 0.4, 0.8)
_SHARES = (1e-3, 1e-2, 0.05, 0.2)  # of the loss that is reducible at the middle
_JOINT_EXPONENTS = (0.05, 0.2, 0.8)
_JOINT_SHARES = (0.01, 0.1, 0.4)
_REPEATS = (0.1, 1.0, 10.0)


class Form(Protocol):
    """What the procedure needs to know of a law.

    Attributes:
        name: as in `fits.json`.
        parameters: names of what is reported.
        num_fitted: P, the number of fitted parameters.
        num_axes: K.
        num_within: of the parameters, how many one run's checkpoints tell.
        is_log: whether `value` is the logarithm of the metric, or the metric itself.
    """

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> tuple[str, ...]: ...
    @property
    def num_fitted(self) -> int: ...
    @property
    def num_axes(self) -> int: ...
    @property
    def num_within(self) -> int: ...
    @property
    def is_log(self) -> bool: ...

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns what the columns of x [n, K] are divided by, [K]."""
        ...

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the prediction [R, n] and its gradient [R, n, P].

        Args:
            theta: [R, P].
            x: [n, K] axes divided by `scales`.
        """
        ...

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the grid of starts [S, P] for metrics y [n]."""
        ...

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns lower and upper bounds [2, P]."""
        ...

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns `parameters` [R] in the units of the unscaled axes."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class PowerConst:
    """E + A·x^-α; theta = (ln M, ln r, ln α)."""

    name: str = "power_const"
    parameters: tuple[str, ...] = ("E", "A", "alpha")
    num_fitted: int = 3
    num_axes: int = 1
    num_within: int = 0
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric mean."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln(E + A·x^-α) and its gradient."""
        log_x = np.log(x[:, 0])
        share, alpha = (np.exp(theta[:, i, None]) for i in (1, 2))
        change = np.expm1(-alpha * log_x)  # x^-α - 1
        ratio = 1 + share * change  # L / M
        slope = -alpha * log_x * (1 + change)
        gradient = [np.ones_like(ratio), share * change / ratio, share * slope / ratio]
        return theta[:, :1] + np.log(ratio), np.stack(gradient, axis=-1)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns 20 starts: exponents × reducible shares."""
        middle = np.log(y).mean()
        grid = np.log(list(itertools.product(_SHARES, _EXPONENTS)))
        return np.c_[np.full(len(grid), middle), grid]

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds: E and A are positive, and α lies in its range."""
        return np.array([_middle(y), _SHARE_BOUNDS, np.log(EXPONENT_BOUNDS)]).T

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns E, A and α."""
        middle, share, alpha = np.exp(theta.T)
        return {
            "E": middle * (1 - share),
            "A": middle * share * scales[0] ** alpha,
            "alpha": alpha,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Chinchilla:
    """E + A·N^-α + B·D^-β; theta = (ln M, ln r, ln q, ln α, ln β), x = (N, D).

    M = E + A + B at the middle, q = B / M, and r = A / (E + A). `allocation` is
    β/(α + β), the exponent of the best N for a given compute ∝ N·D.
    """

    name: str = "chinchilla"
    parameters: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "allocation")
    num_fitted: int = 5
    num_axes: int = 2
    num_within: int = 2
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric means."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln L and its gradient."""
        value, gradient, _ = _joint(theta, np.log(x[:, 0]), np.log(x[:, 1]))
        return value, gradient

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns 27 starts: exponents² × reducible shares, equal for N and D."""
        middle = np.log(y).mean()
        grid = itertools.product(_JOINT_SHARES, _JOINT_EXPONENTS, _JOINT_EXPONENTS)
        return np.array(
            [
                [middle, *np.log([q / (2 - q), q / 2, alpha, beta])]
                for q, alpha, beta in grid
            ]
        )

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds: E, A, B are positive, exponents lie in their range."""
        exponents = np.log(EXPONENT_BOUNDS)
        shares = [_SHARE_BOUNDS] * 2
        return np.array([_middle(y), *shares, exponents, exponents]).T

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns E, A, B, α, β and the allocation."""
        middle, of_rest, of_data, alpha, beta = np.exp(theta.T)
        rest = middle * (1 - of_data)
        return {
            "E": rest * (1 - of_rest),
            "A": rest * of_rest * scales[0] ** alpha,
            "B": middle * of_data * scales[1] ** beta,
            "alpha": alpha,
            "beta": beta,
            "allocation": beta / (alpha + beta),
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Repeat:
    """`Chinchilla` of what repeated examples are worth; x = (N, U, R).

    U are the distinct examples seen and R the extra epochs over them (`repeat_axes`);
    D' = U·(1 + R*·(1 - e^(-R/R*))). theta has ln R* behind those of `Chinchilla`.
    """

    name: str = "repeat"
    parameters: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "repeats")
    num_fitted: int = 6
    num_axes: int = 3
    num_within: int = 3
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric means of N and U, and 1: epochs stay epochs."""
        return np.append(_geometric_mean(x[:, :2]), 1.0)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln L and its gradient."""
        worth = np.exp(theta[:, 5, None])  # R*
        left = x[:, 2] / worth
        factor = 1 - worth * np.expm1(-left)  # D' / U
        log_d = np.log(x[:, 1]) + np.log(factor)
        value, gradient, slope = _joint(theta, np.log(x[:, 0]), log_d)
        # d ln D' / d ln R*, times d ln L / d ln D'
        last = -worth * (np.expm1(-left) + left * np.exp(-left)) / factor * slope
        return value, np.concatenate([gradient, last[..., None]], axis=-1)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the starts of `Chinchilla` for each of three R*."""
        joint = CHINCHILLA.starts(x, y)
        return np.concatenate(
            [np.c_[joint, np.full(len(joint), np.log(r))] for r in _REPEATS]
        )

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds; R* lies between 0.001 and 1,000 epochs."""
        return np.c_[CHINCHILLA.bounds(y), np.log([1e-3, 1e3])]

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the parameters of `Chinchilla` and R* in epochs."""
        joint = CHINCHILLA.reported(theta[:, :5], scales[:2])
        del joint["allocation"]  # of one epoch
        return joint | {"repeats": np.exp(theta[:, 5])}


@dataclasses.dataclass(frozen=True, slots=True)
class GainPower:
    """c·x^γ of a gain over a baseline; theta = (ln c, γ)."""

    name: str = "gain_power"
    parameters: tuple[str, ...] = ("c", "gamma")
    num_fitted: int = 2
    num_axes: int = 1
    num_within: int = 0
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric mean."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln(c·x^γ) and its gradient."""
        return _line(theta, x)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the least-squares line of the logarithms."""
        return _straight(x, np.log(y))

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns bounds that no data reach."""
        return np.array([[-100.0, -10.0], [100.0, 10.0]])

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns c and γ."""
        amount, gamma = theta.T
        return {"c": np.exp(amount - gamma * np.log(scales[0])), "gamma": gamma}


@dataclasses.dataclass(frozen=True, slots=True)
class LogLinear:
    """a + b·ln x, the null model; theta = (a at the scaled x = 1, b)."""

    name: str = "loglinear"
    parameters: tuple[str, ...] = ("a", "b")
    num_fitted: int = 2
    num_axes: int = 1
    num_within: int = 0
    is_log: bool = False

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric mean."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns a + b·ln x and its gradient."""
        return _line(theta, x)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the least-squares line."""
        return _straight(x, y)

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns no bounds."""
        return np.array([[-np.inf] * 2, [np.inf] * 2])

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns a and b."""
        middle, slope = theta.T
        return {"a": middle - slope * np.log(scales[0]), "b": slope}


POWER_CONST = PowerConst()
CHINCHILLA = Chinchilla()
REPEAT = Repeat()
GAIN_POWER = GainPower()
LOGLINEAR = LogLinear()


def repeat_axes(
    size: Sequence[float], examples_seen: Sequence[float], distinct: float
) -> np.ndarray:
    """Returns the axes (N, U, R) of `Repeat`, [n, 3].

    Args:
        size: N of every point.
        examples_seen: D of every point, epochs counted.
        distinct: examples of the training split.
    """
    seen = np.asarray(examples_seen, np.float64)
    extra = np.maximum(seen / distinct - 1, 0)
    return np.stack(
        [np.asarray(size, np.float64), np.minimum(seen, distinct), extra], 1
    )


def _geometric_mean(x: np.ndarray) -> np.ndarray:
    return np.exp(np.log(x).mean(axis=0))


def _middle(y: np.ndarray) -> tuple[float, float]:
    """Bounds of the logarithm of the loss at the middle, which no data reach."""
    return float(np.log(y.min())) - 3, float(np.log(y.max())) + 3


def _joint(
    theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value [R, n], gradient [R, n, 5] and d ln L / d ln D; log_d: [n] or [R, n]."""
    of_rest, of_data, alpha, beta = (np.exp(theta[:, i, None]) for i in range(1, 5))
    size, data = np.expm1(-alpha * log_n), np.expm1(-beta * log_d)
    reducible = (1 - of_data) * of_rest
    ratio = 1 + reducible * size + of_data * data  # L / M
    slope = -of_data * beta * (1 + data) / ratio
    gradient = [
        np.ones_like(ratio),
        reducible * size / ratio,
        of_data * (data - of_rest * size) / ratio,
        -reducible * alpha * log_n * (1 + size) / ratio,
        slope * log_d,
    ]
    return theta[:, :1] + np.log(ratio), np.stack(gradient, axis=-1), slope


def _line(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_x = np.log(x[:, 0])
    value = theta[:, :1] + theta[:, 1:] * log_x
    gradient = np.stack([np.ones_like(log_x), log_x], axis=-1)
    return value, np.broadcast_to(gradient, (*value.shape, 2))


def _straight(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_x = np.log(x[:, 0])
    design = np.stack([np.ones_like(log_x), log_x], axis=-1)
    return np.linalg.lstsq(design, y, rcond=None)[0][None]
