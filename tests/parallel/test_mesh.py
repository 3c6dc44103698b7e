from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.parallel import mesh as meshes


def test_the_mesh_takes_all_devices_and_splits_the_first_dimension_over_them():
    mesh = meshes.make_mesh(model=2)
    assert dict(mesh.shape) == {"data": 4, "model": 2}
    x = jax.device_put(np.arange(16), meshes.over_all_devices(mesh))
    # Device order along the batch is mesh order.
    for i, device in enumerate(mesh.devices.flat):
        shard = next(s for s in x.addressable_shards if s.device == device)
        np.testing.assert_array_equal(shard.data, [2 * i, 2 * i + 1])
    assert meshes.local_device_count(mesh) == 8


def test_axes_that_do_not_fit_the_devices_are_an_error():
    with pytest.raises(
        ConfigError, match=r"3 times mesh\.model = 1 is 3, but there are 8"
    ):
        meshes.make_mesh(data=3)
    with pytest.raises(ConfigError, match="= 3 does not divide the 8 devices"):
        meshes.make_mesh(model=3)


class Device(NamedTuple):
    id: int
    process_index: int


class OfProcesses:
    """A sharding whose devices belong to several processes, given device by device."""

    def __init__(self, sharding, owners):
        self._sharding, self._owners = sharding, owners

    def devices_indices_map(self, shape):
        pieces = self._sharding.devices_indices_map(shape)
        return {
            Device(device.id, self._owners[device.id]): index
            for device, index in pieces.items()
        }


@pytest.mark.parametrize(
    ("spec", "owners", "expected"),
    [
        (("data", "model"), [0] * 8, [(0, 1)]),
        (("data", "model"), [0] * 4 + [1] * 4, [(0, 2), (1, 2)]),
        # The model axis spans both processes: they read the same examples.
        (("data",), [0, 1] * 4, [(0, 1), (0, 1)]),
        (("data",), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (("model",), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 1)] * 4),
        ((), [0] * 4 + [1] * 4, [(0, 1), (0, 1)]),
    ],
)
def test_what_a_process_reads_follows_from_the_sharding(spec, owners, expected):
    mesh = meshes.make_mesh(model=2)
    sharding = NamedSharding(mesh, PartitionSpec(spec))
    shards = [
        meshes.input_shard(OfProcesses(sharding, owners), 16, process_index=process)
        for process in range(len(expected))
    ]
    assert shards == expected


def test_a_process_whose_devices_hold_scattered_examples_is_an_error():
    mesh = meshes.make_mesh()
    sharding = NamedSharding(mesh, PartitionSpec(("data", "model")))
    with pytest.raises(ConfigError, match=r"not adjacent; choose mesh\.data"):
        meshes.input_shard(OfProcesses(sharding, [0, 1] * 4), 16, process_index=0)
    with pytest.raises(ConfigError, match="pieces must be equal"):
        owners = [0, 0, 1, 1, 1, 1, 1, 1]
        meshes.input_shard(OfProcesses(sharding, owners), 16, process_index=0)


def test_this_process_reads_all_of_a_batch_on_its_own_devices():
    sharding = meshes.over_all_devices(meshes.make_mesh())
    assert meshes.input_shard(sharding, 4096) == (0, 1)
