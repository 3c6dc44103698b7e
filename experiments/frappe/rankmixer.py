r"""RankMixer on Frappe_x1; no published figure for this data set.
Ours: 0.9783 ± 0.0007 with embedding_init_std 0.01 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/rankmixer.py --workdir=runs/frappe/rankmixer-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.rankmixer import RankMixerConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = RankMixerConfig(
        embedding_dim=10, token_dim=64, num_tokens=8, num_blocks=2, dropout=0.2
    )
    return frappe(backbone, table_l2=0.05)
