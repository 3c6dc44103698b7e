"""How many ids will share a row: the forecast for hashing n distinct ids into V rows.

The hash is taken to be uniform, so that ids fall into rows like balls into urns. With
p_k = (1 − k/V)^n, the probability that k given rows stay empty, the number of occupied
rows has

    mean V·(1 − p_1),   variance V·p_1·(1 − p_1) + V·(V − 1)·(p_2 − p_1²)

(Kolchin, Sevast'yanov, Chistyakov, Random Allocations, 1978, chapter I). At a load n/V
of .5 and .75 the share of lost rows is .2131 and .2965, the collision rates that MPZCH
reports of plain hashing (arXiv 2602.17050). `tests/data/test_collisions.py` compares
`rankax.data.transforms.hash_rows` with the forecast.
"""

import bisect
import dataclasses
import math


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What to expect of n distinct ids in V rows.

    Attributes:
        num_ids: n.
        num_rows: V.
        occupied: expected number of rows that at least one id falls into.
        occupied_std: standard deviation of that number.
        lost: 1 − occupied / n, the rows that collisions cost per id ("collision rate").
        sharing: expected share of ids whose row has another id too.
    """

    num_ids: int
    num_rows: int
    occupied: float
    occupied_std: float
    lost: float
    sharing: float


def forecast(num_ids: int, num_rows: int) -> Forecast:
    """Returns the forecast for n distinct ids hashed into V rows.

    Raises:
        ValueError: n < 0 or V < 1.
    """
    if num_ids < 0:
        raise ValueError(f"num_ids = {num_ids} must be at least 0")
    if num_rows < 1:
        raise ValueError(f"num_rows = {num_rows} must be at least 1")
    n, v = num_ids, num_rows
    hit = _any_of(n, 1 / v)  # 1 − p_1
    occupied = v * hit
    # p_2 − p_1² = −p_1²·(1 − (1 − 1/(V−1)²)^n), which subtracts nothing of equal size.
    dependence = _any_of(n, 1 / (v - 1) ** 2) if v > 1 else 0.0
    variance = v * (1 - hit) * (hit - (v - 1) * (1 - hit) * dependence)
    return Forecast(
        num_ids=n,
        num_rows=v,
        occupied=occupied,
        occupied_std=math.sqrt(max(variance, 0.0)),
        lost=max(1 - occupied / n, 0.0) if n else 0.0,
        sharing=_any_of(max(n - 1, 0), 1 / v),
    )


def rows_for(num_ids: int, max_lost: float) -> int:
    """Returns the fewest rows V of which n ids lose a share of at most `max_lost`.

    Raises:
        ValueError: n < 0, or `max_lost` is not above 0 and below 1.
    """
    if not 0 < max_lost < 1:
        raise ValueError(
            f"max_lost = {max_lost} must be above 0 and below 1; no number of rows "
            "rules collisions out"
        )
    # Ids lose at most one row per pair that meets: lost ≤ (n − 1) / (2V).
    enough = max(math.ceil((num_ids - 1) / (2 * max_lost)), 1)
    return 1 + bisect.bisect_left(
        range(1, enough + 1),
        True,
        key=lambda num_rows: forecast(num_ids, num_rows).lost <= max_lost,
    )


def _any_of(times: int, probability: float) -> float:
    """1 − (1 − p)^n, the probability of at least one of n; precise where p is tiny."""
    if times == 0 or probability == 1:
        return float(times > 0)
    return -math.expm1(times * math.log1p(-probability))
