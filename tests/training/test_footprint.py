import jax
import numpy as np
import pytest

from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.training import ahead_of_time, footprint, setup


def make(model="dnn", *, devices=8, **options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(num_train_rows=1024, rows_per_group=512)
    config.data.tasks = ("ctr",)
    config.model.backbone = named_config(model, **options)
    config.train.batch_size = 256
    config.train.num_steps = 1
    config.tables.replicate_below_bytes = 10_000
    config.tables.track_last_step = True
    schema = setup.schema_of(config)
    steps = ahead_of_time.plan_steps(config, jax.devices()[:devices], schema=schema)
    found = footprint.footprint(config, schema, steps, steps.abstract_batch(256))
    return config, steps, found


def test_shares_of_tables_and_modules_add_up_to_the_state_that_is_allocated():
    for optimizer in ("adam", "sgd"):
        config, steps, _ = make()
        config.optimizer.dense.name = optimizer
        steps = ahead_of_time.plan_steps(config, jax.devices())
        batch = steps.abstract_batch(256)
        found = footprint.footprint(config, steps.schema, steps, batch)
        state = steps.init_state()
        held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state))
        assert found.state == held
        # Beside them: counters of steps, a key.
        assert 0 <= held - found.table_bytes - found.dense_bytes < 64


def test_every_table_is_listed_once_with_its_share():
    _, steps, found = make(embedding_dim=16)
    rows = {(share.role, share.name): share for share in found.tables}
    parts = steps.engine.plan.parts
    assert len(rows) == len(found.tables) == sum(len(part.tables) for part in parts)
    site, hour = rows["embedding", "site"], rows["embedding", "hour"]
    assert (site.num_rows, site.dim, site.optimizer) == (20_000, 16, "rowwise_adagrad")
    # 1,024 shards of 20 rows; rows, accumulator, last step; eight devices.
    assert site.bytes_per_device == 1024 * 20 * (16 * 4 + 4 + 4) // 8
    assert (hour.placement, hour.optimizer) == ("replicated", "adam")
    assert hour.bytes_per_device == 24 * 16 * 4 * 3  # two moments


def test_modules_count_their_parameters():
    _, steps, found = make(hidden_dims=(32, 8))
    assert sum(m.num_parameters for m in found.modules) == steps.num_dense_parameters
    assert {m.name.partition("/")[0] for m in found.modules} == {"backbone", "head"}


def test_activations_are_what_the_backward_pass_keeps():
    """Of a layer of n units, n numbers more and whatever relu keeps of them."""
    sizes = [
        make(hidden_dims=(units,), devices=1)[2].activations for units in (64, 128)
    ]
    per_unit = (sizes[1] - sizes[0]) / 64 / 256
    assert 4 <= per_unit <= 9  # a float, and a bool or another float
    # They are of one device.
    shared = make(hidden_dims=(64,), devices=8)[2].activations
    assert shared == pytest.approx(sizes[0] / 8, rel=0.01)


def test_the_forecast_grows_with_what_it_is_made_of():
    _, steps, found = make()
    assert found.forecast >= found.state + found.batch + 2 * found.activations
    (group,) = steps.engine.plan.groups
    assert found.exchange >= 3 * 8 * group.dim * 4
    assert np.isfinite(found.forecast)
