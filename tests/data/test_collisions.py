import collections
import itertools
import math

import numpy as np
import pytest

from rankax.data import collisions, transforms

# n, V with loads n/V from .01 to 4.
SIZES = [
    (2_000, 200_000),
    (9_973, 99_991),
    (131_072, 262_144),
    (150_001, 200_003),
    (100_000, 100_000),
    (200_000, 50_000),
    (399_989, 99_991),
]


def ids_of(kind: str, n: int) -> np.ndarray:
    if kind == "consecutive":
        return np.arange(n)
    if kind == "random":
        return np.random.default_rng(n).integers(-(2**63), 2**63 - 1, n)
    return np.arange(n, dtype=np.uint64) << np.uint64(int(kind.removeprefix("2^")))


@pytest.mark.parametrize(("n", "num_rows"), SIZES)
@pytest.mark.parametrize("kind", ["consecutive", "random", "2^10", "2^40"])
def test_hashed_ids_collide_as_forecast(kind, n, num_rows):
    ids = ids_of(kind, n)
    assert len(np.unique(ids)) == n
    salt = transforms.table_salt("item")
    rows = transforms.hash_rows(ids, num_rows=num_rows, salt=salt)
    counts = np.bincount(rows, minlength=num_rows)
    expected = collisions.forecast(n, num_rows)
    occupied = np.count_nonzero(counts)
    assert abs(occupied - expected.occupied) < 5 * expected.occupied_std
    assert abs((1 - occupied / n) - expected.lost) < 5 * expected.occupied_std / n
    alone = np.count_nonzero(counts == 1)
    assert abs((1 - alone / n) - expected.sharing) < 5 * std_of_sharing(n, num_rows)


def std_of_sharing(n: int, num_rows: int) -> float:
    """Of the share of ids that are not alone, by the moments of n indicators."""
    v = num_rows
    one = math.exp((n - 1) * math.log1p(-1 / v))  # an id is alone
    two = (1 - 1 / v) * math.exp((n - 2) * math.log1p(-2 / v))  # two given ids are
    return math.sqrt((n * one + n * (n - 1) * two) / n**2 - one**2)


@pytest.mark.parametrize(("n", "num_rows"), [(0, 3), (1, 4), (5, 1), (5, 2), (4, 7)])
def test_forecast_equals_counting_all_placements(n, num_rows):
    placements = list(itertools.product(range(num_rows), repeat=n))
    occupied = [len(set(rows)) for rows in placements]
    sharing = [
        sum(count for count in collections.Counter(rows).values() if count > 1)
        for rows in placements
    ]
    found = collisions.forecast(n, num_rows)
    assert (found.num_ids, found.num_rows) == (n, num_rows)
    assert found.occupied == pytest.approx(np.mean(occupied), rel=1e-12)
    assert found.occupied_std == pytest.approx(np.std(occupied), rel=1e-7, abs=1e-12)
    lost = 1 - np.mean(occupied) / n if n else 0
    assert found.lost == pytest.approx(lost, abs=1e-12)
    assert found.sharing == pytest.approx(np.mean(sharing) / max(n, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "rate"), [(300_000_000, 0.2131), (200_000_000, 0.2965)]
)
def test_published_collision_rates_of_plain_hashing(rows, rate):
    found = collisions.forecast(150_000_000, rows)  # MPZCH, arXiv 2602.17050
    assert round(found.lost, 4) == rate


@pytest.mark.parametrize("load", [1e-6, 1e-3, 1.0])
def test_forecast_holds_for_huge_numbers(load):
    rows = 10**13
    n = round(load * rows)
    found = collisions.forecast(n, rows)
    # 1 − (1 − e^−c) / c, and the variance of its Poisson limit, by their series.
    terms = [(-1) ** k * load**k / math.factorial(k + 1) for k in range(1, 30)]
    assert found.lost == pytest.approx(-sum(terms), rel=1e-6)
    empty = math.exp(-load)
    remainder = math.fsum(load**k / math.factorial(k) for k in range(2, 30)) * empty
    assert found.occupied_std == pytest.approx(
        math.sqrt(rows * empty * remainder), rel=1e-4
    )
    assert found.sharing == pytest.approx(-math.expm1(-load), rel=1e-6)
    full = collisions.forecast(10**18, 2**31 - 1)
    assert (full.occupied, full.occupied_std, full.sharing) == (2**31 - 1, 0, 1)


@pytest.mark.parametrize("n", [2, 1_000, 150_000_000])
@pytest.mark.parametrize("max_lost", [1e-3, 0.2131, 0.9])
def test_rows_for_is_the_fewest_that_will_do(n, max_lost):
    rows = collisions.rows_for(n, max_lost)
    assert collisions.forecast(n, rows).lost <= max_lost
    assert rows == 1 or collisions.forecast(n, rows - 1).lost > max_lost


def test_few_ids_need_one_row():
    assert collisions.rows_for(0, 0.5) == collisions.rows_for(1, 1e-9) == 1


def test_numbers_out_of_range_are_refused():
    with pytest.raises(ValueError, match="num_ids = -1 must be at least 0"):
        collisions.forecast(-1, 5)
    with pytest.raises(ValueError, match="num_rows = 0 must be at least 1"):
        collisions.forecast(5, 0)
    with pytest.raises(ValueError, match="num_ids = -1 must be at least 0"):
        collisions.rows_for(-1, 0.5)
    for share in (0, 1, float("nan")):
        with pytest.raises(
            ValueError, match=r"max_lost = .* must be above 0 and below"
        ):
            collisions.rows_for(5, share)
