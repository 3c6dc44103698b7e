"""Vectors, texts, nulls, transforms and ranges: from the column to the batch."""

import bisect
import dataclasses
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankax.data import columns, packing, transforms
from rankax.data.card import (
    Card,
    CategoricalField,
    Clip,
    DataError,
    Field,
    Label,
    Log1p,
    NumericField,
    SequenceColumn,
    SequenceField,
    Standardise,
    Table,
    VectorField,
)
from rankax.data.schema import Schema

BIG = 1_000_003
TABLES = (
    Table(name="row", num_rows=20),
    Table(name="word", num_rows=BIG, ids="hash"),
)
TEXTS = ["", "a", "ä", "user_1", "exactly8", "longer than two words", "a"]


def pack(*fields: Field, **values) -> dict[str, np.ndarray]:
    """Packs a column per keyword, and a label for each row."""
    n = len(next(iter(values.values())))
    values.setdefault("click", [0] * n)
    return packing.pack(pa.table(values), schema_of(*fields), where="shop/train")


def schema_of(*fields: Field, **options) -> Schema:
    card = Card(
        name="shop",
        tables=TABLES,
        fields=fields,
        labels=(Label(name="click"),),
        splits={},
        **options,
    )
    return Schema.select(card)


def fails(*fields: Field, **values) -> str:
    with pytest.raises(DataError) as error:
        pack(*fields, **values)
    text = str(error.value)
    assert text.startswith("shop/train: ")
    return text


def word_row(text: str) -> int:
    """Row of a text: its 64-bit id hashed like any integer."""
    ids = transforms.hash_strings([text])
    salt = transforms.table_salt("word")
    return int(transforms.hash_rows(ids, num_rows=BIG, salt=salt)[0])


ROW = CategoricalField(name="row", table="row")
WORD = CategoricalField(name="word", table="word")
WORDS = CategoricalField(name="words", table="word", max_length=3)
PRICE = NumericField(name="price")
IMAGE = VectorField(name="image", width=2)


def default_of(field, default):
    return dataclasses.replace(field, default=default)


# Vectors.

VECTORS = [[1.0, 2.0], [3.0, -4.0], [0.5, 0.25]]


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float32()),
        pa.large_list(pa.float64()),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float32(), 2),
    ],
)
def test_vectors_stand_among_the_numbers_in_the_order_of_the_card(kind):
    fields = PRICE, IMAGE, NumericField(name="age"), VectorField(name="one", width=1)
    image = pa.array(VECTORS).cast(kind)
    values = {"price": [7, 8, 9], "image": image, "age": [4, 5, 6]}
    arrays = pack(*fields, **values, one=[[0], [1], [2]])
    assert arrays["numeric"].dtype == np.float32
    assert arrays["numeric"].tolist() == [
        [7, 1, 2, 4, 0],
        [8, 3, -4, 5, 1],
        [9, 0.5, 0.25, 6, 2],
    ]
    table = pa.table({"image": image, "click": [0, 0, 0]})
    for whole in (pa.concat_tables([table, table]), table.slice(1)):
        packed = packing.pack(whole, schema_of(IMAGE), where="cut")["numeric"]
        assert packed.tolist() == (VECTORS * 2 if len(whole) == 6 else VECTORS[1:])
    empty = packing.pack(table.slice(0, 0), schema_of(IMAGE), where="empty")
    assert empty["numeric"].shape == (0, 2)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float64(), 2)])
def test_nulls_in_vectors_are_the_default(kind):
    image = pa.array([None, [1, None], [None, None], [2, 3], None], kind)
    found = pack(default_of(IMAGE, -0.5), image=image)["numeric"]
    expected = [[-0.5, -0.5], [1, -0.5], [-0.5, -0.5], [2, 3], [-0.5, -0.5]]
    assert found.tolist() == expected
    assert "has 2 missing (null) values of 5; set default of" in fails(
        IMAGE, image=image
    )
    text = fails(IMAGE, image=image.slice(1, 3))
    assert "has 3 missing (null) list elements of 6; set default of" in text
    cut = pack(default_of(IMAGE, -0.5), image=image.slice(2))["numeric"]
    assert cut.tolist() == expected[2:]


def test_mistakes_in_vectors_are_named():
    text = fails(IMAGE, image=[[1.0, 2.0], [], [1.0, 2.0, 3.0]])
    assert "column 'image' has 2 of 3 lists whose length is not the width 2 of" in text
    assert "first in row 1: 0; write vectors of one length, or correct width" in text
    text = fails(default_of(IMAGE, 0), image=[None, [1.0, 2.0], [1.0]])
    assert "has 1 of 3 lists" in text and "first in row 2: 1;" in text
    text = fails(IMAGE, image=pa.array([[1.0] * 3] * 2, pa.list_(pa.float32(), 3)))
    assert "has 2 of 2 lists" in text and "first in row 0: 3;" in text
    text = fails(IMAGE, image=[[1.0, 2.0], [1.0, math.inf], [math.nan, 0]])
    assert "has 2 of 6 values that are not finite numbers; first in row 1: inf" in text
    text = fails(IMAGE, image=[1.0, 2.0])
    assert "type double, expected a list of 2 numbers per example; write a list" in text
    text = fails(IMAGE, image=[["a", "b"]])
    assert "type list<item: string>, expected a list of 2 numbers per example" in text
    text = fails(PRICE, price=pa.array([[1.0]], pa.list_(pa.float32(), 1)))
    assert "expected one number per example" in text


# Texts.


@pytest.mark.parametrize(
    "encode",
    [
        lambda texts: texts,
        lambda texts: texts.cast(pa.large_string()),
        lambda texts: texts.cast(pa.string_view()),
        lambda texts: texts.dictionary_encode(),
        lambda texts: pa.chunked_array(
            [texts[:3].dictionary_encode(), texts[3:].dictionary_encode()]
        ),
        lambda texts: pa.concat_arrays([pa.array(["zz"]), texts, texts])[1:8],
    ],
)
def test_texts_of_any_encoding_are_hashed_to_the_same_rows(encode):
    column = encode(pa.array(TEXTS))
    expected = [[word_row(text)] for text in TEXTS]
    assert pack(WORD, word=column)["ids"].tolist() == expected
    if isinstance(column, pa.Array):
        lists = pa.ListArray.from_arrays([0, 3, 3, 5, 7], column)
        found = pack(WORDS, words=lists)["ids"]
        rows = [row for (row,) in expected]
        pieces = [rows[0:3], [], rows[3:5], rows[5:7]]
        assert found.tolist() == [(piece + [-1] * 3)[:3] for piece in pieces]
        cut = pack(WORDS, words=lists.slice(2))["ids"]
        assert cut.tolist() == found[2:].tolist()


def test_texts_in_a_sequence_meet_the_texts_of_a_field():
    history = SequenceField(
        name="history",
        columns=(SequenceColumn(name="word", table="word", column="past"),),
        max_length=2,
    )
    found = pack(WORD, history, word=["a", "b"], past=[["x", "b", "a"], []])["ids"]
    a, b = word_row("a"), word_row("b")
    assert found.tolist() == [[a, b, a], [b, -1, -1]]


def test_nulls_in_texts_are_the_default():
    texts = ["a", None, "b", None]
    field = default_of(WORD, "missing")
    expected = [[word_row(text or "missing")] for text in texts]
    plain = pa.array(texts)
    in_values = pa.DictionaryArray.from_arrays([0, 1, 2, 1], ["a", None, "b"])
    nothing = pa.array([None, None], pa.string())
    for column in (plain, plain.dictionary_encode(), in_values):
        assert pack(field, word=column)["ids"].tolist() == expected
        text = fails(WORD, word=column)
        assert "column 'word' has 2 missing (null) values of 4; set default" in text
    for column in (nothing, nothing.dictionary_encode()):
        assert pack(field, word=column)["ids"].tolist() == [[word_row("missing")]] * 2


def test_ids_of_texts_keep_nulls_and_need_no_rows():
    found = columns.string_ids(pa.array(["a", None, "a"]))
    a = transforms.hash_strings(["a"])[0]
    assert found.type == pa.int64() and found.to_pylist() == [a, None, a]
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        assert columns.string_ids(pa.array([], kind)).to_pylist() == []
    assert columns.string_ids(pa.array(["", ""])).null_count == 0


def test_text_groups_are_their_ids():
    schema = schema_of(WORD, group="word")
    table = pa.table({"word": ["a", "b", "a"], "click": [0, 0, 1]})
    found = packing.pack(table, schema, where="shop")["group"]
    assert found.tolist() == transforms.hash_strings(["a", "b", "a"]).tolist()


def test_texts_for_a_table_of_rows_are_refused():
    for column in (pa.array(["a"]), pa.array(["a"]).dictionary_encode()):
        text = fails(ROW, row=column)
        assert (
            "expected one integer id per example; make the ids of table 'row'" in text
        )
        assert "'hash' in dataset.json, or number the texts by a vocabulary" in text
    text = fails(WORD, word=[0.5])
    assert "type double, expected one integer or text id per example" in text


def test_texts_survive_a_parquet_file_with_and_without_dictionaries(tmp_path):
    table = pa.table({"word": TEXTS, "click": [0] * len(TEXTS)})
    pq.write_table(table, tmp_path / "a.parquet")
    expected = [[word_row(text)] for text in TEXTS]
    for names in ([], ["word"]):
        read = pq.read_table(tmp_path / "a.parquet", read_dictionary=names)
        assert pa.types.is_dictionary(read["word"].type) == bool(names)
        found = packing.pack(read, schema_of(WORD), where="file")["ids"]
        assert found.tolist() == expected


# Nulls and defaults of ids.


@pytest.mark.parametrize("kind", [pa.int8(), pa.int64(), pa.uint64()])
def test_nulls_in_ids_are_the_default(kind):
    column = pa.array([3, None, 0, None], kind)
    assert pack(default_of(ROW, 19), row=column)["ids"][:, 0].tolist() == [3, 19, 0, 19]
    default = -(10**12)
    rows = pack(default_of(WORD, default), word=column)["ids"][:, 0]
    salt = transforms.table_salt("word")
    ids = np.array([3, default, 0, default])
    expected = transforms.hash_rows(ids, num_rows=BIG, salt=salt)
    np.testing.assert_array_equal(rows, expected)
    text = fails(ROW, row=column)
    assert "column 'row' has 2 missing (null) values of 4; set default of the" in text


def test_null_does_not_change_the_row_of_the_largest_id():
    largest = pa.array([2**64 - 1, None], pa.uint64())
    whole = pack(WORD, word=largest[:1])["ids"]
    assert pack(default_of(WORD, 0), word=largest)["ids"][0] == whole[0]


def test_null_lists_are_empty_and_null_elements_the_default():
    tags = CategoricalField(
        name="tags", table="row", max_length=2, weights="w", default=7
    )
    history = SequenceField(
        name="history",
        columns=(
            SequenceColumn(name="row", table="row", column="past", default=0),
            SequenceColumn(name="word", table="word", column="said", default="?"),
        ),
        max_length=2,
    )
    arrays = pack(
        tags,
        history,
        tags=[[1, None, 2], None, [None]],
        w=[[9.0, 0.5, 2.0], None, [3.0]],
        past=[None, [5, None], []],
        said=[[], ["a", None], None],
    )
    a, unknown = word_row("a"), word_row("?")
    assert arrays["ids"].tolist() == [
        [7, 2, -1, -1, -1, -1],
        [-1, -1, 5, 0, a, unknown],
        [7, -1, -1, -1, -1, -1],
    ]
    assert arrays["lengths"].tolist() == [[2, 0], [0, 2], [1, 0]]
    assert arrays["bag_weights"].tolist() == [[0.5, 2], [0, 0], [3, 0]]
    text = fails(tags, tags=[[1, 2]], w=[[None, 0.5]])
    assert "column 'w' has 1 missing (null) list elements of 2; give" in text
    assert "'tags' has 1 ids, 'w' has 0" in fails(
        tags, tags=[[1]], w=pa.array([None], pa.list_(pa.float32()))
    )


def test_what_hides_under_a_null_list_is_not_read():
    values = pa.array([1, 99, 98, 2])
    lists = pa.ListArray.from_arrays(
        pa.array([0, 1, 3, 4]), values, mask=pa.array([False, True, False])
    )
    field = CategoricalField(name="tags", table="row", max_length=2, default=0)
    assert pack(field, tags=lists)["ids"].tolist() == [[1, -1], [-1, -1], [2, -1]]
    assert pack(field, tags=lists.slice(1))["ids"].tolist() == [[-1, -1], [2, -1]]


def test_default_of_another_type_than_its_column_is_refused():
    text = fails(default_of(WORD, 3), word=["a"])
    assert (
        "field 'word' has default 3, but its column 'word' holds string; give" in text
    )
    text = fails(default_of(WORD, "a"), word=[3])
    assert "has default 'a', but its column 'word' holds int64; give an integer" in text


@pytest.mark.parametrize("name", ["click", "weight", "group", "time", "domain"])
def test_nulls_beside_the_fields_are_always_refused(name):
    special = ["weight", "group", "time", "domain"]
    schema = schema_of(default_of(PRICE, 0), **{column: column for column in special})
    values = {column: [1, 0] for column in ["price", "click", *special]}
    values[name] = [1, None]
    with pytest.raises(DataError, match=f"column '{name}' has 1 missing") as error:
        packing.pack(pa.table(values), schema, where="shop")
    assert "default" not in str(error.value)


# Numbers.


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()]
)
def test_null_numbers_are_the_default_which_is_transformed(kind):
    values = [1, None, 0, None]
    steps = (Log1p(), Standardise(mean=0.25, deviation=2))
    field = dataclasses.replace(PRICE, default=2.5, transforms=steps)
    found = pack(field, price=pa.array(values).cast(kind))["numeric"][:, 0]
    numbers = [2.5 if x is None else x for x in values]
    expected = [(math.log(1 + x) - 0.25) / 2 for x in numbers]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "has 2 missing (null) values of 4; set default of the field" in fails(
        PRICE, price=pa.array(values).cast(kind)
    )


def test_nan_is_not_null():
    text = fails(default_of(PRICE, 0), price=[1.0, math.nan, None])
    assert "has 1 of 3 values that are not finite numbers; first in row 1: nan" in text
    assert "write null, and set the field's default in dataset.json" in text


def test_what_enters_the_batch_is_finite():
    clipped = dataclasses.replace(PRICE, transforms=(Clip(minimum=-9, maximum=9),))
    found = pack(clipped, price=[1.0, math.inf, -math.inf, 1e300])["numeric"][:, 0]
    assert found.tolist() == [1, 9, -9, 9]
    scaled = dataclasses.replace(
        PRICE, transforms=(Standardise(mean=0, deviation=1e-30),)
    )
    text = fails(scaled, price=[0.0, 1e30])
    assert (
        "not finite numbers after the field's transforms; first in row 1: inf" in text
    )
    largest = float(np.finfo(np.float32).max)
    assert pack(PRICE, price=[-largest, largest])["numeric"][:, 0].tolist() == [
        -largest,
        largest,
    ]


# Ranges of numbers.

AGE = CategoricalField(name="age", table="row", boundaries=(18, 30.5, 50))


@pytest.mark.parametrize("kind", [pa.int16(), pa.float32(), pa.float64()])
def test_ranges_of_numbers_are_ids(kind):
    values = [17, 18, 30, 31, 49, 50, -5, 1000]
    found = pack(AGE, age=pa.array(values).cast(kind))["ids"][:, 0]
    assert found.tolist() == [bisect.bisect_right(AGE.boundaries, x) for x in values]


def test_null_in_a_column_of_ranges_has_the_default_id():
    values = [None, 20, None, 60]
    assert pack(default_of(AGE, 4), age=values)["ids"][:, 0].tolist() == [4, 1, 4, 3]
    assert "has 2 missing (null) values of 4; set default" in fails(AGE, age=values)
    text = fails(AGE, age=[1.0, math.nan])
    assert "has 1 of 2 values that are not numbers; first in row 1: nan" in text
    text = fails(AGE, age=["a"])
    assert "type string, expected one number per example" in text


def test_lists_of_numbers_have_ranges_too():
    ages = CategoricalField(
        name="ages", table="row", max_length=2, boundaries=(0, 1), default=9
    )
    found = pack(ages, ages=[[5.0, 0.5, -1.0], None, [None]])["ids"]
    assert found.tolist() == [[1, 0], [-1, -1], [9, -1]]
    assert "expected a list of numbers per example" in fails(ages, ages=[["a"]])
    assert "are not numbers; first in row 1: nan" in fails(
        ages, ages=[[1.0], [2.0, math.nan]]
    )
