"""Evaluation: the best checkpoint of a finished or interrupted run."""

from typing import Any

import jax

from rankax.config.experiment import ExperimentConfig
from rankax.observe.console import Console
from rankax.training import run_folder, scoring
from rankax.training.evaluator import evaluate as evaluate_split
from rankax.training.evaluator import (
    tell_out_of_vocabulary,
    tell_worst_slices,
)
from rankax.training.predictions import FILE_NAME as PREDICTIONS
from rankax.training.setup import set_up

FILE_NAME = "evaluation.json"


def evaluate(config: ExperimentConfig, workdir: str) -> dict[str, Any]:
    """Scores the valid and test splits with the best checkpoint of `workdir`.

    With `eval.test` off the test split stays unread.

    Writes `evaluation.json`, and `predictions.parquet` of the test split if
    `eval.save_predictions` is set. Works on any number of devices.

    Returns:
        {"step", "valid": metrics, "test": metrics, "valid_slices", "test_slices",
        "valid_tables", "test_tables"}, slices and tables as in `result.json`.

    Raises:
        ConfigError: no run or no checkpoint there, or of another configuration, or of
            --mode=progressive, which trains on these splits too.
    """
    setup = set_up(config, workdir)
    folder = run_folder.find(workdir, config, mode=run_folder.TRAIN)
    is_first = jax.process_index() == 0
    console = Console(quiet=not is_first)
    steps = setup.steps
    state, step = scoring.restore(folder, steps)
    result: dict[str, Any] = {"step": step}
    for split in ("valid", "test") if config.eval.test else ("valid",):
        is_test = split == "test"
        path = folder / PREDICTIONS
        evaluation = evaluate_split(
            steps,
            state,
            setup.splits[split],
            config,
            console=console,
            is_final=True,
            predictions=path if is_test and config.eval.save_predictions else None,
        )
        result[split] = evaluation.metrics
        result[f"{split}_slices"] = evaluation.slices
        result[f"{split}_tables"] = evaluation.tables
        for name, value in evaluation.metrics.items():
            console.message(f"{split:5}  {name:28} {value:.6g}")
        tell_worst_slices(console, split, evaluation.metrics, evaluation.slices)
        tell_out_of_vocabulary(console, split, evaluation.tables)
    if is_first:
        run_folder.write_json(folder / FILE_NAME, result)
    console.close()
    return result
