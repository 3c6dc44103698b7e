"""Rows of 16 bits: bfloat16 as bit patterns, rounded to nearest or at random.

A bfloat16 is the upper half of a float32. Rows are kept as uint16 because XLA:CPU
converts a whole bfloat16 table to float32 around a scatter.

A weight with 8 significant bits ignores every update below 1/512 of it when rounded to
nearest. Stochastic rounding adds a uniform 16-bit number to the half that is cut off: x
goes to one of its two neighbours, with odds that make the mean x. The noise is a hash
of (seed, step, row, column), so it depends neither on the number of devices nor on the
order of rows.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

# Any two numbers; these are the first bits after the point of φ and of √3.
_SALTS = np.array([0x9E3779B9, 0xBB67AE85], np.uint32)


def to_float(bits: jax.Array) -> jax.Array:
    """Returns the float32 that each uint16 pattern stands for; exact."""
    return lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def nearest(x: jax.Array) -> jax.Array:
    """Rounds float32 to the nearest pattern, ties to even; NaN stays NaN."""
    return lax.bitcast_convert_type(x.astype(jnp.bfloat16), jnp.uint16)


def stochastic(
    x: jax.Array, *, rows: jax.Array, seed: int, step: jax.Array
) -> jax.Array:
    """Rounds float32 rows up or down at random, so that the mean is x.

    What bfloat16 can represent, zero included, never changes; infinities and NaN pass
    without noise.

    Args:
        x: [M, D] float32.
        rows: [M] integers below 2^32 that name the rows, the same on any number of
            devices.
        seed: below 2^32; arrays whose row numbers overlap need different seeds.
        step: [] integer; a row's noise is new in every step.

    Returns:
        [M, D] uint16.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    noisy = bits + noise(rows, x.shape[1], seed=seed, step=step)
    return jnp.where(jnp.isfinite(x), (noisy >> 16).astype(jnp.uint16), nearest(x))


def noise(
    rows: jax.Array, num_columns: int, *, seed: int, step: jax.Array
) -> jax.Array:
    """Returns uniform numbers in [0, 2^16), [M, D] uint32, for `stochastic`.

    As in SplitMix (Steele, Lea and Flood, OOPSLA 2014) a row is a stream with a start
    and an odd stride of its own, and column j is the hash of start + j · stride. Two
    streams overlap only if their strides agree and their starts lie on one path.
    """
    rows, step = rows.astype(jnp.uint32), jnp.asarray(step).astype(jnp.uint32)
    a, b = (_mix(_mix(jnp.uint32(seed) ^ salt) + step) for salt in _SALTS)
    start, stride = _mix(rows ^ a), _mix(rows + b) | 1
    columns = jnp.arange(num_columns, dtype=jnp.uint32)
    return _mix(start[:, None] + columns * stride[:, None]) >> 16


def _mix(x: jax.Array) -> jax.Array:
    """MurmurHash3's 32-bit finaliser (Appleby): a bijection; each bit flips half."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
