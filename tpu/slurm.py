"""Batch scripts for Slurm: one run, or an array of runs.

A run asks to be told before its time is over (`--signal`), saves, ends with the exit
status 143, and is queued again; the same command then goes on in the same folder. The
signal goes to the processes alone, not to the script around them, so that `scancel`,
which ends the script first, queues nothing.
"""

from collections.abc import Sequence
import dataclasses
import re
import shlex

from rankax.config.base import ConfigError
from tpu import names
from tpu.program import Program
from tpu.slices import Slice

MAX_SIGNAL_SECONDS = 65535  # of sbatch --signal
MAX_ARRAY = 1000  # tasks: MaxArraySize is 1001 unless a site has changed it
STOPPED = 143  # 128 + SIGTERM: what rankax.main ends with after a save


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a site wants to be told.

    Attributes:
        time: limit of one stay in the queue's nodes, as sbatch takes it; the run goes
            on after it.
        partition: "" = the site's default; likewise account and qos.
        account: who pays.
        qos: quality of service.
        gpus_per_node: 0 = as many as a machine of the same kind has on Google Cloud.
        gpu_type: the site's name of the GPUs, if it wants one, as in gpu:h100:8.
        cpus_per_task: of each process; 0 = the site's default.
        memory: of each node, as sbatch --mem takes it; "" = the site's default.
        setup: a shell line before the run, such as "source .venv/bin/activate".
        output: file of what the run says; "" = NAME-JOB.out where it was submitted.
    """

    time: str = "24:00:00"
    partition: str = ""
    account: str = ""
    qos: str = ""
    gpus_per_node: int = 0
    gpu_type: str = ""
    cpus_per_task: int = 0
    memory: str = ""
    setup: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: one that sbatch would not take.
        """
        seconds(self.time)
        for name in ("partition", "account", "qos", "gpu_type", "memory", "output"):
            if value := getattr(self, name):
                names.check_plain(value, f"--{name}")
        names.check_line(self.setup, "--setup")
        for name in ("gpus_per_node", "cpus_per_task"):
            if (value := getattr(self, name)) < 0:
                raise ConfigError(f"--{name}={value} must be 0 or more")


def num_processes(slice: Slice) -> int:
    """Returns the processes of a run: one for each GPU, or one if one node is enough.

    JAX gives a process of several under Slurm the one GPU of its number on the node.
    """
    if slice.kind == "cpu":
        return slice.num_chips
    return 1 if slice.num_hosts == 1 else slice.num_chips


def render(
    program: Program,
    *,
    name: str,
    slice: Slice,
    cluster: Cluster,
    grace_seconds: int,
) -> str:
    """Returns the batch script of one run.

    Raises:
        ConfigError: values that Slurm, or a run of several processes, does not take.
    """
    count, nodes = num_processes(slice), slice.num_hosts
    if count > 1 and names.is_store(program.workdir):
        raise ConfigError(
            f"--workdir={program.workdir}: a run of {count} processes cannot save to a "
            "store; name a folder that all nodes see"
        )
    words = [*program.words, *["--coordinator=auto"] * (count > 1)]
    who = f"{count} process{'es' * (count > 1)} on {nodes} node{'s' * (nodes > 1)}"
    if slice.kind == "cpu":
        who = f"{count} process{'es' * (count > 1)} without GPUs"
    about = (
        f"{name}: {who}. Submit it from the checkout: sbatch FILE.",
        f"SIGTERM comes {grace_seconds} s before the time limit: "
        f"{program.why_grace(nodes)}.",
    )
    options = {"job-name": name, **_shape(slice, cluster, count)}
    options |= {"output": cluster.output or f"{name}-%j.out"}
    return _script(
        about, options, cluster=cluster, grace_seconds=grace_seconds, body=_run(words)
    )


def render_array(
    commands: Sequence[Sequence[str]],
    *,
    name: str,
    slice: Slice,
    cluster: Cluster,
    grace_seconds: int,
    at_once: int = 0,
) -> str:
    """Returns the batch script of an array with one command for each task.

    Args:
        commands: words of each.
        name: of the job.
        slice: of each task, on one node.
        cluster: what the site wants.
        grace_seconds: from the signal to the time limit.
        at_once: tasks that may run together; 0 = any number.

    Raises:
        ConfigError: values that Slurm does not take.
    """
    if len(commands) > MAX_ARRAY:
        raise ConfigError(
            f"{len(commands)} commands are more than the {MAX_ARRAY} tasks that an "
            "array of Slurm has by default; render parts of the list"
        )
    if slice.is_tpu:
        raise ConfigError(
            f"--topology={slice.topology}: the slurm route is for GPUs and CPUs; use "
            "gke for TPUs"
        )
    if num_processes(slice) > 1:
        raise ConfigError(
            f"--topology={slice.topology} is for several processes, and each task of "
            "an array is one; choose what one node has, or cpu:1"
        )
    limit = f"%{at_once}" if at_once else ""
    options = {"job-name": name, "array": f"0-{len(commands) - 1}{limit}"}
    options |= _shape(slice, cluster, 1)
    options |= {"output": cluster.output or f"{name}-%A-%a.out"}
    about = (
        f"{name}: {len(commands)} runs, one for each task. Submit it from the",
        "checkout: sbatch FILE. Again, finished runs end at once and others go on.",
    )
    cases = [f"  {index}) {_run(words)} ;;" for index, words in enumerate(commands)]
    body = "\n".join(['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"])
    return _script(
        about, options, cluster=cluster, grace_seconds=grace_seconds, body=body
    )


def seconds(time: str) -> int:
    """Returns the seconds of a time limit in one of the forms of sbatch --time.

    Raises:
        ConfigError: it has none of them.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?", time)
    if not found:
        raise ConfigError(
            f"--time={time} must be MINUTES, HOURS:MINUTES:SECONDS or "
            "DAYS-HOURS:MINUTES:SECONDS, for example 24:00:00"
        )
    days, first, second, third = found.groups()
    if days is not None:
        hours, minutes, rest = int(first), int(second or 0), int(third or 0)
    elif third is not None:
        hours, minutes, rest = int(first), int(second), int(third)
    else:
        hours, minutes, rest = 0, int(first), int(second or 0)
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def _shape(slice: Slice, cluster: Cluster, count: int) -> dict[str, str]:
    """The options that say which nodes, and how many processes on each."""
    nodes = slice.num_hosts
    options = {"nodes": str(nodes), "ntasks-per-node": str(count // nodes)}
    if slice.kind == "cpu":
        options = {"ntasks": str(count)}
    if slice.is_gpu:
        # For each node, not for each task: a process must see all GPUs of its node, of
        # which JAX gives it its own, and NCCL reaches the others' directly.
        kind = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
        options["gpus-per-node"] = f"{kind}{slice.num_chips // nodes}"
    if cluster.cpus_per_task:
        options["cpus-per-task"] = str(cluster.cpus_per_task)
    return options


def _script(
    about: Sequence[str],
    options: dict[str, str],
    *,
    cluster: Cluster,
    grace_seconds: int,
    body: str,
) -> str:
    _check_grace(grace_seconds, cluster.time)
    options |= {
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "mem": cluster.memory,
        "signal": f"TERM@{grace_seconds}",
        "open-mode": "append",
    }
    lines = ["#!/bin/bash", *(f"# {line}" for line in about)]
    lines += [f"#SBATCH --{key}={value}" for key, value in options.items() if value]
    lines += ["#SBATCH --requeue", ""]
    if cluster.setup:
        lines += [cluster.setup, ""]
    if cluster.cpus_per_task:  # srun does not take it over from sbatch
        lines += ['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"', ""]
    lines += [_GO_ON.format(body=body, stopped=STOPPED)]
    return "\n".join(lines)


_GO_ON = """\
# A process that ends ends the others itself, after a save if there is one to be made.
{body}
status=$?
if [[ $status -eq {stopped} ]]; then # SIGTERM: it has saved, and goes on later
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def _run(words: Sequence[str]) -> str:
    return f"srun --kill-on-bad-exit=0 {shlex.join(words)}"


def _check_grace(grace_seconds: int, time: str) -> None:
    if not 0 < grace_seconds <= MAX_SIGNAL_SECONDS:
        raise ConfigError(
            f"a save may take {grace_seconds} s, and sbatch --signal takes 1 to "
            f"{MAX_SIGNAL_SECONDS} s; set --grace_seconds, and checkpoint.every_steps "
            "for saves in between"
        )
    if 2 * grace_seconds > seconds(time):
        raise ConfigError(
            f"--time={time} leaves too little beside the {grace_seconds} s kept for a "
            "save; make it at least twice as long, or set --grace_seconds"
        )
