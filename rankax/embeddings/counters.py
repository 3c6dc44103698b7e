"""What the tables were asked for, counted table by table.

Counts are made per step and device, by the thread that routes ids or in the step
itself, summed over devices in the step, and summed over steps at a log line:

    looked_up           ids, padding excluded
    unique              rows after each device's de-duplication (of row-sharded tables:
                        with the examples that only fill a batch up)
    out_of_vocabulary   ids outside the table, looked up in its default row
    overflow_rounds     rounds of the table's exchange beyond the first
    shard_load          max / mean over owners of the unique rows asked of them

The last two exist for row-sharded tables only.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankax.embeddings.placement import ReplicatedStack, TablePlan

Counts = dict[str, Any]
Summary = dict[str, dict[str, float]]  # "<role>/<table>" -> counter -> value

TOTALS = ("looked_up", "unique", "out_of_vocabulary", "overflow_rounds")


def count_ids(
    plan: TablePlan,
    ids: np.ndarray,
    stack_rows: Mapping[str, np.ndarray],
    *,
    is_counted: np.ndarray | None,
    local_devices: int,
) -> Counts:
    """Counts what the host sees of one batch.

    Args:
        plan: placement.
        ids: [B, K] int32 rows within tables; -1 = padding.
        stack_rows: rows of each replicated stack, [B, K_r].
        is_counted: [B] bool, examples whose ids count; None = all.
        local_devices: devices of this process.

    Returns:
        `examples` [devices], `looked_up` and `default` [devices, K], and `unique`:
        replicated stack -> [devices, T].
    """
    examples = np.full(local_devices, len(ids) // local_devices, np.int32)
    if is_counted is not None and is_counted.all():
        is_counted = None
    if is_counted is not None:
        ids = np.where(is_counted[:, None], ids, -1)
        examples = is_counted.reshape(local_devices, -1).sum(axis=1, dtype=np.int32)
    blocks = ids.reshape(local_devices, len(ids) // local_devices, ids.shape[1])
    default = np.zeros((local_devices, ids.shape[1]), np.int32)
    if plan.default_rows:
        rows = [plan.default_rows.get(name, -2) for name in plan.column_tables]
        default = (blocks == np.array(rows, np.int32)).sum(axis=1, dtype=np.int32)
    unique = {}
    for stack in plan.stacks:
        rows = stack_rows[stack.name]
        if is_counted is not None:
            rows = np.where(is_counted[:, None], rows, stack.num_rows)
        rows = rows.reshape(local_devices, -1)
        is_used = np.zeros((local_devices, stack.num_rows + 1), bool)
        is_used[np.arange(local_devices)[:, None], rows] = True
        counts = [_count_by_table(stack, used) for used in is_used]
        unique[stack.name] = np.array(counts, np.int32)
    return {
        "examples": examples,
        "looked_up": (blocks >= 0).sum(axis=1, dtype=np.int32),
        "default": default,
        "unique": unique,
    }


def _count_by_table(stack: ReplicatedStack, is_used: np.ndarray) -> list[int]:
    """Counts used rows; `count_nonzero` of bools is much faster than a sum."""
    return [
        int(np.count_nonzero(is_used[table.offset :][: table.spec.num_rows]))
        for table in stack.tables
    ]


def sum_over_devices(requests: Mapping[str, Any]) -> Counts:
    """Sums one step's counts over devices, inside the step.

    Args:
        requests: of `TableEngine.request`.
    """
    counts = jax.tree.map(lambda x: x.sum(axis=0), requests["counts"])
    groups = {
        name: {
            "num_requests": group["num_requests"].sum(axis=0),
            "overflow_rounds": jnp.maximum(group["rounds"] - 1, 0),
            **{key: group[key] for key in ("rounds", "largest", "capacity")},
        }
        for name, group in requests["groups"].items()
    }
    return {**counts, "groups": groups}


def accumulate(total: Counts | None, counts: Counts) -> Counts:
    """Adds a step's counts, fetched from the devices, to those of others (or None)."""
    if total is None:
        return jax.tree.map(lambda x: np.asarray(x, np.int64), counts)
    return jax.tree.map(np.add, total, counts)


def summarize(plan: TablePlan, total: Counts) -> Summary:
    """Returns one record per table from the accumulated counts of some steps."""
    summary: Summary = {}
    for part in plan.parts:
        group = total["groups"].get(part.name)
        for index, placed in enumerate(part.tables):
            pairs = zip(part.columns, part.column_tables, strict=True)
            own = [k for k, table in pairs if table == index]
            record: dict[str, float] = {
                "looked_up": int(total["looked_up"][own].sum()),
                "out_of_vocabulary": int(total["default"][own].sum()),
            }
            if group is None:
                record["unique"] = int(total["unique"][part.name][index])
            else:
                load = group["num_requests"][index]
                record["unique"] = int(load.sum())
                record["overflow_rounds"] = int(group["overflow_rounds"])
                record["shard_load"] = float(load.max() / max(load.mean(), 1e-9))
            summary[f"{part.role}/{placed.spec.name}"] = record
    return summary


def log_values(summary: Summary) -> dict[str, float]:
    """Returns "<role>/<table>/<counter>" -> value; `unique` as its ratio to the ids."""
    values = {}
    for name, record in summary.items():
        for counter, value in record.items():
            values[f"{name}/{counter}"] = value
        unique = values.pop(f"{name}/unique")
        values[f"{name}/unique_ratio"] = unique / max(record["looked_up"], 1)
    return values


def add(totals: Summary, summary: Summary) -> Summary:
    """Returns the sums of `TOTALS` of two records."""
    result: Summary = {}
    for summand in (totals, summary):
        for name, record in summand.items():
            own = result.setdefault(name, {})
            for counter in TOTALS:
                if counter in record:
                    own[counter] = own.get(counter, 0) + record[counter]
    return result
