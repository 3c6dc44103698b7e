r"""Training throughput of one DCN-v2: rankax beside PyTorch, in examples per second.

python -m benchmarks.models --json=models.json   # some minutes; needs the bench extra
python -m benchmarks.models --quick              # a first look

The network: F categorical fields of dim D, a cross tower of full-rank layers beside an
MLP, one logit. All contestants see the same examples, in batches of the same size:

- rankax reads a dataset folder with its own reader, routes the ids and runs the step:
  the whole path of a training run. Adam on dense weights, row-wise Adagrad on tables.
- PyTorch (eager) takes ready batches from memory, ids already converted, so that its
  time is the step alone. Adam on everything, with the plain and with the fused kernel,
  or SparseAdam on the table and Adam on the rest.

Each trial is a process of its own; contestants take turns, so that a slow minute of the
machine hits all of them. Warm-up steps (compilation included) are not timed.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.measure import Schedule, Times
from rankax.data.card import Card, CategoricalField, Label, Split, Table

LANES = 16
EMBEDDING_STD = 1e-2


# ---------------------------------------------------------------- workload


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The examples and the network.

    Attributes:
        num_fields: F.
        num_rows: V of all tables together.
        dim: D.
        batch_size: B.
        num_batches: batches of distinct examples, which a trial repeats.
        num_cross_layers: depth of the cross tower.
        hidden_dims: widths of the MLP.
        exponent: of the power law that ids follow within a field.
        seed: same seed, same examples.
    """

    num_fields: int = 39
    num_rows: int = 1_000_000
    dim: int = 16
    batch_size: int = 4096
    num_batches: int = 64
    num_cross_layers: int = 3
    hidden_dims: tuple[int, ...] = (400, 400, 400)
    exponent: float = 1.05
    seed: int = 0

    @property
    def num_examples(self) -> int:
        """Distinct examples."""
        return self.num_batches * self.batch_size

    def table_sizes(self) -> list[int]:
        """Rows of each field's table: a few large ones, many small, V in all."""
        shares = 0.75 ** np.arange(self.num_fields)
        sizes = [max(10, int(self.num_rows * s / shares.sum())) for s in shares]
        sizes[0] += self.num_rows - sum(sizes)
        if sizes[0] < 10:
            raise SystemExit(
                f"--rows={self.num_rows} is too few for --fields={self.num_fields}; "
                f"use at least {20 * self.num_fields}"
            )
        return sizes

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids [n, F] int32, frequent ids first, and labels [n] int32."""
        rng = np.random.default_rng(self.seed)
        ids = np.empty((self.num_examples, self.num_fields), np.int32)
        logits = np.full(self.num_examples, -1.0)
        power = 1 - self.exponent
        for field, size in enumerate(self.table_sizes()):
            # Inverse distribution function of the density x^-exponent on [1, size + 1).
            u = rng.random(self.num_examples)
            x = (1 - u * (1 - (size + 1) ** power)) ** (1 / power)
            ids[:, field] = np.minimum(x.astype(np.int64) - 1, size - 1)
            logits += rng.normal(0, 0.2, size)[ids[:, field]]
        labels = rng.random(self.num_examples) < 1 / (1 + np.exp(-logits))
        return ids, labels.astype(np.int32)


def write_examples(workload: Workload, folder: pathlib.Path) -> None:
    """Writes `ids.npy` and `labels.npy` for PyTorch, a dataset folder for rankax."""
    ids, labels = workload.examples()
    np.save(folder / "ids.npy", ids)
    np.save(folder / "labels.npy", labels)
    names = [f"c{field:02d}" for field in range(workload.num_fields)]
    columns = {name: ids[:, field] for field, name in enumerate(names)}
    (folder / "train").mkdir()
    pq.write_table(
        pa.table({"ctr": labels, **columns}),
        folder / "train" / "0.parquet",
        row_group_size=-(-workload.num_examples // LANES),
        compression="snappy",
    )
    Card(
        name="benchmark",
        tables=tuple(
            Table(name=name, num_rows=size)
            for name, size in zip(names, workload.table_sizes(), strict=True)
        ),
        fields=tuple(CategoricalField(name=name, table=name) for name in names),
        labels=(Label(name="ctr"),),
        splits={"train": Split(num_rows=workload.num_examples)},
    ).save(folder)


# ---------------------------------------------------------------- one trial


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one process measured.

    Attributes:
        times: step times.
        loss: of the last batch: contestants should learn alike.
        num_dense_parameters: weights outside the tables: the same for all.
        input_wait: fraction of the timed steps spent waiting for a batch.
        version: framework and version.
        peak_memory_bytes: highest resident size of the process.
        load: 1-minute load average of the machine before the trial began.
    """

    times: Times
    loss: float
    num_dense_parameters: int
    input_wait: float
    version: str
    peak_memory_bytes: int = 0
    load: float = 0.0


def run_rankax(workload: Workload, folder: pathlib.Path, schedule: Schedule) -> Trial:
    """Trains the network in rankax, from the files on."""
    # Imported late: PyTorch's processes run from this file too, and need no jax.
    import jax

    from rankax.config.experiment import ExperimentConfig, ParquetConfig
    from rankax.data import lanes, source
    from rankax.data.schema import Schema
    from rankax.models.backbones.dcnv2 import DCNv2Config
    from rankax.parallel import mesh
    from rankax.training.step import Steps

    config = ExperimentConfig()
    config.data.source = ParquetConfig(path=str(folder))
    config.data.lanes = LANES
    config.model.backbone = DCNv2Config(
        embedding_dim=workload.dim,
        embedding_init_std=EMBEDDING_STD,
        num_cross_layers=workload.num_cross_layers,
        hidden_dims=workload.hidden_dims,
    )
    config.train.seed = workload.seed
    config.train.batch_size = workload.batch_size
    config.train.num_steps = schedule.num_steps
    config.validate()

    schema = Schema.select(source.load_card(config.data.source))
    steps = Steps(config, schema, mesh.make_mesh())
    state = steps.init_state()
    batches = lanes.read_batches(
        source.open_split(config.data.source, "train", schema),
        schema,
        batch_size=workload.batch_size,
        lanes=LANES,
        seed=workload.seed,
        shuffle=True,
        num_epochs=None,
        map_batch=steps.to_devices,
    )
    loss = jax.numpy.zeros(())
    waits = []

    def step() -> None:
        nonlocal state, loss
        begin = time.perf_counter()
        batch, _ = next(batches)
        waits.append(time.perf_counter() - begin)
        running = loss
        state, loss, _ = steps.train(state, batch, factor=1.0)
        # One step runs, one is queued. Further ahead, the loop would outrun the reader
        # and wait for it while the device is busy, which is no lost time.
        running.block_until_ready()

    times = measure.time_chunks(schedule, step, lambda: jax.block_until_ready(state))
    batches.close()
    timed = schedule.num_steps - schedule.warmup_steps
    return Trial(
        times=times,
        loss=float(loss),
        num_dense_parameters=steps.num_dense_parameters,
        input_wait=sum(waits[-timed:]) / (sum(times.wall) * schedule.steps_per_chunk),
        version=f"jax {jax.__version__}",
    )


def run_torch(
    workload: Workload, folder: pathlib.Path, schedule: Schedule, *, tables: str
) -> Trial:
    """Trains the network in PyTorch; `tables`: "adam", "fused_adam", "sparse_adam"."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise SystemExit(
            "PyTorch is not installed; pip install -e '.[bench]', or leave its "
            "contestants out with --contestants=rankax"
        ) from error
    from torch import nn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(workload.seed)
    width = workload.num_fields * workload.dim

    class DCNv2(nn.Module):
        def __init__(self):
            super().__init__()
            # One table for all fields: one lookup and one update a step.
            self.table = nn.Embedding(
                workload.num_rows, workload.dim, sparse=tables == "sparse_adam"
            )
            nn.init.normal_(self.table.weight, std=EMBEDDING_STD)
            self.cross = nn.ModuleList(
                nn.Linear(width, width) for _ in range(workload.num_cross_layers)
            )
            widths = (width, *workload.hidden_dims)
            layers = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU()]
            self.mlp = nn.Sequential(*layers)
            self.head = nn.Linear(width + widths[-1], 1)

        def forward(self, ids):
            x0 = x = self.table(ids).flatten(1)  # [B, F·D]
            for layer in self.cross:
                x = x0 * layer(x) + x
            return self.head(torch.cat([x, self.mlp(x0)], dim=1))[:, 0]

    offsets = np.cumsum([0, *workload.table_sizes()[:-1]])
    ids = torch.from_numpy(np.load(folder / "ids.npy") + offsets)
    ids = ids.split(workload.batch_size)
    labels = torch.from_numpy(np.load(folder / "labels.npy")).float()
    labels = labels.split(workload.batch_size)

    model = DCNv2()
    dense = [p for name, p in model.named_parameters() if name != "table.weight"]
    if tables == "sparse_adam":
        optimizers = [
            torch.optim.SparseAdam([model.table.weight], lr=1e-3),
            torch.optim.Adam(dense, lr=1e-3),
        ]
    else:
        fused = tables == "fused_adam"
        optimizers = [torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)]
    loss = torch.zeros(())
    count = 0

    def step() -> None:
        nonlocal loss, count
        batch = count % workload.num_batches
        count += 1
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        logits = model(ids[batch])
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    return Trial(
        # On CPU nothing is queued.
        times=measure.time_chunks(schedule, step, lambda: None),
        loss=loss.item(),
        num_dense_parameters=sum(p.numel() for p in dense),
        input_wait=0.0,
        version=f"torch {torch.__version__}",
    )


def run_trial(
    name: str, *, workload: Workload, folder: pathlib.Path, schedule: Schedule
) -> Trial:
    """Runs one contestant; called in a fresh process."""
    load = os.getloadavg()[0]
    trial = CONTESTANTS[name].run(workload, folder, schedule)
    peak = measure.peak_memory_bytes()
    return dataclasses.replace(trial, peak_memory_bytes=peak, load=load)


@dataclasses.dataclass(frozen=True, slots=True)
class Contestant:
    """A line of the table."""

    title: str
    run: Callable[[Workload, pathlib.Path, Schedule], Trial]


CONTESTANTS = {
    "rankax": Contestant("rankax, Adam + row-wise Adagrad", run_rankax),
    "torch_adam": Contestant(
        "PyTorch, Adam", functools.partial(run_torch, tables="adam")
    ),
    "torch_fused_adam": Contestant(
        "PyTorch, fused Adam", functools.partial(run_torch, tables="fused_adam")
    ),
    "torch_sparse_adam": Contestant(
        "PyTorch, SparseAdam", functools.partial(run_torch, tables="sparse_adam")
    ),
}
REFERENCE = "torch_adam"


# ---------------------------------------------------------------- rounds and report


def run_rounds(
    names: Sequence[str],
    *,
    num_rounds: int,
    workload: Workload,
    schedule: Schedule,
    num_threads: int,
) -> dict[str, list[Trial]]:
    """Runs every contestant once a round, each time in a new process."""
    results: dict[str, list[Trial]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        write_examples(workload, folder)
        for index in range(num_rounds):
            for name in names:
                trial = measure.run_alone(
                    run_trial,
                    name,
                    workload=workload,
                    folder=folder,
                    schedule=schedule,
                    num_threads=num_threads,
                )
                results[name].append(trial)
            print(round_line(index, results, workload.batch_size), flush=True)
    return results


def round_line(index: int, results: dict[str, list[Trial]], batch_size: int) -> str:
    """Returns one round's rates and ratios in a line."""
    medians = {
        name: statistics.median(trials[index].times.wall)
        for name, trials in results.items()
    }
    parts = []
    for name, seconds in medians.items():
        part = f"{name} {batch_size / seconds:,.0f}/s"
        if REFERENCE in medians and name != REFERENCE:
            part += f" ({medians[REFERENCE] / seconds:.2f}×)"
        parts.append(part)
    loads = [trials[index].load for trials in results.values()]
    return f"round {index + 1}: {', '.join(parts)}; load {max(loads):.1f}"


def summarize(trials: Sequence[Trial], *, batch_size: int) -> dict[str, float]:
    """Pools the chunks of all rounds."""
    wall = [seconds for trial in trials for seconds in trial.times.wall]
    cpu = [seconds for trial in trials for seconds in trial.times.cpu]
    return {
        "median_step_seconds": statistics.median(wall),
        "min_step_seconds": min(wall),
        "median_cpu_seconds": statistics.median(cpu),
        "examples_per_second": batch_size / statistics.median(wall),
        "best_examples_per_second": batch_size / min(wall),
        "input_wait": max(trial.input_wait for trial in trials),
        "peak_memory_bytes": max(trial.peak_memory_bytes for trial in trials),
        "loss": statistics.median(trial.loss for trial in trials),
        "num_dense_parameters": trials[0].num_dense_parameters,
    }


def markdown(summaries: dict[str, dict[str, float]]) -> str:
    """Returns the table; ratios are to PyTorch with Adam, where it took part."""
    lines = [
        "| contestant | examples/s (median) | × PyTorch Adam, by median / by best "
        "| ms a step, median / best | CPU ms a step | input-wait | peak MB | loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    reference = summaries.get(REFERENCE)
    for name, s in summaries.items():
        ratio = "-"
        if reference:
            median = s["examples_per_second"] / reference["examples_per_second"]
            best = s["best_examples_per_second"] / reference["best_examples_per_second"]
            ratio = f"{median:.2f} / {best:.2f}"
        lines.append(
            f"| {CONTESTANTS[name].title} | {s['examples_per_second']:,.0f} | {ratio} "
            f"| {1e3 * s['median_step_seconds']:.0f} "
            f"/ {1e3 * s['min_step_seconds']:.0f} "
            f"| {1e3 * s['median_cpu_seconds']:.0f} | {s['input_wait']:.1%} "
            f"| {s['peak_memory_bytes'] / 1e6:,.0f} | {s['loss']:.4f} |"
        )
    return "\n".join(lines)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    default = Workload()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description="Training throughput of one DCN-v2, rankax beside PyTorch.",
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds, few steps")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--fields", type=int, default=default.num_fields)
    parser.add_argument("--rows", type=int, default=default.num_rows)
    parser.add_argument("--batch_size", type=int, default=default.batch_size)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=list(CONTESTANTS),
        default=list(CONTESTANTS),
    )
    args = parser.parse_args(argv)
    if args.batch_size % LANES:
        parser.error(f"--batch_size={args.batch_size} must be a multiple of {LANES}")
    return args


def main() -> None:
    """Runs the rounds, prints the table, writes the JSON file."""
    args = parse_arguments()
    os.environ["JAX_PLATFORMS"] = "cpu"  # PyTorch's contestants run on CPU only
    workload = Workload(
        num_fields=args.fields, num_rows=args.rows, batch_size=args.batch_size
    )
    num_rounds = 2 if args.quick else 5
    schedule = Schedule(
        warmup_steps=3 if args.quick else 5,
        num_chunks=2 if args.quick else 4,
        steps_per_chunk=5 if args.quick else 10,
    )
    machine, _ = measure.run_alone(measure.describe)
    about = measure.hardware_line(machine, args.threads)
    print(about)
    print(
        f"DCN-v2: {workload.num_fields} fields × {workload.dim}, "
        f"{workload.num_cross_layers} cross layers, MLP {workload.hidden_dims}, batch "
        f"{workload.batch_size}, {workload.num_rows:,} rows, float32; {num_rounds} "
        f"rounds of {schedule.num_chunks} × {schedule.steps_per_chunk} steps",
        flush=True,
    )
    results = run_rounds(
        args.contestants,
        num_rounds=num_rounds,
        workload=workload,
        schedule=schedule,
        num_threads=args.threads,
    )
    sizes = {trials[0].num_dense_parameters for trials in results.values()}
    if len(sizes) > 1:
        raise SystemExit(f"the networks differ: dense parameters {sorted(sizes)}")
    summaries = {
        name: summarize(trials, batch_size=workload.batch_size)
        for name, trials in results.items()
    }
    versions = sorted({trials[0].version for trials in results.values()})
    print(f"\n{about}, {', '.join(versions)}\n\n{markdown(summaries)}")
    busiest = max(trial.load for trials in results.values() for trial in trials)
    if busiest > args.threads + 0.5:  # the trials themselves load their cores
        print(
            f"\nNot a quiet machine: load {busiest:.1f} with {args.threads} threads at "
            "work. OpenMP threads spin while they wait, so PyTorch loses more than "
            "rankax; repeat it before quoting a ratio."
        )
    if args.json:
        content = {
            "hardware": about,
            "versions": versions,
            "workload": dataclasses.asdict(workload),
            "schedule": dataclasses.asdict(schedule),
            "summary": summaries,
            "rounds": {
                name: [dataclasses.asdict(trial) for trial in trials]
                for name, trials in results.items()
            },
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
