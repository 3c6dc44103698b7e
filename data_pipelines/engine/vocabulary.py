"""Ids of the data → ids of the dataset folder: vocabularies and hashing.

Ids are int64 or strings. A vocabulary is built on counts of the training data; its row
0 stands for every id that is not in it. Missing ids are an id like any other:
"missing" has a row, the last one, if training has at least `min_count` of them.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from rankax.data import transforms
from rankax.data.card import DataError, Table

MERGE_ROWS = 1 << 20
SAMPLE_ROWS = 1 << 13
MAX_SLICE_VALUES = 1000


class IdCounts:
    """How often each id of one table occurs; counts of parts can be merged."""

    def __init__(self):
        self.num_missing = 0
        self._pending: list[pl.DataFrame] = []
        self._num_merged = 0  # ids that the last merge left

    def add(self, values: pa.Array) -> None:
        """Takes in a dictionary array of ids."""
        codes = _codes(values)
        self.num_missing += values.null_count
        size = len(values.dictionary)
        counts = np.bincount(codes + 1, minlength=size + 1)[1:]
        self._append(pl.DataFrame({"id": _series(values.dictionary), "count": counts}))

    def merge(self, other: "IdCounts") -> None:
        """Takes in the counts of another part."""
        self.num_missing += other.num_missing
        if other._pending:
            self._append(other.total())

    def total(self) -> pl.DataFrame:
        """Returns columns id and count, every id once, in no order."""
        if not self._pending:
            return pl.DataFrame(schema={"id": pl.Int64, "count": pl.Int64})
        if len(self._pending) > 1:
            self._pending = [_summed(pl.concat(self._pending))]
        self._num_merged = len(self._pending[0])
        return self._pending[0]

    def _append(self, counts: pl.DataFrame) -> None:
        self._pending.append(counts)
        # Doubling keeps the work of all merges linear in what came in.
        if sum(map(len, self._pending)) > 2 * self._num_merged + MERGE_ROWS:
            self.total()


class Vocabulary:
    """Numbers the ids of one table by falling count, from 1 on; missing comes last."""

    def __init__(self, table: str, counts: IdCounts, *, min_count: int = 1):
        """Leaves out ids that were counted less than `min_count` times."""
        self.table = table
        found = counts.total()
        ids = found.filter(pl.col("count") >= min_count)
        self._num_rare = int(found["count"].sum()) - int(ids["count"].sum())
        self._num_missing = counts.num_missing  # 0: missing ids are unknown ones
        if counts.num_missing < min_count:
            self._num_rare += counts.num_missing
            self._num_missing = 0
        # Ordered by id, for a search that needs no hash table of all ids.
        ids = ids.sort("id")
        row = np.empty(len(ids), np.int32)
        row[np.argsort(-ids["count"].to_numpy(), kind="stable")] = np.arange(len(ids))
        self._ids = ids.with_columns(row=row + 1)

    @property
    def num_rows(self) -> int:
        """V, with the rows of unknown and missing ids."""
        return len(self._ids) + 1 + bool(self._num_missing)

    def encode(self, values: pa.Array) -> tuple[np.ndarray, int]:
        """Returns rows int32 of a dictionary array, and how many ids are unknown."""
        rows = np.zeros(len(values.dictionary) + 1, np.int32)  # the last one: missing
        if len(self._ids):
            ids, wanted = self._ids["id"], _series(values.dictionary)
            # What is near in the search is near in memory.
            if wanted.dtype == pl.Int64:  # NumPy is twice as quick with integers
                ids, wanted = ids.to_numpy(), wanted.to_numpy()
                order = slice(None)
                if not (wanted[1:] > wanted[:-1]).all():
                    order = np.argsort(wanted)
                    wanted = wanted[order]
                place = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
                is_known = ids[place] == wanted
            else:
                order = wanted.arg_sort().to_numpy()
                wanted = wanted.gather(order)
                place = ids.search_sorted(wanted).to_numpy()
                place = np.minimum(place, len(ids) - 1)
                is_known = (ids.gather(place) == wanted).to_numpy()
            rows[:-1][order] = np.where(is_known, self._ids["row"].to_numpy()[place], 0)
        if self._num_missing:
            rows[-1] = self.num_rows - 1
        found = rows[_codes(values)]
        num_unknown = len(found) - int(np.count_nonzero(found))
        return found, num_unknown - (0 if self._num_missing else values.null_count)

    def card_table(self) -> Table:
        """Returns the table of the card."""
        return Table(name=self.table, num_rows=self.num_rows)

    def to_table(self) -> pa.Table:
        """Returns columns row, kind ("unknown", "id" or "missing"), id and count."""
        ids = self._ids.sort("row")
        num_ids, has_missing = len(ids), bool(self._num_missing)
        values = pa.concat_arrays(
            [
                pa.nulls(1, _type(ids["id"])),
                ids["id"].to_arrow().cast(_type(ids["id"])),
                pa.nulls(int(has_missing), _type(ids["id"])),
            ]
        )
        kind = np.repeat([0, 1, 2], [1, num_ids, has_missing])
        missing = [self._num_missing] * has_missing
        count = np.concatenate([[self._num_rare], ids["count"].to_numpy(), missing])
        return pa.table(
            {
                "row": np.arange(len(values), dtype=np.int32),
                "kind": pa.array(["unknown", "id", "missing"]).take(pa.array(kind)),
                "id": values,
                "count": count.astype(np.int64),
            }
        )


class Hashed:
    """Keeps integers as they are and makes text 64-bit integers; the reader hashes."""

    def __init__(self, table: str, num_rows: int):
        self.table = table
        self.num_rows = num_rows

    def encode(self, values: pa.Array) -> tuple[np.ndarray, int]:
        """Returns ids int64 of `stable_ids`; a missing one that of the empty text."""
        missing = int(transforms.hash_strings([""])[0])
        return pc.fill_null(values, missing).to_numpy(zero_copy_only=False), 0

    def card_table(self) -> Table:
        """Returns the table of the card."""
        return Table(name=self.table, num_rows=self.num_rows, ids="hash")


class SliceValues:
    """Numbers the values of a slice column; missing ones are a value too."""

    def __init__(self, column: str, values: pa.Array):
        """Takes the different values of all splits in the order of their numbers.

        Raises:
            DataError: more different values than a report can show.
        """
        if len(values) > MAX_SLICE_VALUES:
            raise DataError(
                f"slice column {column!r} has more than {MAX_SLICE_VALUES} different "
                "values; put them into ranges first"
            )
        self.column = column
        self._values = values

    @property
    def names(self) -> tuple[str, ...]:
        """Names of values 0, 1, ..."""
        texts = pc.fill_null(self._values.cast(pa.string()), "missing")
        return tuple(texts.to_pylist())

    def encode(self, values: pa.Array) -> pa.Array:
        """Returns the number int32 of each value of a dictionary array.

        Raises:
            DataError: a value that was not announced.
        """
        # The last one is for null; one that nobody needs may be unknown.
        missing = pa.nulls(int(values.null_count > 0), values.dictionary.type)
        wanted = pa.concat_arrays([values.dictionary, missing])
        number = pc.index_in(wanted, value_set=self._values)
        if number.null_count:
            found = wanted.filter(number.is_null()).to_pylist()
            raise DataError(
                f"slice column {self.column!r} holds {found[:3]}, expected only "
                f"{self.names}"
            )
        return pa.array(number.to_numpy()[_codes(values)])


def stable_ids(values: pa.Array) -> pa.Array:
    """Returns int64 ids that do not depend on what else is in the data; null stays."""
    if pa.types.is_integer(values.type):
        return values
    # Each different text of a chunk is hashed once.
    encoded = values.dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_string())
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
    return pa.array(transforms.hash_bytes(data, offsets)).take(encoded.indices)


def with_dictionary(values: pa.Array) -> pa.Array:
    """Returns a dictionary array of ids, in order where most ids are different."""
    first = values[:SAMPLE_ROWS]
    if not pa.types.is_integer(values.type) or len(first.unique()) < 0.75 * len(first):
        return values.dictionary_encode()
    # Sorting is quicker than hashing here, and spares `Vocabulary.encode` to sort.
    ids, found = np.unique(values.drop_null().to_numpy(), return_inverse=True)
    is_null = values.is_null().to_numpy(zero_copy_only=False)
    codes = np.zeros(len(values), np.int32)
    codes[~is_null] = found
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=is_null), pa.array(ids))


def _codes(values: pa.Array) -> np.ndarray:
    """Returns the indices of a dictionary array, -1 where null."""
    return pc.fill_null(values.indices, -1).to_numpy(zero_copy_only=False)


def _summed(counts: pl.DataFrame) -> pl.DataFrame:
    """Makes every id occur once."""
    if counts["id"].dtype != pl.Int64:
        return counts.group_by("id").agg(pl.col("count").sum())
    # Sorting is quicker than any hash table, and quickest without the counts.
    ids, times = counts["id"].to_numpy(), counts["count"].to_numpy()
    if times.sum() <= 4 * len(ids):
        ids, times = np.unique(np.repeat(ids, times), return_counts=True)
    else:
        order = np.argsort(ids)
        ids = ids[order]
        first = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
        ids, times = ids[first], np.add.reduceat(times[order], first)
    return pl.DataFrame({"id": pl.Series(ids).set_sorted(), "count": times})


def _series(values: pa.Array) -> pl.Series:
    series = pl.from_arrow(values)
    assert isinstance(series, pl.Series)
    return series


def _type(ids: pl.Series) -> pa.DataType:
    return pa.string() if ids.dtype == pl.String else pa.int64()
