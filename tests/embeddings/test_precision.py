import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats

from rankax.embeddings import precision
from rankax.parallel import mesh as meshes

ALL_PATTERNS = np.arange(2**16, dtype=np.uint16)
BETWEEN = 1 + 2**-10  # an eighth of the way from 1 to its neighbour 1 + 2^-7


@functools.partial(jax.jit, static_argnames="seed")
def stochastic(x, rows, *, seed=0, step=0):
    return precision.stochastic(x, rows=rows, seed=seed, step=step)


@functools.partial(jax.jit, static_argnums=2, static_argnames="seed")
def noise(steps, rows, num_columns, *, seed=0):
    """[steps, M, D]."""
    return jax.vmap(
        lambda step: precision.noise(rows, num_columns, seed=seed, step=step)
    )(steps)


def as_float(bits):
    return np.asarray(precision.to_float(jnp.asarray(bits)))


def random_floats(count):
    """Every exponent, both signs, infinities and NaN."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)


# ---------------------------------------------------------------- patterns


def test_every_pattern_is_its_bfloat16():
    expected = ALL_PATTERNS.view(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(as_float(ALL_PATTERNS), expected)


def test_nearest_rounds_ties_to_even_and_keeps_nan():
    ties = ((ALL_PATTERNS.astype(np.uint32) << 16) | 0x8000).view(np.float32)
    payload = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    x = np.concatenate([random_floats(100_000), ties, payload])
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(as_float(precision.nearest(jnp.asarray(x))), expected)


# ---------------------------------------------------------------- rounding


def test_what_bfloat16_can_represent_never_changes():
    exact = as_float(ALL_PATTERNS).reshape(-1, 16)
    for step in range(4):
        got = stochastic(exact, np.arange(len(exact)), step=step)
        finite = np.isfinite(exact)
        np.testing.assert_array_equal(got[finite], ALL_PATTERNS.reshape(-1, 16)[finite])
        np.testing.assert_array_equal(as_float(got)[~finite], exact[~finite])


def test_nan_and_infinity_pass_without_noise():
    bits = np.array([[0x7F800001, 0xFFFFFFFF, 0x7F800000, 0xFF800000]], np.uint32)
    for step in range(20):
        got = as_float(stochastic(bits.view(np.float32), np.array([3]), step=step))
        np.testing.assert_array_equal(got, [[np.nan, np.nan, np.inf, -np.inf]])


def test_the_result_is_one_of_the_two_neighbours():
    x = random_floats(160_000).reshape(-1, 16)
    x = np.where(np.isfinite(x), x, 0)
    got = np.asarray(stochastic(x, np.arange(len(x))))
    toward_zero = (x.view(np.uint32) >> 16).astype(np.uint16)
    steps_out = got - toward_zero
    assert set(np.unique(steps_out)) == {0, 1}
    assert abs(steps_out.mean() - 0.5) < 4 * 0.5 / np.sqrt(x.size)


@pytest.mark.parametrize("axis", ["rows", "columns", "steps"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_mean_is_exact_where_nearest_errs(axis, sign):
    n = 100_000
    x = jnp.float32(sign * BETWEEN)
    if axis == "rows":
        got = stochastic(jnp.full((n, 1), x), jnp.arange(n))
    elif axis == "columns":
        got = stochastic(jnp.full((1, n), x), jnp.arange(1))
    else:
        by_step = jax.vmap(lambda step: stochastic(x[None, None], rows, step=step))
        rows = jnp.arange(1)
        got = by_step(jnp.arange(n))
    deviation = 2**-7 * np.sqrt(1 / 8 * 7 / 8)
    error = as_float(got).mean(dtype=np.float64) - sign * BETWEEN
    assert abs(error) < 4 * deviation / np.sqrt(n)
    nearest = as_float(precision.nearest(x[None]))[0] - sign * BETWEEN
    assert abs(nearest) == pytest.approx(9.8e-4, rel=0.01)


def test_a_thousand_small_updates_arrive_and_nearest_loses_them_all():
    shape = (64, 16)
    rows = jnp.arange(shape[0])
    one = precision.nearest(jnp.ones(shape))

    def update(step, weights):
        near, random = weights
        near = precision.nearest(precision.to_float(near) + 1e-4)
        random = precision.to_float(random) + 1e-4
        return near, precision.stochastic(random, rows=rows, seed=0, step=step)

    near, random = jax.jit(lambda w: jax.lax.fori_loop(0, 1000, update, w))((one, one))
    assert (as_float(near) == 1).all()
    random = as_float(random).astype(np.float64)
    # 1000 draws of 2^-7 with the odds of 1e-4 to it, independent if the steps are.
    odds = 1e-4 * 2**7
    deviation = 2**-7 * np.sqrt(1000 * odds * (1 - odds))
    assert deviation < 0.03
    assert abs(random.mean() - 1.1) < 4 * deviation / np.sqrt(random.size)
    assert random.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * random.size))


# ---------------------------------------------------------------- reproducible


def test_a_row_is_rounded_alike_in_any_order_batch_and_type_of_its_number():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 5)).astype(np.float32)
    rows = rng.choice(2**31 - 1, 500, replace=False).astype(np.int32)
    expected = np.asarray(stochastic(x, rows, seed=3, step=9))
    order = rng.permutation(500)
    np.testing.assert_array_equal(
        stochastic(x[order], rows[order], seed=3, step=9), expected[order]
    )
    few = order[:7]
    np.testing.assert_array_equal(
        stochastic(x[few], rows[few].astype(np.uint32), seed=3, step=9), expected[few]
    )
    for other in ({"seed": 4, "step": 9}, {"seed": 3, "step": 10}):
        assert (stochastic(x, rows, **other) != expected).mean() > 0.2


def test_eight_devices_round_like_one():
    x = np.random.default_rng(2).normal(size=(64, 16)).astype(np.float32)
    rows = np.arange(64) * 1000
    sharding = meshes.over_all_devices(meshes.make_mesh())
    sharded = stochastic(*jax.device_put((x, rows), sharding))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, stochastic(x, rows))


def test_it_lowers_for_every_platform():
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32)
    rows = jax.ShapeDtypeStruct((8,), jnp.int32)
    step = jax.ShapeDtypeStruct((), jnp.int32)

    def round_trip(x, rows, step):
        bits = precision.stochastic(x, rows=rows, seed=0, step=step)
        return precision.to_float(bits), precision.nearest(x)

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(round_trip), platforms=platforms)(
        x, rows, step
    )
    assert exported.platforms == platforms


# ---------------------------------------------------------------- noise


def murmur_finaliser(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


def test_noise_is_the_documented_hash():
    # MurmurHash3_x86_32 of no bytes is the finaliser of its seed; published values.
    assert murmur_finaliser(1) == 0x514E28B7
    assert murmur_finaliser(0xFFFFFFFF) == 0x81F16F39
    mix, rows, seed, step = murmur_finaliser, [0, 1, 2**31, 2**32 - 1], 5, 2**31 - 1
    salts = 0x9E3779B9, 0xBB67AE85
    a, b = (mix((mix(seed ^ salt) + step) % 2**32) for salt in salts)
    expected = [
        [
            mix((mix(row ^ a) + j * (mix((row + b) % 2**32) | 1)) % 2**32) >> 16
            for j in range(4)
        ]
        for row in rows
    ]
    got = noise(np.array([step]), np.array(rows, np.uint32), 4, seed=seed)
    assert got[0].tolist() == expected


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("step", [0, 1_000_000])
def test_noise_is_uniform_and_its_neighbours_are_uncorrelated(seed, step):
    draws = noise(step + np.arange(32), np.arange(2048), 16, seed=seed)
    draws = np.asarray(draws)
    counts = np.bincount(draws.ravel(), minlength=2**16)
    assert stats.chisquare(counts).pvalue > 1e-3
    unit = (draws - (2**16 - 1) / 2) / np.sqrt((2**32 - 1) / 12)
    assert abs(unit.mean()) < 4 / np.sqrt(unit.size)
    for lag in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (0, 2, 0)]:
        here = unit[tuple(slice(None, -n or None) for n in lag)]
        there = unit[tuple(slice(n, None) for n in lag)]
        assert abs((here * there).mean()) < 4 / np.sqrt(here.size), lag
    seeds = noise(step + np.arange(32), np.arange(2048), 16, seed=seed + 1)
    other = (np.asarray(seeds) - (2**16 - 1) / 2) / np.sqrt((2**32 - 1) / 12)
    assert abs((unit * other).mean()) < 4 / np.sqrt(unit.size)


@pytest.mark.parametrize("flipped", ["row", "step"])
def test_every_bit_of_the_counter_flips_every_bit_of_the_noise_half_the_time(flipped):
    n, step = 4096, 77
    rows = np.random.default_rng(3).integers(0, 2**31, n).astype(np.uint32)
    bits = 1 << np.arange(31)
    before = np.asarray(noise(np.array([step]), rows, 2))
    if flipped == "step":
        after = np.asarray(noise(step ^ bits, rows, 2))
    else:
        after = np.stack([noise(np.array([step]), rows ^ b, 2)[0] for b in bits])
    flips = (before ^ after)[..., None] >> np.arange(16) & 1
    rate = flips.mean(axis=1)  # [counter bit, column, noise bit]
    assert np.abs(rate - 0.5).max() < 5 * 0.5 / np.sqrt(n)


def test_no_two_of_a_million_counters_share_four_numbers_in_a_row():
    rows = np.random.default_rng(4).choice(2**31 - 1, 1024, replace=False)
    draws = np.asarray(noise(np.arange(1024), rows, 8)).reshape(-1, 8).astype(np.uint64)
    assert len(draws) == 2**20
    runs = sum(draws[:, i : i + 5] << np.uint64(16 * i) for i in range(4))
    assert (np.diff(np.sort(runs, axis=None)) > 0).all()
