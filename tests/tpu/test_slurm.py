"""Batch scripts: options that sbatch knows, sound bash, and what they start."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from rankax.config.base import ConfigError
from tpu import program, render, slurm

QUICKSTART = "experiments/quickstart.py:lr"
# Of the manual page sbatch(1): option -> form of its value; None = it takes none.
SBATCH = {
    "account": r"\w+",
    "array": r"0-\d+(%[1-9]\d*)?",
    "cpus-per-task": r"[1-9]\d*",
    "gpus-per-node": r"([\w-]+:)?[1-9]\d*",
    "job-name": r"[a-z0-9-]+",
    "mem": r"\d+[KMGT]?",
    "nodes": r"[1-9]\d*",
    "ntasks": r"[1-9]\d*",
    "ntasks-per-node": r"[1-9]\d*",
    "open-mode": r"append|truncate",
    "output": r"\S+",
    "partition": r"[\w,-]+",
    "qos": r"\w+",
    "requeue": None,
    "signal": r"([RB]:)?[A-Z]+@\d{1,5}",
    "time": r"[\d:-]+",
}


def one_run(topology="h100:16", **options):
    given = {"config": QUICKSTART, "workdir": "runs/ctr", "name": "ctr"} | options
    return render.run("slurm", topology=topology, **given)


def options_of(script):
    """What a script asks sbatch for, each option known and of its form."""
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    found = {}
    for number, line in enumerate(lines):
        if not line.startswith("#SBATCH"):
            continue
        # sbatch reads no option after the first line that is neither blank nor a comment.
        assert all(x.startswith("#") or not x.strip() for x in lines[:number])
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        assert match, line
        key, value = match.groups()
        assert key in SBATCH and key not in found, line
        form = SBATCH[key]
        assert (value is None) if form is None else re.fullmatch(form, value), line
        found[key] = value
    assert "requeue" in found
    return found


def check_bash(script):
    """Holds a script to bash and to ShellCheck."""
    # SC2016: a word of a command is quoted so that the shell does not expand it.
    checker = [*shellcheck(), "--shell=bash", "--exclude=SC2016", "-"]
    for command in (["bash", "-n"], checker):
        done = subprocess.run(command, input=script, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}\n{script}"


def shellcheck():
    """It comes with the dev extra, beside Python."""
    return [str(pathlib.Path(sys.executable).with_name("shellcheck"))]


@pytest.mark.parametrize(
    ("topology", "options", "expected"),
    [
        (
            "h100:16",
            {},
            {"nodes": "2", "ntasks-per-node": "8", "gpus-per-node": "8"},
        ),
        ("h100:8", {}, {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "8"}),
        ("l4:1", {}, {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "1"}),
        (
            "a100:8",
            {"gpus_per_node": 4, "gpu_type": "a100", "cpus_per_task": 12},
            {
                "nodes": "2",
                "ntasks-per-node": "4",
                "gpus-per-node": "a100:4",
                "cpus-per-task": "12",
            },
        ),
        (  # of which Google Cloud's machines have eight
            "h200:4",
            {"gpus_per_node": 4},
            {"nodes": "1", "ntasks-per-node": "1", "gpus-per-node": "4"},
        ),
        ("cpu:4", {}, {"ntasks": "4"}),
    ],
)
def test_a_run_asks_for_its_nodes_in_words_that_sbatch_knows(
    topology, options, expected
):
    script = one_run(topology, **options)
    found = options_of(script)
    shape = {"nodes", "ntasks", "ntasks-per-node", "gpus-per-node", "cpus-per-task"}
    assert {key: found[key] for key in shape & found.keys()} == expected
    check_bash(script)


def test_several_nodes_have_a_process_for_each_gpu_and_one_node_has_one():
    assert script_words(one_run("h100:16"))[-1] == "--coordinator=auto"
    assert script_words(one_run("h100:8"))[-1] == "--workdir=runs/ctr"
    store = one_run("h100:8", workdir="s3://bucket/ctr")
    assert script_words(store)[-1] == "--workdir=s3://bucket/ctr"


def script_words(script):
    (line,) = re.findall(r"^srun .*$", script, flags=re.M)
    return line.split()


@pytest.mark.parametrize(("per_node", "seconds"), [(16, 2060), (8, 1060), (4, 560)])
def test_a_save_has_the_time_that_the_sites_nodes_take(monkeypatch, per_node, seconds):
    own = program.Program(
        words=("python",), workdir="runs/ctr", checkpoint_bytes=400_000_000_000
    )
    monkeypatch.setattr(render.program, "program", lambda *_, **__: own)
    script = one_run(gpus_per_node=per_node)
    assert options_of(script)["signal"] == f"TERM@{seconds}"
    assert f"by each of {16 // per_node} machine" in script


def test_what_a_site_wants_is_asked_for():
    script = one_run(
        partition="gpu",
        account="ads",
        qos="long",
        memory="900G",
        time="2-00:00:00",
        output="logs/%j",
        setup="module load cuda",
        cpus_per_task=8,
        grace_seconds=900,
    )
    found = options_of(script)
    assert (found["partition"], found["account"], found["qos"]) == (
        "gpu",
        "ads",
        "long",
    )
    assert (found["mem"], found["output"]) == ("900G", "logs/%j")
    assert (found["time"], found["signal"]) == ("2-00:00:00", "TERM@900")
    assert script.index("module load cuda") < script.index("srun")
    # sbatch's own number reaches srun in its environment alone.
    assert 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"' in script
    check_bash(script)


def test_the_signal_goes_to_the_processes_and_not_to_the_script():
    assert options_of(one_run())["signal"] == "TERM@120"  # "B:" would be the script


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("90", 5_400),
        ("90:30", 5_430),
        ("24:00:00", 86_400),
        ("2-3", 183_600),
        ("2-3:30", 185_400),
        ("2-03:30:15", 185_415),
    ],
)
def test_a_time_limit_is_what_sbatch_takes_it_for(time, seconds):
    assert slurm.seconds(time) == seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workdir": "gs://b/ctr"}, "16 processes cannot save to a store"),
        ({"topology": "v5p:2x2x1"}, "is not for slurm; use tpu-vm or gke"),
        (
            {"topology": "h100:16", "gpus_per_node": 6},
            "cannot be split into nodes of 6",
        ),
        ({"time": "1 day"}, "for example 24:00:00"),
        ({"time": "00:03:00"}, "--time=00:03:00 leaves too little"),
        ({"grace_seconds": 70_000, "time": "9-0"}, "sbatch --signal takes 1 to 65535"),
        ({"partition": "a b"}, "characters that shells read"),
        ({"setup": "a\nb"}, "must be one line"),
        ({"gpus_per_node": -1}, "must be 0 or more"),
        ({"name": "CTR"}, "for example 'ctr'"),
        ({"overrides": ["--config.train.batch_size=100"]}, "multiple of data.lanes"),
        ({"overrides": ["--config.train.batch_size=1032"]}, "multiple of"),
        ({"overrides": ["--train.batch_size=64"]}, "unknown argument"),
        ({"config": "missing.py"}, "missing.py"),
    ],
)
def test_values_that_do_not_fit_are_refused_with_advice(options, message):
    with pytest.raises(ConfigError) as told:
        one_run(**options)
    assert message in str(told.value)


# ---------------------------------------------------------------- lists of runs


def fake(folder, name, text):
    """A program of a Slurm that is not there; returns the PATH that has it."""
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


COMMANDS = [
    "python -m rankax.main --config=a.py --workdir=runs/0",
    "python -m rankax.main --config=a.py:b --config.eval.metric='$HOME; two  words'",
]


def test_each_task_of_an_array_starts_its_command(tmp_path):
    script = render.array(
        COMMANDS, route="slurm", name="sweep", topology="h100:1", at_once=8
    )
    found = options_of(script)
    assert (found["array"], found["gpus-per-node"]) == ("0-1%8", "1")
    assert (found["nodes"], found["ntasks-per-node"]) == ("1", "1")
    check_bash(script)
    path = fake(tmp_path, "srun", '#!/bin/bash\nprintf "%s\\n" "$@"\nexit 7\n')
    expected = [
        ["--config=a.py", "--workdir=runs/0"],
        ["--config=a.py:b", "--config.eval.metric=$HOME; two  words"],
    ]
    for index, words in enumerate(expected):
        done = subprocess.run(
            ["bash", "-s"],
            input=script,
            env=os.environ | path | {"SLURM_ARRAY_TASK_ID": str(index)},
            capture_output=True,
            text=True,
        )
        said = done.stdout.splitlines()
        assert said == ["--kill-on-bad-exit=0", "python", "-m", "rankax.main", *words]
        assert done.returncode == 7  # a failure is the task's, and not queued again


def test_a_task_that_was_stopped_is_queued_again_and_others_are_not(tmp_path):
    script = render.array(COMMANDS, route="slurm", name="sweep")
    path = fake(tmp_path, "srun", '#!/bin/bash\nexit "$STATUS"\n')
    fake(tmp_path, "scontrol", f'#!/bin/bash\necho "$@" >> "{tmp_path}/said"\n')
    for status in (0, 1, 130, 137, 143):
        given = {"STATUS": str(status), "SLURM_JOB_ID": str(status)}
        done = subprocess.run(
            ["bash", "-s"],
            input=script,
            env=os.environ | path | given | {"SLURM_ARRAY_TASK_ID": "1"},
            text=True,
        )
        assert done.returncode == status
    assert (tmp_path / "said").read_text() == "requeue 143\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"commands": [f"a {i}" for i in range(1_001)]}, "render parts of the list"),
        ({"topology": "h100:16"}, "is for several processes"),
        ({"topology": "cpu:2"}, "is for several processes"),
        ({"topology": "v5e:2x2"}, "use gke for TPUs"),
        ({"route": "slrm"}, "did you mean 'slurm'?"),
        ({"image": "x"}, "no option 'image' here"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(options, message):
    given = {"commands": COMMANDS, "route": "slurm", "name": "sweep"} | options
    with pytest.raises(ConfigError) as told:
        render.array(given.pop("commands"), **given)
    assert message in str(told.value)
