import dataclasses
import json

import pytest

from rankax.data import card as cards
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

CARD = Card(
    name="shop",
    tables=(Table(name="user", num_rows=7), Table(name="item", num_rows=9, ids="hash")),
    fields=(
        CategoricalField(name="user", table="user", column="user_id"),
        CategoricalField(
            name="tags", table="item", max_length=3, combiner="sum", weights="w_tags"
        ),
        NumericField(name="price"),
        SequenceField(
            name="history",
            columns=(SequenceColumn(name="item", table="item", column="items"),),
            max_length=5,
        ),
    ),
    labels=(Label(name="ctr", column="click", true_probability="p"),),
    splits={"train": Split(num_rows=3, positive_rate={"ctr": 0.25})},
    weight="w",
    group="user_id",
    time="t",
    domain="d",
    slices=(Slice(name="age", column="age_range", values=("young", "old")),),
    split_rule="by time",
    origin="made",
    licence="none",
)


def change(path: str, value) -> dict:
    """The card's JSON tree with one value changed; "a/0/b" leads to it."""
    tree = json.loads(CARD.to_json())
    *parents, last = [int(p) if p.isdigit() else p for p in path.split("/")]
    node = tree
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return tree


def test_card_survives_its_file(tmp_path):
    CARD.save(tmp_path)
    assert cards.load(tmp_path) == CARD
    assert (tmp_path / "dataset.json").is_file()


def test_unused_weights_leave_the_text_of_a_card_as_it_was():
    fields = json.loads(CARD.to_json())["fields"]
    assert fields[1]["weights"] == "w_tags"
    assert [("weights" in field) for field in fields] == [False, True, False, False]


def test_folder_without_a_card_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"dataset\.json is missing; make one with"):
        cards.load(tmp_path)


def test_card_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"name": ')
    with pytest.raises(DataError, match=r"dataset\.json is not valid JSON"):
        cards.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("licence2", "", r"^D: unknown key 'licence2'; did you mean 'licence'\?"),
        ("name", None, "^D: key 'name' is missing"),
        ("name", 3, "^D: name must be str, found 3"),
        ("format", 99, "has format 99, this version reads 1"),
        ("tables", {}, "^D: tables: expected a list"),
        ("tables/0/num_rows", "7", r"tables\[0\]: num_rows must be int, found '7'"),
        ("tables/0/num_rows", True, r"tables\[0\]: num_rows must be int, found True"),
        ("tables/0/num_rows", 0, "table 'user': num_rows = 0 is not in 1 .. 2"),
        ("tables/1/ids", "hashed", "ids = 'hashed' is unknown; did you mean 'hash'"),
        ("tables/1/name", "user", "names table 'user' twice"),
        ("fields/0/kind", "single", r"fields\[0\]: kind 'single' is unknown"),
        ("fields/0/table", "usr", "'usr', which the card does not define; did you"),
        (
            "fields/1/combiner",
            "max",
            "combiner 'max' is unknown; known: mean, none, sum",
        ),
        (
            "fields/1/combiner",
            "none",
            "'tags' names weights 'w_tags', but combiner 'no",
        ),
        (
            "fields/1/max_length",
            0,
            r"one id per example \(max_length = 0\); weights bel",
        ),
        ("fields/1/weights", 1.5, r"fields\[1\]: weights must be str, found 1.5"),
        ("fields/2/weights", "w", r"fields\[2\]: unknown key 'weights'"),
        ("fields/3/weights", "w", r"fields\[3\]: unknown key 'weights'"),
        ("fields/3/max_length", 0, "sequence 'history' needs columns and max_length"),
        ("fields/3/columns/0/table", "x", "field 'history' uses table 'x'"),
        ("fields/3/columns/0", 5, r"columns\[0\]: expected an object, found 5"),
        ("fields/2/name", "tags", "names field 'tags' twice"),
        ("labels", [], "names no label"),
        ("splits/train/num_rows", None, r"splits\['train'\]: key 'num_rows' is miss"),
        ("splits", [], "splits: expected an object"),
        ("slices", {}, "slices: expected a list"),
        ("slices/0/values", [1], r"slice 'age': values must be texts, found \(1,\)"),
        ("slices/0/values", "ab", "slice 'age': values must be texts, found 'ab'"),
    ],
)
def test_card_mistakes_are_named(path, value, message):
    with pytest.raises(DataError, match=message):
        cards.from_dict(change(path, value), where="D")


def test_unknown_format_is_told_before_unknown_keys_are_used():
    with pytest.raises(DataError, match="convert the data set again"):
        dataclasses.replace(CARD, format=2)
