"""Checksums see every damage, on any layout, without a copy of what they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.parallel import mesh as meshes
from rankax.training import checksum


def expected(x):
    words = np.atleast_1d(x).ravel()
    if words.dtype.itemsize == 4:
        words = words.view(np.uint32)
    first = second = 0
    for i, word in enumerate(words.view(np.uint8) if x.dtype == bool else words):
        u = (int(word) ^ i * 0x9E3779B9 % 2**32) * 0x85EBCA6B % 2**32
        u ^= u >> 15
        v = (u ^ 0x27D4EB2F) * 0xC2B2AE35 % 2**32
        first += u
        second += v ^ (v >> 13)
    return [first % 2**32, second % 2**32]


def random_arrays():
    rng = np.random.default_rng(0)
    return {
        "z/table": rng.normal(size=(16, 5, 3)).astype(np.float32),
        "rows": rng.integers(0, 2**16, (8, 7, 2), np.uint16),
        "steps": rng.integers(-5, 5, (8, 3), np.int32),
        "bytes": rng.integers(0, 2**8, 8, np.uint8),
        "flags": np.array([True, False] * 4),
        "step": np.int32(-3),
    }


@pytest.mark.parametrize("devices", [1, 8])
def test_sums_are_those_of_a_loop_over_words_on_any_layout(devices):
    arrays = random_arrays()
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    split, copied = meshes.over_all_devices(mesh), meshes.replicated(mesh)
    on_devices = {
        name: jax.device_put(x, split if x.ndim else copied)
        for name, x in arrays.items()
    }
    found = np.asarray(checksum.of_arrays(on_devices))
    assert found.tolist() == [
        expected(np.asarray(x)) for _, x in sorted(arrays.items())
    ]


def sums(x):
    return np.asarray(checksum.of_arrays({"x": jnp.asarray(x)})).tolist()


def test_every_flipped_bit_is_seen():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    whole, bits = sums(x), x.view(np.uint32)
    for place in np.ndindex(x.shape):
        for bit in range(32):
            bits[place] ^= np.uint32(1 << bit)
            assert sums(x) != whole
            bits[place] ^= np.uint32(1 << bit)


def test_moved_rows_and_pairs_of_signs_are_seen():
    x = np.random.default_rng(0).normal(size=(8, 16, 4)).astype(np.float32)
    whole = sums(x)
    swapped = x.copy()
    swapped[2, 3], swapped[5, 1] = x[5, 1], x[2, 3]
    rolled = np.roll(x, 1, axis=0)
    signs = x.copy()
    signs[1, 1, 1] *= -1
    signs[6, 2, 0] *= -1
    zeros = np.zeros_like(x)
    for other in (swapped, rolled, signs, zeros):
        assert sums(other) != whole
    assert sums(x.reshape(16, 8, 4)) == whole  # the shape is the manifest's matter


@pytest.mark.guard
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.uint16])
def test_no_temporary_grows_with_the_table(devices, dtype):
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    table = jax.ShapeDtypeStruct(
        (64, 2048, 16), dtype, sharding=meshes.over_all_devices(mesh)
    )
    memory = checksum._of_arrays.lower({"x": table}).compile().memory_analysis()
    assert memory.argument_size_in_bytes >= 4e6 / devices
    assert memory.temp_size_in_bytes < 4096
