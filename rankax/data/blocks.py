"""Examples between the row group and the batch.

A row group becomes one `Block`: a line of 4-byte words for every narrow column, in the
order in which examples are wanted, and the values of its lists as they were stored. A
batch takes some rows of several blocks and makes the arrays of `rankax.data.schema`.

Columns are laid side by side and lists are padded only there, a batch at a time: in the
cache of a core that costs half of what it does on whole row groups, and a block with
histories takes no more memory than its row group.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import threading
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]

_NONE = np.empty(0, np.uint32)
_SPARE_WORDS = 16  # lines of 2^k bytes would all compete for one set of the cache


class Array(NamedTuple):
    """The form of an array of a batch: [B, width], or [B] if width is None."""

    dtype: type
    width: int | None


class Line(NamedTuple):
    """A narrow column [n] of an array, of the array's type."""

    array: str
    place: int
    values: np.ndarray


class Wide(NamedTuple):
    """Adjacent columns [n, L] of an array, of the array's type, L at a time."""

    array: str
    place: int
    values: np.ndarray


class Lists(NamedTuple):
    """A list column: columns [place, place + L) of an array.

    Attributes:
        array: name of the array.
        place: first column there.
        bag: its line in `Block.starts` and `Block.lengths`.
        width: L.
        values: [v] of 4 bytes each, all lists one after the other.
        is_padded_with_ones: what follows the last value of a list has all bits set,
            which is -1, or none.
    """

    array: str
    place: int
    bag: int
    width: int
    values: np.ndarray
    is_padded_with_ones: bool


class _Span(NamedTuple):
    """Lines that are adjacent columns of one array, counted in words."""

    array: str
    place: int
    lines: slice

    @property
    def end(self) -> int:
        return self.place + self.lines.stop - self.lines.start


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """n examples that batches can be made of.

    Attributes:
        num_rows: n.
        form: name -> form of every array of a batch but "lengths".
        words: [W, n] uint32, the lines; 8-byte values take two.
        spans: where the lines belong.
        wide: the columns that hold several values per example, in the order wanted.
        lists: the list columns, without their values.
        windows: for each of them [v + 1], the L values from each place on.
        starts: [M, n] int64, where the kept part of each list begins in its values.
        lengths: [M, n] int32, the number of kept values.
        memory: what holds words and windows, and `Buffers` may get back.
    """

    num_rows: int
    form: Mapping[str, Array]
    words: np.ndarray
    spans: tuple[_Span, ...]
    wide: tuple[Wide, ...]
    lists: tuple[Lists, ...]
    windows: tuple[np.ndarray, ...]
    starts: np.ndarray
    lengths: np.ndarray
    memory: tuple[np.ndarray, ...]


class Buffers:
    """Memory of blocks that are used up, for the next ones; any thread may call it.

    Memory fresh from the system comes page by page and zeroed, which costs about as
    much as packing.
    """

    def __init__(self) -> None:
        """Starts without any."""
        self._free: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, num_words: int) -> np.ndarray:
        """Returns at least that many words uint32 of any content.

        A little more, as the lists of the next row group may be a little longer.
        """
        with self._lock:
            for i, buffer in enumerate(self._free):
                if num_words <= len(buffer) <= 2 * num_words:
                    return self._free.pop(i)
            if self._free:  # those of other sizes would add up
                self._free.pop(0)
        return np.empty(num_words + num_words // 32, np.uint32)

    def give_back(self, block: Block) -> None:
        """Takes the memory of a block, whose content is lost with the next `take`."""
        with self._lock:
            self._free.extend(block.memory)


class Part(NamedTuple):
    """Rows [start, stop) of a block."""

    block: Block
    start: int
    stop: int


def make(
    num_rows: int,
    *,
    form: Mapping[str, Array],
    lines: Sequence[Line],
    wide: Sequence[Wide],
    lists: Sequence[Lists],
    bags: Sequence[tuple[np.ndarray, np.ndarray]],
    order: np.ndarray | None = None,
    buffers: Buffers | None = None,
) -> Block:
    """Stores the columns of a row group.

    Args:
        num_rows: n.
        form: see `Block`.
        lines: the narrow columns; those of one array follow each other.
        wide: the columns of several values per example.
        lists: the list columns.
        bags: for each bag the start [n] int64 and the length [n] int32 of every list.
        order: [n]; row i of the block is row order[i] of the columns; None = as given.
        buffers: where the memory comes from.
    """
    num_words = sum(line.values.dtype.itemsize // 4 for line in lines)
    buffers = buffers or Buffers()
    memory = [buffers.take(num_words * num_rows)]
    words = memory[0][: num_words * num_rows].reshape(num_words, num_rows)
    spans: list[_Span] = []
    at = 0
    for name, place, values in lines:
        size = values.dtype.itemsize // 4
        if size == 1:
            _put(words[at].view(values.dtype), values, order)
        else:
            halves = np.ascontiguousarray(values).view(np.uint32).reshape(-1, size)
            for i in range(size):
                _put(words[at + i], halves[:, i], order)
        last = spans[-1] if spans else None
        if last and (last.array, last.end) == (name, place * size):
            spans[-1] = last._replace(lines=slice(last.lines.start, at + size))
        else:
            spans.append(_Span(name, place * size, slice(at, at + size)))
        at += size
    starts = np.empty((len(bags), num_rows), np.int64)
    lengths = np.empty((len(bags), num_rows), np.int32)
    for bag, (start, length) in enumerate(bags):
        _put(starts[bag], start, order)
        _put(lengths[bag], length, order)
    if order is not None:
        wide = [w._replace(values=w.values.take(order, axis=0)) for w in wide]
    windows = []
    for column in lists:
        memory.append(buffers.take(len(column.values) + column.width))
        windows.append(_windows(column.values, column.width, memory[-1]))
    return Block(
        num_rows=num_rows,
        form=form,
        words=words,
        spans=tuple(spans),
        wide=tuple(wide),
        lists=tuple(column._replace(values=_NONE) for column in lists),
        windows=tuple(windows),
        starts=starts,
        lengths=lengths,
        memory=tuple(memory),
    )


def join(parts: Sequence[Part]) -> Arrays:
    """Makes the arrays of a batch of parts of blocks, which have one form."""
    first = parts[0].block
    stops = np.cumsum([stop - start for _, start, stop in parts]).tolist()
    n = stops[-1]
    words = np.empty((len(first.words), n + _SPARE_WORDS), np.uint32)[:, :n]
    np.concatenate([b.words[:, low:high] for b, low, high in parts], axis=1, out=words)
    lengths = np.empty((0, n), np.int32)
    if len(first.lengths):
        own = [block.lengths[:, low:high] for block, low, high in parts]
        lengths = np.concatenate(own, axis=1)
    arrays = {
        name: np.empty((n, 1 if width is None else width), dtype)
        for name, (dtype, width) in first.form.items()
    }
    for span in first.spans:
        array = arrays[span.array].view(np.uint32)
        array[:, span.place : span.end] = words[span.lines].T
    for i, (name, place, values) in enumerate(first.wide):
        array = arrays[name][:, place : place + values.shape[1]]
        np.concatenate(
            [b.wide[i].values[low:high] for b, low, high in parts], out=array
        )
    for i, column in enumerate(first.lists):
        array = arrays[column.array].view(np.uint32)
        array = array[:, column.place : column.place + column.width]
        is_padding = _is_padding(column.width)
        if column.is_padded_with_ones:
            combine, bits = np.bitwise_or, is_padding
        else:
            combine, bits = np.bitwise_and, ~is_padding
        for (block, low, high), stop in zip(parts, stops, strict=True):
            found = block.windows[i][block.starts[column.bag, low:high]]
            words = found.view(np.uint32).reshape(-1, column.width)
            length = block.lengths[column.bag, low:high]
            rows = slice(stop - (high - low), stop)
            combine(words, bits.take(length, axis=0), out=array[rows])
    for name, (_, width) in first.form.items():
        if width is None:
            arrays[name] = arrays[name][:, 0]
    arrays["lengths"] = np.ascontiguousarray(lengths.T)
    return arrays


def _windows(values: np.ndarray, width: int, memory: np.ndarray) -> np.ndarray:
    """Returns [v + 1], the `width` values from each place on, as one item each.

    Items of their whole size are copied at once, twice as fast as one by one. What
    follows the last value is of no account, but must be there.
    """
    memory[: len(values)].view(values.dtype)[:] = values
    item = np.dtype((np.void, 4 * width))
    return np.ndarray(len(values) + 1, item, buffer=memory, strides=4)


@functools.cache
def _is_padding(width: int) -> np.ndarray:
    """Returns by length [L + 1, L] uint32, all bits set from that place on."""
    is_padding = np.arange(width) >= np.arange(width + 1)[:, None]
    return np.where(is_padding, np.uint32(2**32 - 1), np.uint32(0))


def _put(out: np.ndarray, values: np.ndarray, order: np.ndarray | None) -> None:
    if order is None:
        out[:] = values
    else:  # "clip" saves a check of each index, and a permutation needs none
        np.take(values, order, out=out, mode="clip")
