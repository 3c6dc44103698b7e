import numpy as np
import pytest
from scipy import stats

from rankax.metrics import bootstrap
from rankax.metrics.difference import over_examples_and_seeds, over_seeds


def covered(*, seeds, spread, trials, shift=0.3, stretch=True):
    """Share of intervals with the truth; the split moves D by 1, a seed by `spread`."""
    rng = np.random.default_rng(7)
    hits = np.zeros(trials, bool)
    for trial in range(trials):
        error = rng.normal()  # of this test split, on both seeds and resamples
        model = shift + error + rng.normal(0, spread, seeds)
        resampled = model[:, None] + rng.normal(size=500)
        if stretch:
            delta = over_examples_and_seeds(
                model, 0 * model, resampled, 0 * resampled, paired=True, seed=trial
            )
            hits[trial] = delta.low <= shift <= delta.high
        else:  # as textbooks have it
            drawn = rng.integers(seeds, size=resampled.shape)
            means = np.take_along_axis(resampled, drawn, 0).mean(axis=0)
            low, high = np.quantile(means, [0.025, 0.975])
            hits[trial] = low <= shift <= high
    return hits.mean()


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("spread", [0.01, 1, 30])
def test_95_percent_intervals_cover_the_truth_at_about_their_rate(seeds, spread):
    assert 0.92 <= covered(seeds=seeds, spread=spread, trials=600) <= 0.99


def test_unstretched_seeds_would_cover_too_rarely():
    assert covered(seeds=3, spread=30, trials=500, stretch=False) < 0.85


def test_intervals_of_aucs_cover_the_truth_and_equal_models_cannot_be_told_apart():
    """Positives score N(skill, 1), negatives N(0, 1); a seed moves the skill."""
    rng = np.random.default_rng(0)
    trials, seeds, spread, num, skills = 40, 3, 0.05, 300, (0.6, 0.6, 1.4)
    # P(positive > negative) = Φ(skill / √2), averaged over seeds.
    truth = stats.norm.cdf(np.array(skills) / np.sqrt(2 + spread**2))
    label = (np.arange(num) < 100).astype(np.int8)
    covered, told = np.zeros(3), np.zeros(3)
    for trial in range(trials):
        areas = []
        example = rng.normal(size=num)  # what all models see of an example
        for skill in np.repeat(skills, seeds):
            score = (skill + rng.normal(0, spread)) * label
            score += (example + rng.normal(size=num)) / np.sqrt(2)
            p = stats.norm.cdf(score).astype(np.float32)
            areas.append(bootstrap.ResampledAuc(p, label, np.ones(num)))
        resamples = bootstrap.Resamples(num, num=150, seed=trial)
        resampled = bootstrap.replicates(areas, resamples).reshape(3, seeds, -1)
        values = np.reshape([area(np.ones(num)) for area in areas], (3, seeds))
        for m in (1, 2):
            delta = over_examples_and_seeds(
                values[m], values[0], resampled[m], resampled[0], paired=True
            )
            covered[m] += delta.low <= truth[m] - truth[0] <= delta.high
            told[m] += delta.sign
    assert all(0.87 * trials <= covered[1:])
    assert abs(told[1]) <= 0.1 * trials and told[2] > 0.9 * trials


def test_one_model_twice_has_an_interval_of_no_width():
    rng = np.random.default_rng(0)
    values, resampled = rng.random(3), rng.random((3, 100))
    delta = over_examples_and_seeds(values, values, resampled, resampled, paired=True)
    assert (delta.value, delta.low, delta.high, delta.sign) == (0, 0, 0, 0)


def test_the_interval_is_the_percentiles_of_the_resamples_where_seeds_agree():
    rng = np.random.default_rng(0)
    base, model = rng.normal(size=(2, 1, 1_000))
    delta = over_examples_and_seeds(
        np.full(3, 0.7), np.full(3, 0.6),
        np.repeat(model, 3, axis=0), np.repeat(base, 3, axis=0), paired=True,
    )  # fmt: skip
    expected = np.percentile(model - base, [2.5, 97.5])
    assert (delta.low, delta.high) == pytest.approx(tuple(expected))
    assert delta.value == pytest.approx(0.1)
    assert delta.method == "bootstrap, examples × 3 seeds, paired"


@pytest.mark.parametrize("paired", [True, False])
def test_where_seeds_alone_vary_the_width_is_about_that_of_t(paired):
    rng = np.random.default_rng(1)
    model, base = rng.normal(size=(2, 8))
    resampled = [np.repeat(v[:, None], 4_000, axis=1) for v in (model, base)]
    delta = over_examples_and_seeds(model, base, *resampled, paired=paired)
    expected = over_seeds(model, base, paired=paired)
    assert delta.high - delta.low == pytest.approx(
        expected.high - expected.low, rel=0.15
    )


def test_with_one_seed_examples_alone_vary_and_nothing_is_told_of_the_models():
    resampled = np.linspace(0.5, 0.7, 201)[None]
    for paired in (True, False):
        delta = over_examples_and_seeds(
            np.array([0.6]), np.array([0.0]), resampled, 0 * resampled, paired=paired
        )
        assert (delta.low, delta.high) == pytest.approx((0.505, 0.695))
        assert delta.sign == 0 and delta.method == "bootstrap, examples, one seed"


def test_undefined_resamples_are_left_out():
    resampled = np.r_[np.full(100, np.nan), np.linspace(0, 1, 101)][None].repeat(2, 0)
    options = {"paired": True, "unit": "groups"}
    values = np.array([0.5, 0.5])
    delta = over_examples_and_seeds(
        values, 0 * values, resampled, 0 * resampled, **options
    )
    assert (delta.low, delta.high) == pytest.approx((0.025, 0.975))
    assert "groups" in delta.method
    nothing = np.full((2, 5), np.nan)
    delta = over_examples_and_seeds(values, values, nothing, nothing, **options)
    assert np.isnan(delta.low) and delta.sign == 0


def test_identical_values_have_a_t_interval_of_no_width():
    same = np.array([0.5, 0.5])
    for paired in (False, True):
        delta = over_seeds(same, same, paired=paired)
        assert (delta.value, delta.low, delta.high, delta.sign) == (0, 0, 0, 0)


def test_swapping_two_models_of_different_seeds_swaps_the_interval():
    rng = np.random.default_rng(3)
    left, right = rng.normal(0.8, 0.01, 3), rng.normal(0.79, 0.01, 2)
    draws = [v[:, None] + rng.normal(0, 0.01, 500) for v in (left, right)]
    one = over_examples_and_seeds(left, right, *draws, paired=False)
    other = over_examples_and_seeds(right, left, *draws[::-1], paired=False)
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)
