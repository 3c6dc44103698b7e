import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankax.metrics import auc, grouped


def scored(num, *, seed=0, groups=1, tied=True, weighted=False):
    """Returns group, probability float32, label and weight of examples with signal."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, num) * 10 - 20
    probability = rng.random(num).astype(np.float32)
    if tied:
        probability = np.round(probability, 1)
    label = (rng.random(num) < 0.2 + 0.6 * probability).astype(np.float32)
    weight = rng.uniform(0.3, 3, num) if weighted else np.ones(num)
    return group, probability, label, weight


def delong_loop(probability, label, weight):
    """AUC and its variance, pair by pair, as in DeLong, DeLong & Clarke-Pearson."""
    examples = list(zip(probability, label, weight, strict=True))
    positive = [(p, w) for p, y, w in examples if y == 1]
    negative = [(p, w) for p, y, w in examples if y == 0]

    def placement(p, others, wins):
        total = sum(w for _, w in others)
        return sum(w * (wins(p, q) + 0.5 * (p == q)) for q, w in others) / total

    variance = 0.0
    for own, others, wins in (
        (positive, negative, lambda p, q: p > q),
        (negative, positive, lambda p, q: p < q),
    ):
        mass = sum(w for _, w in own)
        v = [placement(p, others, wins) for p, _ in own]
        mean = sum(w * x for x, (_, w) in zip(v, own, strict=True)) / mass
        squares = sum(w * w for _, w in own)
        spread = sum(w * w * (x - mean) ** 2 for x, (_, w) in zip(v, own, strict=True))
        variance += spread / (mass**2 - squares)
    return mean, variance


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_group_equals_a_loop_over_its_pairs(tied, weighted):
    group, *columns = scored(400, groups=5, tied=tied, weighted=weighted)
    groups = grouped.sort(group, *columns)
    assert groups.group.tolist() == [-20, -10, 0, 10, 20]
    for g, area, variance in zip(
        groups.group, groups.auc(), groups.auc_variance(), strict=True
    ):
        own = [column[group == g].tolist() for column in columns]
        expected = delong_loop(*own)
        assert (area, variance) == pytest.approx(expected, rel=1e-9)
        assert area == pytest.approx(
            roc_auc_score(own[1], own[0], sample_weight=own[2]), abs=1e-12
        )


def test_without_weights_the_variance_is_delongs():
    _, *columns = scored(200)
    _, variance = delong_loop(*columns)
    # Σ (V - V̄)² / (n·(n - 1)) of both classes, by the variance of NumPy
    probability, label, _ = columns
    p, q = probability[label == 1], probability[label == 0]
    wins = (p[:, None] > q) + 0.5 * (p[:, None] == q)
    plain = wins.mean(1).var(ddof=1) / len(p) + wins.mean(0).var(ddof=1) / len(q)
    assert variance == pytest.approx(plain, rel=1e-12)
    groups = grouped.sort(np.zeros(200, int), *columns)
    assert groups.auc_variance()[0] == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_variance_is_that_of_resampled_examples(weighted):
    group, *columns = scored(2_000, weighted=weighted)
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(600):
        sample = rng.integers(0, 2_000, 2_000)
        drawn.append(auc.exact(*(column[sample] for column in columns)))
    error = np.sqrt(grouped.sort(group, *columns).auc_variance()[0])
    assert error == pytest.approx(np.std(drawn), rel=0.1)  # 600 draws: ± 3 %


def test_a_group_without_two_of_each_class_has_no_variance():
    group = np.array([1, 1, 2, 2, 2, 3])
    label = np.array([0, 1, 0, 0, 1, 1])
    groups = grouped.sort(group, np.linspace(0, 1, 6), label)
    np.testing.assert_array_equal(groups.auc(), [1, 1, np.nan])
    assert np.isnan(groups.auc_variance()).all()


def test_no_examples_are_no_groups():
    groups = grouped.sort(np.zeros(0, int), np.zeros(0), np.zeros(0))
    assert groups.auc().shape == groups.auc_variance().shape == (0,)
