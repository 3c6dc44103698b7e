"""The engine's answer computed the slow, obvious way, for tests.

Tables are plain NumPy arrays [V, D] in float64. Gradients are added up id by id, then
the row optimizer's formula is applied to one touched row after the other. Nothing here
calls the engine or its row optimizers; the formulas are those of the papers.
"""

from collections.abc import Mapping

import numpy as np

from rankax.config.experiment import SparseOptimizerConfig
from rankax.embeddings.placement import TablePlan

Tables = dict[tuple[str, str], np.ndarray]  # (role, table) -> [V, D]


def read_tables(
    plan: TablePlan, tables: dict[str, dict[str, np.ndarray]], *, part: str = "rows"
) -> Tables:
    """Unstacks row-sharded tables, or one of their state arrays, to [V, ...]."""
    result = {}
    for group in plan.groups:
        stack = np.asarray(tables[group.name][part])
        flat = stack.reshape(-1, *stack.shape[2:])
        for index, placed in enumerate(group.tables):
            rows = group.table_rows(index, np.arange(placed.spec.num_rows))
            result[group.role, placed.spec.name] = flat[rows]
    return result


class Oracle:
    """Tables trained by one row optimizer, one row at a time.

    Attributes:
        tables: (role, table) -> [V, D] float64; a copy of what was given.
        state: (role, table) -> {name: [V] or [V, D]}, named as in the engine.
        step: updates done.
    """

    def __init__(self, tables: Tables, config: SparseOptimizerConfig):
        """Starts a training run from the given tables."""
        self.tables = {key: np.array(x, np.float64) for key, x in tables.items()}
        self.state = {key: _start(config, x) for key, x in self.tables.items()}
        self.step = 0
        self._config = config

    def embed(
        self, role: str, column_tables: tuple[str, ...], ids: np.ndarray
    ) -> np.ndarray:
        """Looks up [B, K] ids one column at a time -> [B, K, D].

        Padding, -1, gives zeros, and so do tables that the role does not have.
        """
        dim = next(x.shape[1] for key, x in self.tables.items() if key[0] == role)
        columns = []
        for k, name in enumerate(column_tables):
            table = self.tables.get((role, name), np.zeros((1 + ids.max(), dim)))
            rows = table[np.maximum(ids[:, k], 0)]
            columns.append(np.where(ids[:, k, None] < 0, 0, rows))
        return np.stack(columns, axis=1)

    def update(
        self,
        column_tables: tuple[str, ...],
        ids: np.ndarray,
        gradients: Mapping[str, np.ndarray],
    ) -> None:
        """Does one step: applies role -> d loss / d embedded [B, K, D], in place."""
        self.step += 1
        for role, gradient in gradients.items():
            own = [name for name in column_tables if (role, name) in self.tables]
            for name in dict.fromkeys(own):
                sums: dict[int, np.ndarray] = {}
                for b, k in np.argwhere(ids >= 0):
                    if column_tables[k] == name:
                        row = int(ids[b, k])
                        sums.setdefault(row, np.zeros(gradient.shape[-1]))
                        sums[row] += gradient[b, k]
                for row, g in sums.items():
                    self._move((role, name), row, g)

    def _move(self, key: tuple[str, str], row: int, g: np.ndarray) -> None:
        c = self._config
        table, state = self.tables[key], self.state[key]
        match c.name:
            case "sgd":
                change = c.learning_rate * g
            case "rowwise_adagrad":
                state["accumulator"][row] += np.mean(g**2)
                root = np.sqrt(state["accumulator"][row])
                change = c.learning_rate * g / (root + c.eps)
            case "adagrad":
                state["accumulator"][row] += g**2
                root = np.sqrt(state["accumulator"][row])
                change = c.learning_rate * g / (root + c.eps)
            case "lazy_adam":
                m, v = state["m"], state["v"]
                m[row] = c.b1 * m[row] + (1 - c.b1) * g
                v[row] = c.b2 * v[row] + (1 - c.b2) * g**2
                m_hat = m[row] / (1 - c.b1**self.step)
                v_hat = v[row] / (1 - c.b2**self.step)
                change = c.learning_rate * m_hat / (np.sqrt(v_hat) + c.eps)
            case other:
                raise ValueError(f"unknown row optimizer {other!r}")
        table[row] = (1 - c.learning_rate * c.weight_decay) * table[row] - change


def _start(config: SparseOptimizerConfig, table: np.ndarray) -> dict[str, np.ndarray]:
    match config.name:
        case "rowwise_adagrad":
            return {"accumulator": np.full(len(table), config.initial_accumulator)}
        case "adagrad":
            return {"accumulator": np.full(table.shape, config.initial_accumulator)}
        case "lazy_adam":
            return {"m": np.zeros(table.shape), "v": np.zeros(table.shape)}
    return {}
