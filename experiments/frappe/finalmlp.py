r"""FinalMLP on Frappe_x1. Published test AUC: 0.9861 (BARS, best run).
Ours: 0.9860 ± 0.0006 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/finalmlp.py --workdir=runs/frappe/finalmlp-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.finalmlp import FinalMLPConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = FinalMLPConfig(
        embedding_dim=10,
        gate1_fields=("user",),
        gate2_fields=("item",),
        gate_hidden_dims=(400,),
        hidden_dims=(400,),
        hidden_dims2=(100,),
        use_batch_norm=True,
        use_batch_norm2=True,
        dropout=0.4,
        dropout2=0.4,
        num_heads=5,
    )
    return frappe(backbone, table_l2=0.05)
