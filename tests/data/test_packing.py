import dataclasses
import datetime

import numpy as np
import pyarrow as pa
import pytest

from rankax.data import packing, transforms
from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Slice,
    Split,
    Table,
)
from rankax.data.schema import Schema

CARD = Card(
    name="shop",
    tables=(
        Table(name="user", num_rows=10),
        Table(name="item", num_rows=50),
        Table(name="tag", num_rows=1000, ids="hash"),
    ),
    fields=(
        CategoricalField(name="user", table="user"),
        CategoricalField(name="tags", table="tag", column="tag_ids", max_length=3),
        NumericField(name="price"),
        SequenceField(
            name="history",
            columns=(
                SequenceColumn(name="item", table="item", column="hist_items"),
                SequenceColumn(name="tag", table="tag", column="hist_tags"),
            ),
            max_length=2,
        ),
        CategoricalField(name="item", table="item"),
    ),
    labels=(
        Label(name="ctr", column="click", true_probability="p_click"),
        Label(name="cvr", column="buy", true_probability="p_buy"),
    ),
    splits={"train": Split(num_rows=3)},
    weight="weight",
    group="user",
    time="time",
    domain="domain",
    slices=(
        Slice(name="place", column="domain"),
        Slice(name="age", values=("young", "old")),
    ),
)
SCHEMA = Schema.select(CARD)

GOOD = {
    "user": pa.array([1, 9, 0], pa.int64()),
    "item": pa.array([49, 0, 7], pa.int8()),
    "tag_ids": pa.array([[5], [], [1, 2, 3, 4]], pa.list_(pa.uint32())),
    "price": pa.array([0.5, 2.0, -3.0], pa.float64()),
    "hist_items": pa.array([[1, 2, 3], [4], []], pa.large_list(pa.int32())),
    "hist_tags": pa.array([[11, 12, 13], [14], []], pa.list_(pa.int64())),
    "click": pa.array([True, False, True]),
    "buy": pa.array([1.0, 0.0, 0.0]),
    "p_click": pa.array([0.5, 0.0, 1.0]),
    "p_buy": pa.array([0.25, 0.125, 0.75], pa.float32()),
    "weight": pa.array([1, 2, 0]),
    "time": pa.array([10, 20, 30]),
    "domain": pa.array([0, 2, 1], pa.uint8()),
    "age": pa.array([1, 0, 1], pa.int8()),
}


def table(**changes) -> pa.Table:
    return pa.table({**GOOD, **changes})


def tag_row(value: int) -> int:
    salt = transforms.table_salt("tag")
    return int(transforms.hash_rows(np.array([value]), num_rows=1000, salt=salt)[0])


def fails(**changes) -> str:
    with pytest.raises(DataError) as error:
        packing.pack(table(**changes), SCHEMA, where="shop/train row group 3")
    assert str(error.value).startswith("shop/train row group 3: ")
    return str(error.value)


def test_every_kind_of_column_lands_in_its_place():
    arrays = packing.pack(table(), SCHEMA, where="shop/train")
    t = tag_row
    # Slots: user, tags × 3, item, history/item × 2, history/tag × 2.
    expected = [
        [1, t(5), -1, -1, 49, 2, 3, t(12), t(13)],
        [9, -1, -1, -1, 0, 4, -1, t(14), -1],
        [0, t(2), t(3), t(4), 7, -1, -1, -1, -1],
    ]
    np.testing.assert_array_equal(arrays["ids"], expected)
    np.testing.assert_array_equal(arrays["lengths"], [[1, 2], [0, 1], [3, 0]])
    np.testing.assert_array_equal(arrays["numeric"], [[0.5], [2.0], [-3.0]])
    np.testing.assert_array_equal(arrays["labels"], [[1, 1], [0, 0], [1, 0]])
    np.testing.assert_array_equal(arrays["weight"], [1, 2, 0])
    np.testing.assert_array_equal(arrays["group"], [1, 9, 0])
    np.testing.assert_array_equal(arrays["time"], [10, 20, 30])
    np.testing.assert_array_equal(arrays["domain"], [0, 2, 1])
    np.testing.assert_array_equal(
        arrays["true_probability"], [[0.5, 0.25], [0, 0.125], [1, 0.75]]
    )
    assert {key: array.dtype.name for key, array in arrays.items()} == {
        "ids": "int32",
        "lengths": "int32",
        "numeric": "float32",
        "labels": "float32",
        "weight": "float32",
        "group": "int64",
        "time": "int64",
        "domain": "int32",
        "slices": "int32",
        "true_probability": "float32",
    }


def test_arrays_have_the_shapes_of_the_schema_when_nothing_is_there():
    card = Card(
        name="bare",
        tables=(),
        fields=(),
        labels=(Label(name="click"),),
        splits={},
    )
    arrays = packing.pack(table(), Schema.select(card), where="bare")
    assert {key: array.shape for key, array in arrays.items()} == {
        "ids": (3, 0),
        "lengths": (3, 0),
        "numeric": (3, 0),
        "labels": (3, 1),
        "weight": (3,),
    }
    assert arrays["weight"].tolist() == [1, 1, 1]
    empty = packing.pack(table().slice(0, 0), SCHEMA, where="empty")
    assert empty["ids"].shape == (0, 9)


def test_selected_fields_and_tasks_only_need_their_columns():
    schema = Schema.select(CARD, fields=["item"], tasks=["cvr"])
    needed = packing.needed_columns(schema)
    expected = "item buy p_buy weight user time domain age"
    assert needed == tuple(expected.split())
    arrays = packing.pack(table().select(list(needed)), schema, where="shop")
    assert arrays["ids"].tolist() == [[49], [0], [7]]


def test_sliced_and_chunked_columns_equal_contiguous_ones():
    whole = packing.pack(table(), SCHEMA, where="whole")
    long = pa.concat_tables([table(), table(), table()])
    assert long.column("hist_items").num_chunks == 3
    chunked = packing.pack(long, SCHEMA, where="chunked")
    sliced = packing.pack(
        long.combine_chunks().slice(4, 4), SCHEMA, where="cut inside a chunk"
    )
    for key, array in whole.items():
        three = np.concatenate([array] * 3)
        np.testing.assert_array_equal(chunked[key], three)
        np.testing.assert_array_equal(sliced[key], three[4:8])


def test_random_lists_equal_a_loop():
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 50, rng.integers(0, 6)).tolist() for _ in range(5000)]
    card = Card(
        name="lists",
        tables=(Table(name="item", num_rows=50),),
        fields=(CategoricalField(name="items", table="item", max_length=4),),
        labels=(Label(name="click"),),
        splits={},
    )
    columns = {"items": lists, "click": [0] * len(lists)}
    arrays = packing.pack(pa.table(columns), Schema.select(card), where="lists")
    expected = [(ids[-4:] + [-1] * 4)[:4] for ids in lists]
    np.testing.assert_array_equal(arrays["ids"], expected)
    assert arrays["lengths"][:, 0].tolist() == [min(len(ids), 4) for ids in lists]


def test_timestamps_of_any_unit_become_microseconds():
    moment = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    expected = int(moment.timestamp()) * 1_000_000
    for kind in (pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("ns", tz="UTC")):
        column = pa.array([moment.replace(tzinfo=None)] * 3).cast(kind)
        arrays = packing.pack(table(time=column), SCHEMA, where="shop")
        assert arrays["time"].tolist() == [expected] * 3
    large = pa.array([2 * 10**13] * 3, pa.timestamp("s"))
    with pytest.raises(DataError, match="'time' cannot be counted in microseconds"):
        packing.pack(table(time=large), SCHEMA, where="shop")
    with pytest.raises(DataError, match="values that are not within 63 bits"):
        unsigned = pa.array([2**63] * 3, pa.uint64())
        packing.pack(table(time=unsigned), SCHEMA, where="shop")
    days = pa.array([datetime.date(1970, 1, 2)] * 3)
    arrays = packing.pack(table(time=days), SCHEMA, where="shop")
    assert arrays["time"].tolist() == [86_400_000_000] * 3


def test_missing_column_suggests_the_nearest():
    renamed = table().rename_columns(
        [name.replace("hist_items", "hist_item") for name in GOOD]
    )
    with pytest.raises(DataError) as error:
        packing.pack(renamed, SCHEMA, where="shop/valid row group 0")
    assert str(error.value) == (
        "shop/valid row group 0: column 'hist_items' is missing; did you mean "
        "'hist_item'?"
    )


@pytest.mark.parametrize("name", ["user", "tag_ids", "price", "click", "weight"])
def test_missing_values_are_counted(name):
    values = GOOD[name].to_pylist()
    column = pa.array([values[0], None, None], GOOD[name].type)
    text = fails(**{name: column})
    assert f"column {name!r} has 2 missing (null) values of 3" in text
    assert "data_pipelines.tabular" in text


def test_missing_elements_of_a_list_are_counted():
    text = fails(tag_ids=pa.array([[1, None], [], [2]]))
    assert "column 'tag_ids' has 1 missing (null) list elements of 3" in text


def test_float_ids_are_refused():
    text = fails(user=pa.array([1.0, 2.0, 3.0]))
    assert "column 'user' has type double, expected one integer id per example" in text


def test_string_ids_are_refused():
    assert "column 'user' has type string" in fails(user=pa.array(["a", "b", "c"]))


def test_list_where_single_is_expected():
    text = fails(user=pa.array([[1], [2], [3]]))
    assert "has type list<" in text and "expected one integer id per example" in text
    assert "set max_length of the field" in text


def test_single_where_list_is_expected():
    text = fails(tag_ids=pa.array([1, 2, 3]))
    assert "column 'tag_ids' has type int64, expected a list of integer or text" in text
    assert "set max_length = 0" in text


def test_list_of_strings_is_refused_where_ids_are_rows():
    text = fails(hist_items=pa.array([["a"], [], ["b"]]))
    assert "expected a list of integer ids per example; make the ids of table" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_numbers_that_are_not_finite_in_float32_are_refused(value):
    text = fails(price=pa.array([1.0, value, value]))
    assert "column 'price' has 2 of 3 values that are not finite numbers" in text
    assert "first in row 1" in text


def test_text_where_a_number_is_expected():
    text = fails(price=pa.array(["1", "2", "3"]))
    assert "column 'price' has type string, expected one number per example" in text


@pytest.mark.parametrize("value", [2, -1, 0.5, float("nan")])
def test_labels_other_than_0_and_1_are_refused(value):
    text = fails(buy=pa.array([0.0, 1.0, float(value)]))
    assert "column 'buy' has 1 of 3 values that are not labels 0 or 1" in text
    assert f"first in row 2: {float(value)}" in text and "rating >= 4" in text


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_weights_below_0_or_nan_are_refused(value):
    text = fails(weight=pa.array([1.0, value, 1.0]))
    assert "column 'weight' has 1 of 3 values that are not finite numbers >= 0" in text


def test_true_probability_outside_0_and_1_is_refused():
    assert "not finite numbers in [0, 1]" in fails(p_buy=pa.array([0.0, 1.5, 1.0]))


def test_unequal_lengths_of_sequence_columns_name_the_first_row():
    text = fails(hist_tags=pa.array([[11, 12, 13], [], [15]]))
    assert "sequence 'history' has columns of unequal lengths in 2 rows" in text
    assert "first in row 1: 'hist_items' has 1 events, 'hist_tags' has 0" in text


def test_id_outside_its_table_names_the_field():
    text = fails(hist_items=pa.array([[1, 50, 3], [4], []]))
    assert "field 'history/item': 1 of 4 ids are outside table 'item'" in text


def test_ids_outside_their_tables_get_the_default_row_and_padding_stays_padding():
    schema = Schema.select(CARD, default_row=True)
    strange = table(
        user=pa.array([-1, 10, 2**40]),
        hist_items=pa.array([[1, 50, -1], [49], []]),
    )
    ids = packing.pack(strange, schema, where="shop")["ids"]
    # Slots: user, tags × 3, item, history/item × 2, history/tag × 2.
    assert ids[:, 0].tolist() == [10, 10, 10]
    assert ids[:, 5:7].tolist() == [[50, 50], [49, -1], [-1, -1]]
    assert ids[:, 1:4].max() < 1000  # hashed: every id has a row
    checked = packing.pack(table(), SCHEMA, where="shop")["ids"]
    inside = packing.pack(table(), schema, where="shop")["ids"]
    np.testing.assert_array_equal(inside, checked)


WEIGHTED = Card(
    name="weighted",
    tables=(Table(name="tag", num_rows=50),),
    fields=(
        CategoricalField(name="likes", table="tag", max_length=4, weights="w_likes"),
        CategoricalField(name="plain", table="tag", max_length=3),
        CategoricalField(
            name="deltas", table="tag", max_length=2, combiner="sum", weights="w_deltas"
        ),
    ),
    labels=(Label(name="click"),),
    splits={},
)
LISTS = {
    "likes": [[1, 2, 3, 4, 5], [], [6]],
    "w_likes": [[9.0, 0.5, 0.0, 1.0, 2.0], [], [0.25]],
    "plain": [[7], [8], []],
    "deltas": [[1], [2, 3], []],
    "w_deltas": [[-1.5], [2, 3], []],
    "click": [0, 1, 0],
}


def pack_weighted(**changes) -> dict[str, np.ndarray]:
    schema = Schema.select(WEIGHTED)
    return packing.pack(pa.table({**LISTS, **changes}), schema, where="lists/train")


def test_weights_stand_beside_the_latest_ids():
    schema = Schema.select(WEIGHTED)
    needed = "likes w_likes plain deltas w_deltas click"
    assert packing.needed_columns(schema) == tuple(needed.split())
    arrays = pack_weighted()
    assert arrays["bag_weights"].dtype == np.float32
    assert arrays["bag_weights"].tolist() == [
        [0.5, 0, 1, 2, -1.5, 0],
        [0, 0, 0, 0, 2, 3],
        [0.25, 0, 0, 0, 0, 0],
    ]
    assert arrays["ids"][:, :4].tolist() == [[2, 3, 4, 5], [-1] * 4, [6, -1, -1, -1]]
    one = Schema.select(WEIGHTED, fields=["plain"])
    assert "bag_weights" not in packing.pack(pa.table(LISTS), one, where="lists")


@pytest.mark.parametrize("kind", [pa.float16(), pa.float64(), pa.int8()])
def test_weights_of_any_number_type_and_list_type_are_float32(kind):
    column = pa.array([[3, 1], [2], []], pa.large_list(pa.int8()))
    column = column.cast(pa.large_list(kind))
    ids = pa.array([[1, 2], [3], []])
    arrays = pack_weighted(deltas=ids, w_deltas=column)
    assert arrays["bag_weights"].dtype == np.float32
    assert arrays["bag_weights"][:, 4:].tolist() == [[3, 1], [2, 0], [0, 0]]
    whole = pa.table({**LISTS, "deltas": ids, "w_deltas": column})
    cut = packing.pack(whole.slice(1), Schema.select(WEIGHTED), where="cut")
    np.testing.assert_array_equal(cut["bag_weights"], arrays["bag_weights"][1:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"w_likes": [[1.0] * 5, [], [1.0, 2.0]]},
            "list 'likes' has columns of unequal lengths in 1 rows; first in row 2: "
            "'likes' has 1 ids, 'w_likes' has 2; all columns of a list describe the "
            "same ids, write one value per id",
        ),
        (
            {"w_likes": [[1.0, 1.0, 1.0, 1.0, -2.0], [], [-0.5]]},
            "column 'w_likes' has 2 of 6 values that are not finite weights >= 0, as a "
            "mean needs them; first in row 0: -2.0; ",
        ),
        (
            {"w_deltas": [[1.0], [2.0, float("nan")], []]},
            "column 'w_deltas' has 1 of 3 values that are not finite weights; first in "
            "row 1: nan; ",
        ),
        (
            {"w_deltas": [[1e300], [2.0, 3.0], []]},
            "not finite weights; first in row 0: inf",
        ),
        (
            {"w_deltas": [0.5, 0.5, 0.5]},
            "column 'w_deltas' has type double, expected a list of weights per example, "
            "a number per id of 'deltas'; write a list",
        ),
        (
            {"w_deltas": [["a"], ["b", "c"], []]},
            "has type list<item: string>, expected a list of weights per example, "
            "a number per id of 'deltas'; convert the column",
        ),
        (
            {"w_deltas": [[1.0], [2.0, None], []]},
            "column 'w_deltas' has 1 missing (null) list elements of 3",
        ),
        (
            {"w_deltas": [[1.0], None, []]},
            "column 'w_deltas' has 1 missing (null) values of 3",
        ),
    ],
)
def test_mistakes_in_weights_are_named(changes, message):
    with pytest.raises(DataError) as error:
        pack_weighted(**changes)
    assert str(error.value).startswith("lists/train: ")
    assert message in str(error.value)


def test_domain_beyond_32_bits_is_refused():
    assert "not within 32 bits" in fails(domain=pa.array([0, 1, 2**40]))


def test_slices_are_columns_of_integers_side_by_side():
    arrays = packing.pack(table(), SCHEMA, where="shop")
    assert arrays["slices"].tolist() == [[0, 1], [2, 0], [1, 1]]
    assert arrays["slices"].dtype == np.int32
    one = Schema.select(CARD, slices=["age"])
    assert packing.pack(table(), one, where="shop")["slices"].tolist() == [
        [1],
        [0],
        [1],
    ]
    with pytest.raises(DataError, match=r"eval.slices names 'aeg'.*mean 'age'"):
        Schema.select(CARD, slices=["aeg"])
    with pytest.raises(DataError, match=r"names 'age'.*; its card names none"):
        Schema.select(dataclasses.replace(CARD, slices=()), slices=["age"])


def test_slice_values_without_a_name_or_of_text_are_refused():
    assert "'age' has 1 of 3 values that are not in 0 .. 1" in fails(
        age=pa.array([0, 2, 1])
    )
    text = fails(age=pa.array(["a", "b", "c"]))
    assert "expected an integer per example to slice by" in text
