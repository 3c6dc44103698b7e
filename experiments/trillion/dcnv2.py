r"""DCN-v2 on tables of 1e12 parameters: what would it take? Plan it, for there is no data.

python -m rankax.main --mode=plan --config=experiments/trillion/dcnv2.py --plan.topology=v5p

`dataset.json` beside this file is all that a plan reads: 26 tables of 7.8e9 rows. Another
width of the rows: --config=experiments/trillion/dcnv2.py:64.
"""

import pathlib

from experiments.trillion import __file__ as here
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.models.backbones.dcnv2 import DCNv2Config


def get_config(arg: str = "") -> ExperimentConfig:
    if arg and not arg.isdigit():
        raise ConfigError(f"{arg!r} is no width of the rows; use a number, such as 64")
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(pathlib.Path(here).parent))
    config.model.backbone = DCNv2Config(
        embedding_dim=int(arg or 128), num_cross_layers=3, hidden_dims=(1024, 512, 256)
    )
    config.model.compute_dtype = "bfloat16"
    config.train.batch_size = 65_536
    config.train.num_epochs = 1
    return config
