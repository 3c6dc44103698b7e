"""From raw ids to table rows, in NumPy alone, for training, scoring and serving.

Whatever maps a value of the data to a row of a table stands here and nowhere else, so
that a served model looks up exactly the rows that it was trained on.
"""

from collections.abc import Iterable
import functools
import hashlib

import numpy as np

from rankax.data.card import DataError

# Rows above this would not fit the 33 × 31 bit product of `hash_rows`.
MAX_ROWS = 2**31 - 1


@functools.cache
def table_salt(name: str) -> int:
    """Returns 64 bits that depend on the table's name only, on every machine.

    The salt is the table's and not the field's: a field and a history that share a
    table must find an id in the same row. Fields whose ids shall not meet have tables
    of their own, and with them salts of their own.
    """
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())


def hash_rows(ids: np.ndarray, *, num_rows: int, salt: int) -> np.ndarray:
    """Hashes any 64-bit integers to rows of one table.

    h = splitmix64_finaliser(id ^ salt); row = (h >> 31) · V >> 33. The same integer
    gives the same row whatever its dtype was.

    Args:
        ids: [...] integers of any width, negative ones included.
        num_rows: V, 1 .. 2^31 - 1.
        salt: `table_salt` of the table.

    Returns:
        Rows [...] int32 in [0, V).
    """
    if not 0 < num_rows <= MAX_ROWS:
        raise ValueError(f"num_rows = {num_rows} is not in 1 .. 2^31 - 1")
    if ids.dtype.kind not in "iu":
        raise TypeError(f"ids must be integers, found {ids.dtype}")
    h = ids.astype(np.uint64)  # a copy; negative ids become their two's complement
    h ^= np.uint64(salt)
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)
    h >>= np.uint64(31)
    h *= np.uint64(num_rows)  # 33 bits × 31 bits: cannot overflow
    h >>= np.uint64(33)
    return h.astype(np.int32)


def hash_strings(values: Iterable[str]) -> np.ndarray:
    """Returns a stable 64-bit id [n] int64 of each string, input of `hash_rows`."""
    digests = b"".join(
        hashlib.blake2b(value.encode(), digest_size=8).digest() for value in values
    )
    return np.frombuffer(digests, dtype="<i8").astype(np.int64)


def direct_rows(
    ids: np.ndarray,
    *,
    num_rows: int,
    table: str,
    field: str,
    where: str = "",
    default_row: int | None = None,
) -> np.ndarray:
    """Takes ids that are rows already, after checking that the table has them.

    Args:
        ids: [...] integers.
        num_rows: V.
        table: name of the table, for the message.
        field: name of the field, for the message.
        where: opens the message: data set, split, row group.
        default_row: row of all ids outside [0, V), negative ones too; None = there is
            none, they are an error.

    Returns:
        Rows [...] int32, in [0, V) or `default_row`.

    Raises:
        DataError: an id outside [0, V), and no default row.
    """
    if not ids.size or (ids.min() >= 0 and ids.max() < num_rows):
        return ids.astype(np.int32)
    is_outside = (ids < 0) | (ids >= num_rows)
    if default_row is None:
        raise DataError(
            f"{where}{': ' if where else ''}field {field!r}: {is_outside.sum()} of "
            f"{ids.size} ids are outside table {table!r} with num_rows = {num_rows} "
            f"(smallest id {ids.min()}, largest {ids.max()}); set num_rows of the "
            f"table to {max(int(ids.max()), 0) + 1} or more, make the table's ids "
            "'hash', train a row for them all "
            "(--config.tables.out_of_range=default_row), or convert the data set again "
            "(ids start at 0, unknown and missing are an id of their own)"
        )
    rows = ids.astype(np.int32)
    rows[is_outside] = default_row
    return rows
