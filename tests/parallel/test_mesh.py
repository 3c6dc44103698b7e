import jax
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
    with pytest.raises(ConfigError, match="but there are 8 devices"):
        meshes.make_mesh(model=3)
