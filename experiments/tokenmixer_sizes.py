r"""TokenMixer-Large at ~100 M and ~500 M dense weights, to see what share of a card it uses.

python -m rankax.main --config=experiments/tokenmixer_sizes.py:100m --workdir=runs/sizes/100m \
    --config.observe.profile_steps=100:110

100m, 500m; 100m-sparse, 500m-sparse: 4 of 8 experts a token, half of the weights active.
bfloat16 products, the quickstart's clicks. Every log line has `mfu` where the device's
peak is known; the last steps are free of compilation, and the profile says what the rest
of the time goes to. Nothing here is tuned for a score, and no card has run it yet: on two
CPU cores 100m-sparse trained six steps of 64 and left its profile.

What it takes: --mode=plan --plan.topology=h100:1 instead of --workdir.
"""

from experiments import quickstart
from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models.backbones.tokenmixer_large import TokenMixerLargeConfig

# D and L, at T = H = 16 and n = 2.
SIZES = {"100m": (512, 2), "500m": (768, 4)}


def get_config(arg: str = "") -> ExperimentConfig:
    """Takes SIZE or SIZE-sparse."""
    size, _, kind = (arg or "100m").partition("-")
    if size not in SIZES:
        raise ConfigError(
            f"{arg!r}: unknown size {size!r}; {suggest(size, tuple(SIZES))}"
        )
    if kind not in ("", "sparse"):
        raise ConfigError(
            f"{arg!r}: unknown kind {kind!r}; use {size} or {size}-sparse"
        )
    config = quickstart.get_config("tokenmixer_large")
    token_dim, num_blocks = SIZES[size]
    config.model.backbone = TokenMixerLargeConfig(
        embedding_dim=64,
        embedding_init_std=0.05,
        token_dim=token_dim,
        num_tokens=16,
        num_blocks=num_blocks,
        num_experts=8 if kind else 0,
        num_active_experts=4 if kind else 0,
    )
    config.model.compute_dtype = "bfloat16"
    config.data.source = SyntheticConfig(num_valid_rows=4096)
    config.train.batch_size = 4096
    config.train.num_epochs = 0
    config.train.num_steps = 200
    config.observe.log_every = 20
    config.eval.batch_size = 4096
    config.eval.every_steps = 0
    config.eval.test = False
    return config
