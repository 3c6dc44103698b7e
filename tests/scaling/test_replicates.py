import numpy as np
import pytest
from scipy import stats

from scaling import bootstrap


def _replicates(
    values, fitted=None, *, sizes, runs=None, checkpoints=None, count=20_000
):
    values = np.array(values, float)
    return bootstrap.replicates(
        values,
        values if fitted is None else np.array(fitted, float),
        sizes=sizes,
        runs=runs or list(range(len(values))),
        checkpoints=checkpoints or [0] * len(values),
        num_parameters=2,
        num_replicates=count,
        rng=np.random.default_rng(0),
    )


def test_mean_of_resampled_seeds_varies_as_an_unbiased_estimate_says():
    values = [1.0, 2.0, 4.0, 10.0, 10.5, 11.0]
    drawn, how = _replicates(values, sizes=["a"] * 3 + ["b"] * 3)
    assert how == "seeds within sizes"
    for part in (slice(0, 3), slice(3, 6)):
        own = np.array(values[part])
        means = drawn[:, part].mean(1)
        assert means.mean() == pytest.approx(own.mean(), abs=0.02)
        # Var of a mean of 3 is s² / 3 with s² of n - 1, not the smaller one of n; and
        # quantiles are those of t with 4 degrees of freedom, 2.132 for 1.645.
        expected = own.var(ddof=1) / 3 * (2.132 / 1.645) ** 2
        assert means.var() == pytest.approx(expected, rel=0.03)
    correlation = np.corrcoef(drawn[:, 0], drawn[:, 3])[0, 1]
    assert abs(correlation) < 0.03


def test_size_of_one_seed_takes_the_deviations_of_others():
    values = [1.0, 2.0, 4.0, 10.0]
    drawn, _ = _replicates(values, sizes=["a", "a", "a", "b"])
    own = np.array(values[:3])
    possible = 10 + np.sqrt(1.5) * stats.t.ppf(0.95, 2) / 1.6448536 * (own - own.mean())
    np.testing.assert_allclose(np.unique(drawn[:, 3].round(6)), possible.round(6))


def test_checkpoints_of_a_run_are_drawn_together():
    # Two runs of one size, three checkpoints; run "y" lies 1 above run "x".
    values = [5.0, 4.0, 3.0, 6.0, 5.0, 4.0]
    drawn, how = _replicates(
        values, sizes=["a"] * 6, runs=["x"] * 3 + ["y"] * 3, checkpoints=[1, 2, 3] * 2
    )
    assert how == "seeds within sizes"
    assert np.ptp(drawn[:, :3] - np.array([5.0, 4, 3]), axis=1).max() < 1e-9


def test_without_seeds_residuals_are_drawn():
    fitted = np.linspace(5, 6, 8)
    residuals = np.array([1, -1, 2, -2, 1, -1, 0.5, -0.5])
    drawn, how = _replicates(fitted + residuals, fitted, sizes=list(range(8)))
    assert how == "residuals"
    # Stretched by n / (n - P) = 8 / 6: residuals of a fit are smaller than its errors.
    expected = residuals.var() * 8 / 6 * (1.943 / 1.645) ** 2
    np.testing.assert_allclose((drawn - fitted).var(0), expected, rtol=0.05)
    np.testing.assert_allclose(drawn.mean(0), fitted, atol=0.05)


def test_without_seeds_runs_keep_the_shape_of_their_residuals():
    fitted = np.tile([5.0, 4.0], 3)
    residuals = np.array([0.1, 0.2, -0.3, 0.1, 0.2, -0.1])
    drawn, how = _replicates(
        fitted + residuals,
        fitted,
        sizes=["a", "a", "b", "b", "c", "c"],
        runs=["a", "a", "b", "b", "c", "c"],
        checkpoints=[1, 2] * 3,
    )
    assert how == "residuals of runs"
    # Three runs tell two parameters apart: one degree of freedom, whose t is 6.314.
    stretch = np.sqrt(3 / 1) * 6.314 / 1.645
    factor = (drawn - fitted) / residuals / stretch
    np.testing.assert_allclose(factor[:, ::2], factor[:, 1::2])
    np.testing.assert_allclose(factor.mean(0), 0, atol=0.03)
    np.testing.assert_allclose(factor.var(0), 1, atol=0.03)


def test_two_points_of_one_checkpoint_are_refused():
    with pytest.raises(ValueError, match="run 'x' has two points of one checkpoint"):
        _replicates([1, 2], sizes=["a", "a"], runs=["x", "x"], count=1)
