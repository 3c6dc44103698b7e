"""Static sizes of the exchange: how much room one device's requests are given.

All arrays of a compiled step have fixed shapes. U rows hold what a device asks for, C
rows what it asks of one owner in one round. Neither decides a result: more than C takes
more rounds, more than U another compilation.
"""

from collections import Counter
import math
import threading

import numpy as np

from rankax.config.base import ConfigError
from rankax.embeddings.placement import RowGroup
from rankax.embeddings.routing import MAX_ROUNDS


class Sizes:
    """The sizes of all groups on one mesh, by examples per device; for any thread."""

    def __init__(
        self,
        *,
        num_devices: int,
        is_one_process: bool,
        margin: float,
        sample_ids: np.ndarray | None,
    ):
        """Starts without having seen a batch.

        Args:
            num_devices: N.
            is_one_process: whether this process feeds all devices.
            margin: standard deviations to spare in C.
            sample_ids: [n, K] ids of typical examples; None = ids never repeat.
        """
        self._num_devices = num_devices
        self._is_one_process = is_one_process
        self._margin = margin
        self._sample_ids = sample_ids
        self._capacities: dict[tuple[str, int], int] = {}
        self._rooms: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()

    def capacity(self, group: RowGroup, *, examples_per_device: int) -> int:
        """Returns C, the rows one device may ask of one owner in one round.

        Raises:
            ConfigError: 32-bit row ids leave no room for padding values.
        """
        key = group.name, examples_per_device
        if key not in self._capacities:
            bound = unique_bound(group, examples_per_device=examples_per_device)
            check_bound(group, bound)
            mean = float(bound)
            if self._sample_ids is not None and self._num_devices > 1:
                expected = expected_unique(
                    group, self._sample_ids, examples_per_device=examples_per_device
                )
                # A first batch of little but padding must not size the exchange so
                # small that most rounds could not carry an ordinary one.
                mean = min(mean, max(expected, 2 * bound / MAX_ROUNDS))
            self._capacities[key] = capacity(
                mean, bound, num_devices=self._num_devices, margin=self._margin
            )
        return self._capacities[key]

    def room(self, group: RowGroup, needed: int, *, examples_per_device: int) -> int:
        """Returns U for a batch in which no device asks for more than `needed` rows.

        One process makes it an eighth larger than its first batch needs. A batch that
        does not fit makes it at least double: another size compiles the step anew, so
        that must stay rare. Several processes, whose sizes must agree, take the bound.
        """
        bound = unique_bound(group, examples_per_device=examples_per_device)
        if not self._is_one_process:
            return bound
        key = group.name, examples_per_device
        with self._lock:  # training and evaluation read at the same time
            room = self._rooms.get(key, 0)
            if needed > room or not room:
                room = min(max(2 * room, round_up(needed * 9 // 8)), bound)
                self._rooms[key] = room
            return room


def unique_bound(group: RowGroup, *, examples_per_device: int) -> int:
    """Returns U: no device can ask for more unique rows in one step.

    Σ over tables of min(ids of one device, rows of the table), rounded up to 8.
    """
    bound = sum(
        min(examples_per_device * num_columns, group.tables[table].spec.num_rows)
        for table, num_columns in Counter(group.column_tables).items()
    )
    return round_up(bound)


def expected_unique(
    group: RowGroup, sample_ids: np.ndarray, *, examples_per_device: int
) -> float:
    """Estimates the unique rows of one device's examples from typical examples.

    Args:
        group: the row group.
        sample_ids: [n, K] int32, as for `route`. Fewer examples than a device takes
            are scaled up in proportion, which errs on the large side.
        examples_per_device: b.
    """
    size = min(examples_per_device, len(sample_ids))
    chunks = [
        sample_ids[start : start + size]
        for start in range(0, min(len(sample_ids), 8 * size) - size + 1, size)
    ]
    counts = [_num_unique(group.stack_rows(chunk)) for chunk in chunks]
    return float(np.mean(counts)) * examples_per_device / size


def capacity(mean_unique: float, bound: int, *, num_devices: int, margin: float) -> int:
    """Returns C, the rows one device may ask of one owner in one round.

    Rows spread almost evenly over the N owners, like balls thrown at random, so
    C = mean + margin·√mean with mean = unique rows / N, rounded up to 8.

    Args:
        mean_unique: expected unique rows of one device.
        bound: U; on one device nothing is exchanged, and C = U.
        num_devices: N.
        margin: standard deviations to spare.
    """
    if num_devices == 1:
        return bound
    mean = mean_unique / num_devices
    return min(round_up(math.ceil(mean + margin * math.sqrt(mean))), bound)


def round_up(x: int) -> int:
    """Returns the next multiple of 8, at least 8."""
    return max(-(-x // 8), 1) * 8


def _num_unique(rows: np.ndarray) -> int:
    ordered = np.sort(rows[rows >= 0], axis=None)
    return int(np.count_nonzero(np.diff(ordered))) + (ordered.size > 0)


def check_bound(group: RowGroup, bound: int) -> None:
    """Raises `ConfigError` if 32-bit row ids have no room for U padding values."""
    spare = 2**31 - 1 - group.num_rows
    if bound > spare:
        raise ConfigError(
            f"group {group.name!r}: one device may ask for {bound:,} unique rows, but "
            f"32-bit row ids leave room for {spare:,} padding values; use a smaller "
            "batch or more devices"
        )
