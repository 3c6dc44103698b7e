"""Random numbers as functions of a counter."""

import hashlib

import numpy as np
import pytest
from scipy import stats

from rankax.data.counter_random import CounterRandom, Zipf

MASK = 2**64 - 1


def splitmix64(x):
    """SplitMix64's output function on a Python integer."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def test_output_function_gives_the_published_numbers():
    # The generator seeded with 1234567, as listed with the reference implementation.
    state, published = 1234567, (6457827717110365317, 3203168211198807973)
    for expected in published:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        assert splitmix64(state) == expected


def test_bits_are_splitmix64_of_the_counter():
    counter = np.array([[0, 1, 2], [-1, 2**40, -(2**63)]])
    digest = hashlib.blake2b(b"7/name", digest_size=8).digest()
    start = int.from_bytes(digest, "little")
    expected = [
        splitmix64((start + int(c) * 0x9E3779B97F4A7C15) & MASK)
        for c in counter.ravel()
    ]
    found = CounterRandom(7).bits("name", counter)
    assert found.shape == (2, 3)
    assert found.ravel().tolist() == expected
    assert counter[0].tolist() == [0, 1, 2]  # not written to


def test_streams_and_seeds_are_independent():
    counter = np.arange(20_000)
    draws = [
        CounterRandom(0).uniform("a", counter),
        CounterRandom(0).uniform("b", counter),
        CounterRandom(1).uniform("a", counter),
        CounterRandom(0).uniform("a", counter + 1),
    ]
    correlation = np.corrcoef(draws) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(counter.size)


@pytest.mark.parametrize(
    ("name", "law"), [("uniform", stats.uniform), ("normal", stats.norm)]
)
def test_draws_follow_their_law(name, law):
    draws = getattr(CounterRandom(3), name)("x", np.arange(50_000))
    assert stats.kstest(draws, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize(("num_ids", "exponent"), [(3, 0.6), (500, 1.0), (20_000, 1.3)])
def test_zipf_follows_its_law(num_ids, exponent):
    law = Zipf(num_ids, exponent)
    expected = np.arange(1, num_ids + 1) ** -exponent
    expected /= expected.sum()
    assert law.probability.sum() == 1
    assert np.abs(law.probability - expected).max() < 2**-16
    n = 200_000
    ids = law.draw(CounterRandom(0).bits("ids", np.arange(n)))
    assert ids.dtype == np.int32
    assert ids.min() >= 0
    assert ids.max() < num_ids
    found = np.bincount(ids, minlength=num_ids)[:20]
    error = (found - n * expected[:20]) / np.sqrt(n * expected[:20])
    assert np.abs(error).max() < 4.5


def test_zipf_takes_the_lowest_and_the_highest_draw():
    law = Zipf(10, 1.0)
    assert law.draw(np.array([0, MASK], np.uint64)).tolist() == [0, 9]
