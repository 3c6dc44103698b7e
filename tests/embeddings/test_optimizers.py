import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rankax.config.base import ConfigError
from rankax.config.experiment import (
    ROW_OPTIMIZERS,
    ExperimentConfig,
    ParquetConfig,
    SparseOptimizerConfig,
)
from rankax.embeddings import optimizers
from rankax.embeddings.oracle import Oracle
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config

NUM_ROWS = 12
# Far from the defaults, so that the place of every number is seen.
OPTIONS = {"eps": 0.05, "initial_accumulator": 0.3, "b1": 0.8, "b2": 0.95}
KEY = ("embedding", "item")


def make_config(name, **options):
    own = {option: OPTIONS[option] for option in ROW_OPTIMIZERS[name]}
    return SparseOptimizerConfig(name=name, learning_rate=0.1, **own | options)


def touch(optimizer, rows, state, touched, grad, step):
    """One update of some rows of a table."""
    old = {name: x[touched] for name, x in state.items()}
    new, old = jax.jit(optimizer.update)(
        rows[touched], old, jnp.float32(grad), jnp.float32(0.1), jnp.int32(step)
    )
    state = {name: x.at[touched].set(old[name]) for name, x in state.items()}
    return rows.at[touched].set(new), state


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("dim", [1, 16])
def test_touched_rows_follow_the_oracle_and_others_stand_still(name, weight_decay, dim):
    config = make_config(name, weight_decay=weight_decay)
    optimizer = optimizers.from_config(config)
    rng = np.random.default_rng(0)
    rows = jnp.float32(rng.normal(size=(NUM_ROWS, dim)))
    state = optimizer.init((NUM_ROWS,), dim)
    oracle = Oracle({KEY: rows}, config)
    for step in range(5):
        touched = rng.permutation(NUM_ROWS)[:7]
        grad = rng.normal(size=(len(touched), dim))
        rows, state = touch(optimizer, rows, state, touched, grad, step)
        oracle.update(("item",), touched[:, None], {"embedding": grad[:, None]})
        np.testing.assert_allclose(rows, oracle.tables[KEY], rtol=0, atol=1e-6)
        assert state.keys() == oracle.state[KEY].keys()
        for part, want in oracle.state[KEY].items():
            np.testing.assert_allclose(state[part], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        # optax has its eps inside the root: without it the two are the same.
        ("adagrad", optax.scale_by_rss(initial_accumulator_value=0.3, eps=0)),
        ("lazy_adam", optax.scale_by_adam(b1=0.8, b2=0.95, eps=0.05)),
        ("sgd", optax.identity()),
    ],
)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_rows_touched_in_every_step_follow_optax(name, direction, weight_decay):
    eps = {"eps": 0.0} if name == "adagrad" else {}
    config = make_config(name, weight_decay=weight_decay, **eps)
    optimizer = optimizers.from_config(config)
    rng = np.random.default_rng(1)
    rows = dense = jnp.float32(rng.normal(size=(NUM_ROWS, 16)))
    state = optimizer.init((NUM_ROWS,), 16)
    optax_optimizer = optax.chain(
        direction, optax.add_decayed_weights(weight_decay), optax.scale(-0.1)
    )
    optax_state = optax_optimizer.init(dense)
    for step in range(20):
        grad = rng.normal(size=rows.shape)
        rows, state = touch(optimizer, rows, state, np.arange(NUM_ROWS), grad, step)
        change, optax_state = optax_optimizer.update(
            jnp.float32(grad), optax_state, dense
        )
        dense = optax.apply_updates(dense, change)
        np.testing.assert_allclose(rows, dense, rtol=0, atol=3e-6)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_sgd_under_a_constant_gradient_has_a_closed_form(weight_decay):
    optimizer = optimizers.sgd(weight_decay=weight_decay)
    rows = jnp.array([[1.0, -2.0]])
    grad = np.array([[0.5, 0.25]])
    for step in range(10):
        rows, state = touch(optimizer, rows, {}, np.array([0]), grad, step)
    assert state == {}
    keep = 1 - 0.1 * weight_decay
    total = sum(keep**k for k in range(10))
    expected = keep**10 * np.array([[1.0, -2.0]]) - 0.1 * total * grad
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", {}),
        ("rowwise_adagrad", {"accumulator": ((8, 3), 0.3)}),
        ("adagrad", {"accumulator": ((8, 3, 16), 0.3)}),
        ("lazy_adam", {"m": ((8, 3, 16), 0.0), "v": ((8, 3, 16), 0.0)}),
    ],
)
def test_state_has_the_documented_shape_and_start(name, expected):
    state = optimizers.from_config(make_config(name)).init((8, 3), 16)
    assert state.keys() == expected.keys()
    for part, (shape, start) in expected.items():
        np.testing.assert_array_equal(state[part], np.full(shape, start, np.float32))
        assert state[part].dtype == jnp.float32


def test_rowwise_adagrad_in_one_dimension_is_adagrad():
    grad = np.linspace(-1, 1, NUM_ROWS)[:, None]
    results = []
    for name in ("rowwise_adagrad", "adagrad"):
        optimizer = optimizers.from_config(make_config(name, weight_decay=0.1))
        rows, state = jnp.ones((NUM_ROWS, 1)), optimizer.init((NUM_ROWS,), 1)
        for step in range(3):
            rows, state = touch(optimizer, rows, state, np.arange(NUM_ROWS), grad, step)
        results.append(rows)
    np.testing.assert_allclose(*results, rtol=1e-6)


@pytest.mark.parametrize("b2", [0.999, 0.9999])
def test_the_first_step_of_lazy_adam_is_the_learning_rate_to_six_digits(b2):
    optimizer = optimizers.lazy_adam(b1=0.9, b2=b2, eps=0.0)
    rows, grad = jnp.zeros((3, 1)), np.array([[5.0], [-1e-3], [70.0]])
    state = optimizer.init((3,), 1)
    rows, _ = touch(optimizer, rows, state, np.arange(3), grad, 0)
    np.testing.assert_allclose(rows, -0.1 * np.sign(grad), rtol=1e-6)


def test_a_row_first_touched_late_moves_further_in_lazy_adam():
    optimizer = optimizers.lazy_adam(b1=0.9, b2=0.999, eps=0.0)
    state = optimizer.init((1,), 1)
    rows, _ = touch(
        optimizer, jnp.zeros((1, 1)), state, np.array([0]), np.ones((1, 1)), 10**6
    )
    np.testing.assert_allclose(rows, -0.1 * 0.1 / np.sqrt(0.001), rtol=1e-5)


def test_lazy_adam_that_remembers_nothing_moves_by_the_sign():
    optimizer = optimizers.lazy_adam(b1=0.0, b2=0.0, eps=0.0)
    rows, _ = touch(
        optimizer,
        jnp.zeros((2, 1)),
        optimizer.init((2,), 1),
        np.arange(2),
        np.array([[3.0], [-4.0]]),
        7,
    )
    np.testing.assert_allclose(rows, [[-0.1], [0.1]], rtol=1e-6)


def test_the_oracle_adds_duplicates_before_the_update_and_skips_padding():
    config = SparseOptimizerConfig(learning_rate=0.01, eps=0.0)
    oracle = Oracle({KEY: np.zeros((3, 1))}, config)
    ids = np.array([[0, -1], [0, 2]])
    oracle.update(("item", "item"), ids, {"embedding": np.ones((2, 2, 1))})
    assert oracle.tables[KEY].ravel() == pytest.approx([-0.01, 0, -0.01])
    assert oracle.state[KEY]["accumulator"].tolist() == [4, 0, 1]
    assert oracle.step == 1


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "adagrad", "b1": 0.8},
            r"optimizer.sparse.b1 = 0.8 is not used by 'adagrad' but by lazy_adam; "
            "set name, or leave it at 0.9",
        ),
        (
            {"name": "sgd", "initial_accumulator": 0.1},
            "initial_accumulator = 0.1 is not used by 'sgd' but by rowwise_adagrad, ",
        ),
        ({"name": "sgd", "eps": 1e-6}, "eps = 1e-06 is not used by 'sgd'"),
        ({"name": "lazy_adam", "initial_accumulator": 0.1}, "not used by 'lazy_adam'"),
        ({"name": "lazy_adam", "b2": 1.0}, r"optimizer.sparse.b2 = 1.0 must be below"),
        ({"name": "lazy_adam", "b1": -0.1}, "b1 = -0.1 must be at least 0"),
        ({"weight_decay": -1.0}, "sparse.weight_decay = -1.0 must be at least 0"),
        ({"eps": 0.0}, "eps = 0 divides 0 by 0"),
        ({"name": "lazy_adams", "eps": 1.0}, "did you mean 'lazy_adam'"),
    ],
)
def test_options_without_use_or_out_of_range_are_errors(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        experiment(SparseOptimizerConfig(**options)).validate()
    assert str(error.value).count("\n  - ") == 1


@pytest.mark.parametrize("name", ROW_OPTIMIZERS)
def test_every_option_that_an_optimizer_uses_may_be_set(name):
    experiment(make_config(name, weight_decay=0.1)).validate()


def experiment(sparse):
    config = ExperimentConfig()
    config.data.source = ParquetConfig(path="somewhere")
    config.model.backbone = named_config("dnn")
    config.train.num_steps = 10
    config.optimizer.sparse = sparse
    return config
