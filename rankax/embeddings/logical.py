"""Tables as checkpoints have them, [S, R, ...], whatever their devices make of them.

Devices that keep rows in lines (`rankax.embeddings.layout`) have no room for a second
form of a table, so the host turns one into the other: each process those shards that
its devices hold, on its own CPU.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from rankax.config.base import ConfigError
from rankax.embeddings.layout import Layout
from rankax.embeddings.placement import RowGroup
from rankax.parallel import mesh as meshes


def check_hosts() -> None:
    """Raises `ConfigError` if jax may not use the hosts' CPUs."""
    try:
        jax.devices("cpu")
    except RuntimeError as error:
        raise ConfigError(
            f"checkpoints of tables on {jax.default_backend()} go through the host's "
            f"CPU, which jax was started without ({error}); set "
            f"JAX_PLATFORMS={jax.default_backend()},cpu or leave it unset"
        ) from error


def host_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the first dimension over the hosts of a mesh's devices.

    Each host has as many devices, side by side (`meshes.local_device_count`).
    """
    processes = dict.fromkeys(device.process_index for device in mesh.devices.flat)
    first = {device.process_index: device for device in reversed(jax.devices("cpu"))}
    hosts = [first[process] for process in processes]
    return NamedSharding(Mesh(np.array(hosts), "host"), PartitionSpec("host"))


def to_host(
    stored: jax.Array, layout: Layout, group: RowGroup, mesh: Mesh
) -> jax.Array:
    """Returns an array of the devices as [S, R, ...] on their hosts.

    Args:
        stored: what the layout's `pack` makes of each device's shards.
        layout: on one device.
        group: of the array.
        mesh: of the devices.
    """
    shape = (group.num_shards // mesh.size, group.depth, *layout.tail)
    shards = sorted(stored.addressable_shards, key=lambda x: x.index[0].start or 0)
    rows = [layout.unpack(np.asarray(shard.data)).reshape(shape) for shard in shards]
    return jax.make_array_from_process_local_data(
        host_sharding(mesh), np.concatenate(rows)
    )


def to_devices(rows: jax.Array, layout: Layout, mesh: Mesh) -> jax.Array:
    """Returns the array of `to_host` as the devices of a mesh keep it."""
    (own,) = rows.addressable_shards
    blocks = np.split(np.asarray(own.data), meshes.local_device_count(mesh))
    packed = [layout.pack(x.reshape(-1, *layout.tail)) for x in blocks]
    return jax.make_array_from_process_local_data(
        meshes.over_all_devices(mesh), np.concatenate(packed)
    )
