r"""Runs the ladders of a study: the search of learning rates, then sizes × seeds.

python -m scaling.sweep synthetic --dry_run          # what it takes, nothing is run
python -m scaling.sweep synthetic --jobs=2 --threads-per-run=1
python -m scaling.sweep synthetic --commands > commands.txt   # for a cluster
python -m scaling.fit scaling/studies/synthetic      # then plot and report

Every run is a process, `python -m rankax.main ...`; its rows go to `runs.jsonl` in the
folder of the study when it ends. Stop and start the sweep as you like, or start several
on the same folder: what is finished is skipped, what was interrupted goes on from its
checkpoint, what failed stays failed until --retry. A run whose loss was not finite gets
a row that says so, and enters no fit.
"""

from collections.abc import Sequence
import pathlib
import shlex
import signal
import sys

from experiments.driver import Driver, Run
from experiments.results import Results
from rankax.config.base import ConfigError
from rankax.data.errors import DataError
from scaling import runs as scaling_runs
from scaling.collect import FILE_NAME, MixedRowsError, allowed, collect
from scaling.runs import COLUMNS, LadderGroup
from scaling.study import Study, load
from scaling.study import parser as study_parser

RUNS = pathlib.Path("runs/scaling")


def dry_run(driver: Driver) -> str:
    """Returns a line per ladder and size of what is left: FLOPs, hours.

    Args:
        driver: of the study.
    """
    states = driver.states()
    left = states["open"] + states["waiting"]
    known = driver.results.seconds()
    lines = [
        f"{'ladder':24} {'size':6} {'left':>5} {'FLOP/example':>13} "
        f"{'train FLOPs':>12} {'min/run':>8}"
    ]
    total = 0.0
    for like in dict.fromkeys(run.like for run in left):
        own = [run for run in left if run.like == like]
        first = own[0]
        assert isinstance(first, scaling_runs.ScalingRun)
        cost = first.group.costs(first.size)
        (seconds,) = driver.seconds([first])
        total += seconds * len(own)
        lines.append(
            f"{first.ladder.name:24} {first.size.name:6} {len(own):5} "
            f"{cost['flops']:13,.0f} {cost['train_flops']:12.3g} "
            f"{seconds / 60:8.1f}{'' if like in known else '  by arithmetic'}"
        )
    lines.append(
        f"{len(states['done'])} runs done, {len(states['failed'])} failed, {len(left)} "
        f"left: {total / 3600:.2f} hours of one run, {total / 3600 / driver.jobs:.2f} "
        f"hours by {driver.jobs} at a time"
    )
    return "\n".join(lines)


def _command(run: Run, runs: pathlib.Path) -> str:
    return shlex.join(["python", *run.arguments(str(runs))])


def sweep(
    study: Study,
    folder: pathlib.Path,
    *,
    runs: pathlib.Path = RUNS,
    datasets: str = "",
    ladders: Sequence[str] = (),
    jobs: int = 1,
    threads_per_run: int = 0,
    retry: bool = False,
    flops_per_second: float = scaling_runs.FLOPS_PER_SECOND,
) -> Driver:
    """Returns the driver of a study's runs.

    Args:
        study: what to run.
        folder: of its results.
        runs: where the run folders go.
        datasets: folder of the data sets.
        ladders: names of those to run; () = all.
        jobs: runs at a time.
        threads_per_run: cores of one; 0 = all.
        retry: forget failures.
        flops_per_second: of one run, for sizes of which no run has finished.
    """
    study = study.at(datasets)
    groups = [
        LadderGroup(study, ladder, flops_per_second=flops_per_second)
        for ladder in study.ladders
    ]
    return Driver(
        [group for group in groups if not ladders or group.ladder.name in ladders],
        runs=runs,
        results=Results(folder / FILE_NAME, COLUMNS),
        jobs=jobs,
        threads_per_run=threads_per_run,
        retry=retry,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = study_parser("scaling.sweep", __doc__)
    parser.add_argument("--ladders", default="", help="some of them, as MODEL-AXIS")
    parser.add_argument("--runs", type=pathlib.Path, default=RUNS, help="run folders")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument(
        "--threads-per-run", type=int, default=0, help="cores of one run; 0 = all"
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument(
        "--allow",
        default="",
        help="columns that may differ (python -m scaling.collect)",
    )
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="sizes, FLOPs, hours"
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="print those that are left, for python -m tpu.render slurm or gke",
    )
    parser.add_argument(
        "--flops_per_second",
        type=float,
        default=scaling_runs.FLOPS_PER_SECOND,
        help="of one run, for --dry_run: peak × MFU (default %(default)g)",
    )
    flags = parser.parse_args(arguments)
    allow = allowed(parser, flags.allow)
    try:
        study, folder = load(flags.study)
        names = [ladder.name for ladder in study.ladders]
        wanted = [name for name in flags.ladders.split(",") if name]
        for name in wanted:
            if name not in names:
                parser.error(f"no ladder {name!r}; there are {', '.join(names)}")
        driver = sweep(
            study,
            folder,
            runs=flags.runs,
            datasets=flags.datasets,
            ladders=wanted,
            jobs=flags.jobs,
            threads_per_run=flags.threads_per_run,
            retry=flags.retry and not flags.dry_run,
            flops_per_second=flags.flops_per_second,
        )
        if flags.dry_run:
            print(dry_run(driver))
            return
        if flags.commands:
            states = driver.states()
            for run in states["open"]:
                print(_command(run, flags.runs))
            if not states["open"]:
                print("no run is left to start", file=sys.stderr)
            if states["waiting"]:
                print(
                    f"{len(states['waiting'])} runs follow when these are finished and "
                    f"python -m scaling.collect {flags.study} --runs={flags.runs} has "
                    "read them",
                    file=sys.stderr,
                )
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        is_whole = driver.run()
        rows = collect(study, folder, allow=allow)
    except (ConfigError, DataError, MixedRowsError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(f"{folder / FILE_NAME}: {len(rows)} rows")
    if not is_whole:
        sys.exit(1)


if __name__ == "__main__":
    main()
