import jax
import numpy as np
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import lanes, source
from rankax.data.schema import Schema
from rankax.embeddings import oracle
from rankax.losses import binary_log_loss
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.parallel import mesh as meshes
from rankax.training.step import Steps


def make_config(backbone=None, **sparse):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(
        num_train_rows=2_000, num_valid_rows=500, num_test_rows=500, rows_per_group=250
    )
    config.data.lanes = 8
    config.tables.num_shards = 64
    config.tables.replicate_below_bytes = 20_000
    config.model.backbone = backbone or named_config(
        "dcnv2", embedding_dim=4, hidden_dims=(8,), num_cross_layers=1
    )
    config.train.batch_size = 64
    config.train.num_steps = 10
    for name, value in sparse.items():
        setattr(config.optimizer.sparse, name, value)
    return config


def make_steps(config, devices=8, model=1):
    schema = Schema.select(source.load_card(config.data.source))
    mesh = meshes.make_mesh(model=model, devices=jax.devices()[:devices])
    return Steps(config, schema, mesh)


def batches(config, steps, count):
    split = source.open_split(config.data.source, "train", steps.schema)
    reader = lanes.read_batches(
        split,
        steps.schema,
        batch_size=64,
        lanes=8,
        seed=0,
        shuffle=True,
        num_epochs=None,
    )
    result = [next(reader)[0] for _ in range(count)]
    reader.close()
    return result


def test_training_is_the_same_on_one_device_and_on_a_4x2_mesh():
    config = make_config()
    states = []
    for devices, model in ((1, 1), (8, 2)):
        steps = make_steps(config, devices, model)
        state = steps.init_state()
        for arrays in batches(config, steps, 5):
            state, *_ = steps.train(state, steps.to_devices(arrays), factor=1.0)
        states.append(jax.tree.map(np.asarray, state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *states
    )


@pytest.mark.slow
def test_weights_and_moments_that_live_with_their_token_train_the_same():
    config = make_config(
        named_config(
            "tokenmixer_large",
            embedding_dim=4,
            embedding_init_std=0.1,
            token_dim=8,
            num_tokens=4,
            num_experts=4,
            num_active_experts=3,
            num_blocks=2,
            residual_interval=1,
            auxiliary_weight=0.1,
            router_z_loss_weight=0.01,
        )
    )
    config.optimizer.dense.name = "adagrad"  # Adam makes a step of rounding errors
    states = []
    for devices, model in ((1, 1), (4, 2)):
        steps = make_steps(config, devices, model)
        state = steps.init_state()
        for arrays in batches(config, steps, 2):
            state, metrics, _ = steps.train(state, steps.to_devices(arrays), factor=1.0)
        assert metrics["added_loss"] > 0
        assert 0 < metrics["block0/mix/load_entropy/0"] <= 1
        # Kernel and accumulator of the shared experts, half of the positions a device.
        for part in (state.params, state.opt_state):
            (kernel,) = (
                x
                for path, x in jax.tree.leaves_with_path(part)
                if "'blocks'][1]['mix_stage']['shared']['up']"
                in jax.tree_util.keystr(path)
            )
            assert kernel.sharding.shard_shape(kernel.shape)[0] == 4 // model
        states.append(jax.tree.map(np.asarray, state))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), *states
    )


def test_the_loss_is_the_weighted_sum_of_the_tasks():
    losses = {}
    for weights in ((), (1.0, 0.0), (0.5, 3.0)):
        config = make_config()
        config.model.task_weights = weights
        steps = make_steps(config, 1)
        (arrays,) = batches(config, steps, 1)
        batch = steps.to_devices(arrays)
        start = jax.tree.map(np.asarray, steps.init_state().params)
        state, metrics, _ = steps.train(steps.init_state(), batch, factor=1.0)
        losses[weights] = float(metrics["loss"])
        moved = np.any(
            np.asarray(state.params["network"]["head"]["linear"]["kernel"])
            != start["network"]["head"]["linear"]["kernel"],
            axis=0,
        )
        # A task without weight moves nothing of its own head.
        assert moved.tolist() == [w > 0 for w in weights or (1, 1)]
    first = losses[1.0, 0.0]
    second = losses[()] - first
    assert first > 0.1 and second > 0.1
    assert losses[0.5, 3.0] == pytest.approx(0.5 * first + 3 * second, rel=1e-6)


@pytest.mark.parametrize("poison", ["loss", "row"])
def test_a_step_that_is_not_finite_writes_nothing_and_neither_do_later_ones(poison):
    config = make_config()
    steps = make_steps(config, 2)
    state = steps.init_state()
    good = batches(config, steps, 4)
    state, *_ = steps.train(state, steps.to_devices(good[0]), factor=1.0)
    before = jax.tree.map(np.array, state)
    bad = dict(good[1])
    if poison == "loss":
        bad["numeric"] = np.full_like(bad["numeric"], np.nan)
    else:  # finite loss, but a gradient that overflows
        bad["weight"] = np.full_like(bad["weight"], 1e-38)
        bad["weight"][0] = 3e38
        bad["numeric"] = bad["numeric"] * np.float32(1e30)
    for arrays in (bad, good[2], good[3]):
        state, *_ = steps.train(state, steps.to_devices(arrays), factor=1.0)
    after = jax.tree.map(np.array, state)
    assert after.first_bad_step == 1 and before.first_bad_step == -1
    for name in ("step", "params", "opt_state", "rest", "tables"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(after, name), getattr(before, name)
        )


def test_only_touched_rows_move_and_the_factor_scales_both_optimizers():
    config = make_config(named_config("lr"), name="sgd", learning_rate=0.5)
    config.optimizer.dense.name = "sgd"
    config.optimizer.dense.learning_rate = 0.25
    config.tables.replicate_below_bytes = 5_000  # users are sharded by row
    moved = {}
    for factor in (1.0, 0.5, 0.0):
        steps = make_steps(config)
        state = steps.init_state()
        before = oracle.read_tables(steps.engine.plan, state.tables)
        params = jax.tree.map(np.array, state.params)
        (arrays,) = batches(config, steps, 1)
        state, *_ = steps.train(state, steps.to_devices(arrays), factor=factor)
        after = oracle.read_tables(steps.engine.plan, state.tables)
        moved[factor] = {key: after[key] - before[key] for key in after}
        dense = jax.tree.map(lambda a, b: np.asarray(a) - b, state.params, params)
        moved[factor]["dense"] = dense["network"]["backbone"]["bias"]
    for key in moved[1.0]:
        np.testing.assert_allclose(
            moved[0.5][key], 0.5 * moved[1.0][key], rtol=1e-3, atol=1e-7
        )
        assert not np.any(moved[0.0][key])
    users = moved[1.0]["weight", "user_id"]
    slot = next(s for s in steps.schema.slots if s.table == "user_id")
    touched = np.unique(arrays["ids"][:, slot.start])
    assert np.all(np.any(users[touched] != 0, axis=1))
    users[touched] = 0
    assert not np.any(users)


def test_lazy_adam_corrects_by_the_step_counter_of_the_run():
    config = make_config(named_config("lr"), name="lazy_adam", learning_rate=0.01)
    config.tables.replicate_below_bytes = 5_000  # users are sharded by row
    steps = make_steps(config)
    state = steps.init_state()
    plan, key = steps.engine.plan, ("weight", "user_id")
    c = config.optimizer.sparse
    for t, arrays in enumerate(batches(config, steps, 3), 1):
        before = oracle.read_tables(plan, state.tables)[key]
        state, *_ = steps.train(state, steps.to_devices(arrays), factor=0.5)
        moved = oracle.read_tables(plan, state.tables)[key] - before
        m = oracle.read_tables(plan, state.tables, part="m")[key] / (1 - c.b1**t)
        v = oracle.read_tables(plan, state.tables, part="v")[key] / (1 - c.b2**t)
        slot = next(s for s in steps.schema.slots if s.table == "user_id")
        touched = np.unique(arrays["ids"][:, slot.start])
        want = -0.5 * 0.01 * m[touched] / (np.sqrt(v[touched]) + c.eps)
        np.testing.assert_allclose(moved[touched], want, rtol=1e-3, atol=1e-7)


def test_evaluation_mode_ignores_dropout_and_leaves_the_state():
    config = make_config(
        named_config("dnn", embedding_dim=4, hidden_dims=(8,), dropout=0.9)
    )
    steps = make_steps(config)
    state = steps.init_state()
    (arrays,) = batches(config, steps, 1)
    batch = steps.to_devices(arrays)
    first = np.asarray(steps.evaluate(state, batch)[0])
    np.testing.assert_array_equal(first, steps.evaluate(state, batch)[0])
    assert first.shape == (64, 2) and first.dtype == np.float32


def test_dropout_is_the_same_on_any_device_count():
    config = make_config(
        named_config("dnn", embedding_dim=4, hidden_dims=(8,), dropout=0.5)
    )
    losses = []
    for devices in (1, 8):
        steps = make_steps(config, devices)
        state = steps.init_state()
        (arrays,) = batches(config, steps, 1)
        _, metrics, _ = steps.train(state, steps.to_devices(arrays), factor=1.0)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_table_l2_on_row_sharded_tables_is_refused():
    config = make_config()
    config.optimizer.dense.table_l2 = 0.1
    with pytest.raises(
        ConfigError, match=r"tables \[.*'user_id'.*\] are sharded by row"
    ):
        make_steps(config)


def test_log_loss_equals_the_formula_and_skips_weight_zero():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 2)).astype(np.float32) * 3
    labels = (rng.random((50, 2)) < 0.4).astype(np.float32)
    weight = rng.integers(0, 3, 50).astype(np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    losses = -(labels * np.log(p) + (1 - labels) * np.log(1 - p))
    want = (losses * weight[:, None]).sum(0) / weight.sum()
    np.testing.assert_allclose(binary_log_loss(logits, labels, weight), want, rtol=1e-5)
    assert not np.any(binary_log_loss(logits, labels, np.zeros(50, np.float32)))
    huge = binary_log_loss(np.float32([[1e4]]), np.float32([[0]]), np.float32([1]))
    assert huge[0] == 1e4
