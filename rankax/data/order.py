"""The order of examples, and a place in it: pure functions of the split and the seed.

A split's row groups are dealt to L lanes. A global batch of B examples is the next
B / L rows of every lane, in lane order. L belongs to the data order and not to the
machine: P processes read L / P adjacent lanes each, so their batches side by side are
the one-process batch, for any P that divides L and any number of threads.

Hence the position is a few numbers, the same on every process: the epoch, and how
many rows of each lane are used up.

With time windows the lanes go through time together: all rows of a window come before
any row of a later one, and nothing is shuffled across the border.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import heapq
import itertools
from typing import Any, NamedTuple

import numpy as np

from rankax.data import records
from rankax.data.errors import DataError
from rankax.data.source import SplitSource

FORMAT = 2
MAX_WINDOWS = 100_000  # more are a wrong unit, and would take long to plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A place between two batches; JSON values only.

    Attributes:
        epoch: epochs completed.
        rows_per_lane: rows of every lane used up in this epoch. Counted in rows and
            not in batches, so that another batch size can go on from here.
        lanes: L.
        fingerprint: of the files, the seed and the shuffling.
        format: version of this record and of the order.
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
        tree = records.mapping(tree, "input position")
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

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


Window = list[Unit]


def one_window(rows_per_group: Iterable[int]) -> list[Window]:
    """Returns all row groups as the one window of a split without time windows."""
    return [[Unit(group, 0, int(rows)) for group, rows in enumerate(rows_per_group)]]


def time_windows(source: SplitSource, column: str, width: int) -> list[Window]:
    """Cuts a split where its time column goes from one window to the next.

    Args:
        source: the split, stored in the order of time; rows of one window may stand in
            any order.
        column: its time column; "" is refused.
        width: of a window, in the units of the column (microseconds for timestamps).
            Window k holds the times [k · width, (k + 1) · width).

    Raises:
        DataError: the card names no time column, a row stands after one of a later
            window, or there are more than `MAX_WINDOWS`.
    """
    if not column:
        raise DataError(
            f"{source.name}: data.time_window = {width} needs a time column, and the "
            "card names none; set `time` in dataset.json, or data.time_window=0"
        )
    windows: list[Window] = []
    latest = None
    for group in range(len(source.rows_per_group)):
        for number, start, stop in _runs(source, group, width):
            if latest is not None and number < latest:
                raise DataError(
                    f"{source.where(group)}: row {start} has a time of window "
                    f"{number}, after rows of window {latest} ({column!r} // {width}); "
                    "data.time_window needs splits that are sorted by time: sort the "
                    "rows when the data set is made, or set data.time_window=0"
                )
            if number != latest:
                windows.append([])
            latest = number
            windows[-1].append(Unit(group, start, stop))
        if len(windows) > MAX_WINDOWS:
            raise DataError(
                f"{source.where(group)}: data.time_window = {width} makes more than "
                f"{MAX_WINDOWS:,} windows; its unit is that of {column!r}, "
                "microseconds where that holds timestamps: choose a wider one"
            )
    return windows


def _runs(source: SplitSource, group: int, width: int) -> list[tuple[int, int, int]]:
    """Returns (window, start, stop) of the rows of a row group that are in one window.

    Only a group with times of several windows is read.
    """
    num_rows = int(source.rows_per_group[group])
    known = source.time_range(group)
    if known is not None and known[0] // width == known[1] // width:
        return [(known[0] // width, 0, num_rows)]
    numbers = source.times(group) // width
    (steps,) = np.nonzero(np.diff(numbers))
    cuts = [0, *(steps + 1).tolist(), num_rows]
    return [
        (int(numbers[start]), start, stop) for start, stop in itertools.pairwise(cuts)
    ]


def lane_plan(
    windows: Sequence[Window], *, lanes: int, seed: int, epoch: int, shuffle: bool
) -> list[list[Unit]]:
    """Deals row groups to lanes: every row once, lanes equal to within one row.

    Window after window, each group goes to the lane that has the fewest rows so far.
    Where it would exceed the lane's share of the window the rest goes on to the next
    lane. Where there are many groups the first ones are cut in two of different sizes,
    so that the lanes come to the ends of their groups one after the other: else they
    would all at once wait for the next ones.

    Returns:
        Units of each lane in order.
    """
    plan: list[list[Unit]] = [[] for _ in range(lanes)]
    dealt = [0] * lanes
    total = 0
    for number, window in enumerate(windows):
        units = list(window)
        if shuffle:
            rng = np.random.default_rng([seed, epoch, 0, number])
            units = [units[i] for i in rng.permutation(len(units)).tolist()]
        total += sum(unit.num_rows for unit in units)
        ends = [total // lanes + (lane < total % lanes) for lane in range(lanes)]
        fewest = [(dealt[k], k) for k in range(lanes) if dealt[k] < ends[k]]
        heapq.heapify(fewest)
        for group, start, stop in _staggered(units, lanes):
            while start < stop:
                have, lane = heapq.heappop(fewest)
                end = min(stop, start + ends[lane] - have)
                plan[lane].append(Unit(group, start, end))
                dealt[lane] = have + end - start
                start = end
                if dealt[lane] < ends[lane]:
                    heapq.heappush(fewest, (dealt[lane], lane))
    return plan


def _staggered(units: list[Unit], lanes: int) -> list[Unit]:
    """Cuts unit i < L / 2 after a share (i + 1/2) / L of its rows; few stay whole."""
    if len(units) < 2 * lanes:
        return units
    pieces = []
    for i, (group, start, stop) in enumerate(units):
        cut = start
        if i < lanes // 2:
            cut += (stop - start) * (2 * i + 1) // (2 * lanes)
        pieces += [Unit(group, start, cut), Unit(group, cut, stop)]
    return [piece for piece in pieces if piece.num_rows]


def shuffled_rows(segments: Sequence[Unit], rng: np.random.Generator) -> np.ndarray:
    """Returns a permutation [n] of a row group's rows that keeps to its segments."""
    return np.concatenate(
        [start + rng.permutation(stop - start) for _, start, stop in segments]
    )
