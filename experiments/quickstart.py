r"""Synthetic clicks with known probabilities; needs no download.

python -m rankax.main --config=experiments/quickstart.py --workdir=runs/quickstart

Another model: --config=experiments/quickstart.py:dcnv2 (lr, dnn, dcnv2, mc_mlcc).
"""

from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models import backbones  # noqa: F401  registers the names
from rankax.models.base import named_config


def get_config(arg: str = "") -> ExperimentConfig:
    config = ExperimentConfig()
    config.data.source = SyntheticConfig()
    config.data.tasks = ("ctr",)
    config.model.backbone = named_config(arg or "mc_mlcc")
    config.train.batch_size = 4096
    config.train.num_epochs = 1
    config.optimizer.schedule.decay = "linear"
    return config
