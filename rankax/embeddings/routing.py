"""Host side of a lookup: which rows each device asks of each owner.

Each device's examples are de-duplicated here, off the accelerator's critical path, and
the unique rows are laid out as `requests` [N, C]: for every owner device at most C
local rows. C is static, so the exchange is one fixed-size all-to-all. More rows than
C for one owner are an error that names the numbers; no id is ever dropped.
"""

from collections import Counter
import dataclasses
import math

import numpy as np

from rankax.embeddings.placement import RowGroup


class RoutingOverflowError(RuntimeError):
    """A batch asks one device for more rows than the exchange has room for."""


def capacity(group: RowGroup, *, examples_per_device: int, num_devices: int) -> int:
    """Returns C, the rows one device may ask of one owner in a step.

    A device asks a table for at most U_t = min(its ids there, rows of the table) unique
    rows. They spread almost evenly over N owners, so C = mean + 6·√mean with
    mean = ΣU_t / N. On one device C = ΣU_t always suffices.
    """
    unique = sum(
        min(examples_per_device * num_columns, group.tables[table].spec.num_rows)
        for table, num_columns in Counter(group.column_tables).items()
    )
    mean = unique / num_devices
    bound = unique if num_devices == 1 else math.ceil(mean + 6 * math.sqrt(mean))
    return -(-min(bound, unique) // 8) * 8


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What one process feeds into the exchange of one row group.

    Attributes:
        requests: [devices, N·C] int32: rows local to the owner; slots without a
            request hold distinct values past the owner's last row.
        slots: [B, K_g] int32: which of the device's N·C slots holds the row of an id;
            N·C for padding ids.
    """

    requests: np.ndarray
    slots: np.ndarray


def route(
    group: RowGroup,
    ids: np.ndarray,
    *,
    num_devices: int,
    local_devices: int,
    slots_per_owner: int,
) -> Route:
    """De-duplicates the ids of each local device and assigns them to owners.

    Args:
        group: the row group.
        ids: [B, K] int32: this process's examples, all id columns; -1 = padding.
        num_devices: N, devices of the mesh.
        local_devices: devices of this process; divides B.
        slots_per_owner: C.

    Raises:
        RoutingOverflowError: more than C unique rows for one owner.
    """
    n, c = num_devices, slots_per_owner
    rows = group.stack_rows(ids)
    rows_per_device = group.num_rows // n
    requests = np.empty((local_devices, n * c), np.int32)
    requests[:] = rows_per_device + np.arange(n * c, dtype=np.int32)
    slots = np.empty(rows.shape, np.int32)
    per_device = len(ids) // local_devices
    first_rows = np.arange(n + 1, dtype=np.int64) * rows_per_device
    for device in range(local_devices):
        block = slice(device * per_device, (device + 1) * per_device)
        unique, inverse = np.unique(rows[block], return_inverse=True)
        padding = int(unique[0] < 0)  # -1 sorts first
        unique = unique[padding:]
        starts = np.searchsorted(unique, first_rows)
        counts = np.diff(starts)
        if counts.max() > c:
            _overflow(group, device, counts, c)
        owner = np.repeat(np.arange(n), counts)
        slot = owner * c + np.arange(len(unique)) - starts[owner]
        requests[device, slot] = unique - owner * rows_per_device
        slot = np.concatenate([np.full(padding, n * c), slot]).astype(np.int32)
        slots[block] = slot[inverse].reshape(slots[block].shape)
    return Route(requests=requests, slots=slots)


def _overflow(group: RowGroup, device: int, counts: np.ndarray, c: int) -> None:
    owner = int(counts.argmax())
    tables = sorted({group.tables[i].spec.name for i in group.column_tables})
    raise RoutingOverflowError(
        f"tables {tables} (group {group.name!r}): device "
        f"{device} asks device {owner} for {counts[owner]} unique rows, but the "
        f"exchange holds {c} per owner (mean over owners {counts.mean():.0f}). No id "
        "was dropped: the step did not run. The ids of this batch are extremely "
        "skewed; use fewer devices, a larger batch, or hashed ids"
    )
