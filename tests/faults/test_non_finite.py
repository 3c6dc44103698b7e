"""A loss that overflows: nothing is written, and replay shows the example."""

import dataclasses
import json
import os
import signal

from final_states import final_state
import jax
import numpy as np
import pytest
from small_run import GROUP, make_config, rewrite, write_dataset

from rankax.config.base import ConfigError
from rankax.replay import replay
from rankax.train import train
from rankax.training import interruption
from rankax.training.progress import NonFiniteError
from rankax.training.setup import set_up
from rankax.training.step import Steps

BAD_ROW = 93  # shard 2, row group 0, row 13


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Config, folder, message and the states around the steps of a run that ended."""

    def overflow(table):
        prices = table["price"].to_numpy().copy()
        prices[BAD_ROW - 80] = 3e38
        return table.set_column(2, "price", [prices])

    tmp_path = tmp_path_factory.mktemp("overflow")
    data = write_dataset(tmp_path / "made")
    rewrite(data / "train/00002.parquet", overflow)
    config = make_config(data)
    config.observe.log_every = 5
    states, original = [], Steps.train

    def watched(self, state, batch, *, factor):
        states.append(jax.tree.map(np.array, state))
        return original(self, state, batch, factor=factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Steps, "train", watched)
        with pytest.raises(NonFiniteError) as error:
            train(config, str(tmp_path / "run"))
    return config, tmp_path / "run", str(error.value), states


def test_nothing_is_written_and_replay_shows_step_column_and_example(run, capsys):
    config, folder, told, states = run
    bad = json.loads((folder / "bad_step.json").read_text())
    assert f"gradient of step {bad['step']} was NaN" in told and "replay" in told
    # The state before the bad step is that of all later ones: weights, rows, moments.
    before, *later = states[bad["step"] - 1 :]
    for state in later:
        assert int(state.first_bad_step) == bad["step"] - 1
        for name in ("step", "params", "opt_state", "rest", "tables", "rng"):
            one, other = getattr(before, name), getattr(state, name)
            jax.tree.map(np.testing.assert_array_equal, one, other)
    saved = sorted(path.name for path in (folder / "checkpoints").iterdir())

    result = replay(config, str(folder))
    assert result["step"] == bad["step"] and result["is_reproduced"]
    assert result["input_position"] == bad["input_position"]
    assert {"loss", "logits/click"} <= result["not_finite"].keys()
    (column,) = result["columns"]
    assert column["column"] == "price" and column["largest"] == np.float32(3e38)
    top = column["examples"][0]
    assert top["where"] == "made/train, 00002.parquet row group 0"
    assert top["row"] == BAD_ROW - 80
    with np.load(folder / "replay.npz", allow_pickle=False) as batch:
        assert batch["ids"][top["example"], 0] == BAD_ROW
        # Every example is found where it stands: the data set numbers its rows.
        assert len(batch["ids"]) == config.train.batch_size
        for column in result["columns"]:
            for place in column["examples"]:
                shard, group = int(place["where"][12:17]), int(place["where"][-1])
                row = shard * 2 * GROUP + group * GROUP + place["row"]
                assert batch["ids"][place["example"], 0] == row
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == saved
    shown = capsys.readouterr().out
    assert f"step {bad['step']} is reproduced, its loss is {result['loss']}" in shown
    assert "price: largest 3e+38" in shown and "00002.parquet row group 0" in shown
    assert json.loads((folder / "replay.json").read_text()) == result


def test_the_same_command_comes_to_the_same_step_again(run):
    config, folder, told, _ = run
    step, before, _ = final_state(config, folder)
    with pytest.raises(NonFiniteError) as error:
        train(config, str(folder))
    assert str(error.value) == told
    again, after, _ = final_state(config, folder)
    assert again == step
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_replay_ends_on_a_signal_after_its_step(run, monkeypatch):
    config, folder, _, _ = run
    original = Steps.train

    def signalled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **kwargs)

    monkeypatch.setattr(Steps, "train", signalled)
    with pytest.raises(
        interruption.Interrupted, match="in the replay, after step 17; the same"
    ):
        replay(config, str(folder))


def test_replay_of_a_run_without_a_bad_step_is_refused(whole, clean):
    with pytest.raises(ConfigError, match=r"has no bad_step\.json"):
        replay(make_config(clean), str(whole[0]))


def test_what_is_not_finite_is_counted_by_name(clean):
    config = make_config(clean)
    setup = set_up(config)
    steps, state = setup.steps, setup.steps.init_state()
    network = dict(state.params["network"])
    state = dataclasses.replace(
        state, params={**state.params, "network": jax.tree.map(poisoned, network)}
    )
    batches = setup.training_batches(config, None, map_batch=steps.to_devices)
    batch, _ = next(batches)
    batches.close()
    found, loss, is_bad = steps.inspect(state, batch)
    size = config.train.batch_size
    assert np.isnan(loss) and is_bad.tolist() == [True] * size
    assert found.pop("loss") == 1 and found.pop("logits/click") == size
    kinds = {name.split("/")[0] for name in found}
    assert kinds == {"params", "gradient", "row_gradient"}
    arrays = len(jax.tree.leaves(network))
    own = [count for name, count in found.items() if name.startswith("params/network")]
    assert own == [1] * arrays  # the rows themselves are fine, and not named
    assert not any(np.isnan(x).any() for x in jax.tree.leaves(state.tables))


def poisoned(weights):
    return weights.at[(0,) * weights.ndim].set(np.nan)
