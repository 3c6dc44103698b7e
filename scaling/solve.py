"""Minimizers of the Huber loss of a form's residuals.

    Σ_i w_i · Huber_δi(f(theta, x_i) - t_i),   t = ln y, or y itself for `loglinear`

with residuals and δ multiplied by 10³, and by 1 / mean |y| where t is y itself.

Levenberg-Marquardt steps over thousands of problems at once, which differ in y alone,
so that a bootstrap takes less than a second. They end where L-BFGS-B from the same
starts does, or lower (`tests/scaling/test_solve.py`).
"""

import dataclasses

import numpy as np

from scaling.forms import Form


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is fitted, but for the observations.

    Attributes:
        form: the law.
        x: [n, K] axes, divided by the form's scales.
        scale: what residuals are multiplied by: losses differ by 1e-4 of themselves,
            and tolerances of optimizers are made for 1.
        delta: [n], where the Huber loss turns from a square into a line, in units of
            the targets.
        weights: [n].
        bounds: [2, P].
    """

    form: Form
    x: np.ndarray
    scale: float
    delta: np.ndarray
    weights: np.ndarray
    bounds: np.ndarray


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Minima: theta [R, P], objective [R], and whether each search converged [R]."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


def huber(residuals: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """Returns r²/2 up to |r| = δ, beyond it the tangent δ·(|r| - δ/2)."""
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def objective(
    problem: Problem, theta: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss [R] of theta [R, P] on targets [R, n]; its gradient [R, P]."""
    value, gradient = problem.form.value(theta, problem.x)
    residuals = problem.scale * (value - targets)
    delta = problem.scale * problem.delta
    loss = (problem.weights * huber(residuals, delta)).sum(-1)
    slope = problem.weights * np.clip(residuals, -delta, delta)
    return loss, problem.scale * np.einsum("rn,rnp->rp", slope, gradient)


def solve_many(
    problem: Problem,
    targets: np.ndarray,
    starts: np.ndarray,
    *,
    max_steps: int = 300,
) -> Solution:
    """Returns the minima of R problems, each searched from its own start.

    A step solves (JᵀWJ + λ·diag) s = -JᵀWr with the Huber weights W of the present
    residuals, which bounds the loss from above, and is taken if it lowers the loss;
    a parameter at a bound that the loss pushes outwards stays there.

    Args:
        problem: form, axes, δ, weights and bounds.
        targets: [R, n].
        starts: [R, P].
        max_steps: after which a search has not converged.
    """
    low, high = problem.bounds
    theta = np.clip(starts, low, high)
    loss = objective(problem, theta, targets)[0]
    damping = np.full(len(theta), 1e-3)
    done = np.zeros(len(theta), bool)
    for _ in range(max_steps):
        left = np.flatnonzero(~done)
        if not left.size:
            break
        now, goal = theta[left], targets[left]
        step, promised = _step(problem, now, goal, damping[left])
        new = np.clip(now + step, low, high)
        new_loss = objective(problem, new, goal)[0]
        better = new_loss < loss[left]
        # A search ends where a step would win nothing that floats can tell.
        done[left] = (promised <= 1e-13 * loss[left] + 1e-26) | (damping[left] > 1e15)
        won = left[better]
        theta[won], loss[won] = new[better], new_loss[better]
        damping[left] *= np.where(better, 0.2, 8.0)
        damping[left] = np.maximum(damping[left], 1e-12)
    # Not because damping made the steps short: a whole one would win nothing either.
    promised = _step(problem, theta, targets, np.zeros(len(theta)))[1]
    is_floor = promised <= 1e-6 * loss + 1e-18
    return Solution(theta=theta, objective=loss, converged=done & is_floor)


def best_of_many(problem: Problem, targets: np.ndarray, starts: np.ndarray) -> Solution:
    """Returns the best of `solve_many` from S starts [S, P] for targets [R, n]."""
    count = len(targets)
    ends = solve_many(
        problem,
        np.tile(targets, (len(starts), 1)),
        starts.repeat(count, axis=0),
    )
    best = ends.objective.reshape(len(starts), count).argmin(0)
    chosen = best * count + np.arange(count)
    return Solution(
        theta=ends.theta[chosen],
        objective=ends.objective[chosen],
        converged=ends.converged[chosen],
    )


def _step(
    problem: Problem, theta: np.ndarray, targets: np.ndarray, damping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Steps [R, P], and by how much the linear model says that they lower the loss."""
    low, high = problem.bounds
    value, jacobian = problem.form.value(theta, problem.x)
    residuals = problem.scale * (value - targets)
    delta = problem.scale * problem.delta
    jacobian = problem.scale * jacobian
    weights = problem.weights * np.minimum(
        1, delta / np.maximum(np.abs(residuals), 1e-300)
    )
    weighted = (weights[..., None] * jacobian).swapaxes(-1, -2)
    gradient = (weighted @ residuals[..., None])[..., 0]
    hessian = weighted @ jacobian
    stuck = ((theta <= low) & (gradient > 0)) | ((theta >= high) & (gradient < 0))
    gradient = np.where(stuck, 0, gradient)
    free = ~stuck
    hessian = hessian * (free[:, None] & free[..., None])
    index = np.arange(theta.shape[1])
    diagonal = hessian[:, index, index]
    # Where a parameter has no say, the identity keeps the system solvable.
    floor = 1e-12 * diagonal.max(-1, keepdims=True) + 1e-30
    hessian[:, index, index] = diagonal * (1 + damping[:, None]) + floor
    step = -np.linalg.solve(hessian, gradient[..., None])[..., 0]
    step = np.clip(step, -5, 5)  # a leap in logarithms is never trusted
    promised = -(gradient * step).sum(-1)
    return step, promised
