r"""DeepFM on Frappe_x1. Published test AUC: 0.9839 ± 0.0002 (BARS, mean of 5 runs).
Ours: 0.9840 ± 0.0004 (seeds 0, 1, 2; 2-core CPU). The setting is that of the DNN.

python -m rankax.main --config=experiments/frappe/deepfm.py --workdir=runs/frappe/deepfm-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.deepfm import DeepFMConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = DeepFMConfig(
        embedding_dim=10,
        hidden_dims=(400, 400, 400),
        use_batch_norm=True,
        dropout=0.2,
    )
    return frappe(backbone, table_l2=0.05)
