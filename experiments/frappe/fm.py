r"""FM on Frappe_x1. Published test AUC: 0.9671 (BARS, best run).
Ours: 0.9688 ± 0.0006 with learning_rate 0.003 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/fm.py --workdir=runs/frappe/fm-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.fm import FMConfig


def get_config(arg: str = "") -> ExperimentConfig:
    config = frappe(FMConfig(embedding_dim=10), table_l2=0.0)
    config.train.num_epochs = 300  # like LR: no network speeds the factors up
    return config
