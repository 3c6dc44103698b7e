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


def test_all_to_all_of_a_torus_is_bound_by_its_longest_dimension():
    assert seconds("v5p:4x4x4", all_to_all=8e6) == pytest.approx(8e6 / (2 * V5P))
    # Of 16 chips in a ring a message passes 4 links on average; the page of the v5e says
    # 1.6 TB/s through the middle of 16x16, which half of all bytes must pass.
    found = seconds("v5e:16x16", all_to_all=8e6)
    assert found == pytest.approx(256 * 8e6 / 2 / 2 / 1.6e12)


def test_ends_that_are_not_joined_make_ways_longer():
    # A line of 4: mean distance of two chips (with themselves) is 15 / 12.
    found = seconds("v5e:4x4", all_to_all=1e6)
    assert found == pytest.approx(1e6 * 1.25 / (1.5 * V5E))


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
