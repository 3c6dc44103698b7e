"""Eight simulated CPU devices for every test, and the real data where it is."""

import os
import pathlib

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

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
