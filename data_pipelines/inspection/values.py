"""How often each value of a column stands in each split, and with which labels.

Cardinality, top ids, ids that training does not know, and what a field tells by itself
all follow from this one table, which is as long as the column has values.
"""

import dataclasses

import numpy as np
import polars as pl

from data_pipelines.inspection.folder import Column, Folder, collect
from rankax.metrics import auc

MAX_VALUES = 4_000_000  # of a column, counted one by one; more are sampled
DIGITS = 4  # of numbers with more values than that
PRIOR = 10.0  # examples with the mean rate that every value starts with
BINS = 64  # of a number, by the quantiles of training


@dataclasses.dataclass(frozen=True, slots=True)
class Values:
    """K values of one column in S splits, with T tasks.

    Attributes:
        value: [K].
        rows: [S, K] float64; of a list, elements.
        positives: [S, T, K] float64.
        step: one in this many values is here, chosen by hash; 1 = all are.
        is_rounded: numbers are; there were too many.
    """

    value: pl.Series
    rows: np.ndarray
    positives: np.ndarray
    step: int = 1
    is_rounded: bool = False

    @property
    def means(self) -> np.ndarray:
        """Positive rate of training, [T]."""
        return self.positives[0].sum(1) / max(self.rows[0].sum(), 1)

    def rates(self) -> np.ndarray:
        """Smoothed positive rate of each value in training, [T, K]."""
        prior = PRIOR * self.means[:, None]
        return (self.positives[0] + prior) / (self.rows[0] + PRIOR)

    def auc(self, split: int, task: int, score: np.ndarray) -> float:
        """AUC of a score [K] of the values on one split; nan without both classes."""
        return weighted_auc(score, self.positives[split, task], self.rows[split])


def count(folder: Folder, column: Column, *, step: int = 1) -> Values:
    """Counts the values of a column; the elements of a list one by one.

    Args:
        folder: where the rows are.
        column: not a vector.
        step: look at one in this many values, chosen by hash.
    """
    query = folder.select(value=column.values)
    if column.kind == "list":
        query = query.explode("value")
    query = query.drop_nulls("value")
    # Neighbours tell the same: numbers are rounded where ids are sampled.
    is_rounded = column.kind == "number" and step > 1
    if is_rounded:
        query = query.with_columns(pl.col("value").round_sig_figs(DIGITS))
        step = 1
    if step > 1:
        query = query.filter(pl.col("value").hash() % step == 0)
    is_split = [pl.col("split") == i for i in range(len(folder.splits))]
    labels = [pl.col(f"label {task}") for task in range(len(folder.labels))]
    sums = [
        each.sum().cast(pl.Float64).alias(f"{i}") for i, each in enumerate(is_split)
    ]
    sums += [
        label.filter(each).sum().alias(f"{i} {task}")
        for i, each in enumerate(is_split)
        for task, label in enumerate(labels)
    ]
    found = collect(query.group_by("value").agg(sums)).sort("value")
    numbers = found.drop("value").to_numpy().T
    num_splits = len(is_split)
    return Values(
        found["value"],
        numbers[:num_splits],
        numbers[num_splits:].reshape(num_splits, len(labels), len(found)),
        step,
        is_rounded,
    )


def sampling(folder: Folder) -> dict[str, int]:
    """Returns in what step to sample the values of each column; 1 = take all.

    Columns of one table get one step, so that they are sampled alike.
    """
    numbers = [
        (c.values.explode() if c.kind == "list" else c.values)
        .approx_n_unique()
        .alias(c.name)
        for c in folder.columns
        if c.kind != "vector"
    ]
    about = collect(folder.rows().select(numbers)).row(0, named=True) if numbers else {}
    steps = {name: max(1, -(-number // MAX_VALUES)) for name, number in about.items()}
    of_table: dict[str, int] = {}
    for column in folder.columns:
        if column.table:
            step = max(of_table.get(column.table, 1), steps[column.name])
            of_table[column.table] = step
    return {
        column.name: of_table.get(column.table, steps.get(column.name, 1))
        for column in folder.columns
    }


def bins(values: Values) -> Values:
    """Puts the values of a number into bins of about equal mass in training."""
    mass = np.cumsum(values.rows[0]) - values.rows[0] / 2
    which = np.minimum(mass / max(values.rows[0].sum(), 1) * BINS, BINS - 1).astype(int)
    starts = auc.run_starts(which)
    return Values(
        values.value.gather(starts),
        np.add.reduceat(values.rows, starts, axis=1),
        np.add.reduceat(values.positives, starts, axis=2),
    )


def weighted_auc(score: np.ndarray, positives: np.ndarray, rows: np.ndarray) -> float:
    """Returns the AUC where score i [K] has so many rows and positives."""
    _, rank = np.unique(score, return_inverse=True)
    rank = rank / max(len(rank), 1)
    weight = np.concatenate([rows - positives, positives])
    label = np.repeat([0, 1], len(rank))
    return auc.exact(np.concatenate([rank, rank]), label, weight)
