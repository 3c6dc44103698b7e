"""Killed and continued runs end as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time

from final_states import final_state
import jax
import numpy as np
import pytest

from rankax import train as trainer
from rankax.config.base import ConfigError
from rankax.config.experiment import CheckpointConfig, ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.evaluate import evaluate
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe.writers import read_metrics
from rankax.parallel import mesh as meshes
from rankax.progressive import progressive
from rankax.train import train
from rankax.training import interruption, run_folder
from rankax.training import setup as setups
from rankax.training.checkpoint import Checkpoints
from rankax.training.step import Steps


def make_config(**train_options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=6_000,
        num_valid_rows=1_000,
        num_test_rows=1_000,
        rows_per_group=500,
    )
    config.data.lanes = 8
    config.tables.num_shards = 64
    config.tables.replicate_below_bytes = 20_000  # some tables of each kind
    # All that a table can keep: 16-bit rows written with noise, moments, steps.
    config.tables.dtype = "bfloat16"
    config.tables.track_last_step = True
    config.optimizer.sparse.name = "lazy_adam"
    config.model.backbone = named_config(
        "dnn", embedding_dim=4, hidden_dims=(16,), dropout=0.2, use_batch_norm=True
    )
    config.train.batch_size = 256
    config.train.num_epochs = 2
    config.eval.every_steps = 10
    config.observe.log_every = 5
    config.observe.tensorboard = False
    config.observe.report = False
    for name, value in train_options.items():
        setattr(config.train, name, value)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder and result of a run of `make_config` that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(make_config(), str(folder))


class Died(Exception):
    pass


def test_a_run_interrupted_anywhere_ends_bit_equal(tmp_path, whole, monkeypatch):
    config = make_config()
    whole_folder, expected = whole
    original, calls = Steps.train, []

    def dying(self, *args, **kwargs):
        calls.append(None)
        if len(calls) in (7, 20, 33):  # before a save, between two, in the next epoch
            raise Died
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Steps, "train", dying)
    for _ in range(3):
        with pytest.raises(Died):
            train(config, str(tmp_path / "parts"))
    parts = train(config, str(tmp_path / "parts"))

    assert parts["metrics"] == expected["metrics"]
    assert parts["tables"] == expected["tables"]
    assert parts["examples_seen"] == expected["examples_seen"] == 2 * 6_000
    step, a, _ = final_state(config, whole_folder)
    assert step == 48
    _, b, record = final_state(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert record["position"]["epoch"] == 2

    assert curve(tmp_path / "parts") == curve(whole_folder)
    losses = [
        [(x["step"], x["loss"]) for x in read_metrics(folder) if "loss" in x]
        for folder in (whole_folder, tmp_path / "parts")
    ]
    assert losses[0] == losses[1]


def test_a_finished_run_is_left_alone(tmp_path):
    config = make_config(num_epochs=0, num_steps=10)
    first = train(config, str(tmp_path))
    before = (tmp_path / "metrics.jsonl").read_text()
    assert train(config, str(tmp_path)) == json.loads(json.dumps(first))
    assert (tmp_path / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_that_left_the_test_split_unread_reads_it_later(tmp_path):
    config = make_config()
    config.eval.early_stopping_patience = 1
    whole = train(config, str(tmp_path / "whole"))
    config.eval.test = False
    config.observe.report = True
    trial = train(config, str(tmp_path / "trial"))
    assert trial["metrics"] == {}
    assert "has not been read" in (tmp_path / "trial/report.html").read_text()
    assert "test" not in {x["split"] for x in read_metrics(tmp_path / "trial")}
    assert trial["best_validation"] == whole["best_validation"]
    assert "test" not in evaluate(config, str(tmp_path / "trial"))
    config.eval.test = True
    later = train(config, str(tmp_path / "trial"))
    saved = json.loads((tmp_path / "trial/config.json").read_text())
    assert saved["config"]["eval"]["test"] is True
    assert later["metrics"] == whole["metrics"]
    assert later["examples_seen"] == whole["examples_seen"]


def test_a_finished_run_tells_which_options_its_result_does_not_have(tmp_path, capsys):
    config = make_config(num_epochs=0, num_steps=10)
    train(config, str(tmp_path))
    saved = (tmp_path / "config.json").read_text()
    config.eval.exact_auc = True
    train(config, str(tmp_path))
    assert "not applied: eval.exact_auc: False -> True" in capsys.readouterr().out
    assert (tmp_path / "config.json").read_text() == saved


def command_of(tmp_path, **train_options):
    """The command line of a run of `make_config` in the folder "run"."""
    config = tmp_path / "config.py"
    config.write_text(
        f"import sys\nsys.path[:0] = {sys.path!r}\n"
        "from test_resume import make_config\n"
        f"def get_config(arg=''):\n    return make_config(num_epochs=0, **{train_options})\n"
    )
    return [
        *(sys.executable, "-m", "rankax.main"),
        *(f"--config={config}", f"--workdir={tmp_path / 'run'}"),
    ]


@pytest.mark.slow
def test_a_signalled_and_a_killed_process_continue_to_the_same_result(tmp_path):
    whole = train(make_config(num_epochs=0, num_steps=60), str(tmp_path / "whole"))
    command = command_of(tmp_path, num_steps=60)

    def interrupted(number, step):
        process = subprocess.Popen(
            command, env=os.environ, stderr=subprocess.PIPE, text=True
        )
        checkpoint = tmp_path / "run" / "checkpoints" / str(step)
        deadline = time.monotonic() + 240
        while not checkpoint.exists() and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, told = process.communicate(timeout=120)
        assert not (tmp_path / "run" / "result.json").exists()
        return process.returncode, told

    status, told = interrupted(signal.SIGTERM, 10)
    assert status == 128 + signal.SIGTERM
    assert re.search(r"stopped by SIGTERM .*; the same command goes on", told)
    assert "Traceback" not in told
    assert interrupted(signal.SIGKILL, 40)[0] == -signal.SIGKILL
    subprocess.run(command, env=os.environ, check=True, timeout=240)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"] == json.loads(json.dumps(whole["metrics"]))


def curve(folder):
    lines = [x for x in read_metrics(folder) if x["split"] in ("valid", "test")]
    return [(x["step"], x["split"], x["ctr/auc"]) for x in lines]


def test_a_signal_ends_the_run_after_its_step_and_the_run_goes_on(
    tmp_path, whole, monkeypatch
):
    config = make_config()
    whole_folder, expected = whole
    original, calls = Steps.train, []

    def signalled(self, *args, **kwargs):
        calls.append(None)
        if len(calls) in (7, 20):  # between two saves, and before an evaluation
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Steps, "train", signalled)
    before = signal.getsignal(signal.SIGTERM)
    told = []
    for _ in range(2):
        with pytest.raises(interruption.Interrupted) as error:
            train(config, str(tmp_path / "parts"))
        assert error.value.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is before
        told.append(str(error.value))
    assert told == [
        "stopped by SIGTERM after step 7, which is saved; the same command goes on",
        "stopped by SIGTERM while it read synthetic/valid; the same command goes on",
    ]
    parts = train(config, str(tmp_path / "parts"))
    assert len(calls) == 48  # no step was done twice
    assert parts["metrics"] == expected["metrics"]
    assert parts["tables"] == expected["tables"]
    assert curve(tmp_path / "parts") == curve(whole_folder)
    _, a, _ = final_state(config, whole_folder)
    _, b, _ = final_state(config, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_signal_within_the_test_split_leaves_it_for_later(tmp_path, monkeypatch):
    config = make_config(num_epochs=0, num_steps=10)
    config.eval.save_predictions = True
    original = trainer.evaluate

    def signalled(*args, is_final, **kwargs):
        if is_final:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, is_final=is_final, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", signalled)
    with pytest.raises(interruption.Interrupted, match="while it read synthetic/test"):
        train(config, str(tmp_path))
    assert not (tmp_path / "predictions.parquet").exists()
    monkeypatch.undo()
    result = train(config, str(tmp_path))
    assert result["step"] == 10 and result["metrics"]["ctr/auc"] > 0
    assert (tmp_path / "predictions.parquet").exists()


def test_a_second_signal_is_not_listened_to():
    # A shell's background jobs are started with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruption.StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.number == signal.SIGINT
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_best_checkpoint_is_what_gets_tested(tmp_path):
    config = make_config(num_epochs=3)
    config.optimizer.dense.learning_rate = 0.3  # soon gets worse again
    config.eval.early_stopping_patience = 2
    result = train(config, str(tmp_path))
    best = result["best_validation"]
    lines = [x for x in read_metrics(tmp_path) if x["split"] == "valid"]
    aucs = {x["step"]: x["ctr/auc"] for x in lines}
    assert best["value"] == max(aucs.values()) and aucs[best["step"]] == best["value"]
    assert result["step"] == lines[-1]["step"] > best["step"]
    assert (tmp_path / "checkpoints" / str(best["step"])).exists()
    # The third split is scored by those weights: evaluating again gives the same.
    from rankax.evaluate import evaluate

    again = evaluate(config, str(tmp_path))
    assert again["step"] == best["step"]
    assert again["test"] == result["metrics"]
    assert again["valid"]["ctr/auc"] == best["value"]


@pytest.mark.slow  # 15 s
def test_a_checkpoint_restores_on_other_device_counts(tmp_path, monkeypatch):
    config = make_config(num_epochs=0, num_steps=10)
    original = meshes.make_mesh

    def use(count):
        def make(*, data=0, model=1, devices=None):
            return original(data=count, model=1, devices=jax.devices()[:count])

        monkeypatch.setattr(meshes, "make_mesh", make)

    use(4)
    train(config, str(tmp_path))
    _, saved, _ = final_state(config, tmp_path)
    for count in (1, 2, 8):
        use(count)
        _, restored, _ = final_state(config, tmp_path)
        jax.tree.map(np.testing.assert_array_equal, saved, restored)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, {50, 70}),
        ({"keep_last": 3}, {50, 60, 70}),
        ({"keep_best": 2}, {30, 50, 70}),
        ({"keep_every": 20}, {20, 40, 50, 60, 70}),
    ],
)
def test_the_newest_the_best_and_every_so_many_checkpoints_are_kept(
    tmp_path, options, expected
):
    steps = setups.set_up(make_config()).steps
    state = steps.init_state()
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(**options))
    for step in range(10, 71, 10):
        is_best = step in (10, 30, 50)
        checkpoints.save(
            step, state, {}, plan=steps.engine.plan, origin={}, is_best=is_best
        )
    checkpoints.close()
    kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
    assert kept == expected


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path):
    config = make_config(num_epochs=0, num_steps=10)
    train(config, str(tmp_path))
    config.model.backbone.hidden_dims = (24,)
    with pytest.raises(
        ConfigError, match=r"array 'opt_state/.*' is float32\[.*16.*\] there"
    ):
        final_state(config, tmp_path)
    config = make_config(num_epochs=0, num_steps=10)
    config.model.backbone.embedding_dim = 8
    with pytest.raises(ConfigError, match=r"table 'embedding.*'dim': 4.*'dim': 8"):
        final_state(config, tmp_path)


def test_a_model_with_a_parameter_without_elements_continues(tmp_path):
    config = make_config(num_epochs=0, num_steps=10)
    config.model.backbone = named_config("lr")  # its numeric weights are [0, 2]
    config.data.fields = ("user_id", "item_id")
    config.tables.replicate_below_bytes = 0
    train(config, str(tmp_path))
    step, state, _ = final_state(config, tmp_path)
    assert step == 10
    assert state.params["network"]["backbone"]["numeric"].shape == (0, 2)


def test_a_run_folder_of_another_configuration_is_refused(tmp_path):
    train(make_config(num_epochs=0, num_steps=10), str(tmp_path))
    other = make_config(num_epochs=0, num_steps=10, seed=7)
    with pytest.raises(
        ConfigError, match=r"another configuration[\s\S]*train.seed: 0 -> 7"
    ):
        train(other, str(tmp_path))
    same = make_config(num_epochs=0, num_steps=10)
    same.observe.log_every = 3  # does not change what is computed
    train(same, str(tmp_path))


def test_a_second_run_on_a_folder_in_use_is_refused(tmp_path):
    config = make_config(num_epochs=0, num_steps=10)
    run_folder.claim(str(tmp_path), config)
    saved = (tmp_path / "config.json").read_text()
    other = make_config(num_epochs=0, num_steps=10)
    other.observe.log_every = 3  # of the same run
    with (
        run_folder.locked(tmp_path),
        pytest.raises(ConfigError, match="in use by process"),
    ):
        train(other, str(tmp_path))
    assert (tmp_path / "config.json").read_text() == saved
    train(config, str(tmp_path))


@pytest.mark.parametrize("program", [train, progressive])
def test_of_two_runs_on_one_new_folder_the_first_to_lock_it_has_it(
    program, tmp_path, monkeypatch
):
    first, second = make_config(seed=1), make_config(seed=2)
    second.data.time_window = 86_400  # for progressive
    original = run_folder.locked

    def locked(folder, **options):
        """The first run is faster, and at its end."""
        with original(folder):
            run_folder.claim(folder, first)
        return original(folder, **options)

    monkeypatch.setattr(run_folder, "locked", locked)
    with pytest.raises(ConfigError, match=r"another configuration|is a run of --mode"):
        program(second, str(tmp_path / "run"))
    assert run_folder.find(str(tmp_path / "run"), first)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not touch")
    with pytest.raises(ConfigError, match=r"holds files but no config\.json"):
        train(make_config(), str(tmp_path))
