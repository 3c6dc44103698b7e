"""The order of examples: fixed virtual lanes, and an exact position in them.

A split's row groups are dealt to L lanes by a pure function of (row counts, seed,
epoch, L). A global batch of B examples is the next B / L rows of every lane, in lane
order. L belongs to the data order and not to the machine: P processes read L / P
adjacent lanes each, so their batches side by side are the one-process batch, for any
P that divides L and any number of threads.

Hence the position is a few numbers, the same on every process: the epoch, and how
many rows of each lane are used up.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
import dataclasses
import heapq
from typing import Any, NamedTuple

import grain
import numpy as np

from rankax.config.base import ConfigError
from rankax.data import packing
from rankax.data.card import DataError
from rankax.data.schema import Schema
from rankax.data.source import SplitSource

FORMAT = 1

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place between two batches; JSON values only.

    Attributes:
        epoch: epochs completed.
        rows_per_lane: rows of every lane used up in this epoch. Counted in rows and
            not in batches, so that another batch size can go on from here.
        lanes: L.
        fingerprint: of the files, the seed and the shuffling.
        format: version of this record.
    """

    epoch: int
    rows_per_lane: int
    lanes: int
    fingerprint: str
    format: int = FORMAT

    def to_dict(self) -> dict[str, int | str]:
        """Returns the record as a checkpoint keeps it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Position":
        """Reads a record of `to_dict`.

        Raises:
            DataError: other keys, other types, negative numbers, another format.
        """
        expected = {field.name: field.type for field in dataclasses.fields(cls)}
        wrong = [
            name
            for name in expected.keys() | tree.keys()
            if type(tree.get(name)) is not expected.get(name)
            or (expected[name] is int and tree[name] < 0)
        ]
        if wrong or tree["format"] != FORMAT:
            raise DataError(
                f"input position {dict(tree)!r:.200} cannot be used: expected format "
                f"{FORMAT} with exactly the keys {sorted(expected)}; it is damaged or "
                "of another version, restore another checkpoint"
            )
        return cls(**tree)


class Unit(NamedTuple):
    """Rows [start, stop) of a row group, after its shuffling."""

    group: int
    start: int
    stop: int


def lane_plan(
    rows_per_group: Sequence[int] | np.ndarray,
    *,
    lanes: int,
    seed: int,
    epoch: int,
    shuffle: bool,
) -> list[list[Unit]]:
    """Deals row groups to lanes: every row once, lanes equal to within one row.

    Each group goes to the lane that has the fewest rows so far. Where it would exceed
    the lane's share the rest goes on to the next lane, which happens only near the
    ends of the lanes.

    Returns:
        Units of each lane in order.
    """
    order = np.arange(len(rows_per_group))
    if shuffle:
        order = np.random.default_rng([seed, epoch, 0]).permutation(order)
    num_rows = int(np.sum(rows_per_group))
    share = [num_rows // lanes + (lane < num_rows % lanes) for lane in range(lanes)]
    plan: list[list[Unit]] = [[] for _ in range(lanes)]
    fewest = [(0, lane) for lane in range(lanes) if share[lane]]  # is a heap already
    for group in order.tolist():
        start, rows = 0, int(rows_per_group[group])
        while start < rows:
            have, lane = heapq.heappop(fewest)
            stop = min(rows, start + share[lane] - have)
            plan[lane].append(Unit(group, start, stop))
            have += stop - start
            start = stop
            if have < share[lane]:
                heapq.heappush(fewest, (have, lane))
    return plan


def num_batches_per_epoch(source: SplitSource, *, batch_size: int, lanes: int) -> int:
    """Returns the batches of one epoch, the padded last one included."""
    longest_lane = -(-int(source.rows_per_group.sum()) // lanes)
    return -(-longest_lane // (batch_size // lanes))


def start_position(
    source: SplitSource, *, lanes: int, seed: int, shuffle: bool
) -> Position:
    """Returns the position before the first batch."""
    # Readable on purpose: a refused position shows what differs.
    order = f"shuffle-{seed}" if shuffle else "in-order"
    return Position(
        epoch=0,
        rows_per_lane=0,
        lanes=lanes,
        fingerprint=f"{source.fingerprint}/{order}",
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
            of the data come while iterating, as `packing.pack` raised them.
    """
    _check_sizes(
        source,
        batch_size=batch_size,
        lanes=lanes,
        shard_index=shard_index,
        shard_count=shard_count,
    )
    start = start_position(source, lanes=lanes, seed=seed, shuffle=shuffle)
    if position is not None:
        _check_position(position, start, source)
        start = position
    share = lanes // shard_count
    order = _Order(
        source=source,
        schema=schema,
        seed=seed,
        shuffle=shuffle,
        lanes=lanes,
        own_lanes=range(shard_index * share, (shard_index + 1) * share),
        num_threads=num_threads,
    )
    batches: Any = _LaneDataset(order, start, batch_size // lanes, num_epochs)
    batches = batches.map(lambda element: (map_batch(element[0]), element[1]))
    batches = grain.experimental.ThreadPrefetchIterDataset(
        batches, prefetch_buffer_size=prefetch_batches
    )
    return _closing(iter(batches))


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
            "shuffling and seed); restore the data set, data.shuffle and train.seed of "
            "that run, or start a new run"
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
class _Order:
    """What the batches depend on, apart from the position."""

    source: SplitSource
    schema: Schema
    seed: int
    shuffle: bool
    lanes: int
    own_lanes: range
    num_threads: int


class _Piece(NamedTuple):
    """A unit in its lane: rows from `first_row` of the lane on."""

    lane: int
    first_row: int
    start: int
    stop: int


class _Block(NamedTuple):
    """The arrays of a piece."""

    lane: int
    first_row: int
    arrays: Arrays

    @property
    def num_rows(self) -> int:
        return len(self.arrays["weight"])


class _Epoch:
    """The rest of one epoch from a row on: loads row groups, hands out lane rows."""

    def __init__(self, order: _Order, epoch: int, row: int):
        self._order = order
        self._epoch = epoch
        plan = lane_plan(
            order.source.rows_per_group,
            lanes=order.lanes,
            seed=order.seed,
            epoch=epoch,
            shuffle=order.shuffle,
        )
        self.num_rows = [sum(u.stop - u.start for u in units) for units in plan]
        self._blocks: dict[int, deque[_Block]] = {
            lane: deque() for lane in order.own_lanes
        }
        # A row group is decoded once, for all the lanes of this process that share it.
        pieces: dict[int, list[_Piece]] = {}
        for lane in order.own_lanes:
            end = 0
            for unit in plan[lane]:
                first_row, end = end, end + unit.stop - unit.start
                # A lane's last piece is kept even when used up: padding repeats it.
                if end > row or end == self.num_rows[lane]:
                    piece = _Piece(lane, first_row, unit.start, unit.stop)
                    pieces.setdefault(unit.group, []).append(piece)
        # Earliest need first: then the next group is always one that a lane waits for.
        loads = sorted(
            pieces.items(), key=lambda item: min((p.first_row, p.lane) for p in item[1])
        )
        self._num_waiting = len(loads)
        # Groups of one size run out in all lanes together: the next ones must be ready
        # by then, or every lane waits for all of them.
        options = grain.ReadOptions(
            num_threads=order.num_threads,
            prefetch_buffer_size=max(len(order.own_lanes), order.num_threads + 1),
        )
        self._loads = iter(
            grain.MapDataset.source(loads).map(self._load).to_iter_dataset(options)
        )

    @property
    def all_loaded(self) -> bool:
        return self._num_waiting == 0

    def start_loading(self) -> None:
        self._loads.start_prefetch()

    def close(self) -> None:
        self._loads.close()

    def batch(self, row: int, rows: int) -> Arrays:
        """Returns `rows` rows of each own lane from `row` on, in lane order."""
        own = self._order.own_lanes
        while any(self._lacks(lane, row + rows) for lane in own):
            for block in next(self._loads):
                self._blocks[block.lane].append(block)
            self._num_waiting -= 1
        parts = [part for lane in own for part in self._take(lane, row, rows)]
        batch = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
        weight = batch["weight"].reshape(len(own), rows)
        for i, lane in enumerate(own):
            weight[i, max(self.num_rows[lane] - row, 0) :] = 0
        return batch

    def _load(self, load: tuple[int, list[_Piece]]) -> list[_Block]:
        """Reads and packs a row group and cuts it for its lanes, in a loader thread."""
        group, pieces = load
        order = self._order
        arrays = packing.pack(
            order.source.read(group),
            order.schema,
            where=f"{order.source.name} row group {group}",
        )
        shuffled = None
        if order.shuffle:
            rng = np.random.default_rng([order.seed, self._epoch, 1, group])
            shuffled = rng.permutation(len(arrays["weight"]))
        blocks = []
        for lane, first_row, start, stop in pieces:
            if shuffled is None:
                rows = {key: array[start:stop] for key, array in arrays.items()}
            else:  # np.take copies whole rows, 2-3 times as fast as array[index]
                index = shuffled[start:stop]
                rows = {key: array.take(index, axis=0) for key, array in arrays.items()}
            blocks.append(_Block(lane, first_row, rows))
        return blocks

    def _lacks(self, lane: int, stop: int) -> bool:
        """Tells whether a lane has not loaded all its rows before `stop`."""
        blocks = self._blocks[lane]
        if not blocks:
            return True
        loaded = blocks[-1].first_row + blocks[-1].num_rows
        return loaded < min(stop, self.num_rows[lane])

    def _take(self, lane: int, row: int, rows: int) -> list[Arrays]:
        """Returns rows [row, row + rows) of a lane in parts, padded at the lane's end.

        Padding goes round in the lane's last block, so it depends on the lane alone.
        """
        blocks, stop, parts = self._blocks[lane], row + rows, []
        while len(blocks) > 1 and blocks[0].first_row + blocks[0].num_rows <= row:
            blocks.popleft()
        for block in blocks:
            low = max(row - block.first_row, 0)
            high = min(stop - block.first_row, block.num_rows)
            if low < high:
                parts.append({k: a[low:high] for k, a in block.arrays.items()})
        end = self.num_rows[lane]
        if stop > end:
            last = blocks[-1]
            index = np.arange(max(row, end), stop) - last.first_row
            index %= last.num_rows
            parts.append({k: a[index] for k, a in last.arrays.items()})
        return parts


# ---------------------------------------------------------------- all epochs, for Grain


class _LaneDataset(grain.IterDataset):
    """Elements (arrays of a batch, position after it)."""

    def __init__(
        self, order: _Order, start: Position, rows: int, num_epochs: int | None
    ):
        super().__init__()
        self._arguments = (order, start, rows, num_epochs)

    def __iter__(self) -> "_LaneIterator":
        return _LaneIterator(*self._arguments)


class _LaneIterator(grain.DatasetIterator):
    """Goes through the epochs; the next one starts loading when one is all loaded."""

    def __init__(
        self, order: _Order, start: Position, rows: int, num_epochs: int | None
    ):
        super().__init__()
        self._order = order
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
            self._epochs[epoch] = _Epoch(self._order, epoch, row)
        return self._epochs[epoch]

    def _close_epochs(self) -> None:
        for epoch in self._epochs.values():
            epoch.close()
        self._epochs.clear()
