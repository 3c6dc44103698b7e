r"""DCN-v2 on Frappe_x1. Published test AUC: 0.9838 ± 0.0005 (BARS, mean of 5 runs).
Ours: 0.9844 ± 0.0005 with embedding_init_std 0.01 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/dcnv2.py --workdir=runs/frappe/dcnv2-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.dcnv2 import DCNv2Config


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = DCNv2Config(
        embedding_dim=10,
        num_cross_layers=4,
        hidden_dims=(400, 400, 400),
        use_batch_norm=True,
        dropout=0.4,
    )
    return frappe(backbone, table_l2=0.05)
