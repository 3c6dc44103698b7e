"""Compares what a plan says of a step's memory with what a process then takes.

Prints {"planned", "measured", "temporaries"} in bytes, of all devices together:

    python tests/training/measured_memory.py NAME

The step is compiled first, so that memory of the compiler does not count; then free
memory is given back and the baseline read; then state and batch are made, three steps
taken, and the peak read.
"""

import ctypes
import dataclasses
import gc
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.models.sequences.din import DINConfig
from rankax.parallel import topology
from rankax.training import ahead_of_time, setup

STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A configuration whose activations are a good part of its memory."""

    backbone: str
    options: dict
    batch_size: int
    num_users: int
    devices: int = 1
    is_din: bool = False

    def config(self):
        config = ExperimentConfig()
        config.data.source = SyntheticConfig(
            num_train_rows=self.batch_size,
            num_valid_rows=64,
            num_test_rows=64,
            rows_per_group=self.batch_size // 16,
            num_users=self.num_users,
        )
        config.model.backbone = named_config(self.backbone, **self.options)
        if self.is_din:
            config.model.sequence = DINConfig(hidden_dims=(32, 16))
        config.train.batch_size = self.batch_size
        config.train.num_steps = 1
        return config


CASES = {
    "dcnv2": Case(
        backbone="dcnv2",
        options={"embedding_dim": 32, "hidden_dims": (512, 256)},
        batch_size=8192,
        num_users=1_000_000,
    ),
    "tokenmixer": Case(
        backbone="tokenmixer_large",
        options={"token_dim": 64, "num_tokens": 8},
        batch_size=4096,
        num_users=2_000_000,
    ),
    "dnn-din-2-devices": Case(
        backbone="dnn",
        options={"embedding_dim": 16, "hidden_dims": (256, 128)},
        batch_size=8192,
        num_users=4_000_000,
        devices=2,
        is_din=True,
    ),
}


def measure(name):
    """Returns planned and measured bytes of one of `CASES`."""
    case = CASES[name]
    config = case.config()
    config.validate()
    where = f"cpu:{case.devices}"
    topology.prepare([where])
    devices = topology.devices(topology.parse(where))
    schema = setup.schema_of(config)
    arrays = first_batch(config, schema)
    steps = ahead_of_time.plan_steps(
        config, devices, schema=schema, sample_ids=arrays["ids"]
    )
    planned = ahead_of_time.compile_steps(
        steps, steps.abstract_batch(case.batch_size, sample_ids=arrays["ids"])
    )
    make_state = compile_filling(steps.abstract_state())
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    baseline = status("VmRSS")
    state, batch = make_state(), steps.to_devices(arrays)
    for _ in range(STEPS):
        state, metrics, _ = planned.compiled(state, batch, np.float32(1))
    assert np.isfinite(float(metrics["loss"]))
    return {
        "planned": planned.memory.total * case.devices,
        "measured": status("VmHWM") - baseline,
        "temporaries": planned.memory.temporaries * case.devices,
    }


def first_batch(config, schema):
    return setup._first_batch(
        config, setup.sources.open_split(config.data.source, "train", schema), schema
    )


def compile_filling(state):
    """A function that makes a state of small numbers, and has nothing to compile."""

    def fill():
        def value(x):
            return jnp.full(x.shape, 0.01 if x.dtype.kind == "f" else 0, x.dtype)

        filled = jax.tree.map(value, state)
        return dataclasses.replace(filled, first_bad_step=jnp.int32(-1))

    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.jit(fill, out_shardings=shardings).lower().compile()


def status(name):
    """Bytes of a line of /proc/self/status."""
    text = pathlib.Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
