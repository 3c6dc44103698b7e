r"""DNN on Frappe_x1. Published test AUC: 0.9840 ± 0.0006 (BARS, mean of 5 runs).
Ours: 0.9840 ± 0.0005 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/dnn.py --workdir=runs/frappe/dnn-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.dnn import DNNConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = DNNConfig(
        embedding_dim=10,
        hidden_dims=(400, 400, 400),
        use_batch_norm=True,
        dropout=0.2,
    )
    return frappe(backbone, table_l2=0.05)
