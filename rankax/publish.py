"""Publication: what a run has learned since its bundle was published, as a delta.

    python -m rankax.main --config=FILE --workdir=RUN --mode=publish

A checkpoint, the newest by default, is compared with the bundle and its deltas; what
has changed becomes the next delta (`rankax.serving.delta`), a small file that servers
apply while they score.
"""

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.export import bundle_folder
from rankax.observe.console import Console
from rankax.parallel import processes
from rankax.serving import delta as deltas
from rankax.serving.delta import Delta
from rankax.training import run_folder, scoring
from rankax.training.publisher import Publisher
from rankax.training.setup import set_up


def publish(
    config: ExperimentConfig,
    workdir: str,
    *,
    step: int | None = None,
    folder: str = "",
    dense_every: int = 1,
    max_bytes: int = 0,
) -> Delta | None:
    """Writes the next delta of the bundle of a run.

    Args:
        config: the run's.
        workdir: its folder; it may be at work.
        step: of the checkpoint; None = the newest.
        folder: of the bundle; "" = `bundle` in the run folder.
        dense_every: dense parameters go with every so many-th delta.
        max_bytes: limit of the rows of a delta; those that have moved furthest go
            first, and the others with later ones. 0 = none.

    Returns:
        The delta; None if that checkpoint is published already.

    Raises:
        ConfigError: no run, checkpoint or bundle there, or an older checkpoint.
        BundleError: the bundle or one of its deltas is damaged.
    """
    processes.needs_one("--mode=publish")
    for name, value, least in (
        ("dense_every", dense_every, 1),
        ("max_delta_bytes", max_bytes, 0),
    ):
        if value < least:
            raise ConfigError(f"--{name}={value} must be at least {least}")
    setup = set_up(config, workdir)
    run = run_folder.find(workdir, config)
    target = bundle_folder(run, folder)
    publisher = Publisher(target, config_hash=run_folder.hash_of(config))
    state, step = scoring.restore(run, setup.steps, step=step, is_newest=True)
    with run_folder.explained(str(target)), Console() as console:
        if step == publisher.published.step:
            console.message(f"{target} is at step {step:,} already; nothing to publish")
            return None
        delta = publisher.publish(
            setup.steps, state, step, dense_every=dense_every, max_bytes=max_bytes
        )
        path = deltas.file_of(target, delta.header.number)
        console.message(f"{path}: {told(delta)}")
    return delta


def told(delta: Delta) -> str:
    """Says what is in a delta."""
    header = delta.header
    text = (
        f"steps {header.previous_step:,} to {header.step:,}, {delta.num_rows:,} rows, "
        f"{delta.num_bytes / 1e6:,.1f} MB"
    )
    if header.has_dense:
        text += ", dense parameters"
    if not header.is_complete:
        text += "; more rows have changed than there was room for"
    return text
