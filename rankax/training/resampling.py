"""Test metrics of several runs on the same resamples of their test examples.

Reads each run's `predictions.parquet`, after checking that all hold the same examples
in the same order and agree with the runs' results. Memory: about half a gigabyte, or a
hundred bytes an example where that is more; it does not grow with the number of runs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
from typing import Any

from etils import epath
import numpy as np

from rankax.metrics import bootstrap, task_metrics
from rankax.observe.console import Console
from rankax.training import predictions
from rankax.training.predictions import Predictions, PredictionsError

# Scores whose sorted order is kept at a time, some 30 bytes each.
_MAX_SCORES = 20_000_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resampled:
    """Metrics on R resamples.

    Attributes:
        values: metric -> [runs, R], without the metrics that cannot be resampled.
        num: R; 0 if nothing was resampled.
    """

    values: dict[str, np.ndarray]
    num: int


def resample(
    folders: Sequence[epath.PathLike],
    results: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    *,
    groups: bool,
    console: Console,
) -> Resampled:
    """Resamples AUC, GAUC (where there are groups), log loss and normalized entropy.

    Args:
        folders: of the runs.
        results: test metrics that each run reported.
        metrics: "<task>/<name>", or "mean/<name>" over the tasks.
        groups: draw whole groups instead of examples.
        console: progress.

    Raises:
        PredictionsError: predictions of other examples, of another order or of another
            checkpoint than the result's; or no groups to draw.
    """
    known = predictions.tasks_of(folders[0])
    tasks = {metric: _tasks(metric, known) for metric in metrics}
    needed = sorted(set(itertools.chain.from_iterable(tasks.values())))
    first = predictions.read(folders[0], needed)
    if groups and first.group is None:
        raise PredictionsError(
            f"{folders[0]}/{predictions.FILE_NAME} has no groups to draw: the dataset "
            "card names no group column, or the file is of an older version and must "
            f"be written again {predictions.HOW_TO_WRITE}"
        )
    # The (metric, task) pairs of which every run gets a number per resample.
    parts = [
        (metric, task)
        for metric, own in tasks.items()
        for task in own
        if first.group is not None or not metric.endswith("/gauc")
    ]
    if not parts:
        return Resampled(values={}, num=0)
    num_scores = len(first.weight) * len(parts)  # of a run
    resamples = bootstrap.Resamples(
        len(first.weight),
        num=bootstrap.num_resamples(num_scores * len(folders)),
        group=first.group if groups else None,
    )
    at_once = max(1, _MAX_SCORES // max(num_scores, 1))
    runs = list(zip(folders, results, strict=True))
    batches = [runs[i : i + at_once] for i in range(0, len(runs), at_once)]
    track = console.track("resample", total=resamples.num * len(batches))
    done = itertools.count(1)
    replicates = []  # [runs of a batch, parts, R]
    for batch in batches:
        statistics: list[bootstrap.Statistic] = []
        for folder, result in batch:
            own = predictions.read(folder, needed)
            predictions.check_aligned(folders[0], first, folder, own)
            # Where an older file has no groups, it gets those of the first.
            own = dataclasses.replace(own, group=first.group)
            for metric, task in parts:
                name = metric.rpartition("/")[2]
                statistics.append(_statistic(folder, own, result, task, name))
        values = bootstrap.replicates(
            statistics, resamples, tell=lambda: track.update(next(done))
        )
        replicates.append(values.reshape(len(batch), len(parts), resamples.num))
    track.close()
    joined = np.concatenate(replicates)
    places: dict[str, list[int]] = {}
    for place, (metric, _) in enumerate(parts):
        places.setdefault(metric, []).append(place)
    return Resampled(
        values={metric: joined[:, own].mean(axis=1) for metric, own in places.items()},
        num=resamples.num,
    )


def _tasks(metric: str, known: Sequence[str]) -> tuple[str, ...]:
    """Tasks whose plain mean a metric is; () if it cannot be resampled."""
    task, _, name = metric.rpartition("/")
    if name not in bootstrap.NAMES:
        return ()
    if task == task_metrics.MEAN and task not in known:
        return tuple(known)
    return (task,)


def _statistic(
    folder: epath.PathLike,
    own: Predictions,
    result: Mapping[str, Any],
    task: str,
    name: str,
) -> bootstrap.Statistic:
    """Returns a metric of one run's predictions, checked against what it reported."""
    statistic = bootstrap.statistic(
        name, own.probability[task], own.label[task], own.weight, own.group
    )
    found = statistic(np.ones(len(own.weight), np.uint8))
    expected = result[f"{task}/{name}"]
    # The AUC of the histogram has a known error; what another batch size changes in the
    # last bits, and rounded probabilities in the loss, is less than the rest.
    allowed = 1e-4 + result.get(f"{task}/{name}_bound", 0.0) + 1e-3 * expected
    if not abs(found - expected) <= allowed:
        lost = int(np.sum(own.probability[task] == 1 - own.label[task]))
        if lost and name in ("log_loss", "normalized_entropy"):
            raise PredictionsError(
                f"{folder}/{predictions.FILE_NAME} gives {task}/{name} {found:.6f}, "
                f"result.json says {expected:.6f}: {lost} probabilities are exactly 0 "
                "or 1 and wrong, which does not tell how wrong; compare over seeds, "
                "by --resample=seeds, or another metric"
            )
        raise PredictionsError(
            f"{folder}/{predictions.FILE_NAME} gives {task}/{name} {found:.6f}, but "
            f"result.json says {expected:.6f}: they are not of one checkpoint; write "
            f"the predictions again {predictions.HOW_TO_WRITE}"
        )
    return statistic
