"""What the experiments on the big sets of the BARS leaderboard share: its protocol.

Adam at 1e-3 for weights and tables, gradient norm clipped at 10, (λ/2)·‖E‖² of whole
tables, tables from N(0, 1e-4), learning rate × 0.1 whenever the validation AUC does not
improve, stop at the `patience`-th time in a row. Validation chooses the checkpoint; the
test split is read once.

In BARS L2, clipping and Adam act on every row in every step. So here all tables are
replicated and trained like dense weights. That takes an accelerator, and about four
times the tables' size on every device (Avazu has the largest: 0.24 GB at D = 16). Tables
sharded by row, of which a step touches some, are quicker, and not that protocol: lazy
Adam, neither L2 nor clipping of tables,

    --config.tables.replicate_below_bytes=1048576 --config.optimizer.dense.table_l2=0.0
    --config.optimizer.sparse.name=lazy_adam --config.optimizer.sparse.learning_rate=0.001

Two things more differ: we stop by AUC where BARS stops by AUC − log loss (Criteo, Avazu)
or AUC + gAUC (TaobaoAd), and its tables have one more row each, for padding.
"""

from collections.abc import Mapping
from typing import NamedTuple

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import BackboneConfig, ExperimentConfig, ParquetConfig
from rankax.models.backbones.infnet import INFNetConfig
from rankax.models.backbones.rankmixer import RankMixerConfig
from rankax.models.backbones.tokenmixer_large import TokenMixerLargeConfig
from rankax.models.backbones.wukong import WukongConfig


class Setting(NamedTuple):
    """A model, and λ of the L2 on its tables."""

    backbone: BackboneConfig
    table_l2: float


def own_settings(embedding_dim: int, *, table_l2: float) -> dict[str, Setting]:
    """Returns settings for models that BARS does not have: ours, and not tuned.

    Wukong is that of the MLCC repository; the others have the defaults of their files.
    """
    backbones = {
        "wukong": WukongConfig(
            embedding_dim=embedding_dim,
            num_layers=2,
            num_fmb_tokens=16,
            num_lcb_tokens=16,
            rank=32,
            fmb_hidden_dims=(),
            hidden_dims=(256, 128, 64, 32),
        ),
        "rankmixer": RankMixerConfig(embedding_dim=embedding_dim),
        "tokenmixer_large": TokenMixerLargeConfig(embedding_dim=embedding_dim),
        "infnet": INFNetConfig(embedding_dim=embedding_dim),
    }
    return {name: Setting(config, table_l2) for name, config in backbones.items()}


def bars(
    dataset: str,
    settings: Mapping[str, Setting],
    model: str,
    *,
    batch_size: int,
    patience: int = 2,
) -> ExperimentConfig:
    """Returns the protocol with one of the settings.

    Args:
        dataset: folder.
        settings: by name of the model.
        model: one of the names.
        batch_size: of training.
        patience: evaluations without a better AUC before the end.

    Raises:
        ConfigError: no setting of this name.
    """
    if model not in settings:
        raise ConfigError(
            f"{model!r} has no setting for {dataset}; {suggest(model, tuple(settings))}"
        )
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=dataset)
    config.model.backbone, config.optimizer.dense.table_l2 = settings[model]
    config.tables.replicate_below_bytes = 1 << 30
    config.train.batch_size = batch_size
    config.train.num_epochs = 100
    config.optimizer.dense.learning_rate = 1e-3
    config.optimizer.dense.clip_norm = 10.0
    config.optimizer.schedule.plateau_factor = 0.1
    config.optimizer.schedule.plateau_patience = 1
    config.eval.early_stopping_patience = patience
    config.eval.batch_size = 16_384
    return config
