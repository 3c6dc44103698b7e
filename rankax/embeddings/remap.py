"""Rows of tables carried from one placement to another, row by row.

Between two runs a table may stand at another place of its stack, in another number of
virtual shards, or be replicated here and sharded there. So every logical row is looked
up by the placement of the one and written by that of the other. Pieces of bounded size
go through all devices; neither array is ever gathered as a whole.
"""

from collections.abc import Iterator, Sequence
import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from rankax.embeddings import layout as layouts
from rankax.embeddings import precision
from rankax.embeddings.layout import Layout
from rankax.embeddings.placement import ReplicatedStack, RowGroup
from rankax.parallel.mesh import ALL_DEVICES, AXES

Placement = RowGroup | ReplicatedStack

_EVERYWHERE = PartitionSpec()
_PIECE_BYTES = 2**26
_NOWHERE = 2**31 - 1  # past the last row of every stack


class TableMove(NamedTuple):
    """A table to carry over: its index in both stacks and pairs of its rows.

    Attributes:
        index: in the stack that it goes to.
        source_index: in the stack that it comes from.
        num_rows: row k becomes row k, for all k below this.
        extra: (old row, new row) of others, such as the default row.
    """

    index: int
    source_index: int
    num_rows: int
    extra: tuple[tuple[int, int], ...] = ()


def carry(
    array: jax.Array,
    source: jax.Array,
    moves: Sequence[TableMove],
    *,
    stack: Placement,
    source_stack: Placement,
) -> jax.Array:
    """Writes rows of one array of a stack into the same kind of array of another.

    Beside the two arrays this takes a few times 64 MB on every device.

    Args:
        array: of a row group, [S, R, ...] or as devices keep it
            (`rankax.embeddings.layout`), or of a replicated stack, [V, ...]; consumed.
            Rows that no move names stay as they are.
        source: likewise, with as many numbers in a row. Where one of them holds 16-bit
            rows (`rankax.embeddings.precision`) and the other float32, they are
            widened, or rounded to the nearest.
        moves: the tables.
        stack: placement of `array`.
        source_stack: placement of `source`.
    """
    layout, source_layout = layouts.of(array, stack), layouts.of(source, source_stack)
    # A row in lines is read and written with its line.
    numbers = max(math.prod(x.shape[1:]) for x in (layout, source_layout))
    total = sum(move.num_rows + len(move.extra) for move in moves)
    # Powers of two, so that few sizes are compiled.
    size = min(
        1 << max(total - 1, 0).bit_length(),
        1 << (_PIECE_BYTES // 4 // numbers).bit_length() - 1,
    )
    for rows, source_rows in _pieces(moves, stack, source_stack, size):
        array = _carry(
            array,
            source,
            rows,
            source_rows,
            layout=layout,
            source_layout=source_layout,
            sharding=array.sharding,
            source_sharding=source.sharding,
        )
    return array


def read_table(
    array: jax.Array,
    *,
    stack: Placement,
    index: int,
    ids: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """Yields rows of one table, at most 64 MB of them at a time.

    Args:
        array: as for `carry`.
        stack: its placement.
        index: of the table in the stack.
        ids: [n], the rows to read; None = all of them in order.
    """
    layout = layouts.of(array, stack)
    numbers = math.prod(layout.shape[1:])
    num_rows = stack.tables[index].spec.num_rows
    total = num_rows if ids is None else len(ids)
    # Of chosen rows powers of two, so that few sizes are compiled.
    size = total if ids is None else 1 << max(total - 1, 0).bit_length()
    size = min(size, max(_PIECE_BYTES // 4 // numbers, 1))
    for start in range(0, total, size):
        # The last piece is filled up with its last row.
        places = np.minimum(np.arange(start, start + size), total - 1)
        chosen = places if ids is None else ids[places]
        rows = stack.table_rows(index, chosen.astype(np.int32))
        values = _read(array, rows, layout=layout, sharding=array.sharding)
        yield np.asarray(values)[: total - start]


def row_axes(stack: Placement) -> int:
    """Returns how many axes of a stack's arrays number its rows."""
    return 2 if isinstance(stack, RowGroup) else 1


def _pieces(
    moves: Sequence[TableMove], stack: Placement, source_stack: Placement, size: int
) -> Iterator[np.ndarray]:
    """Yields [2, size] int32, rows of both stacks; the last ones are padded."""
    waiting = np.zeros((2, 0), np.int32)
    for move in moves:
        for source_ids, ids in _ids(move, size):
            rows = stack.table_rows(move.index, ids)
            source_rows = source_stack.table_rows(move.source_index, source_ids)
            waiting = np.concatenate([waiting, [rows, source_rows]], axis=1)
            while waiting.shape[1] >= size:
                yield waiting[:, :size]
                waiting = waiting[:, size:]
    missing = size - waiting.shape[1]
    if missing < size:
        yield np.pad(waiting, ((0, 0), (0, missing)), constant_values=_NOWHERE)


def _ids(move: TableMove, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows in the old and in the new table, at most `size` at a time."""
    for start in range(0, move.num_rows, size):
        ids = np.arange(start, min(start + size, move.num_rows), dtype=np.int32)
        yield ids, ids
    for old, new in move.extra:
        yield np.array([old], np.int32), np.array([new], np.int32)


@functools.partial(
    jax.jit,
    donate_argnums=0,
    static_argnames=("layout", "source_layout", "sharding", "source_sharding"),
)
def _carry(
    array: jax.Array,
    source: jax.Array,
    rows: jax.Array,
    source_rows: jax.Array,
    *,
    layout: Layout,
    source_layout: Layout,
    sharding: NamedSharding,
    source_sharding: NamedSharding,
) -> jax.Array:
    is_split = not sharding.is_fully_replicated

    def write(local: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        place = _place(rows, layout.num_rows, is_split=is_split)
        flat = layout.put(local.reshape(layout.shape), place, values)
        return flat.reshape(local.shape)

    if is_split:
        write = jax.shard_map(
            write,
            mesh=sharding.mesh,
            in_specs=(ALL_DEVICES, _EVERYWHERE, _EVERYWHERE),
            out_specs=ALL_DEVICES,
        )
    values = _read(source, source_rows, layout=source_layout, sharding=source_sharding)
    if layout.dtype != source_layout.dtype:
        is_short = layout.dtype == jnp.uint16
        convert = precision.nearest if is_short else precision.to_float
        values = convert(values)
    result = write(array, rows, values)
    return lax.with_sharding_constraint(result, sharding)


@functools.partial(jax.jit, static_argnames=("layout", "sharding"))
def _read(
    array: jax.Array, rows: jax.Array, *, layout: Layout, sharding: NamedSharding
) -> jax.Array:
    """Returns some rows of a stack on all devices; zeros past its end."""
    is_split = not sharding.is_fully_replicated

    def read(local: jax.Array, rows: jax.Array) -> jax.Array:
        place = _place(rows, layout.num_rows, is_split=is_split)
        values = layout.get(local.reshape(layout.shape), place)
        if not is_split:
            return values
        # Summed as bits: all but one of the summands are 0, and -0.0 stays as it is.
        bits = jnp.uint16 if values.dtype.itemsize == 2 else jnp.uint32
        words = lax.bitcast_convert_type(values, bits).astype(jnp.uint32)
        words = lax.psum(words, AXES).astype(bits)
        return lax.bitcast_convert_type(words, values.dtype)

    if is_split:
        read = jax.shard_map(
            read,
            mesh=sharding.mesh,
            in_specs=(ALL_DEVICES, _EVERYWHERE),
            out_specs=_EVERYWHERE,
        )
    return read(array, rows)


def _place(rows: jax.Array, num_rows: int, *, is_split: bool) -> jax.Array:
    """Rows of the whole stack as rows of this device's part; past its end if not."""
    own = rows - lax.axis_index(AXES) * num_rows if is_split else rows
    return jnp.where((own >= 0) & (own < num_rows), own, num_rows)
