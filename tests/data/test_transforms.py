import hashlib

import numpy as np
import pytest

from rankax.data import transforms
from rankax.data.card import DataError


def hash_one(value: int, *, num_rows: int, salt: int) -> int:
    """The documented hash in Python's unbounded integers."""
    mask = 2**64 - 1
    h = (value & mask) ^ salt
    h = ((h ^ h >> 30) * 0xBF58476D1CE4E5B9) & mask
    h = ((h ^ h >> 27) * 0x94D049BB133111EB) & mask
    h ^= h >> 31
    return (h >> 31) * num_rows >> 33


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


def test_salt_and_string_hash_are_the_same_for_ever():
    assert transforms.table_salt("item") == int.from_bytes(
        hashlib.blake2b(b"item", digest_size=8).digest(), "big"
    )
    assert transforms.table_salt("item") == 0x848AAB3CFFD8F8D8
    assert transforms.hash_strings(["", "a", "ä"]).tolist() == [
        int.from_bytes(
            hashlib.blake2b(s.encode(), digest_size=8).digest(), "little", signed=True
        )
        for s in ("", "a", "ä")
    ]
    assert transforms.hash_strings([]).shape == (0,)


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
