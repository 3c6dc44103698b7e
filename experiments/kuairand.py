r"""KuaiRand-Pure, its last two weeks: click, like and long view, three histories.

python -m data_pipelines.kuairand --raw=kuairand-pure-late --out=datasets/kuairand
python -m rankax.main --config=experiments/kuairand.py:MODEL --workdir=runs/kuairand/MODEL-0

Ours: test AUC of click, like, long view and time (seeds 0, 1, 2; one CPU core):
    lr-none       0.7282 ± 0.0004  0.8100 ± 0.0031  0.7250 ± 0.0003     9 s
    dcnv2-none    0.7341 ± 0.0006  0.8063 ± 0.0047  0.7314 ± 0.0003    49 s
    dcnv2-mean    0.7435 ± 0.0004  0.8462 ± 0.0032  0.7397 ± 0.0006    93 s
    dcnv2-din     0.7465 ± 0.0008  0.8836 ± 0.0010  0.7438 ± 0.0005   173 s
By the sweep (validation's mean AUC chose among four trials; seeds 0, 1, 2):
    lr-mean               0.7349 ± 0.0006  0.8330 ± 0.0030  0.7313 ± 0.0004
    dnn-din               0.7429 ± 0.0004  0.8678 ± 0.0028  0.7393 ± 0.0009
    dcnv2-din             0.7465 ± 0.0008  0.8834 ± 0.0006  0.7438 ± 0.0007
    finalmlp-din          0.7450 ± 0.0007  0.8764 ± 0.0025  0.7422 ± 0.0003
    wukong-din            0.7415 ± 0.0013  0.8682 ± 0.0016  0.7372 ± 0.0015
    mc_mlcc-din           0.7369 ± 0.0047  0.8641 ± 0.0007  0.7307 ± 0.0068
    tokenmixer_large-din  0.7406 ± 0.0040  0.8729 ± 0.0059  0.7382 ± 0.0027
    infnet-din            0.7361 ± 0.0065  0.8682 ± 0.0042  0.7320 ± 0.0087
All but four as the file has them: dnn, wukong, tokenmixer_large with
optimizer.sparse.learning_rate 0.005, infnet with token_norm False and
embedding_init_std 0.05.
Published for the whole log, which is not comparable: INFNet .7736, .8960, .7727.
"""

from data_pipelines import kuairand
from experiments import arguments
from rankax.config.experiment import ExperimentConfig, ParquetConfig

OPTIONS = {
    "embedding_init_std": 0.01,
    "dropout": 0.2,
    "dropout2": 0.2,  # of FinalMLP's second network
    "channel_dim": 8,  # of MC-MLCC's two channels: rows as wide as the other models'
}


def get_config(arg: str = "") -> ExperimentConfig:
    model, history = arguments.parse(arg, default="dcnv2-din")
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="datasets/kuairand")
    if history == "none":
        config.data.fields = arguments.without_sequences(kuairand.FIELDS)
    arguments.set_model(config, model, history, **OPTIONS)
    config.train.batch_size = 1024
    config.train.num_epochs = 10
    config.optimizer.dense.learning_rate = 5e-3 if model == "lr" else 1e-3
    config.optimizer.schedule.plateau_factor = 0.1
    config.eval.early_stopping_patience = 1  # networks are best after one epoch
    config.eval.batch_size = 4096
    return config
