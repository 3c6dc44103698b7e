"""Compares finished runs: mean and spread over seeds, differences with intervals.

Reads `config.json` and `result.json` of the run folders. Runs whose configurations
differ in `train.seed` (or in what decides no result, such as `observe`) are one model;
every model is compared with the baseline.

    python -m rankax.compare runs/dnn-* runs/dcnv2-* --metric=ctr/auc,ctr/log_loss
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import sys
from typing import Any

import numpy as np
from scipy import stats

from rankax.config.base import difference as config_difference
from rankax.config.base import suggest
from rankax.config.experiment import NOT_OF_THE_RUN
from rankax.metrics import task_metrics

LEVEL = 0.95

# What may differ between runs of one model: the seed, and the same things that may
# differ when a run is continued.
_IGNORED = ("train.seed", *NOT_OF_THE_RUN)


class CompareError(ValueError):
    """Runs that cannot be compared; the message says why and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run folder."""

    folder: pathlib.Path
    config: dict[str, Any]
    result: dict[str, Any]

    @property
    def seed(self) -> int:
        """`train.seed`."""
        return self.result["seed"]

    def metric(self, name: str) -> float:
        """Returns a metric of the test split."""
        metrics = self.result["metrics"]
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

    def mean(self, read: Callable[[dict[str, Any]], float]) -> float:
        """Returns the mean of a number in `result.json`."""
        return float(np.mean([read(run.result) for run in self.runs]))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Mean difference to the baseline and its t interval.

    Attributes:
        value: mean of the model minus mean of the baseline.
        low: lower end of the interval; nan if there is none.
        high: upper end.
        method: how the interval was made, or why there is none.
    """

    value: float
    low: float
    high: float
    method: str


# ---------------------------------------------------------------- reading


def load(folder: str | pathlib.Path) -> Run:
    """Reads one run folder.

    Raises:
        CompareError: not a run folder, or a run that has not finished.
    """
    folder = pathlib.Path(folder)
    trees = []
    for name in ("config.json", "result.json"):
        path = folder / name
        if not path.is_file():
            if not (folder / "config.json").is_file():
                raise CompareError(
                    f"{folder} is not a run folder: config.json is missing"
                )
            raise CompareError(
                f"{folder} has no result.json: the run has not finished; start the "
                "same command again to go on, or leave the folder out"
            )
        try:
            tree = json.loads(path.read_text(), parse_constant=lambda _: None)
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
            if not config_difference(own[0].config, run.config, ignore=_IGNORED):
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


def _labels(groups: list[list[Run]]) -> list[str]:
    """Model names where they tell the groups apart, else their folders' prefix."""
    names = [own[0].result["model"].removesuffix("Config") for own in groups]
    if len(set(names)) < len(names):
        folders = [[run.folder.resolve().name for run in own] for own in groups]
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


# ---------------------------------------------------------------- statistics


def difference(
    values: np.ndarray, baseline: np.ndarray, *, paired: bool, level: float = LEVEL
) -> Difference:
    """Returns the difference of two means over seeds with its t interval.

    Args:
        values: [n] of the model.
        baseline: [m] of the baseline.
        paired: n = m runs with the same seeds in the same order: the interval is that
            of the mean of their differences; else Welch's (unequal variances).
        level: coverage of the interval.
    """
    value = float(values.mean() - baseline.mean())
    if min(len(values), len(baseline)) < 2:
        nan = float("nan")
        return Difference(
            value=value, low=nan, high=nan, method="no interval: one seed"
        )
    if paired:
        error = float(np.std(values - baseline, ddof=1)) / math.sqrt(len(values))
        freedom = len(values) - 1.0
        method = f"paired t, {len(values)} seeds"
    else:
        parts = [np.var(v, ddof=1) / len(v) for v in (values, baseline)]
        error = math.sqrt(sum(parts))
        below = sum(
            p**2 / (len(v) - 1) for p, v in zip(parts, (values, baseline), strict=True)
        )
        freedom = sum(parts) ** 2 / below if below else 1.0
        method = f"Welch t, {len(values)} and {len(baseline)} seeds"
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * error
    return Difference(value=value, low=value - half, high=value + half, method=method)


def compare(
    models: Sequence[Model], *, metrics: Sequence[str], baseline: Model
) -> dict[str, Any]:
    """Returns the comparison as JSON values; `render` makes the table of it."""
    rows = []
    for model in models:
        row: dict[str, Any] = {
            "model": model.label,
            "runs": [str(run.folder) for run in model.runs],
            "seeds": list(model.seeds),
            "metrics": {},
            "best_validation": None,
            "examples_per_second": model.mean(lambda r: r["examples_per_second"]),
            "num_dense_parameters": model.runs[0].result["num_dense_parameters"],
            "num_table_parameters": model.runs[0].result["num_table_parameters"],
        }
        best = [run.result["best_validation"] for run in model.runs]
        values = [b["value"] for b in best]
        if None not in values:
            row["best_validation"] = {
                "metric": best[0]["metric"],
                "mean": float(np.mean(values)),
            }
        for name in metrics:
            values = model.values(name)
            cell: dict[str, Any] = {
                "values": values.tolist(),
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else None,
            }
            if model is not baseline:
                delta = difference(
                    values, baseline.values(name), paired=model.seeds == baseline.seeds
                )
                cell["difference"] = {
                    "value": delta.value,
                    "low": None if math.isnan(delta.low) else delta.low,
                    "high": None if math.isnan(delta.high) else delta.high,
                    "method": delta.method,
                }
            row["metrics"][name] = cell
        rows.append(row)
    return {
        "metrics": list(metrics),
        "baseline": baseline.label,
        "level": LEVEL,
        "oracle": _oracle(models, metrics),
        "models": rows,
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


# ---------------------------------------------------------------- printing


def render(comparison: dict[str, Any], *, markdown: bool = False) -> str:
    """Returns the comparison as an aligned text or Markdown table."""
    metrics = comparison["metrics"]
    header = ["model", "seeds"]
    for name in metrics:
        header += [f"test {name}{_arrow(name)}", f"minus {comparison['baseline']}"]
    header += ["interval", "best validation", "examples/s"]
    header += ["dense params", "table params"]
    lines = [header]
    for row in comparison["models"]:
        cells = [row["model"], str(len(row["seeds"]))]
        method = "baseline"
        for name in metrics:
            cell = row["metrics"][name]
            spread = "" if cell["sd"] is None else f" ± {cell['sd']:.5f}"
            delta = cell.get("difference")
            cells += [f"{cell['mean']:.5f}{spread}", _delta(name, delta)]
            method = delta["method"] if delta else method
        best = row["best_validation"]
        cells += [
            method,
            f"{best['metric']} {best['mean']:.5f}" if best else "–",
            f"{row['examples_per_second']:,.0f}",
            _count(row["num_dense_parameters"]),
            _count(row["num_table_parameters"]),
        ]
        lines.append(cells)
    if comparison["oracle"]:
        cells = ["oracle", ""]
        for name in metrics:
            value = comparison["oracle"].get(name)
            cells += ["–" if value is None else f"{value:.5f}", ""]
        lines.append(cells + [""] * 5)
    table = _markdown(lines) if markdown else _aligned(lines)
    note = (
        "mean ± standard deviation over seeds; difference with "
        f"[{comparison['level']:.0%} interval] over seeds, on one test split; "
        "* = the interval excludes 0"
    )
    return f"{table}\n\n{note}"


def _arrow(metric: str) -> str:
    try:
        return " ↑" if task_metrics.higher_is_better(metric) else " ↓"
    except ValueError:  # a metric without a direction, such as calibration
        return ""


def _delta(metric: str, delta: dict[str, Any] | None) -> str:
    if delta is None:
        return "–"
    text = f"{delta['value']:+.5f}"
    if delta["low"] is None:
        return text
    text += f" [{delta['low']:+.5f}, {delta['high']:+.5f}]"
    if delta["low"] <= 0 <= delta["high"]:
        return text
    arrow = _arrow(metric)
    if not arrow:
        return f"{text} *"
    return f"{text} * {'better' if (delta['value'] > 0) == ('↑' in arrow) else 'worse'}"


def _count(number: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {unit}"
    return f"{number:g}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([texts[0], rule, *texts[1:]])


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])


# ---------------------------------------------------------------- program


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; exits with a message if the runs cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="python -m rankax.compare",
        description="Compares finished runs: mean ± sd over seeds, and the difference "
        "of each model to the baseline with a 95% interval. Runs whose configurations "
        "differ in train.seed alone are one model.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument(
        "--metric",
        default="",
        help="test metrics, separated by commas, such as ctr/auc,ctr/log_loss; "
        "default: the one that chose the first run's best checkpoint",
    )
    parser.add_argument(
        "--baseline", default="", help="model of the table; default: the first"
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
        baseline = by_label.get(args.baseline or models[0].label)
        if baseline is None:
            raise CompareError(
                f"--baseline={args.baseline!r} is no model of these runs; "
                f"{suggest(args.baseline, tuple(by_label))}"
            )
        metrics = [name for name in args.metric.split(",") if name]
        metrics = metrics or [runs[0].result["best_validation"]["metric"]]
        comparison = compare(models, metrics=metrics, baseline=baseline)
    except CompareError as error:
        sys.exit(f"compare: {error}")
    print(render(comparison, markdown=args.markdown))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(comparison, indent=1) + "\n")


if __name__ == "__main__":
    main()
