r"""Synthetic clicks with known probabilities; needs no download.

python -m rankax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Another model: --config=experiments/quickstart.py:dcnv2 (any of docs/models.md), or
dcnv2-din, dcnv2-none for another use of the histories than their mean.
Every model has the same data, batches, optimizer and schedule; scores: docs/results.md.
"""

from experiments import arguments
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import synthetic


def get_config(arg: str = "") -> ExperimentConfig:
    model, history = arguments.parse(arg, default="mc_mlcc-mean")
    config = ExperimentConfig()
    config.data.source = SyntheticConfig()
    config.data.tasks = ("ctr",)
    if history == "none":
        config.data.fields = arguments.without_sequences(
            synthetic.card(config.data.source).fields
        )
    # No dropout: in one pass over the data nothing is seen twice, so nothing overfits.
    arguments.set_model(config, model, history, embedding_init_std=0.05, dropout=0.0)
    config.train.batch_size = 1024
    config.train.num_epochs = 1
    config.optimizer.dense.learning_rate = 3e-3
    config.optimizer.schedule.decay = "linear"
    config.eval.every_steps = 500
    config.eval.batch_size = 8192
    return config
