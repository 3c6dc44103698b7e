"""The device mesh and the three shardings that rankax uses."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from rankax.config.base import ConfigError

AXES = ("data", "model")

# Examples and table rows are split over every device, whatever the mesh's shape.
ALL_DEVICES = PartitionSpec(AXES)


def make_mesh(
    *, data: int = 0, model: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
    """Builds a (data, model) mesh.

    Args:
        data: devices along "data"; 0 = all devices / `model`.
        model: devices along "model".
        devices: devices to use; default all.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    data = data or len(devices) // model
    if data * model != len(devices):
        raise ConfigError(
            f"mesh.data = {data} times mesh.model = {model} is {data * model}, but "
            f"there are {len(devices)} devices; set mesh.data=0 to use them all"
        )
    axis_types = (jax.sharding.AxisType.Auto,) * 2  # the default would be Explicit
    return Mesh(np.asarray(devices).reshape(data, model), AXES, axis_types=axis_types)


def over_all_devices(mesh: Mesh) -> NamedSharding:
    """Splits the first dimension over all devices (batches, table shards)."""
    return NamedSharding(mesh, ALL_DEVICES)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device (network weights, small tables)."""
    return NamedSharding(mesh, PartitionSpec())


def local_device_count(mesh: Mesh) -> int:
    """Returns how many of the mesh's devices this process feeds.

    Raises:
        ConfigError: the mesh does not list each process's devices side by side, in
            process order, so the order of examples would depend on the machine.
    """
    owners = [device.process_index for device in mesh.devices.flat]
    if owners != sorted(owners):
        raise ConfigError(
            f"mesh axes mix devices of processes {owners}; choose mesh.model so that "
            "each process holds whole runs of the mesh"
        )
    return owners.count(jax.process_index())
