"""Runs the web application until a signal ends it, after what it has begun."""

import ipaddress
import signal
import socket
import sys
from types import FrameType

import uvicorn

from rankax.data.errors import DataError
from rankax.serving.app import Service, Status, make_app

_BACKLOG = 2048
# Longer than the usual minute of proxies, which would else meet closed connections.
_IDLE_SECONDS = 75


def run(
    service: Service,
    *,
    host: str,
    port: int,
    drain_seconds: int,
    has_access_log: bool,
) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        service: what is served.
        host: address to listen at.
        port: likewise; 0 = any that is free.
        drain_seconds: that requests may take to end after a signal.
        has_access_log: a line is written for every request.

    Returns:
        The exit status: 0 after a signal, 1 if the bundle could not be opened or the
        address not be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        place = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        print(
            f"cannot listen at {host}, port {port}: {error}; choose others by --host "
            "and --port",
            file=sys.stderr,
        )
        return 1
    host_told = f"[{host}]" if ":" in host else host
    url = f"http://{host_told}:{place.getsockname()[1]}"

    def when_opened() -> None:
        if service.error is not None:
            server.should_exit = True
        elif service.status is Status.OK:
            print(f"ready: {_told(service)}", flush=True)

    config = uvicorn.Config(
        make_app(service, when_opened=when_opened),
        access_log=has_access_log,
        lifespan="on",
        log_level="info" if has_access_log else "warning",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,
        timeout_keep_alive=_IDLE_SECONDS,
        ws="none",
    )
    server = _Server(config, service)
    # uvicorn takes signals only once it runs, and raises the one that ended it again
    # when it has ended: this is for before and after.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, server.handle_exit)
    if not _is_loopback(host):
        print(
            f"warning: --host={host} lets whoever reaches this machine ask for scores: "
            "there is neither authentication nor TLS; put a proxy in front that has "
            "them",
            file=sys.stderr,
        )
    print(f"listening at {url}; try: curl {url}/signature", flush=True)
    server.run(sockets=[place])
    if service.error is None:
        return 0
    if not isinstance(service.error, DataError):
        raise service.error
    print(service.error, file=sys.stderr)
    return 1


class _Server(uvicorn.Server):
    """Tells the service of the end before connections are closed."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._service.refuse_more()
        super().handle_exit(sig, frame)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _told(service: Service) -> str:
    health = service.health()
    told = f"step {health['step']:,}, delta {health['delta']}"
    return f"{told}; {health['problem']}" if "problem" in health else told
