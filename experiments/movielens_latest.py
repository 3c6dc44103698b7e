r"""MovielensLatest_x1 of BARS: which tags do users give to movies? 2.0 M rows, D = 10.

python -m data_pipelines.tabular --train=MovielensLatest_x1/train.csv \
    --valid=MovielensLatest_x1/valid.csv --test=MovielensLatest_x1/test.csv \
    --categorical=user_id,item_id,tag_id --label=ctr=label --group=user_id \
    --out=datasets/movielens_latest
python -m rankax.main --config=experiments/movielens_latest.py:MODEL --workdir=runs/movielens_latest/MODEL-0

The files are those of huggingface.co/datasets/reczoo/MovielensLatest_x1: 1,404,801,
401,372 and 200,686 rows; md5 of test.csv 54e8c6baff2e059fe067fb9b69e692d0. Licence:
GroupLens, research, no redistribution.

Ours: never run on this set; tried on made-up rows only.
Published test AUC and log loss (BARS, best runs; ± where it gives five), with the
settings below:
    lr            0.9342           0.3201
    fm            0.9434           0.2729
    dnn           0.9677 ± 0.0003  0.2388
    deepfm        0.9682 ± 0.0002  0.2138
    dlrm          0.9691           0.2150
    dcnv2         0.9687 ± 0.0004  0.2161
    xdeepfm       0.9681 ± 0.0009  0.2301
    autoint       0.9663           0.2228
    autoint_plus  0.9692           0.2148
    finalmlp      0.9720           0.1966
Wukong's paper tells 0.9723 of a MovieLens, its setting is not known. mc_mlcc, wukong,
rankmixer, tokenmixer_large and infnet have settings of ours: no published figure.

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

D = 10
MLP = (400, 400, 400)


def settings() -> dict[str, Setting]:
    """Returns name of the model -> its setting."""
    attention = {
        "num_layers": 2,
        "attention_dim": 128,
        "num_heads": 4,
        "use_scale": True,
        "use_layer_norm": True,
        "use_wide": True,
    }
    normed = {"hidden_dims": MLP, "use_batch_norm": True}
    return {
        "lr": Setting(LRConfig(), 5e-6),
        "fm": Setting(FMConfig(embedding_dim=D), 5e-6),
        "dnn": Setting(DNNConfig(embedding_dim=D, dropout=0.4, **normed), 0.005),
        "deepfm": Setting(DeepFMConfig(embedding_dim=D, dropout=0.3, **normed), 0.01),
        "dlrm": Setting(
            DLRMConfig(embedding_dim=D, interaction="cat", dropout=0.2, **normed),
            0.01,
        ),
        "dcnv2": Setting(
            DCNv2Config(embedding_dim=D, num_cross_layers=5, dropout=0.2, **normed),
            0.01,
        ),
        "xdeepfm": Setting(
            XDeepFMConfig(
                embedding_dim=D, cin_dims=(64,) * 3, hidden_dims=MLP, dropout=0.3
            ),
            0.005,
        ),
        "autoint": Setting(AutoIntConfig(embedding_dim=D, **attention), 0.01),
        "autoint_plus": Setting(
            AutoIntConfig(embedding_dim=D, dropout=0.1, **attention, **normed),
            0.01,
        ),
        "finalmlp": Setting(
            FinalMLPConfig(
                embedding_dim=D,
                gate_hidden_dims=(800,),
                hidden_dims=(400,),
                hidden_dims2=(800,),
                use_batch_norm=True,
                use_batch_norm2=True,
                dropout=0.4,
                dropout2=0.2,
                num_heads=10,
            ),
            0.01,
        ),
        "mc_mlcc": Setting(
            MCMLCCConfig(
                num_channels=2,
                channel_dim=D,
                hidden_dims=MLP,
                embedding_init_std=0.05,
            ),
            0.01,
        ),
        **own_settings(D, table_l2=0.01),
    }


def get_config(arg: str = "") -> ExperimentConfig:
    model = arg or "dcnv2"
    return bars("datasets/movielens_latest", settings(), model, batch_size=4096)
