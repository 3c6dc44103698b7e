r"""Runs every model on every set: four trials, validation chooses, three seeds, one test.

python -m experiments.sweep --sets=frappe_x1,kuairand --models=dnn,dcnv2 --runs=runs/sweep
python -m experiments.sweep --plan               # what is done, what is left, how long
python -m experiments.sweep --table=frappe_x1    # Markdown, from results.jsonl
python -m experiments.sweep --table=frappe_x1,kuairand    # both beside each other

Trials (`experiments/spaces.py`) have seed 0 and leave the test split unread. The one
that validation likes best goes on in its folder and reads it; seeds 1 and 2 follow.
Every run is a process of its own, `python -m rankax.main ...`, and its row in
`experiments/results.jsonl` holds that command. Stop and start the driver as you like, or
start several on the same folder: what is finished is skipped, what was interrupted goes
on from its checkpoint, and a run is one driver's at a time. All trials are set up before
the first one trains. What failed stays failed until --retry; a model's seeds wait until
all its trials are finished. Two models against all others, on the same test examples:

python -m rankax.compare $(python -m experiments.sweep --folders=frappe_x1) \
    --baseline=FinalMLP,DCNv2
"""

import argparse
from collections.abc import Iterator, Sequence
import os
import pathlib
import signal
import sys

from experiments import results
from experiments.driver import ROOT, Driver
from experiments.protocol import RUNS, Group, Run
from experiments.results import Results, Row
from experiments.spaces import SETS
from rankax.config.base import ConfigError, suggest

RESULTS = ROOT / "experiments/results.jsonl"


def groups_of(
    sets: Sequence[str], models: Sequence[str], datasets: str = ""
) -> list[Group]:
    """Returns what can be run; what cannot is told and left out."""
    # The runs' processes start elsewhere.
    datasets = datasets and os.path.abspath(datasets)
    groups = []
    for name in sets:
        for model in models or tuple(SETS[name].trials):
            try:
                groups.append(Group(SETS[name], model, datasets))
            except ConfigError as error:
                print(f"skipped: {name}/{model}: {error}", file=sys.stderr, flush=True)
    return groups


def chosen(
    name: str, models: Sequence[str], file: pathlib.Path
) -> Iterator[tuple[str, Row, list[tuple[Run, Row]]]]:
    """Yields model, row of its chosen trial, and the finished runs of its seeds."""
    rows = Results(file).by_key()
    for group in groups_of([name], models):
        trial = group.chosen(rows)
        if trial:
            seeds = group.seeds(trial["trial"])
            found = [(run, rows[run.key()]) for run in seeds if run.key() in rows]
            yield group.model, trial, found


def table(name: str, models: Sequence[str] = (), file: pathlib.Path = RESULTS) -> str:
    """Returns the Markdown table of a set's models that have all their trials."""
    found = [
        (model, trial, [row for _, row in seeds])
        for model, trial, seeds in chosen(name, models, file)
    ]
    return results.table(found, dict(SETS[name].published))


def overview(sets: Sequence[str], models: Sequence[str], file: pathlib.Path) -> str:
    """Returns the Markdown table of models by sets: the test score of every seed.

    The score is the metric by which validation chose.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for name in sets:
        for model, trial, seeds in chosen(name, models, file):
            title = f"{name} {trial['metric']}"
            found = [row["test"][trial["metric"]] for _, row in seeds]
            scores.setdefault(title, {}).update({model: found} if found else {})
    return results.overview(scores)


def folders(
    name: str, models: Sequence[str], file: pathlib.Path, runs: pathlib.Path
) -> list[str]:
    """Returns the folders of a set's finished seeds, for `rankax.compare`."""
    return [
        str(runs / run.name)
        for _, _, seeds in chosen(name, models, file)
        for run, _ in seeds
    ]


# ---------------------------------------------------------------- command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        "python -m experiments.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sets", default=",".join(SETS), help="default: all")
    parser.add_argument("--models", default="", help="default: all of each set")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path(RUNS))
    parser.add_argument(
        "--datasets", default="", help="folder of the data sets, if not datasets"
    )
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--threads-per-run", type=int, default=0, help="cores of one run; 0 = all"
    )
    parser.add_argument(
        "--any-data",
        action="store_true",
        help="the examples are those of the rows that are there, in other files",
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--plan", action="store_true", help="tell, run nothing")
    parser.add_argument(
        "--table",
        default="",
        metavar="SET[,SET]",
        help="print its table, or one of the test scores on all of them",
    )
    parser.add_argument(
        "--folders", default="", metavar="SET", help="print those of its finished seeds"
    )
    flags = parser.parse_args(arguments)
    sets = flags.sets.split(",")
    models = [model for model in flags.models.split(",") if model]
    tables = flags.table.split(",") if flags.table else []
    for name in [*sets, *tables, *filter(None, [flags.folders])]:
        if name not in SETS:
            parser.error(f"no set {name!r}; {suggest(name, tuple(SETS))}")
    if len(tables) > 1:
        print(overview(tables, models, flags.results))
        return
    if tables:
        print(table(*tables, models, flags.results))
        return
    if flags.folders:
        print("\n".join(folders(flags.folders, models, flags.results, flags.runs)))
        return
    driver = Driver(
        groups_of(sets, models, flags.datasets),
        runs=flags.runs,
        results=Results(flags.results, any_data=flags.any_data),
        jobs=flags.jobs,
        threads_per_run=flags.threads_per_run,
        retry=flags.retry and not flags.plan,
    )
    if flags.plan:
        print(driver.plan())
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    if not driver.run():
        sys.exit(1)


if __name__ == "__main__":
    main()
