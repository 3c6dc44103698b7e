"""The engine's answer computed the slow, obvious way, for tests.

Tables are plain NumPy arrays [V, D] per table name; gradients are accumulated id by id
with `np.add.at`, and the row optimizer's formula is applied to touched rows only.
"""

import numpy as np

from rankax.config.experiment import SparseOptimizerConfig
from rankax.embeddings.placement import TablePlan

Tables = dict[tuple[str, str], np.ndarray]  # (role, table) -> [V, D]


def read_tables(
    plan: TablePlan, tables: dict[str, dict[str, np.ndarray]], *, part: str = "rows"
) -> Tables:
    """Unstacks row-sharded tables (or a state array [S, R] of them) to [V, ...]."""
    result = {}
    for group in plan.groups:
        stack = np.asarray(tables[group.name][part])
        flat = stack.reshape(-1, *stack.shape[2:])
        for index, placed in enumerate(group.tables):
            rows = group.table_rows(index, np.arange(placed.spec.num_rows))
            result[group.role, placed.spec.name] = flat[rows]
    return result


def embed(
    tables: Tables, role: str, column_tables: tuple[str, ...], ids: np.ndarray
) -> np.ndarray:
    """Looks up [B, K] ids one column at a time -> [B, K, D]; -1 gives zeros."""
    columns = []
    for k, name in enumerate(column_tables):
        rows = tables[role, name][np.maximum(ids[:, k], 0)]
        columns.append(np.where(ids[:, k, None] < 0, 0, rows))
    return np.stack(columns, axis=1)


def update(
    tables: Tables,
    accumulators: Tables,
    config: SparseOptimizerConfig,
    role: str,
    column_tables: tuple[str, ...],
    ids: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """Applies d loss / d embedded [B, K, D] to the tables, in place."""
    for name in dict.fromkeys(column_tables):
        table = tables[role, name]
        dense = np.zeros(table.shape)
        touched = np.zeros(len(table), bool)
        for k in [k for k, other in enumerate(column_tables) if other == name]:
            valid = ids[:, k] >= 0
            np.add.at(dense, ids[valid, k], gradient[valid, k])
            touched[ids[valid, k]] = True
        if config.name == "sgd":
            table[touched] -= config.learning_rate * dense[touched]
            continue
        accumulator = accumulators[role, name]
        accumulator[touched] += np.mean(dense[touched] ** 2, axis=1)
        scale = config.learning_rate / (np.sqrt(accumulator[touched]) + config.eps)
        table[touched] -= scale[:, None] * dense[touched]
