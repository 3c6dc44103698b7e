r"""One pass through KuaiRand-Pure's last two weeks in order of time, clicks alone.

python -m rankax.main --config=scaling/studies/kuairand/experiment.py:dnn --workdir=runs/scaling/one
"""

from experiments import kuairand
from rankax.config.experiment import ExperimentConfig


def get_config(arg: str = "dnn") -> ExperimentConfig:
    config = kuairand.get_config(f"{arg}-mean")
    config.data.tasks = ("click",)
    config.data.shuffle = False  # every size and seed meets the rows in one order
    config.model.backbone.dropout = 0.0
    if arg == "mc_mlcc":
        config.model.backbone.hidden_dims = (64, 32)
    config.train.batch_size = 512
    config.train.num_epochs = 1
    config.optimizer.schedule.plateau_factor = 0.0
    config.optimizer.schedule.warmup_steps = 16
    config.eval.early_stopping_patience = 0
    config.eval.every_steps = 38  # an eighth of the 301 steps
    config.eval.metric = "click/log_loss"
    config.eval.test = False
    config.observe.tensorboard = config.observe.report = False
    config.observe.log_every = 5
    return config
