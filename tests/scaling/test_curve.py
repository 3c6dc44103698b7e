"""Fits against laws that are known: planted ones, and published points."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from scaling import curve, forms

# shared knowledge of all tests: a CTR model's law, 0.003 of loss between 1e6 and 1e9
E, ALPHA = 0.445, 0.12
A = 0.003 / (1e6**-ALPHA - 1e9**-ALPHA)


def _power(x):
    return E + A * np.asarray(x, float) ** -ALPHA


def _noisy(sizes, seeds, sigma, seed):
    rng = np.random.default_rng(seed)
    x = np.geomspace(1e6, 3e8, sizes).repeat(seeds)
    return curve.Points(x=x, y=_power(x) + sigma * rng.standard_normal(len(x)))


def _fit(form, points, sigma=None, replicates=0, **more):
    return curve.fit(form, points, sigma=sigma, num_replicates=replicates, **more)


# ---------------------------------------------------------------- planted laws


@pytest.mark.parametrize("alpha", [0.05, 0.12, 0.5, 1.2])
def test_noiseless_power_law_is_recovered(alpha):
    x = np.geomspace(1e6, 3e8, 6)
    y = E + 0.003 * (x / 1e6) ** -alpha
    fit = _fit(forms.POWER_CONST, curve.Points(x=x, y=y))
    found = fit.parameters()
    assert fit.converged
    assert found["E"].value == pytest.approx(E, abs=1e-6)
    assert found["alpha"].value == pytest.approx(alpha, abs=1e-6)
    assert found["A"].value == pytest.approx(0.003 * 1e6**alpha, rel=1e-5)
    assert fit.predict([1e9])[0] == pytest.approx(E + 0.003 * 1e3**-alpha, abs=1e-9)


def test_recovery_does_not_depend_on_the_units_of_the_axis():
    x = np.geomspace(1e6, 3e8, 6)
    y = _power(x)
    fits = [_fit(forms.POWER_CONST, curve.Points(x=x * u, y=y)) for u in (1e-6, 1, 1e9)]
    for fit in fits:
        assert fit.parameters()["alpha"].value == pytest.approx(ALPHA, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_joint_law_is_recovered_from_noisy_points(seed):
    rng = np.random.default_rng(seed)
    n, d = (
        v.ravel()
        for v in np.meshgrid(np.geomspace(1e6, 3e8, 6), np.geomspace(1e7, 3e9, 6))
    )
    y = _power(n) + 0.02 * (d / 1e7) ** -0.25 + 2e-5 * rng.standard_normal(36)
    points = curve.Points(x=np.stack([n, d], 1), y=y)
    found = _fit(forms.CHINCHILLA, points, 2e-5).parameters()
    assert found["alpha"].value == pytest.approx(ALPHA, abs=0.02)
    assert found["beta"].value == pytest.approx(0.25, abs=0.005)
    share = found["beta"].value / (found["alpha"].value + found["beta"].value)
    assert found["allocation"].value == pytest.approx(share)


def test_worth_of_repeated_examples_is_recovered():
    n = np.geomspace(1e6, 1e8, 4).repeat(8)
    seen = np.tile([1e6, 3e6, 1e7, 2e7, 4e7, 8e7, 1.6e8, 3.2e8], 4)
    axes = forms.repeat_axes(n, seen, 1e7)
    worth = axes[:, 1] * (1 + 5 * (1 - np.exp(-axes[:, 2] / 5)))
    y = 1.7 + 400 * n**-0.34 + 410 * worth**-0.28
    found = _fit(forms.REPEAT, curve.Points(x=axes, y=y)).parameters()
    assert found["repeats"].value == pytest.approx(5, rel=1e-4)
    assert found["beta"].value == pytest.approx(0.28, abs=1e-5)


def test_straight_line_equals_least_squares():
    rng = np.random.default_rng(0)
    x = np.geomspace(1e6, 3e8, 8)
    y = 0.45 - 4e-4 * np.log(x) + 1e-5 * rng.standard_normal(8)
    found = _fit(forms.LOGLINEAR, curve.Points(x=x, y=y), 1e-3).parameters()
    slope, level = np.polyfit(np.log(x), y, 1)
    assert found["b"].value == pytest.approx(slope, rel=1e-9)
    assert found["a"].value == pytest.approx(level, rel=1e-9)


# ---------------------------------------------------------------- published points


def test_published_tokenmixer_gains_have_exponent_089():
    # TokenMixer-Large: ΔAUC of 0.94, 1.14, 1.20 at 501M, 4.6B and 7.6B parameters.
    points = curve.Points(
        x=np.array([501e6, 4.6e9, 7.6e9]), y=np.array([0.94, 1.14, 1.2])
    )
    found = _fit(
        forms.GAIN_POWER, points, 10.0
    ).parameters()  # all within δ: a plain line
    assert found["gamma"].value == pytest.approx(0.089, abs=0.003)


def test_published_unimixer_constants_give_the_rankmixer_row():
    x = np.array([6.0, 20.0, 60.0, 135.0])  # millions of parameters
    points = curve.Points(x=x, y=0.002718 * x**0.116)
    fit = _fit(forms.GAIN_POWER, points)
    assert fit.parameters()["c"].value == pytest.approx(0.002718, rel=1e-6)
    assert fit.predict([135.5])[0] == pytest.approx(0.0048, abs=5e-5)


def test_published_wukong_curve_is_a_straight_line_of_098_per_quadrupling():
    x = np.geomspace(1, 100, 6)  # GFLOP an example
    y = -100 + 99.56 * x**0.00071  # change of logloss, %
    fit = _fit(forms.LOGLINEAR, curve.Points(x=x, y=y))
    assert fit.change(1, 4).value == pytest.approx(0.098, abs=0.0005)
    assert np.abs(fit.residuals).max() < 1e-4
    assert fit.parameters()["b"].value == pytest.approx(0.0707, abs=0.0005)


def test_chinchilla_constants_are_recovered_from_the_published_law():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), (2, 60)))
    y = 1.69 + 406.4 * n**-0.34 + 410.7 * (10 * d) ** -0.28
    found = _fit(forms.CHINCHILLA, curve.Points(x=np.stack([n, 10 * d], 1), y=y))
    values = {name: each.value for name, each in found.parameters().items()}
    assert values["E"] == pytest.approx(1.69, rel=1e-5)
    assert values["A"] == pytest.approx(406.4, rel=1e-4)
    assert values["B"] == pytest.approx(410.7, rel=1e-4)
    assert values["allocation"] == pytest.approx(0.28 / 0.62, rel=1e-5)


# ---------------------------------------------------------------- outliers and weights


def test_delta_of_measured_noise_protects_from_an_outlier():
    """One run of eight is 5e-4 off: δ = 1e-3 lets it move α, δ of the noise hardly."""
    moved = {1e-3: [], 1e-4: []}
    for seed in range(30):
        points = _noisy(8, 1, 1e-5, seed)
        y = points.y.copy()
        y[seed % 8] += 5e-4 * (-1) ** seed
        spoiled = curve.Points(x=points.x, y=y)
        for delta, found in moved.items():
            # δ = 2.5 σ / L, turned round
            fit = _fit(forms.POWER_CONST, spoiled, delta * y.mean() / 2.5)
            assert fit.delta == pytest.approx(delta, rel=0.02)
            found.append(abs(fit.parameters()["alpha"].value - ALPHA))
    assert np.median(moved[1e-4]) < 0.02
    assert np.median(moved[1e-3]) > 2.5 * np.median(moved[1e-4])


def test_noisier_points_weigh_less():
    points = _noisy(6, 3, 0, 0)
    y = points.y.copy()
    y[points.x[:, 0] == 1e6] += 2e-4
    spoiled = curve.Points(x=points.x, y=y)
    sigma = np.where(points.x[:, 0] == 1e6, 1e-2, 1e-4)
    weighted = _fit(forms.POWER_CONST, spoiled, sigma).parameters()["alpha"].value
    # one δ for all, so wide that no point is an outlier
    equal = _fit(forms.POWER_CONST, spoiled, 1e-2).parameters()["alpha"].value
    assert weighted == pytest.approx(ALPHA, abs=1e-3)
    assert abs(equal - ALPHA) > 0.02


# ---------------------------------------------------------------- intervals


def test_straight_truth_has_no_identified_curvature():
    verdicts = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = np.geomspace(1e6, 3e8, 8).repeat(3)
        y = 0.45 - 4.3e-4 * np.log(x / 1e6) + 1e-4 * rng.standard_normal(24)
        fit = _fit(forms.POWER_CONST, curve.Points(x=x, y=y), 1e-4, 200)
        verdicts.append(fit.is_curvature_identified)
        assert verdicts[-1] == (not fit.why_not_identified())
    # One in twenty intervals lies above the bound by chance.
    assert np.mean(verdicts) <= 0.2


def test_steep_straight_truth_leaves_no_constant():
    x = np.geomspace(1, 100, 8)
    fit = _fit(forms.POWER_CONST, curve.Points(x=x, y=1 - 0.1 * np.log(x)), 1e-4, 50)
    assert "the interval of E reaches 0" in fit.why_not_identified()


def test_clear_curve_is_identified():
    fit = _fit(forms.POWER_CONST, _noisy(8, 3, 1e-5, 0), 1e-5, 200)
    assert fit.is_curvature_identified
    found = fit.parameters()["alpha"]
    assert found.value == pytest.approx(ALPHA, abs=0.01)
    assert found.p5 < found.p50 < found.p95 < found.p5 + 0.05


def test_interval_of_a_line_is_about_as_wide_as_theory_says():
    # var b = σ² / Σ (u - ū)²; t of 32 degrees of freedom has 95 % below 1.694.
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 100, 8).repeat(5)
    widths = []
    for _ in range(30):
        y = 1 + 0.05 * np.log(x) + 1e-3 * rng.standard_normal(len(x))
        slope = _fit(forms.LOGLINEAR, curve.Points(x=x, y=y), 1e-2, 400).parameters()[
            "b"
        ]
        widths.append(slope.p95 - slope.p5)
    u = np.log(x)
    expected = 2 * 1.694 * 1e-3 / np.sqrt(((u - u.mean()) ** 2).sum())
    assert np.mean(widths) == pytest.approx(expected, rel=0.08)


def test_ratio_of_slopes_and_its_interval():
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 100, 6).repeat(3)
    fits = [
        _fit(
            forms.LOGLINEAR,
            curve.Points(x=x, y=1 - b * np.log(x) + 1e-3 * rng.standard_normal(18)),
            1e-3,
            300,
            seed=seed,
        )
        for seed, b in enumerate((0.06, 0.02))
    ]
    ratio = curve.slope_ratio(*fits)
    assert ratio.p5 < 3 < ratio.p95
    assert ratio.value == pytest.approx(
        fits[0].parameters()["b"].value / fits[1].parameters()["b"].value
    )
    with pytest.raises(ValueError, match="two loglinear fits, got power_const"):
        curve.slope_ratio(_fit(forms.POWER_CONST, _noisy(5, 1, 0, 0)), fits[0])


def test_interval_of_a_ratio_is_that_of_all_pairs_of_replicates():
    """Both fits are of one seed, and happen to have the same residuals."""
    x = np.geomspace(1, 100, 6).repeat(3)
    noise = 1e-3 * np.random.default_rng(0).standard_normal(18)
    first, second = (
        _fit(forms.LOGLINEAR, curve.Points(x=x, y=1 - b * np.log(x) + noise), 1e-3, 500)
        for b in (0.002, 0.004)
    )
    ratio = curve.slope_ratio(first, second)
    pairs = first.draws[:, None, 1] / second.draws[None, :, 1]
    low, high = np.percentile(pairs, [5, 95])
    assert (ratio.p5, ratio.p95) == pytest.approx((low, high), abs=0.07 * (high - low))


def test_same_seed_gives_the_same_intervals():
    points = _noisy(5, 3, 1e-4, 0)
    first, again, other = (
        _fit(forms.POWER_CONST, points, 1e-4, 20, seed=s).draws for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_change_is_the_difference_of_predictions():
    fit = _fit(forms.POWER_CONST, _noisy(6, 3, 1e-5, 0), 1e-5, 50)
    change = fit.change(3e8, 6e8)
    assert change.value == pytest.approx(_power(6e8) - _power(3e8), abs=3e-5)
    draws = fit.predict_draws([3e8, 6e8])
    assert change.p95 == pytest.approx(np.percentile(draws[:, 1] - draws[:, 0], 95))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "sigma", "seeds"),
    [(5, 1e-4, 1), (8, 1e-4, 1), (8, 1e-4, 3), (8, 2e-5, 1), (12, 1e-4, 3)],
)
def test_interval_of_alpha_covers_the_truth_as_often_as_it_says(sizes, sigma, seeds):
    covered = 0
    for trial in range(200):
        points = _noisy(sizes, seeds, sigma, 10_000 + trial)
        found = _fit(forms.POWER_CONST, points, sigma, 200, seed=trial).parameters()
        covered += found["alpha"].p5 <= ALPHA <= found["alpha"].p95
    assert 0.80 <= covered / 200 <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_of_a_joint_law_cover_the_truth(seeds):
    """Noise is mostly that of a run, the same at all its checkpoints."""
    sizes, data = np.geomspace(1e6, 3e8, 6), np.geomspace(1e7, 3e9, 6)
    n, _, d = (v.ravel() for v in np.meshgrid(sizes, range(seeds), data, indexing="ij"))
    run = np.arange(6 * seeds).repeat(6)
    covered = {"alpha": 0, "beta": 0}
    for trial in range(60):
        rng = np.random.default_rng(trial)
        noise = 5e-5 * rng.standard_normal(6 * seeds).repeat(6)
        noise += 1e-5 * rng.standard_normal(len(n))
        y = _power(n) + 0.02 * (d / 1e7) ** -0.25 + noise
        points = curve.Points(
            x=np.stack([n, d], 1),
            y=y,
            sizes=n.tolist(),
            runs=run.tolist(),
            checkpoints=d.tolist(),
        )
        found = _fit(forms.CHINCHILLA, points, 5e-5, 100, seed=trial).parameters()
        for name, truth in (("alpha", ALPHA), ("beta", 0.25)):
            covered[name] += found[name].p5 <= truth <= found[name].p95
    assert min(covered.values()) / 60 >= 0.75


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("form", "x", "y", "message"),
    [
        (
            forms.POWER_CONST,
            [1, 2, 2],
            [1, 1, 1],
            "3 parameters and there are points at 2",
        ),
        (forms.POWER_CONST, [1, 2, 3], [1, 1, -1], "smallest metric is -1"),
        (forms.POWER_CONST, [0, 2, 3], [1, 1, 1], "not positive"),
        (forms.CHINCHILLA, [1, 2, 3], [1, 1, 1], "takes 2 axes, got 1"),
    ],
)
def test_points_that_cannot_be_fitted_are_refused(form, x, y, message):
    points = curve.Points(x=np.array(x, float), y=np.array(y, float))
    with pytest.raises(ValueError, match=message):
        _fit(form, points)


def test_points_must_be_finite_and_of_one_length():
    with pytest.raises(ValueError, match="not finite"):
        curve.Points(x=np.array([1.0, 2]), y=np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="3 x for 2 values of y"):
        curve.Points(x=np.array([1.0, 2, 3]), y=np.array([1.0, 2]))


def test_lack_of_fit_is_the_f_test_of_replicates():
    rng = np.random.default_rng(3)
    x = np.repeat([1.0, 2.0, 4.0, 8.0, 16.0], 4)
    bent = 1.0 + 0.2 * x**-1.0 + 0.004 * rng.standard_normal(len(x))
    points = curve.Points(
        x=x,
        y=bent,
        sizes=[str(v) for v in x],
        runs=[str(n) for n in range(len(x))],
        checkpoints=[1] * len(x),
    )
    line = curve.fit(forms.LOGLINEAR, points, sigma=None, num_replicates=0)
    # As the analysis of variance has it, with statistics of its own.
    groups = [line.residuals[x == v] for v in np.unique(x)]
    within = sum(((g - g.mean()) ** 2).sum() for g in groups) / (20 - 5)
    between = sum(len(g) * g.mean() ** 2 for g in groups) / (5 - 2)
    expected = 1 - scipy.stats.f(3, 15).cdf(between / within)
    assert curve.lack_of_fit(line) == pytest.approx(expected, abs=1e-12)
    assert curve.lack_of_fit(line) < 1e-4
    power = curve.fit(forms.POWER_CONST, points, sigma=None, num_replicates=0)
    assert curve.lack_of_fit(power) > 0.05
    alone = dataclasses.replace(
        line,
        residuals=line.residuals[::4],
        points=curve.Points(
            x=x[::4],
            y=bent[::4],
            sizes=points.sizes[::4],
            runs=points.runs[::4],
            checkpoints=[1] * 5,
        ),
    )
    assert curve.lack_of_fit(alone) == 1.0
