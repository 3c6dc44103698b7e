"""What a topology such as v5p:4x4x4 or h100:16 is made of: chips, machines, names.

One table for all routes, from Google Cloud's pages:

- TPU machine types, node labels and shapes: "Plan TPUs in GKE"
  (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus);
- names of TPU VMs and of their software: "TPU versions", "TPU software versions"
  (cloud.google.com/tpu/docs/v5p, v5e, v6e, runtimes);
- GPU machine types and node labels: "About GPUs in GKE"
  (cloud.google.com/kubernetes-engine/docs/concepts/gpus).
"""

from collections.abc import Mapping
import dataclasses

from rankax.config.base import ConfigError
from rankax.parallel import topology as topologies
from rankax.parallel.topology import Topology


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The accelerators of one run.

    Attributes:
        topology: as it was given, "v5p:4x4x4".
        kind: "v5p", "h100", "cpu".
        shape: of the chips, "4x4x4"; "" where they have none.
        num_chips: in all.
        num_devices: that jax counts; two on each chip of tpu7x.
        num_hosts: machines.
        machine_type: of Google Cloud; "" for cpu, which takes any, and a site's own.
        resource: as Kubernetes counts chips; "" for cpu.
        labels: of the nodes on Google Kubernetes Engine.
        tpu_vm: accelerator type of the Cloud TPU API; "" where it has none.
        tpu_software: its runtime version.
    """

    topology: str
    kind: str
    shape: str = ""
    num_chips: int
    num_devices: int
    num_hosts: int = 1
    machine_type: str = ""
    resource: str = ""
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tpu_vm: str = ""
    tpu_software: str = ""

    @property
    def is_tpu(self) -> bool:
        """Whether it is a slice of TPU chips."""
        return self.resource == _TPU_RESOURCE

    @property
    def is_gpu(self) -> bool:
        """Whether it is of GPUs."""
        return self.resource == _GPU_RESOURCE

    @property
    def chips_per_host(self) -> int:
        """Chips of each machine."""
        return self.num_chips // self.num_hosts


def parse(topology: str, *, gpus_per_node: int = 0) -> Slice:
    """Returns what a topology is made of.

    Args:
        topology: "v5e:4x4", "v5p:4x4x4", "v6e:16x16", "tpu7x:2x2x1": shape of a slice;
            "h100:16": number of GPUs; "cpu:2": number of processes without accelerator.
        gpus_per_node: of a site's own machines; 0 = as Google Cloud has them.

    Raises:
        ConfigError: there is no such topology.
    """
    if topology in topologies.KINDS:
        raise ConfigError(_no_size(topology))
    where = topologies.parse(topology)
    if where.platform == "tpu":
        return _tpu(where)
    if where.platform == "gpu":
        return _gpu(where, gpus_per_node)
    return Slice(
        topology=topology,
        kind=where.kind,
        num_chips=where.num_chips,
        num_devices=where.num_devices,
    )


def _no_size(kind: str) -> str:
    sizes = topologies.sizes(kind)[3:6]
    told = f"topology {kind!r} needs a size, such as {', '.join(sizes)}"
    if kind == "cpu":
        return told
    return (
        f"{told}; python -m rankax.main --config=FILE --mode=plan "
        f"--plan.topology={kind} finds the smallest that fits"
    )


# ---------------------------------------------------------------- TPUs

_TPU_RESOURCE = "google.com/tpu"
_TPU_LABELS = (
    "cloud.google.com/gke-tpu-accelerator",
    "cloud.google.com/gke-tpu-topology",
)
_CHIPS_PER_HOST = 4  # of every slice of several machines


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Tpu:
    """A generation.

    Attributes:
        label: of its nodes.
        machines: chips of a machine -> machine type.
        vm: accelerator type of TPU VMs, without the number in its name.
        vm_units_per_chip: in that number: v5p counts cores.
        software: runtime version of TPU VMs.
    """

    label: str
    machines: Mapping[int, str]
    vm: str = ""
    vm_units_per_chip: int = 1
    software: str = ""


_TPUS = {
    "v5e": _Tpu(
        label="tpu-v5-lite-podslice",
        machines={1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
        vm="v5litepod",
        software="v2-alpha-tpuv5-lite",
    ),
    "v6e": _Tpu(
        label="tpu-v6e-slice",
        machines={1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
        vm="v6e",
        software="v2-alpha-tpuv6e",
    ),
    "v5p": _Tpu(
        label="tpu-v5p-slice",
        machines={4: "ct5p-hightpu-4t"},
        vm="v5p",
        vm_units_per_chip=2,
        software="v2-alpha-tpuv5",
    ),
    "tpu7x": _Tpu(
        label="tpu7x",
        machines={4: "tpu7x-standard-4t"},
    ),
}


def _tpu(where: Topology) -> Slice:
    tpu, chips = _TPUS[where.kind], where.num_chips
    shape = "x".join(map(str, where.dims))
    per_host = chips if chips in tpu.machines else _CHIPS_PER_HOST
    return Slice(
        topology=where.name,
        kind=where.kind,
        shape=shape,
        num_chips=chips,
        num_devices=where.num_devices,
        num_hosts=chips // per_host,
        machine_type=tpu.machines[per_host],
        resource=_TPU_RESOURCE,
        labels=dict(zip(_TPU_LABELS, (tpu.label, shape), strict=True)),
        tpu_vm=tpu.vm and f"{tpu.vm}-{chips * tpu.vm_units_per_chip}",
        tpu_software=tpu.software,
    )


# ---------------------------------------------------------------- GPUs

_GPU_RESOURCE = "nvidia.com/gpu"
_GPU_LABEL = "cloud.google.com/gke-accelerator"
# Kind -> label of its nodes, GPUs of a machine -> machine type.
_GPUS: dict[str, tuple[str, dict[int, str]]] = {
    "l4": (
        "nvidia-l4",
        {
            1: "g2-standard-12",
            2: "g2-standard-24",
            4: "g2-standard-48",
            8: "g2-standard-96",
        },
    ),
    "a100": (
        "nvidia-tesla-a100",
        {n: f"a2-highgpu-{n}g" for n in (1, 2, 4, 8)},
    ),
    "a100-80gb": (
        "nvidia-a100-80gb",
        {n: f"a2-ultragpu-{n}g" for n in (1, 2, 4, 8)},
    ),
    "h100": ("nvidia-h100-80gb", {n: f"a3-highgpu-{n}g" for n in (1, 2, 4, 8)}),
    "h200": ("nvidia-h200-141gb", {8: "a3-ultragpu-8g"}),
    "b200": ("nvidia-b200", {8: "a4-highgpu-8g"}),
}


def _gpu(where: Topology, gpus_per_node: int) -> Slice:
    kind, number = where.kind, where.num_chips
    label, machines = _GPUS[kind]
    if gpus_per_node:
        per_host, machines = min(number, gpus_per_node), {}
    else:
        per_host = number if number in machines else max(machines)
    if number % per_host and gpus_per_node:
        raise ConfigError(
            f"topology {where.name!r} cannot be split into nodes of {per_host} GPUs; "
            "choose another number, or --gpus_per_node"
        )
    if number % per_host:
        raise ConfigError(
            f"topology {where.name!r}: {kind} comes in machines of "
            f"{', '.join(map(str, machines))}, and several of them have {per_host} "
            f"each; use a multiple of {per_host} (nodes of a Slurm site of your own: "
            "--gpus_per_node)"
        )
    return Slice(
        topology=where.name,
        kind=kind,
        num_chips=number,
        num_devices=number,
        num_hosts=number // per_host,
        machine_type=machines.get(per_host, ""),
        resource=_GPU_RESOURCE,
        labels={_GPU_LABEL: label},
    )
