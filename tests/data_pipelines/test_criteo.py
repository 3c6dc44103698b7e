import gzip
import json
import math
import pathlib

from dataset_arrays import arrays_of, assert_same_datasets
from made_up import criteo as made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import KFold

from data_pipelines import criteo
from data_pipelines.engine import parts, raw_files, splits, text
from rankax.data import card as cards
from rankax.data import transforms
from rankax.data.card import DataError
from rankax.data.schema import Schema
from rankax.models import backbones  # noqa: F401

KAGGLE, TERABYTE = "criteo_kaggle_16k.parquet", "criteo_terabyte_day0_10k.parquet"
COLUMNS = (*made_up.NUMERIC, *made_up.CATEGORICAL)


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """Both forms in one folder."""
    folder = tmp_path / "raw"
    folder.mkdir()
    made_up.write_parquet(folder)
    made_up.write_published(folder)
    return folder


def num_rows(card: cards.Card) -> list[int]:
    return [card.splits[name].num_rows for name in ("train", "valid", "test")]


def test_both_forms_give_the_same_arrays(raw, tmp_path, capsys):
    def main(name: str, file: str) -> pathlib.Path:
        out = tmp_path / name
        criteo.main([f"--raw={raw}", f"--out={out}", f"--file={file}"])
        return out

    parquet = main("a", TERABYTE)
    assert "train: 480 rows, positive ctr 0." in capsys.readouterr().out
    assert_same_datasets(parquet, main("b", "day_0"))
    (raw / "day_0.gz").write_bytes(gzip.compress((raw / "day_0").read_bytes()))
    assert_same_datasets(parquet, main("c", "day_0.gz"))


@pytest.mark.parametrize("file", [TERABYTE, KAGGLE, "day_0"])
def test_chunks_make_no_difference(raw, tmp_path, monkeypatch, file):
    criteo.convert(raw, tmp_path / "a", file=file)
    monkeypatch.setattr(raw_files, "PARQUET_ROWS", 101)
    monkeypatch.setattr(text, "BLOCK_BYTES", 9_000)
    monkeypatch.setattr(text, "PART_BYTES", 50_000)
    rows = criteo.file_rows([raw / file])
    assert rows.num_parts == (1 if file.endswith("parquet") else 3)
    chunks = [c for part in range(rows.num_parts) for _, c in rows.chunks(part)]
    assert len(chunks) > 6 and max(chunk.num_rows for chunk in chunks) <= 101
    criteo.convert(raw, tmp_path / "b", file=file)
    assert_same_datasets(tmp_path / "a", tmp_path / "b")


def test_a_split_column_is_kept_and_else_rows_are_cut_in_order(raw, tmp_path):
    card = criteo.convert(raw, tmp_path / "a")
    assert num_rows(card) == [400, 110, 90] and "by column split" in card.split_rule
    assert "criteo_kaggle_16k.parquet" in card.origin
    (raw / KAGGLE).unlink()
    card = criteo.convert(raw, tmp_path / "b")  # train.txt, the same rows
    assert num_rows(card) == [480, 60, 60]
    assert "first 80 % train" in card.split_rule and "train.txt" in card.origin
    labels = made_up.make_table(0)["label"].to_numpy()
    for folder in ("a", "b"):
        parts = [arrays_of(tmp_path / folder, s) for s in ("train", "valid", "test")]
        found = np.concatenate([part["labels"][:, 0] for part in parts])
        np.testing.assert_array_equal(found, labels)


def labels_of(folder: pathlib.Path, split: str) -> np.ndarray:
    return arrays_of(folder, split)["labels"][:, 0]


@pytest.mark.parametrize("file", [TERABYTE, "day_0"])
def test_the_leaderboards_split_is_that_of_folds_by_class(
    raw, tmp_path, monkeypatch, file
):
    monkeypatch.setattr(text, "PART_BYTES", 50_000)
    card = criteo.convert(raw, tmp_path / "out", file=file, split="bars_x4")
    table = made_up.make_table(1)
    labels, counts = np.asarray(table["label"]), np.asarray(table["I2"])
    fold = np.zeros(len(labels), int)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        # What scikit-learn 0.19.1 did in every class for shuffled stratified folds.
        folds = KFold(10, shuffle=True, random_state=2018).split(rows)
        for i, (_, chosen) in enumerate(folds):
            fold[rows[chosen]] = i
    place = [field.name for field in Schema.select(card).numeric].index("I2")
    for name, chosen in (
        ("test", fold == 0),
        ("valid", fold == 1),
        ("train", fold > 1),
    ):
        arrays = arrays_of(tmp_path / "out", name)
        np.testing.assert_array_equal(arrays["labels"][:, 0], labels[chosen])
        expected = np.sign(counts) * np.log1p(np.abs(counts))
        np.testing.assert_allclose(arrays["numeric"][:, place], expected[chosen], 1e-6)
    assert "BARS" in card.split_rule


def test_too_few_rows_of_a_class_for_the_leaderboards_split():
    with pytest.raises(DataError, match="3 rows have label 1, expected at least one"):
        splits.bars_x4(np.repeat([0, 1], [50, 3]))


def test_days_are_read_in_order_and_split_as_mlperf_does(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "PART_BYTES", 4_000)
    raw = tmp_path / "raw"
    raw.mkdir()
    rows, labels = made_up.make_table(2), []
    for day in range(24):
        part = rows.slice(24 * day, 24 if day < 23 else 9)
        made_up.write_text(raw / f"day_{day}", part)
        labels.append(np.asarray(part["label"]))
        if day % 5 == 0:
            packed = gzip.compress((raw / f"day_{day}").read_bytes())
            (raw / f"day_{day}.gz").write_bytes(packed)
            (raw / f"day_{day}").unlink()
    card = criteo.convert(raw, tmp_path / "out", split="mlperf")
    assert num_rows(card) == [23 * 24, 5, 4] and "MLPerf" in card.split_rule
    assert "24 files day_0.gz .. day_23" in card.origin
    found = [labels_of(tmp_path / "out", name) for name in splits.SPLITS]
    np.testing.assert_array_equal(np.concatenate(found), np.concatenate(labels))
    card = criteo.convert(raw, tmp_path / "order")  # all days, first 80 % train
    assert num_rows(card) == [448, 56, 57]
    (raw / "day_7").unlink()
    message = "and no --file, missing are [7]"
    assert message in fails(raw, tmp_path / "b", "--split=mlperf")


def test_hashed_ids_are_the_codes_and_need_one_pass(raw, tmp_path, monkeypatch):
    def no_first_pass(*arguments):
        raise AssertionError("nothing has to be counted")

    monkeypatch.setattr(parts, "read", no_first_pass)
    out = tmp_path / "out"
    criteo.main([f"--raw={raw}", f"--out={out}", "--file=day_0", "--hash=1000"])
    card = cards.load(out)
    tables = {table.name: (table.num_rows, table.ids) for table in card.tables}
    assert tables["C1"] == (1000, "hash") and tables["I1_bucket"] == (1000, "hash")
    stored = pq.read_table(out / "train")
    codes = made_up.make_table(1).slice(0, 480)["C3"].to_pylist()
    missing = int(transforms.hash_strings([""])[0])
    assert stored["C3"].to_pylist() == [missing if c is None else c for c in codes]
    assert not (out / "vocabularies").exists()
    assert card.slices[0].values == ("0", "1-4", "5-9", "10+")
    message = "with --hash there are no vocabularies"
    assert message in fails(raw, tmp_path / "b", "--hash=10", "--min_count=2")


def test_broken_lines_are_left_out_and_counted(raw, tmp_path, capsys):
    lines = (raw / "train.txt").read_text().splitlines(keepends=True)
    spoilt = [*lines[:10], "1\t2\n", *lines[10:500], lines[3].replace("\t", " "), "\n"]
    (raw / "train.txt").write_text("".join(spoilt + lines[500:]))
    out = tmp_path / "a"
    flags = [f"--raw={raw}", "--file=train.txt", "--split=bars_x4"]
    criteo.main([*flags, f"--out={out}", "--on_bad_line=skip"])
    printed = capsys.readouterr().out
    assert "train.txt: 3 bad lines left out\n  the first, line 11: 2 fields" in printed
    first = "line 11: 2 fields, expected 40: '1\\t2'"
    record = json.loads((out / "conversion.json").read_text())
    assert record["bad_lines"] == {"train.txt": {"count": 3, "first": first}}
    assert sum(num_rows(cards.load(out))) == 600
    assert "train.txt, line 11: 2 fields" in fails(raw, tmp_path / "b", *flags[1:])


def derived_by_loop(row: dict) -> dict:
    """The columns of one row, from their definitions."""
    result = {"label": row["label"]}
    for name in made_up.NUMERIC:
        v = row[name]
        result[name] = result[f"{name}_bucket"] = None
        if v is not None:
            result[name] = math.log(1 + v) if v >= 0 else -math.log(1 - v)
            result[f"{name}_bucket"] = math.floor(math.log(v) ** 2) if v > 2 else v
    result |= {name: row[name] for name in made_up.CATEGORICAL}
    n = sum(row[name] is None for name in COLUMNS)
    ranges = "0" if n == 0 else "1-4" if n < 5 else "5-9" if n < 10 else "10+"
    return result | {"num_missing": ranges}


def test_derived_columns_equal_a_plain_loop():
    table = made_up.make_table(3)
    odd = [-99, -2, -1, 0, 1, 2, 3, 4, 65_535, 65_536, 2**31 - 1, None]
    counts = pa.array([*odd, *table["I2"].to_pylist()[len(odd) :]], pa.int32())
    table = table.set_column(table.schema.get_field_index("I2"), "I2", counts)
    found = criteo.make_examples(table).to_pylist()
    expected = [derived_by_loop(row) for row in table.to_pylist()]

    def numbers(rows: list[dict]) -> np.ndarray:
        """Takes out the numeric columns; None becomes nan."""
        return np.array([[row.pop(n) for n in made_up.NUMERIC] for row in rows], float)

    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-12)
    assert found == expected
    ranges = {row["num_missing"] for row in expected}
    assert ranges == {"0", "1-4", "5-9", "10+"}
    assert [row["I2_bucket"] for row in found[:8]] == [-99, -2, -1, 0, 1, 2, 1, 1]


def test_hex_codes_of_a_sliced_batch_become_numbers():
    codes = ["ffffffff", None, "0000000a", "68FD1E64", "00000000"]
    array = pa.array(codes).cast(pa.binary(8)).slice(1)
    found = text.from_hex(array).to_pylist()
    assert found == [None, 10, 0x68FD1E64, 0]
    for wrong in "gG@`/:xX +-.\0\xff":
        for place in range(8):
            code = bytearray(b"0a1B2c3D")
            code[place] = ord(wrong)
            with pytest.raises(pa.ArrowInvalid, match="is no hex code of 8 digits"):
                text.from_hex(pa.array([b"00000000", bytes(code)], pa.binary(8)))


def test_missing_values_are_counted_and_have_a_row_of_their_own(raw, tmp_path):
    card = criteo.convert(raw, tmp_path / "out", min_count=1)
    record = json.loads((tmp_path / "out" / "conversion.json").read_text())
    table = made_up.make_table(0).slice(0, 400)
    found = record["missing_and_unknown"]["train"]
    expected = {f"{n}: missing": table[n].null_count for n in COLUMNS}
    expected |= {f"{n}_bucket: missing": table[n].null_count for n in made_up.NUMERIC}
    assert found == {name: count for name, count in expected.items() if count}
    schema = Schema.select(card)
    place = [slot.column for slot in schema.slots].index("I12_bucket")
    last_row = {t.name: t.num_rows for t in card.tables}["I12_bucket"] - 1
    arrays = arrays_of(tmp_path / "out", "train")
    is_missing = np.array(table["I12"].is_null())
    np.testing.assert_array_equal(arrays["ids"][:, place] == last_row, is_missing)
    numeric = [field.name for field in schema.numeric].index("I12")
    assert not arrays["numeric"][is_missing, numeric].any()


def test_rare_ids_are_unknown(raw, tmp_path):
    card = criteo.convert(raw, tmp_path / "out", min_count=3)
    ids = made_up.make_table(0)["C7"].slice(0, 400).to_pylist()
    frequent = {i for i in ids if ids.count(i) >= 3}
    tables = {table.name: table.num_rows for table in card.tables}
    assert tables["C7"] == 1 + len(frequent) and len(frequent) > 10


def test_the_card_has_52_fields_of_which_39_make_the_leaderboards_model(raw, tmp_path):
    card = criteo.convert(raw, tmp_path / "out")
    names = (*criteo.NUMERIC, *criteo.BUCKETS, *criteo.CATEGORICAL)
    assert tuple(field.name for field in card.fields) == names and len(names) == 52
    assert [entry.name for entry in card.slices] == ["num_missing", "C9"]
    assert set(card.slices[0].values) == {"0", "1-4", "5-9", "10+"}
    assert len(card.slices[1].values) == 3


def fails(raw: pathlib.Path, out: pathlib.Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as error:
        criteo.main([f"--raw={raw}", f"--out={out}", *flags])
    text = str(error.value)
    assert text.startswith("error: ")
    assert not out.exists()
    return text


def test_a_missing_file_is_told_with_what_is_there(raw, tmp_path):
    out = tmp_path / "out"
    message = fails(raw, out, "--file=day_1")
    assert "day_1 not there" in message and "'train.txt'" in message
    (raw / KAGGLE).unlink()
    (raw / "train.txt").unlink()
    (raw / "day_0").unlink()
    message = fails(raw, out)
    assert f"{KAGGLE} and train.txt not there, found ['criteo_t" in message
    assert "not there, found []" in fails(tmp_path / "none", out)


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        (0, "2", "label is '2', expected 0 or 1"),
        (0, "", "label is '', expected 0 or 1"),
        (3, "1.5", "I3 is '1.5', expected an integer of 64 bits"),
        (20, "68fd1e6", "C7 is '68fd1e6', expected a hex code of 8 digits"),
        (20, "68fd1e6z", "C7 is '68fd1e6z', expected a hex code of 8 digits"),
        (20, "68fd1e64\t1", "41 fields, expected 40"),
    ],
)
def test_wrong_text_is_refused(raw, tmp_path, cell, value, message):
    lines = (raw / "train.txt").read_text().splitlines(keepends=True)
    cells = lines[300].split("\t")
    lines[300] = "\t".join([*cells[:cell], value, *cells[cell + 1 :]])
    (raw / "train.txt").write_text("".join(lines))
    error = fails(raw, tmp_path / "out", "--file=train.txt")
    assert f"train.txt, line 301: {message}: {lines[300][:200]!r}; correct" in error


def test_wrong_parquet_is_refused(raw, tmp_path):
    table, out = pq.read_table(raw / KAGGLE), tmp_path / "out"
    pq.write_table(table.drop_columns(["C3", "I1"]), raw / KAGGLE)
    assert "columns ['I1', 'C3'] are missing, found" in fails(raw, out)
    place = table.schema.get_field_index("I1")
    for values in (table["I1"].cast(pa.float64()), table["I1"].cast(pa.string())):
        pq.write_table(table.set_column(place, "I1", values), raw / KAGGLE)
        message = f"column 'I1' has type {values.type}, expected an integer"
        assert message in fails(raw, out)
    place = table.schema.get_field_index("split")
    names = pa.array(["dev", None, *table["split"].to_pylist()[2:]])
    pq.write_table(table.set_column(place, "split", names), raw / KAGGLE)
    assert "column 'split': the column holds ['dev'] and 1 missing" in fails(raw, out)
    (raw / KAGGLE).write_text("no Parquet")
    assert KAGGLE in fails(raw, out)


def test_made_up_files_have_the_types_of_the_real_ones(real_data, raw):
    for name in (KAGGLE, TERABYTE):
        real = pq.read_schema(real_data / "criteo-samples" / name)
        assert pq.read_schema(raw / name).equals(real, check_metadata=False), name


def test_real_data_convert_from_both_forms(real_data, tmp_path):
    raw = real_data / "criteo-samples"
    card = criteo.convert(raw, tmp_path / "kaggle")
    assert num_rows(card) == [10_000, 2_987, 3_044]
    rates = [split.positive_rate["ctr"] for split in card.splits.values()]
    assert rates == pytest.approx([0.218, 0.223, 0.211], abs=5e-4)
    card = criteo.convert(raw, tmp_path / "a", file=TERABYTE)
    assert num_rows(card) == [8_000, 1_000, 1_000]
    rates = [split.positive_rate["ctr"] for split in card.splits.values()]
    assert np.dot(rates, [0.8, 0.1, 0.1]) == pytest.approx(0.0265)
    made_up.write_text(tmp_path / "day_0", pq.read_table(raw / TERABYTE))
    criteo.convert(tmp_path, tmp_path / "b", file="day_0")
    assert_same_datasets(tmp_path / "a", tmp_path / "b")
