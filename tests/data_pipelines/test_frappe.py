import hashlib
import pathlib

from dataset_arrays import arrays_of
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import frappe
from rankax.data import card as cards

MADE_UP = {
    "train": frappe.RawSplit("train_reconstructed.parquet", 300, 0.25),
    "valid": frappe.RawSplit("valid.parquet", 60, 0.5),
    "test": frappe.RawSplit("test.parquet", 40, 0.5),
}


def raw_table(num_rows: int, positive_rate: float) -> pa.Table:
    """Made-up rows in the format of the real files: one id space for all fields."""
    rng = np.random.default_rng(num_rows)
    columns = {"label": np.zeros(num_rows, np.int8)}
    columns["label"][: int(num_rows * positive_rate)] = 1
    offset = 0
    for name, num_ids in frappe.FIELDS.items():
        ids = rng.integers(0, num_ids, num_rows) + offset
        ids[:2] = offset, offset + num_ids - 1
        columns[name] = ids.astype(np.int16)
        offset += num_ids
    return pa.table(columns)


@pytest.fixture
def raw(tmp_path, monkeypatch) -> pathlib.Path:
    form = frappe.RECONSTRUCTED._replace(splits=MADE_UP)
    monkeypatch.setattr(frappe, "RECONSTRUCTED", form)
    folder = tmp_path / "raw"
    folder.mkdir()
    for split in MADE_UP.values():
        table = raw_table(split.num_rows, split.positive_rate)
        pq.write_table(table, folder / split.file)
    return folder


def test_fields_have_5382_ids_in_ten_tables():
    assert len(frappe.FIELDS) == 10 and sum(frappe.FIELDS.values()) == 5382
    first = np.cumsum([0, *frappe.FIELDS.values()])[:-1].tolist()
    # The first id of each field, as the description of the raw files gives them.
    assert first == [0, 957, 5039, 5046, 5053, 5055, 5058, 5060, 5069, 5149]


def test_ids_lose_their_offsets(raw, tmp_path, capsys):
    out = tmp_path / "out"
    frappe.main([f"--raw={raw}", f"--out={out}"])
    assert (
        "train: 300 rows, positive ctr 0.2500\nvalid: 60 rows"
        in capsys.readouterr().out
    )
    table = pq.read_table(raw / "valid.parquet")
    arrays = arrays_of(out, "valid")
    offset = 0
    for i, (name, num_ids) in enumerate(frappe.FIELDS.items()):
        assert arrays["ids"][:, i].tolist() == [
            v - offset for v in table[name].to_pylist()
        ]
        assert arrays["ids"][:, i].min() == 0
        assert arrays["ids"][:, i].max() == num_ids - 1
        offset += num_ids
    np.testing.assert_array_equal(arrays["group"], table["user"].to_numpy())
    np.testing.assert_array_equal(arrays["labels"][:, 0], table["label"].to_numpy())


def test_other_data_are_refused_and_leave_nothing(raw, tmp_path):
    out = tmp_path / "out"
    pq.write_table(raw_table(59, 0.5), raw / "valid.parquet")
    with pytest.raises(SystemExit, match=r"valid.parquet: 59 rows .* expected 60 rows"):
        frappe.main([f"--raw={raw}", f"--out={out}"])
    pq.write_table(raw_table(60, 0.4), raw / "valid.parquet")
    with pytest.raises(
        SystemExit, match=r"positive rate 0.4000, expected 60 .* 0.5000"
    ):
        frappe.main([f"--raw={raw}", f"--out={out}"])
    table = raw_table(60, 0.5)
    user = table["user"].to_numpy().copy()
    user[5] = 957
    pq.write_table(table.set_column(1, "user", pa.array(user)), raw / "valid.parquet")
    with pytest.raises(SystemExit, match=r"ids of 'user' go from 0 to 957, expected 0"):
        frappe.main([f"--raw={raw}", f"--out={out}"])
    pq.write_table(table.drop_columns(["city"]), raw / "valid.parquet")
    with pytest.raises(SystemExit, match=r"columns \['city'\] are missing"):
        frappe.main([f"--raw={raw}", f"--out={out}"])
    (raw / "valid.parquet").unlink()
    with pytest.raises(SystemExit, match=r"valid.parquet is missing; --raw must be"):
        frappe.main([f"--raw={raw}", f"--out={out}"])
    assert not out.exists() and [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_existing_folder_is_replaced_only_when_asked(raw, tmp_path):
    flags = [f"--raw={raw}", f"--out={tmp_path / 'out'}"]
    frappe.main(flags)
    with pytest.raises(SystemExit, match="pass --overwrite"):
        frappe.main(flags)
    frappe.main([*flags, "--overwrite"])


def test_real_files_convert(real_data, tmp_path):
    card = frappe.convert(real_data / "frappe_x1", tmp_path / "out")
    assert {name: split.num_rows for name, split in card.splits.items()} == {
        "train": 202_027,
        "valid": 57_722,
        "test": 28_860,
    }
    arrays = arrays_of(tmp_path / "out", "train")
    largest = arrays["ids"].max(axis=0) + 1
    assert largest.tolist() == list(frappe.FIELDS.values())
    assert arrays["labels"].mean() == pytest.approx(67_604 / 202_027)
    assert "train negative names is drawn anew" in card.split_rule


def write_published(table: pa.Table, path: pathlib.Path) -> str:
    """Writes a table as the published files are written; returns the md5."""
    lines = [",".join(table.column_names)]
    lines += [
        ",".join(map(str, row)) for row in zip(*table.to_pydict().values(), strict=True)
    ]
    content = "".join(f"{line}\r\n" for line in lines).encode()
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def test_published_files_convert_to_the_same_rows(raw, tmp_path, monkeypatch):
    frappe.main([f"--raw={raw}", f"--out={tmp_path / 'parquet'}"])
    folder = raw / "Frappe_x1"
    folder.mkdir()
    splits = {}
    for name, split in MADE_UP.items():
        table = pq.read_table(raw / split.file)
        md5 = write_published(table, folder / f"{name}.csv")
        splits[name] = split._replace(file=f"{name}.csv", md5=md5)
    form = frappe.PUBLISHED._replace(splits=splits)
    monkeypatch.setattr(frappe, "PUBLISHED", form)
    for place in (raw, folder):
        frappe.main([f"--raw={place}", f"--out={tmp_path / 'csv'}", "--overwrite"])
        for name in MADE_UP:
            expected = arrays_of(tmp_path / "parquet", name)
            for key, array in arrays_of(tmp_path / "csv", name).items():
                np.testing.assert_array_equal(array, expected[key])
    rule = cards.load(tmp_path / "csv").split_rule
    assert rule.startswith("train, valid and test are exactly BARS")
    assert cards.load(tmp_path / "parquet").split_rule != rule

    # As many rows and positives as published, in another order.
    table = pq.read_table(raw / MADE_UP["train"].file)
    write_published(table.take(np.arange(300)[::-1]), folder / "train.csv")
    with pytest.raises(SystemExit, match=r"train\.csv has md5 .*expected .*fetch it"):
        frappe.main([f"--raw={raw}", f"--out={tmp_path / 'other'}"])


@pytest.mark.parametrize("name", ["valid", "test"])
def test_real_rows_have_the_published_md5(real_data, tmp_path, name):
    table = pq.read_table(real_data / "frappe_x1" / f"{name}.parquet")
    expected = frappe.PUBLISHED.splits[name]
    assert write_published(table, tmp_path / expected.file) == expected.md5
    rate = sum(table["label"].to_pylist()) / table.num_rows
    frappe._check(tmp_path / expected.file, table.num_rows, rate, expected)
    columns = ["label", *frappe.FIELDS]
    read = frappe.READERS[".csv"](tmp_path / expected.file)
    assert read.column_names == table.column_names == columns
    for column in columns:
        assert read[column].to_pylist() == table[column].to_pylist()
