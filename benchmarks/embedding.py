r"""What large tables cost: rankax's engine beside FBGEMM, PyTorch and dense JAX.

python -m benchmarks.embedding --json=embedding.json   # also draws embedding.png
python -m benchmarks.embedding --quick                 # 2 minutes

Needs Linux and the bench extra; jax runs on an accelerator where it finds one. Every
cell is a process of its own, cells take turns, and compilation is not timed. All
contestants get huge pages from the C library, unless GLIBC_TUNABLES is set already:
random rows of gigabytes otherwise miss the TLB one by one. Sections:

- step: lookup, MLP and update of `benchmarks/contestants.py`, up to 3e7 rows. rankax's
  time includes the routing of ids in a thread beside, as in training; "routing ms" is
  that work alone. The others take ready ids. The loss is that of step 10.
- update: 50,000 uniform random unique rows, whose gradients are given.
- host: raw 64-bit ids hashed to rows and de-duplicated, on one core.
- init: memory that `init_tables` takes, over the size of the tables.
- wire: bytes that each of 8 devices sends a step (`benchmarks/wire.py`).
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import importlib.util
import itertools
import json
import os
import pathlib
import statistics

from matplotlib.figure import Figure

from benchmarks import measure
from benchmarks.contestants import CONTESTANTS, NUM_FIELDS, Workload
from benchmarks.measure import Record

UPDATE_ROWS = (1_000_000, 30_000_000)
INIT_DIM = 64
WIRE_DEVICES = 8
# Share of the machine's memory for tables; the rest is for processes and batches.
USABLE_MEMORY = 0.9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run.

    Attributes:
        rows: V of section "step".
        dims: D of section "step".
        batch_sizes: B of sections "step" and "host".
        contestants: of section "step".
        rounds: processes per cell where time is measured.
        init_rows: V of section "init".
        chunk_seconds: of timed steps; a process runs four chunks.
        peak_gb_per_second: of the memory, to compare to; 0 = do not.
        memory_bytes: of the machine.
    """

    rows: Sequence[int] = (100_000, 1_000_000, 10_000_000, 30_000_000)
    dims: Sequence[int] = (16, 64)
    batch_sizes: Sequence[int] = (4096, 16384)
    contestants: Sequence[str] = tuple(CONTESTANTS)
    rounds: int = 3
    init_rows: int = 30_000_000
    chunk_seconds: float = 1.0
    peak_gb_per_second: float = 0.0
    memory_bytes: int = 0


QUICK = Plan(
    rows=(100_000, 1_000_000),
    dims=(16,),
    batch_sizes=(4096,),
    rounds=1,
    init_rows=1_000_000,
    chunk_seconds=0.3,
)


# ---------------------------------------------------------------- section: step


def run_step(name: str, workload: Workload, chunk_seconds: float) -> Record:
    """Runs one contestant; called in a fresh process."""
    program = CONTESTANTS[name].build(workload)
    result = measure.time_program(program, chunk_seconds)
    if program.prepare:
        alone = measure.time_warm(program.prepare, program.finish, chunk_seconds / 4)
        result["routing_ms"] = 1e3 * statistics.median(alone.wall)
    return result


def measure_step(plan: Plan) -> list[Record]:
    """Runs all contestants in all cells; what cannot fit is not tried."""
    records = []
    for dim, batch_size, rows in itertools.product(
        plan.dims, plan.batch_sizes, plan.rows
    ):
        measure.tell(f"dim {dim}, batch {batch_size}, {rows:,} rows")
        workload = Workload(num_rows=rows, dim=dim, batch_size=batch_size)
        needed = {
            name: CONTESTANTS[name].needed_bytes(workload) for name in plan.contestants
        }
        cells = {
            name: (run_step, name, workload, plan.chunk_seconds)
            for name, size in needed.items()
            if size <= USABLE_MEMORY * plan.memory_bytes
        }
        results = measure.in_turn(cells, num_rounds=plan.rounds)
        ours = results.get("rankax", {})
        for name, size in needed.items():
            too_large = {"status": f"does not fit: needs {size / 1e9:.0f} GB"}
            record = results.get(name, too_large)
            if "median_ms" in ours and "median_ms" in record and record is not ours:
                for key in ("median", "min"):
                    record[f"{key}_ratio"] = record[f"{key}_ms"] / ours[f"{key}_ms"]
            key = {"dim": dim, "batch_size": batch_size, "rows": rows}
            records.append({**key, "contestant": name, **record})
    return records


def draw_step(records: Sequence[Record], path: pathlib.Path) -> None:
    """Draws time against rows, a line per contestant, a panel per dim and batch."""
    panels = sorted({(record["dim"], record["batch_size"]) for record in records})
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (dim, batch_size) in zip(axes, panels, strict=True):
        for name, contestant in CONTESTANTS.items():
            points = sorted(
                (r["rows"], r["median_ms"])
                for r in records
                if (r["dim"], r["batch_size"], r["contestant"], r["status"])
                == (dim, batch_size, name, "ok")
            )
            if points:
                ax.plot(*zip(*points, strict=True), "o-", label=contestant.title)
        ax.set(xscale="log", yscale="log", xlabel="table rows")
        ax.set_title(f"dim {dim}, batch {batch_size}")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("ms a step (median)")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2
    )
    figure.savefig(path, dpi=120, bbox_inches="tight")  # the legend may be wider


# ---------------------------------------------------------------- other sections


def measure_update(plan: Plan) -> list[Record]:
    """Runs section "update"."""
    from benchmarks import engine_alone  # late: the peers' processes need no jax

    cells = {
        rows: (engine_alone.time_update, rows, plan.chunk_seconds)
        for rows in UPDATE_ROWS
    }
    records = []
    for rows, record in measure.in_turn(cells, num_rounds=plan.rounds).items():
        if record["status"] == "ok":
            rate = engine_alone.UPDATED_BYTES / record["median_ms"] / 1e6
            record["gb_per_second"] = rate
            if plan.peak_gb_per_second:
                record["share_of_peak"] = rate / plan.peak_gb_per_second
        records.append({"rows": rows, **record})
    return records


def measure_host(plan: Plan) -> list[Record]:
    """Runs section "host", on one core."""
    from benchmarks import engine_alone

    cells = {
        size: (engine_alone.time_host, size, plan.chunk_seconds)
        for size in plan.batch_sizes
    }
    results = measure.in_turn(cells, num_rounds=plan.rounds, num_threads=1)
    return [
        {
            "batch_size": size,
            "ids_per_second": 1e3 * NUM_FIELDS * size / record["median_ms"],
            "best_ids_per_second": 1e3 * NUM_FIELDS * size / record["min_ms"],
            **record,
        }
        for size, record in results.items()
        if "median_ms" in record  # else it did not fit, and the progress said so
    ]


def measure_init(plan: Plan) -> list[Record]:
    """Runs section "init"."""
    from benchmarks import engine_alone

    cells = {plan.init_rows: (engine_alone.measure_init, plan.init_rows, INIT_DIM)}
    return [
        {"rows": rows, "dim": INIT_DIM, **record}
        for rows, record in measure.in_turn(cells).items()
    ]


def measure_wire(plan: Plan) -> list[Record]:
    """Runs section "wire"."""
    from benchmarks import wire

    workload = Workload(num_rows=1_000_000, dim=16, batch_size=4096, num_batches=1)
    cells = {WIRE_DEVICES: (wire.measure, workload, WIRE_DEVICES)}
    return [{"devices": n, **record} for n, record in measure.in_turn(cells).items()]


# ---------------------------------------------------------------- tables


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """How a section is run and shown.

    Attributes:
        measure: runs it.
        cell: columns that name a cell, as format strings of a record by title.
        measured: columns that only a cell with status "ok" has.
    """

    measure: Callable[[Plan], list[Record]]
    cell: dict[str, str]
    measured: dict[str, str]

    def table(self, records: Sequence[Record]) -> str:
        """Returns the Markdown table."""
        titled = [
            {**record, "title": CONTESTANTS[record["contestant"]].title}
            if "contestant" in record
            else record
            for record in records
        ]
        return measure.table(titled, cell=self.cell, measured=self.measured)


SECTIONS = {
    "step": Section(
        measure=measure_step,
        cell={
            "dim": "{dim}",
            "batch": "{batch_size}",
            "rows": "{rows:.0e}",
            "contestant": "{title}",
        },
        measured={
            "ms a step, median / min": "{median_ms:.1f} / {min_ms:.1f}",
            "× rankax's time": "{median_ratio:.2f} / {min_ratio:.2f}",
            "routing ms": "{routing_ms:.1f}",
            "peak MB": "{peak_mb:,.0f}",
            "loss": "{loss:.4f}",
        },
    ),
    "update": Section(
        measure=measure_update,
        cell={"rows": "{rows:.0e}"},
        measured={
            "ms, median / min": "{median_ms:.2f} / {min_ms:.2f}",
            "XLA temporaries, MB": "{temporary_mb:.2f}",
            "GB/s of touched rows": "{gb_per_second:.1f}",
            "of the peak": "{share_of_peak:.1%}",
        },
    ),
    "host": Section(
        measure=measure_host,
        cell={"batch": "{batch_size}"},
        measured={
            "ms, median / min": "{median_ms:.2f} / {min_ms:.2f}",
            "ids/s": "{ids_per_second:,.0f}",
            "best": "{best_ids_per_second:,.0f}",
        },
    ),
    "init": Section(
        measure=measure_init,
        cell={"rows": "{rows:.0e}", "dim": "{dim}"},
        measured={
            "tables, MB": "{table_mb:,.0f}",
            "memory grew by, MB": "{grown_mb:,.0f}",
            "ratio": "{ratio:.3f}",
        },
    ),
    "wire": Section(
        measure=measure_wire,
        cell={"devices": "{devices}"},
        measured={
            "rankax, MB": "{engine_mb:.3f}",
            "masked gather, MB": "{reference_mb:.3f}",
            "both: network's gradients, MB": "{network_mb:.3f}",
            "ratio": "{ratio:.1f}",
        },
    ),
}


# ---------------------------------------------------------------- command line


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line; a flag that is not given is None."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.embedding",
        description="What large tables cost: rankax beside FBGEMM, PyTorch and JAX.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument(
        "--rows", type=measure.number, nargs="+", help="of section step"
    )
    parser.add_argument(
        "--dims", type=measure.number, nargs="+", help="of section step"
    )
    parser.add_argument("--batch_sizes", type=measure.number, nargs="+")
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--rounds", type=measure.number, help="processes per cell")
    parser.add_argument("--peak_gb_per_second", type=float, help="of the memory")
    args = parser.parse_args(argv)
    if args.rows and min(args.rows) < NUM_FIELDS:
        parser.error(
            f"--rows={min(args.rows)} is too few for {NUM_FIELDS} fields; use at least "
            f"{NUM_FIELDS}"
        )
    if args.json and not args.json.parent.is_dir():
        parser.error(f"--json={args.json}: there is no folder {args.json.parent}")
    return args


def make_plan(args: argparse.Namespace, *, memory_bytes: int) -> Plan:
    """Combines flags and defaults.

    Raises:
        SystemExit: a contestant is not installed.
    """
    names = [field.name for field in dataclasses.fields(Plan)]
    given = {name: vars(args)[name] for name in names if vars(args).get(name)}
    plan = dataclasses.replace(
        QUICK if args.quick else Plan(), **given, memory_bytes=memory_bytes
    )
    missing = [
        name
        for name in plan.contestants
        if importlib.util.find_spec(CONTESTANTS[name].module) is None
    ]
    if "step" in args.sections and missing:
        rest = [name for name in plan.contestants if name not in missing]
        raise SystemExit(
            f"not installed: {', '.join(missing)}; pip install -e '.[bench]', or leave "
            f"them out with --contestants {' '.join(rest)}"
        )
    return plan


def main() -> None:
    """Runs the sections, prints their tables, writes the JSON file and the plot."""
    args = parse_arguments()
    os.environ.setdefault("GLIBC_TUNABLES", measure.HUGE_PAGES)  # of the trials
    machine, versions = measure.run_alone(measure.describe)
    plan = make_plan(args, memory_bytes=machine["memory_bytes"])
    num_cores = machine["cpu_cores"]
    print(measure.hardware_line(machine, num_cores))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    results = {}
    for name in args.sections:
        measure.tell(f"section {name}")
        results[name] = SECTIONS[name].measure(plan)
        print(f"\n{name}:\n\n{SECTIONS[name].table(results[name])}", flush=True)
    load = max((x.get("load", 0) for x in results.get("step", [])), default=0)
    if load > num_cores + 0.5:  # the trials themselves load their cores
        busy = f"load {load:.1f} on {num_cores} cores"
        print(f"\nNot a quiet machine: {busy}. {measure.SPINNING}")
    if args.json:
        content = {"hardware": machine, "versions": versions}
        content["glibc_tunables"] = os.environ["GLIBC_TUNABLES"]
        content |= {"plan": dataclasses.asdict(plan), "sections": results}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
        if "step" in results:
            draw_step(results["step"], args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
