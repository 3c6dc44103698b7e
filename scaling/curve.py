"""One law fitted to one set of points, with bootstrap intervals of all it says."""

from collections.abc import Hashable, Sequence
import dataclasses

import numpy as np
from scipy import stats

from scaling import bootstrap, forms, solve
from scaling.forms import Form

NUM_REPLICATES = 1000
# δ of the Huber loss in standard deviations of a seed: rarer than one point in eighty.
DELTA_IN_SIGMAS = 2.5
# Chinchilla's δ, for want of a measured noise.
DEFAULT_DELTA = 1e-3
# "Curvature not identified" if the 90 % interval of α is wider.
WIDEST_EXPONENT = 0.1
# An end of an interval this close to a bound touches it.
_TOUCH = 2.0

LOW, HIGH = 5, 95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """What a law is fitted to; seeds of a size are points of their own.

    Attributes:
        x: [n, K] axes, all positive.
        y: [n] metric, positive, low is good (AUC enters as 1 - AUC).
        sizes: [n], names.
        runs: [n], names; () for a run a point.
        checkpoints: [n], names that are different within a run; () for one a run.
    """

    x: np.ndarray
    y: np.ndarray
    sizes: Sequence[Hashable] = ()
    runs: Sequence[Hashable] = ()
    checkpoints: Sequence[Hashable] = ()

    def __post_init__(self) -> None:
        """Fills in names and checks shapes and signs."""
        x = np.asarray(self.x, np.float64)
        x = x[:, None] if x.ndim == 1 else x
        y = np.asarray(self.y, np.float64)
        count = len(y)
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)
        if not self.sizes:
            object.__setattr__(self, "sizes", [tuple(row) for row in x])
        if not self.runs:
            object.__setattr__(self, "runs", list(range(count)))
        if not self.checkpoints:
            object.__setattr__(self, "checkpoints", [0] * count)
        for name in ("x", "sizes", "runs", "checkpoints"):
            if len(getattr(self, name)) != count:
                raise ValueError(
                    f"{len(getattr(self, name))} {name} for {count} values of y; give "
                    "one for each"
                )
        if not np.isfinite(y).all() or not np.isfinite(x).all():
            raise ValueError("points hold a value that is not finite; leave it out")

    @property
    def num_sizes(self) -> int:
        """Number of different sizes."""
        return len(set(self.sizes))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number with the 5 %, 50 % and 95 % quantiles of its bootstrap replicates."""

    value: float
    p5: float
    p50: float
    p95: float

    def to_dict(self) -> dict[str, float]:
        """Returns the four numbers by name."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A fitted law.

    Attributes:
        form: the law.
        points: what it was fitted to.
        theta: [P], in the coordinates of `scaling.forms`.
        draws: [R, P], the same of the replicates.
        scales: [K], what axes are divided by.
        objective: sum of Huber losses of residuals × 10³.
        converged: whether the search ended at a floor.
        share_converged: of the replicates, how many did.
        delta: median δ over points, relative to the metric.
        sigma: standard deviation of a seed, pooled or median over points; None where
            nobody measured it.
        resampled: how replicates were made.
        residuals: [n], ln y - ln fit; y - fit of `loglinear`.
    """

    form: Form
    points: Points
    theta: np.ndarray
    draws: np.ndarray
    scales: np.ndarray
    objective: float
    converged: bool
    share_converged: float
    delta: float
    sigma: float | None
    resampled: str
    residuals: np.ndarray

    def predict(self, x: np.ndarray | Sequence[float]) -> np.ndarray:
        """Returns the metric [m] at axes x, [m] or [m, K]."""
        return _predict(self.form, self.theta[None], x, self.scales)[0]

    def predict_draws(self, x: np.ndarray | Sequence[float]) -> np.ndarray:
        """Returns the metric [R, m] of every replicate at axes x, [m] or [m, K]."""
        return _predict(self.form, self.draws, x, self.scales)

    def interval(self, x: np.ndarray | Sequence[float]) -> list[Estimate]:
        """Returns the predicted metric with its 90 % interval at each x."""
        return estimates(self.predict(x), self.predict_draws(x))

    def change(
        self, x: Sequence[float] | float, new_x: Sequence[float] | float
    ) -> Estimate:
        """Returns by how much the metric changes from x to new_x, with its interval."""
        both = np.array([np.atleast_1d(x), np.atleast_1d(new_x)], np.float64)
        value, draws = self.predict(both), self.predict_draws(both)
        return estimates(value[1:] - value[:1], draws[:, 1:] - draws[:, :1])[0]

    def parameters(self) -> dict[str, Estimate]:
        """Returns the law's parameters in the units of its axes, with intervals."""
        value = self.form.reported(self.theta[None], self.scales)
        draws = self.form.reported(self.draws, self.scales)
        return {name: estimates(value[name], draws[name][:, None])[0] for name in value}

    @property
    def is_curvature_identified(self) -> bool:
        """Whether exponents and the constant are told apart from a straight line.

        Not if the 90 % interval of an exponent is wider than 0.1 or touches its bound,
        nor if that of the constant reaches 0: both are what a straight line looks like.
        """
        return not self.why_not_identified()

    def why_not_identified(self) -> list[str]:
        """Returns reasons in words, [] if the curvature is identified."""
        parameters = self.parameters()
        reasons = []
        for name in ("alpha", "beta"):
            if name not in parameters:
                continue
            low, high = parameters[name].p5, parameters[name].p95
            if high - low > WIDEST_EXPONENT:
                reasons.append(f"90 % interval of {name} is {low:.3f} to {high:.3f}")
            elif low <= forms.EXPONENT_BOUNDS[0] * _TOUCH:
                reasons.append(f"{name} reaches its lower bound: {low:.3g}")
            elif high >= forms.EXPONENT_BOUNDS[1] / _TOUCH:
                reasons.append(f"{name} reaches its upper bound: {high:.3g}")
        if "E" in parameters:
            smallest = forms.NO_CONSTANT * self.points.y.min()
            if parameters["E"].p5 < smallest:
                reasons.append("the interval of E reaches 0")
        return reasons


def fit(
    form: Form,
    points: Points,
    *,
    sigma: float | np.ndarray | None,
    num_replicates: int = NUM_REPLICATES,
    seed: int = 0,
    drawn: np.ndarray | None = None,
) -> Fit:
    """Fits a form to points.

    Args:
        form: the law.
        points: more of them than the law has parameters.
        sigma: standard deviation of a point over seeds: one number, or [n] where it
            differs, which then also weighs points by 1 / sigma²; None where unknown.
        num_replicates: R of the bootstrap; 0 for none.
        seed: of the bootstrap.
        drawn: replicates [R, n] of y that the caller made; else they are made as
            `scaling.bootstrap` says.

    Raises:
        ValueError: fewer different points than parameters, or a value that is not
            positive where the form takes logarithms.
    """
    _check(form, points)
    scales = form.scales(points.x)
    problem = _problem(form, points, scales, sigma)
    targets = _targets(form, points.y)
    starts = form.starts(problem.x, points.y)
    best = solve.best_of_many(problem, targets[None], starts)
    value = _predict(form, best.theta, points.x, scales)[0]
    resampled = "as given"
    if drawn is None:
        drawn, resampled = bootstrap.replicates(
            points.y,
            value,
            sizes=points.sizes,
            runs=points.runs,
            checkpoints=points.checkpoints,
            num_parameters=form.num_fitted,
            num_replicates=num_replicates,
            rng=np.random.default_rng(seed),
            num_within=form.num_within,
        )
    if form.is_log:
        # A drawn gain may fall below 0, which has no logarithm.
        drawn = np.maximum(drawn, 1e-2 * points.y.min())
    ends = solve.best_of_many(
        problem,
        _targets(form, drawn),
        np.concatenate([best.theta, _nearest(problem, targets, starts)]),
    )
    return Fit(
        form=form,
        points=points,
        theta=best.theta[0],
        draws=ends.theta,
        scales=scales,
        objective=float(best.objective[0]),
        converged=bool(best.converged[0]),
        share_converged=float(ends.converged.mean()) if len(drawn) else 1.0,
        delta=float(np.median(problem.delta * problem.scale)) / 1e3,
        sigma=None if sigma is None else float(np.median(sigma)),
        resampled=resampled,
        residuals=targets - _targets(form, value),
    )


def estimates(value: np.ndarray, draws: np.ndarray) -> list[Estimate]:
    """Returns values [m] with quantiles of their replicates [R, m]; R may be 0."""
    if not len(draws):
        draws = np.full((1, len(value)), np.nan)
    quantiles = np.percentile(draws, [LOW, 50, HIGH], axis=0)
    return [
        Estimate(value=float(v), p5=float(a), p50=float(b), p95=float(c))
        for v, a, b, c in zip(value, *quantiles, strict=True)
    ]


def lack_of_fit(fit: Fit) -> float:
    """Returns the p-value of the F test that only noise parts the points from the law.

    The spread of points of one x measures the noise, and the means of each x should
    differ from the law by no more. 1.0 where no x has two points, or where there are no
    more different x than parameters.
    """
    groups: dict[tuple[float, ...], list[float]] = {}
    for x, residual in zip(np.atleast_2d(fit.points.x.T).T, fit.residuals, strict=True):
        groups.setdefault(tuple(x), []).append(residual)
    means = {x: float(np.mean(own)) for x, own in groups.items()}
    pure = sum(((np.array(own) - means[x]) ** 2).sum() for x, own in groups.items())
    lack = sum(len(own) * means[x] ** 2 for x, own in groups.items())
    freedom = len(groups) - fit.form.num_fitted, len(fit.residuals) - len(groups)
    if min(freedom) < 1 or not pure:
        return 1.0
    return float(stats.f.sf(lack / freedom[0] / (pure / freedom[1]), *freedom))


def slope_ratio(first: Fit, second: Fit) -> Estimate:
    """Returns b₁ / b₂ of two log-linear fits: how much steeper the first law is.

    Both must have seen the same data and axis. Its quantiles pair replicates at random,
    as runs of two ladders are independent, and mean nothing where the interval of b₂
    holds 0 (`parameters` tells).
    """
    if not (first.form is second.form is forms.LOGLINEAR):
        raise ValueError(
            f"a ratio of slopes needs two loglinear fits, got {first.form.name} and "
            f"{second.form.name}"
        )
    count = min(len(first.draws), len(second.draws))
    value = first.theta[1:] / second.theta[1:]
    # Fits of one seed draw the same residuals in the same order.
    below = np.random.default_rng(2).permutation(second.draws[:, 1:])
    return estimates(value, first.draws[:count, 1:] / below[:count])[0]


def _check(form: Form, points: Points) -> None:
    if points.x.shape[1] != form.num_axes:
        raise ValueError(
            f"{form.name} takes {form.num_axes} axes, got {points.x.shape[1]}"
        )
    different = len(np.unique(points.x, axis=0))
    if different < form.num_fitted:
        raise ValueError(
            f"{form.name} has {form.num_fitted} parameters and there are points at "
            f"{different} different sizes; add sizes or fit a form of fewer parameters"
        )
    if form.is_log and points.y.min() <= 0:
        raise ValueError(
            f"{form.name} takes logarithms and the smallest metric is "
            f"{points.y.min():.6g}; leave such points out"
        )
    if points.x[:, : min(form.num_axes, 2)].min() <= 0:
        raise ValueError("an axis holds a value that is not positive; leave it out")


def _problem(
    form: Form, points: Points, scales: np.ndarray, sigma: float | np.ndarray | None
) -> solve.Problem:
    y = points.y
    unit = y if form.is_log else np.ones_like(y)  # noise of ln y is sigma / y
    center = float(np.abs(y).mean())
    if sigma is None:
        delta = DEFAULT_DELTA * (np.ones_like(y) if form.is_log else center * unit)
    else:
        delta = DELTA_IN_SIGMAS * sigma / unit
    weights = np.ones_like(y)
    if isinstance(sigma, np.ndarray):
        weights = (unit / sigma) ** 2
        weights = weights / weights.mean()
    return solve.Problem(
        form=form,
        x=points.x / scales,
        scale=1e3 if form.is_log else 1e3 / (center or 1),
        delta=np.maximum(delta, 1e-12),
        weights=weights,
        bounds=form.bounds(y),
    )


def _targets(form: Form, y: np.ndarray) -> np.ndarray:
    return np.log(y) if form.is_log else y


def _nearest(
    problem: solve.Problem, targets: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """The two starts that are best before any step."""
    loss = solve.objective(problem, starts, targets[None])[0]
    return starts[np.argsort(loss)[:2]]


def _predict(
    form: Form, theta: np.ndarray, x: np.ndarray | Sequence[float], scales: np.ndarray
) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x[:, None] if x.ndim == 1 else x
    value = form.value(theta, x / scales)[0]
    return np.exp(value) if form.is_log else value
