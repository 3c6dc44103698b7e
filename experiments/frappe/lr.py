r"""LR on Frappe_x1. Published test AUC: 0.9356 (BARS, best run).
Ours: 0.9340 ± 0.0002 with learning_rate 0.003 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/lr.py --workdir=runs/frappe/lr-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.lr import LRConfig


def get_config(arg: str = "") -> ExperimentConfig:
    config = frappe(LRConfig(), table_l2=0.0)
    config.train.num_epochs = 300  # one weight an id at 1e-3 a step takes its time
    return config
