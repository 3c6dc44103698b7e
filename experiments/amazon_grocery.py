r"""Amazon grocery."""

from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.models import backbones  # noqa: F401  registers the names
from rankax.models.base import named_config
from rankax.models.sequences.din import DINConfig


def get_config(arg: str = "") -> ExperimentConfig:
    model, _, history = (arg or "dcnv2-din").partition("-")
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="datasets/amazon_grocery")
    config.data.fields = ("item", "category") + (
        () if history == "none" else ("history",)
    )
    config.model.backbone = named_config(
        model, embedding_init_std=0.01, embedding_dim=32
    )
    if history == "din":
        config.model.sequence = DINConfig(hidden_dims=(32, 16))
    config.train.batch_size = 2048
    config.train.num_epochs = 10
    config.optimizer.dense.learning_rate = 1e-3
    config.tables.replicate_below_bytes = 1 << 22
    config.optimizer.schedule.plateau_factor = 0.5
    config.eval.metric = "next_item/ndcg@5"
    config.eval.top_k = 5
    config.eval.early_stopping_patience = 2
    config.eval.batch_size = 16384
    return config
