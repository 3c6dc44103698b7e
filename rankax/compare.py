"""Compares finished runs: mean and spread over seeds, differences with intervals.

Reads `config.json`, `result.json` and `predictions.parquet` of the run folders. Runs
whose configurations differ in `train.seed` (or in what decides no result, such as
`observe`) are one model; every model is compared with one or more baselines. Two models
whose runs all have predictions get bootstrap intervals over test examples and seeds,
others t intervals over seeds (`rankax.metrics.difference`).

    python -m rankax.compare runs/dnn-* runs/dcnv2-* --metric=ctr/auc,ctr/log_loss
"""

import argparse
from collections.abc import Sequence
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import sys
from typing import Any

from etils import epath
import numpy as np

from rankax.config.base import ConfigError, completed, suggest
from rankax.config.base import difference as config_difference
from rankax.config.experiment import NOT_OF_THE_RUN
from rankax.metrics import task_metrics
from rankax.metrics.difference import (
    LEVEL,
    Difference,
    over_examples_and_seeds,
    over_seeds,
)
from rankax.observe import stores
from rankax.observe.comparison import render
from rankax.observe.console import Console
from rankax.observe.stores import StoreError
from rankax.training import resampling
from rankax.training.predictions import FILE_NAME, PredictionsError

# What may differ between runs of one model: the seed, and the same things that may
# differ when a run is continued.
_IGNORED = ("train.seed", *NOT_OF_THE_RUN)


class CompareError(ValueError):
    """Runs that cannot be compared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run folder."""

    folder: epath.Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def seed(self) -> int:
        """`train.seed`."""
        return self.result["seed"]

    def metric(self, name: str) -> float:
        """Returns a metric of the test split."""
        metrics = self.result["metrics"]
        if not metrics:
            raise CompareError(
                f"{self.folder} has not read its test split (eval.test=False); run the "
                "same command with --config.eval.test=True to complete it"
            )
        if name not in metrics:
            raise CompareError(
                f"{self.folder} has no test metric {name!r}; "
                f"{suggest(name, tuple(metrics))}"
            )
        if metrics[name] is None:
            raise CompareError(f"{self.folder}: {name} is undefined on its test split")
        return metrics[name]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Runs of one configuration, in order of their seeds."""

    label: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.seed for run in self.runs)

    def values(self, metric: str) -> np.ndarray:
        """Returns the metric of every run, float64 [seeds]."""
        return np.array([run.metric(metric) for run in self.runs], np.float64)

    @property
    def has_predictions(self) -> bool:
        """Whether every run has predictions of its test split."""
        return all(stores.is_there(run.folder / FILE_NAME) for run in self.runs)

    def mean(self, key: str) -> float | None:
        """Returns the mean of a number of `result.json`; None if a run lacks it."""
        values = [run.result.get(key) for run in self.runs]
        known = [value for value in values if value is not None]
        return float(np.mean(known)) if len(known) == len(values) else None


# ---------------------------------------------------------------- reading


def load(folder: epath.PathLike) -> Run:
    """Reads one run folder.

    Raises:
        CompareError: not a run folder, or a run that has not finished.
    """
    folder = stores.locate(folder)
    trees = []
    for name in ("config.json", "result.json"):
        path = folder / name
        if not stores.is_there(path):
            if not stores.is_there(folder / "config.json"):
                raise CompareError(
                    f"{folder} is not a run folder: config.json is missing"
                )
            raise CompareError(
                f"{folder} has no result.json: the run has not finished; start the "
                "same command again to go on, or leave the folder out"
            )
        try:
            tree = json.loads(stores.read_text(path), parse_constant=lambda _: None)
        except ValueError as error:
            raise CompareError(f"{path} is not valid JSON: {error}") from error
        trees.append(tree)
    return Run(folder=folder, config=trees[0]["config"], result=trees[1])


def group(runs: Sequence[Run]) -> list[Model]:
    """Groups runs that differ in their seed alone, in order of appearance.

    Raises:
        CompareError: a configuration was run twice with one seed.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for own in groups:
            if _is_same(own[0].config, run.config):
                own.append(run)
                break
        else:
            groups.append([run])
    for own in groups:
        own.sort(key=lambda run: run.seed)
    models = []
    for own, label in zip(groups, _labels(groups), strict=True):
        for left, right in itertools.pairwise(own):
            if left.seed == right.seed:
                raise CompareError(
                    f"{left.folder} and {right.folder} are one configuration with one "
                    f"seed ({left.seed}), so they are not independent; leave one out"
                )
        models.append(Model(label=label, runs=tuple(own)))
    return models


def _is_same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two differ in their seed alone.

    What only one of them has is of a later version, and the other's at its default.
    """
    if not config_difference(left, right, ignore=_IGNORED):
        return True
    if config_difference(left, right, ignore=_IGNORED, of_both=True):
        return False
    # Imported late: they know the defaults and need jax, which the rest does not.
    from rankax.models import backbones  # noqa: F401

    return not config_difference(completed(left), completed(right), ignore=_IGNORED)


def _labels(groups: list[list[Run]]) -> list[str]:
    """Model names where they tell the groups apart, else their folders' prefix."""
    names = [own[0].result["model"].removesuffix("Config") for own in groups]
    if len(set(names)) < len(names):
        folders = [[stores.name_of(run.folder) for run in own] for own in groups]
        names = [_prefix(own) or name for own, name in zip(folders, names, strict=True)]
    return [
        name if names.count(name) == 1 else f"{name}#{names[: i + 1].count(name)}"
        for i, name in enumerate(names)
    ]


def _prefix(folders: list[str]) -> str:
    """What names of several runs share, without a separator or "seed" at its end."""
    if len(folders) == 1:
        return folders[0]
    # Names of one folder level: characters are what is wanted.
    prefix = os.path.commonprefix(folders)  # noqa: RUF071
    return re.sub(r"([-_.]+(seed)?|seed)[-_.=]*\d*$", "", prefix)


def check_same_data(runs: Sequence[Run]) -> None:
    """Refuses runs on different data.

    Raises:
        CompareError: two data set fingerprints.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.result["dataset_fingerprint"] != first.result["dataset_fingerprint"]:
            names = [
                f"{r.folder} ({r.result['dataset']}, {r.result['dataset_fingerprint']})"
                for r in (first, run)
            ]
            raise CompareError(
                f"{names[0]} and {names[1]} used different data, so their metrics do "
                "not compare; leave one out, or insist with --force"
            )


# ---------------------------------------------------------------- comparing


def compare(
    models: Sequence[Model],
    *,
    metrics: Sequence[str],
    baselines: Sequence[Model],
    unit: str,
    console: Console,
) -> dict[str, Any]:
    """Returns the comparison as JSON values; `render` makes the table of it.

    Args:
        models: rows.
        metrics: of the test split.
        baselines: models that every other one is compared with.
        unit: what is resampled: "examples", "groups", or "seeds" for t intervals alone.
        console: progress.
    """
    cells = {(m.label, name): _cell(m.values(name)) for m in models for name in metrics}
    draws, num_resamples = {}, 0
    if unit != "seeds":
        draws, num_resamples = resample(models, metrics, unit=unit, console=console)
    compared = set()
    for model, baseline in itertools.product(models, baselines):
        for name in metrics if model is not baseline else ():
            values, other = model.values(name), baseline.values(name)
            keys = (model.label, name), (baseline.label, name)
            paired = model.seeds == baseline.seeds
            if keys[0] in draws and keys[1] in draws:
                resampled = draws[keys[0]], draws[keys[1]]
                delta = over_examples_and_seeds(
                    values, other, *resampled, paired=paired, unit=unit
                )
            else:
                delta = over_seeds(values, other, paired=paired)
            cells[model.label, name]["differences"][baseline.label] = {
                "value": delta.value,
                "low": None if math.isnan(delta.low) else delta.low,
                "high": None if math.isnan(delta.high) else delta.high,
                "method": delta.method,
                "sign": delta.sign,
                "verdict": verdict(delta, name, model.label, baseline.label),
            }
            if delta.is_of_models:
                compared.add((name, *sorted((model.label, baseline.label))))
    return {
        "metrics": list(metrics),
        "higher_is_better": {name: _is_higher_better(name) for name in metrics},
        "baselines": [baseline.label for baseline in baselines],
        "level": LEVEL,
        "num_comparisons": len(compared),
        "resampled": unit,
        "num_resamples": num_resamples,
        "without_predictions": [m.label for m in models if not m.has_predictions],
        "oracle": _oracle(models, metrics),
        "models": [
            _row(m) | {"metrics": {name: cells[m.label, name] for name in metrics}}
            for m in models
        ],
    }


def resample(
    models: Sequence[Model], metrics: Sequence[str], *, unit: str, console: Console
) -> tuple[dict[tuple[str, str], np.ndarray], int]:
    """Returns (model, metric) -> [seeds, R] on the same R resamples of the test split.

    Models without predictions of every run are left out; R is 0 if fewer than two
    remain.
    """
    models = [model for model in models if model.has_predictions]
    if len(models) < 2:
        return {}, 0
    runs = [run for model in models for run in model.runs]
    resampled = resampling.resample(
        [run.folder for run in runs],
        [run.result["metrics"] for run in runs],
        metrics,
        groups=unit == "groups",
        console=console,
    )
    borders = np.cumsum([len(model.runs) for model in models])[:-1]
    return {
        (model.label, name): own
        for name, values in resampled.values.items()
        for model, own in zip(models, np.split(values, borders), strict=True)
    }, resampled.num


def verdict(delta: Difference, metric: str, model: str, baseline: str) -> str:
    """Says in words what the interval says of two models."""
    higher_is_better = _is_higher_better(metric)
    if not delta.sign:
        return "cannot tell"
    if higher_is_better is None:
        return f"{model} and {baseline} differ"
    if (delta.sign > 0) == higher_is_better:
        return f"{model} beats {baseline}"
    return f"{baseline} beats {model}"


def _is_higher_better(metric: str) -> bool | None:
    try:
        return task_metrics.higher_is_better(metric)
    except ValueError:  # a metric without a direction, such as calibration
        return None


def _cell(values: np.ndarray) -> dict[str, Any]:
    return {
        "values": values.tolist(),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
        "differences": {},
    }


def _row(model: Model) -> dict[str, Any]:
    best = [run.result["best_validation"] for run in model.runs]
    values = [b["value"] for b in best]
    keys = (
        "num_dense_parameters",
        "num_active_dense_parameters",
        "num_table_parameters",
        "flops_per_example",
    )
    return {
        "model": model.label,
        "runs": [str(run.folder) for run in model.runs],
        "seeds": list(model.seeds),
        "best_validation": None
        if None in values
        else {"metric": best[0]["metric"], "mean": float(np.mean(values))},
        "examples_per_second": model.mean("examples_per_second"),
        **{key: model.runs[0].result.get(key) for key in keys},
    }


def _oracle(models: Sequence[Model], metrics: Sequence[str]) -> dict[str, float]:
    """The same metrics of the true probabilities, where the runs know them."""
    result = models[0].runs[0].result["metrics"]
    oracle = {}
    for name in metrics:
        task, _, metric = name.rpartition("/")
        value = result.get(f"{task}/oracle_{metric}")
        if value is not None:
            oracle[name] = value
    return oracle


# ---------------------------------------------------------------- program


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; exits with a message if the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m rankax.compare",
        description="Compares finished runs: mean ± sd over seeds, and the difference "
        "of each model to the baselines with a 95% interval. Runs whose configurations "
        "differ in train.seed alone are one model.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder, or s3://… or gs://…"
    )
    parser.add_argument(
        "--metric",
        default="",
        help="test metrics, separated by commas, such as ctr/auc,ctr/log_loss; "
        "default: the one that chose the first run's best checkpoint",
    )
    parser.add_argument(
        "--baseline",
        default="",
        help="models of the table, separated by commas; default: the first",
    )
    parser.add_argument(
        "--resample",
        choices=("examples", "groups", "seeds"),
        default="examples",
        help="what the interval varies beside the seeds, for runs with predictions: "
        "test examples, or whole groups (users) of them; seeds: nothing, a t interval",
    )
    parser.add_argument("--json", default="", metavar="PATH", help="write JSON as well")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    parser.add_argument(
        "--force", action="store_true", help="compare across different data sets"
    )
    args = parser.parse_args(argv)
    try:
        runs = [load(folder) for folder in args.runs]
        if not args.force:
            check_same_data(runs)
        models = group(runs)
        by_label = {model.label: model for model in models}
        baselines = dict.fromkeys(args.baseline.split(",") if args.baseline else [])
        for name in baselines:
            if name not in by_label:
                raise CompareError(
                    f"--baseline: {name!r} is no model of these runs; "
                    f"{suggest(name, tuple(by_label))}"
                )
        metrics = [name for name in args.metric.split(",") if name]
        metrics = metrics or [runs[0].result["best_validation"]["metric"]]
        with Console(stream=sys.stderr) as console:
            comparison = compare(
                models,
                metrics=metrics,
                baselines=[by_label[name] for name in baselines] or models[:1],
                unit=args.resample,
                console=console,
            )
    except (CompareError, ConfigError, PredictionsError, StoreError) as error:
        sys.exit(f"compare: {error}")
    print(render(comparison, markdown=args.markdown))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(comparison, indent=1) + "\n")


if __name__ == "__main__":
    main()
