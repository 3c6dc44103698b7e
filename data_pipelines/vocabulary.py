"""Ids of the data → ids of the dataset folder: vocabularies and hashing.

Both take Arrow arrays of int64 or string ids. A vocabulary is built on the training
data; its row 0 stands for every id that is not in it. Missing ids are an id like any
other: "missing" has a row, the last one, if training has at least `min_count` of them.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankax.data import transforms
from rankax.data.card import DataError, Table

MERGE_ROWS = 1 << 20


class Vocabulary:
    """Numbers the ids of one table by falling count, from 1 on; missing comes last."""

    stored_type = pa.int32()

    def __init__(self, table: str, *, min_count: int = 1):
        """Starts empty; an id seen less than `min_count` times is not taken in."""
        self.table = table
        self.min_count = min_count
        self.ids: pa.Array | None = None  # of rows 1, 2, ...; null = missing
        self._num_missing = 0
        self._num_rare = 0
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
        is_rare = pc.less(counts["count"], self.min_count)
        self._num_rare = pc.sum(counts["count"].filter(is_rare)).as_py() or 0
        counts = counts.filter(pc.invert(is_rare))
        if self._num_missing < self.min_count:
            self._num_rare += self._num_missing
        else:
            missing = {"id": [None], "count": [self._num_missing]}
            last = pa.table(missing, schema=counts.schema)
            counts = pa.concat_tables([counts, last])
        self._counts = counts
        self.ids = counts["id"].combine_chunks()

    def encode(self, values: pa.Array) -> tuple[np.ndarray, int]:
        """Returns rows int32 of the ids, and how many ids the vocabulary lacks."""
        assert self.ids is not None
        found = pc.index_in(values, value_set=self.ids)  # null is found as null
        is_missing_known = self.ids.null_count > 0
        unknown = found.null_count - (0 if is_missing_known else values.null_count)
        rows = pc.fill_null(found, -1).to_numpy(zero_copy_only=False) + 1
        return rows.astype(np.int32), unknown

    def card_table(self) -> Table:
        """Returns the table of the card."""
        assert self.ids is not None
        return Table(name=self.table, num_rows=len(self.ids) + 1)

    def to_table(self) -> pa.Table:
        """Returns columns row, kind ("unknown", "id" or "missing"), id and count."""
        assert self.ids is not None and self._counts is not None
        ids = pa.concat_arrays([pa.nulls(1, self.ids.type), self.ids])
        kind = ["unknown", *("id" if v else "missing" for v in self.ids.is_valid())]
        counts = self._counts["count"].to_numpy()
        return pa.table(
            {
                "row": np.arange(len(ids), dtype=np.int32),
                "kind": kind,
                "id": ids,
                "count": np.concatenate([[self._num_rare], counts]),
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


class SliceValues:
    """Numbers the values of a slice column as they come, over all splits."""

    MAX_VALUES = 1000

    def __init__(self, column: str):
        self.column = column
        self.names: list[str] = []  # of values 0, 1, ...
        self._numbers: dict[str, int] = {}

    def encode(self, values: pa.Array) -> np.ndarray:
        """Returns the number [n] int32 of each value; missing ones are a value too.

        Raises:
            DataError: more different values than a report can show.
        """
        found = pc.fill_null(values.cast(pa.string()), "missing").dictionary_encode()
        for name in found.dictionary.to_pylist():
            self._numbers.setdefault(name, len(self._numbers))
        if len(self._numbers) > self.MAX_VALUES:
            raise DataError(
                f"slice column {self.column!r} has more than {self.MAX_VALUES} "
                "different values; put them into ranges first"
            )
        self.names = list(self._numbers)
        number = [self._numbers[name] for name in found.dictionary.to_pylist()]
        indices = found.indices.to_numpy(zero_copy_only=False)
        return np.array(number, np.int32)[indices]


def stable_ids(values: pa.Array) -> np.ndarray:
    """Returns int64 ids that do not depend on what else is in the data."""
    missing = transforms.hash_strings([""])[0]
    if pa.types.is_integer(values.type):
        return pc.fill_null(values, int(missing)).to_numpy(zero_copy_only=False)
    # Hashing runs in Python, so each different text of a chunk is hashed once.
    encoded = pc.fill_null(values, "").dictionary_encode()
    hashed = transforms.hash_strings(encoded.dictionary.to_pylist())
    return hashed[encoded.indices.to_numpy(zero_copy_only=False)]
