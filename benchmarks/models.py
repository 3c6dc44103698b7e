r"""Cost of training: one DCN-v2 in rankax beside its peers, and all of our backbones.

python -m benchmarks.models --json=models.json               # needs the bench extra
python -m benchmarks.models --models --json=backbones.json   # every backbone
python -m benchmarks.models --models dnn dcnv2 --quick       # two, a first look

`benchmarks/peers.py` tells who runs. `--models` trains backbones with their default
options on the same examples, to put their cost beside their quality.

Each trial is a process of its own; contestants and table sizes take turns, so that a
slow minute of the machine hits all of them, and ratios are taken round by round. The
first steps (compilation included) are not timed; the loss is that of step 10. With two
threads the clock counts. With one thread the processor time counts, of all threads of
the process (rankax's reader too): it is what a busy machine disturbs least.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import tempfile

from benchmarks import measure, peers
from benchmarks.measure import Record
from benchmarks.peers import CONTESTANTS, LANES, Workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        rows: V of all tables together.
        threads: cores of a process; one means that processor time counts.
        rounds: processes per cell.
        chunk_seconds: of timed steps; a process runs four chunks.
    """

    rows: Sequence[int] = (100_000, 1_000_000, 10_000_000)
    threads: Sequence[int] = (2, 1)
    rounds: int = 3
    chunk_seconds: float = 3.0


QUICK = {"rows": (1_000_000,), "rounds": 1, "chunk_seconds": 0.5}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A kind of benchmark.

    Attributes:
        plan: what to run.
        reference: the line to whose time those of the others are compared.
        columns: what its table shows of a measured line, by title.
    """

    plan: Plan
    reference: str
    columns: Mapping[str, str]


_TIME = {
    "examples/s": "{examples_per_second:,.0f}",
    "ms a step, median / min": "{median_ms:.0f} / {min_ms:.0f}",
    "CPU ms a step": "{cpu_median_ms:.0f}",
}
_RATIO = "{ratio:.2f} ({ratio_min:.2f} - {ratio_max:.2f})"
PEERS = Section(
    plan=Plan(),
    reference="rankax",
    columns={
        **_TIME,
        "× rankax's time (of rounds)": _RATIO,
        "× its time with the fewest rows": "{growth:.2f}",
        "peak MB": "{peak_mb:,.0f}",
        "input-wait": "{input_wait:.1%}",
        "loss": "{loss:.4f}",
    },
)
MODELS = Section(
    plan=Plan(rows=(1_000_000,), threads=(2,)),
    reference="dcnv2",
    columns={
        **_TIME,
        "× DCN-v2's time (of rounds)": _RATIO,
        "training MFLOP an example": "{mflop_per_example:.2f}",
        "GFLOP/s": "{gflops_per_second:.0f}",
        "dense parameters": "{num_dense_parameters:,.0f}",
        "active": "{num_active_dense_parameters:,.0f}",
        "peak MB": "{peak_mb:,.0f}",
    },
)


# ---------------------------------------------------------------- one process


def run_peer(
    name: str, workload: Workload, folder: pathlib.Path, chunk_seconds: float
) -> Record:
    """Runs one contestant; called in a fresh process."""
    program = CONTESTANTS[name].build(workload, folder)
    record = measure.time_program(program, chunk_seconds)
    return {**record, "num_dense_parameters": program.num_dense_parameters}


def run_model(
    name: str, workload: Workload, folder: pathlib.Path, chunk_seconds: float
) -> Record:
    """Runs one backbone with its default options; called in a fresh process."""
    from rankax.models import backbones  # registers them  # noqa: F401
    from rankax.models.base import named_config
    from rankax.observe import accounting

    config = peers.rankax_config(workload, folder, named_config(name))
    steps = peers.rankax_steps(config)
    cost = accounting.account(config, steps.schema, steps.engine)
    record = measure.time_program(peers.rankax_program(config, steps), chunk_seconds)
    return {
        **record,
        "num_dense_parameters": cost.num_dense_parameters,
        "num_active_dense_parameters": cost.num_active_dense_parameters,
        "mflop_per_example": cost.train_flops_per_example / 1e6,
    }


def all_models() -> list[str]:
    """Returns the names of all backbones; in a process of its own jax's memory goes."""
    from rankax.models import (
        backbones,  # registers them  # noqa: F401
        base,
    )

    return sorted(base.registered())


# ---------------------------------------------------------------- rounds


def run_section(
    section: Section, plan: Plan, names: Sequence[str], workload: Workload
) -> list[Record]:
    """Runs every name with every number of rows once a round, for each thread count."""
    run = run_model if section is MODELS else run_peer
    records = []
    with tempfile.TemporaryDirectory() as scratch:
        cells = {}
        for rows in plan.rows:
            sized = dataclasses.replace(workload, num_rows=rows)
            folder = pathlib.Path(scratch, str(rows))
            peers.write_examples(sized, folder)
            for name in names:
                cells[rows, name] = (run, name, sized, folder, plan.chunk_seconds)
        for threads in plan.threads:
            measure.tell(f"threads: {threads}")
            results = measure.in_turn(
                cells, num_rounds=plan.rounds, num_threads=threads
            )
            records += [
                {"threads": threads, "rows": rows, "name": name, **result}
                for (rows, name), result in results.items()
            ]
    ok = [record for record in records if record["status"] == "ok"]
    for record in ok:
        record |= compare(record, ok, section.reference)
        rate = 1e3 * workload.batch_size / record[f"{_clock(record)}median_ms"]
        record["examples_per_second"] = rate
        if "mflop_per_example" in record:
            record["gflops_per_second"] = rate * record["mflop_per_example"] / 1e3
    return records


def compare(record: Record, records: Sequence[Record], reference: str) -> Record:
    """Compares a time to the reference's, and to that with the fewest rows.

    Returns:
        "ratio" of times, the median of the rounds, with "ratio_min" and "ratio_max" of
        them, where the reference has run; "growth" of median times.
    """
    clock, found = _clock(record), {}
    alike = [other for other in records if other["threads"] == record["threads"]]
    for other in alike:
        if (other["name"], other["rows"]) == (reference, record["rows"]):
            ours = other[f"{clock}rounds_ms"]
            theirs = record[f"{clock}rounds_ms"]
            rounds = [x / y for x, y in zip(theirs, ours, strict=True)]
            found = {"ratio_min": min(rounds), "ratio_max": max(rounds)}
            found["ratio"] = statistics.median(rounds)
    same = [other for other in alike if other["name"] == record["name"]]
    fewest = min(same, key=lambda other: other["rows"])
    found["growth"] = record[f"{clock}median_ms"] / fewest[f"{clock}median_ms"]
    return found


def _clock(record: Record) -> str:
    """How the keys of the time that counts begin: of the clock, or of the processor."""
    return "cpu_" if record["threads"] == 1 else ""


def tables(section: Section, records: Sequence[Record]) -> str:
    """Returns a Markdown table for each thread count."""
    parts = []
    for threads, lines in itertools.groupby(records, key=lambda x: x["threads"]):
        counts = "1 thread, processor time" if threads == 1 else f"{threads} threads"
        titled = [{**x, "title": _title(section, x["name"])} for x in lines]
        cell = {"rows": "{rows:.0e}", "": "{title}"}
        text = measure.table(titled, cell=cell, measured=section.columns)
        parts.append(f"{counts}:\n\n{text}")
    return "\n\n".join(parts)


def _title(section: Section, name: str) -> str:
    return CONTESTANTS[name].title if section is PEERS else name


# ---------------------------------------------------------------- command line


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a flag that is not given is None."""
    default = Workload()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description="Cost of training: DCN-v2 beside its peers, and all backbones.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument(
        "--models", nargs="*", metavar="NAME", help="backbones instead of peers"
    )
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--rows", type=measure.number, nargs="+")
    parser.add_argument("--threads", type=measure.number, nargs="+")
    parser.add_argument("--rounds", type=measure.number, help="processes per cell")
    parser.add_argument("--fields", type=measure.number, default=default.num_fields)
    parser.add_argument("--batch_size", type=measure.number, default=default.batch_size)
    args = parser.parse_args(argv)
    if args.batch_size % LANES:
        parser.error(f"--batch_size={args.batch_size} must be a multiple of {LANES}")
    if args.models is not None and args.contestants:
        parser.error("--contestants are peers; leave them out of --models")
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: there is no folder {args.json.parent}")
    return args


def make_plan(section: Section, args: argparse.Namespace) -> Plan:
    """Combines flags and defaults."""
    names = [field.name for field in dataclasses.fields(Plan)]
    given = {name: vars(args)[name] for name in names if vars(args).get(name)}
    return dataclasses.replace(section.plan, **(QUICK if args.quick else {}) | given)


def main() -> None:
    """Runs the rounds, prints the tables, writes the JSON file."""
    args = parse_arguments()
    os.environ.setdefault("GLIBC_TUNABLES", measure.HUGE_PAGES)  # of the trials
    if args.models is None:  # FBGEMM's and FuxiCTR's contestants run on CPU only
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        section, names = PEERS, args.contestants or list(CONTESTANTS)
    else:
        section, names = MODELS, args.models or measure.run_alone(all_models)
    plan = make_plan(section, args)
    workload = Workload(num_fields=args.fields, batch_size=args.batch_size)
    content = measure.introduce(max(plan.threads))
    print(
        f"{workload.num_fields} fields, batch {workload.batch_size}, float32; "
        f"{plan.rounds} rounds of 4 × {plan.chunk_seconds} s",
        flush=True,
    )
    records = run_section(section, plan, names, workload)
    print(f"\n{tables(section, records)}")
    ok = [record for record in records if record["status"] == "ok"]
    sizes = {record["num_dense_parameters"] for record in ok}
    if section is PEERS and len(sizes) > 1:
        raise SystemExit(f"the networks differ: dense parameters {sorted(sizes)}")
    # The trials themselves load their cores.
    noisy = [x["load"] for x in ok if x["load"] > x["threads"] + 0.5]
    if noisy:
        print(f"\nNot a quiet machine: load {max(noisy):.1f}. {measure.SPINNING}")
    if args.json:
        content["glibc_tunables"] = os.environ["GLIBC_TUNABLES"]
        content |= {"plan": dataclasses.asdict(plan), "records": records}
        content["workload"] = dataclasses.asdict(workload)
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
