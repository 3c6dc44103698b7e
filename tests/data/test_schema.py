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
)
from rankax.data.schema import IdSlot, Schema

CARD = Card(
    name="shop",
    tables=(
        Table(name="tag", num_rows=5),
        Table(name="item", num_rows=9),
        Table(name="user", num_rows=7),
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
    ),
    labels=(Label(name="ctr", true_probability="p"), Label(name="cvr")),
    splits={},
)


def slot(name, column, table, start, width=1, bag=-1, combiner="", field=""):
    return IdSlot(
        field=field or name,
        name=name,
        column=column,
        table=table,
        start=start,
        width=width,
        bag=bag,
        combiner=combiner,
    )


def test_slots_are_categorical_fields_then_sequences_in_card_order():
    schema = Schema.select(CARD)
    assert schema.slots == (
        slot("item", "item", "item", 0),
        slot("tags", "tags", "tag", 1, width=2, bag=0, combiner="sum"),
        slot("user", "user_id", "user", 3),
        slot("history/item", "items", "item", 4, width=4, bag=1, field="history"),
        slot("history/tag", "item_tags", "tag", 8, width=4, bag=1, field="history"),
    )
    assert (schema.num_id_columns, schema.num_bags) == (12, 2)
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


def test_unknown_names_get_a_suggestion():
    with pytest.raises(DataError, match=r"data.fields names 'usr', .*mean 'user'\?"):
        Schema.select(CARD, fields=["usr"])
    with pytest.raises(DataError, match=r"data.tasks names 'ctrr', .*mean 'ctr'\?"):
        Schema.select(CARD, tasks=["ctrr"])
