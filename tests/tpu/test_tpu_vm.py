"""The script for TPU VMs: sound bash, flags that gcloud knows, what it starts where."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest
from test_slurm import check_bash, fake

from rankax.config.base import ConfigError
from tpu import render

QUICKSTART = "experiments/quickstart.py:lr"
# Command -> its flags, of those that `gcloud help` lists (528.0.0).
GCLOUD = {
    "queued-resources create": {
        "accelerator-type",
        "node-id",
        "project",
        "runtime-version",
        "spot",
        "zone",
    },
    "queued-resources describe": {"format", "project", "zone"},
    "queued-resources delete": {"force", "project", "quiet", "zone"},
    "tpu-vm ssh": {"command", "project", "worker", "zone"},
    "tpu-vm scp": {"project", "worker", "zone"},
}
# What stands in for gcloud: notes its words, tells the state of the request, and does
# what it is to do on a machine here.
FAKE_GCLOUD = """\
#!/bin/bash
printf '%s\\0' "$@" >> calls
printf '\\n' >> calls
case "$3 $4" in
  "queued-resources describe") cat state 2>/dev/null || exit 1 ;;
  "queued-resources create") echo ACTIVE > state ;;
  "queued-resources delete") rm state ;;
  "tpu-vm ssh")
    for word in "$@"; do
      if [[ $word == --command=* ]]; then bash -c "${word#--command=}"; fi
    done
    ;;
esac
"""
FAKE_SUDO = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$ROOT/started"\n'


def one_run(topology="v5p:4x4x4", **options):
    given = {"workdir": "/shared/ctr", "nfs": "10.0.0.2:/share"} | options
    given = {"project": "my-project", "zone": "us-east5-a", "name": "ctr"} | given
    return render.run("tpu-vm", config=QUICKSTART, topology=topology, **given)


@pytest.fixture
def machine(tmp_path):
    """Runs subcommands of a script where gcloud and sudo only note what they are told."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    path = fake(bin_folder, "gcloud", FAKE_GCLOUD)
    fake(bin_folder, "sudo", FAKE_SUDO)
    fake(bin_folder, "git", "#!/bin/bash\n")
    fake(bin_folder, "sleep", "#!/bin/bash\necho ACTIVE > state\n")

    def run(script, *arguments):
        (tmp_path / "run.sh").write_text(script)
        return subprocess.run(
            ["bash", "run.sh", *arguments],
            cwd=tmp_path,
            env=os.environ | path | {"ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def calls(folder: pathlib.Path) -> list[list[str]]:
    """The words of each call of gcloud."""
    lines = (folder / "calls").read_text().split("\0\n")
    return [line.split("\0") for line in lines if line]


@pytest.mark.parametrize(
    ("topology", "options"),
    [
        ("v5p:4x4x4", {}),
        ("v5e:4x4", {"spot": True, "python": "3.13"}),
        ("v6e:2x4", {"workdir": "gs://bucket/ctr", "nfs": ""}),
    ],
)
def test_the_script_and_what_machines_do_are_sound_bash(topology, options):
    script = one_run(topology, **options)
    check_bash(script)
    parts = re.findall(r"<<'(END_OF_\w+)'\n(.*?)\n\1\n", script, flags=re.S)
    assert [name for name, _ in parts] == ["END_OF_INSTALL", "END_OF_RUN"]
    for _, text in parts:
        check_bash(f"#!/bin/bash\n{text}\n")


def test_gcloud_is_asked_for_the_slice_with_flags_that_it_knows(machine, tmp_path):
    script = one_run("v5e:4x4", spot=True)
    for action in ("create", "run", "log", "stop", "delete"):
        done = machine(script, action)
        assert done.returncode == 0, done.stderr
    asked = calls(tmp_path)
    for words in asked:
        assert words[:2] == ["compute", "tpus"]
        known = GCLOUD[" ".join(words[2:4])]
        flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known
        assert {"--project=my-project", "--zone=us-east5-a"} <= set(words)
    create = asked[0]
    assert create[2:5] == ["queued-resources", "create", "ctr"]
    assert {
        "--node-id=ctr",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--spot",
    } <= set(create)
    assert "--spot" not in one_run("v5e:4x4").split()


def test_every_machine_starts_the_command_as_a_unit_that_gets_sigterm(
    machine, tmp_path
):
    odd = "--config.eval.metric=two  words $HOME 'x'"
    script = render.tpu_vm.render(
        render.program.Program(
            words=("python", "-m", "rankax.main", odd), workdir="/shared/ctr"
        ),
        name="ctr",
        slice=render.slices.parse("v5p:4x4x4"),
        project=render.tpu_vm.Project(
            project="my-project", zone="us-east5-a", nfs="10.0.0.2:/share"
        ),
        grace_seconds=777,
    )
    assert machine(script, "run").returncode == 0
    (call,) = calls(tmp_path)
    assert "--worker=all" in call
    started = (tmp_path / "started").read_text().split("\0")[:-1]
    home = os.environ["HOME"]
    command = started.index(f"{home}/rankax/.venv/bin/python")
    assert started[command + 1 :] == ["-m", "rankax.main", odd, "--coordinator=auto"]
    assert started[0] == "systemd-run"
    assert {
        "--property=TimeoutStopSec=777",
        "--property=KillMode=mixed",
        "--property=SuccessExitStatus=143",
        f"--working-directory={home}/rankax",
    } <= set(started[1:command])


def test_every_machine_mounts_the_share_and_installs_the_checkout():
    def install_of(**options):
        script = one_run(**options)
        return re.findall(r"<<'END_OF_INSTALL'\n(.*?)\nEND", script, flags=re.S)[0]

    lines = [shlex.split(line) for line in install_of().splitlines()]
    mount = ["sudo", "mount", "-t", "nfs", "-o", "hard", "10.0.0.2:/share", "/shared"]
    assert ["mountpoint", "-q", "/shared", "||", *mount] in lines
    assert lines[-1][-1] == ".[tpu]"
    on_store = install_of(topology="v5e:2x4", workdir="gs://bucket/ctr", nfs="")
    assert "mount" not in on_store and "mkdir -p" not in on_store
    assert shlex.split(on_store.splitlines()[-1])[-1] == ".[tpu,gs]"


@pytest.mark.parametrize("who", ["user", "root", "nobody"])
def test_a_machine_owns_the_run_folder_and_nothing_above_it(tmp_path, who):
    """Who can make a folder in the share: with root_squash, not root."""
    share = tmp_path / "share"
    share.write_text("") if who != "user" else share.mkdir()
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    refusal = "exit 1\n" if who == "nobody" else ""
    path = fake(bin_folder, "sudo", FAKE_SUDO + refusal)
    workdir = f"{share}/team/ctr"
    script = one_run(workdir=workdir, mount_path=str(share))
    install = re.findall(r"<<'END_OF_INSTALL'\n(.*?)\nEND", script, flags=re.S)[0]
    assert "chown" not in install
    (lines,) = re.findall(r"^if ! .*?^fi$", install, flags=re.S | re.M)
    check_bash(f"#!/bin/bash\n{lines}\n")
    done = subprocess.run(
        ["bash", "-euc", lines],
        env=os.environ | path | {"ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == (who == "nobody")
    if who == "user":
        assert (share / "team/ctr").is_dir()
        assert not (tmp_path / "started").exists()
        return
    started = (tmp_path / "started").read_text().split("\0")[:-1]
    assert started[:3] == ["install", "-d", "-o"]
    assert started[4:] == [workdir]
    if who == "nobody":
        user = str(os.getuid())
        assert f"{workdir} cannot be made, neither by this user" in done.stderr
        assert f"for the user id {user}\n" in done.stderr


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("ACTIVE", ["ssh"]),
        ("SUSPENDED", ["delete", "create", "scp", "ssh", "ssh"]),
        ("FAILED", ["delete", "create", "scp", "ssh", "ssh"]),
        ("", ["create", "scp", "ssh", "ssh"]),
        ("WAITING_FOR_RESOURCES", ["scp", "ssh", "ssh"]),
    ],
)
def test_resume_makes_what_is_not_there_and_goes_on(machine, tmp_path, state, expected):
    script = one_run()
    # The machines here have nothing to install.
    script = re.sub(r"(?<=END_OF_INSTALL'\n).*?(?=\nEND)", "true", script, flags=re.S)
    if state:
        (tmp_path / "state").write_text(state + "\n")
    done = machine(script, "resume")
    assert done.returncode == 0, done.stderr
    found = [words[3] for words in calls(tmp_path)]
    assert [word for word in found if word != "describe"] == expected


def test_an_unknown_subcommand_is_told_the_known_ones(machine, tmp_path):
    for arguments in ([], ["start"]):
        done = machine(one_run(), *arguments)
        assert done.returncode == 2
        assert "create|install|run|log|stop|resume|delete" in done.stderr
    assert not (tmp_path / "calls").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workdir": "gs://b/ctr"}, "16 processes cannot save to a store"),
        ({"workdir": "runs/ctr"}, "is on a disk that goes with the machine"),
        ({"nfs": ""}, "give --nfs=ADDRESS:/SHARE"),
        ({"nfs": "10.0.0.2"}, "must be ADDRESS:/SHARE"),
        ({"topology": "tpu7x:2x2x1"}, "no TPU VM of this kind is known here; use gke"),
        ({"topology": "h100:8"}, "is not for tpu-vm; use gke-gpu or slurm"),
        ({"zone": "europe"}, "must be a zone, like us-east5-a"),
        ({"project": "My Project"}, "for example 'my-project'"),
        ({"project": ""}, "--project must be given"),
        ({"python": "python3"}, "must be like 3.12"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_advice(options, message):
    with pytest.raises(ConfigError) as told:
        one_run(**options)
    assert message in str(told.value)
