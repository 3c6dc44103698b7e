r"""Latency of a bundle: one user's candidates, beside the bare network and TorchScript.

python -m benchmarks.serving --json=serving.json   # needs the bench extra
python -m benchmarks.serving --quick               # fewer requests, no large bundle

The DCN-v2 of benchmarks/models.py is trained for three steps on ids that follow a power
law, exported, and scores requests of one user and 500 candidates: a third of the fields
are the user's. In one process, in turns of 50 requests:

    scorer       `Scorer.score`: checks, ids to rows, look-up, network, probabilities
    bare         the compiled network alone, on rows that are looked up already
    torchscript  the same network and tables in PyTorch, frozen, from ids as arrays

and, in fresh processes, the seconds from opening a bundle to the first scores of 500
candidates whose rows nobody has read before in that process.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import shutil
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import measure, peers
from benchmarks.measure import Record
from benchmarks.peers import Workload

CANDIDATES = 500
USER_FIELDS = 13  # of 39
TURN, WARM_UP = 50, 5
OPENINGS = 3


def make_bundle(folder: pathlib.Path, num_rows: int) -> pathlib.Path:
    """Trains and exports; call it in a process of its own. Returns the bundle."""
    from rankax.data import card as cards
    from rankax.data.card import Split
    from rankax.export import export
    from rankax.train import train

    workload = _workload(num_rows)
    data = folder / "data"
    peers.write_examples(workload, data)
    for name in ("valid", "test"):
        shutil.copytree(data / "train", data / name)
    card = cards.load(data)
    splits = {
        name: Split(num_rows=workload.num_examples) for name in ("train", "valid")
    }
    dataclasses.replace(card, splits=splits | {"test": splits["valid"]}).save(data)
    config = peers.rankax_config(workload, data, peers.backbone(workload))
    config.train.num_epochs, config.train.num_steps = 0, 3
    config.eval.test = False
    config.observe.tensorboard = config.observe.report = False
    config.tables.replicate_below_bytes = 0
    train(config, str(folder / "run"))
    export(config, str(folder / "run"), folder=str(folder / "bundle"))
    return folder / "bundle"


def _workload(num_rows: int) -> Workload:
    return Workload(num_rows=num_rows, num_batches=4)


def requests(workload: Workload, number: int) -> list[tuple[dict, dict, np.ndarray]]:
    """Returns (candidates, the user's features, ids [n, F]) of each request."""
    ids, _ = workload.examples()
    rng, result = np.random.default_rng(1), []
    for _ in range(number):
        own = ids[rng.integers(0, len(ids), CANDIDATES)]
        own[:, :USER_FIELDS] = own[0, :USER_FIELDS]
        columns = dict(zip(workload.fields, own.T, strict=True))
        user = {name: int(columns[name][0]) for name in workload.fields[:USER_FIELDS]}
        rest = {name: columns[name] for name in workload.fields[USER_FIELDS:]}
        result.append((rest, user, own))
    return result


def measure_latency(bundle: pathlib.Path, num_rows: int, number: int) -> list[Record]:
    """Times requests; call it in a process of its own."""
    import jax
    import torch

    from rankax.serving import Scorer

    workload = _workload(num_rows)
    scorer = Scorer(bundle, sizes=(512,))
    inputs = scorer.prepare(*requests(workload, 1)[0][:2])
    network = jax.jit(scorer.bundle.function().call)
    dense = jax.device_put(scorer.bundle.dense)
    script = _torchscript(workload)

    def bare(request) -> None:
        del request
        jax.block_until_ready(network(dense, *inputs))

    def torchscript(request) -> None:
        with torch.inference_mode():
            script(torch.from_numpy(request[2].astype(np.int64))).numpy()

    contestants = {
        "scorer": lambda request: scorer.score(request[0], request[1]),
        "bare": bare,
        "torchscript": torchscript,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    asked = requests(workload, number)
    for start in range(0, number, TURN):
        for name, call in contestants.items():
            # The threads of the one before may still wait for work at full speed.
            time.sleep(0.3)
            for request in asked[:WARM_UP]:
                call(request)
            for request in asked[start : start + TURN]:
                begin = time.perf_counter()
                call(request)
                times[name].append(1e3 * (time.perf_counter() - begin))
    bare_median = statistics.median(times["bare"])
    return [
        {
            "status": "ok",
            "contestant": name,
            "num_rows": num_rows,
            "requests": number,
            **{f"p{p}_ms": float(np.percentile(own, p)) for p in (50, 90, 99)},
            "p50_ratio": statistics.median(own) / bare_median,
        }
        for name, own in times.items()
    ]


def _torchscript(workload: Workload) -> Any:
    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = nn.ModuleList(
                nn.Embedding(size, workload.dim) for size in workload.table_sizes()
            )
            self.network = peers.torch_network(workload)

        def forward(self, ids):
            rows = []
            for field, table in enumerate(self.tables):
                rows.append(table(ids[:, field]))
            return torch.sigmoid(self.network(torch.cat(rows, dim=1)))

    return torch.jit.freeze(torch.jit.script(Model().eval()))


def measure_opening(bundle: pathlib.Path, num_rows: int) -> float:
    """Returns the seconds from opening to the first scores; in a fresh process."""
    from rankax.serving import Scorer

    rest, user, _ = requests(_workload(num_rows), 1)[0]
    begin = time.perf_counter()
    Scorer(bundle, sizes=(512,)).score(rest, user)
    return time.perf_counter() - begin


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving",
        description="Latency of a bundle, and the time until it is ready.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--rows", type=measure.number, default=1_000_000)
    parser.add_argument(
        "--large_rows",
        type=measure.number,
        default=15_625_000,
        help="of the bundle that is opened: 1 GB",
    )
    parser.add_argument("--requests", type=measure.number, default=0)
    args = parser.parse_args(argv)
    args.requests = args.requests or (30 if args.quick else 1_000)
    return args


def main() -> None:
    """Measures, prints tables, writes the JSON file."""
    args = parse_arguments()
    machine, versions = measure.run_alone(measure.describe)
    print(measure.hardware_line(machine, machine["cpu_cores"]))
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    openings = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        bundle = measure.run_alone(make_bundle, folder / "small", args.rows)
        latencies = measure.run_alone(measure_latency, bundle, args.rows, args.requests)
        sizes = [args.rows] if args.quick else [args.rows, args.large_rows]
        for rows in sizes:
            if rows != args.rows:
                bundle = measure.run_alone(make_bundle, folder / "large", rows)
            seconds = [
                measure.run_alone(measure_opening, bundle, rows)
                for _ in range(OPENINGS)
            ]
            openings.append(
                {
                    "status": "ok",
                    "num_rows": rows,
                    "seconds": statistics.median(seconds),
                }
            )
    print(f"\n{CANDIDATES} candidates of one user, {args.requests:,} requests:\n")
    print(
        measure.table(
            latencies,
            cell={"": "{contestant}"},
            measured={
                "p50, ms": "{p50_ms:.2f}",
                "p90, ms": "{p90_ms:.2f}",
                "p99, ms": "{p99_ms:.2f}",
                "p50 / bare": "{p50_ratio:.2f}",
            },
        )
    )
    print("\nFrom opening to the first scores:\n")
    print(
        measure.table(
            openings,
            cell={"rows of all tables": "{num_rows:,}"},
            measured={"s": "{seconds:.2f}"},
        )
    )
    if args.json:
        content = {
            "hardware": machine,
            "versions": versions,
            "latency": latencies,
            "opening": openings,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
