import dataclasses

import pytest

from rankax.config.base import ConfigError
from rankax.parallel import topology


def test_names_tell_chips_and_devices():
    told = {
        "v5e:4x8": ("tpu", "TPU v5 lite", 32, 32),
        "v5p:4x4x4": ("tpu", "TPU v5", 64, 64),
        "tpu7x:2x2x1": ("tpu", "TPU7x", 4, 8),
        "h100:8": ("gpu", "NVIDIA H100 80GB HBM3", 8, 8),
        "cpu:4": ("cpu", "cpu", 4, 4),
    }
    for name, expected in told.items():
        found = topology.parse(name)
        assert (
            found.platform, found.device_kind, found.num_chips, found.num_devices,
        ) == expected  # fmt: skip
        assert found.name == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v5p-64:x", "of its 32 chips the name here is 'v5p:2x4x4'"),
        ("v6e-16", "of its 16 chips the name here is 'v6e:4x4'"),
        ("v5p-66", "name it by its chips, such as v5p:"),
        ("gpu:8", "known: v5e, v5p, v6e, tpu7x, l4, a100"),
        ("v5q:4x4", "unknown accelerator 'v5q'; did you mean 'v5"),
        ("v5p:4x4", "no such slice of v5p; known: 2x2x1, .* all multiples of 4"),
        ("v5p:8x4x4", "AxBxC with A <= B <= C"),
        ("v5p:16x16x28", "up to 6144 chips"),
        ("v5e:4x4x4", "no such slice of v5e; known: 1x1, 2x2"),
        ("v5e:4x2", "no such slice of v5e"),  # libtpu compiles for it; none is for rent
        ("h100", "must be h100:NUMBER"),
        ("h100:0", "must be h100:NUMBER"),
        ("cpu:2x2", "for example cpu:8"),
    ],
)
def test_other_names_are_refused_with_an_example(name, told):
    with pytest.raises(ConfigError, match=told):
        topology.parse(name)


def test_sizes_grow():
    for kind in ("v5e", "v5p", "h100"):
        chips = [topology.parse(name).num_chips for name in topology.sizes(kind)]
        assert chips == sorted(set(chips))


def test_simulated_devices_are_those_of_this_machine():
    assert len(topology.devices(topology.parse("h100:4"))) == 4
    with pytest.raises(ConfigError, match="xla_force_host_platform_device_count=512"):
        topology.devices(topology.parse("cpu:512"))


def test_libtpu_describes_slices_and_warns_of_nothing(capfd):
    pytest.importorskip("libtpu")
    hosts = {
        "v5e:1x1": 1, "v5e:4x4": 4, "v5p:2x2x2": 2, "v6e:2x4": 1, "tpu7x:2x2x1": 1,
    }  # fmt: skip
    for name, num_hosts in hosts.items():
        where = topology.parse(name)
        found = topology.devices(where)
        assert len(found) == where.num_devices
        assert len({device.process_index for device in found}) == num_hosts
        assert {device.device_kind for device in found} == {where.device_kind}
    told = capfd.readouterr()
    assert (told.out, told.err) == ("", "")
    other = dataclasses.replace(topology.parse("v5e:4x4"), name="v5e:3x7")
    with pytest.raises(ConfigError, match="libtpu does not know v5e:3x7"):
        topology.devices(other)


def test_a_missing_libtpu_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"-e '.\[tpu\]'"):
        topology.devices(topology.parse("v5e:4x4"))
