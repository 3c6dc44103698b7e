"""Manifests for Google Kubernetes Engine: one run as a JobSet, many as an Indexed Job.

A run is one pod for each machine. A pod that is to go gets SIGTERM, all processes save
and end with the exit status 143, and the JobSet starts them again, which goes on in the
same folder; so does the end of any of them, a limited number of times.
"""

from collections.abc import Sequence
import dataclasses
import re
import shlex
from typing import Any

import yaml

from rankax.config.base import ConfigError
from tpu import names
from tpu.program import Program
from tpu.slices import Slice

STOPPED = 143  # 128 + SIGTERM: what rankax.main ends with after a save
COORDINATOR_PORT = 8476
START_SECONDS = 1_200  # from the first pod's start to the last's: nodes, images
# Spot machines go 30 s after they are told so, and half of that is for the system.
SPOT_SECONDS = 15
MAX_NAME = 40  # what is added to it must fit a label too
# What a pod asks for by each chip: every machine type in `slices` has more beside what
# the system takes. The least, an L4's g2-standard-12, has 12 vCPUs and 48 GB.
CPUS_PER_CHIP, GIB_PER_CHIP = 8, 32
SHM_GIB_PER_CHIP = 1
MAX_ARRAY_BYTES = 200_000  # kubectl apply keeps a copy of 256 KiB at most
_CONTAINER = "rankax"
_JOB = "host"
_SPOT = "cloud.google.com/gke-spot"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where a run goes, and what it sees there.

    Attributes:
        image: of the container, with rankax and its configuration (`tpu/Dockerfile`).
        namespace: of Kubernetes.
        volume: "claim:NAME", a PersistentVolumeClaim that many machines may write
            (Filestore, Managed Lustre, NFS), or "bucket:NAME", a bucket by Cloud
            Storage FUSE; "" = none.
        mount_path: where the volume is.
        service_account: of Kubernetes, with rights on buckets; "" = the default one.
        spot: whether to use Spot machines.
        max_restarts: after failures; those that SIGTERM makes are not counted.
        cpu: that a pod asks for, as Kubernetes takes it: 12, 500m; "" = 8 for each
            chip, 1 without.
        memory: likewise: 64Gi; "" = 32Gi for each chip, 4Gi without.
    """

    image: str
    namespace: str = "default"
    volume: str = ""
    mount_path: str = "/shared"
    service_account: str = ""
    spot: bool = False
    max_restarts: int = 10
    cpu: str = ""
    memory: str = ""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: one that Kubernetes would not take.
        """
        names.check_plain(self.image, "--image")
        names.check_label(self.namespace, "--namespace")
        if self.service_account:
            names.check_label(self.service_account, "--service_account")
        kind, _, name = self.volume.partition(":")
        if self.volume and not (kind in ("claim", "bucket") and name):
            raise ConfigError(
                f"--volume={self.volume} must be claim:NAME, a PersistentVolumeClaim "
                "that many machines may write, or bucket:NAME, of Cloud Storage"
            )
        if self.volume:
            names.check_plain(name, "--volume")
        names.check_plain(self.mount_path, "--mount_path")
        if not self.mount_path.startswith("/") or self.mount_path.rstrip("/") == "":
            raise ConfigError(
                f"--mount_path={self.mount_path} must be an absolute path, like /shared"
            )
        if self.max_restarts < 0:
            raise ConfigError(f"--max_restarts={self.max_restarts} must be 0 or more")
        if self.cpu and not re.fullmatch(r"[1-9]\d*m?", self.cpu):
            raise ConfigError(f"--cpu={self.cpu} must be like 12, or 500m for a half")
        if self.memory and not re.fullmatch(r"[1-9]\d*[MGT]i?", self.memory):
            raise ConfigError(f"--memory={self.memory} must be like 64Gi or 500M")

    @property
    def mount(self) -> str:
        """The folder that all pods see; "" = none."""
        return self.mount_path if self.volume else ""


def render(
    program: Program,
    *,
    name: str,
    slice: Slice,
    cluster: Cluster,
    grace_seconds: int,
) -> str:
    """Returns the JobSet of one run, as YAML.

    Raises:
        ConfigError: values that Kubernetes, or a run of several processes, does not
            take.
    """
    names.check_label(name, "--name", max_length=MAX_NAME)
    if slice.kind == "cpu":
        raise ConfigError(
            f"--topology={slice.topology}: one run on Kubernetes is for TPUs or GPUs; "
            "lists of runs go on cpu:1 too"
        )
    _check_workdir(program.workdir, slice, cluster)
    job = {
        "parallelism": slice.num_hosts,
        "completions": slice.num_hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one pod cannot come back alone: the JobSet restarts all
        "podFailurePolicy": _failure_policy("FailJob"),
        "template": _pod(
            [*map(_escaped, program.words), *_coordinator(name, slice)],
            slice=slice,
            cluster=cluster,
            grace_seconds=grace_seconds,
        ),
    }
    manifest: dict[str, Any] = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _metadata(name, cluster),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": cluster.max_restarts,
                # The folder is free only when the last process of before has ended.
                "restartStrategy": "BlockingRecreate",
                "rules": [
                    {
                        "name": "stopped",
                        "action": "RestartJobSetAndIgnoreMaxRestarts",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                {"name": _JOB, "replicas": 1, "template": {"spec": job}}
            ],
        },
    }
    hosts = slice.num_hosts
    if slice.is_tpu and hosts > 1:
        # All pods on one slice, where several node pools have its topology.
        annotations = {_EXCLUSIVE: "cloud.google.com/gke-nodepool"}
        manifest["metadata"]["annotations"] = annotations
    about = [
        f"{name}: {slice.topology}, {hosts} of {slice.machine_type}. kubectl apply -f",
        "FILE starts or resumes it; kubectl delete -f FILE ends it, which saves first.",
        f"Time for a save: {program.why_grace(hosts)}.",
        *_remarks(cluster, slice),
    ]
    return _text(about, manifest)


def render_array(
    commands: Sequence[Sequence[str]],
    *,
    name: str,
    slice: Slice,
    cluster: Cluster,
    grace_seconds: int,
    at_once: int = 0,
) -> str:
    """Returns an Indexed Job with one command for each index, as YAML.

    Args:
        commands: words of each.
        name: of the Job.
        slice: of each pod, on one machine.
        cluster: where they go.
        grace_seconds: from SIGTERM to SIGKILL.
        at_once: pods that may run together; 0 = all.

    Raises:
        ConfigError: values that Kubernetes does not take.
    """
    names.check_label(name, "--name", max_length=MAX_NAME)
    if slice.num_hosts > 1 or (slice.kind == "cpu" and slice.num_chips > 1):
        raise ConfigError(
            f"--topology={slice.topology} is for several processes, and each run of a "
            "list is one; choose one machine, or cpu:1"
        )
    for number, words in enumerate(commands, 1):
        if workdir := names.value_of("--workdir", words):
            try:
                _check_workdir(workdir, slice, cluster)
            except ConfigError as error:
                raise ConfigError(f"command {number}: {error}") from error
    cases = [
        f"{index}) exec {shlex.join(words)} ;;" for index, words in enumerate(commands)
    ]
    script = "\n".join(['case "$JOB_COMPLETION_INDEX" in', *cases, "esac"])
    if len(script.encode()) > MAX_ARRAY_BYTES:
        raise ConfigError(
            f"{len(commands)} commands have {len(script.encode())} bytes, and a "
            f"manifest holds {MAX_ARRAY_BYTES}; render parts of the list"
        )
    manifest = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, cluster),
        "spec": {
            "completions": len(commands),
            "parallelism": min(at_once or len(commands), len(commands)),
            "completionMode": "Indexed",
            "backoffLimitPerIndex": cluster.max_restarts,
            "podFailurePolicy": _failure_policy("Ignore"),
            "template": _pod(
                ["bash", "-c", _escaped(script)],
                slice=slice,
                cluster=cluster,
                grace_seconds=grace_seconds,
            ),
        },
    }
    about = [
        f"{name}: {len(commands)} runs, one for each index, on {slice.topology}.",
        "Applied again after a delete, finished runs end at once and others go on.",
        *_remarks(cluster, slice),
    ]
    return _text(about, manifest)


# ---------------------------------------------------------------- parts

_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"


def _metadata(name: str, cluster: Cluster) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "rankax"}
    return {"name": name, "namespace": cluster.namespace, "labels": labels}


def _coordinator(name: str, slice: Slice) -> list[str]:
    """Returns the flags that join the processes of a run.

    A TPU slice announces its processes. Others would be found by asking Kubernetes,
    which takes a package and rights; their pods have names that are known beforehand.
    """
    if slice.num_hosts == 1:
        return []
    waiting = f"--start_timeout_seconds={START_SECONDS}"
    if slice.is_tpu:
        return ["--coordinator=auto", waiting]
    return [
        waiting,
        f"--coordinator={name}-{_JOB}-0-0.{name}:{COORDINATOR_PORT}",
        f"--num_processes={slice.num_hosts}",
        "--process_index=$(PROCESS_INDEX)",
    ]


def _failure_policy(action: str) -> dict[str, Any]:
    """What to do with a pod that had to go, rather than failed."""
    codes = {"containerName": _CONTAINER, "operator": "In", "values": [STOPPED]}
    gone = [{"type": "DisruptionTarget", "status": "True"}]
    return {
        "rules": [
            {"action": action, "onExitCodes": codes},
            {"action": action, "onPodConditions": gone},
        ]
    }


def _pod(
    words: Sequence[str], *, slice: Slice, cluster: Cluster, grace_seconds: int
) -> dict[str, Any]:
    volumes, mounts = _volumes(slice, cluster)
    container: dict[str, Any] = {
        "name": _CONTAINER,
        "image": cluster.image,
        "command": list(words),
        "env": [{"name": "PYTHONUNBUFFERED", "value": "1"}],
    }
    if any("$(PROCESS_INDEX)" in word for word in words):
        index = {"fieldRef": {"fieldPath": _INDEX}}
        container["env"].append({"name": "PROCESS_INDEX", "valueFrom": index})
    container["resources"] = _resources(slice, cluster)
    if mounts:
        container["volumeMounts"] = mounts
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds,
    }
    if cluster.service_account:
        spec["serviceAccountName"] = cluster.service_account
    selector = dict(slice.labels)
    if slice.is_gpu:
        selector["node.kubernetes.io/instance-type"] = slice.machine_type
    if cluster.spot:
        selector[_SPOT] = "true"
        spec["tolerations"] = [
            {
                "key": _SPOT,
                "operator": "Equal",
                "value": "true",
                "effect": "NoSchedule",
            }
        ]
    if selector:
        spec["nodeSelector"] = selector
    spec["containers"] = [container]
    if volumes:
        spec["volumes"] = volumes
    if cluster.volume.startswith("bucket:"):
        return {
            "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
            "spec": spec,
        }
    return {"spec": spec}


def _resources(slice: Slice, cluster: Cluster) -> dict[str, Any]:
    """Without requests, pods would be the first to go where memory is short."""
    cpu, memory = 1, 4
    if slice.resource:
        cpu = CPUS_PER_CHIP * slice.chips_per_host
        memory = GIB_PER_CHIP * slice.chips_per_host
    requests = {
        "cpu": cluster.cpu or str(cpu),
        "memory": cluster.memory or f"{memory}Gi",
    }
    if not slice.resource:
        return {"requests": requests}
    return {"requests": requests, "limits": {slice.resource: slice.chips_per_host}}


_INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def _escaped(word: str) -> str:
    """Keeps Kubernetes from replacing $(NAME) in what is not ours."""
    return word.replace("$(", "$$(")


def _volumes(
    slice: Slice, cluster: Cluster
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the volumes of a pod, and where its container has them."""
    volumes, mounts = [], []
    kind, _, name = cluster.volume.partition(":")
    if kind:
        source: dict[str, Any] = {"persistentVolumeClaim": {"claimName": name}}
        if kind == "bucket":
            attributes = {"bucketName": name, "mountOptions": "implicit-dirs"}
            source = {
                "csi": {
                    "driver": "gcsfuse.csi.storage.gke.io",
                    "volumeAttributes": attributes,
                }
            }
        volumes.append({"name": "shared", **source})
        mounts.append({"name": "shared", "mountPath": cluster.mount_path})
    if slice.is_gpu:  # NCCL passes data between processes and threads there
        limit = f"{SHM_GIB_PER_CHIP * slice.chips_per_host}Gi"
        memory = {"medium": "Memory", "sizeLimit": limit}
        volumes.append({"name": "memory", "emptyDir": memory})
        mounts.append({"name": "memory", "mountPath": "/dev/shm"})
    return volumes, mounts


def _check_workdir(workdir: str, slice: Slice, cluster: Cluster) -> None:
    """Refuses a run folder that is lost, or cannot be written, by these pods."""
    is_mounted = names.is_under(workdir, cluster.mount)
    if is_mounted or (names.is_store(workdir) and slice.num_hosts == 1):
        return
    if names.is_store(workdir):
        raise ConfigError(
            f"--workdir={workdir}: a run of {slice.num_hosts} processes cannot save to "
            "a store; give --volume=claim:NAME (Filestore, Managed Lustre) and "
            f"--workdir={cluster.mount_path}/RUN"
        )
    todo = f"--workdir={cluster.mount_path}/RUN with --volume=claim:NAME"
    if slice.num_hosts == 1:
        todo += ", or gs://BUCKET/RUN"
    raise ConfigError(
        f"--workdir={workdir} is inside the container, and lost with it; use {todo}"
    )


def _remarks(cluster: Cluster, slice: Slice) -> list[str]:
    remarks = []
    if cluster.spot:
        remarks += [
            f"Spot: a machine that is taken away leaves {SPOT_SECONDS} s, whatever is",
            "written below; set checkpoint.every_steps to what you can lose.",
        ]
    if cluster.volume.startswith("bucket:"):
        remarks += [
            "Cloud Storage FUSE has no locks between machines, and renames folders at",
            "once only in buckets with a hierarchical namespace: use one, start no",
            "second run on the folder, and prefer --volume=claim: of Filestore.",
        ]
    if slice.is_gpu and slice.num_hosts > 1:
        remarks += [
            "Between machines NCCL uses the pods' network; add what your cluster needs",
            "for GPUDirect (networks, side cars), which differs by machine type.",
        ]
    return remarks


def _text(about: Sequence[str], manifest: dict[str, Any]) -> str:
    head = "".join(f"# {line}\n" for line in about)
    return head + yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=1_000)


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as it reads."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)
