"""Every experiment makes a valid configuration; those on real data run from raw files."""

import dataclasses
import importlib
import json
import re
import shlex

from made_up import avazu as avazu_files
from made_up import criteo as criteo_files
from made_up import reczoo
import pytest

from data_pipelines import amazon, criteo, kuairand, movielens
from experiments import arguments
from rankax.config.base import ConfigError
from rankax.config.experiment import ParquetConfig
from rankax.data.source import load_card
from rankax.models import base
from rankax.models.backbones.dcnv2 import DCNv2Config
from rankax.models.sequences.din import DINConfig
from rankax.observe import accounting
from rankax.train import train
from rankax.training.setup import set_up

# Experiment -> pipeline, tasks, a metric besides the AUC, slices.
EXPERIMENTS = {
    "movielens_100k": (movielens, ["like"], "gauc", {"age", "gender", "history"}),
    "criteo_samples": (criteo, ["ctr"], "log_loss", {"num_missing", "C9"}),
    "kuairand": (
        kuairand,
        ["click", "like", "long_view"],
        "gauc",
        {"tab", "hour", "history", "is_new_video"},
    ),
    "amazon_grocery": (amazon, ["next_item"], "ndcg@5", {"history"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_made_up_raw_files_end_in_a_result(name, tmp_path):
    pipeline, tasks, metric, slices = EXPERIMENTS[name]
    made_up = importlib.import_module(f"made_up.{pipeline.__name__.split('.')[-1]}")
    raw, out, run = tmp_path / "raw", tmp_path / "dataset", tmp_path / "run"
    raw.mkdir()
    made_up.write_published(raw)
    pipeline.main([f"--raw={raw}", f"--out={out}"])

    config = importlib.import_module(f"experiments.{name}").get_config()
    config.data.source.path = str(out)
    config.data.lanes = 8
    config.train.num_epochs, config.train.num_steps = 0, 3
    config.train.batch_size, config.eval.batch_size = 32, 256
    config.observe.tensorboard = False
    train(config, str(run))

    result = json.loads((run / "result.json").read_text())
    for task in tasks:
        assert 0 < result["metrics"][f"{task}/auc"] < 1
        assert 0 <= result["metrics"][f"{task}/{metric}"] < 2
        assert {row["slice"] for row in result["slices"][task]} == slices
    sizes = [row["num_examples"] for row in result["slices"][tasks[0]]]
    assert sum(sizes) == len(slices) * result["metrics"][f"{tasks[0]}/num_examples"]
    assert "<h2>Slices</h2>" in (run / "report.html").read_text()


MODELS = sorted(base.registered())
FILES = ["quickstart", "tabular", *EXPERIMENTS]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("model", MODELS)
def test_every_model_and_history_makes_a_configuration_or_a_clear_error(file, model):
    experiment = importlib.import_module(f"experiments.{file}")
    made = []
    for history in arguments.HISTORIES:
        try:
            config = experiment.get_config(f"{model}-{history}")
        except ConfigError as error:
            assert f"history {history!r} is not for this experiment" in str(error)
            continue
        if file == "tabular":
            config.data.source.path = "somewhere"
        config.validate()
        made.append(json.dumps(config.to_dict()))
        if history == "none":
            assert not {"history", "watched", "liked"} & set(config.data.fields)
            assert config.data.fields
    assert made, "no history is allowed"
    assert len(made) == len(set(made)), "two names mean the same run"


@pytest.mark.parametrize(
    "model",
    [
        "autoint",
        "dcnv2",
        "deepfm",
        "dlrm",
        "dnn",
        "finalmlp",
        "fm",
        "infnet",
        "lr",
        "mc_mlcc",
        "rankmixer",
        "tokenmixer_large",
        "wukong",
        "xdeepfm",
    ],
)
def test_frappe_experiments_make_a_configuration(model):
    experiment = importlib.import_module(f"experiments.frappe.{model}")
    config = experiment.get_config()
    config.validate()
    assert type(config.model.backbone) is base.registered()[model]


# Experiment -> number of fields, folder of the raw files and what makes them up.
LEADERBOARD = {
    "criteo_x4": (39, "criteo", criteo_files.write_published),
    "avazu_x4": (24, "avazu", avazu_files.write_published),
    "movielens_latest": (3, "MovielensLatest_x1", reczoo.write_movielens_latest),
    "taobao_ad": (20, "TaobaoAd_x1", reczoo.write_taobao_ad),
}


@pytest.mark.parametrize("name", LEADERBOARD)
def test_leaderboard_settings_make_configurations(name):
    experiment = importlib.import_module(f"experiments.{name}")
    made = []
    for model in experiment.settings():
        config = experiment.get_config(model)
        config.validate()
        backbone = config.model.backbone
        assert type(backbone) is base.registered()[model.removesuffix("_plus")]
        assert backbone.tables({"a": 7}, num_tasks=1)
        made.append(json.dumps(config.to_dict()))
    assert len(set(made)) == len(made), "two names mean the same run"
    assert experiment.get_config() == experiment.get_config("dcnv2")
    with pytest.raises(ConfigError, match=r"'dcn2' has no setting .* mean 'dcnv2'"):
        experiment.get_config("dcn2")


@pytest.mark.parametrize("name", LEADERBOARD)
def test_leaderboard_commands_lead_from_published_files_to_a_result(
    name, tmp_path, monkeypatch
):
    num_fields, folder, write = LEADERBOARD[name]
    experiment = importlib.import_module(f"experiments.{name}")
    (tmp_path / folder).mkdir()
    write(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(
        r"^python -m (data_pipelines(?:.*\\\n)*.*)$",
        experiment.__doc__ or "",
        flags=re.M,
    )
    pipeline, *flags = shlex.split(command.replace("\\\n", ""))
    importlib.import_module(pipeline).main(flags)

    config = experiment.get_config("lr")  # which compiles quickly
    assert isinstance(config.data.source, ParquetConfig)
    card = load_card(config.data.source)
    assert len(config.data.fields or card.fields) == num_fields
    config.train.num_epochs, config.train.num_steps = 0, 2
    config.train.batch_size = config.eval.batch_size = 64
    config.observe.tensorboard = config.observe.report = False
    result = train(config, "run")
    assert 0 < result["metrics"]["ctr/auc"] < 1
    assert result["metrics"]["ctr/num_examples"] == card.splits["test"].num_rows


def test_taobao_ad_din_has_its_own_settings():
    from experiments import taobao_ad

    config = taobao_ad.get_config("dnn-din")
    config.validate()
    assert config.model.sequence == DINConfig(hidden_dims=(512, 256))
    plain = taobao_ad.get_config("dnn").model.backbone
    assert config.model.backbone == dataclasses.replace(plain, dropout=0.1)


def test_the_part_after_the_colon_names_model_and_history():
    from experiments import kuairand as experiment

    config = experiment.get_config()
    assert type(config.model.backbone) is DCNv2Config
    assert type(config.model.sequence) is DINConfig
    assert "watched" not in experiment.get_config("lr-none").data.fields
    with pytest.raises(
        ConfigError, match=r"history 'dni' is not for this experiment; did you mean"
    ):
        experiment.get_config("dcnv2-dni")
    with pytest.raises(ConfigError, match=r"unknown model 'dnc'"):
        experiment.get_config("dnc-din")


@pytest.mark.parametrize(("size", "number"), [("100m", 106e6), ("500m", 464e6)])
def test_tokenmixer_sizes_are_what_they_are_called(size, number):
    from experiments import tokenmixer_sizes

    costs = []
    for name in (size, f"{size}-sparse"):
        config = tokenmixer_sizes.get_config(name)
        config.validate()
        run = set_up(config)
        costs.append(accounting.account(config, run.schema, run.steps.engine))
    dense, sparse = costs
    assert dense.num_dense_parameters == pytest.approx(number, rel=0.01)
    assert dense.num_active_dense_parameters == dense.num_dense_parameters
    assert sparse.num_dense_parameters == pytest.approx(number, rel=0.01)  # and routers
    assert sparse.num_active_dense_parameters == pytest.approx(number / 2, rel=0.06)
    with pytest.raises(ConfigError, match="unknown size '50m'; did you mean '500m'"):
        tokenmixer_sizes.get_config("50m-sparse")
    with pytest.raises(ConfigError, match="unknown kind 'spare'"):
        tokenmixer_sizes.get_config("100m-spare")
