"""The web application around a scorer: requests, limits, answers.

    POST /score      {"features": {name: [n values]}, "shared": {name: value}}
                     -> {"scores": {task: [n]}, "step": ..., "model": id of the bundle}
    GET  /healthz    200 once scores can be had, else 503
    GET  /metrics    for Prometheus
    GET  /signature  inputs and outputs of the bundle

Whatever is wrong with a request is told as {"error": message}. Scoring runs in a few
threads, so that the event loop stays free for what takes no time. `Service` knows what
is served and how much at a time, `make_app` wraps it for an ASGI server.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent import futures
import contextlib
import enum
import logging
import os
import time
from typing import Any

import orjson
import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rankax.config.base import suggest
from rankax.metrics import binary
from rankax.serving.features import FeatureError
from rankax.serving.follow import Follower, identity
from rankax.serving.limits import Limits
from rankax.serving.monitoring import Metrics

_log = logging.getLogger(__name__)
_KEYS = ("features", "shared")


class Status(enum.Enum):
    """Whether scores can be had."""

    OPENING = "opening"
    OK = "ok"
    STOPPING = "stopping"
    FAILED = "failed"


class RequestError(Exception):
    """A request that is refused.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(self, status: int, message: str, **headers: str):
        """Headers are given with _ for -."""
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): x for name, x in headers.items()}


class Service:
    """A scorer, and how much it is asked at a time.

    Attributes:
        limits: what it takes.
        metrics: of its requests.
        follower: of its bundle; None until that is open.
        status: whether it scores.
        error: why the bundle could not be opened, None otherwise.
        pool: the threads that score.
    """

    def __init__(self, opener: Callable[[], Follower], limits: Limits | None = None):
        """Opens nothing yet.

        Args:
            opener: opens the bundle; takes its time.
            limits: what the service takes.
        """
        self.limits = limits or Limits()
        self.follower: Follower | None = None
        self.status = Status.OPENING
        self.error: Exception | None = None
        self.metrics = Metrics(lambda: self.follower)
        self.pool = futures.ThreadPoolExecutor(
            self.limits.num_threads or len(os.sched_getaffinity(0)), "score"
        )
        self._opener, self._num_running = opener, 0

    async def open(self) -> None:
        """Opens the bundle and follows it; an error is kept as `error`."""
        try:
            follower = await asyncio.to_thread(self._opener)
        except Exception as error:  # of any kind, whoever started this tells it
            self.error, self.status = error, Status.FAILED
            return
        self.follower = follower
        if self.status is Status.OPENING:
            follower.start()
            self.status = Status.OK

    def refuse_more(self) -> None:
        """Answers everything new by 503 from now on."""
        self.status = Status.STOPPING

    def close(self) -> None:
        """Ends the threads, once they are done."""
        self.refuse_more()
        if self.follower is not None:
            self.follower.stop()
        self.pool.shutdown(cancel_futures=True)

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Takes one of the places for scoring requests.

        Raises:
            RequestError: there is none, or nothing is scored now.
        """
        if self.status is not Status.OK:
            message = f"the server is {self.status.value}; try again later"
            raise RequestError(503, message, retry_after="1")
        if self._num_running >= self.limits.max_concurrent:
            self.metrics.refused.inc()
            raise RequestError(
                503,
                f"{self._num_running} requests wait or run, at most "
                f"{self.limits.max_concurrent} may (--max_concurrent); try again later",
                retry_after="1",
            )
        self._num_running += 1
        self.metrics.in_flight.inc()
        try:
            yield
        finally:
            self._num_running -= 1
            self.metrics.in_flight.dec()

    def score(self, body: bytes | bytearray) -> bytes:
        """Returns the answer to the body of a scoring request.

        Raises:
            RequestError: it is no such body, or has too many candidates.
            FeatureError: features that cannot be scored.
        """
        assert self.follower is not None
        features, shared = _parsed(body)
        most = max(
            (len(x) for x in features.values() if isinstance(x, list)), default=0
        )
        if most > self.limits.max_candidates:
            raise RequestError(
                413,
                f"{most} candidates, at most {self.limits.max_candidates} may be in a "
                "request (--max_candidates); send them in several",
            )
        scorer = self.follower.scorer  # it may be replaced meanwhile
        logits, step = scorer.logits_at(features, shared)
        self.metrics.candidates.inc(len(logits))
        # As double precision numbers: any reader of JSON gets these float32 exactly.
        scores = {
            task: binary.probability(logits[:, t]).tolist()
            for t, task in enumerate(scorer.tasks)
        }
        model = identity(scorer.bundle.signature)
        return orjson.dumps({"scores": scores, "step": step, "model": model})

    def health(self) -> dict[str, Any]:
        """Returns what is served, and what cannot be."""
        result: dict[str, Any] = {"status": self.status.value}
        if self.follower is not None:
            scorer = self.follower.scorer
            result |= {
                "step": scorer.step,
                "bundle": identity(scorer.bundle.signature),
                "delta": scorer.number,
            }
            if self.follower.problem:
                result["problem"] = self.follower.problem
        return result

    def signature(self) -> dict[str, Any]:
        """Returns what to send and what comes back.

        Raises:
            RequestError: the bundle is not open yet.
        """
        if self.follower is None:
            raise RequestError(503, "the bundle is being opened", retry_after="1")
        scorer = self.follower.scorer
        signature = scorer.bundle.signature
        told = {name: signature.get(name) for name in ("model", "inputs", "outputs")}
        own = {"bundle": identity(signature), "step": scorer.step}
        return own | told | {"max_candidates": self.limits.max_candidates}


def _parsed(body: bytes | bytearray) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (features, shared) of a request's body.

    Raises:
        RequestError: it is not JSON, or of another form.
    """
    try:
        tree = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            400,
            f"the body is not JSON: {error}; JSON is in UTF-8 and has no NaN and no "
            "Infinity, send null for a missing value",
        ) from error
    if not isinstance(tree, dict):
        raise _misformed(f"found {tree!r:.80}")
    for name in tree:
        if name not in _KEYS:
            raise _misformed(f"found {name!r:.80}, {suggest(name, _KEYS)}")
    for name, content in tree.items():
        if not isinstance(content, dict):
            raise _misformed(f"{name!r} is {content!r:.80}")
    for name, values in tree.get("features", {}).items():
        if not isinstance(values, list):
            raise RequestError(
                400,
                f"feature {name!r:.80} must be a list of one value for each candidate, "
                f"found {values!r:.80}; a value that all have in common belongs to "
                "'shared'",
            )
    return tree.get("features", {}), tree.get("shared", {})


def _misformed(found: str) -> RequestError:
    return RequestError(
        400,
        'the body must be {"features": {name: [a value for each candidate]}, "shared": '
        f"{{name: value}}}}, one of the two may be left out; {found}",
    )


# ------------------------------------------------------------------------- requests


def make_app(
    service: Service, *, when_opened: Callable[[], None] = lambda: None
) -> Starlette:
    """Returns the ASGI application; it opens and closes the service.

    Args:
        service: to be served.
        when_opened: called when its bundle is open, or could not be opened.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app

        async def open_it() -> None:
            await service.open()
            when_opened()

        opening = asyncio.create_task(open_it())
        yield
        service.refuse_more()
        await opening
        await asyncio.to_thread(service.close)

    async def score(request: Request) -> Response:
        try:
            with service.admitted():
                _check_content(request)
                body = await _body(request, service.limits)
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(service.pool, service.score, body)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it; for the metrics
        except FeatureError as error:
            return _json({"error": str(error)}, 400)
        except RequestError:
            raise
        except Exception:  # of one request; the others go on
            _log.exception("a request could not be scored")
            message = "the server could not score this request; its log says why"
            return _json({"error": message}, 500)
        return Response(answer, media_type="application/json")

    async def healthz(request: Request) -> Response:
        del request
        return _json(service.health(), 200 if service.status is Status.OK else 503)

    async def metrics(request: Request) -> Response:
        del request
        return Response(
            service.metrics.text(),
            headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST},
        )

    async def signature(request: Request) -> Response:
        del request
        return _json(service.signature())

    return Starlette(
        routes=[
            Route("/score", score, methods=["POST"]),
            Route("/healthz", healthz),
            Route("/metrics", metrics),
            Route("/signature", signature),
        ],
        middleware=[Middleware(_Counted, service.metrics)],
        exception_handlers={RequestError: _refused, HTTPException: _not_found},
        lifespan=lifespan,
    )


def _check_content(request: Request) -> None:
    """Refuses what is not sent as JSON, which also keeps web pages of others out.

    Raises:
        RequestError: it is not.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "application/json":
        raise RequestError(
            415,
            f"found Content-Type {kind!r:.80}, expected application/json; with curl: "
            "-H 'Content-Type: application/json'",
        )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise RequestError(
            415, f"found Content-Encoding {encoding!r:.80}; send the body as it is"
        )


async def _body(request: Request, limits: Limits) -> bytearray:
    """Reads the body, which does not have to tell its length.

    Raises:
        RequestError: it is too long or too slow. The server throws the rest away.
    """
    too_long = RequestError(
        413,
        f"the body has more than {limits.max_body_bytes:,} bytes (--max_body_bytes); "
        "send fewer candidates at a time",
    )
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > limits.max_body_bytes:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise too_long
    except TimeoutError as error:
        raise RequestError(
            408,
            f"the body took more than {limits.body_seconds:g} s to arrive",
            connection="close",
        ) from error
    return body


def _refused(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestError)
    return _json({"error": str(error)}, error.status, error.headers)


def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        f"{request.method} {request.url.path:.80}: {error.detail}; there are POST "
        "/score, GET /healthz, /metrics and /signature"
    )
    return _json({"error": message}, error.status_code, error.headers)


def _json(
    tree: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        orjson.dumps(tree),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


class _Counted:
    """Counts requests, and times those of scores."""

    PATHS = ("/score", "/healthz", "/metrics", "/signature")

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begin = 500, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            # Other paths are one: callers could make up any number of them.
            path = scope["path"] if scope["path"] in self.PATHS else "other"
            self._metrics.requests.labels(path, status).inc()
            if path == "/score":
                self._metrics.seconds.observe(time.perf_counter() - begin)
