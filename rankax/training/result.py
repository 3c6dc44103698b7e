"""What `result.json` says of every run, whatever it was for."""

import time
from typing import Any

from rankax.config.experiment import ExperimentConfig
from rankax.observe import environment, traffic
from rankax.observe.accounting import Cost
from rankax.training import run_folder
from rankax.training.progress import Progress
from rankax.training.setup import Setup


def describe(
    config: ExperimentConfig,
    setup: Setup,
    progress: Progress,
    cost: Cost,
    *,
    started: float,
) -> dict[str, Any]:
    """Returns amounts, times, costs, and what was run on what.

    Args:
        config: the run's.
        setup: likewise.
        progress: at its end.
        cost: of its model.
        started: `time.monotonic()` when this process began with it.
    """
    examples_per_second = progress.examples_per_second
    return {
        "examples_seen": progress.examples_seen,
        "examples_per_second": examples_per_second,
        "mfu": cost.speed(examples_per_second).get("mfu"),
        "input_wait": progress.input_wait,
        "train_seconds": progress.train_seconds,
        "wall_seconds": progress.wall_seconds + time.monotonic() - started,
        "seed": config.train.seed,
        "config_hash": run_folder.hash_of(config),
        "model": type(config.model.backbone).__name__,
        "dataset": setup.schema.card.name,
        "dataset_fingerprint": setup.dataset_fingerprint,
        "quarantined": setup.quarantined,
        "num_dense_parameters": cost.num_dense_parameters,
        "num_active_dense_parameters": cost.num_active_dense_parameters,
        "num_table_parameters": cost.num_table_parameters,
        "flops_per_example": cost.flops_per_example,
        "product_flops_per_example": cost.product_flops_per_example,
        "table_bytes_per_example": traffic.table_bytes_per_example(
            config,
            setup.steps.engine,
            counted=progress.tables,
            num_examples=progress.examples_seen,
        ),
        "wire_bytes_per_step": cost.wire_bytes_per_step,
        "versions": environment.versions(),
        "hardware": environment.hardware(),
    }
