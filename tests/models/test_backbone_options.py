"""What the options of every model may be, as a run's configuration is checked."""

import math
import re

import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config, registered
from rankax.models.sequences.din import DINConfig

# 0 is their default and means "off" or "chosen for you"; or, of the last, none.
MAY_BE_ZERO = {
    ("dcnv2", "low_rank"),
    ("rankmixer", "num_tokens"),
    ("tokenmixer_large", "num_tokens"),
    ("tokenmixer_large", "num_heads"),
    ("tokenmixer_large", "residual_interval"),
    ("tokenmixer_large", "num_experts"),
    ("tokenmixer_large", "num_active_experts"),
    ("infnet", "num_shared_tasks"),
}
MUST_HAVE_A_LAYER = {
    ("xdeepfm", "cin_dims"),
    ("finalmlp", "hidden_dims"),
    ("finalmlp", "hidden_dims2"),
    ("mc_mlcc", "dynamic_dims"),
}


def refused():
    """(model, option, a value that means nothing) of every number of every model."""
    for model, config_class in sorted(registered().items()):
        for name, value in config_class().options():
            where = model, name
            if isinstance(value, bool | str):
                continue
            if isinstance(value, int):
                yield *where, -1
                if where not in MAY_BE_ZERO:
                    yield *where, 0
            elif isinstance(value, float):
                yield from ((*where, bad) for bad in (math.nan, math.inf, -0.1))
                if name.startswith("dropout"):
                    yield from ((*where, bad) for bad in (1.0, 1.5))
            elif name.endswith("_dims") or name == "hidden_dims2":
                yield from ((*where, bad) for bad in ((0,), (8, -4)))
                if where in MUST_HAVE_A_LAYER:
                    yield *where, ()
    yield "infnet", "num_blocks", 1
    yield "mc_mlcc", "concat_layers", (0, -1)


def check(backbone, sequence=None):
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="somewhere")
    config.train.num_steps = 10
    config.model.backbone = backbone
    if sequence is not None:
        config.model.sequence = sequence
    config.validate()


@pytest.mark.parametrize("model", sorted(registered()))
def test_values_that_mean_nothing_are_refused_by_name(model):
    check(named_config(model))
    for name, bad in ((n, bad) for m, n, bad in refused() if m == model):
        config = named_config(model)
        setattr(config, name, bad)
        message = rf"model\.backbone\.{name} = {re.escape(str(bad))} (must|is unknown)"
        with pytest.raises(ConfigError, match=message):
            check(config)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        *((m, {n: 0}) for m, n in sorted(MAY_BE_ZERO)),
        ("autoint", {"hidden_dims": ()}),
        ("dnn", {"hidden_dims": ()}),
        ("deepfm", {"hidden_dims": ()}),
        ("xdeepfm", {"hidden_dims": ()}),
        ("dcnv2", {"hidden_dims": ()}),
        ("wukong", {"hidden_dims": (), "fmb_hidden_dims": ()}),
        ("dlrm", {"bottom_dims": ()}),
        ("finalmlp", {"gate_hidden_dims": ()}),
        ("mc_mlcc", {"hidden_dims": ()}),  # its usual dropout, 0.2, is then idle
        ("mc_mlcc", {"concat_layers": ()}),
        ("dnn", {"dropout": 0.99}),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(model, options):
    check(named_config(model, **options))


NO_MLP = "is of the MLP, but hidden_dims is empty; set hidden_dims, or leave it at"


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        *(
            (model, {"hidden_dims": (), "dropout": 0.3}, f"dropout = 0.3 {NO_MLP} 0.0")
            for model in ("dnn", "deepfm", "xdeepfm", "dcnv2", "wukong", "dlrm")
        ),
        *(
            (
                model,
                {"hidden_dims": (), "use_batch_norm": True},
                f"use_batch_norm = True {NO_MLP} False",
            )
            for model in ("dnn", "deepfm", "xdeepfm", "dcnv2", "wukong", "mc_mlcc")
        ),
        ("mc_mlcc", {"hidden_dims": (), "dropout": 0.3}, f"dropout = 0.3 {NO_MLP} 0.2"),
        ("autoint", {"use_batch_norm": True}, f"use_batch_norm = True {NO_MLP} False"),
        (
            "finalmlp",
            {"use_feature_selection": False, "gate_hidden_dims": (32,)},
            "gate_hidden_dims = (32,) is of the gates, but there are none; set "
            "use_feature_selection, or leave it at (64,)",
        ),
        ("rankmixer", {"num_blocks": 0}, "num_blocks = 0 must be at least 1"),
        ("rankmixer", {"token_dim": 33}, "token_dim = 33 is odd, and would be one"),
        (
            "fm",
            {"embedding_init_std": 0.0},
            "embedding_init_std = 0.0 must be above 0; 0.0001 is the default",
        ),
        (
            "tokenmixer_large",
            {"num_experts": 4, "num_active_experts": 5},
            "num_active_experts = 5 must be from 3 to num_experts = 4",
        ),
        (
            "tokenmixer_large",
            {"pool": "max"},
            "pool = 'max' is unknown; known: global_token, mean",
        ),
    ],
)
def test_options_that_nothing_reads_are_refused_with_advice(model, options, message):
    with pytest.raises(ConfigError, match=re.escape(f"model.backbone.{message}")):
        check(named_config(model, **options))


def test_dropout_of_the_attention_needs_no_mlp():
    check(named_config("autoint", dropout=0.3))


def test_a_rule_between_options_is_told_only_when_all_are_in_range():
    # The rule itself would divide by 0.
    with pytest.raises(ConfigError) as error:
        check(named_config("autoint", num_heads=0, dropout=2.0))
    assert str(error.value).count("model.backbone.") == 2
    assert "model.backbone.num_heads = 0 must be at least 1" in str(error.value)


@pytest.mark.parametrize("bad", [(), (0,), (80, -1)])
def test_options_of_the_history_encoder_have_ranges_too(bad):
    check(named_config("dnn"), DINConfig(hidden_dims=(1,)))
    with pytest.raises(ConfigError, match=r"model\.sequence\.hidden_dims = \("):
        check(named_config("dnn"), DINConfig(hidden_dims=bad))
