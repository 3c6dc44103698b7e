"""Damaged, vanished, replaced and slow input, and values that no run may take in."""

import os
import shutil
import time

from final_states import final_state
import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_run import ROWS, assert_same_run, make_config, rewrite

from rankax.data.errors import DataError
from rankax.data.parquet import ParquetSplit
from rankax.observe.writers import read_metrics
from rankax.train import train
from rankax.training.step import Steps


def at_step(patch, number, act):
    """Calls `act` when the step of this number begins, counted from here on."""
    original, calls = Steps.train, []

    def acting(*args, **kwargs):
        calls.append(None)
        if len(calls) == number:
            act()
        return original(*args, **kwargs)

    patch.setattr(Steps, "train", acting)


# ---------------------------------------------------------------- files


def truncated(shard):
    os.truncate(shard, shard.stat().st_size // 2)


def removed(shard):
    shard.unlink()


def replaced(shard):
    """Other examples in a file of the same size, as `cp` would leave them."""
    size = shard.stat().st_size
    rewrite(shard, lambda t: t.set_column(2, "price", pc.negate(t["price"])))
    assert shard.stat().st_size == size


@pytest.mark.parametrize(
    ("damage", "message", "early"),
    [
        (truncated, "its size has changed since", "is not a readable Parquet file"),
        (removed, "No such file", r"120 rows, .* says 160; a shard is missing"),
        (replaced, "it has been written again since", "has changed since checkpoint"),
    ],
)
def test_a_shard_damaged_on_the_way_ends_the_run_which_goes_on_once_it_is_restored(
    damage, message, early, data, whole, tmp_path, monkeypatch
):
    shard, copy = data / "train/00001.parquet", tmp_path / "copy.parquet"
    shutil.copy(shard, copy)
    config = make_config(data)
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: damage(shard))
        with pytest.raises(
            DataError, match=rf"00001.parquet: row group \d cannot be read.*{message}"
        ):
            train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/result.json").exists()
    # Started again too early, it neither goes on nor starts over.
    with pytest.raises(DataError, match=early):
        train(config, str(tmp_path / "run"))
    shutil.copy(copy, shard)
    result = train(config, str(tmp_path / "run"))
    assert result["metrics"] == whole[1]["metrics"]
    assert result["examples_seen"] == 2 * ROWS["train"]
    assert_same_run(config, whole[0], tmp_path / "run")


def test_a_truncated_shard_is_told_before_the_run_begins(data, tmp_path):
    truncated(data / "valid/00003.parquet")
    with pytest.raises(DataError, match=r"00003.parquet is not a readable Parquet"):
        train(make_config(data), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_slow_input_is_waited_for_and_told(data, whole, tmp_path, monkeypatch):
    original = ParquetSplit.read

    def slow(self, group):
        time.sleep(0.3)  # more than compiling can hide
        return original(self, group)

    monkeypatch.setattr(ParquetSplit, "read", slow)
    config = make_config(data)
    result = train(config, str(tmp_path / "run"))
    assert result["metrics"] == whole[1]["metrics"]
    assert_same_run(config, whole[0], tmp_path / "run")
    assert result["input_wait"] > 0.3
    lines = read_metrics(tmp_path / "run")
    assert max(line.get("input_wait") or 0 for line in lines) > 0.3


# ---------------------------------------------------------------- values


def with_value(column, value):
    """Puts one value into row 7 of the second row group of a shard."""

    def change(table):
        place = table.column_names.index(column)
        values = table[column].to_pylist()
        values[27] = value
        kind = table[column].type
        if isinstance(value, int) and abs(value) > 127 and kind == pa.int8():
            kind = pa.int64()
        return table.set_column(place, column, pa.array(values, kind))

    return change


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("price", float("nan"), r"column 'price' has 1 of 20 .* finite .* row 7: nan"),
        ("price", float("-inf"), r"column 'price' has 1 of 20 .* row 7: -inf"),
        ("click", 2, r"column 'click' has 1 of 20 values that are not labels 0 or 1"),
        ("click", None, r"column 'click' has 1 missing \(null\) values of 20"),
        ("row", 160, r"field 'row': 1 of 20 ids are outside table 'row' with num_rows"),
        ("row", -1, r"field 'row': 1 of 20 ids are outside .*smallest id -1"),
        ("row", 2**31, r"field 'row': 1 of 20 ids .*largest 2147483648"),
        ("row", 2**32 + 3, r"field 'row': 1 of 20 ids .*largest 4294967299"),
        ("row", 2**63 - 1, r"field 'row': 1 of 20 ids .*largest 9223372036854775807"),
    ],
)
def test_a_wrong_value_ends_the_run_before_it_is_used(
    column, value, message, data, tmp_path
):
    # The last row group of this seed's first epoch, in use from step 8 on.
    shard = data / "train/00003.parquet"
    rewrite(shard, with_value(column, value))
    config = make_config(data)
    with pytest.raises(DataError, match=rf"00003.parquet row group 1: {message}"):
        train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run/result.json").exists()
    _, state, record = final_state(config, tmp_path / "run")
    assert state.step == 4 and record["examples_seen"] == 4 * config.train.batch_size
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


# ---------------------------------------------------------------- quarantine


def flipped(shard):
    """Changes one bit of the last row group's prices."""
    column = pq.read_metadata(shard).row_group(1).column(2)
    content = bytearray(shard.read_bytes())
    content[column.data_page_offset - 1] ^= 1
    shard.write_bytes(bytes(content))


def test_quarantine_leaves_out_the_same_rows_after_a_restart(
    data, tmp_path, monkeypatch, capsys
):
    config = make_config(data)
    sound = (data / "train/00002.parquet").read_bytes()
    flipped(data / "train/00002.parquet")
    with pytest.raises(DataError, match=r"00002.parquet: row group 1 cannot be read"):
        train(config, str(tmp_path / "without"))
    capsys.readouterr()

    config.data.quarantine = 0.2
    once = train(config, str(tmp_path / "once"))
    shown = capsys.readouterr().out
    assert "quarantined train/00002.parquet row group 1, 20 rows (" in shown
    (entry,) = once["quarantined"].pop("train")
    assert (entry["file"], entry["row_group"], entry["num_rows"]) == (
        "00002.parquet",
        1,
        20,
    )
    assert once["quarantined"] == {"valid": [], "test": []}
    assert once["examples_seen"] == 2 * (ROWS["train"] - 20)
    lines = [x for x in read_metrics(tmp_path / "once") if x["split"] == "train"]
    assert {line["quarantined_rows"] for line in lines} == {20}

    class Died(Exception):
        pass

    def die():
        raise Died

    with monkeypatch.context() as patch:
        at_step(patch, 11, die)
        with pytest.raises(Died):
            train(config, str(tmp_path / "twice"))
    # What was left out stays out, though the shard has been restored.
    (data / "train/00002.parquet").write_bytes(sound)
    twice = train(config, str(tmp_path / "twice"))
    assert twice["metrics"] == once["metrics"]
    assert twice["dataset_fingerprint"] == once["dataset_fingerprint"]
    assert_same_run(config, tmp_path / "once", tmp_path / "twice")


def test_a_quarantine_beyond_its_share_ends_the_run(data, tmp_path):
    config = make_config(data)
    config.data.quarantine = 0.1
    flipped(data / "train/00002.parquet")
    with pytest.raises(
        DataError, match=r"20 of 160 rows cannot be read, more than .*= 0\.1 of them"
    ):
        train(config, str(tmp_path / "run"))
