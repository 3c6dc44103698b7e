import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe import traffic
from rankax.parallel import topology
from rankax.training import ahead_of_time
from rankax.training.setup import schema_of, set_up


def make_config(**options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=4096, num_valid_rows=512, num_test_rows=512, rows_per_group=512
    )
    config.model.backbone = named_config("dnn", hidden_dims=(32,))
    config.train.batch_size = 512
    config.train.num_steps = 1
    config.tables.replicate_below_bytes = 10_000
    for name, value in options.items():
        setattr(config.tables, name, value)
    return config


def test_shapes_of_a_batch_are_those_of_the_run():
    for deduplicate in ("host", "device"):
        config = make_config(deduplicate=deduplicate)
        setup = set_up(config)
        batches = setup.training_batches(config, None, map_batch=setup.steps.to_devices)
        arrays = setup.training_batches(config, None, map_batch=lambda x: x)
        (batch, _), (sample, _) = next(batches), next(arrays)
        batches.close()
        arrays.close()
        planned = setup.steps.abstract_batch(512, sample_ids=sample["ids"])

        def told(tree):
            return jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)

        assert told(planned) == told(batch)


def test_ids_made_up_for_a_plan_ask_for_the_most_rows():
    config = make_config()
    setup = set_up(config)
    planned = setup.steps.abstract_batch(512)["routes"]["groups"]
    (group,) = setup.steps.engine.plan.groups
    columns = np.bincount(group.column_tables)
    most = sum(
        min(512 // 8 * k, table.spec.num_rows)
        for k, table in zip(columns, group.tables, strict=True)
    )
    size = planned[group.name]["unique"].shape[1]
    assert most <= size <= most + 7


@pytest.mark.slow
def test_the_step_compiles_for_eight_devices_without_parameters():
    config = make_config()
    found = ahead_of_time.compile_train_step(config, jax.devices())
    setup = set_up(config)
    state = setup.steps.init_state()
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
    assert found.state_bytes == held
    assert found.memory.aliased == held
    padding = found.memory.arguments - found.state_bytes - found.batch_bytes
    assert 0 <= padding <= 64
    kinds = {each.kind for each in found.collectives}
    assert kinds == {"all-to-all", "all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v5e:2x2", "v5p:2x2x2"])
def test_the_step_compiles_for_a_slice_without_a_chip(name):
    pytest.importorskip("libtpu")
    config = make_config()
    where = topology.parse(name)
    found = ahead_of_time.compile_train_step(config, topology.devices(where))
    assert found.steps.mesh.size == where.num_devices
    assert found.memory.arguments >= found.state_bytes + found.batch_bytes
    swaps = [each for each in found.collectives if each.kind == "all-to-all"]
    assert len(swaps) == 4 * len(found.steps.engine.plan.groups)


def test_a_schema_given_by_hand_needs_no_data_set():
    config = make_config()
    schema = schema_of(config)
    config.data.source = SyntheticConfig(num_items=80, num_users=2)
    mesh = jax.devices()[:3]
    with pytest.raises(ConfigError, match="3 devices"):
        ahead_of_time.compile_train_step(config, mesh, schema=schema)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcnv2", "tokenmixer", "dnn-din-2-devices"])
def test_planned_memory_is_what_a_process_then_takes(name):
    script = pathlib.Path(__file__).with_name("measured_memory.py")
    root = script.parents[2]
    done = subprocess.run(
        [sys.executable, str(script), name],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["temporaries"] >= 0.3 * found["planned"]
    assert found["measured"] == pytest.approx(found["planned"], rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["dnn", "dcnv2", "deepfm", "xdeepfm", "infnet"])
def test_planned_wire_bytes_are_those_of_the_program(model):
    """Tables and gradients to the byte; the rest are counters and the loss."""
    config = make_config(dtype="bfloat16" if model == "dcnv2" else "float32")
    config.model.backbone = named_config(model)
    found = ahead_of_time.compile_train_step(config, jax.devices())
    steps, sent = found.steps, {}
    for each in found.collectives:
        sent[each.kind] = sent.get(each.kind, 0.0) + each.sent_bytes
    assert sent.keys() == {"all-to-all", "all-reduce"}
    planned = traffic.exchange_bytes_per_step(config, steps.engine)
    assert sent["all-to-all"] == planned > 0
    planned = traffic.gradient_bytes_per_step(steps.engine, steps.params)
    plan = steps.engine.plan
    columns, tables = plan.num_columns, sum(len(part.tables) for part in plan.parts)
    counters = 2 * columns + 8 * tables + 8 * len(plan.groups)
    scalars = sent["all-reduce"] / (2 * 7 / 8 * 4) - planned / (2 * 7 / 8 * 4)
    # Biases of keys that cancel in the softmax: nothing reads them, nothing is summed.
    unread = 4 * 64 if model == "infnet" else 0
    assert 0 < scalars + unread <= counters + 8
