r"""One pass through synthetic clicks in order of time, at a constant learning rate.

python -m rankax.main --config=scaling/studies/synthetic/experiment.py:dnn --workdir=runs/scaling/one

The world of `experiments/synthetic.py:hard`, weak main effects and strong crosses, so
that there is something for a larger network to find, but without its drift: the loss of
the true probabilities is then the floor of every fit.
"""

from experiments import arguments, synthetic
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig

ROWS = 2**18


def get_config(arg: str = "dnn") -> ExperimentConfig:
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=ROWS,
        num_valid_rows=40_000,
        num_test_rows=1_000,
        **synthetic.DIFFICULTIES["hard"] | {"drift_scale": 0.0},
    )
    config.data.tasks = ("ctr",)
    config.data.shuffle = False  # every size and seed meets the rows in one order
    arguments.set_model(config, arg, "mean", embedding_init_std=0.05, dropout=0.0)
    if arg == "mc_mlcc":
        # As wide as the other models' rows at two channels, with a small network.
        config.model.backbone.channel_dim = 8
        config.model.backbone.hidden_dims = (64, 32)
    if arg == "tokenmixer_large":
        config.model.backbone.num_tokens = 8  # of every width
    config.train.batch_size = 512
    config.train.num_epochs = 1
    config.optimizer.dense.learning_rate = 3e-3
    config.optimizer.schedule.warmup_steps = 16
    config.eval.every_steps = ROWS // 512 // 8
    config.eval.batch_size = 4096
    config.eval.metric = "ctr/log_loss"
    config.eval.test = False
    config.observe.tensorboard = config.observe.report = False
    config.observe.log_every = 8
    return config
