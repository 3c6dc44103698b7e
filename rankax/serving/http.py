r"""Serves a bundle over HTTP; needs the serve extra.

python -m rankax.serving.http --bundle=runs/quickstart/bundle

POST /score scores, GET /signature tells what to send, GET /healthz whether scores can
be had, GET /metrics is for Prometheus. New deltas and new bundles in the same folder
are taken as they appear. SIGTERM and Ctrl-C end it when the requests that it has begun
are answered. docs/serving.md has the rest.
"""

import argparse
from collections.abc import Callable, Sequence
import logging
import pathlib
import sys

from rankax.serving.follow import Follower
from rankax.serving.limits import Limits
from rankax.serving.scorer import SIZES, Scorer

_EXTRA = {"orjson", "prometheus_client", "starlette", "uvicorn"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    limits = Limits()
    parser = argparse.ArgumentParser(
        prog="python -m rankax.serving.http",
        description="Serves a bundle over HTTP: POST /score, GET /signature, /healthz "
        "and /metrics (docs/serving.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--bundle",
        type=pathlib.Path,
        required=True,
        metavar="FOLDER",
        help="written by --mode=export",
        default=argparse.SUPPRESS,
    )
    add("--host", default="127.0.0.1", help="address to listen at; this one is local")
    add("--port", type=_port, default=8080, help="0 = any that is free")
    add(
        "--threads",
        type=_from(0),
        default=limits.num_threads,
        help="that score; 0 = the number of cores",
    )
    add(
        "--sizes",
        type=_sizes,
        default=",".join(map(str, SIZES)),
        help="numbers of candidates to compile for; requests are filled up to the next",
    )
    add(
        "--max_body_bytes",
        type=_from(1),
        default=limits.max_body_bytes,
        help="of a request; longer ones get 413",
    )
    add(
        "--max_candidates",
        type=_from(1),
        default=limits.max_candidates,
        help="of a request; more get 413",
    )
    add(
        "--max_concurrent",
        type=_from(1),
        default=limits.max_concurrent,
        help="scoring requests that are read, wait or run; more get 503",
    )
    add(
        "--poll_seconds",
        type=_seconds,
        default=1.0,
        help="between looks for deltas and a new bundle; 0 = only when it is opened",
    )
    add(
        "--drain_seconds",
        type=_from(0),
        default=10,
        help="that requests may take to end after SIGTERM",
    )
    add("--access_log", action="store_true", help="write a line for every request")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; returns the exit status."""
    args = parse_arguments(argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("rankax").setLevel(logging.INFO)
    try:  # here, so that --help needs nothing
        from rankax.serving import app, server
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        print(
            f"{error.name} is not installed; pip install 'rankax[serve]'",
            file=sys.stderr,
        )
        return 1

    def opener() -> Follower:
        return Follower(
            args.bundle,
            poll_seconds=args.poll_seconds,
            opener=lambda folder: Scorer(folder, sizes=args.sizes),
        )

    limits = Limits(
        max_body_bytes=args.max_body_bytes,
        max_candidates=args.max_candidates,
        max_concurrent=args.max_concurrent,
        num_threads=args.threads,
    )
    return server.run(
        app.Service(opener, limits),
        host=args.host,
        port=args.port,
        drain_seconds=args.drain_seconds,
        has_access_log=args.access_log,
    )


def _from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return value

    return number


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port from 0 to 65535")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time from 0 on")
    return value


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_from(1)(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
