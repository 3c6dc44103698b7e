"""kill -9 anywhere: the same command ends in the same state, by the same examples."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import killed_runs
import pytest
from small_run import ROWS, assert_same_run, make_config

from rankax.train import train


def die_and_go_on(tmp_path, data, *, points, num_epochs):
    """Run folder, how each process ended, and the batches of all of them."""
    plan = tmp_path / "plan.json"
    plan.write_text(
        json.dumps(
            {
                "data": str(data),
                "folder": str(tmp_path / "run"),
                "points": points,
                "num_epochs": num_epochs,
            }
        )
    )
    done = subprocess.run(
        [sys.executable, killed_runs.__file__, str(plan)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    batches = (tmp_path / "examples.jsonl").read_text().splitlines()
    ends = json.loads(done.stdout.splitlines()[-1])
    return tmp_path / "run", ends, [json.loads(line) for line in batches], done.stderr


def assert_every_example_once_per_epoch(batches, num_epochs):
    """Batches that came again after a kill are those that had come before."""
    by_position = {}
    for batch in batches:
        key = json.dumps(batch["position"])
        assert by_position.setdefault(key, batch["rows"]) == batch["rows"]
    rows = [row for own in by_position.values() for row in own]
    assert sorted(rows) == sorted([*range(ROWS["train"])] * num_epochs)


@pytest.mark.slow
def test_a_run_killed_in_a_save_in_an_evaluation_and_in_a_step_ends_bit_equal(
    clean, whole, tmp_path
):
    points = [["save", 2], ["evaluation", 2], ["step", 5]]
    folder, ends, batches, told = die_and_go_on(
        tmp_path,
        clean,
        points=points,
        num_epochs=2,
    )
    statuses = [end[2] for end in ends]
    assert statuses == [-signal.SIGKILL] * 3 + [0], told
    assert ends[0][3] and not ends[-1][3]  # a half save was there, and is gone
    assert_every_example_once_per_epoch(batches, 2)
    assert len(batches) > 20  # some steps were taken twice
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"] == json.loads(json.dumps(whole[1]["metrics"]))
    assert_same_run(make_config(clean), whole[0], folder)


@pytest.mark.slow
def test_a_run_killed_at_twenty_random_points_ends_bit_equal(clean, tmp_path):
    config = make_config(clean)
    config.train.num_epochs = 16
    train(config, str(tmp_path / "whole"))
    folder, ends, batches, told = die_and_go_on(
        tmp_path,
        clean,
        points=killed_runs.points(20, seed=0),
        num_epochs=16,
    )
    assert [end[2] for end in ends] == [-signal.SIGKILL] * 20 + [0], told
    assert {end[0] for end in ends} >= {"step", "save", "evaluation", "time"}
    assert_every_example_once_per_epoch(batches, 16)
    assert_same_run(config, tmp_path / "whole", folder)
    results = [
        json.loads((pathlib.Path(path) / "result.json").read_text())["metrics"]
        for path in (tmp_path / "whole", folder)
    ]
    assert results[0] == results[1]
