"""What each field tells by itself: the AUC on held-out rows of a model of one field.

An id, and a number by its bin, predicts its smoothed positive rate in training; a list
the mean of its ids' rates. A number also ranks by its size, either way round.
"""

import numpy as np
import polars as pl

from data_pipelines.inspection import values
from data_pipelines.inspection.folder import Column, Finding, Folder, collect
from data_pipelines.inspection.values import Values

# Frappe's `item` reaches .927 honestly: whether a sampled negative is an app that
# nobody uses is known from the app. The best field of KuaiRand, MovieLens and Criteo
# is at .77 (`user` on KuaiRand's likes).
THRESHOLD = 0.95
MIN_OF_CLASS = 20  # positives and negatives; fewer define no AUC worth a name
SAMPLED_ROWS = 200_000  # of a split, for lists and vectors

Aucs = dict[str, dict[str, float]]  # task -> held-out split -> AUC


def aucs(folder: Folder, column: Column, counted: Values | None) -> Aucs:
    """Returns the AUC of one column, where a split has enough of both classes."""
    if column.kind == "vector" or counted is None:
        return _of_vectors(folder, column)
    if column.kind == "list":
        return _of_lists(folder, column, counted)
    binned = values.bins(counted) if column.kind == "number" else counted
    rates = binned.rates()
    result: Aucs = {}
    for t, task in enumerate(folder.labels):
        for i, split in enumerate(folder.splits[1:], 1):
            if not _enough(binned.positives[i, t].sum(), binned.rows[i].sum()):
                continue
            best = binned.auc(i, t, rates[t])
            if column.kind == "number":
                by_size = counted.auc(i, t, np.arange(len(counted.value)))
                best = max(best, by_size, 1 - by_size)
            result.setdefault(task, {})[split] = best
    return result


def findings(name: str, found: Aucs, threshold: float) -> list[Finding]:
    """Returns one finding if a task and split are predicted too well."""
    task, split, best = max(
        ((t, s, v) for t, by_split in found.items() for s, v in by_split.items()),
        key=lambda entry: entry[2],
        default=("", "", 0.0),
    )
    if best <= threshold:
        return []
    return [
        Finding(
            check="too good alone",
            level="error",
            subject=name,
            found=f"{name} alone predicts {task} on {split} with an AUC of {best:.4f}, "
            f"above {threshold:g}",
            why="a field as good as that is mostly the label itself, or made after it, "
            "and will not be there when the model serves",
            advice=f"find out when {name} is written: if after the impression, leave "
            "it out; if it is honest, raise --auc_threshold",
            figures={"task": task, "split": split, "auc": best},
        )
    ]


def _enough(positives: float, rows: float) -> bool:
    return min(positives, rows - positives) >= MIN_OF_CLASS


def _sample(folder: Folder, column: Column, split: int) -> pl.DataFrame:
    """Rows of one split, evenly spread, with a number each."""
    query = folder.select(value=column.values).filter(pl.col("split") == split)
    step = -(-folder.num_rows[folder.splits[split]] // SAMPLED_ROWS) or 1
    rows = query.with_row_index("row").filter(pl.col("row") % step == 0)
    return collect(rows).sort("row")


def _of_lists(folder: Folder, column: Column, counted: Values) -> Aucs:
    rates = pl.DataFrame({"value": counted.value}).with_columns(
        pl.Series(f"rate {t}", rate) for t, rate in enumerate(counted.rates())
    )
    result: Aucs = {}
    for i, split in enumerate(folder.splits[1:], 1):
        rows = _sample(folder, column, i)
        elements = rows.select("row", "value").explode("value").drop_nulls()
        scores = elements.join(rates, on="value", how="left").group_by("row")
        scores = rows.join(scores.agg(pl.col("^rate .*$").mean()), on="row", how="left")
        for t, task in enumerate(folder.labels):
            label = rows[f"label {t}"].to_numpy()
            if not _enough(label.sum(), len(label)):
                continue
            score = scores.sort("row")[f"rate {t}"].fill_null(counted.means[t])
            found = values.weighted_auc(score.to_numpy(), label, np.ones(len(label)))
            result.setdefault(task, {})[split] = found
    return result


def _of_vectors(folder: Folder, column: Column) -> Aucs:
    """The best element, by its size."""
    result: Aucs = {}
    for i, split in enumerate(folder.splits[1:], 1):
        rows = _sample(folder, column, i).drop_nulls("value")
        for t, task in enumerate(folder.labels):
            label = rows[f"label {t}"].to_numpy()
            if not _enough(label.sum(), len(label)):
                continue
            elements = np.stack(rows["value"].to_list())
            found = [
                values.weighted_auc(element, label, np.ones(len(label)))
                for element in np.nan_to_num(elements.astype(np.float64)).T
            ]
            best = max(max(found), 1 - min(found))
            result.setdefault(task, {})[split] = best
    return result
