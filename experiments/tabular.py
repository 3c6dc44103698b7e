r"""Any dataset folder; a start for your own data (docs/data.md).

python -m rankax.main --config=experiments/tabular.py:dcnv2 --config.data.source.path=datasets/shop --workdir=runs/shop

MODEL-din (dcnv2-din) weighs histories by their target: sequence and item need one table.
"""

from experiments import arguments
from rankax.config.experiment import ExperimentConfig, ParquetConfig


def get_config(arg: str = "") -> ExperimentConfig:
    model, history = arguments.parse(arg, default="dcnv2-mean", allowed=("mean", "din"))
    config = ExperimentConfig()
    config.data.source = ParquetConfig()
    arguments.set_model(config, model, history, embedding_init_std=0.01)
    config.train.batch_size = 1024
    config.train.num_epochs = 10
    config.optimizer.schedule.plateau_factor = 0.1
    config.eval.early_stopping_patience = 2
    return config
