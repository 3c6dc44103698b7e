"""Checksums of arrays that do not depend on how they are laid over devices.

Word i of an array (32 bits; narrower elements are widened) gives

    h_i = mix(w_i ⊕ mix(i)),   checksum = (Σ h_i, Σ mix(h_i ⊕ c))   modulo 2^32

with i in row-major order, modulo 2^32, and mix the finaliser of MurmurHash3 (Appleby).
Integer sums are free of order, so every sharding gives the same numbers. For given i
the step from w_i to h_i is a bijection: one changed word always changes the checksum,
and other changes, swaps of rows included, are missed with odds of about 2^-64. It
finds damage; it does not keep off anyone who means to deceive.
"""

from collections.abc import Mapping

import jax
from jax import lax
import jax.numpy as jnp

_SALT = 0x9E3779B9  # any number; these are the first bits after the point of φ


@jax.jit
def of_arrays(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the checksums of arrays in the order of their names, uint32 [n, 2].

    Makes no copy of them, and does not wait for the devices.
    """
    sums = [_of_array(x) for _, x in sorted(arrays.items())]
    return jnp.stack(sums) if sums else jnp.zeros((0, 2), jnp.uint32)


def _of_array(x: jax.Array) -> jax.Array:
    words, zero = _words(x), jnp.uint32(0)
    mixed = _mix(words ^ _mix(_numbers(words.shape)))
    again = _mix(mixed ^ jnp.uint32(_SALT))
    # One reduction of both: two would share, and so keep, an array as large as x.
    sums = lax.reduce(
        (mixed, again),
        (zero, zero),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        tuple(range(words.ndim)),
    )
    return jnp.stack(sums)


def _words(x: jax.Array) -> jax.Array:
    """The bits of every element as uint32; two words for one of 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _numbers(shape: tuple[int, ...]) -> jax.Array:
    """The row-major number of every word, modulo 2^32."""
    number, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        number += place * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return number


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits; each bit of x flips half of the result's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
