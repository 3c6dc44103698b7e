r"""TaobaoAd_x1 of BARS: 25.0 M shown advertisements, what the user did before, D = 32.

head -n 18797068 TaobaoAd_x1/train.csv > TaobaoAd_x1/first.csv
(head -n 1 TaobaoAd_x1/train.csv; tail -n +18797069 TaobaoAd_x1/train.csv) > TaobaoAd_x1/last.csv
python -m data_pipelines.tabular --train=TaobaoAd_x1/first.csv \
    --valid=TaobaoAd_x1/last.csv --test=TaobaoAd_x1/test.csv --min_count=10 \
    --categorical=userid,cms_segid,cms_group_id,final_gender_code,age_level \
    --categorical=pvalue_level,shopping_level,occupation,new_user_class_level \
    --categorical=adgroup_id,cate_id,campaign_id,customer,brand,pid,btag \
    --numeric=price --separator='^' --sequence=categories:50:cate_id=cate_his \
    --sequence=brands:50:brand=brand_his --sequence=actions:50:btag=btag_his \
    --label=ctr=clk --group=userid --out=datasets/taobao_ad
python -m rankax.main --config=experiments/taobao_ad.py:MODEL --workdir=runs/taobao_ad/MODEL-0

The files are those of huggingface.co/datasets/reczoo/TaobaoAd_x1 (Tianchi data set 56,
Alibaba's terms): train.csv, 21,929,911 rows of seven days, md5 eaabfc8629f23519b04593e26c7522fc,
and test.csv, 3,099,515 of the eighth, f5ae6197e52385496d46e2867c1c8da1. There is no file
for validation. BARS took the test file, and so chose its epochs by it: read its figures
as perhaps 0.001 too high. Here the last seventh of train.csv is for validation, which is
the seventh day if the file is in the order of time (it has no column that tells). As
BARS did: --train=TaobaoAd_x1/train.csv --valid=TaobaoAd_x1/test.csv.

Ours: never run on this set; tried on made-up rows only.
Published gAUC, AUC and log loss of the test file (BARS, best runs), with the settings
below:
    fm            0.5638  0.6234  0.1969
    dnn           0.5733  0.6467  0.1931
    deepfm        0.5697  0.6364  0.1965
    dcnv2         0.5749  0.6495  0.1929
    xdeepfm       0.5729  0.6393  0.1953
    autoint_plus  0.5744  0.6486  0.1930
    dnn-din       0.5765  0.6524  0.1924  (DIN)
mc_mlcc is the authors' best (four channels, so that its tables are 64 wide, no L2):
published AUC 0.6596 in another split and without histories; wukong: 0.6488 in its paper,
the setting not known; not to be compared. lr, finalmlp, wukong, rankmixer,
tokenmixer_large and infnet have settings of ours. MODEL-din weighs histories by their
target; MODEL alone takes their mean.

Deviations from BARS: those of experiments/bars.py; the validation set, and so six days of
training in place of seven; price is one input of an MLP where BARS makes an embedding of
it; the first-order terms of fm, deepfm and xdeepfm share a field's weights with its
history, where BARS has others for the history; and of DIN: an attention of its own for
each history (their lengths differ, because missing ids were taken out), Dice in place of
ReLU, no dropout in the attention.
"""

from experiments import arguments
from experiments.bars import Setting, bars, own_settings
from rankax.config.experiment import ExperimentConfig
from rankax.models.backbones.autoint import AutoIntConfig
from rankax.models.backbones.dcnv2 import DCNv2Config
from rankax.models.backbones.deepfm import DeepFMConfig
from rankax.models.backbones.dnn import DNNConfig
from rankax.models.backbones.finalmlp import FinalMLPConfig
from rankax.models.backbones.fm import FMConfig
from rankax.models.backbones.lr import LRConfig
from rankax.models.backbones.mc_mlcc import MCMLCCConfig
from rankax.models.backbones.xdeepfm import XDeepFMConfig
from rankax.models.sequences.din import DINConfig

D = 32
MLP = (512, 256, 128)
L2 = 5e-6


def settings() -> dict[str, Setting]:
    """Returns name of the model -> its setting."""
    return {
        "lr": Setting(LRConfig(), 5e-7),
        "fm": Setting(FMConfig(embedding_dim=D), 5e-7),
        "dnn": Setting(DNNConfig(embedding_dim=D, hidden_dims=MLP), L2),
        "deepfm": Setting(DeepFMConfig(embedding_dim=D, hidden_dims=MLP), L2),
        "dcnv2": Setting(
            DCNv2Config(
                embedding_dim=D, num_cross_layers=4, hidden_dims=MLP, dropout=0.1
            ),
            L2,
        ),
        "xdeepfm": Setting(
            XDeepFMConfig(
                embedding_dim=D, cin_dims=(16,), hidden_dims=MLP, dropout=0.1
            ),
            L2,
        ),
        "autoint_plus": Setting(
            AutoIntConfig(
                embedding_dim=D,
                num_layers=3,
                attention_dim=128,
                num_heads=1,
                hidden_dims=MLP,
                dropout=0.1,
            ),
            L2,
        ),
        "finalmlp": Setting(
            FinalMLPConfig(
                embedding_dim=D,
                use_feature_selection=False,
                hidden_dims=MLP,
                hidden_dims2=(256,),
                dropout=0.1,
                dropout2=0.1,
            ),
            L2,
        ),
        "mc_mlcc": Setting(MCMLCCConfig(num_channels=4, dynamic_dims=(2, 1)), 0.0),
        **own_settings(D, table_l2=L2),
    }


def get_config(arg: str = "") -> ExperimentConfig:
    model, history = arguments.parse(arg, default="dcnv2-mean", allowed=("mean", "din"))
    known = settings()
    config = bars("datasets/taobao_ad", known, model, batch_size=8192, patience=1)
    if history == "din":
        config.model.sequence = DINConfig(hidden_dims=(512, 256))
        if model == "dnn":
            config.model.backbone = DNNConfig(
                embedding_dim=D, hidden_dims=MLP, dropout=0.1
            )
    return config
