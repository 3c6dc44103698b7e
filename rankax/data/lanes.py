"""Batches of one process: row groups are loaded by threads and handed out by lane.

`rankax.data.order` says which rows come when; here they are read, packed and joined.
Memory holds the row groups that the process's lanes are in, and a few that are loaded
ahead: at most L / P + threads + 1, however large the data set is, as long as a batch
takes few rows of each. A split of fewer than 2 · L row groups may be in memory whole.
"""

from collections import Counter, deque
from collections.abc import Callable, Container, Generator, Iterator, Sequence
import dataclasses
import sys
from typing import Any, NamedTuple

import grain
import numpy as np

from rankax.config.base import ConfigError
from rankax.data import blocks, order, packing
from rankax.data.blocks import Arrays
from rankax.data.errors import DataError
from rankax.data.order import Position
from rankax.data.schema import Schema
from rankax.data.source import SplitSource


def num_batches_per_epoch(source: SplitSource, *, batch_size: int, lanes: int) -> int:
    """Returns the batches of one epoch, the padded last one included."""
    longest_lane = -(-int(source.rows_per_group.sum()) // lanes)
    return -(-longest_lane // (batch_size // lanes))


def start_position(
    source: SplitSource, *, lanes: int, seed: int, shuffle: bool, time_window: int = 0
) -> Position:
    """Returns the position before the first batch."""
    # Readable on purpose: a refused position shows what differs.
    name = f"shuffle-{seed}" if shuffle else "in-order"
    if time_window:
        name += f"-window-{time_window}"
    return Position(
        epoch=0,
        rows_per_lane=0,
        lanes=lanes,
        fingerprint=f"{source.fingerprint}/{name}",
    )


def read_batches(
    source: SplitSource,
    schema: Schema,
    *,
    batch_size: int,
    lanes: int,
    seed: int,
    shuffle: bool,
    num_epochs: int | None,
    time_window: int = 0,
    position: Position | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 1,
    map_batch: Callable[[Arrays], Any] = lambda batch: batch,
    prefetch_batches: int = 2,
) -> Generator[tuple[Any, Position], None, None]:
    """Reads one process's share of every global batch, from any position on.

    The last batch of an epoch is filled up with weight 0 by repeating real examples
    of its lanes; it never runs into the next epoch. All processes get the same number
    of batches. The position comes with its batch, so reading ahead cannot falsify it.

    Args:
        source: the split.
        schema: fields and tasks in use.
        batch_size: B of the global batch, a multiple of `lanes`.
        lanes: L.
        seed: of the order; unused without `shuffle`.
        shuffle: deal row groups and permute their rows anew in every epoch. Rows mix
            over the L row groups that are in use at a time.
        num_epochs: stop after this many; None = never.
        time_window: width of the windows of the card's time column that come one after
            the other (`order.time_windows`), with shuffling inside each; 0 = none.
            What footers do not tell of the time column is read at the start.
        position: where to go on; None = at the start.
        shard_index: p, this process.
        shard_count: P, divides L.
        num_threads: threads that decode row groups.
        map_batch: applied to each batch in the reading thread, for example the
            routing of ids and the transfer to devices.
        prefetch_batches: batches made ahead of the consumer.

    Yields:
        `map_batch` of the packed arrays [B / P, ...], and the position after them.

    Raises:
        ConfigError: sizes that do not divide.
        DataError: fewer examples than lanes, or a position of another order. Errors
            of the data come while iterating, as `packing.encode` raised them.
    """
    _check_sizes(
        source,
        batch_size=batch_size,
        lanes=lanes,
        shard_index=shard_index,
        shard_count=shard_count,
    )
    start = start_position(
        source, lanes=lanes, seed=seed, shuffle=shuffle, time_window=time_window
    )
    if position is not None:
        _check_position(position, start, source)
        start = position
    windows = order.one_window(source.rows_per_group)
    if time_window:
        windows = order.time_windows(source, schema.card.time, time_window)
    share = lanes // shard_count
    reading = _Reading(
        source=source,
        windows=windows,
        schema=schema,
        seed=seed,
        shuffle=shuffle,
        lanes=lanes,
        own_lanes=range(shard_index * share, (shard_index + 1) * share),
        num_threads=num_threads,
        buffers=blocks.Buffers(),
    )
    batches: Any = _LaneDataset(reading, start, batch_size // lanes, num_epochs)
    batches = batches.map(lambda element: (map_batch(element[0]), element[1]))
    batches = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=prefetch_batches
    )
    return _closing(iter(batches))


def examples_at(
    source: SplitSource,
    position: Position,
    examples: Sequence[int],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
    time_column: str = "",
    time_window: int = 0,
) -> list[tuple[int, int]]:
    """Finds examples of a batch in the split: row group, and row within it as stored.

    Args:
        source: the split.
        position: of the batch: the one before it.
        examples: their places in the global batch, in [0, B).
        batch_size: B.
        seed: as `read_batches` had it.
        shuffle: likewise.
        time_column: the card's.
        time_window: likewise.
    """
    windows = order.one_window(source.rows_per_group)
    if time_window:
        windows = order.time_windows(source, time_column, time_window)
    epoch, rows_per_lane = position.epoch, batch_size // position.lanes
    plan = order.lane_plan(
        windows, lanes=position.lanes, seed=seed, epoch=epoch, shuffle=shuffle
    )
    found = []
    for example in examples:
        lane, row = divmod(example, rows_per_lane)
        row += position.rows_per_lane
        for unit in plan[lane]:
            # Padding goes round in the lane's last unit.
            if row < unit.num_rows or unit is plan[lane][-1]:
                break
            row -= unit.num_rows
        place = unit.start + row % unit.num_rows
        if shuffle:
            segments = _segments(windows, (unit.group,))[unit.group]
            place = int(_shuffled(segments, seed, epoch)[place])
        found.append((unit.group, place))
    return found


def row_numbers(
    source: SplitSource, *, batch_size: int, lanes: int
) -> Iterator[np.ndarray]:
    """Yields where the examples of each batch without shuffling stand in the split.

    Args:
        source: the split.
        batch_size: B.
        lanes: L; with one lane the numbers rise from 0.

    Yields:
        [B] int64, rows counted over all row groups of the split; -1 = padding.
    """
    first = np.cumsum(source.rows_per_group) - source.rows_per_group
    windows = order.one_window(source.rows_per_group)
    plan = order.lane_plan(windows, lanes=lanes, seed=0, epoch=0, shuffle=False)
    ends = [np.cumsum([unit.num_rows for unit in lane]) for lane in plan]
    shifts = [
        np.array([first[unit.group] + unit.stop for unit in lane]) - end
        for lane, end in zip(plan, ends, strict=True)
    ]
    rows_per_lane = batch_size // lanes
    for start in range(0, max(int(end[-1]) for end in ends), rows_per_lane):
        rows = np.arange(start, start + rows_per_lane)
        yield np.concatenate(
            [
                np.where(rows < end[-1], rows + shift[_unit(rows, end)], -1)
                for end, shift in zip(ends, shifts, strict=True)
            ]
        )


def _unit(rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the unit that each row of a lane is in; the last one for padding."""
    return np.minimum(np.searchsorted(ends, rows, side="right"), len(ends) - 1)


def _closing(iterator: Any) -> Generator[tuple[Any, Position], None, None]:
    """Yields all elements; leaving early stops the reading threads."""
    try:
        yield from iterator
    finally:
        iterator.close()


def _check_sizes(
    source: SplitSource,
    *,
    batch_size: int,
    lanes: int,
    shard_index: int,
    shard_count: int,
) -> None:
    if batch_size < 1 or batch_size % lanes:
        raise ConfigError(
            f"batch size {batch_size} is not a multiple of data.lanes = {lanes}; use "
            f"{max(batch_size // lanes, 1) * lanes} or other lanes"
        )
    if lanes % shard_count:
        raise ConfigError(
            f"data.lanes = {lanes} cannot be split over {shard_count} processes; use a "
            "number of lanes that the number of processes divides"
        )
    if not 0 <= shard_index < shard_count:
        raise ConfigError(f"shard {shard_index} is not one of {shard_count}")
    num_rows = int(source.rows_per_group.sum())
    if num_rows < lanes:
        raise DataError(
            f"{source.name} has {num_rows} examples, fewer than data.lanes = {lanes}; "
            f"set data.lanes to {num_rows} or less"
        )


def _check_position(position: Position, start: Position, source: SplitSource) -> None:
    if position.lanes != start.lanes:
        raise DataError(
            f"{source.name}: the position to go on from was saved with data.lanes = "
            f"{position.lanes}, the run has {start.lanes}; lanes are part of the order "
            f"of examples, set data.lanes = {position.lanes}"
        )
    if position.fingerprint != start.fingerprint:
        raise DataError(
            f"{source.name}: the position to go on from belongs to the order "
            f"{position.fingerprint!r}, the run has {start.fingerprint!r} (files / "
            "shuffling, seed, windows); restore the data set, data.shuffle, "
            "data.time_window and train.seed of that run, or start a new run"
        )
    longest_lane = -(-int(source.rows_per_group.sum()) // start.lanes)
    if position.rows_per_lane >= longest_lane:
        raise DataError(
            f"{source.name}: the position to go on from is row {position.rows_per_lane}"
            f" of lanes that have {longest_lane}; it is damaged, restore another "
            "checkpoint"
        )


# ---------------------------------------------------------------- one epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the batches depend on, apart from the position."""

    source: SplitSource
    windows: list[order.Window]
    schema: Schema
    seed: int
    shuffle: bool
    lanes: int
    own_lanes: range
    num_threads: int
    buffers: blocks.Buffers


class _Piece(NamedTuple):
    """Rows [start, stop) of a row group, in a lane from its row `first_row` on."""

    group: int
    start: int
    stop: int
    first_row: int
    end_row: int


class _Epoch:
    """The rest of one epoch from a row on: loads row groups, hands out lane rows."""

    def __init__(self, reading: _Reading, epoch: int, row: int):
        self._reading = reading
        self._epoch = epoch
        plan = order.lane_plan(
            reading.windows,
            lanes=reading.lanes,
            seed=reading.seed,
            epoch=epoch,
            shuffle=reading.shuffle,
        )
        self.num_rows = [sum(unit.num_rows for unit in units) for units in plan]
        self._pieces = {lane: _pieces(plan[lane], row) for lane in reading.own_lanes}
        self._blocks: dict[int, blocks.Block] = {}  # by row group, while in use
        self._used: list[int] = []  # row groups of pieces that are used up
        self._uses = Counter(p.group for own in self._pieces.values() for p in own)
        # Earliest need first: then the next group is always one that a lane waits for.
        # Each is decoded once, for all the lanes of this process that share it.
        need = sorted(
            (p.first_row, k, p) for k, own in self._pieces.items() for p in own
        )
        groups = list(dict.fromkeys(piece.group for *_, piece in need))
        self._num_waiting = len(groups)
        self._loaded_until = row  # of the lane that has the least
        self._shortest = min(self.num_rows[lane] for lane in reading.own_lanes)
        self._segments = _segments(reading.windows, self._uses.keys())
        options = grain.ReadOptions(
            num_threads=reading.num_threads,
            prefetch_buffer_size=reading.num_threads + 1,
        )
        self._loads = iter(
            grain.MapDataset.source(groups).map(self._load).to_iter_dataset(options)
        )

    @property
    def all_loaded(self) -> bool:
        return self._num_waiting == 0

    def start_loading(self) -> None:
        self._loads.start_prefetch()

    def close(self) -> None:
        self._loads.close()
        for block in self._blocks.values():
            self._reading.buffers.give_back(block)
        self._blocks.clear()

    def batch(self, row: int, rows: int) -> Arrays:
        """Returns `rows` rows of each own lane from `row` on, in lane order."""
        own = self._pieces.keys()
        while self._loaded_until < row + rows and self._num_waiting:
            group, block = next(self._loads)
            self._blocks[group] = block
            self._num_waiting -= 1
            self._loaded_until = min(self._first_missing(lane) for lane in own)
        batch = blocks.join([part for k in own for part in self._take(k, row, rows)])
        self._release_used()
        if row + rows > self._shortest:
            weight = batch["weight"].reshape(len(own), rows)
            for i, lane in enumerate(own):
                weight[i, max(self.num_rows[lane] - row, 0) :] = 0
        return batch

    def _load(self, group: int) -> tuple[int, blocks.Block]:
        """Reads and packs a row group, in a loader thread."""
        reading, rows = self._reading, None
        if reading.shuffle:
            rows = _shuffled(self._segments[group], reading.seed, self._epoch)
        table = reading.source.read(group)
        where = reading.source.where(group)
        block = packing.encode(
            table, reading.schema, where=where, order=rows, buffers=reading.buffers
        )
        return group, block

    def _first_missing(self, lane: int) -> int:
        """Returns the first row of a lane whose row group is not loaded."""
        missing = (p for p in self._pieces[lane] if p.group not in self._blocks)
        piece = next(missing, None)
        return sys.maxsize if piece is None else piece.first_row

    def _take(self, lane: int, row: int, rows: int) -> list[blocks.Part]:
        """Returns rows [row, row + rows) of a lane in parts; uses up pieces.

        Padding goes round in the lane's last piece, so it depends on the lane alone.
        """
        pieces, parts = self._pieces[lane], []
        while rows:
            piece = pieces[0]
            place = (row - piece.first_row) % (piece.stop - piece.start)
            start = piece.start + place
            stop = min(start + rows, piece.stop)
            parts.append(blocks.Part(self._blocks[piece.group], start, stop))
            row, rows = row + stop - start, rows - (stop - start)
            if len(pieces) > 1 and piece.end_row <= row:
                self._used.append(pieces.popleft().group)
        return parts

    def _release_used(self) -> None:
        """Lets go of row groups whose last piece is used, once nobody reads them."""
        for group in self._used:
            self._uses[group] -= 1
            if not self._uses[group]:
                self._reading.buffers.give_back(self._blocks.pop(group))
        self._used.clear()


def _pieces(units: list[order.Unit], row: int) -> deque[_Piece]:
    """Lists a lane's units from a row on, and its last one: padding repeats that."""
    pieces, end = deque(), 0
    for i, unit in enumerate(units):
        first_row, end = end, end + unit.num_rows
        if end > row or i == len(units) - 1:
            pieces.append(_Piece(*unit, first_row, end))
    return pieces


def _shuffled(segments: list[order.Unit], seed: int, epoch: int) -> np.ndarray:
    """Returns the order [n] of a row group's rows in an epoch."""
    rng = np.random.default_rng([seed, epoch, 1, segments[0].group])
    return order.shuffled_rows(segments, rng)


def _segments(
    windows: list[order.Window], groups: Container[int]
) -> dict[int, list[order.Unit]]:
    """Returns for each of some row groups its parts that are in different windows."""
    segments: dict[int, list[order.Unit]] = {}
    for window in windows:
        for unit in window:
            if unit.group in groups:
                segments.setdefault(unit.group, []).append(unit)
    return segments


# ---------------------------------------------------------------- all epochs, for Grain


class _LaneDataset(grain.IterDataset):
    """Elements (arrays of a batch, position after it)."""

    def __init__(
        self, reading: _Reading, start: Position, rows: int, num_epochs: int | None
    ):
        super().__init__()
        self._arguments = (reading, start, rows, num_epochs)

    def __iter__(self) -> "_LaneIterator":
        return _LaneIterator(*self._arguments)


class _LaneIterator(grain.DatasetIterator):
    """Goes through the epochs; the next one starts loading when one is all loaded."""

    def __init__(
        self, reading: _Reading, start: Position, rows: int, num_epochs: int | None
    ):
        super().__init__()
        self._reading = reading
        self._position = start
        self._rows = rows  # of each lane in a batch
        self._num_epochs = num_epochs
        self._epochs: dict[int, _Epoch] = {}  # the current one, perhaps the next

    def __next__(self) -> tuple[Arrays, Position]:
        self._assert_not_closed()
        number, row = self._position.epoch, self._position.rows_per_lane
        if self._is_over(number):
            raise StopIteration
        epoch = self._open(number, row)
        batch = epoch.batch(row, self._rows)
        if epoch.all_loaded and not self._is_over(number + 1):
            self._open(number + 1, 0).start_loading()
        row += self._rows
        if row >= max(epoch.num_rows):
            number, row = number + 1, 0
            self._epochs.pop(self._position.epoch).close()
        self._position = dataclasses.replace(
            self._position, epoch=number, rows_per_lane=row
        )
        return batch, self._position

    def get_state(self) -> dict[str, Any]:
        return self._position.to_dict()

    def set_state(self, state: dict[str, Any]) -> None:
        self._close_epochs()
        self._position = Position.from_dict(state)

    def close(self) -> None:
        super().close()
        self._close_epochs()

    def _is_over(self, epoch: int) -> bool:
        return self._num_epochs is not None and epoch >= self._num_epochs

    def _open(self, epoch: int, row: int) -> _Epoch:
        if epoch not in self._epochs:
            self._epochs[epoch] = _Epoch(self._reading, epoch, row)
        return self._epochs[epoch]

    def _close_epochs(self) -> None:
        for epoch in self._epochs.values():
            epoch.close()
        self._epochs.clear()
