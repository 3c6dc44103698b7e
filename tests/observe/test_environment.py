import json
import sys

import jax

from rankax.observe import environment


def test_hardware_counts_the_devices_that_jax_sees():
    hardware = environment.hardware()
    assert hardware["num_devices"] == jax.device_count()
    assert hardware["backend"] == jax.default_backend()
    assert hardware["cpu"] and hardware["cpu_cores"] >= 1
    assert hardware["memory_bytes"] > 2**28
    json.dumps(hardware)


def test_versions_hold_the_commit_that_whoever_starts_the_run_names(monkeypatch):
    monkeypatch.delenv("RANKAX_COMMIT", raising=False)
    assert "commit" not in environment.versions()
    monkeypatch.setenv("RANKAX_COMMIT", "0123456789ab")
    assert environment.versions()["commit"] == "0123456789ab"


def test_versions_are_those_imported():
    versions = environment.versions()
    assert versions["jax"] == jax.__version__
    assert versions["python"] == sys.version.split()[0]
    assert {"flax", "optax", "orbax", "grain", "numpy", "rankax"} <= versions.keys()
