r"""DLRM on Frappe_x1. Published test AUC: 0.9840 (BARS, best run, interaction "cat").
Ours: 0.9843 ± 0.0004 with dropout 0.2 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/dlrm.py --workdir=runs/frappe/dlrm-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.dlrm import DLRMConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = DLRMConfig(
        embedding_dim=10,
        interaction="cat",
        hidden_dims=(400, 400, 400),
        use_batch_norm=True,
        dropout=0.4,
    )
    return frappe(backbone, table_l2=0.1)
