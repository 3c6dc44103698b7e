"""Columns made of others: what an id names in a table, and ranges of numbers."""

# pyright: reportAttributeAccessIssue=false
# pyarrow.compute makes its functions when it is imported.

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankax.data.card import DataError


def look_up(
    table: pa.Table, ids: pa.ChunkedArray, names: Sequence[str]
) -> dict[str, pa.ChunkedArray]:
    """Looks columns up by the id in the table's first column; null where it is not.

    Raises:
        DataError: several rows have the same id, or ids of another type.
    """
    key, key_name = table.column(0), table.column_names[0]
    if key.type != ids.type:
        raise DataError(f"{key_name} has type {key.type}, expected {ids.type}")
    if pc.count_distinct(key).as_py() != table.num_rows:
        raise DataError(f"several rows have the same {key_name}; keep one row per id")
    found = table.select(names).take(pc.index_in(ids, value_set=key.combine_chunks()))
    return {name: found[name] for name in names}


def ranges(
    values: np.ndarray | pa.Array | pa.ChunkedArray, names: Mapping[int, str]
) -> pa.Array:
    """Returns the name of each number's range; null stays null.

    Args:
        values: [n] numbers from the first range's start on.
        names: start of a range -> its name, rising.
    """
    array = pa.array(values) if isinstance(values, np.ndarray) else values
    numbers = pc.fill_null(array, next(iter(names))).to_numpy()
    place = np.searchsorted(list(names), numbers, side="right") - 1
    texts = pa.array(list(names.values())).take(pa.array(place))
    return pc.if_else(array.is_valid(), texts, None)
