import gzip
import json

import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.progressive import progressive
from rankax.train import train

WEEK = 7 * 86_400


def make_config(steps, *, num_steps=12):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=4_096, num_valid_rows=128, num_test_rows=128, rows_per_group=512
    )
    config.data.lanes = 8
    config.model.backbone = named_config("lr")
    config.train.batch_size = 128
    config.train.num_steps = num_steps
    config.checkpoint.every_steps = 4
    config.observe.tensorboard = False
    config.observe.report = False
    config.observe.profile_steps = steps
    return config


def traced(folder):
    """For each trace, oldest first: the numbers of its steps, ascending."""
    found = []
    for path in sorted(folder.glob("profile/process_0/**/*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        numbers = [
            int(event["args"]["step_num"])
            for event in events
            if event.get("name") == "train" and "step_num" in event.get("args", {})
        ]
        found.append(sorted(numbers))
    return found


def test_a_range_of_steps_is_traced_and_no_other(tmp_path):
    train(make_config("3:6"), str(tmp_path))
    assert traced(tmp_path) == [[4, 5, 6]]
    assert len(list(tmp_path.glob("profile/process_0/**/*.xplane.pb"))) == 1


def test_without_a_range_nothing_is_traced(tmp_path):
    train(make_config(""), str(tmp_path))
    assert not (tmp_path / "profile").exists()


def test_a_run_that_ends_within_the_range_keeps_what_it_traced(tmp_path):
    train(make_config("10:99"), str(tmp_path))
    assert traced(tmp_path) == [[11, 12]]


def test_a_continued_run_traces_what_is_left_of_the_range(tmp_path, monkeypatch):
    """The first process is stopped after step 8, which is saved."""
    from rankax import train as trainer
    from rankax.training.interruption import Interrupted

    class Votes(trainer.Votes):
        def cast(self, number):
            self.count = getattr(self, "count", 0) + 1
            return 15 if self.count == 8 else 0

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "Votes", Votes)
        with pytest.raises(Interrupted):
            train(make_config("6:10"), str(tmp_path))
    assert traced(tmp_path) == [[7, 8]]
    train(make_config("6:10"), str(tmp_path))
    assert traced(tmp_path) == [[7, 8], [9, 10]]


@pytest.mark.slow
def test_a_progressive_run_is_traced_across_its_windows(tmp_path):
    config = make_config("5:8", num_steps=0)
    config.train.num_epochs = 1
    config.data.time_window = WEEK // 2
    config.checkpoint.every_steps = 0
    config.progressive.publish = False
    progressive(config, str(tmp_path), folder="", rows="float32")
    assert traced(tmp_path) == [[6, 7, 8]]


@pytest.mark.parametrize("steps", ["100", "9:3", "4:4", "a:b", "1:2:3", "-1:4"])
def test_a_range_of_another_form_is_refused(steps):
    with pytest.raises(ConfigError, match=r"profile_steps = .* must be FIRST:LAST"):
        make_config(steps).validate()
