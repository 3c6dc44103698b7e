r"""Latency of a bundle beside its bare network, TorchScript and ONNX Runtime.

python -m benchmarks.serving --json=serving.json   # needs the bench extra
python -m benchmarks.serving --quick               # fewer requests, no large bundle
python -m benchmarks.serving --parts=deltas        # one part alone

The DCN-v2 of benchmarks/models.py is trained for three steps on ids that follow a power
law, exported, and scores requests of one user and 500 candidates: a third of the fields
are the user's. In one process, in turns of 50 requests:

    scorer       `Scorer.score`: checks, ids to rows, look-up, network, probabilities
    bare         the compiled network alone, on rows that are looked up already
    torchscript  the same network and tables in PyTorch, frozen, from ids as arrays
    onnxruntime  the same, exported from PyTorch

In fresh processes, the seconds from opening a bundle to the first scores of 500
candidates: with its files in the system's cache, and with the cache emptied of them.

And deltas of 100,000 rows and the dense parameters, applied while another thread scores
without a pause: the time until requests see one, the time until it is in both sides of
the tables, and how long the requests take meanwhile.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import tempfile
import threading
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
DELTAS, DELTA_ROWS = 12, 100_000
PARTS = ("latency", "opening", "deltas")


def make_bundle(folder: pathlib.Path, num_rows: int) -> pathlib.Path:
    """Trains and exports; call it in a process of its own. Returns the bundle."""
    from rankax.data import card as cards
    from rankax.data.card import Split
    from rankax.export import export
    from rankax.train import train

    workload = workload_of(num_rows)
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


def workload_of(num_rows: int) -> Workload:
    """Returns what the bundles hold."""
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


def time_in_turns(
    contestants: Mapping[str, Callable[[Any], object]],
    asked: Sequence[Any],
    number: int,
) -> dict[str, list[float]]:
    """Calls each contestant with every request, in turns; returns milliseconds.

    Args:
        contestants: name -> what answers a request.
        asked: the requests, again from the first one where they are too few.
        number: of calls of each contestant.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for start in range(0, number, TURN):
        for name, call in contestants.items():
            # The threads of the one before may still wait for work at full speed.
            time.sleep(0.3)
            for request in asked[:WARM_UP]:
                call(request)
            for place in range(start, min(start + TURN, number)):
                request = asked[place % len(asked)]
                begin = time.perf_counter()
                call(request)
                times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Returns p50, p90 and p99 of milliseconds."""
    return {f"p{p}_ms": float(np.percentile(times, p)) for p in (50, 90, 99)}


def measure_latency(bundle: pathlib.Path, num_rows: int, number: int) -> list[Record]:
    """Times requests; call it in a process of its own."""
    import jax
    import torch

    from rankax.serving import Scorer

    workload = workload_of(num_rows)
    scorer = Scorer(bundle, sizes=(512,))
    inputs = scorer.prepare(*requests(workload, 1)[0][:2])
    network = jax.jit(scorer.bundle.function().call)
    dense = jax.device_put(scorer.bundle.dense)
    model = _torch_model(workload)
    script = torch.jit.freeze(torch.jit.script(model))
    session = _onnx_session(model, workload)

    def bare(request) -> None:
        del request
        jax.block_until_ready(network(dense, *inputs))

    def torchscript(request) -> None:
        with torch.inference_mode():
            script(torch.from_numpy(request[2].astype(np.int64))).numpy()

    def onnxruntime(request) -> None:
        session.run(None, {"ids": request[2].astype(np.int64)})

    contestants = {
        "scorer": lambda request: scorer.score(request[0], request[1]),
        "bare": bare,
        "torchscript": torchscript,
        "onnxruntime": onnxruntime,
    }
    asked = requests(workload, number)
    times = time_in_turns(contestants, asked, number)
    bare_median = statistics.median(times["bare"])
    return [
        {
            "status": "ok",
            "contestant": name,
            "num_rows": num_rows,
            "requests": number,
            **percentiles(own),
            "p50_ratio": statistics.median(own) / bare_median,
        }
        for name, own in times.items()
    ]


def _torch_model(workload: Workload) -> Any:
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

    return Model().eval()


def _onnx_session(model: Any, workload: Workload) -> Any:
    import onnxruntime
    import torch

    ids = torch.zeros((2, len(workload.fields)), dtype=torch.int64)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(
            model,
            (ids,),
            path,
            input_names=["ids"],
            dynamic_shapes={"ids": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def measure_opening(bundle: pathlib.Path, num_rows: int, is_cold: bool) -> float:
    """Returns the seconds from opening to the first scores; in a fresh process.

    Args:
        bundle: its folder.
        num_rows: of all its tables.
        is_cold: empties the system's cache of its files before.
    """
    from rankax.serving import Scorer

    rest, user, _ = requests(workload_of(num_rows), 1)[0]
    if is_cold:
        os.sync()
        for path in filter(pathlib.Path.is_file, bundle.rglob("*")):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begin = time.perf_counter()
    Scorer(bundle, sizes=(512,)).score(rest, user)
    return time.perf_counter() - begin


def measure_deltas(bundle: pathlib.Path, num_rows: int) -> Record:
    """Applies deltas while requests go on; call it in a process of its own."""
    from rankax.serving import Scorer

    paths = [_write_delta(bundle, number) for number in range(1, DELTAS + 1)]
    scorer, asked = Scorer(bundle, sizes=(512,)), requests(workload_of(num_rows), 20)
    seen: list[tuple[float, float, int]] = []  # begin, end, step of each request
    is_over = threading.Event()

    def score() -> None:
        while not is_over.is_set():
            for rest, user, _ in asked:
                begin = time.perf_counter()
                _, step = scorer.logits_at(rest, user)
                seen.append((begin, time.perf_counter(), step))

    thread = threading.Thread(target=score)
    thread.start()
    time.sleep(2)
    applied = []
    for path in paths:
        begin = time.perf_counter()
        scorer.apply(path)
        applied.append((begin, time.perf_counter(), scorer.step))
        time.sleep(1)
    is_over.set()
    thread.join()
    visible = [
        next(start for start, _, step in seen if step == new) - begin
        for begin, _, new in applied
    ]
    meanwhile, between = [], []
    for begin, end, _ in seen[5:]:
        is_meanwhile = any(begin < b and a < end for a, b, _ in applied)
        (meanwhile if is_meanwhile else between).append(1e3 * (end - begin))
    return {
        "status": "ok",
        "num_rows": num_rows,
        "delta_rows": DELTA_ROWS,
        "delta_bytes": paths[0].stat().st_size,
        "visible_ms": 1e3 * statistics.median(visible),
        "applied_ms": 1e3 * statistics.median(b - a for a, b, _ in applied),
        "slowest_ms": 1e3 * max(b - a for a, b, _ in applied),
        "meanwhile_p50_ms": float(np.percentile(meanwhile, 50)),
        "meanwhile_max_ms": max(meanwhile),
        "between_p50_ms": float(np.percentile(between, 50)),
        "between_p99_ms": float(np.percentile(between, 99)),
    }


def _write_delta(folder: pathlib.Path, number: int) -> pathlib.Path:
    """Writes a delta of random rows all over the tables."""
    from rankax.serving import delta as deltas
    from rankax.serving.bundle import Bundle
    from rankax.serving.delta import Change

    bundle, rng = Bundle(folder), np.random.default_rng(number)
    (role,) = bundle.roles
    sizes, dim = bundle.roles[role].tables, bundle.roles[role].dim
    ids = np.sort(rng.choice(sum(sizes.values()), DELTA_ROWS, replace=False))
    changes, start = {}, 0
    for table, size in sizes.items():
        own = ids[(ids >= start) & (ids < start + size)] - start
        start += size
        rows = rng.normal(size=(len(own), dim)).astype(np.float32)
        changes[role, table] = Change(ids=own.astype(np.int32), rows=rows)
    step = bundle.signature["step"] + number
    delta = deltas.make(
        bundle,
        changes,
        bundle.dense,
        number=number,
        previous_step=step - 1,
        step=step,
    )
    return deltas.write(folder, delta)


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
    parser.add_argument(
        "--parts",
        type=lambda text: text.split(","),
        default=PARTS,
        help=f"of {','.join(PARTS)}",
    )
    parser.add_argument("--requests", type=measure.number, default=0)
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"--parts: {part!r} is none of {', '.join(PARTS)}")
    args.requests = args.requests or (30 if args.quick else 1_000)
    return args


def main() -> None:
    """Measures, prints tables, writes the JSON file."""
    args = parse_arguments()
    content = measure.introduce()
    latencies, openings, applied = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        sizes = [args.rows] if args.quick else [args.rows, args.large_rows]
        for rows in sizes:
            bundle = measure.run_alone(make_bundle, folder / f"{rows}", rows)
            if "latency" in args.parts and rows == args.rows:
                latencies = measure.run_alone(
                    measure_latency, bundle, rows, args.requests
                )
            for is_cold in (False, True) if "opening" in args.parts else ():
                seconds = [
                    measure.run_alone(measure_opening, bundle, rows, is_cold)
                    for _ in range(OPENINGS)
                ]
                openings.append(
                    {
                        "status": "ok",
                        "num_rows": rows,
                        "files": "on the disk" if is_cold else "in the cache",
                        "seconds": statistics.median(seconds),
                    }
                )
            if "deltas" in args.parts:
                applied.append(measure.run_alone(measure_deltas, bundle, rows))
    if latencies:
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
    if openings:
        print("\nFrom opening to the first scores:\n")
        print(
            measure.table(
                openings,
                cell={"rows of all tables": "{num_rows:,}", "files": "{files}"},
                measured={"s": "{seconds:.2f}"},
            )
        )
    if applied:
        print(f"\n{DELTAS} deltas of {DELTA_ROWS:,} rows, another thread scoring:\n")
        print(
            measure.table(
                applied,
                cell={"rows of all tables": "{num_rows:,}"},
                measured={
                    "seen after, ms": "{visible_ms:.0f}",
                    "on both sides after, ms": "{applied_ms:.0f}",
                    "slowest, ms": "{slowest_ms:.0f}",
                    "requests meanwhile: p50, ms": "{meanwhile_p50_ms:.1f}",
                    "slowest request, ms": "{meanwhile_max_ms:.1f}",
                    "between: p50, ms": "{between_p50_ms:.1f}",
                    "p99, ms": "{between_p99_ms:.1f}",
                },
            )
        )
    if args.json:
        content |= {"latency": latencies, "opening": openings, "deltas": applied}
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
