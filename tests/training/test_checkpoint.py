"""Damaged checkpoints are told, never continued from; half-written ones are ignored."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from small_steps import make_state, make_steps

from rankax.config.experiment import CheckpointConfig, ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data.errors import DataError
from rankax.embeddings import layout
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe import environment
from rankax.parallel import mesh as meshes
from rankax.train import train
from rankax.training import origin as origins
from rankax.training import run_folder, warm_start
from rankax.training import setup as setups
from rankax.training.checkpoint import RECORD, Checkpoints

# What Orbax leaves behind where it cannot read; a user does not see it.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

KEEP = CheckpointConfig(keep_last=3)
RECORDS = {10: {"a": 1, "b": [0.1, None]}, 20: {"a": 2}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps, a state, and a folder with checkpoints 10 and 20 of it."""
    folder, steps = tmp_path_factory.mktemp("saved"), make_steps()
    state = make_state(steps)
    checkpoints = Checkpoints(folder, KEEP)
    for step, record in RECORDS.items():
        save(checkpoints, step, state, steps, record)
    checkpoints.close()
    return steps, jax.tree.map(np.asarray, state), folder


def save(checkpoints, step, state, steps, record, *, is_best=False):
    plan = steps.engine.plan
    origin = {"config": {"seed": 0}}
    checkpoints.save(step, state, record, plan=plan, origin=origin, is_best=is_best)


def copy(saved, tmp_path):
    return shutil.copytree(saved[2], tmp_path / "copy")


def restore(steps, folder, step=20):
    checkpoints = Checkpoints(folder, None)
    abstract, plan = steps.abstract_state(), steps.engine.plan
    state = checkpoints.restore(abstract, plan=plan, step=step)
    return state, checkpoints.record(step)


def damages(data, rng, num_flips):
    """Yields (what, damaged bytes or None for a file that is gone)."""
    for place in rng.integers(0, len(data), num_flips):
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.integers(8)
        yield f"bit flipped in byte {place}", bytes(flipped)
    for size in {0, len(data) // 2, len(data) - 1}:
        yield f"cut to {size} bytes", data[:size]
    yield "garbage", rng.bytes(len(data))
    yield "gone", None


@pytest.mark.parametrize(
    "num_flips", [2, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damage_anywhere_is_told_or_changes_nothing(saved, tmp_path, num_flips, capfd):
    steps, expected, _ = saved
    folder = copy(saved, tmp_path)
    rng, told = np.random.default_rng(0), {}
    for path in sorted(p for p in (folder / "20").rglob("*") if p.is_file()):
        name, data = path.relative_to(folder / "20"), path.read_bytes()
        for what, damaged in damages(data, rng, num_flips):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            try:
                Checkpoints(folder, KEEP).close()  # as a run does that goes on
                state, record = restore(steps, folder)
            except DataError as error:
                told.setdefault(name.parts[0], []).append(str(error))
                assert "move" in str(error), (name, what)
            else:
                assert record == RECORDS[20], (name, what)
                jax.tree.map(np.testing.assert_array_equal, expected, state)
        path.write_bytes(data)
    jax.tree.map(np.testing.assert_array_equal, expected, restore(steps, folder)[0])
    assert len(told[RECORD]) >= num_flips // 2 + 4 and len(told["state"]) >= 15
    assert "Traceback" not in capfd.readouterr().err


def test_flipped_bits_of_arrays_are_told_by_name_with_what_to_do(saved, tmp_path):
    steps, _, _ = saved
    folder = copy(saved, tmp_path)
    for step, advice in (
        (20, "move that folder away: the same command then goes on from step 10"),
        (
            10,
            "move that folder and 20 beside it away: the same command then goes on "
            "from the start",
        ),
    ):
        (file,) = (folder / f"{step}/state/ocdbt.process_0/d").iterdir()
        data, told = file.read_bytes(), []
        for place in range(5, len(data), len(data) // 10):
            flipped = bytearray(data)
            flipped[place] ^= 16
            file.write_bytes(flipped)
            try:
                restore(steps, folder, step)  # not every bit of OCDBT has a meaning
            except DataError as error:
                told.append(str(error))
        where = f"checkpoint {folder / str(step)} is damaged: "
        assert all(x.startswith(where) and x.endswith(advice) for x in told)
        by_name = [text for text in told if "'tables/embedding_0/" in text]
        assert any("are not what was saved" in text for text in by_name)
    shutil.rmtree(folder / "20")
    with pytest.raises(DataError, match=r"20 is damaged: its record .*FileNotFound"):
        restore(steps, folder, 20)


@pytest.mark.slow  # a process of its own; tests/faults has others
def test_a_killed_save_is_ignored_and_cleaned_up(saved, tmp_path):
    steps, _, _ = saved
    script = f"""
import os, pathlib, signal
from small_steps import make_state, make_steps
from test_checkpoint import KEEP, save
from rankax.training.checkpoint import Checkpoints
steps = make_steps({{"user": 1_000_000, "hour": 24}}, devices=1)  # 22 MB
checkpoints = Checkpoints(pathlib.Path({str(tmp_path)!r}), KEEP)
state = make_state(steps)
save(checkpoints, 10, state, steps, {{"a": 1}})
checkpoints.wait()
save(checkpoints, 20, state, steps, {{"a": 2}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = pathlib.Path(__file__).parent
    path = os.pathsep.join(
        [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]
    )
    process = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        cwd=here.parents[1],
        timeout=240,
    )
    assert process.returncode == -signal.SIGKILL
    half = [path.name for path in tmp_path.iterdir() if not path.name.isdecimal()]
    assert len(half) == 1 and half[0].startswith("20.")
    reader = Checkpoints(tmp_path, None)
    assert reader.steps == [10] and reader.record(10) == {"a": 1}
    assert (tmp_path / half[0]).exists()  # a run may be at work on it
    checkpoints = Checkpoints(tmp_path, KEEP)
    save(checkpoints, 20, make_state(steps), steps, {"a": 3})
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "20"]
    assert restore(steps, tmp_path)[1] == {"a": 3}


def test_a_step_that_is_saved_again_never_has_no_checkpoint(saved, tmp_path):
    steps, expected, _ = saved
    folder = copy(saved, tmp_path)
    arrays = {p: p.stat().st_mtime_ns for p in (folder / "20/state").rglob("*")}
    checkpoints = Checkpoints(folder, CheckpointConfig())
    save(checkpoints, 20, make_state(steps), steps, {"a": 5}, is_best=True)
    assert {p: p.stat().st_mtime_ns for p in arrays} == arrays  # at once, and no more
    save(checkpoints, 30, make_state(steps), steps, {})
    checkpoints.close()
    assert Checkpoints(folder, None).steps == [20, 30]  # the best and the newest
    state, record = restore(steps, folder)
    assert record == {"a": 5}
    jax.tree.map(np.testing.assert_array_equal, expected, state)


def test_a_save_leaves_no_thread_and_no_open_file(tmp_path):
    steps = make_steps()
    state, checkpoints = make_state(steps), Checkpoints(tmp_path, KEEP)
    found = []
    for step in range(8):
        save(checkpoints, step, state, steps, {})
        checkpoints.wait()
        found.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    checkpoints.close()
    # The first saves start pools of threads that the later ones use; a folder that
    # is being deleted may be open for a moment.
    assert found[-1][0] <= found[3][0] and found[-1][1] <= found[3][1] + 2


def test_what_changed_since_a_checkpoint_is_told():
    old = {"dataset": "clicks", "splits": {"train": "1a", "valid": "2b"}}
    old["versions"] = {"jax": "0.10.1", "rankax": "1.0", "numpy": "2.1"}
    new = {**old, "versions": {"jax": "0.10.2", "rankax": "1.1", "numpy": "2.1"}}
    assert origins.changes(old, old, where="") == ""
    told = origins.changes(old, new, where="")
    assert told == "jax 0.10.1 -> 0.10.2, rankax 1.0 -> 1.1"
    new["splits"] = {"train": "1a", "valid": "3c"}
    with pytest.raises(
        DataError,
        match=r"clicks/valid has changed since checkpoint 7 .* '2b' and is '3c'",
    ):
        origins.changes(old, new, where="checkpoint 7 of runs/a")


def make_config(**options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=1_000, num_valid_rows=500, num_test_rows=500, rows_per_group=500
    )
    config.model.backbone = named_config("lr")
    config.tables.num_shards = 64
    config.tables.replicate_below_bytes = 2_000
    config.train.batch_size = 256
    config.train.num_steps = 2
    config.data.fields = ("user_id", "item_id", "hour")
    config.eval.test = config.observe.tensorboard = config.observe.report = False
    for name, value in options.items():
        setattr(config.checkpoint, name, value)
    return config


def test_a_run_starts_from_another_and_goes_on_from_its_own_checkpoint(
    tmp_path, monkeypatch, capsys
):
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(meshes, "make_mesh", lambda **_: mesh)  # compiles faster
    first = make_config()
    setup = setups.set_up(first)
    origin = origins.of_run(first, setup)
    step = tmp_path / "first/checkpoints/7"
    checkpoints = Checkpoints(step.parent, KEEP)
    state, plan = make_state(setup.steps), setup.steps.engine.plan
    checkpoints.save(7, state, {}, plan=plan, origin=origin, is_best=True)
    checkpoints.close()
    contents = json.loads((step / RECORD).read_text())["custom_metadata"]
    assert contents["origin"] == json.loads(json.dumps(origin))
    assert origin["config"]["train"]["num_steps"] == 2
    assert origin["config_hash"] == run_folder.hash_of(first)
    assert origin["versions"] == environment.versions()
    assert origin["splits"].keys() == {"train", "valid", "test"}

    capsys.readouterr()
    second = make_config(init_from=str(tmp_path / "first"))
    second.tables.num_shards = 16
    folder = tmp_path / "second"
    train(second, str(folder))
    text = (folder / warm_start.FILE_NAME).read_text()
    assert text.startswith(f"started from {step}\n  kept     network/")
    assert text in capsys.readouterr().out

    shutil.rmtree(tmp_path / "first")
    (folder / "result.json").unlink()
    versions = {**environment.versions(), "jax": "99"}
    monkeypatch.setattr(environment, "versions", lambda: versions)
    capsys.readouterr()
    assert train(second, str(folder))["step"] == 2
    told = capsys.readouterr().out
    assert f"continuing {folder} from step 2" in told
    assert f"saved by other versions (jax {jax.__version__} -> 99)" in told


@pytest.mark.parametrize("saves_lines", [True, False])
def test_a_checkpoint_does_not_tell_lines_from_rows(saves_lines, tmp_path, monkeypatch):
    kept = []
    for in_lines, devices in ((saves_lines, 8), (not saves_lines, 2)):
        monkeypatch.setattr(layout, "is_in_lines", lambda mesh, value=in_lines: value)
        steps = make_steps(devices=devices)
        checkpoints = Checkpoints(tmp_path, CheckpointConfig())
        plan, abstract = steps.engine.plan, steps.abstract_saved()
        if not kept:
            state = make_state(steps)
            checkpoints.save(
                3, steps.to_saved(state), {}, plan=plan, origin={}, is_best=False
            )
        else:
            saved = checkpoints.restore(abstract, plan=plan, step=3)
            state = steps.from_saved(saved)
            for found, wanted in zip(
                jax.tree.leaves(state),
                jax.tree.leaves(steps.abstract_state()),
                strict=True,
            ):
                assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
                assert found.sharding == wanted.sharding
        checkpoints.close()
        kept.append(jax.tree.map(np.asarray, steps.to_saved(state)))
    jax.tree.map(np.testing.assert_array_equal, *kept)
