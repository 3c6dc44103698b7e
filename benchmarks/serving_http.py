r"""What HTTP adds to a bundle's latency, and how many requests a machine answers.

python -m benchmarks.serving_http --json=serving_http.json   # needs the serve extra
python -m benchmarks.serving_http --quick                    # fewer requests

The bundle and the requests of benchmarks/serving.py: DCN-v2 with 39 fields, one user
and 500 candidates. A server process and this one share the machine. In turns of 50
requests, one at a time:

    scorer   `Scorer.score` in this process, from arrays
    text     what the server does with a body, in this process: JSON text to JSON text
    http     the server, by http.client and one connection that is kept

Then wrk (https://github.com/wg/wrk, `apt install wrk`), if it is on PATH, asks the
server for some seconds at each concurrency, with other bodies in turn, over connections
that are kept. Every first answer is compared with the scorer's, all others by status.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import http.client
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks import measure
from benchmarks.measure import Record
from benchmarks.serving import (
    CANDIDATES,
    make_bundle,
    percentiles,
    requests,
    time_in_turns,
    workload_of,
)

CONCURRENCIES = (1, 4, 16)
NUM_BODIES = 100
SIZES = (512,)
_HEADERS = {"Content-Type": "application/json"}
# Prints one line of JSON; times of wrk are in microseconds.
_LUA = """
local bodies, number = {}, 0
function init(arguments)
  for line in io.lines(arguments[1]) do
    bodies[#bodies + 1] = wrk.format("POST", "/score", nil, line)
  end
end
wrk.headers["Content-Type"] = "application/json"
function request()
  number = number % #bodies + 1
  return bodies[number]
end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n{"requests": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, ' ..
    '"errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def body_of(request: tuple[dict, dict, np.ndarray]) -> bytes:
    """Returns a request as JSON text."""
    features = {name: values.tolist() for name, values in request[0].items()}
    return json.dumps({"features": features, "shared": request[1]}).encode()


@contextlib.contextmanager
def server(bundle: pathlib.Path) -> Iterator[int]:
    """Runs the server in a process of its own; gives its port once it is ready."""
    command = [sys.executable, "-m", "rankax.serving.http", f"--bundle={bundle}"]
    command += ["--port=0", f"--sizes={','.join(map(str, SIZES))}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        found = re.search(r":(\d+);", first)
        if not found or not second.startswith("ready"):
            raise RuntimeError(f"the server did not start: {first}{second}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


def measure_added(
    bundle: pathlib.Path, num_rows: int, number: int, port: int
) -> list[Record]:
    """Times requests one by one; call it in a process of its own.

    Raises:
        ValueError: the server answers otherwise than the scorer.
    """
    from rankax.serving import Scorer
    from rankax.serving.app import Service
    from rankax.serving.follow import Follower

    asked = requests(workload_of(num_rows), min(number, NUM_BODIES))
    bodies = [body_of(request) for request in asked]
    scorer = Scorer(bundle, sizes=SIZES)
    follower = Follower(bundle, poll_seconds=0, opener=lambda folder: scorer)
    service = Service(lambda: follower)
    service.follower = follower
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def over_http(index: int) -> bytes:
        connection.request("POST", "/score", bodies[index], _HEADERS)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise ValueError(f"the server answered {answer.status}: {content[:200]!r}")
        return content

    expected = scorer.score(asked[0][0], asked[0][1])
    for task, found in json.loads(over_http(0))["scores"].items():
        if not np.array_equal(np.float32(found), expected[task]):
            raise ValueError("the server's scores are not those of the scorer")

    contestants = {
        "scorer": lambda index: scorer.score(asked[index][0], asked[index][1]),
        "text": lambda index: service.score(bodies[index]),
        "http": over_http,
    }
    times = time_in_turns(contestants, range(len(asked)), number)
    median = statistics.median(times["scorer"])
    return [
        {
            "status": "ok",
            "contestant": name,
            "num_rows": num_rows,
            "requests": number,
            **percentiles(own),
            "added_ms": statistics.median(own) - median,
        }
        for name, own in times.items()
    ]


def measure_load(
    port: int, bodies: pathlib.Path, script: pathlib.Path, seconds: int, rounds: int
) -> list[Record]:
    """Asks by wrk at each concurrency, in turns; medians over the rounds."""
    results: dict[int, list[Record]] = {n: [] for n in CONCURRENCIES}
    for _ in range(rounds):
        for concurrency, own in results.items():
            time.sleep(1)  # the server still scores what the wrk before has left
            command = ["wrk", "--threads=1", f"--connections={concurrency}"]
            command += [f"--duration={seconds}s", "--timeout=30s", f"--script={script}"]
            command += [f"http://127.0.0.1:{port}/score", "--", str(bodies)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            own.append(json.loads(done.stdout.splitlines()[-1]))
            measure.tell(f"wrk, {concurrency} at a time: {own[-1]}")
    return [
        {
            "status": "ok",
            "concurrency": concurrency,
            "requests": sum(x["requests"] for x in own),
            "errors": sum(x["errors"] for x in own),
            "per_second": statistics.median(x["requests"] / x["seconds"] for x in own),
            **{
                name: statistics.median(x[name] for x in own)
                for name in ("p50_ms", "p99_ms")
            },
        }
        for concurrency, own in results.items()
    ]


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_http",
        description="What HTTP adds to a bundle's latency, and requests per second.",
    )
    parser.add_argument("--quick", action="store_true", help="a first look")
    parser.add_argument("--json", type=pathlib.Path, help="also write everything here")
    parser.add_argument("--rows", type=measure.number, default=1_000_000)
    parser.add_argument("--requests", type=measure.number, default=0)
    parser.add_argument(
        "--seconds", type=measure.number, default=0, help="of wrk at each concurrency"
    )
    parser.add_argument("--rounds", type=measure.number, default=0, help="of wrk")
    args = parser.parse_args(argv)
    args.requests = args.requests or (30 if args.quick else 1_000)
    args.seconds = args.seconds or (1 if args.quick else 8)
    args.rounds = args.rounds or (1 if args.quick else 2)
    return args


def main() -> None:
    """Measures, prints tables, writes the JSON file."""
    args = parse_arguments()
    content = measure.introduce() | {"load": []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        bundle = measure.run_alone(make_bundle, folder / "small", args.rows)
        with server(bundle) as port:
            content["latency"] = measure.run_alone(
                measure_added, bundle, args.rows, args.requests, port
            )
            if shutil.which("wrk"):
                bodies, script = folder / "bodies", folder / "load.lua"
                asked = requests(workload_of(args.rows), NUM_BODIES)
                bodies.write_bytes(b"".join(body_of(x) + b"\n" for x in asked))
                script.write_text(_LUA)
                content["load"] = measure_load(
                    port, bodies, script, args.seconds, args.rounds
                )
    print(f"\n{CANDIDATES} candidates of one user, {args.requests:,} requests:\n")
    print(
        measure.table(
            content["latency"],
            cell={"": "{contestant}"},
            measured={
                "p50, ms": "{p50_ms:.2f}",
                "p90, ms": "{p90_ms:.2f}",
                "p99, ms": "{p99_ms:.2f}",
                "p50 - scorer, ms": "{added_ms:.2f}",
            },
        )
    )
    if content["load"]:
        print(f"\nwrk, {args.rounds} × {args.seconds} s each:\n")
        print(
            measure.table(
                content["load"],
                cell={"requests at a time": "{concurrency}"},
                measured={
                    "requests / s": "{per_second:.1f}",
                    "p50, ms": "{p50_ms:.1f}",
                    "p99, ms": "{p99_ms:.1f}",
                    "errors": "{errors}",
                },
            )
        )
    else:
        print("\nwrk is not on PATH: no load (apt install wrk)")
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
