import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from rankax.metrics import ranking


def over_orders(probability, label, k):
    """Mean hit and NDCG over every order of the candidates that the scores allow."""
    hits, gains = [], []
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, sum(label)) + 1))
    for order in itertools.permutations(range(len(label))):
        ranked = [probability[i] for i in order]
        if ranked != sorted(ranked, reverse=True):
            continue
        first = [label[i] for i in order[:k]]
        hits.append(any(first))
        dcg = sum(y / math.log2(r + 1) for r, y in enumerate(first, 1))
        gains.append(dcg / ideal)
    return np.mean(hits), np.mean(gains)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("levels", [1, 2, 3, 10**6])
def test_ties_count_as_the_mean_over_their_orders(k, levels):
    rng = np.random.default_rng(k)
    group = np.sort(rng.integers(0, 12, 45))
    probability = (rng.integers(0, levels, 45) / levels).astype(np.float32)
    label = (rng.random(45) < 0.4).astype(int)
    expected = [
        over_orders(probability[group == g].tolist(), label[group == g].tolist(), k)
        for g in np.unique(group)
        if label[group == g].any() and (group == g).sum() <= 7
    ]
    kept = np.isin(group, [g for g in range(12) if (group == g).sum() <= 7])
    result = ranking.top_k(group[kept], probability[kept], label[kept], k=k)
    assert len(expected) >= 8
    assert (result.hit_rate, result.ndcg) == pytest.approx(
        np.mean(expected, axis=0), abs=1e-12
    )


@pytest.mark.parametrize("tied", [False, True])
def test_ndcg_equals_sklearn(tied):
    rng = np.random.default_rng(0)
    probability = rng.random((200, 30)).astype(np.float32)
    if tied:
        probability = np.round(probability, 1)
    label = rng.random((200, 30)) < 0.1
    label[:, 0] = True  # sklearn counts a group without positives as 0
    group = np.repeat(np.arange(200) * 10**12, 30)
    shuffled = rng.permutation(6_000)
    columns = (c.reshape(-1)[shuffled] for c in (group, probability, label))
    expected = ndcg_score(label, probability, k=7, ignore_ties=not tied)
    result = ranking.top_k(*columns, k=7)
    assert result.ndcg == pytest.approx(expected, abs=1e-12)


def test_one_positive_of_a_hundred_equal_scores_is_hit_by_chance():
    label = np.arange(100) == 37
    result = ranking.top_k(np.zeros(100, int), np.full(100, 0.5), label, k=5)
    assert result.hit_rate == pytest.approx(0.05, abs=1e-12)
    chance = sum(0.01 / math.log2(r + 1) for r in range(1, 6))
    assert result.ndcg == pytest.approx(chance, abs=1e-12)


def test_several_positives_among_ties_follow_the_hypergeometric():
    label = np.arange(20) < 3
    result = ranking.top_k(np.zeros(20, int), np.zeros(20), label, k=4)
    miss = math.comb(17, 4) / math.comb(20, 4)
    assert result.hit_rate == pytest.approx(1 - miss, abs=1e-12)


def test_groups_without_a_positive_and_padding_count_nowhere():
    group = np.array([1, 1, 2, 2, 3, 4])
    probability = np.array([0.2, 0.8, 0.1, 0.3, 0.9, 0.9])
    label = np.array([0, 1, 1, 0, 0, 1])
    weight = np.array([1, 0.5, 3, 1, 1, 0])  # sizes of weights do not matter
    result = ranking.top_k(group, probability, label, weight, k=1)
    assert (result.hit_rate, result.ndcg) == (0.5, 0.5)
    empty = ranking.top_k(group[4:5], probability[4:5], label[4:5], k=1)
    assert np.isnan([empty.hit_rate, empty.ndcg]).all()
