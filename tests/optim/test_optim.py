import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.experiment import DenseOptimizerConfig, ScheduleConfig
from rankax.optim import schedule
from rankax.optim.dense import dense_optimizer
from rankax.optim.schedule import Plateau

PARAMS = {
    "network": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
    "tables": {"embedding": jnp.full((4, 2), 2.0)},
}


def direction(**options):
    optimizer = dense_optimizer(DenseOptimizerConfig(**options))
    gradient = jax.tree.map(lambda x: jnp.full_like(x, 0.5), PARAMS)
    return optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[0]


def test_l2_joins_the_gradient_of_kernels_and_tables_not_of_biases():
    step = direction(name="sgd", l2=0.1, table_l2=0.25)
    np.testing.assert_allclose(step["network"]["kernel"], 0.5 + 0.1 * 1)
    np.testing.assert_allclose(step["network"]["bias"], 0.5)
    np.testing.assert_allclose(step["tables"]["embedding"], 0.5 + 0.25 * 2)


def test_clipping_bounds_the_norm_with_the_l2_terms_in_it():
    step = direction(name="sgd", table_l2=0.25, clip_norm=1.0)
    norm = math.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(step)))
    assert norm == pytest.approx(1.0, rel=1e-5)
    ratio = step["tables"]["embedding"][0, 0] / step["network"]["bias"][0]
    assert ratio == pytest.approx(2.0, rel=1e-5)


def test_adam_starts_with_unit_steps_and_adamw_adds_decay_to_kernels():
    np.testing.assert_allclose(
        direction(name="adam")["network"]["bias"], 1.0, rtol=1e-5
    )
    step = direction(name="adamw", weight_decay=0.1)
    np.testing.assert_allclose(step["network"]["kernel"], 1.1, rtol=1e-5)
    np.testing.assert_allclose(step["network"]["bias"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(step["tables"]["embedding"], 1.0, rtol=1e-5)


def test_warm_up_rises_to_one_and_decays_end_at_the_final_factor():
    config = ScheduleConfig(warmup_steps=4, decay="linear", final_factor=0.2)
    values = [schedule.factor(config, step, 12) for step in range(13)]
    np.testing.assert_allclose(values[:5], [0.25, 0.5, 0.75, 1.0, 1.0])
    assert values[8] == pytest.approx(0.6) and values[12] == pytest.approx(0.2)
    cosine = ScheduleConfig(decay="cosine")
    assert schedule.factor(cosine, 5, 10) == pytest.approx(0.5)
    assert schedule.factor(cosine, 10, 10) == pytest.approx(0.0)
    assert schedule.factor(ScheduleConfig(), 99, 10) == 1.0


def test_the_plateau_reduces_the_rate_and_counts_evaluations_without_gain():
    config = ScheduleConfig(plateau_factor=0.1, plateau_patience=2, min_factor=0.05)
    plateau = Plateau()
    history = []
    for step, value in enumerate([0.5, 0.6, 0.6, math.nan, 0.7, 0.1, 0.1, 0.1, 0.1]):
        is_best = plateau.update(value, step=step, is_higher_better=True, config=config)
        history.append((is_best, plateau.since_best, plateau.factor))
    assert history == [
        (True, 0, 1.0),
        (True, 0, 1.0),
        (False, 1, 1.0),
        (False, 2, 0.1),
        (True, 0, 0.1),
        (False, 1, 0.1),
        (False, 2, 0.05),
        (False, 3, 0.05),
        (False, 4, 0.05),
    ]
    assert (plateau.best, plateau.best_step) == (0.7, 4)


def test_the_plateau_follows_losses_downwards():
    plateau = Plateau()
    for step, value in enumerate([0.5, 0.4, 0.45]):
        plateau.update(
            value, step=step, is_higher_better=False, config=ScheduleConfig()
        )
    assert (plateau.best, plateau.best_step, plateau.factor) == (0.4, 1, 1.0)
