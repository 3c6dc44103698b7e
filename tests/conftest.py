"""Eight simulated CPU devices, one cache of compiled programs, and the real data."""

import atexit
import logging
import os
import pathlib
import shutil
import tempfile

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests build the same programs again and again. One cache for this session, which
    # xdist's workers and the processes that tests start inherit, halves their time.
    _cache = tempfile.mkdtemp(prefix="rankax-compiled-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"

from absl import flags
import pytest

flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, and pytest parses none


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real data sets; tests that need it skip where it is not."""
    folder = os.environ.get("RANKAX_DATA")
    if not folder:
        pytest.skip("RANKAX_DATA is not set: real-data tests need the data folder")
    return pathlib.Path(folder)


@pytest.fixture(scope="session")
def s3_server():
    """The address of an object store on this machine."""
    from moto.server import ThreadedMotoServer

    # A failure's report would be of thousands of requests.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """Made-up credentials, and a client that looks behind the reader's back."""
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    return client
