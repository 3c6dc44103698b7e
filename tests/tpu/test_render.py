"""The command line of tpu.render."""

import io
import re
import sys

from absl import flags
import pytest
import yaml

from rankax import main as program_main  # noqa: F401  defines the flags of a run
from rankax.config.base import ConfigError
from rankax.config.experiment import ParquetConfig
from rankax.parallel import topology as topologies
from rankax.training import ahead_of_time, footprint, setup
from tpu import program, render

QUICKSTART = "experiments/quickstart.py:lr"
SLURM = ["slurm", "--name=ctr", "--topology=cpu:2"]
RUN = [*SLURM, f"--config={QUICKSTART}", "--workdir=runs/ctr"]


def test_a_run_is_printed_or_written_with_its_overrides(tmp_path, capsys):
    override = "--config.train.batch_size=4096"
    render.main([*RUN, override])
    said = capsys.readouterr().out
    assert f"{override} --coordinator=auto\n" in said
    render.main([*RUN, override, f"--out={tmp_path}/job.sh"])
    assert (tmp_path / "job.sh").read_text() == said
    assert not capsys.readouterr().out


def test_the_command_is_one_that_the_program_takes():
    own = program.program(
        QUICKSTART,
        workdir="gs://bucket/ctr",
        overrides=["--config.train.seed=3"],
        slice=render.slices.parse("v5e:2x2"),
        num_processes=1,
    )
    assert own.words[:3] == ("python", "-m", "rankax.main")
    names = [word.partition("=")[0] for word in own.words[3:]]
    assert names == ["--config", "--workdir", "--config.train.seed"]
    assert {
        "config",
        "workdir",
        "coordinator",
        "num_processes",
        "process_index",
    } <= set(flags.FLAGS)


def weight(config):
    """The bytes of a checkpoint."""
    state = program.weigh(config)
    assert state
    return state.total


def test_a_checkpoint_weighs_what_its_arrays_do():
    config = program.load(QUICKSTART)
    small = weight(config)
    users = config.data.source.num_users
    config.data.source.num_users = 100 * users
    # LR has one weight for each row, here trained by Adam, which keeps two numbers.
    assert weight(config) - small == 99 * users * 3 * 4
    config.tables.replicate_below_bytes = 0
    config.optimizer.sparse.name = "sgd"
    by_row = weight(config)
    config.data.source.num_users = 1_000 * users
    rows = config.tables.num_shards  # a table by row has whole layers of them
    grown = weight(config) - by_row
    assert grown == pytest.approx(900 * users * 4, abs=2 * rows * 4)


def test_a_checkpoint_of_data_that_is_elsewhere_is_not_weighed():
    config = program.load(QUICKSTART)
    config.data.source = ParquetConfig(path="missing")
    assert program.weigh(config) is None


@pytest.mark.parametrize("model", ["lr", "dcnv2"])
def test_a_device_holds_what_the_plan_says(model):
    config = program.load(f"experiments/quickstart.py:{model}")
    state = program.weigh(config)
    assert state
    assert (state.tables > 0) == (model == "dcnv2")
    schema = setup.schema_of(config)
    devices = topologies.devices(topologies.parse("h100:8"))
    steps = ahead_of_time.plan_steps(config, devices, schema=schema)
    batch = steps.abstract_batch(config.train.batch_size)
    planned = footprint.footprint(config, schema, steps, batch)
    assert state.tables / 8 + state.copied == planned.state


@pytest.mark.parametrize(
    ("topology", "figures"),
    [
        # docs/plan.md: 506 and 127 GB of a v5p, 63.7 GB with what the compiler adds.
        ("v5p:2x2x2", "take 504 GB of each chip, which has 103 GB"),
        ("v5p:2x4x4", "take 126 GB of each chip, which has 103 GB"),
        ("v5p:4x4x4", ""),
        # A chip of tpu7x is two devices.
        ("tpu7x:2x2x4", "take 253 GB of each chip, which has 203 GB"),
        ("tpu7x:2x4x4", ""),
        ("h100:32", "take 126 GB of each chip, which has 80.0 GB"),
        ("h100:64", ""),
    ],
)
def test_tables_that_no_chip_can_hold_are_refused(topology, figures):
    override = "--config.data.lanes=64"

    def render_it():
        return program.program(
            "experiments/trillion/dcnv2.py",
            workdir="/shared/ctr",
            overrides=[override],
            slice=render.slices.parse(topology),
            num_processes=1,
        )

    if not figures:
        assert render_it().checkpoint_bytes > 4e12
        return
    with pytest.raises(ConfigError) as told:
        render_it()
    assert f"tables and dense weights alone {figures}" in str(told.value)
    command = str(told.value).splitlines()[-1]
    assert command == (
        "python -m rankax.main --config=experiments/trillion/dcnv2.py "
        f"{override} --mode=plan --plan.topology={topology.partition(':')[0]}"
    )


def test_a_list_is_read_from_a_file_or_standard_input(tmp_path, capsys, monkeypatch):
    lines = "# a sweep\npython -m x --a=1\n\npython -m x --a=2\n"
    (tmp_path / "commands").write_text(lines)
    options = ["--topology=l4:1", "--name=sweep", "--at_once=1"]
    render.main(["slurm", *options, f"--commands={tmp_path}/commands"])
    said = capsys.readouterr().out
    assert "#SBATCH --array=0-1%1\n" in said
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    render.main(["slurm", *options, "--commands=-"])
    assert capsys.readouterr().out == said
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    render.main(["gke", *options, "--commands=-", "--image=image", "--spot"])
    manifest = yaml.safe_load(capsys.readouterr().out)
    assert (manifest["kind"], manifest["spec"]["completions"]) == ("Job", 2)
    command = manifest["spec"]["template"]["spec"]["containers"][0]["command"][-1]
    assert "1) exec python -m x --a=2 ;;" in command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SLURM, "--config must be given"),
        ([*SLURM, f"--config={QUICKSTART}"], "--workdir must be given"),
        ([*RUN, "--commands=x"], "--config and --commands: give one of them"),
        ([*RUN, "--at_once=3"], "--at_once is for --commands"),
        ([*RUN, "--image=x"], "unknown argument '--image=x'"),
        (
            [*RUN, "--config.train.seed=1", "--config.train.batchsize=3"],
            "--config.train.batchsize: no such option; did you mean 'train.batch_size'?",
        ),
        ([*RUN, "--config.train.seed=x"], "invalid literal for int"),
        ([*SLURM, "--commands=missing"], "--commands=missing: "),
        ([*SLURM, "--commands=missing", "--x=1"], "unknown argument '--x=1'"),
        ([*RUN, "--topology=v5e:2x2"], "is not for slurm"),
        (
            [*RUN, "--config=experiments/tabulars.py:dcnv2"],
            "no such file experiments/tabulars.py; did you mean "
            "experiments/tabular.py:dcnv2?",
        ),
        ([*RUN, "--config=nowhere"], "no such file nowhere; see experiments/"),
        ([*RUN, "--out=missing/x.sh"], "there is no folder missing; make it"),
        ([*RUN, "--out=tpu"], "--out=tpu cannot be written: Is a directory"),
    ],
)
def test_mistakes_end_with_one_line_of_advice(arguments, message):
    with pytest.raises(SystemExit) as end:
        render.main(arguments)
    assert str(end.value.code).startswith("ConfigError: ")
    assert message in str(end.value.code)


def help_of(route, capsys):
    with pytest.raises(SystemExit) as end:
        render.main([route, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_tells_the_options_of_each_route(capsys):
    said = help_of("gke", capsys)
    for text in (
        "--mount_path",
        "of the container, with rankax",
        "--at_once",
        "(needed)",
    ):
        assert text in said
    assert "--partition" not in said


@pytest.mark.parametrize(
    ("route", "defaults"),
    [
        ("tpu-vm", {"mount_path": "/shared", "python": "3.12"}),
        ("gke", {"mount_path": "/shared", "max_restarts": "10", "at_once": "all"}),
        ("gke-gpu", {"namespace": "default", "max_restarts": "10"}),
        ("slurm", {"time": "24:00:00", "at_once": "all"}),
    ],
)
def test_help_tells_defaults_and_how_options_are_overridden(capsys, route, defaults):
    said = help_of(route, capsys)
    for option, value in defaults.items():
        assert re.search(rf"--{option} [A-Z_]+ [^)]*\(default: {value}\)", said), option
    assert "--config.x.y=VALUE overrides an option of the configuration" in said


@pytest.mark.parametrize("route", render.ROUTES)
def test_help_proposes_machines_of_the_route(capsys, route):
    said = help_of(route, capsys)
    (told,) = re.findall(r"machines, such as (.*?) --grace_seconds", said)
    of_a_run, _, of_a_list = told.partition("with --commands")
    found = re.findall(r"[\w-]+:[\dx]+", of_a_run)
    assert len(found) == 3
    for topology in found:
        render._check_route(route, render.slices.parse(topology))
    for topology in re.findall(r"[\w-]+:[\dx]+", of_a_list):
        options = {"image": "image"} if route == "gke" else {}
        render.array(["x"], route=route, name="x", topology=topology, **options)
