"""Train, export, serve over HTTP, publish a delta: scores are those of a full export."""

import http.client
import json
import re
import subprocess
import sys
import time

from every_kind import make_config
import numpy as np
import pytest

from rankax.export import export
from rankax.publish import publish
from rankax.serving import Scorer
from rankax.train import train


def get(port, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Content-Type": "application/json"}
    connection.request("POST" if body else "GET", path, body, headers)
    answer = connection.getresponse()
    return json.loads(answer.read())


@pytest.mark.slow  # 20 s
def test_train_export_serve_publish_gives_the_scores_of_a_full_export(
    every_kind, tmp_path
):
    config = make_config(every_kind, "dcnv2", embedding_dim=4, hidden_dims=(8,))
    config.checkpoint.every_steps, config.checkpoint.keep_last = 4, 10
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    train(config, str(run))
    export(config, str(run), step=4, folder=str(bundle))
    export(config, str(run), step=10, folder=str(tmp_path / "whole"))
    before, after = (
        Scorer(folder, sizes=(32,)) for folder in (bundle, tmp_path / "whole")
    )
    raw = before.bundle.golden["features"]
    body = json.dumps({"features": raw})
    command = ["-m", "rankax.serving.http", f"--bundle={bundle}", "--port=0"]
    server = subprocess.Popen(
        [sys.executable, *command, "--sizes=32", "--poll_seconds=0.05"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", server.stdout.readline())
        assert found
        port, deadline = int(found[1]), time.monotonic() + 60

        def wait_for_step(step):
            while get(port, "/healthz").get("step") != step:
                assert time.monotonic() < deadline
                time.sleep(0.02)

        for step, scorer in ((4, before), (10, after)):
            if step == 10:
                publish(config, str(run), folder=str(bundle))
            wait_for_step(step)
            answer = get(port, "/score", body)
            assert answer["step"] == step
            for task, scores in scorer.score(raw).items():
                np.testing.assert_array_equal(
                    np.float32(answer["scores"][task]), scores
                )
        assert not np.array_equal(before.logits(raw), after.logits(raw))
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0
