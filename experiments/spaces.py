"""What the sweep runs: the sets, and four tuning trials of every model on each.

The first trial is the experiment file as it is; the others change what the tables below
say and nothing else, and were written down before any of their test scores was seen. To
tune another model, add a line.

Before the sweep, runs of 150 to 300 steps looked at Frappe's validation AUC (seed 0).
They chose `token_norm` for MC-MLCC and INFNet, which was too short a look: four trials of
MC-MLCC with the norm came to .9788 to .9802 and overfitted, because an L2 on rows whose
size the norm takes out regularises nothing. They gave way to the present ones (MC-MLCC's
test score of .9828 without the norm was known from before the sweep), and INFNet got
trials without it. TokenMixer-Large's were changed while its first ran (.9801): what it
pools, 32 numbers, looked too narrow.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from rankax.config.base import ConfigError, suggest

SEEDS = (0, 1, 2)  # of the chosen trial

Trials = tuple[dict[str, Any], ...]

# Names in the tables below -> options; other names are the backbone's.
OPTIONS = {
    "table_l2": "optimizer.dense.table_l2",
    "lr": "optimizer.dense.learning_rate",
    "sparse_lr": "optimizer.sparse.learning_rate",
    "init": "model.backbone.embedding_init_std",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExperimentSet:
    """One data set with its protocol.

    Attributes:
        name: of the set.
        config: experiment file and argument, with {model} and {history} to fill in.
        dataset: folder below `--datasets`; "" = none is needed.
        seconds: of a usual run on one core, the guess before there are rows.
        trials: model -> its trials after the first.
        overrides: options that all runs of the set have.
        published: model -> test AUC to compare with.
    """

    name: str
    config: str
    dataset: str
    seconds: int
    trials: Mapping[str, Trials]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    published: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def config_of(self, model: str) -> str:
        """Returns what follows --config=; LR has no embeddings for DIN to weigh."""
        history = "mean" if model == "lr" else "din"
        return self.config.format(model=model, history=history)

    def options(self, model: str) -> list[dict[str, Any]]:
        """Returns the overrides of each trial by full name, the set's not among them.

        Raises:
            ConfigError: no trials of this model on this set.
        """
        if model not in self.trials:
            raise ConfigError(
                f"{self.name} has no trials of {model!r}; "
                f"{suggest(model, tuple(self.trials))}"
            )
        return [
            {OPTIONS.get(k, f"model.backbone.{k}"): v for k, v in trial.items()}
            for trial in ({}, *self.trials[model])
        ]


# ---------------------------------------------------------------- Frappe
# Around the leaderboard's settings (dropout 0.2 or 0.4, table_l2 0.05 or 0.1, tables
# from 1e-4): the other dropout, the other L2, tables that start larger.

_AUTOINT_PLUS = {  # beside an MLP, as the leaderboard has it
    "num_layers": 5,
    "use_scale": True,
    "use_layer_norm": True,
    "hidden_dims": (400, 400, 400),
    "use_batch_norm": True,
    "dropout": 0.1,
    "table_l2": 0.1,
}
FRAPPE: dict[str, Trials] = {
    "lr": ({"lr": 3e-3}, {"table_l2": 1e-4}, {"init": 0.01}),
    "fm": ({"lr": 3e-3}, {"table_l2": 1e-4}, {"init": 0.01}),
    "dnn": ({"dropout": 0.4}, {"table_l2": 0.1}, {"init": 0.01}),
    "deepfm": ({"dropout": 0.4}, {"table_l2": 0.1}, {"init": 0.01}),
    "dlrm": ({"dropout": 0.2}, {"table_l2": 0.05}, {"init": 0.01}),
    "dcnv2": ({"dropout": 0.2}, {"table_l2": 0.1}, {"init": 0.01}),
    "xdeepfm": ({"dropout": 0.4}, {"table_l2": 0.05}, {"init": 0.01}),
    "autoint": ({"table_l2": 0.1}, _AUTOINT_PLUS, {**_AUTOINT_PLUS, "init": 0.01}),
    "finalmlp": (
        {"dropout": 0.2, "dropout2": 0.2},
        {"table_l2": 0.1},
        {"init": 0.01},
    ),
    "wukong": ({"dropout": 0.4}, {"table_l2": 0.1}, {"init": 0.01}),
    "mc_mlcc": ({"table_l2": 0.1}, {"use_batch_norm": True}, {"channel_dim": 10}),
    "rankmixer": ({"dropout": 0.4}, {"table_l2": 0.1}, {"init": 0.01}),
    "tokenmixer_large": (
        {"table_l2": 0.1},
        {"token_dim": 64, "table_l2": 0.1},
        {"token_dim": 64, "table_l2": 0.1, "init": 0.01},
    ),
    "infnet": (
        {"token_norm": False, "init": 0.01},
        {"token_norm": False, "init": 0.05},
        {"variant": "v1", "token_norm": False, "init": 0.01},
    ),
}

# Test AUC of BARS: mean of five runs where a spread is given, else of the best run.
FRAPPE_PUBLISHED = {
    "lr": "0.9356",
    "fm": "0.9671",
    "dnn": "0.9840 ± 0.0006",
    "deepfm": "0.9839 ± 0.0002",
    "dlrm": "0.9840",
    "dcnv2": "0.9838 ± 0.0005",
    "xdeepfm": "0.9841 ± 0.0004",
    "autoint": "0.9831, AutoInt+ 0.9848",
    "finalmlp": "0.9861",
    "wukong": "0.9868 (the paper's)",
}

# ---------------------------------------------------------------- sets with histories

# KuaiRand's networks are best after one epoch: more dropout, slower tables, tables that
# start larger.
_SLOWER = {"sparse_lr": 0.005}
# MC-MLCC with its authors' tables and the norm that makes up for their size.
_NORMED = {"token_norm": True, "init": 0.0}
_KUAIRAND: Trials = ({"dropout": 0.4}, _SLOWER, {"init": 0.05})
KUAIRAND: dict[str, Trials] = {
    "lr": ({"lr": 1e-3}, {"lr": 1e-2}, {"table_l2": 1e-3}),
    "dnn": _KUAIRAND,
    "dcnv2": _KUAIRAND,
    "finalmlp": (
        {"dropout": 0.4, "dropout2": 0.4},
        _SLOWER,
        {"gate1_fields": ("user",), "gate2_fields": ("video",)},
    ),
    "wukong": _KUAIRAND,
    "mc_mlcc": (_NORMED, {"init": 0.05}, {"init": 0.05, "dropout": 0.4}),
    "tokenmixer_large": _KUAIRAND,
    "infnet": (
        {"dropout": 0.4},
        {"token_norm": False, "init": 0.05},
        {"variant": "v1"},
    ),
}

# MovieLens has 80,000 rows, and its file no L2.
_MOVIELENS: Trials = (
    {"dropout": 0.3},
    {"table_l2": 0.01},
    {"dropout": 0.3, "table_l2": 0.1},
)
MOVIELENS: dict[str, Trials] = {
    "lr": ({"lr": 1e-3}, {"table_l2": 1e-4}, {"table_l2": 1e-3}),
    "dnn": _MOVIELENS,
    "dcnv2": _MOVIELENS,
    "finalmlp": (
        {"dropout": 0.3, "dropout2": 0.3},
        {"table_l2": 0.01},
        {"dropout": 0.3, "dropout2": 0.3, "table_l2": 0.1},
    ),
    "wukong": _MOVIELENS,
    "mc_mlcc": (
        _NORMED,
        {"init": 0.05},
        {"init": 0.05, "dropout": 0.3, "table_l2": 0.01},
    ),
    "tokenmixer_large": _MOVIELENS,
    "infnet": (
        {"dropout": 0.3},
        {"token_norm": False, "init": 0.05, "table_l2": 0.01},
        {"variant": "v1"},
    ),
}

# One pass over synthetic clicks overfits nothing: learning rates and starts.
_SYNTHETIC: Trials = ({"lr": 1e-3}, {"sparse_lr": 0.05}, {"init": 0.01})
SYNTHETIC: dict[str, Trials] = {
    "lr": ({"lr": 1e-2}, {"lr": 3e-2}, {"table_l2": 1e-6}),
    "dnn": _SYNTHETIC,
    "dcnv2": _SYNTHETIC,
    "finalmlp": _SYNTHETIC,
    "wukong": _SYNTHETIC,
    "mc_mlcc": ({"lr": 1e-3}, {"sparse_lr": 0.05}, _NORMED),
    "tokenmixer_large": _SYNTHETIC,
    "infnet": ({"lr": 1e-3}, {"sparse_lr": 0.05}, {"variant": "v1"}),
}

SETS = {
    each.name: each
    for each in (
        ExperimentSet(
            name="frappe_x1",
            config="experiments/frappe/{model}.py",
            dataset="frappe_x1",
            seconds=300,
            trials=FRAPPE,
            published=FRAPPE_PUBLISHED,
        ),
        ExperimentSet(
            name="kuairand",
            config="experiments/kuairand.py:{model}-{history}",
            dataset="kuairand",
            seconds=240,
            trials=KUAIRAND,
            # A second chance, so that the plateau's lower rate is tried at all.
            overrides={"eval.metric": "mean/auc", "eval.early_stopping_patience": 2},
        ),
        ExperimentSet(
            name="movielens_100k",
            config="experiments/movielens_100k.py:{model}-{history}",
            dataset="movielens_100k",
            seconds=120,
            trials=MOVIELENS,
        ),
        ExperimentSet(
            name="synthetic_plain",
            config="experiments/synthetic.py:plain-{model}",
            dataset="",
            seconds=90,
            trials=SYNTHETIC,
        ),
        ExperimentSet(
            name="synthetic_hard",
            config="experiments/synthetic.py:hard-{model}",
            dataset="",
            seconds=90,
            trials=SYNTHETIC,
        ),
    )
}
