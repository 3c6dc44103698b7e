"""A shell script for TPU VMs: create, install, run, resume, delete, by gcloud.

The run is a unit of systemd on every machine of the slice. It outlives the connection
that starts it, and a machine that is taken away or shut down sends it SIGTERM, upon
which all processes save.
"""

from collections.abc import Sequence
import dataclasses
import re
import shlex

from rankax.config.base import ConfigError
from tpu import names
from tpu.program import Program
from tpu.slices import Slice

STOPPED = 143  # 128 + SIGTERM: what rankax.main ends with after a save
SPOT_SECONDS = 30  # from the notice to the end of a Spot machine
_FOLDER = "rankax"  # of the checkout, in the home of every machine
_UNIT = "rankax"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Where the machines are, and what they see.

    Attributes:
        project: of Google Cloud.
        zone: that has the chips.
        spot: whether to use Spot machines.
        nfs: "ADDRESS:/SHARE", which every machine mounts; "" = none. Filestore has it.
        mount_path: where.
        python: version that uv installs: the system's is too old.
    """

    project: str
    zone: str
    spot: bool = False
    nfs: str = ""
    mount_path: str = "/shared"
    python: str = "3.12"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ConfigError: one that gcloud would not take.
        """
        names.check_label(self.project, "--project", max_length=30)
        if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", self.zone):
            raise ConfigError(f"--zone={self.zone} must be a zone, like us-east5-a")
        if self.nfs and not re.fullmatch(r"[\w.-]+:/[\w./-]+", self.nfs):
            raise ConfigError(
                f"--nfs={self.nfs} must be ADDRESS:/SHARE, as Filestore shows them"
            )
        names.check_plain(self.mount_path, "--mount_path")
        if not re.fullmatch(r"3\.\d+", self.python):
            raise ConfigError(f"--python={self.python} must be like 3.12")

    @property
    def mount(self) -> str:
        """The folder that all machines see; "" = none."""
        return self.mount_path if self.nfs else ""


def render(
    program: Program,
    *,
    name: str,
    slice: Slice,
    project: Project,
    grace_seconds: int,
) -> str:
    """Returns the script of one run.

    Raises:
        ConfigError: values that Cloud TPU, or a run of several processes, does not
            take.
    """
    names.check_label(name, "--name")
    if not slice.tpu_vm:
        raise ConfigError(
            f"--topology={slice.topology}: no TPU VM of this kind is known here; use "
            f"{'gke' if slice.is_tpu else 'slurm or gke-gpu'}"
        )
    _check_workdir(program.workdir, slice, project)
    hosts = slice.num_hosts
    about = [
        f"{name}: {slice.topology}, {slice.tpu_vm}, machines: {hosts}.",
        "Start it in the checkout: bash FILE create, then install, run, log, delete;",
        "bash FILE resume brings back what was taken away, and goes on.",
        f"A stop leaves {grace_seconds} s for a save: {program.why_grace(hosts)}.",
    ]
    if project.spot:
        about += [
            f"Spot: a machine that is taken away leaves {SPOT_SECONDS} s; set",
            "checkpoint.every_steps to what you can lose.",
        ]
    values = {
        "name": name,
        "project": project.project,
        "zone": project.zone,
        "accelerator": slice.tpu_vm,
        "software": slice.tpu_software,
    }
    run = ["$HOME/" + _FOLDER + "/.venv/bin/python", *program.words[1:]]
    parts = {
        "about": "\n".join(f"# {line}" for line in about),
        "values": "\n".join(f"{key}={shlex.quote(x)}" for key, x in values.items()),
        "spot": " --spot" if project.spot else "",
        "install": _install(program, project),
        "run": _systemd([*run, "--coordinator=auto"], grace_seconds),
        "folder": _FOLDER,
        "unit": _UNIT,
    }
    # Not string.Template, whose $ is the shell's.
    return re.sub(r"@(\w+)@", lambda match: parts[match[1]], _SCRIPT)


def _check_workdir(workdir: str, slice: Slice, project: Project) -> None:
    """Refuses a run folder that is lost, or cannot be written, by these machines."""
    is_mounted = names.is_under(workdir, project.mount)
    if is_mounted or (names.is_store(workdir) and slice.num_hosts == 1):
        return
    shared = f"--nfs=ADDRESS:/SHARE and --workdir={project.mount_path}/RUN"
    if names.is_store(workdir):
        raise ConfigError(
            f"--workdir={workdir}: a run of {slice.num_hosts} processes cannot save to "
            f"a store; give {shared}"
        )
    todo = " or --workdir=gs://BUCKET/RUN" if slice.num_hosts == 1 else ""
    raise ConfigError(
        f"--workdir={workdir} is on a disk that goes with the machine; give {shared}"
        + todo
    )


def _install(program: Program, project: Project) -> str:
    """Returns what every machine does once: mount the share, install the checkout."""
    extras = "tpu,gs" if names.is_store(program.workdir) else "tpu"
    lines = ["set -eu"]
    if project.nfs:
        path = shlex.quote(project.mount_path)
        lines += [
            "sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common",
            f"sudo mkdir -p {path}",
            f"mountpoint -q {path} || sudo mount -t nfs -o hard {project.nfs} {path}",
        ]
    if names.is_under(program.workdir, project.mount):
        lines += _own(program.workdir)
    lines += [
        f"rm -rf {_FOLDER} && mkdir {_FOLDER}",
        f"tar -xzf {_FOLDER}.tar.gz -C {_FOLDER}",
        "python3 -m pip install --quiet --user uv",
        f"cd {_FOLDER}",
        f"~/.local/bin/uv venv --quiet --python {project.python}",
        f"~/.local/bin/uv pip install --quiet -e '.[{extras}]'",
    ]
    return "\n".join(lines)


def _own(workdir: str) -> list[str]:
    """Returns the lines that make the run folder, and nothing else, the user's own.

    Where an export keeps root out (root_squash), the user can often make it, and else
    only its server can.
    """
    path = shlex.quote(workdir)
    told = (
        f"{workdir} cannot be made, neither by this user nor by root; make it on the "
        "server of the share, for the user id $(id -u)"
    )
    return [
        f"if ! {{ mkdir -p {path} && test -w {path}; }} 2>/dev/null; then",
        f'  sudo install -d -o "$(id -un)" {path} || {{ echo "{told}" >&2; exit 1; }}',
        "fi",
    ]


def _systemd(words: Sequence[str], grace_seconds: int) -> str:
    """Returns the line that starts the run on every machine."""
    options = [
        "--collect",  # a unit that failed would keep its name
        f"--unit={_UNIT}",
        '--uid="$(id -un)"',
        '--setenv=HOME="$HOME"',
        f'--working-directory="$HOME/{_FOLDER}"',
        "--property=KillMode=mixed",  # SIGTERM to the process that saves
        f"--property=TimeoutStopSec={grace_seconds}",
        f"--property=SuccessExitStatus={STOPPED}",
    ]
    program, *arguments = words
    command = f'"{program}" {shlex.join(arguments)}'
    return f"sudo systemd-run {' '.join(options)} {command}"


_SCRIPT = """\
#!/bin/bash
@about@
set -euo pipefail

@values@
here=(--project="$project" --zone="$zone")

# What every machine does; quoted, so that they and not this one read it.
install_commands=$(
  cat <<'END_OF_INSTALL'
@install@
END_OF_INSTALL
)
run_commands=$(
  cat <<'END_OF_RUN'
@run@
END_OF_RUN
)

# state: prints the state of the request; nothing if there is none.
state() {
  gcloud compute tpus queued-resources describe "$name" "${here[@]}" \\
    --format='value(state.state)' 2>/dev/null || true
}

# wait_until_active: returns when the machines are there.
wait_until_active() {
  local now
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case "$now" in
      "" | FAILED | SUSPENDED)
        echo "$name is ${now:-gone}: bash $0 resume asks for it again" >&2
        return 1
        ;;
    esac
    echo "$name is $now"
    sleep 30
  done
}

create() {
  gcloud compute tpus queued-resources create "$name" "${here[@]}" \\
    --node-id="$name" --accelerator-type="$accelerator" \\
    --runtime-version="$software"@spot@
  wait_until_active
}

# on_all COMMANDS: runs them on every machine.
on_all() {
  gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=all --command="$1"
}

install() {
  git archive --format=tar.gz --output=@folder@.tar.gz HEAD
  gcloud compute tpus tpu-vm scp @folder@.tar.gz "$name:" "${here[@]}" --worker=all
  on_all "$install_commands"
}

run() {
  on_all "$run_commands"
}

log() {
  gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=0 \\
    --command='sudo journalctl --unit=@unit@ --follow --output=cat'
}

# stop: ends the run, which saves first; resume goes on.
stop() {
  on_all 'sudo systemctl stop @unit@'
}

delete() {
  gcloud compute tpus queued-resources delete "$name" "${here[@]}" --force --quiet
}

resume() {
  case "$(state)" in
    ACTIVE) ;;
    FAILED | SUSPENDED | SUSPENDING)
      delete
      create
      install
      ;;
    "")
      create
      install
      ;;
    *)
      wait_until_active
      install
      ;;
  esac
  run
}

case "${1:-}" in
  create | install | run | log | stop | resume | delete | state) "$1" ;;
  *)
    echo "usage: bash $0 create|install|run|log|stop|resume|delete|state" >&2
    exit 2
    ;;
esac
"""
