import gzip
import pathlib
import re

import numpy as np
import pytest

from data_pipelines.engine import text
from data_pipelines.engine.text import Layout, TextFile
from rankax.data.card import DataError

LAYOUT = Layout({"y": "label", "n": "int", "c": "hex", "rest": "any"})


def make_file(path: pathlib.Path, layout=LAYOUT, on_bad_line="error") -> TextFile:
    return TextFile(path, layout, on_bad_line=on_bad_line)


def some_lines(num: int) -> list[str]:
    """Lines of very unequal lengths."""
    rng = np.random.default_rng(0)
    return [
        f"{i % 2}\t{'' if i % 5 == 0 else i - 7}\t"
        f"{'' if i % 7 == 0 else format(rng.integers(2**32), '08x')}\t"
        f"{'x' * rng.integers(1, 4) ** 4}"
        for i in range(num)
    ]


def as_loop(lines: list[str]) -> list[dict]:
    rows = []
    for line in lines:
        y, n, c, _ = line.split("\t")
        row = {"y": int(y), "n": int(n) if n else None}
        rows.append(row | {"c": int(c, 16) if c else None})
    return rows


@pytest.mark.parametrize("part_bytes", [1, 7, 100, 101, 10_000])
@pytest.mark.parametrize("block_bytes", [1, 90, 10_000])
@pytest.mark.parametrize("form", ["", "no last end", "header", "windows", ".gz"])
def test_parts_hold_every_line_once(
    tmp_path, monkeypatch, part_bytes, block_bytes, form
):
    lines, layout, end = some_lines(40), LAYOUT, "\n"
    content = end.join(lines) + ("" if form == "no last end" else end)
    if form == "header":
        layout = Layout(LAYOUT.kinds, has_header=True)
        content = "\t".join(LAYOUT.kinds) + "\n" + content
    path = tmp_path / "day_0"
    data = content.replace("\n", "\r\n" if form == "windows" else "\n").encode()
    if form == ".gz":
        path, data = tmp_path / "day_0.gz", gzip.compress(data)
    path.write_bytes(data)
    monkeypatch.setattr(text, "PART_BYTES", part_bytes)
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    file = make_file(path, layout)
    assert file.num_parts == (1 if form == ".gz" else -(-len(data) // part_bytes))
    rows = []
    for part in range(file.num_parts):
        before = len(rows)
        for block in file.blocks(part):
            np.testing.assert_array_equal(
                block.lines, len(rows) - before + np.arange(block.rows.num_rows)
            )
            rows += block.rows.to_pylist()
        assert file.num_lines(part) == len(rows) - before
    assert rows == as_loop(lines)


def test_some_columns_can_be_read_alone(tmp_path):
    (tmp_path / "a").write_text("\n".join(some_lines(9)))
    (block,) = make_file(tmp_path / "a").blocks(0, ["n"])
    assert block.rows.to_pylist() == [{"n": row["n"]} for row in as_loop(some_lines(9))]


BROKEN = {
    "1\t2\t0000000a": "3 fields, expected 4",
    "1\t2\t0000000a\tx\t": "5 fields, expected 4",
    "": "1 fields, expected 4",
    "1\t2.0\t0000000a\tx": "n is '2.0', expected an integer",
    "1\t2\t000000a\tx": "c is '000000a', expected a hex code of 8 digits",
    "1\t2\t0000000g\tx": "c is '0000000g', expected a hex code of 8 digits",
    "\t2\t0000000a\tx": "y is '', expected 0 or 1",
    "2\t2\t0000000a\tx": "y is '2', expected 0 or 1",
    "1\t9999999999999999999\t0000000a\tx": "n is '9999999999999999999', expected an",
}


@pytest.mark.parametrize(("line", "message"), BROKEN.items())
@pytest.mark.parametrize("name", ["a", "a.gz"])
def test_a_broken_line_is_told_with_its_number(
    tmp_path, monkeypatch, line, message, name
):
    lines = some_lines(40)
    lines[33] = line
    content = ("\n".join(lines) + "\n").encode()
    is_packed = name.endswith(".gz")
    (tmp_path / name).write_bytes(gzip.compress(content) if is_packed else content)
    monkeypatch.setattr(text, "PART_BYTES", 300)
    monkeypatch.setattr(text, "BLOCK_BYTES", 120)
    file = make_file(tmp_path / name)
    expected = f"{name}, line 34: {message}"
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        for part in range(file.num_parts):
            list(file.blocks(part))
    assert f": {line!r}; correct the file, or pass --on_bad_line" in str(error.value)


def test_broken_lines_are_left_out_and_keep_the_numbers_of_the_others(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(text, "BLOCK_BYTES", 500)
    good, lines = some_lines(60), []
    for i, line in enumerate(good):
        lines += [line] if i % 4 else [list(BROKEN)[i // 4 % len(BROKEN)], line]
    (tmp_path / "a").write_text("\n".join(lines) + "\n")
    file = make_file(tmp_path / "a", on_bad_line="skip")
    blocks = list(file.blocks(0))
    rows = [row for block in blocks for row in block.rows.to_pylist()]
    assert rows == as_loop(good)
    assert sum(block.num_bad for block in blocks) == 15
    assert blocks[0].first_bad == "line 1: 3 fields, expected 4: '1\\t2\\t0000000a'"
    places = np.concatenate([block.lines for block in blocks])
    assert [lines[place] for place in places] == good
    assert file.num_lines(0) == 75


def test_spaces_around_numbers_are_no_matter_of_the_neighbours(tmp_path):
    lines = some_lines(9)
    lines[4] = " 1 \t -7 \t0000000a\tx"
    (tmp_path / "a").write_text("\n".join(lines))
    (alone,) = make_file(tmp_path / "a").blocks(0)
    (tmp_path / "a").write_text("\n".join([*lines, "broken"]))
    (block,) = make_file(tmp_path / "a", on_bad_line="skip").blocks(0)
    assert alone.rows.to_pylist()[4] == {"y": 1, "n": -7, "c": 10}
    assert block.rows.equals(alone.rows) and block.num_bad == 1


@pytest.mark.parametrize("number", [2**63 - 1, -(2**63), "0" * 20 + "7"])
def test_long_integers_are_no_matter_of_the_neighbours(tmp_path, number):
    path = tmp_path / "a"
    path.write_text(f"0\t{number}\t\tx\n")
    (alone,) = make_file(path).blocks(0)
    path.write_text(f"0\t{number}\t\tx\nbroken\n")
    (block,) = make_file(path, on_bad_line="skip").blocks(0)
    assert block.rows["n"].to_pylist() == alone.rows["n"].to_pylist() == [int(number)]
    path.write_text(f"0\t{number}\t\tx\n0\t{2**63}\t\tx\n")
    message = "line 2: n is '9223372036854775808', expected an integer of 64 bits"
    with pytest.raises(DataError, match=message):
        list(make_file(path).blocks(0))


def test_a_carriage_return_within_a_line_is_told(tmp_path):
    (tmp_path / "a").write_bytes(b"0\t1\t\tx\n0\t1\t\tx\r0\t1\t\tx\n")
    with pytest.raises(DataError, match="a carriage return stands within one of the"):
        list(make_file(tmp_path / "a").blocks(0))


def test_long_broken_lines_are_cut(tmp_path):
    (tmp_path / "a").write_text("x" * 5000 + "\n")
    with pytest.raises(DataError, match="1 fields") as error:
        list(make_file(tmp_path / "a").blocks(0))
    assert f"{'x' * 200!r}" in str(error.value) and "x" * 201 not in str(error.value)


def test_empty_and_truncated_files(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    assert list(make_file(tmp_path / "a").blocks(0)) == []
    assert make_file(tmp_path / "a").num_lines(0) == 0
    packed = gzip.compress("\n".join(some_lines(4000)).encode())
    (tmp_path / "a.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"a\.gz: "):
        list(make_file(tmp_path / "a.gz").blocks(0))
