import json
import pathlib

from dataset_arrays import arrays_of
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data_pipelines import tabular
from data_pipelines.engine import conversion, parts, raw_files, vocabulary
from data_pipelines.engine.conversion import TableRows
from data_pipelines.engine.plan import LabelRule, Plan
from rankax.data import card as cards
from rankax.data import transforms

TRAIN = """\
user,item,tags,price,hist_items,hist_tags,rating,click,when,place
ann,10,a|b,1.5,10|11,a|b,5,1,2024-01-01 00:00:00,0
bob,11,,,,,3,0,2024-01-02 00:00:00,1
ann,10,b,2.5,12,c,4,1,2024-01-03 00:00:00,0
,,c|,3.5,10|11|,a||b,1,0,2024-01-04 00:00:00,2
"""
VALID = """\
user,item,tags,price,hist_items,hist_tags,rating,click,when,place
zoe,99,zz|a,nan,99,a,3,0,2024-01-05 00:00:00,0
bob,12,,1,,,4,1,2024-01-06 00:00:00,1
"""
FLAGS = (
    "--categorical=user,item",
    "--list=tags:10",
    "--numeric=price",
    "--sequence=history:2:item=hist_items,tags=hist_tags",
    "--label=click",
    "--label=like=rating>=4",
    "--group=user",
    "--time=when",
    "--domain=place",
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("train.csv").write_text(TRAIN)
    pathlib.Path("valid.csv").write_text(VALID)
    return tmp_path


def run(*flags: str, train="train.csv", valid="valid.csv") -> cards.Card:
    given = [f"--train={train}", f"--valid={valid}"] if train else []
    tabular.main([*given, "--out=out", *flags])
    return cards.load("out")


def fails(*flags: str, **files) -> str:
    with pytest.raises(SystemExit) as error:
        run(*flags, **files)
    text = str(error.value)
    assert text.startswith("error: ")
    assert not pathlib.Path("out").exists()
    return text


def rewrite_as_parquet(name: str, **changes: pa.Array) -> None:
    """Writes the CSV of that name as Parquet with typed lists."""
    table = pyarrow.csv.read_csv(
        f"{name}.csv",
        convert_options=pyarrow.csv.ConvertOptions(
            strings_can_be_null=True, column_types={"hist_items": pa.string()}
        ),
    )
    for column in ("tags", "hist_items", "hist_tags"):
        lists = [
            None if cell is None else [part or None for part in cell.split("|")]
            for cell in table[column].to_pylist()
        ]
        kind = pa.large_list(pa.string())
        if column == "hist_items":
            lists = [
                None if ids is None else [i and int(i) for i in ids] for ids in lists
            ]
            kind = pa.list_(pa.int32())
        place = table.column_names.index(column)
        table = table.set_column(place, column, pa.array(lists, kind))
    pq.write_table(table, f"{name}.parquet", row_group_size=3)


# ---------------------------------------------------------------- what is written


def test_csv_becomes_the_packed_arrays_one_would_write_by_hand(folder, capsys):
    card = run(*FLAGS)
    train, valid = arrays_of("out", "train"), arrays_of("out", "valid")
    # Vocabularies by falling count over fields and sequences together, then by id:
    # user ann bob; item 10 (4 times) 11 (3) 12; tags b (4) a (3) c (2).
    np.testing.assert_array_equal(
        train["ids"][:, [0, 1, 2, 3, 12, 13, 14, 15]],
        [
            [1, 1, 2, 1, 1, 2, 2, 1],
            [2, 2, -1, -1, -1, -1, -1, -1],
            [1, 1, 1, -1, 3, -1, 3, -1],
            [3, 4, 3, 4, 2, 4, 4, 1],
        ],
    )
    np.testing.assert_array_equal(train["lengths"], [[2, 2], [0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(train["numeric"][:, 0], [1.5, 0, 2.5, 3.5])
    np.testing.assert_array_equal(train["labels"], [[1, 1], [0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(train["domain"], [0, 1, 0, 2])
    group = transforms.hash_strings(["ann", "bob", "ann", ""])
    np.testing.assert_array_equal(train["group"], group)
    days = np.arange("2024-01-01", "2024-01-05", dtype="datetime64[D]")
    np.testing.assert_array_equal(
        train["time"], days.astype("datetime64[us]").view(int)
    )
    np.testing.assert_array_equal(valid["ids"][:, [0, 1, 2, 3, 12, 13]], [
        [0, 0, 0, 2, 0, -1],
        [2, 3, -1, -1, -1, -1],
    ])  # fmt: skip
    np.testing.assert_array_equal(valid["numeric"][:, 0], [0, 1])
    np.testing.assert_array_equal(valid["labels"], [[0, 0], [1, 1]])
    assert card.name == "out" and card.split_rule == "files as given"
    assert [(t.name, t.num_rows, t.ids) for t in card.tables] == [
        ("user", 4, "direct"),
        ("item", 5, "direct"),
        ("tags", 5, "direct"),
    ]
    assert card.splits["train"] == cards.Split(
        num_rows=4, positive_rate={"click": 0.5, "like": 0.5}
    )
    types = pq.read_schema("out/train/00000.parquet")
    assert types.field("user").type == pa.int32()
    assert types.field("tags").type == pa.list_(pa.int32())
    assert types.field("price").type == pa.float32()
    assert types.field("click").type == pa.int8()
    printed = capsys.readouterr().out
    assert "valid: 2 rows, positive click 0.5000, like 0.5000" in printed
    assert "  user: unknown 1" in printed and "  item: 5 rows\n" in printed


def test_missing_and_unknown_values_are_counted_per_split(folder):
    run(*FLAGS)
    counts = json.loads(pathlib.Path("out/conversion.json").read_text())
    assert counts["missing_and_unknown"] == {
        "train": {
            "hist_items: missing": 1,
            "hist_tags: missing": 1,
            "item: missing": 1,
            "price: missing": 1,
            "tags: missing": 1,
            "user: missing": 1,
        },
        "valid": {
            "hist_items: unknown": 1,
            "item: unknown": 1,
            "price: missing": 1,
            "tags: unknown": 1,
            "user: unknown": 1,
        },
    }


def test_vocabulary_files_map_ids_to_rows(folder):
    run(*FLAGS)
    assert pq.read_table("out/vocabularies/item.parquet").to_pylist() == [
        {"row": 0, "kind": "unknown", "id": None, "count": 0},
        {"row": 1, "kind": "id", "id": 10, "count": 4},
        {"row": 2, "kind": "id", "id": 11, "count": 3},
        {"row": 3, "kind": "id", "id": 12, "count": 1},
        {"row": 4, "kind": "missing", "id": None, "count": 2},
    ]
    users = pq.read_table("out/vocabularies/user.parquet")
    assert users["id"].to_pylist() == [None, "ann", "bob", None]


def test_rare_ids_are_unknown_ids(folder):
    run(*FLAGS, "--min_count=3")
    assert pq.read_table("out/vocabularies/item.parquet").to_pylist() == [
        {"row": 0, "kind": "unknown", "id": None, "count": 3},  # 12, and two missing
        {"row": 1, "kind": "id", "id": 10, "count": 4},
        {"row": 2, "kind": "id", "id": 11, "count": 3},
    ]
    assert arrays_of("out", "train")["ids"][:, 1].tolist() == [1, 2, 1, 0]


def test_an_id_that_is_missing_in_valid_only_is_an_unknown_id(folder):
    pathlib.Path("train.csv").write_text("user,click\nann,1\nbob,0\n")
    pathlib.Path("valid.csv").write_text("user,click\n,1\nann,0\n")
    run("--categorical=user", "--label=click")
    assert arrays_of("out", "valid")["ids"][:, 0].tolist() == [0, 1]
    counts = json.loads(pathlib.Path("out/conversion.json").read_text())
    assert counts["missing_and_unknown"]["valid"] == {"user: missing": 1}


def test_rare_ids_cannot_be_left_out_of_hashed_tables(folder):
    flags = ["--categorical=user", "--label=click", "--hash=user:9", "--min_count=2"]
    assert "all tables are hashed" in fails(*flags)


def test_tables_in_memory_need_the_columns_and_types_of_train():
    plan = Plan(
        name="t",
        fields=(cards.CategoricalField(name="user", table="user"),),
        labels=(LabelRule(name="click", column="click"),),
    )
    train = pa.table({"user": [1, 2], "click": [0, 1]})
    for test, message in (
        (
            pa.table({"user": ["1"], "click": [1]}),
            "'user' has string values, but int64",
        ),
        (pa.table({"click": [1]}), "test: column 'user' is missing"),
        (pa.table({"user": [1.5], "click": [1]}), "'user' has type double, expected"),
    ):
        with pytest.raises(cards.DataError, match=message):
            TableRows({"train": train, "test": test}, plan, rule="")
    rows = TableRows({"train": train, "test": train.slice(1)}, plan, rule="")
    assert [(name, len(part)) for name, part in rows.chunks(0)] == [
        ("train", 2),
        ("test", 1),
    ]


def test_slices_number_the_values_of_all_splits(folder):
    assert "'tags' cannot be sliced by" in fails(*FLAGS, "--slice=tags")
    card = run(*FLAGS, "--slice=place,user")
    assert card.slices == (
        cards.Slice(name="place", column="_slice_place", values=("0", "1", "2")),
        cards.Slice(
            name="user", column="_slice_user", values=("ann", "bob", "zoe", "missing")
        ),
    )
    assert arrays_of("out", "train")["slices"].tolist() == [
        [0, 0],
        [1, 1],
        [0, 0],
        [2, 3],
    ]
    assert arrays_of("out", "valid")["slices"].tolist() == [[0, 2], [1, 1]]


def test_parquet_input_equals_csv_input(folder):
    run(*FLAGS)
    from_csv = arrays_of("out", "train"), arrays_of("out", "valid")
    rewrite_as_parquet("train")
    rewrite_as_parquet("valid")
    run(*FLAGS, "--overwrite", train="train.parquet", valid="valid.parquet")
    for old, split in zip(from_csv, ("train", "valid"), strict=True):
        new = arrays_of("out", split)
        assert new.keys() == old.keys()
        for key in new:
            np.testing.assert_array_equal(new[key], old[key])


def test_chunk_sizes_change_nothing(folder, monkeypatch):
    rng = np.random.default_rng(0)
    rows = [
        f"u{rng.zipf(1.5)},{rng.integers(50)},{'|'.join(map(str, rng.integers(9, size=rng.integers(4))))},{i % 2}"
        for i in range(500)
    ]
    pathlib.Path("train.csv").write_text("\n".join(["user,item,tags,click", *rows]))
    flags = ["--categorical=user,item", "--list=tags:3", "--label=click"]
    run(*flags, valid="train.csv")
    whole = arrays_of("out", "train")
    monkeypatch.setattr(raw_files, "CSV_BLOCK_BYTES", 300)
    monkeypatch.setattr(vocabulary, "MERGE_ROWS", 20)
    card = run(*flags, "--overwrite", "--rows_per_group=64", valid="train.csv")
    assert pq.read_metadata("out/train/00000.parquet").num_row_groups == 8
    for key, array in arrays_of("out", "train").items():
        np.testing.assert_array_equal(array, whole[key])
    assert card.tables[1].num_rows == 1 + len({row.split(",")[1] for row in rows})


def test_hashed_tables_keep_integers_and_hash_text_stably(folder):
    card = run(*FLAGS, "--hash=item:1000,user:77")
    assert [(t.name, t.num_rows, t.ids) for t in card.tables][:2] == [
        ("user", 77, "hash"),
        ("item", 1000, "hash"),
    ]
    stored = pq.read_table("out/valid/00001.parquet")  # the second file is part 1
    empty = int(transforms.hash_strings([""])[0])
    assert stored["item"].to_pylist() == [99, 12]
    assert stored["hist_items"].to_pylist() == [[99], []]
    users = transforms.hash_strings(["zoe", "bob"]).tolist()
    assert stored["user"].to_pylist() == users
    train = pq.read_table("out/train/00000.parquet")
    assert train["item"].to_pylist() == [10, 11, 10, empty]
    assert not pathlib.Path("out/vocabularies/item.parquet").exists()
    assert arrays_of("out", "valid")["ids"][:, 1].max() < 1000


def test_share_gives_a_column_the_table_of_another(folder):
    flags = [flag.replace("item=hist_items", "film=hist_items") for flag in FLAGS]
    assert [t.name for t in run(*flags).tables] == ["user", "item", "tags", "film"]
    card = run(*flags, "--share=hist_items=item", "--overwrite")
    assert [t.name for t in card.tables] == ["user", "item", "tags"]


def test_integers_may_be_read_as_text(folder):
    run(*FLAGS, "--text=item,hist_items")
    ids = pq.read_table("out/vocabularies/item.parquet")["id"].to_pylist()
    assert ids == [None, "10", "11", "12", None]


def test_other_missing_markers_and_separators(folder):
    text = TRAIN.replace("bob,11,,", "bob,NA,,").replace("|", ";")
    pathlib.Path("train.csv").write_text(text)
    pathlib.Path("valid.csv").write_text(VALID.replace("|", ";"))
    run(*FLAGS, "--missing=NA", "--separator=;")
    assert arrays_of("out", "train")["ids"][:, 1].tolist() == [1, 4, 1, 4]
    assert arrays_of("out", "train")["lengths"][0].tolist() == [2, 2]


def test_text_that_reads_like_a_missing_value_stays_text(folder):
    pathlib.Path("train.csv").write_text("user,click\nNA,1\nnull,0\n,1\n")
    run("--categorical=user", "--label=click", valid="train.csv")
    ids = pq.read_table("out/vocabularies/user.parquet")["id"].to_pylist()
    assert sorted(ids[1:-1]) == ["NA", "null"] and ids[-1] is None


def test_boolean_labels_weights_and_compressed_tsv(folder):
    rows = "user\tclick\tw\nann\tTrue\t2\nbob\tfalse\t0.5\n"
    with pa.CompressedOutputStream("train.tsv.gz", "gzip") as stream:
        stream.write(rows.encode())
    run(
        "--categorical=user",
        "--label=click",
        "--weight=w",
        train="train.tsv.gz",
        valid="train.tsv.gz",
    )
    arrays = arrays_of("out", "valid")
    assert arrays["labels"][:, 0].tolist() == [1, 0]
    assert arrays["weight"].tolist() == [2, 0.5]


def test_folder_of_files_is_read_by_name(folder):
    pathlib.Path("parts").mkdir()
    pathlib.Path("parts/b.csv").write_text("user,click\nzoe,0\n")
    pathlib.Path("parts/a.csv").write_text("user,click\nann,1\nbob,1\n")
    pathlib.Path("parts/notes.txt").write_text("not data")
    run("--categorical=user", "--label=click", train="parts", valid="parts")
    assert arrays_of("out", "train")["labels"][:, 0].tolist() == [1, 1, 0]


# ---------------------------------------------------------------- one file, a rule


def test_time_split_puts_the_oldest_first_and_keeps_equal_times_together(folder):
    times = [5, 1, 9, 3, 3, 7, 3, 8, 2, 6]
    rows = [f"{t},{t % 2}" for t in times]
    pathlib.Path("all.csv").write_text("\n".join(["when,click", *rows]))
    flags = ["--data=all.csv", "--label=click", "--time=when", "--out=out"]
    tabular.main([*flags, "--split=time:when:0.4,0.3,0.3"])
    of = {
        name: arrays_of("out", name)["time"].tolist()
        for name in ("train", "valid", "test")
    }
    # Sorted: 1 2 3 3 | 3 5 6 | 7 8 9; all 3s go where the cut's value goes.
    assert of == {"train": [1, 2], "valid": [5, 3, 3, 3, 6], "test": [9, 7, 8]}
    assert "valid from 3, test from 7" in cards.load("out").split_rule


def test_random_split_has_the_shares_and_every_row_once(folder, monkeypatch):
    rows = [f"{i},{i % 2}" for i in range(5000)]
    pathlib.Path("all.csv").write_text("\n".join(["row,click", *rows]))
    flags = ["--data=all.csv", "--time=row", "--label=click", "--out=out"]
    tabular.main([*flags, "--split=random:0.8,0.1,0.1:seed=3"])
    of = {name: arrays_of("out", name)["time"] for name in ("train", "valid", "test")}
    assert sorted(np.concatenate(list(of.values()))) == list(range(5000))
    assert abs(len(of["train"]) - 4000) < 150 and abs(len(of["valid"]) - 500) < 110
    monkeypatch.setattr(raw_files, "CSV_BLOCK_BYTES", 1000)
    tabular.main([*flags, "--split=random:0.8,0.1,0.1:seed=3", "--overwrite"])
    np.testing.assert_array_equal(arrays_of("out", "test")["time"], of["test"])
    tabular.main([*flags, "--split=random:0.8,0.1,0.1:seed=4", "--overwrite"])
    assert set(arrays_of("out", "test")["time"]) != set(of["test"])


def test_column_split_and_vocabulary_of_its_train_rows(folder):
    rows = "user,click,part\nann,1,train\nbob,0,test\nann,0,train\ncid,1,valid\n"
    pathlib.Path("all.csv").write_text(rows)
    flags = ["--data=all.csv", "--categorical=user", "--label=click", "--out=out"]
    tabular.main([*flags, "--split=column:part"])
    assert cards.load("out").tables[0].num_rows == 2
    assert arrays_of("out", "test")["ids"].tolist() == [[0]]
    pathlib.Path("all.csv").write_text(rows.replace("valid", "dev"))
    with pytest.raises(SystemExit, match=r"holds \['dev'\] and 0 missing values"):
        tabular.main([*flags, "--split=column:part", "--overwrite"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("rndom:0.8,0.1,0.1:seed=0", "did you mean 'random'?"),
        ("random:0.8,0.1,0.1", "is not understood; use random:SHARES:seed=N"),
        ("random:0.8,0.1:seed=0", "must be three positive shares with sum 1"),
        ("random:0.8,0.2,0.2:seed=0", "must be three positive shares with sum 1"),
        ("random:0.8,0.1,0.1:seed=x", "invalid literal"),
        ("time:nowhen:0.8,0.1,0.1", "column 'nowhen' is missing"),
        ("time:user:0.8,0.1,0.1", "cannot be read as time and as id"),
        ("time:nick:0.8,0.1,0.1", "has type string, expected a time"),
        ("column:user", "the column holds ['ann', 'bob'] and 1 missing values"),
    ],
)
def test_split_rules_that_cannot_be_used(folder, rule, message):
    pathlib.Path("train.csv").write_text(TRAIN.replace("hist_tags", "nick"))
    flags = [flag for flag in FLAGS if "sequence" not in flag]
    text = fails("--data=train.csv", f"--split={rule}", *flags, train="")
    assert message in text


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--categorical=usr", "column 'usr' is missing; did you mean 'user'?"),
        ("--numeric=user", "column 'user' cannot be read as number and as id"),
        ("--categorical=price", "column 'price' has type double, expected an id"),
        ("--list=tags:0", "--list=tags:0: '0' is not a whole number from 1 on"),
        ("--list=tags", "--list: found 'tags', expected COLUMN:LENGTH"),
        ("--sequence=h:item=tags", "expected NAME:LENGTH:ASPECT=COLUMN"),
        ("--label=rating", "that are not labels 0 or 1"),
        ("--label=like=rating>4", "expected COLUMN, NAME=COLUMN or NAME=COLUMN>="),
        ("--label=like=rating>=four", "'four' is not a number"),
        ("--numeric=click", "label 'click' is also a field"),
        ("--min_count=0", "--min_count=0: expected 1 or more"),
        ("--hash=itm:5", "--hash=itm: no field uses this table; did you mean 'item'?"),
        ("--share=price=item", "--share=price=...: no categorical, list or sequence"),
        ("--text=price", "--text=price: no column of ids has this name"),
        ("--weight=rating2", "column 'rating2' is missing"),
        ("--share=user=item", "pass --text=item"),
        ("--share=user=../../x", "give it a name without '/', perhaps with --share"),
        ("--rows_per_group=0", "--rows_per_group=0: expected 1 or more"),
        ("--test=none.csv", "none.csv: no such file"),
        ("--data=train.csv", "give either --train"),
    ],
)
def test_flags_that_cannot_be_used(folder, change, message):
    base = list(FLAGS)
    if "price" in change and "numeric" not in change:
        base.remove("--numeric=price")
    if change == "--numeric=user":
        base.remove("--group=user")
    assert message in fails(*base, change)


def test_label_that_is_missing_or_not_binary(folder):
    pathlib.Path("valid.csv").write_text(VALID.replace("3,0,", "3,,"))
    assert (
        "valid/00001 (row 0 is row 0 of the part): column 'click' has 1 missing"
        in fails(*FLAGS)
    )


def test_sequence_columns_of_unequal_lengths(folder):
    pathlib.Path("train.csv").write_text(TRAIN.replace("12,c,4", "12,c|c,4"))
    text = fails(*FLAGS)
    assert "sequence 'history' has columns of unequal lengths in 1 rows" in text
    assert "first in row 2: 'hist_items' has 1 events, 'hist_tags' has 2" in text


def test_column_that_changes_its_type_on_the_way(folder):
    pathlib.Path("valid.csv").write_text(VALID.replace(",99,zz", ",x99,zz"))
    text = fails(*FLAGS)
    assert "valid.csv" in text and "'x99'" in text and "--text=COLUMN" in text


BROKEN = """\
user,price,click
ann,1.5,1
bob,2
cid,x,0
"d
d",3,0
eve,4,1,9
fay,,1
gil, 5 ,0
"""


@pytest.mark.parametrize("block_bytes", [40, 1 << 20])
def test_broken_rows_are_told_or_left_out_and_counted(
    folder, monkeypatch, capsys, block_bytes
):
    monkeypatch.setattr(raw_files, "CSV_BLOCK_BYTES", block_bytes)
    pathlib.Path("train.csv").write_text(BROKEN.replace("x,0", "3,0"))
    pathlib.Path("valid.csv").write_text("user,price,click\nann,1,1\nbob,y,0\n")
    flags = ["--categorical=user", "--numeric=price", "--label=click"]
    first = "row 3: 2 cells, expected 3: 'bob,2'"
    assert f"train.csv: {first}" in fails(*flags, "--rows_per_group=9")
    pathlib.Path("train.csv").write_text(BROKEN)
    run(*flags, "--on_bad_line=skip")
    printed = capsys.readouterr().out
    assert f"train.csv: 3 bad lines left out\n  the first, {first}" in printed
    record = json.loads(pathlib.Path("out/conversion.json").read_text())
    assert record["bad_lines"] == {
        "train.csv": {"count": 3, "first": first},
        "valid.csv": {
            "count": 1,
            "first": "row 3: column 'price' is 'y', expected double",
        },
    }
    train = arrays_of("out", "train")
    np.testing.assert_array_equal(train["numeric"][:, 0], [1.5, 3, 0, 5])
    users = pq.read_table("out/vocabularies/user.parquet")["id"].to_pylist()
    assert sorted(users[1:]) == ["ann", "d\nd", "fay", "gil"]


@pytest.mark.parametrize("block_bytes", [100, 1 << 20])
@pytest.mark.parametrize(
    ("column", "cell", "flag", "message"),
    [
        ("when", "noon", "--time=when", "'when' is 'noon', expected timestamp[us]"),
        ("liked", "perhaps", "--label=liked", "'liked' is 'perhaps', expected double"),
        ("tags", "4|x", "--list=tags:3", "'tags' is '4|x', expected list<item: int64>"),
    ],
)
def test_cells_of_every_type_are_told_or_left_out(
    folder, monkeypatch, block_bytes, column, cell, flag, message
):
    good = {"user": "ann", "when": "2024-01-01 00:00:00", "liked": "true", "tags": "4"}
    lines = [",".join([*good, "click"]), *[",".join([*good.values(), "1"])] * 20]
    wrong = ",".join([*(good | {column: cell}).values(), "1"])
    pathlib.Path("train.csv").write_text("\n".join(lines) + "\n")
    pathlib.Path("valid.csv").write_text("\n".join([*lines, wrong, lines[1]]) + "\n")
    monkeypatch.setattr(raw_files, "CSV_BLOCK_BYTES", block_bytes)
    flags = ["--categorical=user", flag, "--label=click"]
    expected = f"row 22: column {message}"
    text = fails(*flags)
    assert f"valid.csv: {expected}" in text and "--on_bad_line=skip" in text
    card = run(*flags, "--on_bad_line=skip")
    assert card.splits["valid"].num_rows == 21
    record = json.loads(pathlib.Path("out/conversion.json").read_text())
    assert record["bad_lines"] == {"valid.csv": {"count": 1, "first": expected}}


@pytest.mark.parametrize("on_bad_line", ["error", "skip"])
def test_bytes_that_are_no_text_are_told(folder, monkeypatch, on_bad_line):
    monkeypatch.setattr(raw_files, "CSV_BLOCK_BYTES", 100)
    rows = b"user,click\n" + b"ann,1\n" * 90 + b"\xff,0\n"
    pathlib.Path("train.csv").write_bytes(rows)
    flags = ["--categorical=user", "--label=click", f"--on_bad_line={on_bad_line}"]
    text = fails(*flags, valid="train.csv")
    assert "train.csv: In CSV column #0: " in text and "invalid UTF8" in text
    assert ("--on_bad_line=skip" in text) == (on_bad_line == "error")


def test_a_killed_conversion_does_not_go_on_with_other_splits(folder, monkeypatch):
    for name in "abc":
        rows = "".join(f"{name}{i},{i % 2}\n" for i in range(9))
        pathlib.Path(f"{name}.csv").write_text(f"user,click\n{rows}")
    write = parts.write

    def write_two(job, item):
        if item[0] == 2:
            raise cards.DataError("killed")
        return write(job, item)

    monkeypatch.setattr(conversion, "MAX_THREADS", 1)
    monkeypatch.setattr(parts, "write", write_two)
    pathlib.Path("ab").mkdir()
    for name in "ab":
        pathlib.Path(f"{name}.csv").rename(f"ab/{name}.csv")
    flags = ["--categorical=user", "--label=click"]
    assert "killed" in fails(*flags, train="ab", valid="c.csv")
    monkeypatch.setattr(parts, "write", write)
    card = run(*flags, "--test=c.csv", train="ab/a.csv", valid="ab/b.csv")
    assert [split.num_rows for split in card.splits.values()] == [9, 9, 9]
    for name, split in zip("abc", ("train", "valid", "test"), strict=True):
        (shard,) = pathlib.Path("out", split).iterdir()
        assert shard.stem == f"0000{'abc'.index(name)}"


def test_random_splits_of_several_files_are_not_the_same(folder):
    pathlib.Path("all").mkdir()
    rows = "user,click\n" + "".join(f"u{i},{i % 2}\n" for i in range(200))
    for name in "ab":
        pathlib.Path(f"all/{name}.csv").write_text(rows)
    flags = ["--categorical=user", "--label=click", "--hash=user:50"]
    run("--data=all", "--split=random:0.5,0.3,0.2:seed=1", *flags, train="", valid="")
    one, other = (
        set(pq.read_table(f"out/train/0000{part}.parquet")["user"].to_pylist())
        for part in (0, 1)
    )
    assert 70 < len(one) < 130 and 70 < len(other) < 130
    assert 0.35 < len(one & other) / len(one) < 0.65  # as independent draws have


def test_vectors_of_parquet_files(folder):
    vectors = pa.array([[1.5, 2], [3, 4]], pa.list_(pa.float64()))
    table = pa.table({"image": vectors, "user": ["a", "b"], "click": [0, 1]})
    pq.write_table(table, "train.parquet")
    flags = ["--categorical=user", "--label=click"]
    files = {"train": "train.parquet", "valid": "train.parquet"}
    card = run("--vector=image:2", *flags, **files)
    assert card.fields[1] == cards.VectorField(name="image", width=2)
    stored = pq.read_table("out/train")["image"]
    assert stored.type == pa.list_(pa.float32(), 2)
    assert stored.to_pylist() == [[1.5, 2], [3, 4]]
    pathlib.Path("out").rename("done")
    text = fails("--vector=image:3", *flags, **files)
    assert "column 'image' holds lists of [2] numbers, expected 3 in each" in text


def test_infinite_number_is_refused(folder):
    pathlib.Path("train.csv").write_text(TRAIN.replace("1.5", "1e99"))
    assert "column 'price' has 1 of 4 values that are not finite" in fails(*FLAGS)


def test_empty_splits_are_refused(folder):
    header = VALID.splitlines()[0] + "\n"
    pathlib.Path("valid.csv").write_text(header)
    assert "split 'valid' is empty" in fails(*FLAGS)
    pathlib.Path("train.csv").write_text(header)
    text = fails(*FLAGS)
    assert "split 'train' is empty" in text
    pathlib.Path("train.csv").write_text("")
    assert "train.csv cannot be read as CSV with a header" in fails(*FLAGS)


def test_file_that_is_not_parquet(folder):
    pathlib.Path("train.parquet").write_text(TRAIN)
    text = fails(*FLAGS, train="train.parquet")
    assert "train.parquet cannot be read as Parquet" in text


def test_existing_dataset_is_kept_unless_told_otherwise(folder):
    run(*FLAGS)
    before = pathlib.Path("out/dataset.json").read_text()
    with pytest.raises(SystemExit, match=r"out exists; .* pass --overwrite"):
        run(*FLAGS)
    pathlib.Path("train.csv").write_text(TRAIN.replace(",1,2024", ",7,2024"))
    with pytest.raises(SystemExit, match=r"not labels 0 or 1"):
        run(*FLAGS, "--overwrite")
    assert pathlib.Path("out/dataset.json").read_text() == before
    assert len(arrays_of("out", "train")["weight"]) == 4


# ---------------------------------------------------------------- docs


def test_help_shows_the_example(capsys):
    with pytest.raises(SystemExit):
        tabular.main(["--help"])
    assert "--sequence=history:20:item=hist_items" in capsys.readouterr().out
