"""How rows stand in the memory of one device: one after another, or in lines.

A CPU or GPU keeps [V, D] row by row. A TPU keeps arrays in tiles of 8 · 128 numbers: it
either fills rows up to 128, eight times the bytes at D = 16, or turns the array around,
so that a row's numbers are 128 apart, and copies it to see [S, R, D] as [V, D]. There
128 // D rows share a line of 128 numbers, and a step moves whole lines.

Lines are kept as bits. A row is written by adding, modulo 2^32, the difference of its
bits to its part of the line and zeros to the others: rows of one line may then be
written at once, and each gets its bits exactly.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax import lax
from jax.experimental import xla_metadata
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from rankax.embeddings.placement import ReplicatedStack, RowGroup
from rankax.parallel.mesh import AXES

LANES = 128
_PIECE = 2**16  # rows that `fill` writes at a time


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """The rows of one array on one device.

    Attributes:
        num_rows: V, of this device.
        tail: shape of a row, () or (D,).
        dtype: of its numbers.
    """

    num_rows: int
    tail: tuple[int, ...]
    dtype: np.dtype

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of a row in `get` and `put`: `tail`, but D = 1 is dropped."""
        return tuple(size for size in self.tail if size > 1)

    @property
    def per_line(self) -> int:
        """Rows that stand side by side."""
        return 1


class Flat(_Rows):
    """Rows one after another, [V, D]; D = 1 is dropped.

    XLA gives a scatter into [V, 1] another layout than its operand, and so copies it.
    """

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that `get` and `put` take."""
        return (self.num_rows, *self.row)

    @property
    def stored_dtype(self) -> np.dtype:
        """Of that array."""
        return self.dtype

    def get(self, flat: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns rows [M], [M, *row]; zeros past the end."""
        return rows_at(flat, rows)

    def put(
        self,
        flat: jax.Array,
        rows: jax.Array,
        values: jax.Array,
        *,
        is_ascending: bool = False,
    ) -> jax.Array:
        """Writes rows [M], all different where they are not past the end.

        Args:
            flat: the array.
            rows: [M]; those past the end are left out.
            values: [M, ...].
            is_ascending: every row is larger than the one before it. XLA for TPU sorts
                them otherwise.
        """
        return flat.at[rows].set(
            values.reshape(-1, *self.row),
            mode="drop",
            unique_indices=is_ascending,
            indices_are_sorted=is_ascending,
        )

    def pack(self, rows: Any) -> Any:
        """NumPy or JAX rows [V, *tail] -> the array."""
        return rows.reshape(self.shape)

    def unpack(self, stored: Any) -> Any:
        """The array -> its rows [V, *tail]."""
        return stored.reshape(self.num_rows, *self.tail)


class Lines(_Rows):
    """`per_line` rows side by side in each line of `lanes` numbers; as `Flat`."""

    __slots__ = ()

    @property
    def width(self) -> int:
        """D."""
        return self.tail[0]

    @property
    def per_line(self) -> int:
        """Rows of a line."""
        return max(LANES // self.width, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Lines, and numbers of a line."""
        lanes = -(-self.width // LANES) * LANES
        return -(-self.num_rows // self.per_line), lanes

    @property
    def stored_dtype(self) -> np.dtype:
        """Unsigned integers of the size of a number."""
        return np.dtype(f"uint{8 * self.dtype.itemsize}")

    def get(self, lines: jax.Array, rows: jax.Array) -> jax.Array:
        """Returns rows [M], [M, D]; zeros past the end."""
        parts, is_own = self._parts(lines, rows)
        bits = jnp.where(is_own, parts, 0).sum(axis=1, dtype=parts.dtype)
        return lax.bitcast_convert_type(bits, self.dtype)

    def put(
        self,
        lines: jax.Array,
        rows: jax.Array,
        values: jax.Array,
        *,
        is_ascending: bool = False,
    ) -> jax.Array:
        """Writes values [M, D] to rows [M], as `Flat.put`."""
        bits = lax.bitcast_convert_type(values, self.stored_dtype)
        parts, is_own = self._parts(lines, rows)
        change = jnp.where(is_own, bits[:, None] - parts, 0).reshape(len(rows), -1)
        change = jnp.pad(change, ((0, 0), (0, lines.shape[1] - change.shape[1])))
        return lines.at[self._line(rows)].add(
            change, mode="drop", indices_are_sorted=is_ascending
        )

    def pack(self, rows: Any) -> Any:
        """NumPy or JAX rows [V, D] -> lines, filled up with zeros."""
        count, lanes = self.shape
        rows = rows.view(self.stored_dtype)
        np_like = jnp if isinstance(rows, jax.Array) else np
        missing = count * self.per_line - self.num_rows
        rows = np_like.pad(rows, ((0, missing), (0, 0))).reshape(count, -1)
        return np_like.pad(rows, ((0, 0), (0, lanes - rows.shape[1])))

    def unpack(self, stored: Any) -> Any:
        """Lines -> their rows [V, D]."""
        rows = stored[:, : self.per_line * self.width].reshape(-1, self.width)
        return rows[: self.num_rows].view(self.dtype)

    def _line(self, rows: jax.Array) -> jax.Array:
        # The last line may have room for more rows than there are.
        return jnp.where(rows < self.num_rows, rows // self.per_line, self.shape[0])

    def _parts(self, lines: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the parts of each row's line, [M, P, D], and which is its own."""
        found = rows_at(lines, self._line(rows))[:, : self.per_line * self.width]
        place = jnp.arange(self.per_line, dtype=rows.dtype)
        is_own = (rows % self.per_line)[:, None] == place
        parts = found.reshape(len(rows), self.per_line, self.width)
        return parts, is_own[..., None]


Layout = Flat | Lines


def of(
    x: jax.Array | jax.ShapeDtypeStruct, stack: RowGroup | ReplicatedStack
) -> Layout:
    """Returns the layout of an array of a stack, as checkpoints or devices have it.

    Args:
        x: [V, ...] of a replicated stack; [S, R, ...] of a row group, or what `pack`
            makes of it, which never has that shape: lines are 128 wide or more, and
            fewer than S if R is.
        stack: its placement.
    """
    if isinstance(stack, ReplicatedStack):
        return Flat(num_rows=stack.num_rows, tail=x.shape[1:], dtype=x.dtype)
    sharding = x.sharding
    assert sharding is not None
    is_split = not sharding.is_fully_replicated
    num_rows = stack.num_rows // (sharding.num_devices if is_split else 1)
    if x.shape[:2] == (stack.num_shards, stack.depth):
        return Flat(num_rows=num_rows, tail=x.shape[2:], dtype=x.dtype)
    if x.ndim == 1 or x.shape == (stack.num_rows, stack.dim):
        return Flat(num_rows=num_rows, tail=x.shape[1:], dtype=x.dtype)
    dtype = np.dtype(np.float32 if x.dtype == np.uint32 else x.dtype)
    return Lines(num_rows=num_rows, tail=(stack.dim,), dtype=dtype)


def repeat(layout: Layout, rows: jax.Array, num_devices: int) -> jax.Array:
    """Returns the array of all devices whose rows are all the same.

    Args:
        layout: on one device.
        rows: [n, *tail], some of these rows, at least `LANES`.
        num_devices: N.
    """
    few = dataclasses.replace(layout, num_rows=layout.per_line)
    count, *line = layout.shape
    return jnp.broadcast_to(
        few.pack(rows[: few.num_rows]), (num_devices * count, *line)
    )


def fill(
    layout: Layout, make_block: Callable[[jax.Array], jax.Array], blocks: jax.Array
) -> jax.Array:
    """Makes the array of one device block by block; runs inside `shard_map`.

    Args:
        layout: on one device.
        make_block: number of a block, [] -> its rows [R, *tail].
        blocks: [n], the numbers; n · R is V.
    """
    size = layout.num_rows // len(blocks)
    piece = min(size, _PIECE)  # lines are wide, and a block may be large

    def add(index: jax.Array, stored: jax.Array) -> jax.Array:
        block = make_block(blocks[index])

        def add_piece(number: jax.Array, stored: jax.Array) -> jax.Array:
            start = jnp.minimum(number * piece, size - piece)
            values = lax.dynamic_slice_in_dim(block, start, piece)
            rows = index * size + start + jnp.arange(piece, dtype=jnp.int32)
            return layout.put(stored, rows, values, is_ascending=True)

        return lax.fori_loop(0, -(-size // piece), add_piece, stored)

    stored = jnp.zeros(layout.shape, layout.stored_dtype)
    stored = lax.pcast(stored, AXES, to="varying")
    return lax.fori_loop(0, len(blocks), add, stored)


def is_in_lines(mesh: Mesh) -> bool:
    """Returns whether the devices of a mesh keep arrays in lanes."""
    return mesh.devices.flat[0].platform == "tpu"


def choose(
    group: RowGroup, x: jax.ShapeDtypeStruct, *, num_devices: int, in_lines: bool
) -> Layout:
    """Returns the layout of an array of a group.

    Args:
        group: the row group.
        x: [S, R, ...].
        num_devices: N, which share it.
        in_lines: whether rows that do not fill lines by themselves are to share them.
            Single numbers do: XLA keeps [V] without padding.
    """
    tail = x.shape[2:]
    width = tail[0] if tail else 1
    kind = Lines if in_lines and width > 1 and width % LANES else Flat
    return kind(
        num_rows=group.num_rows // num_devices, tail=tail, dtype=np.dtype(x.dtype)
    )


def rows_at(flat: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns rows [...] of flat [V, D] or [V]; zeros past the end.

    On CPU XLA would fuse a gather into whatever reads it, and compute the address of a
    row anew for each of its D numbers. A call that is not inlined keeps it apart.
    """

    def apart(flat, rows):
        with xla_metadata.set_xla_metadata(inlineable="false"):
            return jax.jit(gather)(flat, rows)

    return lax.platform_dependent(flat, rows, cpu=apart, default=gather)


def gather(flat: jax.Array, rows: jax.Array) -> jax.Array:
    """Returns rows [...] of flat [V, D] or [V]; zeros past the end."""
    return flat.at[rows].get(mode="fill", fill_value=0)
