import collections
import itertools
import math

import pytest

from rankax.observe import forecast
from rankax.observe.peaks import peaks
from rankax.parallel import topology

V5P = 1200e9 / 2 / 6  # bytes per second that one link carries one way
V5E = 400e9 / 2 / 4


def seconds(name, **sent):
    where = topology.parse(name)
    sent = {kind.replace("_", "-"): size for kind, size in sent.items()}
    return forecast.link_seconds(peaks(where.device_kind), where, sent)


def brute_force_all_to_all(dims, is_ring):
    """Bytes through the busiest link if every chip sends 1 byte to every other one."""
    load = collections.Counter()
    chips = list(itertools.product(*map(range, dims)))
    for start, end in itertools.permutations(chips, 2):
        here = list(start)
        for axis, size in enumerate(dims):
            away = (end[axis] - here[axis]) % size
            ways = [(1, away, 1.0)]
            if is_ring[axis] and 2 * away == size:  # either way is as short
                ways = [(1, away, 0.5), (-1, away, 0.5)]
            elif 2 * away > size if is_ring[axis] else end[axis] < here[axis]:
                ways = [(-1, size - away, 1.0)]
            for step, hops, share in ways:
                for hop in range(hops):
                    at = list(here)
                    at[axis] = (here[axis] + step * hop) % size
                    load[axis, step, tuple(at)] += share
            here[axis] = end[axis]
    return max(load.values())


@pytest.mark.parametrize(
    ("name", "is_ring", "link"),
    [
        ("v5p:4x4x4", (True, True, True), V5P),
        ("v5p:2x4x4", (False, False, False), V5P),
        ("v5p:2x2x1", (False, False, False), V5P),
        ("v5e:2x2", (False, False), V5E),
        ("v5e:4x8", (False, False), V5E),
        ("v5e:8x16", (False, True), V5E),
    ],
)
def test_all_to_all_takes_as_long_as_its_busiest_link(name, is_ring, link):
    dims = topology.parse(name).dims
    others = math.prod(dims) - 1
    expected = brute_force_all_to_all(dims, is_ring) / link
    assert seconds(name, all_to_all=others) == pytest.approx(expected)


def test_all_to_all_of_a_pod_is_bound_by_its_published_middle():
    # The page of the v5e: 1.6 TB/s through the middle of 16x16. Of the 255 chips that
    # one sends to, 128 are on the other side.
    found = seconds("v5e:16x16", all_to_all=8e6)
    assert found == pytest.approx(128 * 8e6 * 128 / 255 / 1.6e12)


def test_sums_use_all_links_of_a_chip():
    assert seconds("v5p:4x4x4", all_reduce=6e6) == pytest.approx(6e6 / (6 * V5P))
    assert seconds("v5p:2x2x1", all_gather=6e6) == pytest.approx(6e6 / (2 * V5P))


def test_gpus_of_one_machine_use_their_own_links_and_others_the_network():
    nvlink, network = 450e9, 50e9
    assert seconds("h100:8", all_to_all=9e6) == pytest.approx(9e6 / nvlink)
    found = seconds("h100:16", all_to_all=15e6, all_reduce=8e6)
    expected = 8e6 / network + 1e6 / network + (7e6 + 8e6) / nvlink
    assert found == pytest.approx(expected)


def test_nothing_sent_takes_no_time():
    assert seconds("h100:1") == seconds("v5e:1x1") == seconds("v5p:4x4x4") == 0


def make_forecast(name, **changes):
    where = topology.parse(name)
    arguments = {
        "dtype": "bfloat16",
        "batch_size": 1000,
        "product_flops": 459e12 / 100,
        "memory_bytes": 2765e9 / 50,
        "sent_bytes": {"all-reduce": 6 * V5P / 25},
    }
    found = peaks(where.device_kind)
    return forecast.forecast(found, where, **(arguments | changes))


def test_a_step_takes_between_the_longest_part_and_the_sum():
    found = make_forecast("v5p:4x4x4")
    assert found.parts == pytest.approx(
        {"arithmetic": 0.01, "memory": 0.02, "links": 0.04}
    )
    assert found.bound == "links"
    assert found.most_examples_per_second == pytest.approx(1000 / 0.04)
    assert found.least_examples_per_second == pytest.approx(1000 / 0.07)


def test_a_chip_of_two_devices_shares_its_peaks():
    one, two = peaks("TPU7x"), 2307e12
    assert one.flops_per_second("bfloat16") * 2 == two
    assert one.memory_rate * 2 == 7380e9
    assert one.link_rate * 2 == 600e9
    assert one.memory_bytes == 94.75 * 2**30


def test_without_a_peak_there_is_no_forecast():
    assert peaks("cpu") is None
    assert peaks("Tesla T4").flops_per_second("bfloat16") is None
    t4 = topology.parse("l4:1")
    found = forecast.forecast(
        peaks("Tesla T4"), t4, dtype="bfloat16", batch_size=1, product_flops=1,
        memory_bytes=1, sent_bytes={},
    )  # fmt: skip
    assert found is None
