"""Configurations that machines get, and what is told of those that they do not."""

import subprocess

import pytest

from rankax.config.base import ConfigError
from rankax.training.footprint import Whole
from tpu import checkout, render

QUICKSTART = "experiments/quickstart.py:lr"


@pytest.fixture
def git(tmp_path, monkeypatch):
    """A checkout with two committed experiments, where one stands; returns its git."""
    root = tmp_path / "checkout"
    (root / "experiments").mkdir(parents=True)
    for name in ("mine", "common"):
        (root / f"experiments/{name}.py").write_text("x = 1\n")
    (root / "README.md").write_text("one\n")

    def run(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", root, *who, *words], check=True)

    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "--message=first")
    monkeypatch.setattr(checkout, "ROOT", root)
    monkeypatch.chdir(root)
    return run


def test_a_committed_configuration_is_taken_without_a_word(git, tmp_path):
    assert checkout.check_shipped("experiments/mine.py:large") == []
    (tmp_path / "checkout/README.md").write_text("two\n")  # no run reads it
    assert checkout.check_shipped("./experiments/mine.py") == []


def test_what_is_not_committed_is_refused(git, tmp_path):
    (tmp_path / "checkout/experiments/new.py").write_text("x = 1\n")
    for action in ((), ("add", "experiments/new.py")):
        if action:
            git(*action)
        with pytest.raises(ConfigError) as told:
            checkout.check_shipped("experiments/new.py")
        assert "is not committed, and machines get HEAD" in str(told.value)
        assert "git add experiments/new.py && git commit" in str(told.value)
    git("commit", "--quiet", "--message=second")
    assert checkout.check_shipped("experiments/new.py") == []


def test_what_lies_elsewhere_is_refused(git, tmp_path):
    (tmp_path / "away.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="put it under experiments/ and commit it"):
        checkout.check_shipped("../away.py")


@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_name_that_machines_do_not_have_is_refused_with_theirs(
    git, tmp_path, monkeypatch, is_absolute
):
    path = str(tmp_path / "checkout/experiments/mine.py")
    if not is_absolute:
        monkeypatch.chdir(tmp_path / "checkout/experiments")
        path = "mine.py"
    with pytest.raises(ConfigError, match=r"write --config=experiments/mine\.py:x$"):
        checkout.check_shipped(f"{path}:x")


def test_changes_that_machines_do_not_get_are_told(git, tmp_path):
    folder = tmp_path / "checkout/experiments"
    (folder / "common.py").write_text("x = 2\n")
    (told,) = checkout.check_shipped("experiments/mine.py")
    assert told.startswith("changes of experiments/common.py are not committed")
    for name in ("mine", "common", "third", "fourth"):
        (folder / f"{name}.py").write_text("x = 2\n")
        git("add", ".")
    (told,) = checkout.check_shipped("experiments/mine.py")
    assert "fourth.py, experiments/mine.py and 1 more are not committed" in told


def test_without_git_it_is_told_that_nobody_has_checked(git, tmp_path, monkeypatch):
    (tmp_path / "checkout/.git").rename(tmp_path / "gone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (told,) = checkout.check_shipped("experiments/mine.py")
    assert "nobody has checked that machines get --config=experiments/mine.py" in told
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checkout.check_shipped("experiments/mine.py") == [told]


SITES = {
    "tpu-vm": {"project": "my-project", "zone": "us-east5-a", "nfs": "10.0.0.2:/share"},
    "gke": {"image": "image", "volume": "claim:runs"},
    "gke-gpu": {"image": "image", "volume": "claim:runs"},
    "slurm": {},
}
MACHINES = {"tpu-vm": "v5e:2x2", "gke": "v5e:2x2", "gke-gpu": "l4:2", "slurm": "l4:2"}


@pytest.mark.parametrize("route", SITES)
def test_only_the_nodes_of_slurm_see_a_file_outside_of_the_checkout(route, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "from experiments import quickstart\n\n\n"
        "def get_config(arg=''):\n    return quickstart.get_config('lr')\n"
    )
    given = {"workdir": "/shared/ctr", "name": "ctr", "topology": MACHINES[route]}
    if route == "slurm":
        render.run(route, config=str(path), **given)
        return
    with pytest.raises(ConfigError, match="is outside of the checkout"):
        render.run(route, config=str(path), **given, **SITES[route])


def test_the_configurations_of_a_list_must_be_there_for_pods_too(tmp_path):
    (tmp_path / "own.py").write_text("")
    commands = [
        f"python -m rankax.main --config={config} --workdir=gs://b/{index}"
        for index, config in enumerate((QUICKSTART, tmp_path / "own.py"))
    ]
    given = {"name": "sweep", "topology": "v5e:2x2"}
    with pytest.raises(ConfigError, match=r"own\.py is outside of the checkout"):
        render.array(commands, route="gke", image="image", **given)
    render.array(commands, route="slurm", name="sweep")


# ---------------------------------------------------------------- data, Spot


def warnings(capsys, route="gke", **options):
    """What a rendered run is warned of, but for changes of this checkout."""
    given = {"workdir": "/shared/ctr", "name": "ctr", "config": QUICKSTART}
    given |= {"topology": MACHINES[route], **SITES[route]}
    render.run(route, **given | options)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in lines)
    return [x for x in lines if "HEAD" not in x]


def data_at(path):
    return {
        "config": "experiments/movielens_100k.py",
        "overrides": [f"--config.data.source.path={path}"],
    }


@pytest.mark.parametrize(
    ("route", "path", "is_seen"),
    [
        ("tpu-vm", "datasets/shop", False),
        ("gke", "datasets/shop", False),
        ("gke-gpu", "/data/shop", False),
        ("gke", "/shared/shop", True),
        ("tpu-vm", "/shared/shop", True),
        ("gke", "gs://bucket/shop", True),
        ("slurm", "datasets/shop", True),
    ],
)
def test_examples_that_machines_may_not_see_are_told(
    capsys, monkeypatch, route, path, is_seen
):
    monkeypatch.setattr(render.program, "weigh", lambda config: None)  # no bucket here
    told = warnings(capsys, route, **data_at(path))
    assert len(told) == (0 if is_seen else 1)
    for line in told:
        assert f"data.source.path = {path!r} is not on a store or under /shared" in line
        assert "must have dataset.json" in line


def test_a_mounted_folder_that_is_not_mounted_is_none(capsys):
    there = data_at("/shared/shop") | {"volume": "", "workdir": "gs://bucket/ctr"}
    (line,) = warnings(capsys, "gke", **there)
    assert "is not on a store: the machine must have" in line


@pytest.mark.parametrize(
    ("route", "seconds"), [("tpu-vm", 30), ("gke", 15), ("gke-gpu", 15)]
)
def test_what_a_spot_machine_has_no_time_to_save_is_told(
    capsys, monkeypatch, route, seconds
):
    most = seconds * 200_000_000  # at 0.2 GB/s, as the page says

    def told(num_bytes, **options):
        state = num_bytes and Whole(tables=num_bytes, copied=0)
        monkeypatch.setattr(render.program, "weigh", lambda config: state or None)
        return warnings(capsys, route, spot=True, **options)

    assert told(most) == []
    (line,) = told(most + 1)
    assert f"--spot: a machine that is taken away leaves {seconds} s" in line
    assert "all since the last evaluation is lost" in line
    assert "set --config.checkpoint.every_steps=STEPS" in line
    (line,) = told(0)
    assert "the size of a checkpoint is not known here: all since" in line
    assert "may be lost" in line
    assert told(0, overrides=["--config.checkpoint.every_steps=100"]) == []
    assert warnings(capsys, route) == []
