"""The device mesh and the three shardings that rankax uses."""

from collections.abc import Mapping, Sequence
import itertools
import math
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
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
    if not data and len(devices) % model:
        raise ConfigError(
            f"mesh.model = {model} does not divide the {len(devices)} devices"
        )
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


def by_devices(arrays: Mapping[str, jax.Array]) -> list[dict[str, jax.Array]]:
    """Splits arrays by the devices that they are on; one program takes no mixture."""
    found: dict[frozenset[Any], dict[str, jax.Array]] = {}
    for name, x in arrays.items():
        found.setdefault(frozenset(x.sharding.device_set), {})[name] = x
    return list(found.values())


def bytes_per_device(tree: Any) -> int:
    """Returns what one device holds of arrays with shardings, or of their shapes."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    )


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


class InputShard(NamedTuple):
    """Which of `count` equal, adjacent pieces of every batch a process reads."""

    index: int
    count: int


def input_shard(
    sharding: Sharding, batch_size: int, *, process_index: int | None = None
) -> InputShard:
    """Derives what a process must read from how batches are laid over the devices.

    The number of pieces need not be that of processes: where the batch is not split
    over all hosts, several of them read the same examples.

    Args:
        sharding: of arrays [B, ...].
        batch_size: B.
        process_index: which process; None = this one.

    Raises:
        ConfigError: the process's devices do not hold one whole piece, so no reader
            of adjacent examples could feed them.
    """
    process_index = jax.process_index() if process_index is None else process_index
    by_process: dict[int, set[tuple[int, int]]] = {}
    for device, (rows, *_) in sharding.devices_indices_map((batch_size,)).items():
        start, stop, _ = rows.indices(batch_size)
        by_process.setdefault(device.process_index, set()).add((start, stop))
    ranges = {process: _union(pieces) for process, pieces in by_process.items()}
    start, stop = ranges[process_index]
    sizes = {stop - start for start, stop in ranges.values()}
    if len(sizes) > 1 or start % (stop - start):
        raise ConfigError(
            f"processes hold rows {sorted(set(ranges.values()))} of a batch of "
            f"{batch_size}: pieces must be equal and side by side; choose mesh.data "
            "and mesh.model so that each process holds a whole run of the mesh"
        )
    return InputShard(start // (stop - start), batch_size // (stop - start))


def _union(pieces: set[tuple[int, int]]) -> tuple[int, int]:
    """Joins ranges that follow each other."""
    ordered = sorted(pieces)
    for (_, stop), (start, _) in itertools.pairwise(ordered):
        if start != stop:
            raise ConfigError(
                f"a process's devices hold rows {ordered} of a batch, which are not "
                "adjacent; choose mesh.data and mesh.model so that each process holds "
                "a whole run of the mesh"
            )
    return ordered[0][0], ordered[-1][1]
