r"""Wukong on Frappe_x1. Published test AUC: 0.9868 (the paper's; no entry in BARS).
Ours: not run yet. The paper's setting is not known; this one is sized like its peers.

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
