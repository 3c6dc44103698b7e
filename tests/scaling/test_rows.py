import json

import pytest

from scaling import rows, synthetic

LAW = synthetic.Law(noise=1e-4)


def _rows(**more):
    sizes = [1e5, 1e6, 1e7]
    return synthetic.rows(LAW, sizes=sizes, seeds=2, checkpoints=(10, 100), **more)


def _spoiled(found, size, **values):
    return [r | values if r["size_name"] == size else r for r in found]


def _final(found):
    return rows.select_final(found, axis="n_dense_active", metric="logloss")


def test_fit_takes_the_last_checkpoint_of_each_run_on_the_test_split():
    selection = _final(_rows())
    assert len(selection.used) == 6
    assert all(r["final"] and r["split"] == "test" for r in selection.used)
    assert not selection.excluded and not selection.held_out


def test_valid_split_stands_in_where_nothing_was_tested():
    untested = [r for r in _rows() if r["split"] == "valid"]
    selection = _final(untested)
    assert len(selection.used) == 6
    assert {r["samples_seen"] for r in selection.used} == {100}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"diverged": True}, rows.DIVERGED),
        ({"complete": False}, rows.INCOMPLETE),
        ({"lr_stage": True}, rows.LEARNING_RATE),
        ({"data_limited": True}, rows.DATA_LIMITED),
        ({"held_out": True}, rows.HELD_OUT),
        ({"logloss": None}, rows.NO_VALUE),
        ({"logloss": float("nan")}, rows.NO_VALUE),
        ({"n_dense_active": None}, rows.NO_AXIS),
    ],
)
def test_unsound_runs_never_enter_a_fit_of_size(values, reason):
    selection = _final(_spoiled(_rows(), "s1", **values))
    assert {r["size_name"] for r in selection.used} == {"s0", "s2"}
    assert [why for _, why in selection.excluded] == [reason] * 2
    assert {r["size_name"] for r, _ in selection.excluded} == {"s1"}
    assert len(selection.held_out) == (2 if reason == rows.HELD_OUT else 0)


@pytest.mark.parametrize("values", [{"diverged": True}, {"complete": False}])
def test_flaw_comes_before_being_held_out(values):
    selection = _final(_spoiled(_rows(), "s2", held_out=True, **values))
    assert not selection.held_out and len(selection.used) == 4


def test_run_without_a_final_row_is_excluded_once():
    found = [r for r in _rows() if not (r["run_id"].endswith("s0-0") and r["final"])]
    found = [r | {"complete": not r["run_id"].endswith("s0-0")} for r in found]
    selection = _final(found)
    assert [(r["run_id"], why) for r, why in selection.excluded] == [
        ("dnn-width-s0-0", rows.INCOMPLETE)
    ]
    assert len(selection.used) == 5


def test_joint_fit_keeps_data_limited_runs_and_all_checkpoints():
    found = _spoiled(_rows(), "s2", data_limited=True)
    selection = rows.select_checkpoints(found, metric="logloss")
    assert len(selection.used) == 12
    assert {r["split"] for r in selection.used} == {"valid"}
    diverged = _spoiled(found, "s1", diverged=True)
    selection = rows.select_checkpoints(diverged, metric="logloss")
    assert {r["size_name"] for r in selection.used} == {"s0", "s2"}


def test_checkpoint_that_is_read_twice_counts_once():
    found = _rows()
    again = [r | {"final": not r["final"]} for r in found if r["split"] == "valid"]
    selection = rows.select_checkpoints([*again, *found], metric="logloss")
    assert len(selection.used) == 12


def test_auc_is_fitted_as_what_it_lacks():
    row = _rows()[0]
    assert rows.metric_value(row, "1-auc") == pytest.approx(1 - row["auc"])
    assert rows.metric_value(row, "logloss") == row["logloss"]
    assert rows.metric_value(row | {"gauc": None}, "1-gauc") is None


def test_file_is_read_up_to_a_torn_line(tmp_path):
    found = json.loads(json.dumps(_rows(), default=float))
    text = "".join(json.dumps(row) + "\n" for row in found)
    (tmp_path / "runs.jsonl").write_text(text + '{"run_id": "to')
    assert rows.read(tmp_path) == found
    with pytest.raises(FileNotFoundError, match=r"python -m scaling.collect"):
        rows.read(tmp_path / "elsewhere")
