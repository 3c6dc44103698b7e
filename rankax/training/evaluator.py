"""Metrics of one whole split, read through the same reader as training."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
import jax

from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes
from rankax.data.source import SplitSource
from rankax.embeddings import counters
from rankax.metrics import slices
from rankax.metrics.slices import SliceMetrics
from rankax.metrics.task_metrics import TaskMetrics, mean_over_tasks
from rankax.observe.console import Console
from rankax.parallel import processes
from rankax.parallel.processes import Votes
from rankax.training import interruption, scoring
from rankax.training.interruption import StopRequest
from rankax.training.predictions import PredictionWriter
from rankax.training.state import TrainState
from rankax.training.step import Steps

_SCORED = ("labels", "weight", "group", "true_probability", "slices")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result of one pass over a split.

    Attributes:
        metrics: "<task>/<metric>" -> value, with "mean/<metric>" if that is what
            `eval.metric` selects by.
        calibration: task -> rows of `rankax.metrics.calibration.table`.
        slices: task -> rows of `SliceMetrics.result`; {} without slices.
        tables: what each table was asked for (`rankax.embeddings.counters`).
    """

    metrics: dict[str, float]
    calibration: dict[str, list[list[float]]]
    slices: dict[str, list[dict[str, Any]]]
    tables: counters.Summary


def evaluate(
    steps: Steps,
    state: TrainState,
    source: SplitSource,
    config: ExperimentConfig,
    *,
    console: Console,
    is_final: bool,
    predictions: epath.PathLike | None = None,
    stop: StopRequest | None = None,
) -> Evaluation:
    """Scores every example of the split once.

    The first process makes the metrics, and all processes get them.

    Args:
        steps: compiled steps.
        state: its parameters and tables are used.
        source: the split.
        config: `eval` and `data` sections.
        console: progress.
        is_final: add bootstrap intervals and, if the schema has slices, theirs.
        predictions: Parquet file to write labels and probabilities to.
        stop: ends it between two batches.

    Raises:
        Interrupted: as `stop` says.
    """
    schema = steps.schema
    metrics = {
        task: TaskMetrics(
            exact_auc=config.eval.exact_auc,
            has_group=bool(schema.card.group),
            has_true_probability=schema.has_true_probability,
            top_k=config.eval.top_k,
        )
        for task in schema.tasks
    }
    by_slice = None
    if is_final and schema.slices:
        columns = {entry.name: entry.values for entry in schema.slices}
        by_slice = SliceMetrics(schema.tasks, columns)
    total = lanes.num_batches_per_epoch(
        source, batch_size=scoring.batch_size(config), lanes=config.data.lanes
    )
    track = console.track(f"evaluate {source.name}", total=total)
    is_first = jax.process_index() == 0
    writer = None
    if predictions and is_first:
        writer = PredictionWriter(predictions, schema.tasks)
    votes = Votes(lag=scoring.IN_FLIGHT)
    scored = scoring.scores(
        steps,
        state,
        source,
        schema,
        config,
        lanes=config.data.lanes,
        names=_SCORED,
    )
    total = None
    for number, (logits, counts, arrays) in enumerate(scored, 1):
        stopped_by = votes.cast(stop.number if stop else 0)
        interruption.check(stopped_by, f"while it read {source.name}")
        total = counters.accumulate(total, counts)
        if not is_first:
            continue
        for t, task in enumerate(schema.tasks):
            true = arrays.get("true_probability")
            metrics[task].update(
                logits[:, t],
                arrays["labels"][:, t],
                arrays["weight"],
                group=arrays.get("group"),
                true_probability=None if true is None else true[:, t],
            )
        if by_slice:
            labels, weight = arrays["labels"], arrays["weight"]
            by_slice.update(logits, labels, weight, arrays["slices"])
        if writer:
            writer.write(logits, arrays)
        track.update(number)
    track.close()
    if writer:
        writer.close()
    if not is_first:
        return Evaluation(**processes.broadcast(None))
    values = {
        f"{task}/{name}": value
        for task in schema.tasks
        for name, value in metrics[task].result(interval=is_final).items()
    }
    evaluation = Evaluation(
        metrics=values | mean_over_tasks(values, config.eval.metric, schema.tasks),
        calibration={task: metrics[task].calibration_table() for task in schema.tasks},
        slices=by_slice.result() if by_slice else {},
        tables=counters.summarize(steps.engine.plan, total) if total else {},
    )
    processes.broadcast(dataclasses.asdict(evaluation))
    return evaluation


def tell_worst_slices(
    console: Console,
    split: str,
    metrics: Mapping[str, float],
    rows: Mapping[str, list[dict[str, Any]]],
) -> None:
    """Prints, task by task, the worst slice that is surely below the whole split."""
    for task, own in rows.items():
        row = slices.worst(own, metrics[f"{task}/auc"])
        if row is not None:
            console.message(
                f"{split} {task}: worst slice {row['slice']}={row['value']}, AUC "
                f"{row['auc']:.4f} [{row['auc_low']:.4f}, {row['auc_high']:.4f}] of "
                f"{row['num_examples']:,} examples"
            )


def tell_out_of_vocabulary(
    console: Console, split: str, tables: counters.Summary
) -> None:
    """Prints which tables gave ids outside of them the default row."""
    for name, counts in tables.items():
        if counts["out_of_vocabulary"]:
            console.message(
                f"{split}: {counts['out_of_vocabulary']:,} of {counts['looked_up']:,} "
                f"ids are outside table {name} and got its default row"
            )
