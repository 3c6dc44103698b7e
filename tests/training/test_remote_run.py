"""Run folders on an object store: what a run on a disk does, and what a store lacks."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import fsspec
import jax
from moto.core import set_initial_no_auth_action_count
import pytest

from rankax import compare
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.evaluate import evaluate
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe import stores
from rankax.observe.stores import StoreError
from rankax.observe.writers import read_metrics
from rankax.parallel import mesh as meshes
from rankax.train import train
from rankax.training import run_folder, store_lock
from rankax.training.remote_checkpoints import RemoteCheckpoints
from rankax.training.step import Steps


def make_config(num_steps=40):
    """Two tables and no network, which compiles in no time."""
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=6_000,
        num_valid_rows=1_000,
        num_test_rows=1_000,
        rows_per_group=500,
    )
    config.data.lanes = 8
    config.data.fields = ("user_id", "item_id")
    config.tables.num_shards = 64
    config.tables.replicate_below_bytes = 0
    config.model.backbone = named_config("lr")
    config.train.batch_size = 256
    config.train.num_epochs = 0
    config.train.num_steps = num_steps
    config.eval.every_steps = 10
    config.eval.save_predictions = True
    config.observe.log_every = 5
    return config


@pytest.fixture
def one_device(monkeypatch):
    original = meshes.make_mesh
    monkeypatch.setattr(
        meshes,
        "make_mesh",
        lambda **_: original(data=1, model=1, devices=jax.devices()[:1]),
    )


@pytest.fixture
def folder(s3, request):
    """An empty folder on the store."""
    name = request.node.name.partition("[")[0]
    store = fsspec.filesystem("s3")
    if store.exists(f"bucket/{name}"):
        store.rm(f"bucket/{name}", recursive=True)
    return stores.locate(f"s3://bucket/{name}")


@pytest.fixture
def new_clients():
    """Clients that look at the environment anew, and again after the test."""

    def forget():
        from etils.epath import backend
        from s3fs import S3FileSystem

        S3FileSystem.clear_instance_cache()
        backend.fsspec_backend._get_filesystem.cache_clear()

    forget()
    yield
    forget()


def names_in(s3, folder):
    prefix = os.fspath(folder).removeprefix("s3://bucket/") + "/"
    found = s3.list_objects_v2(Bucket="bucket", Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix) for entry in found}


# ---------------------------------------------------------------- whole runs


class Died(Exception):
    pass


def test_a_run_on_a_store_interrupted_anywhere_ends_as_one_on_a_disk(
    tmp_path, s3, folder, one_device, monkeypatch, capsys
):
    config = make_config()
    expected = train(config, str(tmp_path / "whole"))

    original, calls = Steps.train, []

    def dying(*args, **kwargs):
        calls.append(None)
        if len(calls) == 17:
            raise Died
        return original(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(Steps, "train", dying)
        train(config, os.fspath(folder))
    assert "checkpoints/10/commit_success.txt" in names_in(s3, folder)
    store, _ = stores.filesystem(folder)
    put = store.put

    def cut_off(sources, targets, **kwargs):
        if targets[0].endswith("checkpoints/20/commit_success.txt"):
            raise OSError("cut off")
        put(sources, targets, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="cut off"):
        patch.setattr(store, "put", cut_off)
        train(config, os.fspath(folder))
    assert any(n.startswith("checkpoints/20/state/d/") for n in names_in(s3, folder))
    capsys.readouterr()
    result = train(config, os.fspath(folder))
    assert f"continuing {folder} from step 10\n" in capsys.readouterr().out

    assert result["metrics"] == expected["metrics"]
    assert result["tables"] == expected["tables"]
    assert result["best_validation"] == expected["best_validation"]
    assert result["examples_seen"] == expected["examples_seen"]
    curves = [
        [(x["step"], x["split"], x.get("loss"), x.get("ctr/auc")) for x in lines]
        for lines in (read_metrics(folder), read_metrics(tmp_path / "whole"))
    ]
    assert curves[0] == curves[1]

    found = names_in(s3, folder)
    here = [p for p in (tmp_path / "whole").iterdir() if p.is_file()]
    events = {name for name in found if "tfevents" in name}
    assert len(events) == 3
    assert {n for n in found if "/" not in n} - events == {
        p.name for p in here if "tfevents" not in p.name
    } - {"lock"}
    steps = {p.name for p in (tmp_path / "whole" / "checkpoints").iterdir()}
    assert {n.split("/")[1] for n in found if n.startswith("checkpoints/")} == steps

    again = evaluate(config, os.fspath(folder))
    assert again["test"] == expected["metrics"]
    assert again["step"] == expected["best_validation"]["step"]
    body = s3.get_object(Bucket="bucket", Key=f"{folder.name}/evaluation.json")["Body"]
    assert json.loads(body.read())["step"] == again["step"]

    # Either folder may be copied to where the other one is.
    store.get(f"bucket/{folder.name}", str(tmp_path / "copy"), recursive=True)
    assert evaluate(config, str(tmp_path / "copy"))["test"] == expected["metrics"]
    source = str(tmp_path / "whole" / "checkpoints")
    store.put(source, f"bucket/{folder.name}/other", recursive=True)
    other = RemoteCheckpoints(folder / "other")
    assert {path.name for path in other.path.iterdir()} == steps

    path = tmp_path / "whole" / "config.json"  # as if of another model
    path.write_text(path.read_text().replace('"num_shards": 64', '"num_shards": 32'))
    capsys.readouterr()
    compare.main([str(tmp_path / "whole"), os.fspath(folder)])
    table = capsys.readouterr().out
    assert "+0.00000 [+0.00000, +0.00000]" in table and "Bootstrap: " in table


CONFIG_FILE = """
import sys
sys.path.insert(0, {here!r})
from test_remote_run import make_config
def get_config(arg=""):
    return make_config(num_steps=60)
"""


@pytest.mark.slow  # three processes
def test_a_killed_process_on_a_store_is_continued_by_the_same_command(
    tmp_path, s3, folder
):
    (tmp_path / "config.py").write_text(
        CONFIG_FILE.format(here=str(pathlib.Path(__file__).parent))
    )
    config = make_config(num_steps=60)
    expected = train(config, str(tmp_path / "whole"))
    command = [
        *(sys.executable, "-m", "rankax.main"),
        *(f"--config={tmp_path / 'config.py'}", f"--workdir={folder}"),
    ]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 240
    while "checkpoints/20/commit_success.txt" not in names_in(s3, folder):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert "lock" in names_in(s3, folder)
    subprocess.run(command, check=True, timeout=240)
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"] == json.loads(json.dumps(expected["metrics"]))
    assert "lock" not in names_in(s3, folder)


# ---------------------------------------------------------------- checkpoints


def saved(remote, step, *, arrays):
    """Makes what Orbax leaves of a save; the names of arrays are new every time."""
    for name, text in {
        "_CHECKPOINT_METADATA": f"record of {arrays}",
        "commit_success.txt": "",
        "state/manifest.ocdbt": f"points to {arrays}",
        f"state/d/tree-{arrays}": "tree",
        f"state/ocdbt.process_0/d/{arrays}": "numbers",
    }.items():
        path = remote.path / str(step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    remote.publish(step, lambda: None)
    remote.wait()


def test_the_store_gets_what_is_saved_and_loses_what_is_dropped(s3, folder):
    remote = RemoteCheckpoints(folder)
    saved(remote, 10, arrays="a")
    shutil.rmtree(remote.path / "10")
    saved(remote, 20, arrays="b")
    names = {
        "20/_CHECKPOINT_METADATA",
        "20/commit_success.txt",
        "20/state/manifest.ocdbt",
        "20/state/d/tree-b",
    }
    arrays = {"20/state/ocdbt.process_0/d/b"}
    assert names_in(s3, folder) == names | arrays

    def here(remote):
        files = (path for path in remote.path.rglob("*") if path.is_file())
        return {str(path.relative_to(remote.path)) for path in files}

    assert here(remote) == names  # the disk is not filled with arrays
    remote.close()
    other = RemoteCheckpoints(folder)
    assert here(other) == names
    other.fetch(20)
    assert here(other) == names | arrays
    other.close()
    assert not other.path.exists()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_save_cut_off_is_not_seen_and_goes_with_the_next(
    s3, folder, monkeypatch, number
):
    remote = RemoteCheckpoints(folder)
    saved(remote, 10, arrays="a")
    cut_off(remote, monkeypatch, "put", number)
    with pytest.raises(StoreError, match=r"cannot be written \(cut off\)"):
        saved(remote, 20, arrays="b")
    monkeypatch.undo()
    found = RemoteCheckpoints(folder)
    assert [path.name for path in found.path.iterdir()] == ["10"]
    shutil.rmtree(found.path / "10")
    saved(found, 30, arrays="c")
    assert {name.split("/")[0] for name in names_in(s3, folder)} == {"30"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_step_that_is_saved_again_is_never_without_a_checkpoint(
    s3, folder, monkeypatch, number
):
    remote = RemoteCheckpoints(folder)
    saved(remote, 10, arrays="a")
    shutil.rmtree(remote.path / "10")
    cut_off(remote, monkeypatch, "put", number)
    with pytest.raises(StoreError, match="cut off"):
        saved(remote, 10, arrays="b")
    monkeypatch.undo()
    found = RemoteCheckpoints(folder)
    found.fetch(10)
    manifest = (found.path / "10/state/manifest.ocdbt").read_text()
    arrays = manifest.removeprefix("points to ")
    assert (found.path / f"10/state/d/tree-{arrays}").exists()
    assert (found.path / f"10/state/ocdbt.process_0/d/{arrays}").exists()
    shutil.rmtree(found.path / "10")
    saved(found, 10, arrays="c")
    assert not {name for name in names_in(s3, folder) if name.endswith(("a", "b"))}


def test_a_deletion_cut_off_leaves_nothing_that_looks_complete(s3, folder, monkeypatch):
    remote = RemoteCheckpoints(folder)
    saved(remote, 10, arrays="a")
    shutil.rmtree(remote.path / "10")
    cut_off(remote, monkeypatch, "rm", 2)
    with pytest.raises(StoreError, match="cut off"):
        saved(remote, 20, arrays="b")
    monkeypatch.undo()
    assert "10/state/ocdbt.process_0/d/a" in names_in(s3, folder)
    found = RemoteCheckpoints(folder)
    assert [path.name for path in found.path.iterdir()] == ["20"]


def cut_off(remote, monkeypatch, name, number):
    """Lets the call of this number, and those after it, fail."""
    original, calls = getattr(remote._store, name), []

    def failing(*args, **kwargs):
        calls.append(None)
        if len(calls) >= number:
            raise OSError("cut off")
        return original(*args, **kwargs)

    monkeypatch.setattr(remote._store, name, failing)


def test_several_processes_are_told_that_they_need_a_disk(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(
        ConfigError, match="a run of 2 processes cannot save to a store"
    ):
        RemoteCheckpoints(folder)


def test_temporary_folders_of_killed_processes_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(stores, "_SECONDS_TO_LOCK", 0)
    left = tmp_path / "rankax-scratch-left"
    left.mkdir()
    (left / "lock").touch()
    used = stores.Scratch()
    one = stores.Scratch()
    assert set(tmp_path.iterdir()) == {used.path.parent, one.path.parent}
    used.close()
    one.close()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- lock


@pytest.fixture
def fast_lock(monkeypatch):
    monkeypatch.setattr(store_lock, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(store_lock, "STALE_SECONDS", 2.0)
    monkeypatch.setattr(store_lock, "SETTLE_SECONDS", 0.3)


def test_a_folder_in_use_on_a_store_is_refused_and_free_afterwards(
    s3, folder, fast_lock
):
    told = []
    with run_folder.locked(folder) as check:
        with (
            pytest.raises(
                ConfigError, match=rf"in use by process {os.getpid()} on \S+;"
            ),
            run_folder.locked(folder, tell=told.append),
        ):
            pass
        check()
    assert len(told) == 1 and "waiting up to 2 s to see" in told[0]
    assert names_in(s3, folder) == set()
    with run_folder.locked(folder, tell=told.append):
        assert names_in(s3, folder) == {"lock"}
    assert len(told) == 1


def left_behind(folder, **changes):
    """Leaves the lock that a process left which had no time to give it back."""
    lock = store_lock.StoreLock(folder / "lock", tell=print)
    (folder / "lock").write_text(json.dumps(lock._own | {"id": "theirs"} | changes))


def test_a_lock_that_nobody_renews_is_taken_over(folder, fast_lock):
    left_behind(folder, machine="elsewhere")
    told, started = [], time.monotonic()
    with run_folder.locked(folder, tell=told.append):
        assert time.monotonic() - started > store_lock.STALE_SECONDS
    assert len(told) == 1


def test_a_lock_of_a_dead_process_here_is_taken_over_at_once(folder, monkeypatch):
    monkeypatch.setattr(store_lock, "SETTLE_SECONDS", 0.1)
    process = subprocess.Popen(["true"])
    process.wait()
    left_behind(folder, pid=process.pid)
    with run_folder.locked(folder, tell=pytest.fail):
        pass


def test_one_of_two_that_take_over_a_lock_gets_it(folder, fast_lock):
    left_behind(folder, machine="elsewhere")
    outcomes = []

    def take():
        try:
            with run_folder.locked(folder, tell=lambda _: None):
                outcomes.append("held")
                time.sleep(0.5)
        except ConfigError:
            outcomes.append("refused")

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", "refused"]


def test_a_run_whose_folder_was_taken_over_stops_before_it_saves(
    s3, folder, one_device, monkeypatch
):
    original = Steps.train

    def overtaken(*args, **kwargs):  # between two renewals
        (folder / "lock").write_text('{"id": "theirs"}')
        return original(*args, **kwargs)

    monkeypatch.setattr(Steps, "train", overtaken)
    with pytest.raises(ConfigError, match=r"was taken over by another run while"):
        train(make_config(num_steps=1), os.fspath(folder))
    assert not {n for n in names_in(s3, folder) if n.startswith("checkpoints/")}
    assert json.loads((folder / "lock").read_text()) == {"id": "theirs"}


def test_a_lock_that_was_taken_over_is_renewed_no_more(folder, fast_lock):
    with run_folder.locked(folder) as check:
        # A renewal that had read its own lock may still write over theirs, once.
        theirs = ""
        while theirs != '{"id": "theirs"}':
            (folder / "lock").write_text('{"id": "theirs"}')
            time.sleep(5 * store_lock.RENEW_SECONDS)
            theirs = (folder / "lock").read_text()
        with pytest.raises(ConfigError, match=r"was taken over by another run"):
            check()
    assert json.loads((folder / "lock").read_text()) == {"id": "theirs"}


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("program", [train, evaluate])
def test_a_bucket_that_is_not_there_is_told_before_training(s3, program):
    with pytest.raises(
        StoreError, match=r"s3://none/run\S* cannot be \w+ .*the bucket"
    ):
        program(make_config(), "s3://none/run")
    assert "none" not in {b["Name"] for b in s3.list_buckets()["Buckets"]}


def test_a_comparison_tells_of_a_bucket_that_is_not_there(s3):
    with pytest.raises(SystemExit, match=r"compare: s3://none/run/config.json cannot"):
        compare.main(["s3://none/run"])
    with pytest.raises(SystemExit, match=r"s3://bucket/none is not a run folder"):
        compare.main(["s3://bucket/none"])


@set_initial_no_auth_action_count(0)
def test_access_that_is_refused_is_told(folder, new_clients):
    with pytest.raises(StoreError, match=r"config.json cannot .*; access is refused"):
        run_folder.claim(folder, make_config())


@pytest.mark.slow  # the client tries for 12 s
def test_a_store_out_of_reach_is_told(folder, new_clients, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="the store cannot be reached"):
        run_folder.claim(folder, make_config())


def test_schemes_without_a_package_or_without_a_meaning_are_told(monkeypatch):
    with pytest.raises(ConfigError, match="a run folder cannot be on ftp://; use"):
        run_folder.claim("ftp://server/run", make_config())
    with pytest.raises(ConfigError, match=r"no options after .* AWS_ENDPOINT_URL"):
        run_folder.claim("s3://bucket/run?endpoint_override=host", make_config())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"package gcsfs: pip install 'rankax\[gs\]'"):
        run_folder.claim("gs://bucket/run", make_config())


def test_the_files_of_another_thing_on_a_store_are_left_alone(folder):
    (folder / "thesis.tex").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"holds files but no config\.json"):
        run_folder.claim(folder, make_config())
