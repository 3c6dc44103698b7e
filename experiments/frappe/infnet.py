r"""INFNet on Frappe_x1, which has no histories; no published figure for this data set.
Ours: 0.9809 ± 0.0007 with variant v1, token_norm False, embedding_init_std 0.01
(seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/infnet.py --workdir=runs/frappe/infnet-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.infnet import INFNetConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = INFNetConfig(
        embedding_dim=10, width=64, num_blocks=2, tower_dims=(400, 400), dropout=0.2
    )
    return frappe(backbone, table_l2=0.05)
