import json
import struct
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from rankax.observe.writers import MetricsWriter, read_metrics


def written(folder, steps, *, resume_step=0, tensorboard=False):
    writer = MetricsWriter(folder, tensorboard=tensorboard, resume_step=resume_step)
    for step in steps:
        writer.write(
            step=step, split="train", epoch=step / 100, values={"loss": 1 / step}
        )
    writer.close()


def events(folder):
    """Reads TensorBoard event files: records of length, checksum, event, checksum."""
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        at = 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size


def test_line_is_flat_json_and_flushed_at_once(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    values = {"ctr/auc": np.float32(0.75), "ctr/log_loss": 0.5}
    writer.write(step=np.int64(20), split="valid", epoch=1, values=values)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == (
        '{"step": 20, "split": "valid", "epoch": 1.0, "ctr/auc": 0.75, '
        '"ctr/log_loss": 0.5}\n'
    )
    writer.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_undefined_number_is_null(tmp_path, value):
    writer = MetricsWriter(tmp_path, tensorboard=True)
    writer.write(step=1, split="valid", epoch=0.1, values={"ctr/auc": value, "b": 1})
    writer.close()
    (line,) = read_metrics(tmp_path)
    assert line["ctr/auc"] is None and line["b"] == 1
    assert {v.tag for e in events(tmp_path) for v in e.summary.value} == {"valid/b"}


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path):
    written(tmp_path, range(1, 8))
    written(tmp_path, range(6, 10), resume_step=5)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 10))


def test_resuming_drops_the_test_line_which_comes_again_at_the_end(tmp_path):
    for _ in range(2):
        writer = MetricsWriter(tmp_path, tensorboard=False, resume_step=5)
        for split in ("valid", "test"):
            writer.write(step=5, split=split, epoch=1, values={})
        writer.close()
    lines = [line["split"] for line in read_metrics(tmp_path)]
    assert lines == ["valid", "valid", "test"]


def test_starting_over_drops_everything(tmp_path):
    written(tmp_path, range(1, 8))
    written(tmp_path, [1, 2])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_line_torn_by_a_kill_is_forgotten(tmp_path):
    written(tmp_path, [1, 2, 3])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-10])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
    written(tmp_path, [3, 4], resume_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_damage_before_the_last_line_is_an_error(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "split": "train"}\n{"st\n{"step": 3}\n'
    )
    with pytest.raises(ValueError, match=r"metrics.jsonl, line 2 is not JSON"):
        read_metrics(tmp_path)


def test_no_half_written_file_is_left(tmp_path):
    written(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_gets_every_number_and_forgets_after_a_resume(
    tmp_path, monkeypatch
):
    # All within a second, the unit of the files' names.
    monkeypatch.setattr(time, "time", lambda: 1.8e9)
    written(tmp_path, [1, 2, 3], tensorboard=True)
    written(tmp_path, [3], resume_step=2, tensorboard=True)
    written(tmp_path, [3], resume_step=2, tensorboard=True)
    seen = list(events(tmp_path))
    scalars = [(e.step, v.tag, v.simple_value) for e in seen for v in e.summary.value]
    assert scalars[:2] == [(1, "train/loss", 1.0), (2, "train/loss", 0.5)]
    assert [step for step, *_ in scalars] == [1, 2, 3, 3, 3]
    # TensorBoard drops earlier events from the step of a START event on.
    starts = [
        e.step for e in seen if e.session_log.status == event_pb2.SessionLog.START
    ]
    assert starts == [0, 3, 3]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
