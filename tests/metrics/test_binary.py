import numpy as np
import pytest
from sklearn.metrics import log_loss

from rankax.metrics import auc, binary, calibration


def sums(*columns):
    result = binary.BinarySums()
    result.update(*columns)
    return result


def examples(num=20_000, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 1.5, num).astype(np.float32)
    label = (rng.random(num) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return logits, label, rng.uniform(0.2, 3, num).astype(np.float32)


def test_log_loss_equals_sklearn():
    logits, label, weight = examples()
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = log_loss(label, p, sample_weight=weight.astype(np.float64))
    assert sums(logits, label, weight).log_loss == pytest.approx(expected, rel=1e-12)


def test_constant_prediction_of_the_base_rate_has_normalized_entropy_one():
    label = np.r_[np.ones(30), np.zeros(970)]
    logits = np.full(1_000, np.log(0.03 / 0.97))
    state = sums(logits, label, np.ones(1_000))
    entropy = -0.03 * np.log(0.03) - 0.97 * np.log(0.97)
    assert state.log_loss == pytest.approx(entropy, rel=1e-12)
    assert state.normalized_entropy == pytest.approx(1, rel=1e-12)
    assert state.calibration == pytest.approx(1, rel=1e-12)
    assert state.positive_rate == pytest.approx(0.03)


def test_calibration_is_predicted_over_observed():
    logits = np.log(np.array([0.2, 0.4]) / np.array([0.8, 0.6]))
    state = sums(logits, np.array([0, 1]), np.array([3.0, 1.0]))
    assert state.calibration == pytest.approx((3 * 0.2 + 0.4) / 1)


def test_log_loss_of_extreme_logits_is_exact():
    state = sums(np.array([200.0, -200.0]), np.array([0, 0]), np.ones(2))
    assert state.log_loss == pytest.approx(100)


def test_merged_parts_equal_one_pass():
    columns = examples()
    whole, merged = sums(*columns), binary.BinarySums()
    for part in (slice(0, 3), slice(3, 9_000), slice(9_000, None)):
        merged.merge(sums(*(c[part] for c in columns)))
    assert merged.num_examples == whole.num_examples == 20_000
    for name in ("log_loss", "normalized_entropy", "calibration", "positive_rate"):
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_undefined_metrics_are_nan():
    empty = binary.BinarySums()
    assert np.isnan([empty.log_loss, empty.calibration, empty.positive_rate]).all()
    negatives = sums(np.zeros(3), np.zeros(3), np.ones(3))
    assert np.isnan([negatives.normalized_entropy, negatives.calibration]).all()
    assert negatives.log_loss == pytest.approx(np.log(2))
    for seed in range(6):  # the sums of weights and of labels are not rounded alike
        weight = np.random.default_rng(seed).lognormal(sigma=4, size=1_000)
        assert np.isnan(
            sums(np.zeros(1_000), np.ones(1_000), weight).normalized_entropy
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_logits_are_refused_with_advice(bad):
    with pytest.raises(ValueError, match=r"1 of 3 logits .* lower the learning rate"):
        sums(np.array([0, bad, 1]), np.zeros(3), np.ones(3))


def test_probability_is_float32_and_never_decreases():
    logits = np.linspace(-40, 40, 10_001, dtype=np.float32)
    p = binary.probability(logits)
    assert p.dtype == np.float32
    assert np.all(np.diff(p) >= 0) and p[-1] == 1


def test_log_loss_of_probabilities_is_clipped():
    loss = binary.log_loss_of_probability(np.array([0.0]), np.ones(1), np.ones(1))
    assert loss == pytest.approx(-np.log(1e-7))


def test_calibration_table_equals_sorting_and_cutting():
    logits, label, weight = examples()
    p = binary.probability(logits)
    histogram = auc.AucHistogram()
    histogram.update(p, label, weight)
    order = np.argsort(p, kind="stable")
    mass = np.cumsum(weight[order].astype(np.float64))
    table = calibration.table(histogram)
    assert len(table) == 20
    cuts = np.searchsorted(mass, np.linspace(0, mass[-1], 21))
    for (predicted, observed, mass_of_bin, _), lo, hi in zip(
        table, cuts[:-1], cuts[1:], strict=True
    ):
        own = order[lo:hi]
        assert mass_of_bin == pytest.approx(mass[-1] / 20, rel=0.02)
        assert predicted == pytest.approx(
            np.average(p[own], weights=weight[own]), rel=0.02
        )
        assert observed == pytest.approx(
            np.average(label[own], weights=weight[own]), rel=0.05, abs=0.002
        )
    assert sum(row[2] for row in table) == pytest.approx(mass[-1], rel=1e-12)


def test_calibration_table_keeps_equal_scores_together():
    histogram = auc.AucHistogram()
    histogram.update(np.r_[np.full(90, 0.25), np.full(10, 0.75)], np.tile([0, 1], 50))
    (low, high) = calibration.table(histogram)
    assert low == pytest.approx((0.25, 0.5, 90, 90), rel=2**-11)
    assert high == pytest.approx((0.75, 0.5, 10, 10), rel=2**-11)
    assert calibration.table(auc.AucHistogram()) == []


@pytest.mark.parametrize("weights", [(1, 1), (0.01, 0.01), (100, 100), (20, 2)])
def test_counts_of_calibration_bins_tell_how_sure_the_observed_rate_is(weights):
    """Against the spread of the rate over resamples of the examples of a bin."""
    rng = np.random.default_rng(0)
    num = 4_000
    label = rng.random(num) < 0.2
    weight = np.where(label, weights[1], weights[0]) * rng.uniform(0.5, 1.5, num)
    histogram = auc.AucHistogram()
    histogram.update(np.full(num, 0.2, np.float32), label, weight)
    ((_, observed, mass, count),) = calibration.table(histogram)
    assert mass == pytest.approx(weight.sum())
    drawn = weight * rng.poisson(1, (2_000, num))
    rates = drawn @ label / drawn.sum(axis=1)
    assert np.sqrt(observed * (1 - observed) / count) == pytest.approx(
        rates.std(), rel=0.05
    )


@pytest.mark.parametrize("label", [0, 1])
def test_calibration_bins_of_one_class_have_counts(label):
    histogram = auc.AucHistogram()
    histogram.update(np.full(50, 0.25), np.full(50, label), np.full(50, 3.0))
    ((_, observed, mass, count),) = calibration.table(histogram)
    assert (observed, mass, count) == pytest.approx((label, 150, 50))
