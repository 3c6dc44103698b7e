r"""TokenMixer-Large on Frappe_x1; no published figure for this data set.
Ours: 0.9805 ± 0.0004 with token_dim 64, table_l2 0.1 (seeds 0, 1, 2; 2-core CPU).

python -m rankax.main --config=experiments/frappe/tokenmixer_large.py --workdir=runs/frappe/tokenmixer_large-0
"""

from experiments.frappe.common import frappe
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.tokenmixer_large import TokenMixerLargeConfig


def get_config(arg: str = "") -> ExperimentConfig:
    backbone = TokenMixerLargeConfig(
        embedding_dim=10, token_dim=32, num_tokens=8, num_blocks=2, dropout=0.2
    )
    return frappe(backbone, table_l2=0.05)
