"""The server answers as the scorer scores, says what is wrong, and ends in order."""

import asyncio
import contextlib
import functools
import http.client
import json
import logging
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from every_kind import columns
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
from prometheus_client.parser import text_string_to_metric_families
import pytest
from starlette.testclient import TestClient

from rankax.serving import Scorer
from rankax.serving import delta as deltas
from rankax.serving import http as command
from rankax.serving.app import Service, make_app
from rankax.serving.bundle import Bundle
from rankax.serving.delta import Change
from rankax.serving.follow import Follower
from rankax.serving.limits import Limits

USER = ("user_id", "age", "past_items", "past_tags")
JSON = {"Content-Type": "application/json"}
NUM_CANDIDATES = 20
LIMITS = Limits(max_body_bytes=50_000, max_candidates=30)


@pytest.fixture(scope="module")
def bundle(deep_run, tmp_path_factory):
    """A bundle that has a name."""
    folder = tmp_path_factory.mktemp("served") / "bundle"
    shutil.copytree(deep_run[1] / "bundle", folder)
    path = folder / "signature.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"id": "the-bundle"}))
    return folder


@pytest.fixture(scope="module")
def scorer(bundle):
    return Scorer(bundle, sizes=(1, 32))


@pytest.fixture(scope="module")
def raw():
    return columns(np.random.default_rng(3), NUM_CANDIDATES)


@pytest.fixture(scope="module")
def request_tree(raw):
    """One user and their candidates."""
    return {
        "features": {name: raw[name] for name in raw if name not in USER},
        "shared": {name: raw[name][0] for name in USER},
    }


def follower_of(bundle, scorer):
    """A follower of a scorer that is open already."""
    return Follower(bundle, poll_seconds=0, opener=lambda folder: scorer)


@contextlib.contextmanager
def served(service):
    """A client, once the service scores."""
    with TestClient(make_app(service)) as client:
        while client.get("/healthz").json()["status"] == "opening":
            time.sleep(0.002)
        yield client


@pytest.fixture(scope="module")
def client(bundle, scorer):
    with served(Service(lambda: follower_of(bundle, scorer), LIMITS)) as client:
        yield client


def metrics(client):
    """(name, labels' values) -> value of every sample."""
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in families
        for sample in family.samples
    }


# ------------------------------------------------------------------------- answers


def test_scores_are_those_of_the_scorer_to_the_bit(client, scorer, request_tree):
    answer = client.post("/score", json=request_tree)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert set(content) == {"scores", "step", "model"}
    assert (content["step"], content["model"]) == (10, "the-bundle")
    expected = scorer.score(request_tree["features"], request_tree["shared"])
    assert set(content["scores"]) == set(expected) == {"click", "buy"}
    for task, scores in expected.items():
        found = np.array(content["scores"][task])
        assert found.dtype == np.float64 and len(found) == NUM_CANDIDATES
        np.testing.assert_array_equal(found, scores.astype(np.float64))


def test_features_alone_and_shared_ones_alone_are_requests(client, scorer, raw):
    expected = scorer.score(raw)["buy"]
    found = client.post("/score", json={"features": raw}).json()["scores"]["buy"]
    np.testing.assert_array_equal(np.float32(found), expected)
    one = {name: values[4] for name, values in raw.items()}
    found = client.post("/score", json={"shared": one}).json()["scores"]["buy"]
    np.testing.assert_allclose(found, [expected[4]], atol=1e-6)


def test_no_candidates_get_no_scores(client, raw):
    answer = client.post("/score", json={"features": {name: [] for name in raw}})
    assert answer.json()["scores"] == {"click": [], "buy": []}


def test_answers_name_the_step_and_model_that_scored(bundle, scorer, raw):
    class Newer:
        """What a delta makes of a scorer."""

        def __init__(self, step):
            self.bundle, self.tasks = scorer.bundle, scorer.tasks
            self.step, self.number, self.out_of_vocabulary = step, 7, {}

        def logits_at(self, features, shared):
            logits = scorer.logits(features, shared)
            self.step += 1  # a delta comes while it is scored
            return logits, self.step - 1

    with served(Service(lambda: follower_of(bundle, Newer(500)))) as client:
        first = {name: values[:1] for name, values in raw.items()}
        steps = [
            client.post("/score", json={"features": first}).json()["step"]
            for _ in range(3)
        ]
        assert steps == [500, 501, 502]
        health = client.get("/healthz").json()
        assert (health["step"], health["delta"]) == (503, 7)


def test_the_signature_tells_what_to_send_and_what_comes_back(client, raw):
    content = client.get("/signature").json()
    assert (content["bundle"], content["step"]) == ("the-bundle", 10)
    assert content["max_candidates"] == 30
    assert set(content["inputs"]) == set(raw)
    assert content["inputs"]["price"] == {
        "type": "number",
        "meaning": "price",
        "default": 1.0,
    }
    assert set(content["outputs"]) == {"click", "buy"}


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b'{"features": {"score": [NaN]}}', "has no NaN and no Infinity, send null"),
        (b'{"features": {"score": [-Infinity]}}', "has no NaN and no Infinity"),
        (b'{"features": {"score": [1e999]}}', "has no NaN and no Infinity"),
        (b'{"features": {"tags": [["\\ud800"]]}}', "the body is not JSON"),
        (b"[" * 5000, "the body is not JSON"),
        (b"[]", "the body must be {"),
        (b"null", "one of the two may be left out; found None"),
        (b'{"feature": {}}', "found 'feature', did you mean 'features'?"),
        (b'{"features": []}', "'features' is []"),
        (b'{"shared": null}', "'shared' is None"),
        (b'{"features": {"score": 1}}', "'score' must be a list of one value for each"),
        (b'{"features": {"score": "1"}}', "common belongs to 'shared'"),
        (b"{}", "feature 'user_id' is missing and has no default"),
        (b'{"features": {"scores": [1]}}', "unknown feature 'scores'; did you mean"),
    ],
)
def test_bodies_that_cannot_be_read_are_told(client, body, message):
    answer = client.post("/score", content=body, headers=JSON)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": [1.5]}, "feature 'item' must be integers of 64 bits, found [1.5]"),
        ({"user_id": [2**70]}, "feature 'user_id' must be integers of 64 bits, found"),
        ({"user_id": [None]}, "'user_id' is None and has no default"),
        ({"user_id": [True]}, "'user_id' must be integers of 64 bits, found [True]"),
        ({"score": [1e300]}, "'score' holds numbers that are not finite"),
        ({"score": ["1"]}, "'score' must be one number for each candidate"),
        ({"score": [1, 2]}, "has 2 values and"),
        ({"tags": [{"red": 1}]}, "'tags' must be a list for each candidate"),
        ({"picture": [[1, [2], 3]]}, "'picture' must be numbers"),
    ],
)
def test_features_that_cannot_be_scored_are_told(client, raw, change, message):
    one = {name: values[:1] for name, values in raw.items()}
    assert client.post("/score", json={"features": one}).status_code == 200
    answer = client.post("/score", json={"features": one | change})
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "found Content-Type ''"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "with curl: -H"),
        ({"Content-Type": "text/json"}, "expected application/json"),
        (JSON | {"Content-Encoding": "gzip"}, "found Content-Encoding 'gzip'"),
    ],
)
def test_other_content_is_refused(client, headers, message):
    answer = client.post("/score", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert message in answer.json()["error"]


def test_a_content_type_may_have_parameters(client, request_tree):
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    answer = client.post("/score", content=json.dumps(request_tree), headers=headers)
    assert answer.status_code == 200


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_long_body_is_refused(client, request_tree, is_chunked):
    body = json.dumps(request_tree).encode()
    for padding, status in ((50_000 - len(body), 200), (50_001 - len(body), 413)):
        whole = body + b" " * padding
        pieces = (whole[i : i + 1000] for i in range(0, len(whole), 1000))
        content = pieces if is_chunked else whole
        answer = client.post("/score", content=content, headers=JSON)
        assert answer.status_code == status
        assert ("content-length" in answer.request.headers) != is_chunked
    assert "more than 50,000 bytes (--max_body_bytes)" in answer.json()["error"]


def test_too_many_candidates_are_refused(client, raw):
    for number, status in ((30, 200), (31, 413)):
        more = {name: (values * 2)[:number] for name, values in raw.items()}
        answer = client.post("/score", json={"features": more})
        assert answer.status_code == status
    assert "31 candidates, at most 30" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/", 404), ("GET", "/score", 405), ("POST", "/healthz", 405)],
)
def test_other_places_tell_what_there_is(client, method, path, status):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert "there are POST /score, GET /healthz" in answer.json()["error"]


def score_slowly(service, *, chunks, seconds):
    """Status of a request whose body comes in pieces, after some seconds each."""
    sent = []

    async def receive():
        await asyncio.sleep(seconds)
        if not chunks:
            return {"type": "http.disconnect"}
        piece = chunks.pop(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message):
        sent.append(message)

    async def ask():
        service.follower, service.status = service._opener(), service.status.OK
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers}
        await make_app(service)(scope | {"query_string": b""}, receive, send)

    asyncio.run(ask())
    return sent[0]["status"], dict(sent[0]["headers"])


def test_a_slow_body_gives_its_place_up(bundle, scorer):
    limits = Limits(body_seconds=0.1)
    service = Service(lambda: follower_of(bundle, scorer), limits)
    status, headers = score_slowly(service, chunks=[b" "] * 100, seconds=0.02)
    assert status == 408 and headers[b"connection"] == b"close"
    with service.admitted():  # the place is free again
        assert service.metrics.in_flight.collect()[0].samples[0].value == 1


def test_a_client_that_goes_gives_its_place_up(bundle, scorer):
    service = Service(lambda: follower_of(bundle, scorer))
    status, _ = score_slowly(service, chunks=[b"{", b" "], seconds=0)
    assert status == 499
    assert service.metrics.in_flight.collect()[0].samples[0].value == 0


# ------------------------------------------------------------------------- load


class Held:
    """A scorer that scores when it is let go."""

    def __init__(self, scorer):
        self.bundle, self.tasks = scorer.bundle, scorer.tasks
        self.step, self.number, self.out_of_vocabulary = 10, 0, {}
        self.running, self.go_on = threading.Semaphore(0), threading.Event()

    def logits_at(self, features, shared):
        self.running.release()
        assert self.go_on.wait(20)
        return np.zeros((1, 2), np.float32), self.step


def test_more_requests_than_allowed_are_refused_at_once(bundle, scorer):
    held = Held(scorer)
    limits = Limits(max_concurrent=3, num_threads=2)
    statuses = []
    with served(Service(lambda: follower_of(bundle, held), limits)) as client:

        def ask():
            statuses.append(client.post("/score", json={}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(2):
            assert held.running.acquire(timeout=10)
        while metrics(client)["rankax_in_flight",] < 3:
            time.sleep(0.002)
        refused = client.post("/score", json={})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "3 requests wait or run, at most 3" in refused.json()["error"]
        assert client.get("/healthz").status_code == 200  # the event loop is free
        assert not statuses
        held.go_on.set()
        for thread in threads:
            thread.join()
        found = metrics(client)
        assert statuses == [200] * 3 and client.post("/score", json={}).is_success
    assert found["rankax_refused_total",] == 1 and found["rankax_in_flight",] == 0


def test_an_error_inside_is_logged_and_the_server_goes_on(
    bundle, scorer, raw, monkeypatch, caplog
):
    with served(Service(lambda: follower_of(bundle, scorer))) as client:
        with monkeypatch.context() as patch:

            def fail(*_):
                raise RuntimeError("secret of the inside")

            patch.setattr(scorer, "logits_at", fail)
            answer = client.post("/score", json={"features": raw})
        assert answer.status_code == 500
        assert answer.json() == {
            "error": "the server could not score this request; its log says why"
        }
        (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
        assert "secret of the inside" in record.exc_text
        assert client.post("/score", json={"features": raw}).status_code == 200


def test_nothing_is_scored_while_the_bundle_opens_or_the_server_stops(bundle, scorer):
    go_on = threading.Event()

    def opener():
        assert go_on.wait(10)
        return follower_of(bundle, scorer)

    service = Service(opener)
    with TestClient(make_app(service)) as client:
        health = client.get("/healthz")
        assert (health.status_code, health.json()) == (503, {"status": "opening"})
        answer = client.post("/score", json={})
        assert answer.status_code == 503 and "is opening" in answer.json()["error"]
        assert answer.headers["retry-after"] == "1"
        assert client.get("/signature").status_code == 503
        assert ("rankax_model_step",) not in metrics(client)
        go_on.set()
        while client.get("/healthz").status_code == 503:
            time.sleep(0.002)
        assert client.get("/healthz").json() == {
            "status": "ok",
            "step": 10,
            "bundle": "the-bundle",
            "delta": 0,
        }
        service.refuse_more()
        health = client.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        assert client.post("/score", json={}).status_code == 503


def test_a_problem_with_a_delta_is_told_and_scores_go_on(bundle, scorer, raw):
    service = Service(lambda: follower_of(bundle, scorer))
    with served(service) as client:
        service.follower.problem = "delta 3 cannot be read"
        service.follower.num_errors, service.follower.num_deltas = 2, 5
        health = client.get("/healthz")
        assert health.status_code == 200
        assert health.json()["problem"] == "delta 3 cannot be read"
        found = metrics(client)
        assert found["rankax_delta_errors_total",] == 2
        assert found["rankax_deltas_applied_total",] == 5
        assert client.post("/score", json={"features": raw}).status_code == 200


def test_metrics_count_what_happened(bundle, raw):
    fresh = Scorer(bundle, sizes=(32,))
    with served(Service(lambda: follower_of(bundle, fresh), LIMITS)) as client:
        outside = sum(x is not None and not 0 <= x < 30 for x in raw["item"])
        assert client.post("/score", json={"features": raw}).status_code == 200
        assert client.post("/score", json={"features": raw}).status_code == 200
        assert client.post("/score", json={}).status_code == 400
        assert client.get("/other").status_code == 404
        assert client.get("/another").status_code == 404
        found = metrics(client)
    assert found["rankax_requests_total", "/score", "200"] == 2
    assert found["rankax_requests_total", "/score", "400"] == 1
    assert found["rankax_requests_total", "other", "404"] == 2
    assert found["rankax_candidates_total",] == 2 * NUM_CANDIDATES
    assert found["rankax_score_seconds_count",] == 3
    assert 0 < found["rankax_score_seconds_sum",] < 60
    assert found["rankax_score_seconds_bucket", "+Inf"] == 3
    assert outside > 0
    assert found["rankax_out_of_vocabulary_total", "item"] == 2 * outside
    assert found["rankax_model_step",] == fresh.step == 10
    assert found["rankax_bundle_info", "the-bundle"] == 1
    assert found["rankax_delta_number",] == found["rankax_delta_errors_total",] == 0


# ------------------------------------------------------------------------- versions


def zero_rows(folder, number, step):
    """Writes the delta that makes all rows of the items 0 and lasts 10 steps."""
    opened = Bundle(folder)
    ((role, own),) = opened.roles.items()
    ids = np.arange(own.tables["item"], dtype=np.int32)
    rows = np.zeros((len(ids), own.dim), np.float32)
    change = Change(ids=ids, rows=rows)
    delta = deltas.make(
        opened,
        {(role, "item"): change},
        None,
        number=number,
        previous_step=step - 10,
        step=step,
    )
    return deltas.write(folder, delta)


def wait_for_health(client, **expected):
    end = time.monotonic() + 20
    while not expected.items() <= (health := client.get("/healthz").json()).items():
        assert health["status"] == "ok" and time.monotonic() < end, health
        time.sleep(0.005)
    return health


def test_deltas_and_new_bundles_are_served_as_they_appear(
    bundle, linear_run, request_tree, tmp_path
):
    folder = shutil.copytree(bundle, tmp_path / "bundle")

    def opener():
        open_it = functools.partial(Scorer, sizes=(32,))
        return Follower(folder, poll_seconds=0.01, opener=open_it)

    def scored():
        content = client.post("/score", json=request_tree).json()
        return content["step"], content["model"], content["scores"]["click"]

    with served(Service(opener)) as client:
        first = scored()
        assert first[:2] == (10, "the-bundle")
        path = zero_rows(folder, 1, 20)
        wait_for_health(client, step=20, delta=1)
        second = scored()
        expected = Scorer(folder, sizes=(32,))
        expected.apply(path)
        tree = request_tree["features"], request_tree["shared"]
        assert second[:2] == (20, "the-bundle") and second[2] != first[2]
        np.testing.assert_array_equal(second[2], expected.score(*tree)["click"])

        damaged = deltas.file_of(folder, 2)
        shutil.copy(path, damaged)  # of number 1
        while "problem" not in (health := client.get("/healthz").json()):
            time.sleep(0.005)
        assert "apply all deltas in order" in health["problem"]
        assert health["status"] == "ok" and scored()[0] == 20
        damaged.unlink()
        zero_rows(folder, 2, 30)
        assert "problem" not in wait_for_health(client, step=30, delta=2)

        folder.rename(tmp_path / "old")
        shutil.copytree(linear_run[1] / "bundle", tmp_path / "new")
        (tmp_path / "new").rename(folder)
        model = json.loads((folder / "signature.json").read_text())["id"]
        wait_for_health(client, step=10, delta=0, bundle=model)
        third = scored()
        assert third[:2] == (10, model)
        expected = Scorer(folder, sizes=(32,)).score(*tree)["click"]
        np.testing.assert_array_equal(third[2], expected)
        found = metrics(client)
    assert found["rankax_bundles_opened_total",] == 2
    assert found["rankax_deltas_applied_total",] == 2


# ------------------------------------------------------------------------- fuzz

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=10,
)


@st.composite
def near_requests(draw, raw):
    """A good request with some values exchanged, or left out."""
    own = {name: values[:2] for name, values in raw.items()}
    for name in draw(st.lists(st.sampled_from(sorted(own)), max_size=3)):
        own[name] = draw(TREES | st.lists(TREES, min_size=2, max_size=2))
    names = draw(st.sets(st.sampled_from(sorted(own)), max_size=2))
    tree = {"features": {n: x for n, x in own.items() if n not in names}}
    return tree | {"shared": {n: draw(TREES | st.just(raw[n][0])) for n in names}}


@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_arbitrary_json_is_scored_or_told(client, raw, data):
    tree = data.draw(TREES | near_requests(raw) | near_requests(raw))
    body = json.dumps(tree, ensure_ascii=False).encode(errors="surrogatepass")
    answer = client.post("/score", content=body, headers=JSON)
    assert answer.status_code in (200, 400, 413), answer.text
    if answer.status_code == 200:
        scores = answer.json()["scores"]
        assert all(0 <= x <= 1 for own in scores.values() for x in own)
    else:
        assert len(answer.json()["error"]) > 10


@settings(max_examples=50, deadline=None, derandomize=True)
@given(body=st.binary(max_size=50))
def test_arbitrary_bytes_are_told(client, body):
    answer = client.post("/score", content=body, headers=JSON)
    assert answer.status_code == 400, answer.text


# ------------------------------------------------------------------------- the process


class Process:
    """The command, on a port of its own."""

    def __init__(self, bundle, *flags):
        self.running = subprocess.Popen(
            [
                *(sys.executable, "-m", "rankax.serving.http", f"--bundle={bundle}"),
                *("--port=0", "--sizes=1,32", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.first = self.running.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+);", self.first)
        assert found, self.first + self.running.stderr.read()
        self.port = int(found[1])

    def ready(self):
        """Waits, and returns the line that tells."""
        return self.running.stdout.readline()

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)

    def end(self):
        """(Exit status, stderr)."""
        _, errors = self.running.communicate(timeout=30)
        return self.running.returncode, errors


@pytest.fixture
def start(bundle):
    processes = []

    def make(*flags):
        processes.append(Process(bundle, *flags))
        return processes[-1]

    yield make
    for process in processes:
        if process.running.poll() is None:
            process.running.kill()
            process.running.communicate()


def ask(connection, tree, **options):
    body = json.dumps(tree) if isinstance(tree, dict) else tree
    connection.request("POST", "/score", body, JSON, **options)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_process_scores_and_ends_after_what_it_has_begun(start, scorer, request_tree):
    process = start("--max_body_bytes=200000")
    assert "try: curl http://127.0.0.1:" in process.first
    assert process.ready() == "ready: step 10, delta 0\n"
    connection = process.connect()
    expected = scorer.score(request_tree["features"], request_tree["shared"])
    for _ in range(2):
        status, content = ask(connection, request_tree)
        assert status == 200
        found = np.array(content["scores"]["click"])
        np.testing.assert_array_equal(found, expected["click"].astype(np.float64))

    # A body that is refused is read to its end, and the connection goes on.
    status, content = ask(connection, b" " * 3_000_000)
    assert status == 413 and "200,000 bytes" in content["error"]
    chunks = iter([b" " * 50_000] * 60)
    status, content = ask(connection, chunks, encode_chunked=True)
    assert status == 413 and "200,000 bytes" in content["error"]
    assert ask(connection, request_tree)[0] == 200

    # One is in flight, its body half here, when the signal comes.
    body = json.dumps(request_tree).encode()
    slow = process.connect()
    slow.putrequest("POST", "/score")
    slow.putheader("Content-Type", "application/json")
    slow.putheader("Content-Length", str(len(body)))
    slow.endheaders()
    slow.send(body[:100])
    wait_for_metric(connection, "rankax_in_flight 1.0")
    process.running.send_signal(signal.SIGTERM)
    with pytest.raises(OSError):  # nothing new
        for _ in range(200):
            socket.create_connection(("127.0.0.1", process.port), 5).close()
            time.sleep(0.02)
    slow.send(body[100:])
    answer = slow.getresponse()
    assert answer.status == 200
    found = np.array(json.loads(answer.read())["scores"]["click"])
    np.testing.assert_array_equal(found, expected["click"].astype(np.float64))
    status, errors = process.end()
    assert (status, errors) == (0, "")


def wait_for_metric(connection, line):
    for _ in range(500):
        connection.request("GET", "/metrics")
        if line in connection.getresponse().read().decode().splitlines():
            return
        time.sleep(0.01)
    raise AssertionError(f"no {line}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_bundle_opens_ends_the_process(start, number):
    process = start()
    process.running.send_signal(number)
    assert process.end() == (0, "")


def test_a_request_that_never_ends_is_left_after_the_time_to_drain(start):
    process = start("--drain_seconds=1", "--access_log")
    process.ready()
    with socket.create_connection(("127.0.0.1", process.port)) as slow:
        slow.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        wait_for_metric(process.connect(), "rankax_in_flight 1.0")
        begin = time.monotonic()
        process.running.send_signal(signal.SIGINT)
        status, errors = process.end()
    assert status == 0 and 0.9 < time.monotonic() - begin < 8
    assert "graceful shutdown exceeded" in errors


@pytest.mark.skipif(not shutil.which("curl"), reason="the docs ask by curl")
def test_the_commands_of_the_docs_score_the_golden_candidates(start, bundle, tmp_path):
    text = (pathlib.Path(__file__).parents[2] / "docs/serving.md").read_text()
    block = text.partition("<!-- command: ask -->\n```bash\n")[2].partition("```")[0]
    assert block.count("\n") == 3 and block.count("127.0.0.1:8080") == 2
    (tmp_path / "runs/quickstart").mkdir(parents=True)
    (tmp_path / "runs/quickstart/bundle").symlink_to(bundle)
    process = start()
    process.ready()
    commands = block.replace(":8080", f":{process.port}")
    commands = commands.replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(
        ["bash", "-e"], input=commands, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    signature, end = json.JSONDecoder().raw_decode(done.stdout)
    scores = json.loads(done.stdout[end:])["scores"]
    assert signature["inputs"] and signature["bundle"] == "the-bundle"
    logits = np.array(json.loads((bundle / "golden.json").read_text())["logits"])
    np.testing.assert_allclose(
        scores["buy"], 1 / (1 + np.exp(-logits[:, 1])), atol=1e-6
    )


def test_a_bundle_that_cannot_be_opened_ends_the_process_in_one_line(start, bundle):
    broken = shutil.copytree(bundle, bundle.with_name("broken"))
    (broken / "dense.npz").write_bytes(b"")
    process = start(f"--bundle={broken}")
    status, errors = process.end()
    assert status == 1 and errors.count("\n") == 1
    assert "dense.npz has 0 bytes" in errors


# ------------------------------------------------------------------------- the command


def test_a_port_in_use_is_told(bundle, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert command.main([f"--bundle={bundle}", f"--port={port}"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"cannot listen at 127.0.0.1, port {port}: ")
    assert message.endswith("choose others by --host and --port\n")


def test_a_missing_extra_is_told_with_the_command_to_install_it(
    bundle, monkeypatch, capsys
):
    for name in ("app", "server"):
        monkeypatch.delitem(sys.modules, f"rankax.serving.{name}", raising=False)
        monkeypatch.delattr(f"rankax.serving.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert command.main([f"--bundle={bundle}"]) == 1
    told = capsys.readouterr().err
    assert told.endswith("is not installed; pip install 'rankax[serve]'\n"), told
    assert told.startswith("starlette")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--port=70000", "70000 is not a port from 0 to 65535"),
        ("--max_candidates=0", "0 is less than 1"),
        ("--max_concurrent=many", "invalid number value: 'many'"),
        ("--poll_seconds=-1", "-1 is not a time from 0 on"),
        ("--poll_seconds=nan", "nan is not a time from 0 on"),
        ("--sizes=8,0", "0 is less than 1"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flag, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.parse_arguments(["--bundle=x", flag])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_serving_imports_neither_the_trainer_nor_arrow():
    code = (
        "import sys\n"
        "def loaded(names): return names & {n.split('.')[0] for n in sys.modules}\n"
        "import rankax.serving\n"
        "web = loaded({'starlette', 'uvicorn', 'orjson', 'prometheus_client'})\n"
        "import rankax.serving.http, rankax.serving.server\n"
        "heavy = {'flax', 'optax', 'orbax', 'grain', 'pyarrow', 'absl', 'rich'}\n"
        "sys.exit(str(sorted(web | loaded(heavy)) or ''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() in ("", "[]"), done.stderr
