import bisect
import hashlib
import math

import numpy as np
import pytest

from rankax.data import transforms
from rankax.data.card import DataError
from rankax.data.fields import Clip, Log1p, Standardise

MASK = 2**64 - 1


def finalise(h: int) -> int:
    """The finaliser of splitmix64 in Python's unbounded integers."""
    h = ((h ^ h >> 30) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ h >> 27) * 0x94D049BB133111EB) & MASK
    return h ^ h >> 31


def hash_one(value: int, *, num_rows: int, salt: int) -> int:
    """The documented hash of an integer."""
    return (finalise((value & MASK) ^ salt) >> 31) * num_rows >> 33


def hash_text(text: bytes) -> int:
    """The documented hash of a string."""
    h = (len(text) + 1) * 0x9E3779B97F4A7C15 & MASK
    for i in range(0, max(len(text), 1), 8):
        h = finalise(h ^ int.from_bytes(text[i : i + 8], "little"))
    return h - 2**64 if h >= 2**63 else h


def laid_out(texts: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes and offsets of strings."""
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int32)
    return np.frombuffer(b"".join(texts), np.uint8), offsets


@pytest.mark.parametrize("num_rows", [1, 7, 1000, 2**20, 2**31 - 1])
def test_hash_equals_unbounded_integer_arithmetic(num_rows):
    ids = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 500)
    ids = np.concatenate([ids, [0, 1, -1, 2**63 - 1, -(2**63)]])
    salt = transforms.table_salt("item")
    rows = transforms.hash_rows(ids, num_rows=num_rows, salt=salt)
    assert rows.dtype == np.int32
    expected = [hash_one(int(i), num_rows=num_rows, salt=salt) for i in ids]
    assert rows.tolist() == expected


def test_hash_depends_on_the_integer_not_on_its_dtype():
    rows = [
        transforms.hash_rows(np.array([5, 100], kind), num_rows=997, salt=3).tolist()
        for kind in (np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64)
    ]
    assert all(row == rows[0] for row in rows)
    narrow, wide = np.array([-5], np.int32), np.array([-5], np.int64)
    assert transforms.hash_rows(narrow, num_rows=997, salt=3) == transforms.hash_rows(
        wide, num_rows=997, salt=3
    )


def test_hash_leaves_its_input_alone():
    ids = np.arange(5, dtype=np.uint64)
    transforms.hash_rows(ids, num_rows=10, salt=9)
    assert ids.tolist() == [0, 1, 2, 3, 4]


def test_hash_spreads_consecutive_ids_evenly():
    rows = transforms.hash_rows(np.arange(1_000_000), num_rows=1000, salt=1)
    counts = np.bincount(rows, minlength=1000)
    # Mean 1000, standard deviation 31.6 for an ideal hash; 1000 rows reach 3.3 of it.
    assert counts.min() > 1000 - 5 * 31.6 and counts.max() < 1000 + 5 * 31.6
    chi_square = ((counts - 1000) ** 2 / 1000).sum()
    assert abs(chi_square - 999) < 5 * np.sqrt(2 * 999)


def test_tables_collide_differently():
    ids = np.arange(2000)
    first, second = (
        transforms.hash_rows(ids, num_rows=100, salt=transforms.table_salt(name))
        for name in ("user", "item")
    )
    together = first[:-1] == first[1:]
    assert (second[:-1] == second[1:])[together].mean() < 0.2


def test_salt_is_the_same_for_ever():
    assert transforms.table_salt("item") == int.from_bytes(
        hashlib.blake2b(b"item", digest_size=8).digest(), "big"
    )
    assert transforms.table_salt("item") == 0x848AAB3CFFD8F8D8


def test_string_hash_is_the_same_for_ever():
    known = {
        "": -2152535657050944081,
        "a": 1387786489429541378,
        "ä": -7953210186611023796,
        "exactly8": -8539355610971453673,
        "user_123456": 4594329560329598414,
        "a longer text, of some words": 5958346784091179528,
    }
    assert transforms.hash_strings(list(known)).tolist() == list(known.values())
    assert transforms.hash_strings([]).shape == (0,)


@pytest.mark.parametrize("at_a_time", [1, 7, 16384])
def test_string_hash_equals_unbounded_integer_arithmetic(at_a_time, monkeypatch):
    monkeypatch.setattr(transforms, "STRINGS_AT_A_TIME", at_a_time)
    rng = np.random.default_rng(0)
    texts = [rng.bytes(n) for n in rng.integers(0, 40, 300)]
    texts += [b"", b"\0", b"\0" * 8, b"\0" * 9, b"\xff" * 16, b"\xff" * 17, b""]
    data, offsets = laid_out(texts)
    expected = [hash_text(text) for text in texts]
    ids = transforms.hash_bytes(data, offsets)
    assert ids.dtype == np.int64 and ids.tolist() == expected
    cut = transforms.hash_bytes(data, offsets[100:201].astype(np.int64))
    assert cut.tolist() == expected[100:200]


def test_string_hash_has_no_collision_in_a_million_similar_strings():
    texts = [f"user_{i}" for i in range(500_000)]
    # The last byte of one word beside single bytes of the next.
    texts += [f"{i // 1000:>8}{i % 1000:012}" for i in range(500_000)]
    ids = transforms.hash_strings(texts).view(np.uint64)
    assert np.diff(np.sort(ids)).all()
    # Of 40 bits alone: 2^39 pairs, each of which meets once in 2^40.
    for shift in (0, 12, 24):
        part = ids >> np.uint64(shift) & np.uint64(2**40 - 1)
        assert (np.diff(np.sort(part)) == 0).sum() < 8


@pytest.mark.parametrize("shift", [0, 27, 54])
def test_string_hash_spreads_similar_strings_evenly(shift):
    ids = transforms.hash_strings([f"user_{i}" for i in range(200_000)])
    bits = ids.view(np.uint64) >> np.uint64(shift) & np.uint64(1023)
    counts = np.bincount(bits.astype(np.int64), minlength=1024)
    mean = 200_000 / 1024
    chi_square = ((counts - mean) ** 2 / mean).sum()
    assert abs(chi_square - 1023) < 5 * np.sqrt(2 * 1023)


def test_every_bit_of_a_string_changes_every_bit_of_its_hash_half_the_time():
    rng = np.random.default_rng(0)
    texts = rng.integers(0, 256, (2000, 20), dtype=np.uint8)
    offsets = np.arange(2001) * 20
    whole = transforms.hash_bytes(texts.reshape(-1), offsets)
    for bit in range(160):
        flipped = texts.copy()
        flipped[:, bit // 8] ^= 1 << bit % 8
        change = whole ^ transforms.hash_bytes(flipped.reshape(-1), offsets)
        bits = np.unpackbits(change.view(np.uint8).reshape(2000, 8), axis=1)
        rates = bits.mean(axis=0)
        # Standard deviation .0112 of each of 160 · 64 rates, the largest at 4 of it.
        assert np.abs(rates - 0.5).max() < 6 * 0.0112
        assert abs(rates.mean() - 0.5) < 5 * 0.0112 / 8


def test_transforms_of_numbers_equal_a_loop_in_their_order():
    def log1p(x):
        return math.copysign(math.log(1 + abs(x)), x)

    rng = np.random.default_rng(0)
    values = rng.normal(0, 100, 2000)
    steps = (
        Clip(minimum=-50, maximum=120.5),
        Log1p(),
        Standardise(mean=2, deviation=3),
    )
    found = transforms.numbers(values, steps)
    expected = [(log1p(min(max(x, -50), 120.5)) - 2) / 3 for x in values.tolist()]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = transforms.numbers(values, steps[::-1])
    expected = [min(max(log1p((x - 2) / 3), -50), 120.5) for x in values.tolist()]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", [np.int8, np.uint64, np.float16, np.float32])
def test_transforms_leave_their_input_alone_and_take_any_type(kind):
    values = np.array([0, 1, 5, 100], kind)
    found = transforms.numbers(values, (Log1p(), Clip(maximum=2)))
    np.testing.assert_allclose(found, [0, np.log(2), np.log(6), 2], rtol=1e-6)
    assert values.tolist() == [0, 1, 5, 100]


def test_transforms_compute_in_float64():
    moments = np.array([1_714_521_600, 1_714_521_601, 1_714_521_607])
    step = Standardise(mean=1_714_521_600, deviation=2)
    assert transforms.numbers(moments, (step,)).tolist() == [0, 0.5, 3.5]


def test_clip_mends_the_infinite_and_float32_is_not_copied():
    values = np.array([-np.inf, 1, np.inf, np.nan], np.float32)
    found = transforms.numbers(values, (Clip(minimum=0, maximum=9),))
    np.testing.assert_array_equal(found, [0, 1, 9, np.nan])
    assert transforms.numbers(values) is values


def test_bucket_of_a_number_is_how_many_boundaries_it_reaches():
    boundaries = (-1.5, 0, 2, 2.5)
    values = np.array([-2, -1.5, -1, 0, 1.999, 2, 2.5, 1e9, -np.inf, np.inf])
    found = transforms.bucket_ids(values, boundaries)
    assert found.dtype == np.int32
    assert found.tolist() == [bisect.bisect_right(boundaries, x) for x in values]
    assert transforms.bucket_ids(np.array([2, 3], np.int8), boundaries).tolist() == [
        3,
        4,
    ]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_boundary_is_reached_by_the_same_number_of_every_type(kind):
    values = np.array([0.6, 0.7, 0.8, 6e4], kind)
    assert transforms.bucket_ids(values, (0.7, 1e5)).tolist() == [0, 1, 1, 1]


def test_hash_refuses_what_is_not_an_integer():
    with pytest.raises(TypeError, match="must be integers, found float64"):
        transforms.hash_rows(np.array([1.0]), num_rows=10, salt=0)


def test_direct_takes_every_row_up_to_the_largest():
    ids = np.array([0, 9, 3], np.uint64)
    rows = transforms.direct_rows(ids, num_rows=10, table="item", field="item")
    assert rows.dtype == np.int32 and rows.tolist() == [0, 9, 3]
    empty = np.zeros(0, np.int64)
    assert transforms.direct_rows(empty, num_rows=1, table="t", field="f").size == 0


def test_direct_counts_and_names_ids_outside_the_table():
    ids = np.array([0, 10, -1, 12])
    with pytest.raises(DataError) as error:
        transforms.direct_rows(
            ids, num_rows=10, table="item", field="history/item", where="shop/train"
        )
    text = str(error.value)
    assert text.startswith("shop/train: field 'history/item': 3 of 4 ids are outside")
    assert "table 'item' with num_rows = 10" in text
    assert "largest 12" in text and "set num_rows of the table to 13" in text
    assert "--config.tables.out_of_range=default_row" in text


@pytest.mark.parametrize(
    ("kind", "num_rows", "ids"),
    [
        (np.int8, 300, [-128, -1, 0, 127]),  # V and the default row do not fit the ids
        (np.uint8, 200, [0, 199, 200, 255]),
        (np.int32, 10, [0, 9, 10, -1, 2**31 - 1, -(2**31)]),
        (np.int64, 10, [2**32 + 3, 2**63 - 1, -(2**63), 5]),  # 3 in the low 32 bits
        (np.uint64, 10, [2**64 - 1, 2**32, 4]),
        (np.int64, 2**31 - 1, [2**31 - 2, 2**31 - 1, -1]),
        (np.int64, 4, [0, 1, 2, 3]),
        (np.int64, 4, []),
    ],
)
def test_ids_outside_the_table_get_the_default_row(kind, num_rows, ids):
    given = np.array(ids, kind)
    rows = transforms.direct_rows(
        given, num_rows=num_rows, table="t", field="f", default_row=num_rows
    )
    assert rows.dtype == np.int32
    assert rows.tolist() == [i if 0 <= i < num_rows else num_rows for i in ids]
    assert given.tolist() == ids
