import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rankax.metrics import bootstrap, gauc


def scored(num, *, seed=0, groups=7, weighted=False):
    """Returns probability (with ties), label, weight and group of some examples."""
    rng = np.random.default_rng(seed)
    probability = np.round(rng.uniform(0.02, 0.98, num), 2).astype(np.float32)
    label = (rng.random(num) < 0.1 + 0.6 * probability).astype(np.int8)
    weight = rng.uniform(0.3, 3, num) if weighted else np.ones(num)
    group = 10 * rng.integers(0, groups, num) - 20
    label[group == -20] = 0  # one group has no AUC
    return probability, label, weight.astype(np.float32), group


def entropy(rate):
    return -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("num", [60, 800])
def test_every_resample_equals_the_weighted_metric(num, weighted):
    probability, label, weight, group = scored(num, weighted=weighted)
    statistics = [
        bootstrap.statistic(name, probability, label, weight, group)
        for name in bootstrap.NAMES
    ]
    resamples = bootstrap.Resamples(num, num=20)
    found = bootstrap.replicates(statistics, resamples)
    for r, counts in enumerate(resamples):
        mass = counts * weight.astype(np.float64)
        loss = log_loss(label, probability.astype(float), sample_weight=mass)
        expected = [
            roc_auc_score(label, probability, sample_weight=mass),
            gauc.gauc(group, probability, label, mass).value,
            loss,
            loss / entropy(np.average(label, weights=mass)),
        ]
        assert found[:, r] == pytest.approx(expected, rel=1e-12)


def test_the_auc_of_a_resample_counts_pairs_and_half_of_ties():
    probability, label, weight, _ = scored(50, weighted=True)
    (counts,) = bootstrap.Resamples(50, num=1, seed=3)
    drawn = np.repeat(np.arange(50), counts)  # the resample itself
    won = total = 0.0
    for i in drawn[label[drawn] == 1]:
        for j in drawn[label[drawn] == 0]:
            pair = weight[i].astype(float) * weight[j]
            won += pair * (
                (probability[i] > probability[j])
                + 0.5 * (probability[i] == probability[j])
            )
            total += pair
    area = bootstrap.ResampledAuc(probability, label, weight)
    assert area(counts) == pytest.approx(won / total, rel=1e-12)


def test_examples_are_drawn_as_often_as_there_are_and_the_same_every_time():
    resamples = bootstrap.Resamples(1_000, num=50)
    drawn = np.array(list(resamples))
    assert drawn.shape == (50, 1_000) and (drawn.sum(axis=1) == 1_000).all()
    np.testing.assert_array_equal(drawn, list(resamples))
    assert len({tuple(row) for row in drawn}) == 50
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.03)


def test_groups_are_drawn_whole():
    group = np.array([7, 7, -3, 5, 5, 5, -3])
    for counts in bootstrap.Resamples(7, num=30, group=group):
        times = {g: set(counts[group == g]) for g in (7, -3, 5)}
        assert all(len(own) == 1 for own in times.values())
        assert sum(own.pop() for own in times.values()) == 3


def test_a_group_drawn_twice_counts_as_two_groups():
    probability, label, weight, group = scored(60, groups=4)
    area = bootstrap.ResampledAuc(probability, label, weight, group)
    for counts in bootstrap.Resamples(60, num=10, group=group):
        copies = np.concatenate(
            [np.flatnonzero(counts > k) for k in range(counts.max())]
        )
        copy = np.concatenate(
            [np.full((counts > k).sum(), k) for k in range(counts.max())]
        )
        expected = gauc.gauc(
            group[copies] * 100 + copy, probability[copies], label[copies]
        ).value
        assert area(counts) == pytest.approx(expected, nan_ok=True)


def test_a_resample_without_a_class_is_undefined():
    probability = np.array([0.2, 0.9], np.float32)
    label, weight = np.array([0, 1], np.int8), np.ones(2, np.float32)
    twice_the_first = np.array([2, 0], np.uint8)
    group = np.array([4, 4])
    for name in ("auc", "gauc", "normalized_entropy"):
        statistic = bootstrap.statistic(name, probability, label, weight, group)
        assert np.isnan(statistic(twice_the_first))
    one_class = bootstrap.ResampledAuc(probability, label * 0, weight)
    assert np.isnan(one_class(twice_the_first))


def test_rounded_probabilities_have_a_finite_loss():
    probability = np.array([1.0, 0.0, 1.0], np.float32)
    label, weight = np.array([0, 1, 1], np.int8), np.ones(3, np.float32)
    loss = bootstrap.ResampledLoss(probability, label, weight, is_normalized=False)
    assert loss(np.array([3, 0, 0])) == pytest.approx(25 * np.log(2))
    assert 100 < loss(np.array([0, 1, 0])) < 105
    assert loss(np.array([0, 0, 1])) == 0


def test_many_examples_get_fewer_resamples():
    assert bootstrap.num_resamples(43_000 * 6) == 1_000
    assert bootstrap.num_resamples(20_000_000) == 500
    assert bootstrap.num_resamples(10**9) == 200
