"""Eight simulated CPU devices, one cache of compiled programs, and the real data."""

import atexit
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
