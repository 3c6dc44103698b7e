r"""Wukong on Frappe_x1. Published test AUC: 0.9868 (the paper's; no entry in BARS).
Ours: 0.9808 ± 0.0008 with embedding_init_std 0.01 (seeds 0, 1, 2; 2-core CPU). The paper's
setting and training negatives are not known; this one is sized like its peers.

python -m rankax.main --config=experiments/frappe/wukong.py --workdir=runs/frappe/wukong-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.wukong import WukongConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = WukongConfig(
        embedding_dim=10,
        hidden_dims=(400, 400, 400),
        use_batch_norm=True,
        dropout=0.2,
    )
    return frappe(backbone, table_l2=0.05)
