"""From raw values to model inputs, in NumPy alone, for training, scoring and serving.

Whatever maps a value of the data to a row of a table or to a number stands here and
nowhere else, so that a served model sees exactly what it was trained on.
"""

from collections.abc import Sequence
import functools
import hashlib

import numpy as np

from rankax.data.errors import DataError
from rankax.data.fields import Clip, Standardise, Transform

# Strings hashed at a time; what they need stays in a core's second cache.
STRINGS_AT_A_TIME = 16384
# [l] keeps the first l bytes of a little-endian word.
_FIRST_BYTES = np.array([2 ** (8 * i) - 1 for i in range(9)], np.uint64)
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
    _finalise(h)
    h >>= np.uint64(31)
    h *= np.uint64(num_rows)  # 33 bits × 31 bits: cannot overflow
    h >>= np.uint64(33)
    return h.astype(np.int32)


def hash_strings(values: Sequence[str]) -> np.ndarray:
    """Returns the 64-bit ids [n] int64 of `hash_bytes` of strings in UTF-8."""
    encoded = [value.encode() for value in values]
    offsets = np.cumsum([0, *map(len, encoded)])
    return hash_bytes(np.frombuffer(b"".join(encoded), np.uint8), offsets)


def hash_bytes(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns a stable 64-bit id of each of n byte strings, input of `hash_rows`.

    With the string as little-endian 64-bit words w_1 .. w_k, k = max(1, ⌈length / 8⌉),
    the last one filled up with zero bytes:

        h_0 = (length + 1) · 0x9E3779B97F4A7C15
        h_i = splitmix64_finaliser(h_{i-1} ^ w_i)

    in 64 bits, and the id is h_k. Work is done word by word, on all strings that are
    that long.

    Args:
        data: uint8, the strings' bytes.
        offsets: [n + 1] integers; string i is data[offsets[i] : offsets[i + 1]].

    Returns:
        Ids [n] int64, the same on every machine.
    """
    start = offsets[:-1].astype(np.int64)
    length = offsets[1:] - start
    ids = np.empty(len(start), np.int64)
    if not len(start):
        return ids
    # The word that starts at each byte; the spare bytes let the last string have one.
    used = np.concatenate([data[start[0] : offsets[-1]], np.zeros(8, np.uint8)])
    words = np.ndarray(len(used) - 7, "<u8", used, strides=(1,))
    start -= start[0]
    for low in range(0, len(start), STRINGS_AT_A_TIME):
        rows = slice(low, low + STRINGS_AT_A_TIME)
        _hash_words(words, start[rows], length[rows], ids[rows].view(np.uint64))
    return ids


def _hash_words(
    words: np.ndarray, start: np.ndarray, length: np.ndarray, ids: np.ndarray
) -> None:
    """Hashes strings [n], given the word at every byte, into `ids` [n] uint64."""
    h = (length + 1).astype(np.uint64)
    h *= np.uint64(0x9E3779B97F4A7C15)
    row = np.arange(len(h))
    while len(row):
        word = words[start]
        word &= _FIRST_BYTES.take(np.minimum(length, 8))
        h ^= word
        _finalise(h)
        ids[row] = h
        longer = np.flatnonzero(length > 8)
        row, h = row[longer], h[longer]
        start, length = start[longer] + 8, length[longer] - 8


def _finalise(h: np.ndarray) -> None:
    """Mixes uint64 in place: every bit depends on every bit (splitmix64)."""
    h ^= h >> np.uint64(30)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    h ^= h >> np.uint64(27)
    h *= np.uint64(0x94D049BB133111EB)
    h ^= h >> np.uint64(31)


def numbers(values: np.ndarray, steps: Sequence[Transform] = ()) -> np.ndarray:
    """Applies the transforms of a numeric field in order.

    The steps compute in float64, which holds what counts and times of any size leave
    after a mean is taken off; only the result is rounded.

    Args:
        values: [n] integers or floats.
        steps: of the field.

    Returns:
        [n] float32; infinite where the result is too large for it.
    """
    if steps:
        values = values.astype(np.float64)  # a copy, changed in place
    for step in steps:
        if isinstance(step, Clip):
            np.clip(values, step.minimum, step.maximum, out=values)
        elif isinstance(step, Standardise):
            values -= step.mean
            values /= step.deviation
        else:
            size = np.abs(values)
            np.copysign(np.log1p(size, out=size), values, out=values)
    with np.errstate(over="ignore"):  # the caller checks for what overflows
        return values.astype(np.float32, copy=False)


def bucket_ids(values: np.ndarray, boundaries: Sequence[float]) -> np.ndarray:
    """Returns how many boundaries are <= each number, int32; NaN counts as largest.

    Boundaries are rounded as the numbers are: 0.7 in a float32 column is not below the
    boundary 0.7, as it is not where the same number comes as a float64.
    """
    kind = values.dtype if values.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore"):  # infinity is above all that the type can hold
        rounded = np.asarray(boundaries, np.float64).astype(kind)
    return np.searchsorted(rounded, values, side="right").astype(np.int32)


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
    if ids.dtype.itemsize < 4:  # V may be beyond what they can hold
        ids = ids.astype(np.int32)
    # One pass in place of two: as unsigned numbers, negative ids are large ones.
    if not ids.size or ids.view(f"u{ids.dtype.itemsize}").max() < num_rows:
        return ids.astype(np.int32, copy=False)
    is_outside = (ids < 0) | (ids >= num_rows)
    if default_row is None:
        largest, more_rows = int(ids.max()), ""
        if num_rows <= largest < MAX_ROWS:
            more_rows = f"set num_rows of the table to {largest + 1} or more, "
        raise DataError(
            f"{where}{': ' if where else ''}field {field!r}: {is_outside.sum()} of "
            f"{ids.size} ids are outside table {table!r} with num_rows = {num_rows} "
            f"(smallest id {ids.min()}, largest {largest}); {more_rows}make the "
            "table's ids 'hash', train a row for them all "
            "(--config.tables.out_of_range=default_row), or convert the data set again "
            "(ids start at 0, unknown and missing are an id of their own)"
        )
    rows = ids.astype(np.int32)
    rows[is_outside] = default_row
    return rows
