"""Checksums of arrays that do not depend on how they are laid over devices.

Word i of an array (32 bits; narrower elements are widened) gives, modulo 2^32,

    u_i = mix_15((w_i ⊕ φ i) · a),   v_i = mix_13((u_i ⊕ c) · b)

with mix_k(x) = x ⊕ (x >> k) and i in row-major order; the checksum is (Σ u_i, Σ v_i).
a and b are the factors of MurmurHash3's finaliser (Appleby), φ and c bits without a
pattern. Integer sums are free of order, so every sharding gives the same numbers. For
given i the step from w_i to u_i is a bijection: one changed word always changes the
checksum, and other changes, swaps of rows included, are missed with odds of about
2^-64. It finds damage; it does not keep off anyone who means to deceive.
"""

from collections.abc import Mapping

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from rankax.parallel import mesh as meshes

_STEP, _SALT = 0x9E3779B9, 0x27D4EB2F  # φ and c above


def of_arrays(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the checksums of arrays in the order of their names, uint32 [n, 2].

    Makes no copy of them, and does not wait for the devices, unless some arrays are on
    devices and others on their hosts.
    """
    places = meshes.by_devices(arrays)
    if len(places) < 2:
        return _of_arrays(arrays)
    found = [_of_arrays(own) for own in places]
    names = [name for own in places for name in sorted(own)]
    sums = np.concatenate([np.asarray(x) for x in found])
    return jax.device_put(sums[np.argsort(names)], found[0].sharding)


@jax.jit
def _of_arrays(arrays: Mapping[str, jax.Array]) -> jax.Array:
    sums = [_of_array(x) for _, x in sorted(arrays.items())]
    return jnp.stack(sums) if sums else jnp.zeros((0, 2), jnp.uint32)


def _of_array(x: jax.Array) -> jax.Array:
    words, zero = _words(x), jnp.uint32(0)
    u = _mix((words ^ _multiples(words.shape)) * jnp.uint32(0x85EBCA6B), 15)
    v = _mix((u ^ jnp.uint32(_SALT)) * jnp.uint32(0xC2B2AE35), 13)
    sums = u, v
    # One reduction of both: two would share, and so keep, an array as large as x. The
    # first axis comes last: over the others, several cores can add at once.
    for axes in (tuple(range(1, words.ndim)), (0,) * min(words.ndim, 1)):
        sums = lax.reduce(
            sums, (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), axes
        )
    return jnp.stack(sums)


def _words(x: jax.Array) -> jax.Array:
    """The bits of every element as uint32; two words for one of 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    bits = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
    return lax.bitcast_convert_type(x, bits).astype(jnp.uint32)


def _multiples(shape: tuple[int, ...]) -> jax.Array:
    """φ times the row-major number of every word, modulo 2^32."""
    number, stride = jnp.zeros(shape, jnp.uint32), _STEP
    for axis in reversed(range(len(shape))):
        place = lax.broadcasted_iota(jnp.uint32, shape, axis)
        number += place * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    return number


def _mix(x: jax.Array, bits: int) -> jax.Array:
    return x ^ (x >> bits)
