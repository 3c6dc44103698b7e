"""Replicates of a set of points, for intervals of what is fitted to them.

Where sizes were trained with several seeds, the seeds of each size are drawn with
replacement, a run with all its checkpoints, since those err together. Deviations of the
drawn seeds from their size's mean are stretched by √(S / (S - 1)): S seeds drawn from S
vary too little, three by a factor of √(2/3). A size of one seed takes the stretched
deviation of a seed of another size, drawn at random.

Where no size has two seeds, residuals of the fit are drawn instead, stretched by
√(n / (n - P)) since a fit of P parameters makes them small; of G runs with several
checkpoints, the residuals of each run are multiplied by one random number with mean 0
and variance 1 (Webb's six points, made for few clusters), and n is G and P the number
of parameters that only the difference between runs tells.

All are stretched once more, by t_ν / z at 95 %, as intervals of `rankax.compare` are:
ν degrees of freedom, Σ (S - 1) or n - P, are few, and normal quantiles of so few make
intervals too narrow.
"""

import collections
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from scipy import stats

_WEBB = np.sqrt([0.5, 1.0, 1.5])
_WEBB = np.concatenate([-_WEBB, _WEBB])


def replicates(
    values: np.ndarray,
    fitted: np.ndarray,
    *,
    sizes: Sequence[Hashable],
    runs: Sequence[Hashable],
    checkpoints: Sequence[Hashable],
    num_parameters: int,
    num_replicates: int,
    rng: np.random.Generator,
    num_within: int = 0,
) -> tuple[np.ndarray, str]:
    """Returns replicates [R, n] of the values and which of the ways made them.

    Args:
        values: [n] of the points.
        fitted: [n], what the fit says of them.
        sizes: [n], whose point it is.
        runs: [n], from which run; runs of different sizes have different names.
        checkpoints: [n], of one run all different.
        num_parameters: P.
        num_replicates: R.
        rng: source of the drawing.
        num_within: of the parameters, how many the checkpoints of one run tell.
    """
    rows_of = _rows_of_runs(runs, checkpoints)
    runs_of: dict[Hashable, list[Hashable]] = collections.defaultdict(list)
    for size, run in zip(sizes, runs, strict=True):
        if run not in runs_of[size]:
            runs_of[size].append(run)
    freedom = sum(len(of_size) - 1 for of_size in runs_of.values())
    deviations = {
        size: _deviations(
            values, [rows_of[run] for run in of_size], checkpoints, freedom
        )
        for size, of_size in runs_of.items()
    }
    has_seeds = any(d is not None for d in deviations.values())
    if not has_seeds and all(len(rows) == 1 for rows in rows_of.values()):
        return _of_residuals(values, fitted, num_parameters, num_replicates, rng)
    result = np.tile(values, (num_replicates, 1))
    stretch = _stretch(len(rows_of), num_parameters - num_within)
    for size, of_size in runs_of.items():
        own = deviations[size]
        rows = [rows_of[run] for run in of_size]
        if own is not None:
            _draw_seeds(result, values, own, rows, rng)
        else:
            residuals = stretch * (values - fitted)
            _draw_elsewhere(
                result, values, fitted, residuals, deviations.values(), rows, rng
            )
    return result, "seeds within sizes" if has_seeds else "residuals of runs"


def _student(freedom: int) -> float:
    """How much longer a quantile of Student's t is than one of the normal."""
    return float(stats.t.ppf(0.95, freedom) / stats.norm.ppf(0.95))


def _stretch(count: int, num_parameters: int) -> float:
    """What makes residuals as large as errors, and their quantiles those of t."""
    freedom = max(count - num_parameters, 1)
    return float(np.sqrt(count / freedom)) * _student(freedom)


def _rows_of_runs(
    runs: Sequence[Hashable], checkpoints: Sequence[Hashable]
) -> dict[Hashable, np.ndarray]:
    """Run -> its rows, in the order of their checkpoints."""
    found: dict[Hashable, list[int]] = collections.defaultdict(list)
    for row, run in enumerate(runs):
        found[run].append(row)
    order = {}
    for run, rows in found.items():
        names = [checkpoints[row] for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(
                f"run {run!r} has two points of one checkpoint: {names}; keep one "
                "point a run and checkpoint"
            )
        order[run] = np.array(sorted(rows, key=lambda row: str(checkpoints[row])))
    return order


def _deviations(
    values: np.ndarray,
    rows: Sequence[np.ndarray],
    checkpoints: Sequence[Hashable],
    freedom: int,
) -> np.ndarray | None:
    """Stretched deviations [S, K] of a size's S runs at their K checkpoints.

    None where there is one run, or where runs have different checkpoints.
    """
    names = {tuple(checkpoints[row] for row in of_run) for of_run in rows}
    if len(rows) < 2 or len(names) > 1:
        return None
    table = np.array([values[of_run] for of_run in rows])
    stretch = np.sqrt(len(rows) / (len(rows) - 1)) * _student(freedom)
    return stretch * (table - table.mean(0))


def _draw_seeds(
    result: np.ndarray,
    values: np.ndarray,
    deviations: np.ndarray,
    rows: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> None:
    mean = np.mean([values[of_run] for of_run in rows], axis=0)
    drawn = rng.integers(len(rows), size=(len(result), len(rows)))
    for i, of_run in enumerate(rows):
        result[:, of_run] = mean + deviations[drawn[:, i]]


def _draw_elsewhere(
    result: np.ndarray,
    values: np.ndarray,
    fitted: np.ndarray,
    residuals: np.ndarray,
    deviations: Iterable[np.ndarray | None],
    rows: Sequence[np.ndarray],
    rng: np.random.Generator,
) -> None:
    """Fills in runs of a size that has no deviations of its own."""
    known = [d for d in deviations if d is not None]
    for of_run in rows:
        pool = [d for d in known if d.shape[1] == len(of_run)]
        if pool:
            table = np.concatenate(pool)
            drawn = table[rng.integers(len(table), size=len(result))]
            result[:, of_run] = values[of_run] + drawn
        else:
            factor = rng.choice(_WEBB, size=(len(result), 1))
            result[:, of_run] = fitted[of_run] + factor * residuals[of_run]


def _of_residuals(
    values: np.ndarray,
    fitted: np.ndarray,
    num_parameters: int,
    num_replicates: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, str]:
    count = len(values)
    residuals = values - fitted
    residuals = residuals - residuals.mean()
    residuals = residuals * _stretch(count, num_parameters)
    drawn = rng.integers(count, size=(num_replicates, count))
    return fitted + residuals[drawn], "residuals"
