"""What all Frappe experiments share: the leaderboard's protocol.

Make the data set first, from train.csv, valid.csv and test.csv as published:
    python -m data_pipelines.frappe --raw=FOLDER --out=datasets/frappe_x1

Protocol of BARS Frappe_x1: embeddings of 10, batches of 4096, Adam at 1e-3, gradient
norm clipped at 10, L2 on whole embedding tables, learning rate × 0.1 whenever the
validation AUC does not improve, stop at the second time in a row. Validation chooses
the checkpoint; the test split is read once.
"""

from rankax.config.experiment import BackboneConfig, ExperimentConfig, ParquetConfig


def frappe(backbone: BackboneConfig, *, table_l2: float) -> ExperimentConfig:
    """Returns the protocol with a model and its published L2 on the tables."""
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="datasets/frappe_x1")
    config.model.backbone = backbone
    config.train.batch_size = 4096
    config.train.num_epochs = 100
    config.optimizer.dense.learning_rate = 1e-3
    config.optimizer.dense.table_l2 = table_l2
    config.optimizer.dense.clip_norm = 10.0
    config.optimizer.schedule.plateau_factor = 0.1
    config.optimizer.schedule.plateau_patience = 1
    config.eval.early_stopping_patience = 2
    config.eval.batch_size = 16_384
    return config
