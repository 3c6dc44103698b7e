"""The devices of a machine that need not be there, by a name such as "v5p:4x4x4".

    v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1   a slice of Cloud TPU, by its chips
    h100:8, a100:16                              GPUs
    cpu:8                                        simulated devices of this machine

libtpu describes and compiles for TPU slices on any machine. GPUs are stood in for by
as many simulated CPU devices.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import importlib.util
import itertools
import math
import os
import sys
import tempfile
from typing import Any

import jax
from jax.experimental import topologies

from rankax.config.base import ConfigError, suggest

# Generation -> `jax.Device.device_kind`, and the dimensions of its slices.
_TPUS = {
    "v5e": ("TPU v5 lite", 2),
    "v5p": ("TPU v5", 3),
    "v6e": ("TPU v6 lite", 2),
    "tpu7x": ("TPU7x", 3),
}
DEVICES_PER_CHIP = {"tpu7x": 2}  # as jax counts them; else one
_GPUS = {
    "a100": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "l4": "NVIDIA L4",
}
# Slices that can be had, from small to large: chips along each dimension.
SIZES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SIZES_3D = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
    "8x16x16", "16x16x16",
)  # fmt: skip
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Devices by name.

    Attributes:
        name: as the user writes it.
        platform: "tpu", "gpu" or "cpu".
        device_kind: of a `jax.Device`; "cpu" for simulated devices.
        num_chips: that are rented.
        num_devices: of jax; a TPU7x chip is two.
        dims: chips along each dimension of a slice; one number for others.
    """

    name: str
    platform: str
    device_kind: str
    num_chips: int
    num_devices: int
    dims: tuple[int, ...]

    @property
    def devices_per_chip(self) -> int:
        """Of jax."""
        return self.num_devices // self.num_chips


def parse(name: str) -> Topology:
    """Reads "KIND:SIZE".

    Raises:
        ConfigError: a kind that is not known, or a size of another form.
    """
    kind, _, size = name.partition(":")
    _check_kind(kind, name)
    dims = [int(part) if part.isdigit() else 0 for part in size.split("x")]
    wanted = _TPUS[kind][1] if kind in _TPUS else 1
    if len(dims) != wanted or min(dims) < 1:
        example = sizes(kind)[len(sizes(kind)) // 2]
        raise ConfigError(
            f"topology {name!r}: {kind} takes its chips as "
            f"{'x'.join('N' * wanted)}, for example {example}"
        )
    chips = math.prod(dims)
    if kind in _TPUS:
        platform, device_kind = "tpu", _TPUS[kind][0]
    else:
        platform, device_kind = ("gpu", _GPUS[kind]) if kind in _GPUS else ("cpu", kind)
    return Topology(
        name=name,
        platform=platform,
        device_kind=device_kind,
        num_chips=chips,
        num_devices=chips * DEVICES_PER_CHIP.get(kind, 1),
        dims=tuple(dims),
    )


def sizes(kind: str) -> tuple[str, ...]:
    """Returns the names of all sizes of a kind, from small to large.

    Raises:
        ConfigError: a kind that is not known.
    """
    _check_kind(kind, kind)
    if kind in _TPUS:
        known = SIZES_2D if _TPUS[kind][1] == 2 else _SIZES_3D
    else:
        known = tuple(map(str, _COUNTS))
    return tuple(f"{kind}:{size}" for size in known)


def prepare(names: Sequence[str]) -> None:
    """Makes jax start with as many CPU devices as the largest of some machines needs.

    Accelerators of this machine stay free. Without effect once jax has started.

    Args:
        names: of all machines.
    """
    jax.config.update("jax_platforms", "cpu")
    counts = [
        topology.num_devices
        for topology in map(parse, names)
        if topology.platform != "tpu"
    ]
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(counts, default=1))


def devices(topology: Topology) -> list[Any]:
    """Returns the devices to compile for; call `prepare` first.

    Raises:
        ConfigError: libtpu is missing or does not know the slice, or jax has started
            with fewer CPU devices.
    """
    if topology.platform == "tpu":
        return _of_slice(topology)
    count = topology.num_devices
    found = jax.devices("cpu")
    if len(found) < count:
        raise ConfigError(
            f"{topology.name} is stood in for by {count} CPU devices, but jax has "
            f"started with {len(found)}; set XLA_FLAGS="
            f"--xla_force_host_platform_device_count={count}"
        )
    return found[:count]


def _of_slice(topology: Topology) -> list[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"{topology.name} is compiled for by libtpu, which is not installed; "
            "pip install 'rankax[tpu]' (it needs no TPU)"
        )
    # Compiling takes no chip, so it need not wait for those who hold one.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        with quiet():
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=topology.name
            )
    except Exception as error:
        raise ConfigError(
            f"libtpu does not know {topology.name}: {error}; sizes that can be had: "
            f"{', '.join(sizes(topology.name.partition(':')[0]))}"
        ) from error
    return list(found.devices)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the screen what libtpu writes to stderr.

    Off TPU machines it warns that it finds no machine type and no worker names.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as told:
        screen = os.dup(2)
        os.dup2(told.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def _check_kind(kind: str, name: str) -> None:
    known = tuple(itertools.chain(_TPUS, _GPUS, ("cpu",)))
    if kind not in known:
        raise ConfigError(
            f"topology {name!r}: no chip {kind!r}; {suggest(kind, known)}"
        )
