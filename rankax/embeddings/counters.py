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

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rankax.embeddings.placement import TablePlan

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
        `looked_up` and `default` [devices, K], and `unique`: replicated stack ->
        [devices, T].
    """
    if is_counted is not None:
        ids = np.where(is_counted[:, None], ids, -1)
    blocks = ids.reshape(local_devices, -1, ids.shape[1])
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
        offsets = [table.offset for table in stack.tables]
        unique[stack.name] = np.add.reduceat(
            is_used[:, :-1], offsets, axis=1, dtype=np.int32
        )
    return {
        "looked_up": (blocks >= 0).sum(axis=1, dtype=np.int32),
        "default": default,
        "unique": unique,
    }


def sum_over_devices(requests: Mapping[str, Any]) -> Counts:
    """Sums one step's counts over devices, inside the step.

    Args:
        requests: of `TableEngine.request`.
    """
    counts = jax.tree.map(lambda x: x.sum(axis=0), requests["counts"])
    groups = {
        name: {
            "requests": group["requests"].sum(axis=0),
            **{key: group[key] for key in ("rounds", "largest", "capacity")},
        }
        for name, group in requests["groups"].items()
    }
    return jax.tree.map(jnp.asarray, {**counts, "groups": groups})


def summarize(plan: TablePlan, steps: Iterable[Counts]) -> Summary:
    """Sums the counts of steps, as NumPy arrays, to one record per table."""
    columns = {
        name: [k for k, other in enumerate(plan.column_tables) if other == name]
        for name in plan.column_tables
    }
    summary: Summary = {}
    loads: dict[str, np.ndarray] = {}
    for counts in steps:
        for part in plan.parts:
            group = counts["groups"].get(part.name)
            for index, placed in enumerate(part.tables):
                name = f"{part.role}/{placed.spec.name}"
                own = columns.get(placed.spec.name, [])
                record = summary.setdefault(name, dict.fromkeys(TOTALS[:3], 0))
                record["looked_up"] += int(counts["looked_up"][own].sum())
                record["out_of_vocabulary"] += int(counts["default"][own].sum())
                if group is None:
                    record["unique"] += int(counts["unique"][part.name][index])
                    continue
                record["unique"] += int(group["requests"][index].sum())
                rounds = int(group["rounds"])
                record.setdefault("overflow_rounds", 0)
                record["overflow_rounds"] += max(rounds - 1, 0)
                load = group["requests"][index].astype(np.int64)
                loads[name] = loads.get(name, 0) + load
    for name, load in loads.items():
        summary[name]["shard_load"] = float(load.max() / max(load.mean(), 1e-9))
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
