"""What a run ran on: hardware and versions, for `result.json`."""

from importlib import metadata
import os
import pathlib
import platform
from typing import Any

import jax

_PACKAGES = {
    "jax": "jax",
    "flax": "flax",
    "optax": "optax",
    "orbax": "orbax-checkpoint",
    "grain": "grain",
    "numpy": "numpy",
    "rankax": "rankax",
}
# Set by who starts runs from a checkout, where rankax alone does not know its commit.
COMMIT = "RANKAX_COMMIT"


def hardware() -> dict[str, Any]:
    """Returns the processor, its memory, and the devices that jax sees."""
    devices = jax.devices()
    return {
        "cpu": _cpu_model(),
        "cpu_cores": _cpu_cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "num_processes": jax.process_count(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide results.

    With them "commit", what the environment variable RANKAX_COMMIT says of the code.
    """
    result = {"python": platform.python_version()}
    for name, package in _PACKAGES.items():
        try:
            result[name] = metadata.version(package)
        except metadata.PackageNotFoundError:  # rankax run from a checkout
            result[name] = "not installed"
    if os.environ.get(COMMIT):
        result["commit"] = os.environ[COMMIT]
    return result


def _cpu_model() -> str:
    """The marketing name where the system tells it, else the architecture."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _cpu_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
