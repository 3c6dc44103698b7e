import datetime
import gzip
import json
import pathlib

from dataset_arrays import arrays_of, assert_same_datasets
from made_up import avazu as made_up
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.model_selection import KFold

from data_pipelines import avazu
from data_pipelines.engine import splits, text
from rankax.data import card as cards
from rankax.models import backbones  # noqa: F401

PARQUET = "avazu_32k.parquet"


@pytest.fixture
def raw(tmp_path) -> pathlib.Path:
    """Both forms in one folder."""
    folder = tmp_path / "raw"
    folder.mkdir()
    made_up.write_parquet(folder)
    made_up.write_published(folder)
    return folder


def num_rows(card: cards.Card) -> list[int]:
    return [card.splits[name].num_rows for name in splits.SPLITS]


def test_both_forms_give_the_same_arrays(raw, tmp_path, capsys):
    def main(name: str, file: str) -> pathlib.Path:
        out = tmp_path / name
        flags = [f"--raw={raw}", f"--out={out}", f"--file={file}", "--split=time"]
        avazu.main(flags)
        return out

    parquet = main("a", PARQUET)
    assert "positive ctr 0." in capsys.readouterr().out
    assert_same_datasets(parquet, main("b", "train.csv"))
    (raw / "train.gz").write_bytes(gzip.compress((raw / "train.csv").read_bytes()))
    assert_same_datasets(parquet, main("c", "train.gz"))


def test_parts_and_blocks_make_no_difference(raw, tmp_path, monkeypatch):
    avazu.convert(raw, tmp_path / "a")
    monkeypatch.setattr(text, "PART_BYTES", 20_000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 7_000)
    assert avazu.file_rows(raw / "train.csv").num_parts > 4
    avazu.convert(raw, tmp_path / "b")
    assert_same_datasets(tmp_path / "a", tmp_path / "b")


def test_derived_columns_equal_a_plain_loop(raw):
    chunks = [c for _, c in avazu.file_rows(raw / "train.csv").chunks(0)]
    found = pa.concat_tables(chunks).to_pylist()
    lines = (raw / "train.csv").read_text().splitlines()
    names = lines[0].split(",")
    for row, line in zip(found, lines[1:], strict=True):
        cells = dict(zip(names, line.split(","), strict=True))
        hour = datetime.datetime.strptime(cells["hour"], "%y%m%d%H")
        expected = {
            "click": int(cells["click"]),
            "time": hour,
            "hour": hour.hour,
            "weekday": int(hour.strftime("%w")),
            "weekend": int(hour.strftime("%w") in "06"),
        }
        for name in avazu.CATEGORICAL:
            expected[name] = int(cells[name], 16 if name in made_up.HEX else 10)
        assert row == expected
    assert {row["weekend"] for row in found} == {0, 1}


def test_a_split_column_is_kept_and_else_whole_hours_are_cut(raw, tmp_path):
    card = avazu.convert(raw, tmp_path / "a", file=PARQUET)
    assert num_rows(card) == [450, 60, 90] and "by column split" in card.split_rule
    card = avazu.convert(raw, tmp_path / "b")  # train.csv
    hours = np.asarray(made_up.make_table(0)["hour"])
    valid, test = np.sort(hours)[[480, 540]]
    # The first hour of valid is that of the row at 80 %, or the next one if rows of
    # that hour stand before it.
    later = np.unique(hours)
    valid = later[np.searchsorted(later, valid, side="left") + (hours[479] == valid)]
    test = later[np.searchsorted(later, test, side="left") + (hours[539] == test)]
    train = int((hours < valid).sum())
    expected = [train, int((hours < test).sum()) - train, int((hours >= test).sum())]
    assert num_rows(card) == expected
    assert f"valid from {str(valid)[:13]}" in card.split_rule


def test_the_leaderboards_split_is_that_of_folds_by_class(raw, tmp_path):
    card = avazu.convert(raw, tmp_path / "out", split="bars_x4")
    labels = np.asarray(made_up.make_table(0)["click"])
    fold = np.zeros(len(labels), int)
    for label in (0, 1):
        rows = np.flatnonzero(labels == label)
        folds = KFold(10, shuffle=True, random_state=2018).split(rows)
        for i, (_, chosen) in enumerate(folds):
            fold[rows[chosen]] = i
    hours = np.asarray(made_up.make_table(0)["hour"]).astype("datetime64[us]")
    for name, chosen in (
        ("test", fold == 0),
        ("valid", fold == 1),
        ("train", fold > 1),
    ):
        arrays = arrays_of(tmp_path / "out", name)
        np.testing.assert_array_equal(arrays["labels"][:, 0], labels[chosen])
        np.testing.assert_array_equal(arrays["time"], hours[chosen].view(np.int64))
    assert "BARS" in card.split_rule


def test_the_card_has_the_24_fields_of_the_leaderboards(raw, tmp_path):
    card = avazu.convert(raw, tmp_path / "out")
    names = {*made_up.NAMES[3:], "hour", "weekday", "weekend"}
    assert {field.name for field in card.fields} == names and len(names) == 24
    assert card.time == "_time" and len(card.slices[0].values) == 24


def fails(raw: pathlib.Path, out: pathlib.Path, *flags: str) -> str:
    with pytest.raises(SystemExit) as error:
        avazu.main([f"--raw={raw}", f"--out={out}", *flags])
    assert not out.exists()
    return str(error.value)


def test_wrong_text_is_refused_or_left_out_and_counted(raw, tmp_path, capsys):
    lines = (raw / "train.csv").read_text().splitlines(keepends=True)
    good = [line for i, line in enumerate(lines) if i not in (7, 9)]
    lines[7] = lines[7].replace(",", ";", 1)
    lines[9] = lines[9].replace(",1005,", ",x,").replace(",100", ",10x")
    (raw / "train.csv").write_text("".join(lines))
    message = f"train.csv, line 8: 23 fields, expected 24: {lines[7].strip()[:200]!r}"
    assert message in fails(raw, tmp_path / "a")
    avazu.main([f"--raw={raw}", f"--out={tmp_path / 'a'}", "--on_bad_line=skip"])
    printed = capsys.readouterr().out
    assert "train.csv: 2 bad lines left out\n  the first, line 8: 23 fields" in printed
    record = json.loads((tmp_path / "a" / "conversion.json").read_text())
    assert record["bad_lines"]["train.csv"]["count"] == 2
    (raw / "train.csv").write_text("".join(good))
    avazu.convert(raw, tmp_path / "b")
    assert_same_datasets(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "banner_pos",
            "position",
            "the first line names ['id', 'click', 'hour', 'C1',",
        ),
        (
            ",14102",
            ",14132",
            "train.csv, line 2: hour is '14132420', expected an hour Y",
        ),
    ],
)
def test_other_text_is_refused(raw, tmp_path, old, new, message):
    text = (raw / "train.csv").read_text()
    (raw / "train.csv").write_text(text.replace(old, new))
    assert message in fails(raw, tmp_path / "out", "--file=train.csv")


def test_other_files_are_refused(raw, tmp_path):
    table, out = pq.read_table(raw / PARQUET), tmp_path / "out"
    for content in (gzip.compress(b"x" * 9)[:-9], b"not packed at all"):
        (raw / "train.gz").write_bytes(content)
        assert "train.gz: " in fails(raw, out, "--file=train.gz")
    assert "train.csv has no column 'split'" in fails(raw, out, "--split=column")
    pq.write_table(table.drop_columns(["C20"]), raw / PARQUET)
    message = "columns ['C20'] are missing, found"
    assert message in fails(raw, out, f"--file={PARQUET}")
    pq.write_table(table.drop_columns(["label"]), raw / PARQUET)
    assert "no column click or label" in fails(raw, out, f"--file={PARQUET}")
    assert "none.csv not there, found" in fails(raw, out, "--file=none.csv")


def test_made_up_files_have_the_types_of_the_real_one(real_data, raw):
    real = pq.read_schema(real_data / "avazu-samples" / PARQUET)
    assert pq.read_schema(raw / PARQUET).equals(real, check_metadata=False)


def test_real_data_convert_from_both_forms(real_data, tmp_path):
    raw = real_data / "avazu-samples"
    card = avazu.convert(raw, tmp_path / "kept")
    assert num_rows(card) == [23_301, 905, 8_062]
    avazu.convert(raw, tmp_path / "a", split="time")
    made_up.write_text(
        tmp_path / "train.csv",
        pq.read_table(raw / PARQUET).rename_columns({"label": "click"}),
    )
    avazu.convert(tmp_path, tmp_path / "b")
    assert_same_datasets(tmp_path / "a", tmp_path / "b")
