"""Prediction: what a run's model says of the examples of any dataset folder."""

from typing import Any

import jax
import numpy as np
import pyarrow as pa

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data import lanes as lane_order
from rankax.data import new_examples, storage
from rankax.data.schema import Schema
from rankax.data.shards import ShardWriter
from rankax.data.source import SplitSource, check_same_ids
from rankax.embeddings import counters
from rankax.metrics import binary
from rankax.observe.console import Console
from rankax.training import run_folder, scoring
from rankax.training import setup as setups
from rankax.training.evaluator import tell_out_of_vocabulary
from rankax.training.scoring import Scored
from rankax.training.step import Steps

ROWS_PER_GROUP = 2**17  # of the file, and the most that waits in memory


def predict(
    config: ExperimentConfig,
    workdir: str,
    *,
    data: str,
    out: str,
    step: int | None = None,
) -> dict[str, Any]:
    """Scores every example of a split with a checkpoint of the run in `workdir`.

    Writes a Parquet file with, of each example, `row`: its number in the split,
    counted from 0 over the files in the order of their names; `<task>/logit` and
    `<task>/probability` (float32) of each task of the run, and `<task>/label` of those
    that the data set has; `weight` and `group`, where its card names them, as in
    `rankax.training.predictions`. One process writes in the order of `row`; several
    read from as many places of the split at once, and `row` tells where.

    Memory does not grow with the split, and the file appears when it is whole. Works
    on any number of devices and processes. Of the run's own data set only the card is
    read.

    Args:
        config: the run.
        workdir: its folder.
        data: a split of a dataset folder, as FOLDER/SPLIT, on a disk or a store.
        out: the file to write, on a disk or a store.
        step: of the checkpoint; None = the best.

    Returns:
        {"step", "num_examples"}.

    Raises:
        ConfigError: no run or no checkpoint there, or of another configuration; a data
            set whose card describes other input than the model reads.
        DataError: examples that cannot be used.
    """
    config.validate()
    run = setups.schema_of(config)
    mesh = setups.mesh_of(config)
    folder = run_folder.find(workdir, config)
    source, schema = new_examples.open_split(data, run)
    target = storage.locate(out)
    if target.is_folder():
        raise ConfigError(f"--predict_out={target} is a folder; name a file in it")

    def read_sample() -> np.ndarray:
        return _first_ids(config, source, schema)

    steps = Steps(config, run, mesh, read_sample=read_sample)
    state, step = scoring.restore(folder, steps, step=step)
    check_same_ids(source, scoring.origin(folder, step)["text_ids"])

    # One lane per process, the fewest: for one process that is the order of the files.
    size = scoring.batch_size(config)
    lanes = steps.input_shard(size).count
    num_batches = lane_order.num_batches_per_epoch(source, batch_size=size, lanes=lanes)
    is_first = jax.process_index() == 0
    writer, total = ShardWriter(target, ROWS_PER_GROUP), None
    with Console(quiet=not is_first) as console:
        console.message(
            f"predicting {int(source.rows_per_group.sum()):,} examples of "
            f"{source.name} with the checkpoint of step {step:,} of {folder}"
        )
        track = console.track(f"predict {source.name}", total=num_batches)
        scored = scoring.scores(
            steps,
            state,
            source,
            schema,
            config,
            lanes=lanes,
            names=_names(schema),
        )
        rows = lane_order.row_numbers(source, batch_size=size, lanes=lanes)
        try:
            for number, (batch, row) in enumerate(zip(scored, rows, strict=True), 1):
                total = counters.accumulate(total, batch.counts)
                if is_first:
                    writer.write(_table(batch, row, run, schema))
                track.update(number)
            track.close()
            writer.close()
            writer.publish()
        finally:
            writer.abandon()  # of no effect once it is published
        if total:
            tables = counters.summarize(steps.engine.plan, total)
            tell_out_of_vocabulary(console, source.name, tables)
        console.message(f"wrote {target}")
    return {"step": step, "num_examples": int(source.rows_per_group.sum())}


def _names(schema: Schema) -> tuple[str, ...]:
    """Returns the arrays of a batch that go into the file."""
    there = {
        "labels": schema.labels,
        "weight": schema.card.weight,
        "group": schema.card.group,
    }
    return tuple(name for name, is_there in there.items() if is_there)


def _table(batch: Scored, row: np.ndarray, run: Schema, schema: Schema) -> pa.Table:
    """Makes the rows of the file of a batch, without its padding.

    Args:
        batch: a batch.
        row: [B] its examples' numbers in the split; -1 = padding.
        run: whose tasks the logits are of.
        schema: whose tasks the labels are of.
    """
    is_real = row >= 0
    arrays = {name: values[is_real] for name, values in batch.arrays.items()}
    columns = {"row": row[is_real]}
    for logits, task in zip(batch.logits[is_real].T, run.tasks, strict=True):
        if task in schema.tasks:
            labels = arrays["labels"][:, schema.tasks.index(task)]
            columns[f"{task}/label"] = labels.astype(np.int8)
        columns[f"{task}/logit"] = logits
        columns[f"{task}/probability"] = binary.probability(logits)
    columns |= {name: arrays[name] for name in ("weight", "group") if name in arrays}
    return pa.table(columns)


def _first_ids(
    config: ExperimentConfig, source: SplitSource, schema: Schema
) -> np.ndarray:
    """Reads the ids of the first batch, whole on every process."""
    batches = lane_order.read_batches(
        source,
        schema,
        batch_size=scoring.batch_size(config),
        lanes=1,
        seed=0,
        shuffle=False,
        num_epochs=1,
        prefetch_batches=1,
    )
    try:
        return next(batches)[0]["ids"]
    finally:
        batches.close()
