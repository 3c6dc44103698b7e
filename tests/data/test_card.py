import dataclasses
import json

import pytest

from rankax.data import card as cards
from rankax.data.card import (
    Card,
    CategoricalField,
    Clip,
    DataError,
    Label,
    Log1p,
    NumericField,
    SequenceColumn,
    SequenceField,
    Slice,
    Split,
    Standardise,
    Table,
    VectorField,
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
        CategoricalField(
            name="age", table="user", default=6, boundaries=(18, 30.5, 50)
        ),
        NumericField(
            name="views",
            default=0.5,
            transforms=(
                Clip(minimum=0),
                Log1p(),
                Standardise(mean=1, deviation=2.5),
                Clip(maximum=3.5),
            ),
        ),
        VectorField(name="image", width=4, column="pixels", default=0),
        SequenceField(
            name="words",
            columns=(
                SequenceColumn(name="word", table="item", column="words", default=""),
            ),
            max_length=2,
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


def test_what_is_unused_is_left_out_of_the_text_of_a_card():
    fields = json.loads(CARD.to_json())["fields"]
    plain = {"kind", "name", "table", "column", "max_length", "combiner"}
    assert [set(field) for field in fields] == [
        plain,
        plain | {"weights"},
        {"kind", "name", "column"},
        {"kind", "name", "columns", "max_length"},
        plain | {"default", "boundaries"},
        {"kind", "name", "column", "default", "transforms"},
        {"kind", "name", "width", "column", "default"},
        {"kind", "name", "columns", "max_length"},
    ]
    assert fields[3]["columns"] == [
        {"name": "item", "table": "item", "column": "items"}
    ]
    assert fields[7]["columns"][0]["default"] == ""
    assert fields[5]["transforms"] == [
        {"kind": "clip", "minimum": 0},
        {"kind": "log1p"},
        {"kind": "standardise", "mean": 1, "deviation": 2.5},
        {"kind": "clip", "maximum": 3.5},
    ]


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
        ("fields/3/columns", None, r"fields\[3\]: key 'columns' is missing"),
        ("fields/0/default", 7, "default 7 is outside table 'user' with num_rows = 7"),
        ("fields/0/default", -1, "default -1 is outside table 'user'"),
        ("fields/0/default", "a", "default 'a' is a text, but .* table 'user' are 'di"),
        ("fields/0/default", 1.0, r"default must be int \| str \| None, found 1.0"),
        ("fields/0/default", True, r"default must be int \| str \| None, found True"),
        ("fields/1/default", 2**63, "default 9223372036854775808 is not a 64-bit"),
        ("fields/3/columns/0/default", 0.5, r"columns\[0\]: default must be int"),
        ("fields/3/default", 0, r"fields\[3\]: unknown key 'default'"),
        ("fields/4/default", 7, "default 7 is outside table 'user'"),
        ("fields/4/boundaries", [1, 1], "must be finite and rise, found 1 after 1"),
        ("fields/4/boundaries", [2, 1], "must be finite and rise, found 1 after 2"),
        ("fields/4/boundaries", [float("nan")], "rise, found nan after -inf"),
        ("fields/4/boundaries", [float("inf")], "rise, found inf after inf"),
        ("fields/4/boundaries", ["1"], r"boundaries must be .*, found \('1',\)"),
        ("fields/4/boundaries", 1, "boundaries must be .*, found 1"),
        ("fields/4/boundaries", list(range(7)), "7 boundaries make 8 ids, but table"),
        ("fields/4/table", "item", "has boundaries, .* 'item' are 'hash'; make them"),
        ("fields/5/default", "0", r"default must be float \| None, found '0'"),
        ("fields/5/default", float("nan"), "'views': default = nan must be finite"),
        ("fields/5/transforms", {}, r"fields\[5\]: expected a list, found {}"),
        ("fields/5/transforms/1", "log1p", r"transforms\[1\]: expected an object"),
        ("fields/5/transforms/1/kind", "log", r"transforms\[1\]: kind 'log' is unkno"),
        ("fields/5/transforms/1/kind", [], r"transforms\[1\]: kind \[\] is unknown"),
        ("fields/5/transforms/1/base", 2, r"transforms\[1\]: unknown key 'base'"),
        ("fields/5/transforms/2/mean", None, r"transforms\[2\]: key 'mean' is miss"),
        ("fields/5/transforms/2/mean", float("inf"), "mean = inf must be finite and"),
        ("fields/5/transforms/2/deviation", 0, "deviation = 0 finite and > 0; leave"),
        ("fields/5/transforms/2/deviation", -1, "deviation = -1 finite and > 0"),
        ("fields/5/transforms/0/minimum", None, "a clip needs a minimum or a maximum"),
        ("fields/5/transforms/0/maximum", -1, "minimum = 0 must be <= maximum = -1"),
        ("fields/5/transforms/0/maximum", "1", r"maximum must be float \| None"),
        ("fields/6/width", 0, "field 'image': width = 0 must be at least 1"),
        ("fields/6/width", None, r"fields\[6\]: key 'width' is missing"),
        ("fields/6/default", float("inf"), "default = inf must be finite"),
        ("fields/6/transforms", [], r"fields\[6\]: unknown key 'transforms'"),
        ("fields/2/name", "tags", "names field 'tags' twice"),
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
