import dataclasses

import pytest

from rankax.data.card import (
    Card,
    CategoricalField,
    DataError,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Table,
    VectorField,
)
from rankax.data.schema import IdSlot, Schema

CARD = Card(
    name="shop",
    tables=(
        Table(name="tag", num_rows=5),
        Table(name="item", num_rows=9),
        Table(name="user", num_rows=7, ids="hash"),
    ),
    fields=(
        SequenceField(
            name="history",
            columns=(
                SequenceColumn(name="item", table="item", column="items"),
                SequenceColumn(name="tag", table="tag", column="item_tags"),
            ),
            max_length=4,
        ),
        CategoricalField(name="item", table="item"),
        NumericField(name="price"),
        CategoricalField(name="tags", table="tag", max_length=2, combiner="sum"),
        CategoricalField(name="user", table="user", column="user_id"),
        CategoricalField(name="words", table="tag", max_length=3, weights="w_words"),
        CategoricalField(name="brands", table="tag", max_length=2, combiner="none"),
        CategoricalField(name="shops", table="tag", max_length=4, weights="w_shops"),
    ),
    labels=(Label(name="ctr", true_probability="p"), Label(name="cvr")),
    splits={},
)


def slot(
    name, column, table, start, width=1, bag=-1, combiner="", field="", weights=("", -1)
):
    return IdSlot(
        field=field or name,
        name=name,
        column=column,
        table=table,
        start=start,
        width=width,
        bag=bag,
        combiner=combiner,
        weights=weights[0],
        weights_start=weights[1],
    )


def test_slots_are_categorical_fields_then_sequences_in_card_order():
    schema = Schema.select(CARD)
    assert schema.slots == (
        slot("item", "item", "item", 0),
        slot("tags", "tags", "tag", 1, width=2, bag=0, combiner="sum"),
        slot("user", "user_id", "user", 3),
        slot("words", "words", "tag", 4, 3, 1, "mean", weights=("w_words", 0)),
        slot("brands", "brands", "tag", 7, width=2, bag=2, combiner="none"),
        slot("shops", "shops", "tag", 9, 4, 3, "mean", weights=("w_shops", 3)),
        slot("history/item", "items", "item", 13, width=4, bag=4, field="history"),
        slot("history/tag", "item_tags", "tag", 17, width=4, bag=4, field="history"),
    )
    assert (schema.num_id_columns, schema.num_bags) == (21, 5)
    assert schema.num_bag_weights == 7
    assert list(schema.tables) == ["tag", "item", "user"]
    assert schema.tasks == ("ctr", "cvr")
    assert not schema.has_true_probability  # of one task only


def test_selection_keeps_the_order_of_the_card():
    schema = Schema.select(CARD, fields=["user", "item"], tasks=["ctr"])
    assert [s.name for s in schema.slots] == ["item", "user"]
    assert list(schema.tables) == ["item", "user"]
    assert (schema.num_id_columns, schema.num_bags) == (2, 0)
    assert schema.tasks == ("ctr",) and schema.has_true_probability
    assert schema.numeric == () and schema.sequences == ()
    assert schema.num_bag_weights == 0
    one = Schema.select(CARD, fields=["shops", "user"])
    assert [s.weights_start for s in one.slots] == [-1, 0]


def test_default_row_is_one_more_in_direct_tables_only():
    schema = Schema.select(CARD)
    assert schema.num_rows == {"tag": 5, "item": 9, "user": 7}
    assert schema.default_rows == {}
    schema = Schema.select(CARD, fields=["user", "tags"], default_row=True)
    assert schema.num_rows == {"tag": 6, "user": 7}
    assert schema.default_rows == {"tag": 5}
    assert {name: table.num_rows for name, table in schema.tables.items()} == {
        "tag": 5,
        "user": 7,
    }  # what the card says


def test_unknown_names_get_a_suggestion():
    with pytest.raises(DataError, match=r"data.fields names 'usr', .*mean 'user'\?"):
        Schema.select(CARD, fields=["usr"])
    with pytest.raises(DataError, match=r"data.tasks names 'ctrr', .*mean 'ctr'\?"):
        Schema.select(CARD, tasks=["ctrr"])


def test_vectors_are_numeric_columns_in_the_order_of_the_card():
    card = Card(
        name="vectors",
        tables=(Table(name="age", num_rows=4),),
        fields=(
            NumericField(name="price"),
            VectorField(name="image", width=3),
            CategoricalField(name="age", table="age", default=3, boundaries=(18, 30)),
            NumericField(name="views"),
            VectorField(name="sound", width=2),
        ),
        labels=(Label(name="ctr"),),
        splits={},
    )
    schema = Schema.select(card)
    assert [f.name for f in schema.numeric] == ["price", "image", "views", "sound"]
    assert schema.num_numeric == 7
    assert (schema.slots[0].default, schema.slots[0].boundaries) == (3, (18, 30))
    assert Schema.select(card, fields=["age"]).num_numeric == 0


def test_numbers_of_ranges_are_not_hashed():
    card = dataclasses.replace(
        CARD,
        tables=(*CARD.tables, Table(name="age", num_rows=4)),
        fields=(
            *CARD.fields,
            CategoricalField(name="age", table="age", boundaries=(18, 30, 60)),
        ),
    )
    with pytest.raises(DataError, match=r"hashed_rows names 'age', .* field 'age'"):
        Schema.select(card, hashed_rows={"age": 2})


def test_a_run_needs_a_label():
    with pytest.raises(DataError, match="names no label, so its examples can only be"):
        Schema.select(dataclasses.replace(CARD, labels=()))
