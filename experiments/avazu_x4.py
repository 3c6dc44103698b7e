r"""Avazu_x4_001 of BARS: 40.4 M mobile clicks, 24 fields of ids, min count 2, D = 16.

python -m data_pipelines.avazu --raw=avazu --split=bars_x4 --min_count=2 --out=datasets/avazu_x4
python -m rankax.main --config=experiments/avazu_x4.py:MODEL --workdir=runs/avazu_x4/MODEL-0

`avazu` holds Kaggle's train.gz (the set avazu of data_pipelines.download) or train.csv.

Ours: never run on the full set; tried on samples only.
Published test AUC and log loss (BARS, best runs), with the settings below:
    lr            0.7775  0.3815        dcnv2         0.7931  0.3719
    fm            0.7887  0.3754        xdeepfm       0.7933  0.3718
    dnn           0.7928  0.3722        autoint       0.7891  0.3745
    deepfm        0.7930  0.3719        autoint_plus  0.7902  0.3746
    finalmlp      0.7935  0.3719
autoint_plus is the leaderboard's name of a run without MLP: it differs from autoint in
the L2 alone. mc_mlcc is the authors' best (four channels, so that its tables are 64
wide, no L2): published 0.7945, 0.3720 in a protocol of their own, in which their DNN has
0.7844; not to be compared. dlrm has its setting of Avazu_x1, and wukong, rankmixer,
tokenmixer_large and infnet have ours (experiments/bars.py): no published figure.

Deviations from BARS: those of experiments/bars.py.
"""

from experiments.bars import Setting, bars, own_settings
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.autoint import AutoIntConfig
from rankax.models.backbones.dcnv2 import DCNv2Config
from rankax.models.backbones.deepfm import DeepFMConfig
from rankax.models.backbones.dlrm import DLRMConfig
from rankax.models.backbones.dnn import DNNConfig
from rankax.models.backbones.finalmlp import FinalMLPConfig
from rankax.models.backbones.fm import FMConfig
from rankax.models.backbones.lr import LRConfig
from rankax.models.backbones.mc_mlcc import MCMLCCConfig
from rankax.models.backbones.xdeepfm import XDeepFMConfig

D = 16


def settings() -> dict[str, Setting]:
    """Returns name of the model -> its setting."""
    autoint = {
        name: AutoIntConfig(
            embedding_dim=D,
            num_layers=7,
            attention_dim=128,
            num_heads=1,
            use_residual=False,
            use_wide=True,
        )
        for name in ("autoint", "autoint_plus")
    }
    return {
        "lr": Setting(LRConfig(), 1e-8),
        "fm": Setting(FMConfig(embedding_dim=D), 1e-6),
        "dnn": Setting(DNNConfig(embedding_dim=D, hidden_dims=(1000,) * 4), 1e-8),
        "deepfm": Setting(DeepFMConfig(embedding_dim=D, hidden_dims=(2000,) * 4), 0.0),
        "dcnv2": Setting(
            DCNv2Config(embedding_dim=D, num_cross_layers=4, hidden_dims=(2000,) * 4),
            1e-9,
        ),
        "xdeepfm": Setting(
            XDeepFMConfig(embedding_dim=D, cin_dims=(276,), hidden_dims=(500,) * 3),
            0.0,
        ),
        "autoint": Setting(autoint["autoint"], 1e-6),
        "autoint_plus": Setting(autoint["autoint_plus"], 1e-7),
        "finalmlp": Setting(
            FinalMLPConfig(
                embedding_dim=D,
                use_feature_selection=False,
                hidden_dims=(2000,) * 3,
                hidden_dims2=(500,),
                use_batch_norm=True,
                num_heads=20,
            ),
            1e-9,
        ),
        "dlrm": Setting(
            DLRMConfig(
                embedding_dim=D,
                hidden_dims=(400, 400, 400),
                use_batch_norm=True,
                dropout=0.3,
            ),
            0.01,
        ),
        "mc_mlcc": Setting(MCMLCCConfig(num_channels=4), 0.0),
        **own_settings(D, table_l2=1e-9),
    }


def get_config(arg: str = "") -> ExperimentConfig:
    model = arg or "dcnv2"
    return bars("datasets/avazu_x4", settings(), model, batch_size=10_000)
