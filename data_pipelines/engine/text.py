"""Big files of text, one example a line: byte ranges, plain or packed, broken lines.

A plain file is cut into parts of `PART_BYTES`; a line belongs to the part in which its
first byte lies. A file that ends in .gz is one part, unpacked in a stream. Whole blocks
are parsed by Arrow, which refuses a block in which one line is broken; only such blocks
are then looked at line by line.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import io
import json
import mmap
import pathlib
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from rankax.data.card import DataError

PART_BYTES = 256 << 20
BLOCK_BYTES = 32 << 20
COUNT_BYTES = 1 << 20  # stays in the cache
SHOWN = 200  # characters of a broken line

# What a cell of each kind may hold, and what a message calls it. Arrow takes spaces
# around numbers, so a line with them must not be broken where another one is.
PATTERNS = {
    "label": (rb" *[01] *", "0 or 1"),
    "int": (rb"(?: *-?0*[0-9]{1,19} *)?", "an integer of 64 bits"),
    "hour": (
        rb" *[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])"
        rb"(?:[01][0-9]|2[0-3]) *",
        "an hour YYMMDDHH",
    ),
    "hex": (rb"(?:[0-9a-fA-F]{8})?", "a hex code of 8 digits"),
    "any": (rb"[^%s]*", "anything"),
}
_LONG = re.compile(rb"[0-9]{19}")  # may be too much for 64 bits
TYPES = {
    "label": pa.int64(),
    "int": pa.int64(),
    "hour": pa.int64(),
    "hex": pa.binary(8),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The fields of a line.

    Attributes:
        kinds: name -> "label", "int", "hour" (an integer), "hex" (becomes one) or
            "any" (is not read), in the order of the fields. Empty integers and codes
            are null.
        separator: between the fields.
        has_header: the first line of a file names the fields.
    """

    kinds: dict[str, str]
    separator: str = "\t"
    has_header: bool = False

    @functools.cached_property
    def cells(self) -> list[bytes]:
        """Patterns of the cells."""
        separator = re.escape(self.separator.encode())
        return [
            PATTERNS[kind][0].replace(b"%s", separator) for kind in self.kinds.values()
        ]

    @functools.cached_property
    def line(self) -> re.Pattern[bytes]:
        """Pattern of a whole line."""
        return re.compile(re.escape(self.separator.encode()).join(self.cells))


class Block(NamedTuple):
    """Some lines of a file.

    Attributes:
        rows: fields of the lines that are not broken.
        lines: [rows] number of each row's line, the part's first line is 0.
        num_bad: how many lines were left out.
        first_bad: what the first of them is, with its line; or "".
    """

    rows: pa.Table
    lines: np.ndarray
    num_bad: int
    first_bad: str


class TextFile:
    """One file of lines, in parts."""

    def __init__(self, path: pathlib.Path, layout: Layout, *, on_bad_line: str):
        """Looks at the size, and at the header if there is to be one.

        Raises:
            DataError: a file that should have a header and has none, or another one.
        """
        self.path, self.layout, self.on_bad_line = path, layout, on_bad_line
        # Kept, so that the parts are the same wherever they are read.
        self._part_bytes, self._block_bytes = PART_BYTES, BLOCK_BYTES
        self.size = path.stat().st_size
        self.is_packed = path.suffix == ".gz"
        self.num_parts = 1 if self.is_packed else max(1, -(-self.size // PART_BYTES))
        if layout.has_header:
            self._check_header()

    def blocks(self, part: int, columns: Sequence[str] = ()) -> Iterator[Block]:
        """Yields the lines of a part.

        Args:
            part: 0 .. num_parts - 1.
            columns: fields to read; () = all but those of kind "any".

        Raises:
            DataError: the file cannot be read; a line is broken, unless skipped.
        """
        start = 0
        for data in self._pieces(part):
            block = self._parse(part, data, start, columns)
            start += len(block.lines) + block.num_bad
            yield block

    def num_lines(self, part: int) -> int:
        """Counts the lines of a part, broken ones included."""
        begin, end = self._range(part)
        # A line starts at 0, and after every end of a line but the file's last byte.
        num_lines = int(begin == 0 and not self.layout.has_header)
        if not self.is_packed:
            with self.path.open("rb", buffering=0) as file:
                file.seek(max(begin - 1, 0))
                num_lines += _count_ends(file, end - 1 - file.tell())
            return num_lines if self.size else 0
        last = b"\n"
        with pa.input_stream(str(self.path), compression="gzip") as file:
            while piece := file.read(COUNT_BYTES):
                num_lines, last = num_lines + piece.count(b"\n"), piece[-1:]
        return max(num_lines - (last == b"\n"), 0)

    def _parse(
        self, part: int, data: memoryview | bytes, start: int, columns: Sequence[str]
    ) -> Block:
        try:
            rows = _parse(data, self.layout, columns)
            if rows.num_rows != _num_lines(data):
                raise DataError(
                    f"{self.path}: a carriage return stands within one of the lines "
                    f"from {self._line_number(part, start):,} on; end every line with "
                    "a line feed, and take others out"
                )
            return Block(rows, np.arange(start, start + rows.num_rows), 0, "")
        except pa.ArrowInvalid as error:
            lines = bytes(data).splitlines()
            is_bad = np.array([_is_broken(line, self.layout) for line in lines])
            if not is_bad.any():
                raise DataError(f"{self.path}: {error}") from error
        first = int(np.argmax(is_bad))
        bad = lines[first]
        what = f"line {self._line_number(part, start + first):,}: "
        what += _problem(bad, self.layout) or "not understood"
        what += f": {bad[:SHOWN].decode(errors='replace')!r}"
        if self.on_bad_line == "error":
            raise DataError(
                f"{self.path}, {what}; correct the file, or pass --on_bad_line=skip to "
                "leave such lines out"
            )
        good = b"\n".join(lines[i] for i in np.flatnonzero(~is_bad))
        rows = _parse(good, self.layout, columns)
        place = start + np.flatnonzero(~is_bad)
        return Block(rows, place, int(is_bad.sum()), what)

    def _pieces(self, part: int) -> Iterator[memoryview | bytes]:
        """Yields bytes of the part, whole lines only."""
        try:
            has_header, size = self.layout.has_header, self._block_bytes
            if self.is_packed:
                yield from _unpacked(self.path, size, has_header=has_header)
            elif self.size:
                place = self._range(part)
                yield from _mapped(self.path, place, size, has_header=has_header)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: {error}") from error

    def _range(self, part: int) -> tuple[int, int]:
        begin = part * self._part_bytes
        return begin, min(begin + self._part_bytes, self.size)

    def _line_number(self, part: int, line: int) -> int:
        before = sum(self.num_lines(i) for i in range(part))
        return before + line + 1 + self.layout.has_header

    def _check_header(self) -> None:
        try:
            with pa.input_stream(str(self.path)) as stream:  # unpacks .gz by itself
                found = stream.read(1 << 16).split(b"\n", 1)[0].rstrip(b"\r")
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: {error}") from error
        names = found.decode(errors="replace").split(self.layout.separator)
        if names != list(self.layout.kinds):
            raise DataError(
                f"{self.path}: the first line names {names[:30]}, expected "
                f"{list(self.layout.kinds)}"
            )


def _count_ends(file: io.RawIOBase, size: int) -> int:
    buffer, total = bytearray(COUNT_BYTES), 0
    while size > 0 and (length := file.readinto(buffer)):
        total += buffer.count(b"\n", 0, min(length, size))
        size -= length
    return total


def stamp(paths: Sequence[pathlib.Path], *flags: object) -> str:
    """Returns a text that changes with the files or the flags, for `Rows.inputs`."""
    files = [
        (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        for path in paths
        for stat in [path.stat()]
    ]
    return json.dumps([files, *flags])


def _pairs() -> np.ndarray:
    """Returns the value of every two hex digits, read as one number; 256 = none."""
    digits = np.full(256, 256, np.uint16)
    digits[list(b"0123456789abcdef")] = np.arange(16)
    digits[list(b"ABCDEF")] = np.arange(10, 16)
    second, first = np.meshgrid(digits, digits, indexing="ij")
    return np.minimum(16 * first + second, 256) + 256 * (second > 15)


_PAIRS = _pairs().ravel()


def from_hex(codes: pa.Array) -> pa.Array:
    """Returns the numbers int64 of hex codes of 8 digits; null stays null.

    Raises:
        pa.ArrowInvalid: a code that is none.
    """
    full = pc.fill_null(codes, b"0" * 8) if codes.null_count else codes
    text = np.frombuffer(full.buffers()[1], "<u2")
    values = _PAIRS[text[4 * full.offset :][: 4 * len(full)]]
    if len(values) and values.max() > 255:
        found = full[int(np.argmax(values > 255)) // 4].as_py()
        raise pa.ArrowInvalid(f"{found!r} is no hex code of 8 digits")
    numbers = values.astype(np.uint8).view(">u4").astype(np.int64)
    is_null = codes.is_null().to_numpy(zero_copy_only=False)
    return pa.array(numbers, mask=is_null if codes.null_count else None)


def _parse(
    data: memoryview | bytes, layout: Layout, columns: Sequence[str]
) -> pa.Table:
    kinds = {
        name: kind
        for name, kind in layout.kinds.items()
        if (name in columns if columns else kind != "any")
    }
    if not len(data):
        empty = {name: pa.array([], pa.int64()) for name in kinds}
        return pa.table(empty)
    table = pyarrow.csv.read_csv(
        pa.BufferReader(data),
        pyarrow.csv.ReadOptions(column_names=list(layout.kinds), use_threads=False),
        # An empty line is a broken one, or lines could not be numbered.
        pyarrow.csv.ParseOptions(
            delimiter=layout.separator, quote_char=False, ignore_empty_lines=False
        ),
        pyarrow.csv.ConvertOptions(
            include_columns=list(kinds),
            column_types={name: TYPES[kind] for name, kind in kinds.items()},
            null_values=[""],
        ),
    ).combine_chunks()
    for place, (name, kind) in enumerate(kinds.items()):
        if kind == "hex":
            codes = table.column(place).chunk(0)
            table = table.set_column(place, name, from_hex(codes))
        elif kind in ("label", "hour"):
            values = table.column(place)
            is_right = _is_hour if kind == "hour" else _is_label
            if values.null_count or not is_right(values.to_numpy()).all():
                raise pa.ArrowInvalid(f"{name} must be {PATTERNS[kind][1]}")
    return table


def _is_label(values: np.ndarray) -> np.ndarray:
    return (values == 0) | (values == 1)


def _is_hour(values: np.ndarray) -> np.ndarray:
    month, day, hour = values // 10_000 % 100, values // 100 % 100, values % 100
    is_right = (values >= 0) & (values < 10**8) & (month >= 1) & (month <= 12)
    return is_right & (day >= 1) & (day <= 31) & (hour < 24)


def _mapped(
    path: pathlib.Path, place: tuple[int, int], size: int, *, has_header: bool
) -> Iterator[memoryview]:
    """Yields the lines of which the first byte lies in place[0] .. place[1] - 1."""
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def line_from(place: int) -> int:
        """Returns where the first line starts that does not start before a place."""
        found = data.find(b"\n", place - 1)
        return found + 1 if found >= 0 else len(data)

    begin, end = place
    begin = line_from(begin) if begin else line_from(1) if has_header else 0
    end = line_from(end)
    while begin < end:
        stop = data.rfind(b"\n", begin, min(begin + size, end)) + 1
        if stop == 0 or begin + size >= end:  # one long line, or the last ones
            stop = min(line_from(begin + size), end)
        yield memoryview(data)[begin:stop]
        begin = stop


def _unpacked(path: pathlib.Path, size: int, *, has_header: bool) -> Iterator[bytes]:
    rest = b""
    with pa.input_stream(str(path), compression="gzip") as file:
        while data := file.read(size):
            data = rest + data
            if has_header and b"\n" in data:
                data, has_header = data[data.find(b"\n") + 1 :], False
            whole = 0 if has_header else data.rfind(b"\n") + 1
            if whole:
                yield data[:whole]
            rest = data[whole:]
    if rest and not has_header:
        yield rest


def _num_lines(data: memoryview | bytes) -> int:
    ends = np.frombuffer(data, np.uint8) == ord("\n")
    return int(np.count_nonzero(ends)) + bool(len(ends) and not ends[-1])


def _is_broken(line: bytes, layout: Layout) -> bool:
    if not layout.line.fullmatch(line):
        return True
    return bool(_LONG.search(line) and _problem(line, layout))


def _problem(line: bytes, layout: Layout) -> str:
    """Says what is wrong with a line; "" if nothing is found."""
    cells = line.split(layout.separator.encode())
    if len(cells) != len(layout.kinds):
        return f"{len(cells)} fields, expected {len(layout.kinds)}"
    for cell, pattern, (name, kind) in zip(
        cells, layout.cells, layout.kinds.items(), strict=True
    ):
        is_int = kind == "int" and cell.strip()
        if not re.fullmatch(pattern, cell) or (is_int and not _is_int64(cell)):
            text = cell[:20].decode(errors="replace")
            return f"{name} is {text!r}, expected {PATTERNS[kind][1]}"
    return ""


def _is_int64(cell: bytes) -> bool:
    return -(2**63) <= int(cell) < 2**63
