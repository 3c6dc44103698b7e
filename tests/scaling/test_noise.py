import math

import numpy as np
import pytest
from scipy import stats

from scaling import noise, synthetic


def test_sigma_is_pooled_within_sizes():
    groups = {"a": [1.0, 2.0, 3.0], "b": [10.0, 14.0], "c": [5.0]}
    found = noise.pooled(groups)
    # Σ of squared deviations 2 + 8 over (3 - 1) + (2 - 1) degrees of freedom
    assert found.sigma == pytest.approx(math.sqrt(10 / 3))
    assert found.freedom == 3
    assert found.floor == pytest.approx(2 * math.sqrt(10 / 3))
    assert found.low == pytest.approx(math.sqrt(10 / stats.chi2.ppf(0.95, 3)))
    assert found.high == pytest.approx(math.sqrt(10 / stats.chi2.ppf(0.05, 3)))
    assert found.by_size["a"] == (2.0, pytest.approx(1.0), 3)
    assert "c" not in found.by_size


def test_interval_of_sigma_covers_it_nine_times_in_ten():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        found = noise.pooled({str(i): rng.normal(size=3) for i in range(4)})
        held += found.low <= 1 <= found.high
    assert held / 400 == pytest.approx(0.9, abs=0.04)


def test_one_seed_a_size_measures_nothing():
    assert noise.pooled({"a": [1.0], "b": [2.0]}) is None
    assert noise.pooled({}) is None


def test_sizes_share_one_sigma_unless_they_clearly_differ():
    rng = np.random.default_rng(0)
    alike = noise.pooled({str(i): rng.normal(size=5) for i in range(4)})
    assert alike.is_equal
    assert alike.of_size("0") == alike.of_size("unknown") == alike.sigma
    scales = {"0": 1.0, "1": 1.0, "2": 1.0, "3": 50.0}
    unlike = noise.pooled({n: s * rng.normal(size=5) for n, s in scales.items()})
    assert not unlike.is_equal
    assert unlike.of_size("0") < unlike.sigma < unlike.of_size("3")
    deviations = [own for _, own, _ in unlike.by_size.values()]
    usual = np.prod(deviations) ** (1 / 4)
    expected = math.sqrt((4 * usual**2 + 4 * deviations[3] ** 2) / 8)
    assert unlike.of_size("3") == pytest.approx(expected)


def test_two_sigmas_are_a_difference_and_less_is_none():
    assert noise.is_difference(0.45, 0.45 + 2.01e-4, 1e-4)
    assert not noise.is_difference(0.45, 0.45 - 1.99e-4, 1e-4)


def test_noise_of_rows_is_that_of_the_last_checkpoints_of_sound_runs():
    law = synthetic.Law(noise=1e-3)
    rows = synthetic.rows(law, sizes=[1e5, 1e6], seeds=4, checkpoints=(10, 100))
    found = noise.measure(rows, "logloss", split="test")
    finals = [r for r in rows if r["final"] and r["split"] == "test"]
    groups = [
        [r["logloss"] for r in finals if r["size_name"] == s] for s in ("s0", "s1")
    ]
    expected = math.sqrt(np.mean([np.var(g, ddof=1) for g in groups]))
    assert found.sigma == pytest.approx(expected)
    assert found.freedom == 6
    for spoil in ({"diverged": True}, {"complete": False}, {"lr_stage": True}):
        wild = dict(finals[0], run_id="wild", logloss=9.0) | spoil
        assert noise.measure([*rows, wild], "logloss", split="test") == found
