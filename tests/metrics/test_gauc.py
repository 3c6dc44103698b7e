import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rankax.metrics import gauc


def impressions(num=5_000, num_groups=700, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.zipf(1.3, num) % num_groups * 10**12  # far apart, of unequal size
    probability = np.round(rng.random(num), 2).astype(np.float32)  # many ties
    label = (rng.random(num) < probability).astype(np.float32)
    weight = rng.uniform(0.5, 2, num).astype(np.float32)
    return group, probability, label, weight


def sklearn_loop(group, probability, label, weight):
    total = mass = 0.0
    used = excluded = 0
    for g in np.unique(group):
        own = group == g
        if len(np.unique(label[own])) < 2:
            excluded += 1
            continue
        value = roc_auc_score(label[own], probability[own], sample_weight=weight[own])
        total += weight[own].sum(dtype=np.float64) * value
        mass += weight[own].sum(dtype=np.float64)
        used += 1
    return total / mass, used, excluded


@pytest.mark.parametrize("weighted", [False, True])
def test_gauc_equals_a_loop_over_groups(weighted):
    group, probability, label, weight = impressions()
    weight = weight if weighted else np.ones_like(weight)
    result = gauc.gauc(group, probability, label, weight)
    value, used, excluded = sklearn_loop(group, probability, label, weight)
    assert result.value == pytest.approx(value, abs=1e-7)
    assert (result.num_groups, result.num_excluded_groups) == (used, excluded)
    assert used > 100 and excluded > 10


def test_order_of_examples_does_not_matter():
    columns = impressions()
    shuffled = np.random.default_rng(1).permutation(len(columns[0]))
    first = gauc.gauc(*columns)
    again = gauc.gauc(*(c[shuffled] for c in columns))
    assert again.value == pytest.approx(first.value, abs=1e-12)


def test_score_that_only_knows_the_group_has_gauc_one_half():
    group = np.repeat(np.arange(50), 20)
    label = (np.random.default_rng(0).random(1_000) < 0.3).astype(int)
    assert gauc.gauc(group, group / 50, label).value == 0.5


def test_padding_counts_nowhere():
    columns = impressions(500)
    padded = [np.r_[c, c[:12]] for c in columns]
    padded[3][-12:] = 0
    padded[0][-12:] = -1  # a group of padding alone is no group
    assert gauc.gauc(*padded) == gauc.gauc(*columns)


def test_groups_of_one_class_leave_nothing_to_average():
    result = gauc.gauc(np.array([1, 1, 2]), np.array([0.1, 0.2, 0.3]), np.ones(3))
    assert np.isnan(result.value)
    assert (result.num_groups, result.num_excluded_groups) == (0, 2)


def test_group_must_be_integers_of_the_same_length():
    with pytest.raises(ValueError, match=r"group is float64 \[2\]; expected integers"):
        gauc.gauc(np.zeros(2), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"one per label \[2\]"):
        gauc.gauc(np.zeros(3, int), np.zeros(2), np.zeros(2))
