"""The devices of a machine that need not be there, by a name such as "v5p:4x4x4".

    v5e:4x4, v5p:4x4x4, v6e:16x16, tpu7x:2x2x1   a slice of Cloud TPU, by its chips
    h100:8, a100:16, a100-80gb:8                 GPUs, by Google Cloud's names
    cpu:8                                        simulated devices of this machine

libtpu describes and compiles for TPU slices on any machine. GPUs are stood in for by
as many simulated CPU devices.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from rankax.config.base import ConfigError, suggest

# Slices that can be had, from small to large: chips along each dimension. In 3D also
# other whole cubes of 4x4x4 chips.
_SIZES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SIZES_3D = (
    "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
    "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip
_SIDE = 4  # of a cube


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tpu:
    """A generation.

    Attributes:
        device_kind: of a `jax.Device`.
        sizes: of its slices.
        max_chips: of other slices, of whole cubes; 0 = there are none.
        devices_per_chip: as jax counts them.
    """

    device_kind: str
    sizes: tuple[str, ...]
    max_chips: int = 0
    devices_per_chip: int = 1


# Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x".
_TPUS = {
    "v5e": _Tpu(device_kind="TPU v5 lite", sizes=_SIZES_2D),
    "v5p": _Tpu(device_kind="TPU v5", sizes=_SIZES_3D, max_chips=6144),
    "v6e": _Tpu(device_kind="TPU v6 lite", sizes=_SIZES_2D),
    "tpu7x": _Tpu(
        device_kind="TPU7x", sizes=_SIZES_3D, max_chips=9216, devices_per_chip=2
    ),
}
# Libtpu takes machines of 2x2 chips, but these slices are one machine.
_ONE_MACHINE = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}
_GPUS = {
    "l4": "NVIDIA L4",
    "a100": "NVIDIA A100-SXM4-40GB",
    "a100-80gb": "NVIDIA A100-SXM4-80GB",
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "b200": "NVIDIA B200",
}
KINDS = (*_TPUS, *_GPUS, "cpu")
_LIBTPU = {
    # Compiling takes no chip, so it need not wait for those who hold one.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Any values: off TPU machines it warns that it finds none.
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Devices by name.

    Attributes:
        name: as the user writes it.
        kind: "v5p", "h100", "cpu".
        platform: "tpu", "gpu" or "cpu".
        device_kind: of a `jax.Device`; "cpu" for simulated devices.
        num_chips: that are rented.
        num_devices: of jax; a TPU7x chip is two.
        dims: chips along each dimension of a slice; one number for others.
    """

    name: str
    kind: str
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
        ConfigError: a kind that is not known, or a size that it does not come in.
    """
    kind, _, size = name.partition(":")
    _check_kind(kind, name)
    if kind in _TPUS:
        return _slice(name, kind, size)
    if not re.fullmatch(r"[1-9]\d{0,5}", size):
        raise ConfigError(
            f"topology {name!r} must be {kind}:NUMBER, for example {kind}:8"
        )
    return Topology(
        name=name,
        kind=kind,
        platform="gpu" if kind in _GPUS else "cpu",
        device_kind=_GPUS.get(kind, kind),
        num_chips=int(size),
        num_devices=int(size),
        dims=(int(size),),
    )


def _slice(name: str, kind: str, size: str) -> Topology:
    tpu = _TPUS[kind]
    if size not in tpu.sizes and not _is_of_cubes(size, max_chips=tpu.max_chips):
        known = ", ".join(tpu.sizes)
        if tpu.max_chips:
            known += (
                ", or AxBxC with A <= B <= C, all multiples of 4, up to "
                f"{tpu.max_chips} chips"
            )
        raise ConfigError(f"topology {name!r}: no such slice of {kind}; known: {known}")
    dims = tuple(map(int, size.split("x")))
    return Topology(
        name=name,
        kind=kind,
        platform="tpu",
        device_kind=tpu.device_kind,
        num_chips=math.prod(dims),
        num_devices=math.prod(dims) * tpu.devices_per_chip,
        dims=dims,
    )


def _is_of_cubes(size: str, *, max_chips: int) -> bool:
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", size):
        return False
    dims = [int(side) for side in size.split("x")]
    are_whole = all(side % _SIDE == 0 for side in dims)
    return are_whole and dims == sorted(dims) and math.prod(dims) <= max_chips


def sizes(kind: str) -> tuple[str, ...]:
    """Returns the names of the usual sizes of a kind, from small to large.

    Raises:
        ConfigError: a kind that is not known.
    """
    _check_kind(kind, kind)
    known = _TPUS[kind].sizes if kind in _TPUS else map(str, _COUNTS)
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
            "pip install -e '.[tpu]' in the checkout (it needs no TPU)"
        )
    for name, value in _LIBTPU.items():
        os.environ.setdefault(name, value)
    machine = _ONE_MACHINE.get(topology.name.partition(":")[2])
    options = {"chips_per_host_bounds": machine} if machine else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as error:
        raise ConfigError(
            f"libtpu does not know {topology.name}: {error}; another version may, or "
            "use another size"
        ) from error
    return list(found.devices)


def _check_kind(kind: str, name: str) -> None:
    if kind in KINDS:
        return
    known = suggest(kind, KINDS)
    if kind in ("gpu", "tpu"):
        known = f"known: {', '.join(KINDS)}"
    raise ConfigError(
        f"topology {name!r}: unknown accelerator {kind!r}; {_same(kind) or known}"
    )


def _same(accelerator: str) -> str:
    """Returns advice for Google Cloud's own names, such as "v5p-64"; "" = it is none.

    They count chips, but TensorCores on v5p, which has two of them on a chip.
    """
    kind, _, count = accelerator.partition("-")
    if kind not in _TPUS or not count.isdecimal():
        return ""
    chips = int(count) // (2 if kind == "v5p" else 1)
    for name in sizes(kind):
        if parse(name).num_chips == chips:
            return f"of its {chips} chips the name here is {name!r}"
    return f"name it by its chips, such as {kind}:{_TPUS[kind].sizes[-1]}"
