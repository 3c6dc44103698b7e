"""Ids of the data → ids of the dataset folder: vocabularies and hashing.

Both take Arrow arrays of int64 or string ids. A vocabulary is built on the training
data; its row 0 stands for every unknown or missing id.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankax.data import transforms
from rankax.data.card import Table

MERGE_ROWS = 1 << 20


class Vocabulary:
    """Numbers the ids of one table by falling count, from 1 on."""

    stored_type = pa.int32()

    def __init__(self, table: str):
        self.table = table
        self.ids: pa.Array | None = None
        self._num_missing = 0
        self._counts: pa.Table | None = None
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def count(self, values: pa.Array) -> None:
        """Takes in ids of the training data."""
        self._num_missing += values.null_count
        counted = values.drop_null().value_counts()
        table = pa.table({"id": counted.field(0), "count": counted.field(1)})
        self._pending.append(table)
        self._num_pending += len(counted)
        if self._num_pending > MERGE_ROWS:
            self._merge()

    def finish(self) -> None:
        """Fixes the numbering, after the last `count`."""
        self._merge()
        assert self._counts is not None
        order = [("count", "descending"), ("id", "ascending")]
        counts = self._counts.sort_by(order).combine_chunks()
        self._counts, self.ids = counts, counts["id"].combine_chunks()

    def encode(self, values: pa.Array) -> tuple[np.ndarray, int]:
        """Returns rows int32 of the ids, and how many ids the vocabulary lacks."""
        assert self.ids is not None
        found = pc.index_in(values, value_set=self.ids)
        unknown = found.null_count - values.null_count
        rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + 1
        return rows.astype(np.int32), unknown

    def card_table(self) -> Table:
        """Returns the table of the card."""
        assert self.ids is not None
        return Table(name=self.table, num_rows=len(self.ids) + 1)

    def to_table(self) -> pa.Table:
        """Returns columns id, row and count; row 0 has the id null."""
        assert self.ids is not None and self._counts is not None
        ids = pa.concat_arrays([pa.nulls(1, self.ids.type), self.ids])
        counts = self._counts["count"].to_numpy()
        return pa.table(
            {
                "id": ids,
                "row": np.arange(len(ids), dtype=np.int32),
                "count": np.concatenate([[self._num_missing], counts]),
            }
        )

    def _merge(self) -> None:
        tables = [self._counts, *self._pending] if self._counts else self._pending
        grouped = pa.concat_tables(tables).group_by("id").aggregate([("count", "sum")])
        self._counts = grouped.rename_columns({"count_sum": "count"})
        self._pending, self._num_pending = [], 0


class Hashed:
    """Keeps integers as they are and makes text 64-bit integers; the reader hashes."""

    stored_type = pa.int64()

    def __init__(self, table: str, num_rows: int):
        self.table = table
        self.num_rows = num_rows

    def encode(self, values: pa.Array) -> tuple[np.ndarray, int]:
        """Returns ids int64; a missing one gets the id of the empty text."""
        return stable_ids(values), 0

    def card_table(self) -> Table:
        """Returns the table of the card."""
        return Table(name=self.table, num_rows=self.num_rows, ids="hash")


def stable_ids(values: pa.Array) -> np.ndarray:
    """Returns int64 ids that do not depend on what else is in the data."""
    missing = transforms.hash_strings([""])[0]
    if pa.types.is_integer(values.type):
        return pc.fill_null(values, int(missing)).to_numpy(zero_copy_only=False)
    # Hashing runs in Python, so each different text of a chunk is hashed once.
    encoded = pc.fill_null(values, "").dictionary_encode()
    hashed = transforms.hash_strings(encoded.dictionary.to_pylist())
    return hashed[encoded.indices.to_numpy(zero_copy_only=False)]
