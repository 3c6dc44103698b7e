"""Ids are counted and looked up right, however many of them are different."""

from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from data_pipelines.engine import vocabulary
from data_pipelines.engine.vocabulary import IdCounts, Vocabulary, with_dictionary

CASES = {
    "few different": (50, str),
    "most different": (40_000, str),
    "few different numbers": (50, int),
    "most different numbers": (40_000, int),
}


@pytest.fixture(params=list(CASES))
def chunks(request):
    """Chunks of skewed ids, a tenth of them missing."""
    rng = np.random.default_rng(0)
    num_ids, kind = CASES[request.param]
    return [
        [
            None if rng.random() < 0.1 else kind(num_ids * u**2 - 20)
            for u in rng.random(3_000)
        ]
        for _ in range(4)
    ]


def counted(chunks):
    counts = IdCounts()
    for chunk in chunks:
        counts.add(with_dictionary(pa.array(chunk)))
    return counts


def test_a_dictionary_array_holds_the_same_ids(chunks):
    for chunk in chunks:
        encoded = with_dictionary(pa.array(chunk))
        assert pa.types.is_dictionary(encoded.type)
        assert encoded.to_pylist() == chunk


def test_mostly_different_numbers_come_in_order():
    encoded = with_dictionary(pa.array([5, 3, None, 9, 3]))
    assert encoded.dictionary.to_pylist() == [3, 5, 9]


@pytest.mark.parametrize("merge_rows", [1, vocabulary.MERGE_ROWS])
def test_counts_are_those_of_a_loop(chunks, merge_rows, monkeypatch):
    monkeypatch.setattr(vocabulary, "MERGE_ROWS", merge_rows)
    counts = counted(chunks[:2])
    counts.merge(counted(chunks[2:]))
    expected = Counter(value for chunk in chunks for value in chunk)
    assert counts.num_missing == expected.pop(None)
    assert dict(counts.total().iter_rows()) == expected
    assert len(counts.total()) == len(expected)


@pytest.mark.parametrize("min_count", [1, 2])
def test_ids_are_numbered_by_count_and_then_by_id(chunks, min_count):
    counts = counted(chunks[:3])
    found = Vocabulary("ids", counts, min_count=min_count)
    expected = Counter(value for chunk in chunks[:3] for value in chunk)
    num_missing = expected.pop(None)
    ids = [value for value, count in expected.items() if count >= min_count]
    ids.sort(key=lambda value: (-expected[value], value))
    rows = {value: row for row, value in enumerate([*ids, None], start=1)}
    assert found.num_rows == len(rows) + 1
    table = pl.DataFrame(found.to_table())
    assert table["id"].to_list() == [None, *rows]
    assert table["count"].to_list()[1:] == [*(expected[i] for i in ids), num_missing]
    for chunk in chunks:  # the last one has ids that were not counted
        encoded, num_unknown = found.encode(with_dictionary(pa.array(chunk)))
        assert encoded.tolist() == [rows.get(value, 0) for value in chunk]
        assert num_unknown == sum(value not in rows for value in chunk)
