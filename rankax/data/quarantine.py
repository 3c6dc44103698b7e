"""Quarantine: finding the shards and row groups that cannot be read, before a run.

A run that does without them must do so from its first example to its last, in every
epoch, on every process and after every restart. So nothing is left out on the way: all
of a split is read once, with its checksums, what cannot be read is named, and the split
is opened without it. Values that the card does not allow are mistakes in the data, not
damage, and stay errors.
"""

from collections import Counter
from collections.abc import Callable
from concurrent import futures

import pyarrow.parquet as pq

from rankax.data import packing, parquet, storage
from rankax.data.errors import DataError
from rankax.data.parquet import LeftOut, ParquetSplit
from rankax.data.schema import Schema

_SHOWN = 3  # in the message of an error


def find(
    folder: str,
    split: str,
    schema: Schema,
    *,
    share: float,
    num_threads: int,
    follow: Callable[[int], Callable[[int], None]],
) -> tuple[LeftOut, ...]:
    """Reads a whole split and returns what of it cannot be read.

    A shard goes whole if its footer is damaged or its columns are not those of most
    shards, else row group by row group.

    Args:
        folder: the dataset folder.
        split: name of the split.
        schema: fields and tasks in use; other columns are not looked at.
        share: of the rows that may be lost.
        num_threads: threads that read.
        follow: called with the number of row groups, returns what is called with how
            many of them have been read.

    Raises:
        DataError: more than that is lost, or the folder cannot be used for other
            reasons, such as a shard that is missing or a store that does not answer.
    """
    left_out = _damaged_shards(folder, split, schema)
    source = ParquetSplit(folder, split, schema, left_out=left_out)
    num_groups = len(source.rows_per_group)
    tell = follow(num_groups)
    with futures.ThreadPoolExecutor(num_threads) as pool:
        problems = pool.map(lambda group: _problem(source, group), range(num_groups))
        for group, why in enumerate(problems):
            tell(group + 1)
            if why:
                place, index = source.place(group)
                rows = int(source.rows_per_group[group])
                entry = LeftOut(
                    file=place.name, row_group=index, num_rows=rows, why=why
                )
                left_out.append(entry)
    total = schema.card.splits[split].num_rows
    read = int(source.rows_per_group.sum())
    lost = (
        total - read + sum(entry.num_rows for entry in left_out if entry.row_group >= 0)
    )
    if lost > share * total or lost == total:
        shown = "".join(f"\n  - {entry}" for entry in left_out[:_SHOWN])
        more = len(left_out) - _SHOWN
        raise DataError(
            f"{source.name}: {lost:,} of {total:,} rows cannot be read, more than the "
            f"share data.quarantine = {share:g} of them:{shown}"
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nrestore the files, or convert the data set again"
        )
    return tuple(left_out)


def _damaged_shards(folder: str, split: str, schema: Schema) -> list[LeftOut]:
    columns = packing.needed_columns(schema)
    left_out: list[LeftOut] = []
    kinds: dict[str, tuple[str, ...]] = {}
    num_rows: dict[str, int] = {}
    for place in parquet.shards(folder, split, schema.card):
        try:
            metadata = parquet.footer(place).metadata
        except DataError as error:
            why = _damage(error)
            left_out.append(
                LeftOut(file=place.name, row_group=-1, num_rows=-1, why=why)
            )
            continue
        kinds[place.name] = _kinds(metadata, columns)
        num_rows[place.name] = metadata.num_rows
    if not kinds:
        return []  # opening the split says what is wrong with its first shard
    usual = Counter(kinds.values()).most_common(1)[0][0]
    for name, own in kinds.items():
        if own != usual:
            column, found, expected = next(
                each
                for each in zip(columns, own, usual, strict=True)
                if each[1] != each[2]
            )
            why = f"column {column!r} is {found}, but {expected} in most shards"
            left_out.append(
                LeftOut(file=name, row_group=-1, num_rows=num_rows[name], why=why)
            )
    return left_out


def _kinds(metadata: pq.FileMetaData, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the type of each column, or that it is missing."""
    schema = metadata.schema.to_arrow_schema()
    return tuple(
        str(schema.field(name).type) if schema.names.count(name) == 1 else "missing"
        for name in columns
    )


def _problem(source: ParquetSplit, group: int) -> str:
    """Returns what keeps a row group from being read, "" if nothing does."""
    try:
        source.read(group)
    except DataError as error:
        return _damage(error)
    return ""


def _damage(error: DataError) -> str:
    """Returns what is damaged; an error of the system, or of a store, goes on.

    What is only out of reach, like a file that this user may not read, will be there
    again, and nothing must be left out for it.
    """
    cause = error.__cause__
    is_of_system = isinstance(cause, OSError) and cause.errno is not None
    if not isinstance(cause, Exception) or is_of_system or storage.advice(cause, ""):
        raise error
    return " ".join(str(cause).split())
