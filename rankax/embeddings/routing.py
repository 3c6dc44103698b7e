"""Host side of a lookup: the unique rows that each device asks for.

Each device's examples are de-duplicated here, off the accelerator's critical path. The
unique rows of a device, sorted, are grouped by owner as they stand, because every
owner holds one block of rows. What depends on other devices (how many rounds the
exchange takes) is decided on the devices, see `rankax.embeddings.exchange`.
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from rankax.embeddings.placement import RowGroup

# Parts that an owner's rows are split into when one exchange cannot hold them all.
MAX_ROUNDS = 64

# Past the end of any array, and not negative: JAX counts negative indices from the end.
NO_SLOT = 2**31 - 1


class RoutingOverflowError(RuntimeError):
    """A batch asks one device for more rows than even the most rounds can carry."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The unique rows that each local device asks for.

    Attributes:
        unique: [devices, U] int32: rows of the stack, ascending; then values past
            the last row, all different.
        slots: [B, K_g] int32: where in its device's `unique` the row of an id stands;
            `NO_SLOT` for padding ids.
        num_requests: [devices, T, N] int32: unique rows by table and owner.
    """

    unique: np.ndarray
    slots: np.ndarray
    num_requests: np.ndarray


def route(
    group: RowGroup,
    rows: np.ndarray,
    *,
    num_devices: int,
    local_devices: int,
    slots_per_owner: int,
    choose_room: Callable[[int], int],
) -> Route:
    """De-duplicates the rows of each local device.

    Args:
        group: the row group.
        rows: [B, K_g] int32: this process's rows of the stack; -1 = padding.
        num_devices: N, devices of the mesh.
        local_devices: devices of this process; divides B.
        slots_per_owner: C, to refuse what no number of rounds can carry.
        choose_room: returns U, given the most unique rows of any local device.

    Raises:
        RoutingOverflowError: see above.
    """
    rows_per_device = group.num_rows // num_devices
    blocks = np.split(rows, local_devices)
    found, slots = zip(*map(deduplicate, blocks), strict=True)
    size = choose_room(max(map(len, found)))
    unique = np.empty((local_devices, size), np.int32)
    unique[:] = group.num_rows + np.arange(size, dtype=np.int32)
    num_requests = np.empty((local_devices, len(group.tables), num_devices), np.int32)
    for device, own in enumerate(found):
        unique[device, : len(own)] = own
        num_requests[device] = count_requests(group, own, num_devices)
        if num_requests[device].sum(axis=0).max(initial=0) > slots_per_owner:
            _check_skew(group, device, own, rows_per_device, slots_per_owner)
    slots = slots[0] if local_devices == 1 else np.concatenate(slots)
    return Route(unique=unique, slots=slots, num_requests=num_requests)


def deduplicate(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distinct values >= 0, ascending, and each entry's index among them.

    Row and position are sorted as one 64-bit number: a plain sort of integers is
    faster than sorting positions by row (as `np.unique` with its inverse does).

    Args:
        rows: int32 of any shape, fewer than 2^31; negative = padding.

    Returns:
        [u] int32, and int32 of the shape of `rows`; `NO_SLOT` for padding.
    """
    pairs = np.empty((rows.size, 2), "<i4")  # low half of each number: position
    pairs[:, 0] = np.arange(rows.size, dtype=np.int32)
    pairs[:, 1] = rows.reshape(-1)
    pairs.view("<i8").reshape(-1).sort()
    ordered = np.ascontiguousarray(pairs[:, 1])
    is_first = np.empty(rows.size, bool)
    is_first[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    num_padding = int(np.searchsorted(ordered, 0))
    is_first[:num_padding] = False
    index = np.cumsum(is_first, dtype=np.int32)
    index -= 1
    index[:num_padding] = NO_SLOT
    inverse = np.empty(rows.size, np.int32)
    inverse[pairs[:, 0].astype(np.intp)] = index
    return ordered[np.flatnonzero(is_first)], inverse.reshape(rows.shape)


def count_requests(group: RowGroup, unique: np.ndarray, num_devices: int) -> np.ndarray:
    """Counts rows of the stack [u] by table and owner, [T, N]."""
    owner = unique // np.int32(group.num_rows // num_devices)
    bins = group.tables_of(unique) * num_devices + owner
    counts = np.bincount(bins, minlength=len(group.tables) * num_devices)
    return counts.reshape(-1, num_devices)


def part_starts(num_rows: int, num_devices: int) -> np.ndarray:
    """Returns where the `MAX_ROUNDS` parts of every owner begin, and the end.

    Owner o's rows are split into parts of equal size (the last ones of a small block
    may be empty), numbered o·64 .. o·64 + 63. [N·64 + 1] int32 of rows of the stack.
    """
    rows_per_device = num_rows // num_devices
    size = -(-rows_per_device // MAX_ROUNDS)
    inside = np.minimum(np.arange(MAX_ROUNDS) * size, rows_per_device)
    starts = np.arange(num_devices)[:, None] * rows_per_device + inside
    return np.append(starts.reshape(-1), num_rows).astype(np.int32)


def _check_skew(
    group: RowGroup, device: int, unique: np.ndarray, rows_per_device: int, c: int
) -> None:
    num_devices = group.num_rows // rows_per_device
    starts = np.searchsorted(unique, part_starts(group.num_rows, num_devices))
    part = int(np.diff(starts).argmax())
    in_part = unique[starts[part] : starts[part + 1]]
    if len(in_part) <= c:
        return
    owners = np.bincount(unique // rows_per_device, minlength=num_devices)
    tables = np.bincount(group.tables_of(in_part), minlength=len(group.tables))
    raise overflow(
        group,
        table=int(tables.argmax()),
        found=len(in_part),
        capacity=c,
        detail=f"device {device} asks device {part // MAX_ROUNDS} for "
        f"{owners[part // MAX_ROUNDS]} unique rows (mean over owners "
        f"{owners.mean():.0f})",
    )


def overflow(
    group: RowGroup, *, table: int, found: int, capacity: int, detail: str
) -> RoutingOverflowError:
    """Returns the error for a batch that no number of rounds can carry."""
    return RoutingOverflowError(
        f"table {group.tables[table].spec.name!r} (group {group.name!r}): {detail}; "
        f"one device asks for {found} in one of its {MAX_ROUNDS} parts, where the "
        f"exchange holds {capacity} a round. No id was dropped: the step did not run. "
        "The ids of this batch are extremely skewed (for example multiples of "
        "tables.num_shards): hash the table's ids, raise tables.capacity_margin, or "
        "use fewer devices"
    )
