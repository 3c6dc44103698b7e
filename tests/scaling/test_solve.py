import numpy as np
import pytest
from scipy import optimize

from scaling import forms, solve


def _problem(form, x, y, *, delta):
    scales = form.scales(x)
    return solve.Problem(
        form=form,
        x=x / scales,
        scale=1e3,
        delta=np.full(len(y), delta),
        weights=np.linspace(0.5, 1.5, len(y)),
        bounds=form.bounds(y),
    )


def _power_problem(seed, delta=5e-4, noise=1e-4):
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e6, 3e8, 6).repeat(3)[:, None]
    y = 0.445 + 0.028 * x[:, 0] ** -0.12 + noise * rng.standard_normal(len(x))
    return _problem(forms.POWER_CONST, x, y, delta=delta), y


def _joint_problem(seed):
    rng = np.random.default_rng(seed)
    n, d = np.meshgrid(np.geomspace(1e6, 3e8, 5), np.geomspace(1e6, 1e9, 5))
    x = np.stack([n.ravel(), d.ravel()], axis=1)
    y = 0.445 + 0.028 * x[:, 0] ** -0.12 + 0.6 * x[:, 1] ** -0.25
    y += 2e-5 * rng.standard_normal(len(y))
    return _problem(forms.CHINCHILLA, x, y, delta=1e-4), y


def _by_scipy(problem, targets, starts):
    """The lowest end of L-BFGS-B from every start."""

    def loss(theta):
        value, gradient = solve.objective(problem, theta[None], targets[None])
        return value[0], gradient[0]

    options = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 2000, "maxfun": 4000}
    low, high = problem.bounds
    ends = [
        optimize.minimize(
            loss,
            np.clip(start, low, high),
            jac=True,
            method="L-BFGS-B",
            bounds=optimize.Bounds(low, high),
            options=options,
        )
        for start in starts
    ]
    return min(ends, key=lambda end: end.fun)


def test_huber_is_a_square_then_its_tangent():
    r = np.array([-3.0, -1, 0, 0.5, 1, 4])
    np.testing.assert_allclose(
        solve.huber(r, np.array(1.0)), [2.5, 0.5, 0, 0.125, 0.5, 3.5]
    )


def test_gradient_of_the_loss_equals_central_differences():
    problem, y = _power_problem(0, delta=1e-4)  # some residuals on the tangent
    targets = np.log(y)[None]
    starts = forms.POWER_CONST.starts(problem.x, y)
    theta = solve.best_of_many(problem, targets, starts).theta
    theta = theta + np.array([1e-5, 0.01, 0.02])
    residuals = np.abs(problem.form.value(theta, problem.x)[0] - targets)
    assert (residuals > 1e-4).any() and (residuals < 1e-4).any()
    gradient = solve.objective(problem, theta, targets)[1][0]
    for i in range(3):
        step = np.zeros((1, 3))
        step[0, i] = 1e-6
        up = solve.objective(problem, theta + step, targets)[0]
        down = solve.objective(problem, theta - step, targets)[0]
        assert gradient[i] == pytest.approx((up[0] - down[0]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("delta", [5e-4, 5e-5])
@pytest.mark.parametrize("seed", range(3))
def test_minimum_is_that_of_scipy_or_lower(seed, delta):
    problem, y = _power_problem(seed, delta=delta)
    starts = forms.POWER_CONST.starts(problem.x, y)
    ours = solve.best_of_many(problem, np.log(y)[None], starts)
    theirs = _by_scipy(problem, np.log(y), starts)
    assert ours.converged.all()
    assert ours.objective[0] <= theirs.fun * (1 + 1e-9)
    assert ours.objective[0] == pytest.approx(theirs.fun, rel=1e-6)
    np.testing.assert_allclose(ours.theta[0], theirs.x, atol=2e-3)


def test_joint_minimum_is_that_of_scipy_or_lower():
    problem, y = _joint_problem(0)
    starts = forms.CHINCHILLA.starts(problem.x, y)
    ours = solve.best_of_many(problem, np.log(y)[None], starts)
    theirs = _by_scipy(problem, np.log(y), starts[::3])
    assert ours.converged.all()
    assert ours.objective[0] <= theirs.fun * (1 + 1e-9)
    np.testing.assert_allclose(ours.theta[0], theirs.x, atol=2e-3)


def test_many_problems_at_once_end_where_each_does_alone():
    problem, y = _power_problem(0)
    rng = np.random.default_rng(1)
    targets = np.log(y + 5e-5 * rng.standard_normal((7, len(y))))
    starts = forms.POWER_CONST.starts(problem.x, y)[[2, 7]]
    together = solve.best_of_many(problem, targets, starts)
    for i in range(7):
        alone = solve.best_of_many(problem, targets[i : i + 1], starts)
        np.testing.assert_allclose(together.theta[i], alone.theta[0], rtol=1e-12)


def test_parameter_stays_at_its_bound_where_the_loss_pushes_outwards():
    # A straight line in the logarithm wants α = 0, which is out of bounds.
    x = np.geomspace(1e6, 3e8, 6)[:, None]
    y = 0.45 - 4e-4 * np.log(x[:, 0] / 1e6)
    problem = _problem(forms.POWER_CONST, x, y, delta=1e-3)
    starts = forms.POWER_CONST.starts(problem.x, y)
    end = solve.best_of_many(problem, np.log(y)[None], starts)
    assert end.theta[0, 2] == problem.bounds[0, 2] == np.log(1e-3)
    assert (end.theta >= problem.bounds[0]).all()
    assert (end.theta <= problem.bounds[1]).all()


def test_search_that_is_cut_short_says_so():
    problem, y = _power_problem(0)
    start = forms.POWER_CONST.starts(problem.x, y)[:1]
    end = solve.solve_many(problem, np.log(y)[None], start, max_steps=1)
    assert not end.converged.any()
