"""What a run has ended with, for tests that compare two of them to the bit."""

import pathlib
from typing import Any

import jax
import numpy as np

from rankax.config.experiment import CheckpointConfig, ExperimentConfig
from rankax.training.checkpoint import Checkpoints
from rankax.training.setup import set_up


def final_state(
    config: ExperimentConfig, folder: pathlib.Path
) -> tuple[int, Any, dict[str, Any]]:
    """Step, arrays and record of the newest checkpoint, on this process's devices."""
    steps = set_up(config).steps
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())
    step = checkpoints.latest_step
    assert step is not None
    state = checkpoints.restore(
        steps.abstract_state(), plan=steps.engine.plan, step=step
    )
    record = checkpoints.record(step)
    checkpoints.close()
    return step, jax.tree.map(np.asarray, state), record
