import dataclasses
import json

import pytest

from rankax.config.base import Config, ConfigError, completed, config_hash, difference
from rankax.config.experiment import (
    NOT_OF_THE_RUN,
    ExperimentConfig,
    ParquetConfig,
    SourceConfig,
)
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config


def valid_config():
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="somewhere")
    config.model.backbone = named_config("dnn")
    config.train.num_steps = 10
    return config


def test_an_unknown_option_is_answered_with_the_closest_one():
    config = ExperimentConfig()
    with pytest.raises(
        ConfigError, match=r"no option 'batchsize'; did you mean 'batch_size'"
    ):
        config.train.batchsize = 3
    with pytest.raises(TypeError, match="hiden_dims"):
        named_config("dnn", hiden_dims=(3,))


@pytest.mark.parametrize(
    ("section", "option", "value", "message"),
    [
        (
            "train",
            "batch_size",
            "4096",
            "TrainConfig.batch_size: expected int, found str '4096'",
        ),
        ("train", "batch_size", 4096.0, "expected int, found float"),
        ("train", "seed", True, "expected int, found bool"),
        ("data", "shuffle", 1, "expected bool, found int"),
        ("data", "tasks", "ctr", "expected a tuple, found 'ctr'"),
        (
            "data",
            "tasks",
            ("ctr", 3),
            r"DataConfig.tasks\[1\]: expected str, found int",
        ),
        ("data", "source", "path", "expected SourceConfig, found str"),
        ("eval", "metric", None, "expected str, found NoneType"),
    ],
)
def test_a_wrong_type_set_in_a_file_fails_at_the_assignment(
    section, option, value, message
):
    with pytest.raises(ConfigError, match=message):
        setattr(getattr(ExperimentConfig(), section), option, value)


def test_integers_widen_to_float_and_lists_become_tuples():
    config = ExperimentConfig()
    config.optimizer.dense.learning_rate = 1
    config.data.tasks = ["ctr"]
    assert type(config.optimizer.dense.learning_rate) is float
    assert config.data.tasks == ("ctr",)


def test_a_frozen_configuration_refuses_changes_everywhere():
    config = valid_config()
    config.freeze()
    for section, option in ((config.train, "seed"), (config.model.backbone, "dropout")):
        with pytest.raises(ConfigError, match="the configuration is frozen"):
            setattr(section, option, 1)


def test_a_valid_configuration_passes():
    valid_config().validate()


def change(config, path, value):
    *sections, option = path.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, option, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 100}, "must be a multiple of data.lanes = 16; use 96"),
        (
            {"eval.batch_size": 7},
            "eval.batch_size = 7 must be a multiple of data.lanes",
        ),
        ({"train.num_epochs": 1}, "set exactly one of them"),
        ({"train.num_steps": 0}, "set exactly one of them"),
        ({"train.num_steps": -1}, "train.num_steps = -1 must be at least 0"),
        ({"data.lanes": 0}, "data.lanes = 0 must be at least 1"),
        ({"tables.num_shards": 100}, "must be a power of two"),
        ({"optimizer.dense.name": "adamm"}, "'adamm' is unknown; did you mean 'adam'"),
        (
            {"optimizer.sparse.name": "adam"},
            "optimizer.sparse.name = 'adam' is unknown",
        ),
        ({"optimizer.schedule.decay": "cos"}, "did you mean 'cosine'"),
        (
            {"optimizer.dense.weight_decay": 0.1},
            "dense.weight_decay = 0.1 is not used by 'adam' but by adamw; set name",
        ),
        (
            {"optimizer.dense.name": "sgd", "optimizer.dense.b1": 0.5},
            "dense.b1 = 0.5 is not used by 'sgd' but by adam, adamw; set name",
        ),
        ({"optimizer.dense.eps": 0}, "dense.eps = 0 divides 0 by 0"),
        ({"optimizer.dense.b1": 1}, "dense.b1 = 1.0 must be below 1"),
        ({"optimizer.dense.b2": 1}, "dense.b2 = 1.0 must be below 1"),
        ({"optimizer.schedule.plateau_factor": 1.5}, "must be below 1"),
        ({"optimizer.schedule.final_factor": 0.1}, "no use with decay = 'constant'"),
        ({"optimizer.schedule.final_factor": 3}, "must not be above 1, where"),
        ({"optimizer.schedule.plateau_patience": 5}, "is off; set plateau_factor"),
        ({"optimizer.schedule.min_factor": 0.5}, "is off; set plateau_factor"),
        (
            {
                "optimizer.schedule.plateau_factor": 0.1,
                "optimizer.schedule.min_factor": 2,
            },
            "min_factor = 2.0 must not be above 1",
        ),
        ({"eval.top_k": -1}, "eval.top_k = -1 must be at least 0"),
        (
            {"eval.metric": "ctr/ndcg@5", "eval.top_k": 10},
            r"'ctr/ndcg@5' is of the first 5, but eval.top_k = 10; set both",
        ),
        ({"eval.metric": "ctr/hit_rate@5"}, r"first 5, but eval.top_k = 0"),
        ({"data.source": ParquetConfig()}, "data.source.path is empty"),
        ({"data.source": SourceConfig()}, "data.source is not set"),
        (
            {"optimizer.dense.learning_rate": float("nan")},
            "learning_rate = nan must be",
        ),
        (
            {"data.tasks": ("a", "b"), "model.task_weights": (1.0,)},
            r"task_weights has 1 values for 2 tasks",
        ),
    ],
)
def test_broken_rules_are_errors_with_advice(changes, message):
    config = valid_config()
    for path, value in changes.items():
        change(config, path, value)
    with pytest.raises(ConfigError, match=message):
        config.validate()


def test_a_ranking_metric_selects_with_its_own_number():
    config = valid_config()
    config.eval.metric, config.eval.top_k = "next_item/ndcg@5", 5
    config.validate()


def test_all_broken_rules_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        ExperimentConfig().validate()
    assert str(error.value).count("\n  - ") == 3
    assert "model.backbone is not set" in str(error.value)


def test_the_hash_follows_what_decides_the_result_only():
    base = config_hash(valid_config(), ignore=NOT_OF_THE_RUN)
    assert len(base) == 12
    for path, value, is_same in (
        ("train.seed", 1, False),
        ("optimizer.dense.learning_rate", 0.5, False),
        ("model.backbone", named_config("dnn", dropout=0.1), False),
        ("model.backbone", named_config("dcnv2"), False),
        ("observe.log_every", 7, True),
        ("mesh.model", 2, True),
        ("data.source.path", "elsewhere", True),
        ("eval.slices", ("tab",), True),
        ("eval.top_k", 5, True),
    ):
        config = valid_config()
        change(config, path, value)
        assert (config_hash(config, ignore=NOT_OF_THE_RUN) == base) is is_same, path


def test_options_of_a_later_version_change_the_hash_only_where_they_are_used():
    @dataclasses.dataclass(slots=True, kw_only=True)
    class Part(Config):
        a: int = 1

    def section(**later):
        @dataclasses.dataclass(slots=True, kw_only=True)
        class Section(Config):
            part: Part = dataclasses.field(default_factory=Part)
            b: tuple[int, ...] = (1, 2)

        @dataclasses.dataclass(slots=True, kw_only=True)
        class LaterSection(Section):
            c: float = 0.5
            other: Part = dataclasses.field(default_factory=Part)

        LaterSection.__name__ = "Section"
        return LaterSection(**later) if later.pop("is_later", False) else Section()

    old = config_hash(section())
    assert config_hash(section(is_later=True)) == old
    assert config_hash(section(is_later=True, c=0.5, other=Part(a=1))) == old
    changed = [{"c": 0.6}, {"other": Part(a=2)}, {"part": Part(a=2)}, {"b": (1,)}]
    hashes = {config_hash(section(is_later=True, **options)) for options in changed}
    assert len(hashes | {old}) == 5


def test_ignored_options_exist():
    tree = valid_config().to_dict()
    for path in NOT_OF_THE_RUN:
        node = tree
        for part in path.split("."):
            node = node[part]


def test_a_configuration_is_plain_json_and_differences_are_named():
    old, new = valid_config(), valid_config()
    change(new, "train.seed", 3)
    new.model.backbone = named_config("dnn", hidden_dims=(3, 4))
    a, b = old.to_dict(), new.to_dict()
    assert json.loads(json.dumps(a)) == a
    assert a["model"]["backbone"]["type"] == "DNNConfig"
    assert difference(a, b) == [
        "model.backbone.hidden_dims: [256, 128, 64] -> [3, 4]",
        "train.seed: 0 -> 3",
    ]


def test_lists_of_sections_are_checked_completed_and_frozen_too():
    @dataclasses.dataclass(slots=True, kw_only=True)
    class Inner(Config):
        size: int = 1

    outer = dataclasses.make_dataclass(
        "Outer",
        [("parts", tuple[Inner, ...], dataclasses.field(default=()))],
        bases=(Config,),
        slots=True,
        kw_only=True,
    )()
    outer.parts = (Inner(), Inner(size=2))
    tree = outer.to_dict()
    assert tree["parts"][1] == {"type": "Inner", "size": 2}
    before = {"type": "Outer", "parts": [{"type": "Inner"}, tree["parts"][1]]}
    assert completed(before) == tree
    outer.freeze()
    with pytest.raises(ConfigError, match="frozen"):
        outer.parts[1].size = 3
