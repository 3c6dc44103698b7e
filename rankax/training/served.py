"""What is served of a state: the rows of every table, in the order of its ids."""

from collections.abc import Iterator
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from rankax.embeddings import precision, remap
from rankax.embeddings.remap import Placement
from rankax.optim.dense import TABLES
from rankax.serving.bundle import widened
from rankax.training.state import TrainState
from rankax.training.step import Steps


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServedTable:
    """One table of a state.

    Attributes:
        role: which input of the model is looked up in it.
        name: of the table.
        num_rows: V.
        dim: D.
        last_step: of each row's last update, in the stack; None where it is not kept.
    """

    role: str
    name: str
    num_rows: int
    dim: int
    last_step: jax.Array | None
    _rows: jax.Array
    _stack: Placement
    _index: int

    def read(self, dtype: str, ids: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yields rows [n, D] piece by piece.

        Args:
            dtype: "float32", or "bfloat16" as uint16 patterns.
            ids: [n]; None = all rows.
        """
        for piece in self._pieces(self._rows, ids):
            if dtype == "float32":
                piece = widened(piece)
            elif dtype == "bfloat16" and piece.dtype == np.float32:
                piece = np.asarray(precision.nearest(jnp.asarray(piece)))
            yield piece

    def touched_after(self, step: int) -> Iterator[np.ndarray]:
        """Yields ids [n] int32, ascending, of rows that a later step may have updated.

        Where no steps are kept that is every row.
        """
        if self.last_step is None:
            size = 2**22
            for start in range(0, self.num_rows, size):
                stop = min(start + size, self.num_rows)
                yield np.arange(start, stop, dtype=np.int32)
            return
        start = 0
        for piece in self._pieces(self.last_step, None):
            yield (np.flatnonzero(piece > step) + start).astype(np.int32)
            start += len(piece)

    def _pieces(self, array: jax.Array, ids: np.ndarray | None) -> Iterator[np.ndarray]:
        return remap.read_table(array, stack=self._stack, index=self._index, ids=ids)


def tables_of(steps: Steps, state: TrainState) -> list[ServedTable]:
    """Returns all tables of a state."""
    found = []
    for part in steps.engine.plan.parts:
        own = state.tables.get(part.name, {})
        rows = own["rows"] if own else state.params[TABLES][part.name]
        for index, table in enumerate(part.tables):
            found.append(
                ServedTable(
                    role=part.role,
                    name=table.spec.name,
                    num_rows=table.spec.num_rows,
                    dim=table.spec.dim,
                    last_step=own.get("last_step"),
                    _rows=rows,
                    _stack=part,
                    _index=index,
                )
            )
    return found
