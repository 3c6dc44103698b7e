import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankax.metrics import auc, binary, bootstrap


def clicks(num, *, seed=0, mean=-3.5, spread=1.0, slope=1.0, tied=False):
    """Returns probability float32, label and weight of examples with that signal."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(mean, spread, num)
    if tied:
        logits = np.round(logits, 1)
    label = (rng.random(num) < 1 / (1 + np.exp(-slope * logits))).astype(np.float32)
    weight = rng.uniform(0.2, 3, num).astype(np.float32)
    return binary.probability(logits), label, weight


def histogram(*columns):
    result = auc.AucHistogram()
    result.update(*columns)
    return result


def pair_loop(probability, label, weight):
    """AUC as its definition says, over every pair."""
    wins = pairs = 0.0
    for p, w in zip(probability[label == 1], weight[label == 1], strict=True):
        for q, v in zip(probability[label == 0], weight[label == 0], strict=True):
            wins += w * v * ((p > q) + 0.5 * (p == q))
            pairs += w * v
    return wins / pairs


@pytest.mark.parametrize("tied", [False, True])
def test_exact_is_the_share_of_ordered_pairs(tied):
    columns = [c.astype(np.float64) for c in clicks(400, mean=-1, tied=tied)]
    assert auc.exact(*columns) == pytest.approx(pair_loop(*columns), abs=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_equals_sklearn(tied, weighted):
    probability, label, weight = clicks(20_000, tied=tied)
    weight = weight if weighted else None
    expected = roc_auc_score(label, probability, sample_weight=weight)
    assert auc.exact(probability, label, weight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "kind",
    [
        {"mean": -3.5},
        {"mean": -8.0},
        {"mean": -1.0, "spread": 10.0, "slope": 0.3},
        {"mean": 6.0},
        {"tied": True},
    ],
)
def test_histogram_errs_by_no_more_than_its_bound(kind):
    columns = clicks(50_000, **kind)
    state = histogram(*columns)
    assert abs(state.value - auc.exact(*columns)) <= state.bound + 1e-12
    # True ties count as possible errors too, since the histogram cannot tell.
    assert state.bound < 1e-3 or kind == {"tied": True}


def test_histogram_of_a_million_skewed_scores_is_within_1e_6():
    probability, label, _ = clicks(1_000_000)
    assert 0.02 < label.mean() < 0.06
    expected = roc_auc_score(label, probability)
    assert histogram(probability, label).value == pytest.approx(expected, abs=1e-6)


def test_confident_positives_are_ranked_as_finely_as_negatives():
    # Float32 is coarse near 1: plain bit-pattern bins lose 1e-4 of AUC here.
    probability, label, _ = clicks(60_000, mean=3, spread=8, slope=0.3)
    exact = auc.exact(probability, label)
    assert histogram(probability, label).value == pytest.approx(exact, abs=1e-6)
    # Turning classes and probabilities round must not matter either.
    turned = histogram(np.float32(1) - probability, 1 - label)
    assert turned.value == pytest.approx(exact, abs=1e-6)


def test_bins_rise_with_the_probability_and_cover_the_ends():
    bits = np.linspace(0, 0x3F800000, 200_001).astype(np.uint32)
    probability = bits.view(np.float32)
    index = auc.bins(probability)
    assert np.all(np.diff(index) >= 0)
    assert index[0] == 0 and index[-1] == auc.NUM_BINS - 1
    middle = auc.bin_middles(index)
    distance = np.minimum(probability, 1 - probability.astype(np.float64))
    assert np.all(np.abs(middle - probability) <= 2**-11 * distance + 1e-38)


def test_merged_parts_equal_one_pass():
    columns = clicks(30_000)
    whole = histogram(*columns)
    merged = auc.AucHistogram()
    for part in (slice(0, 1), slice(1, 12_345), slice(12_345, None)):
        merged.merge(histogram(*(c[part] for c in columns)))
    assert merged.value == pytest.approx(whole.value, abs=1e-13)
    assert merged.bound == pytest.approx(whole.bound, rel=1e-12)
    assert merged.interval() == pytest.approx(whole.interval(), abs=1e-3)


def test_integer_weight_equals_repetition():
    probability, label, _ = clicks(2_000)
    times = np.random.default_rng(1).integers(1, 5, 2_000)
    repeated = (np.repeat(probability, times), np.repeat(label, times))
    assert auc.exact(probability, label, times) == pytest.approx(auc.exact(*repeated))
    weighted = histogram(probability, label, times)
    assert weighted.value == pytest.approx(histogram(*repeated).value, abs=1e-13)


def test_padding_of_weight_zero_counts_nowhere_even_as_nan():
    probability, label, weight = clicks(1_000)
    padded = [np.r_[c, np.repeat(c[:1], 24)] for c in (probability, label, weight)]
    padded[0][-1], padded[2][-24:] = np.nan, 0
    assert histogram(*padded).value == histogram(probability, label, weight).value
    assert auc.exact(*padded) == auc.exact(probability, label, weight)


def delong(probability, label):
    """Standard error of the AUC by DeLong's placement values."""
    positives, negatives = probability[label == 1], probability[label == 0]
    above = np.array([np.mean(p > negatives) for p in positives])
    below = np.array([np.mean(positives > q) for q in negatives])
    return np.sqrt(above.var() / len(positives) + below.var() / len(negatives))


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_bootstrap_interval_agrees_with_delong(weight):
    probability, label, _ = clicks(6_000, mean=-2)
    state = histogram(probability, label, np.full(6_000, weight))
    low, high = state.interval(0.95, num_replicates=2_000)
    half = 1.96 * delong(probability, label)
    assert low == pytest.approx(state.value - half, abs=0.08 * half)
    assert high == pytest.approx(state.value + half, abs=0.08 * half)


def test_bootstrap_interval_of_unequal_weights_agrees_with_resampling_examples():
    probability, label, weight = clicks(3_000, mean=-2)
    rng = np.random.default_rng(5)
    direct = [
        auc.exact(probability, label, weight * rng.poisson(1, 3_000))
        for _ in range(1_000)
    ]
    low, high = histogram(probability, label, weight).interval(num_replicates=1_000)
    expected = np.quantile(direct, (0.025, 0.975))
    assert (low, high) == pytest.approx(expected, abs=0.1 * np.ptp(expected))


@pytest.mark.parametrize(
    ("num_positives", "shift"), [(100, 20.0), (100, 2.0), (20_000, 6.0), (20_000, 1.0)]
)
def test_bootstrap_interval_of_rare_positives_agrees_with_resampling_examples(
    num_positives, shift
):
    """Perfect, good and nearly perfect rankings; more and fewer runs than groups."""
    num = 400_000
    rng = np.random.default_rng(4)
    label = (np.arange(num) < num_positives).astype(np.int8)
    logit = rng.normal(-5, 1, num) + shift * label
    probability = (1 / (1 + np.exp(-logit.clip(-30, 12)))).astype(np.float32)
    state = histogram(probability, label)
    low, high = state.interval(num_replicates=400)
    assert low <= state.value <= high
    area = bootstrap.ResampledAuc(probability, label, np.ones(num))
    direct = [area(counts) for counts in bootstrap.Resamples(num, num=200)]
    expected = np.quantile(direct, (0.025, 0.975))
    assert (low, high) == pytest.approx(expected, abs=0.2 * np.ptp(expected) + 1e-15)


def test_interval_is_the_same_every_time():
    state = histogram(*clicks(5_000))
    assert state.interval() == state.interval()
    low, high = state.interval()
    assert low < state.value < high


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label):
    columns = (np.full(10, 0.3), np.full(10, label))
    state = histogram(*columns)
    assert np.isnan([state.value, state.bound, *state.interval()]).all()
    assert np.isnan(auc.exact(*columns))


def test_no_example_has_no_auc():
    state = auc.AucHistogram()
    assert np.isnan([state.value, state.bound, *state.interval()]).all()
    assert np.isnan(auc.exact(np.zeros(0), np.zeros(0)))


@pytest.mark.parametrize(
    ("probability", "label", "weight", "message"),
    [
        (
            [0.1, np.nan],
            [0, 1],
            None,
            r"1 of 2 probabilities are NaN or outside \[0, 1\]: the first is nan at example 1",
        ),
        ([0.1, 1.01], [0, 1], None, r"the first is 1.00\d+ at example 1"),
        ([-0.1, 0.5], [0, 1], None, "1 of 2 probabilities"),
        (
            [0.1, 0.5],
            [0, 2],
            None,
            "1 of 2 labels are not 0 or 1: the first is 2 at example 1",
        ),
        (
            [0.1, 0.5],
            [0, 1],
            [1, -1],
            "1 of 2 weights are negative or NaN: the first is -1",
        ),
        ([0.1, 0.5], [0, 1], [np.nan, 1], "1 of 2 weights are negative or NaN"),
        (
            [0.1],
            [0, 1],
            None,
            r"probability \[1\], label \[2\] and weight \[2\] must be of one length",
        ),
    ],
)
def test_unusable_input_is_refused(probability, label, weight, message):
    columns = [None if c is None else np.array(c) for c in (probability, label, weight)]
    with pytest.raises(ValueError, match=message):
        histogram(*columns)
    with pytest.raises(ValueError, match=message):
        auc.exact(*columns)
