r"""How fast examples are read: rankax beside the decoder below it and other readers.

python -m benchmarks.input --json=input.json   # some minutes; needs the bench extra
python -m benchmarks.input --quick             # a minute, few rows
python -m benchmarks.input --layouts=criteo --readers=arrow,rankax --rounds=3
python -m benchmarks.input --train             # does training wait for its input?

The data sets are those of `benchmarks/input_layouts.py`, written with our writer's
defaults (snappy, row groups of 65,536), the readers those of `benchmarks/readers.py`.
Each trial is a process of its own on one core; readers take turns, so that a slow
minute of the machine hits all of them. A trial reads once to warm up, which also adds
up what was read (a reader that lost an example ends the benchmark), and then until it
has used enough processor time. Rates count the processor time of the whole process
tree, which other load on the machine hardly changes; ratios are taken round by round.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import functools
from importlib import metadata
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks import measure, readers
from benchmarks.input_layouts import LAYOUTS
from benchmarks.measure import Record
from benchmarks.readers import READERS
from rankax.config.base import suggest
from rankax.data import card
from rankax.data.schema import Schema

LIMIT, OURS = "arrow", "rankax"


# ---------------------------------------------------------------- reading


def run_reader(
    name: str, folder: pathlib.Path, rows: int, cpu_seconds: float
) -> Record:
    """Runs one trial; called in a fresh process."""
    load = os.getloadavg()[0]
    schema = Schema.select(card.load(folder))
    epoch = READERS[name].open(folder, schema, rows)
    totals = readers.totals(epoch(), schema)
    num_epochs, wall, cpu = 0, time.perf_counter(), _cpu_seconds()
    while _cpu_seconds() - cpu < cpu_seconds or not num_epochs:
        for _ in epoch():
            pass
        num_epochs += 1
    return {
        "rows": num_epochs * rows,
        "cpu_s": _cpu_seconds() - cpu,
        "wall_s": time.perf_counter() - wall,
        "totals": totals,
        "load": load,
    }


def _cpu_seconds() -> float:
    """Returns what all threads and all ended children of the process have used."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure_layout(
    layout: str,
    folder: pathlib.Path,
    names: Sequence[str],
    *,
    num_rounds: int,
    cpu_seconds: float,
) -> list[Record]:
    """Runs all readers of a data set in turns.

    Raises:
        SystemExit: a reader did not read what is there.
    """
    schema = Schema.select(card.load(folder))
    num_rows = schema.card.splits["train"].num_rows
    names = [name for name in names if layout in READERS[name].layouts]
    rows = {name: min(READERS[name].max_rows or num_rows, num_rows) for name in names}
    expected = {
        n: readers.expected_totals(folder, schema, n) for n in sorted({*rows.values()})
    }
    trials: dict[str, list[Record]] = {name: [] for name in names}
    for index in range(num_rounds):
        measure.tell(f"{layout}, round {index + 1} of {num_rounds}:", end="")
        for name in names:
            trial = measure.run_alone(run_reader, name, folder, rows[name], cpu_seconds)
            if trial["totals"] != expected[rows[name]]:
                raise SystemExit(
                    f"{layout}: {READERS[name].title} read {trial['totals']}, expected "
                    f"{expected[rows[name]]}"
                )
            trials[name].append(trial)
            measure.tell(f" {name} {_per_core(trial) / 1e6:.3f}", end="")
        measure.tell(" M rows/s/core")
    return [
        {"layout": layout, "reader": name, **summarize(trials, name)} for name in names
    ]


def _per_core(trial: Record) -> float:
    return trial["rows"] / trial["cpu_s"]


def summarize(trials: dict[str, list[Record]], name: str) -> Record:
    """Returns a reader's trials and rates, and its ratios to the limit and to ours."""
    own = trials[name]
    record: Record = {
        "rows_per_cpu_second": statistics.median(map(_per_core, own)),
        "rows_per_second": statistics.median(t["rows"] / t["wall_s"] for t in own),
        "trials": own,
    }
    for key, other in (("of_limit", LIMIT), ("of_ours", OURS)):
        if other in trials:
            ratios = [
                _per_core(a) / _per_core(b)
                for a, b in zip(own, trials[other], strict=True)
            ]
            record |= {
                key: statistics.median(ratios),
                f"{key}_min": min(ratios),
                f"{key}_max": max(ratios),
            }
    return record


_COLUMNS = {
    "data set": "{layout}",
    "reader": "{title}",
    "M rows/s per core": "{millions:.3f}",
    "of Arrow decode, median (range)": "{of_limit:.1%} ({of_limit_min:.1%} - "
    "{of_limit_max:.1%})",
    "rankax is × as fast": "{times:.2f}",
    "M rows/s by the clock": "{wall_millions:.3f}",
}


def table(records: Sequence[Record]) -> str:
    """Returns the Markdown table."""
    lines = [[*_COLUMNS], ["---", "---", *["--:"] * (len(_COLUMNS) - 2)]]
    for record in records:
        shown = {
            **record,
            "title": READERS[record["reader"]].title,
            "millions": record["rows_per_cpu_second"] / 1e6,
            "wall_millions": record["rows_per_second"] / 1e6,
        }
        if "of_ours" in record:
            shown["times"] = 1 / record["of_ours"]
        lines.append([_format(column, shown) for column in _COLUMNS.values()])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format(column: str, record: Record) -> str:
    try:
        return column.format(**record)
    except KeyError:  # a ratio to a reader that was left out
        return ""


# ---------------------------------------------------------------- training


def measure_training(folder: pathlib.Path, num_steps: int) -> Record:
    """Trains DCN-v2 on a data set and returns the share of time it waited for input."""
    with tempfile.TemporaryDirectory() as scratch:
        run = pathlib.Path(scratch) / "run"
        command = [
            *(sys.executable, "-m", "rankax.main"),
            "--config=experiments/tabular.py:dcnv2",
            f"--config.data.source.path={folder}",
            "--config.train.num_epochs=0",
            f"--config.train.num_steps={num_steps}",
            f"--workdir={run}",
        ]
        measure.tell(" ".join(command[1:]))
        root = pathlib.Path(__file__).parents[1]
        subprocess.run(command, check=True, stdout=sys.stderr, cwd=root)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        result = json.loads((run / "result.json").read_text())
    waits = [
        line["input_wait"]
        for line in map(json.loads, lines)
        if line["split"] == "train" and "input_wait" in line
    ]
    return {
        "num_steps": num_steps,
        "examples_per_second": result["examples_per_second"],
        "input_wait": result["input_wait"],
        "input_waits": waits,
    }


# ---------------------------------------------------------------- command line


def _names(known: Sequence[str], text: str) -> list[str]:
    """Reads names with commas between."""
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"{name!r} is unknown; {suggest(name, tuple(known))}"
            )
    return names


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line and refuses what is not installed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input",
        description="How fast examples are read: rankax beside Arrow, Polars, Grain "
        "and PyTorch.",
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, few rows")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument(
        "--train", action="store_true", help="train DCN-v2 instead of reading alone"
    )
    parser.add_argument(
        "--folder", type=pathlib.Path, help="write the data sets here and keep them"
    )
    for name, known in (("layouts", LAYOUTS), ("readers", READERS)):
        parser.add_argument(
            f"--{name}",
            type=functools.partial(_names, [*known]),
            help=f"of {','.join(known)}",
        )
    parser.add_argument("--rounds", type=int, help="trials per reader")
    args = parser.parse_args(argv)
    for name in ("layouts", "readers", "rounds"):
        if args.train and vars(args)[name] is not None:
            parser.error(f"--{name} is not for --train")
    args.layouts = args.layouts or (["criteo"] if args.train else [*LAYOUTS])
    args.readers = args.readers or ([] if args.train else [*READERS])
    if args.rounds is None:
        args.rounds = 2 if args.quick else 5
    if args.rounds < 1:
        parser.error(f"--rounds={args.rounds} is not a positive number")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: there is no folder {args.json.parent}")
    modules = {name: READERS[name].module for name in args.readers}
    missing = [
        n for n, module in modules.items() if not importlib.util.find_spec(module)
    ]
    if missing:
        rest = [name for name in args.readers if name not in missing]
        parser.error(
            f"not installed: what {', '.join(missing)} need; pip install -e "
            f"'.[bench]', or leave them out with --readers={','.join(rest)}"
        )
    return args


@contextlib.contextmanager
def _folder(kept: pathlib.Path | None) -> Iterator[pathlib.Path]:
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.absolute()
    else:
        with tempfile.TemporaryDirectory() as scratch:
            yield pathlib.Path(scratch)


def main() -> None:
    """Writes the data sets, runs the trials, prints tables, writes the JSON file."""
    args = parse_arguments()
    os.environ["JAX_PLATFORMS"] = "cpu"  # reading is the host's work
    machine, versions = measure.run_alone(measure.describe)
    for package in ("pyarrow", "polars"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    content: Record = {"hardware": machine, "versions": versions}
    print(measure.hardware_line(machine, machine["cpu_cores"] if args.train else 1))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    with _folder(args.folder) as folder:
        for name in args.layouts:
            layout = LAYOUTS[name]
            rows = layout.num_quick_rows if args.quick else layout.num_rows
            layout.write(name, rows, folder / name)
        if args.train:
            num_steps = 200 if args.quick else 600
            content["training"] = measure_training(folder / "criteo", num_steps)
            print(f"\n{_training_line(content['training'])}")
        else:
            content["reading"] = _read(args, folder)
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")


def _read(args: argparse.Namespace, folder: pathlib.Path) -> list[Record]:
    """Runs the trials of all data sets and prints a table of each."""
    # Here, so that it holds for every thread of the trials, those of imports as well.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    results = []
    for name in args.layouts:
        records = measure_layout(
            name,
            folder / name,
            args.readers,
            num_rounds=args.rounds,
            cpu_seconds=0.3 if args.quick else 1.0,
        )
        print(f"\n{table(records)}", flush=True)
        results += records
    return results


def _training_line(record: Record) -> str:
    return (
        f"DCN-v2, criteo, {record['num_steps']} steps: "
        f"{record['examples_per_second']:,.0f} examples/s, input-wait "
        f"{record['input_wait']:.2%} (windows: "
        f"{', '.join(f'{wait:.2%}' for wait in record['input_waits'])})"
    )


if __name__ == "__main__":
    main()
