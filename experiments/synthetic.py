r"""Synthetic clicks in two difficulties, a quarter of the quickstart's rows, one pass.

python -m rankax.main --config=experiments/synthetic.py:hard-MODEL --workdir=runs/synthetic/hard-MODEL-0

plain: the quickstart's world. hard: weaker main effects, stronger crosses and triples,
and more drift between what is trained on and what is tested.
"""

from experiments import quickstart
from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models.backbones.mc_mlcc import MCMLCCConfig

DIFFICULTIES = {
    "plain": {},
    "hard": {
        "main_scale": 0.5,
        "cross_scale": 1.5,
        "triple_scale": 2.0,
        "drift_scale": 2.0,
    },
}


def get_config(arg: str = "") -> ExperimentConfig:
    """Takes DIFFICULTY-MODEL or DIFFICULTY-MODEL-HISTORY."""
    difficulty, _, model = (arg or "plain").partition("-")
    if difficulty not in DIFFICULTIES:
        raise ConfigError(
            f"{arg!r}: unknown difficulty {difficulty!r}; "
            f"{suggest(difficulty, tuple(DIFFICULTIES))}"
        )
    config = quickstart.get_config(model)
    if isinstance(config.model.backbone, MCMLCCConfig):
        config.model.backbone.channel_dim = 8  # rows as wide as the other models'
    scales = DIFFICULTIES[difficulty]
    config.data.source = SyntheticConfig(num_train_rows=500_000, **scales)
    config.eval.every_steps = 125
    return config
