"""Forms of scaling laws, each with its logarithm, its gradient, starts and bounds.

    power_const  L(x)    = E + A·x^-α
    chinchilla   L(N, D) = E + A·N^-α + B·D^-β            (arXiv 2203.15556)
    repeat       the same of D' = U + U·R*·(1 - e^(-R/R*))  (arXiv 2305.16264)
    gain_power   Δ(x)    = c·x^γ
    loglinear    y(x)    = a + b·ln x

Parameters are fitted as logarithms (but for exponents and `loglinear`), of axes divided
by their geometric mean: then A is the reducible loss in the middle of the data, and the
parameters hardly correlate with the units of x. `Form.reported` undoes both.

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
    """E + A·x^-α; theta = (ln E, ln A, α)."""

    name: str = "power_const"
    parameters: tuple[str, ...] = ("E", "A", "alpha")
    num_fitted: int = 3
    num_axes: int = 1
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric mean."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln(E + A·x^-α) and its gradient."""
        log_x = np.log(x[:, 0])
        constant, amount, alpha = (theta[:, i, None] for i in range(3))
        reducible = amount - alpha * log_x
        total = np.logaddexp(constant, reducible)
        share = np.exp(reducible - total)
        return total, np.stack([1 - share, share, -share * log_x], axis=-1)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns 20 starts: exponents × reducible shares."""
        middle = np.log(y).mean()
        grid = itertools.product(_SHARES, _EXPONENTS)
        return np.array(
            [[middle + np.log1p(-q), middle + np.log(q), alpha] for q, alpha in grid]
        )

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds; those of E and A stand for 0 and for the whole loss."""
        return np.array([*_amounts(y, 2), EXPONENT_BOUNDS]).T

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns E, A and α."""
        constant, amount, alpha = theta.T
        return {
            "E": np.exp(constant),
            "A": np.exp(amount + alpha * np.log(scales[0])),
            "alpha": alpha,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Chinchilla:
    """E + A·N^-α + B·D^-β; theta = (ln E, ln A, ln B, α, β), x = (N, D).

    `allocation` is β/(α + β), the exponent of the best N for a given compute ∝ N·D.
    """

    name: str = "chinchilla"
    parameters: tuple[str, ...] = ("E", "A", "B", "alpha", "beta", "allocation")
    num_fitted: int = 5
    num_axes: int = 2
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric means."""
        return _geometric_mean(x)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln L and its gradient."""
        return _joint_value(theta, np.log(x[:, 0]), np.log(x[:, 1]))

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns 27 starts: exponents² × reducible shares, equal for N and D."""
        middle = np.log(y).mean()
        grid = itertools.product(_JOINT_SHARES, _JOINT_EXPONENTS, _JOINT_EXPONENTS)
        return np.array(
            [
                [middle + np.log1p(-q), *[middle + np.log(q / 2)] * 2, alpha, beta]
                for q, alpha, beta in grid
            ]
        )

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds; those of E, A, B stand for 0 and for the whole loss."""
        return np.array([*_amounts(y, 3), EXPONENT_BOUNDS, EXPONENT_BOUNDS]).T

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns E, A, B, α, β and the allocation."""
        constant, of_size, of_data, alpha, beta = theta.T
        return {
            "E": np.exp(constant),
            "A": np.exp(of_size + alpha * np.log(scales[0])),
            "B": np.exp(of_data + beta * np.log(scales[1])),
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
    is_log: bool = True

    def scales(self, x: np.ndarray) -> np.ndarray:
        """Returns the geometric means of N and U, and 1: epochs stay epochs."""
        return np.append(_geometric_mean(x[:, :2]), 1.0)

    def value(self, theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ln L and its gradient."""
        worth = np.exp(theta[:, 5, None])  # R*
        decay = np.exp(-x[:, 2] / worth)
        factor = 1 + worth * (1 - decay)
        log_d = np.log(x[:, 1]) + np.log(factor)
        value, gradient = _joint_value(theta[:, :5], np.log(x[:, 0]), log_d)
        # d ln D' / d ln R*, times d ln L / d ln D' = -β · share of the data's term.
        slope = worth * (1 - decay - decay * x[:, 2] / worth) / factor
        last = -theta[:, 4, None] * gradient[..., 2] * slope
        return value, np.concatenate([gradient, last[..., None]], axis=-1)

    def starts(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the starts of `Chinchilla` for each of three R*."""
        joint = Chinchilla().starts(x, y)
        return np.concatenate(
            [np.c_[joint, np.full(len(joint), np.log(r))] for r in _REPEATS]
        )

    def bounds(self, y: np.ndarray) -> np.ndarray:
        """Returns the bounds; R* lies between 0.001 and 1,000 epochs."""
        return np.c_[Chinchilla().bounds(y), np.log([1e-3, 1e3])]

    def reported(self, theta: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the parameters of `Chinchilla` and R* in epochs."""
        joint = Chinchilla().reported(theta[:, :5], scales[:2])
        return joint | {"repeats": np.exp(theta[:, 5])}


@dataclasses.dataclass(frozen=True, slots=True)
class GainPower:
    """c·x^γ of a gain over a baseline; theta = (ln c, γ)."""

    name: str = "gain_power"
    parameters: tuple[str, ...] = ("c", "gamma")
    num_fitted: int = 2
    num_axes: int = 1
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


def _amounts(y: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Bounds of ln E, ln A, ...: from e^-12 of the loss, which is none, to all."""
    low, high = np.log(y.min()), np.log(y.max())
    return [(low - 12, high + 1)] * count


def _joint_value(
    theta: np.ndarray, log_n: np.ndarray, log_d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln(E + A·N^-α + B·D^-β) [R, n], its gradient [R, n, 5]; log_d: [n] or [R, n]."""
    constant, of_size, of_data, alpha, beta = (theta[:, i, None] for i in range(5))
    size = of_size - alpha * log_n
    data = of_data - beta * log_d
    total = np.logaddexp(np.logaddexp(constant, size), data)
    size, data = np.exp(size - total), np.exp(data - total)
    gradient = [1 - size - data, size, data, -size * log_n, -data * log_d]
    return total, np.stack(gradient, axis=-1)


def _line(theta: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    log_x = np.log(x[:, 0])
    value = theta[:, :1] + theta[:, 1:] * log_x
    gradient = np.stack([np.ones_like(log_x), log_x], axis=-1)
    return value, np.broadcast_to(gradient, (*value.shape, 2))


def _straight(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    log_x = np.log(x[:, 0])
    design = np.stack([np.ones_like(log_x), log_x], axis=-1)
    return np.linalg.lstsq(design, y, rcond=None)[0][None]
