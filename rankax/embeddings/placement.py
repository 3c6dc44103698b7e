"""Where every row of every table lives, decided before anything is allocated.

Row-sharded tables of equal (role, width, init) are stacked into one array [S, R, D],
sharded over all devices along S. S, the number of virtual shards, is fixed: any device
count that divides it can hold the array, so a checkpoint is free of the machine.
Row k of a table stands at

    shard s = ((k mod S) · odd + salt_table) mod S,   depth r = offset_table + k div S.

The odd multiplier and the salt spread frequency-sorted ids, which would otherwise put
every table's hottest rows on the first device. Tables below a byte limit are stacked
into one replicated array instead and train like dense weights.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import hashlib
import types

import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import TablesConfig, TableSpec

# Row ids are int32, and routing needs some values past the last row for padding.
MAX_GROUP_ROWS = 2**31 - 2**25


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTable:
    """A table inside a stack: its spec, first depth (or row) and salt."""

    spec: TableSpec
    offset: int
    salt: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """Tables of one role and width in one array.

    Attributes:
        name: key of the array.
        role: the role of `TableSpec` that it serves.
        tables: the stacked tables.
        columns: columns of the batch's ids that look up here, ascending.
        column_tables: index into `tables` for each of `columns`.
        dim: D.
    """

    name: str
    role: str
    tables: tuple[PlacedTable, ...]
    columns: tuple[int, ...]
    column_tables: tuple[int, ...]
    dim: int

    @functools.cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray]:
        """Salt and offset of each column's table, [K_g] uint32."""
        placed = [self.tables[i] for i in self.column_tables]
        return (
            np.array([table.salt for table in placed], np.uint32),
            np.array([table.offset for table in placed], np.uint32),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowGroup(Stack):
    """Row-sharded tables stacked into one array [S, R, D].

    Attributes:
        num_shards: S.
        depth: R.
    """

    num_shards: int
    depth: int

    @property
    def num_rows(self) -> int:
        """Rows of the stack, padding included: S·R."""
        return self.num_shards * self.depth

    def stack_rows(self, ids: np.ndarray) -> np.ndarray:
        """Maps rows of tables to rows s·R + r of the stack.

        Args:
            ids: [n, K] int32, rows within tables for all columns of the batch;
                -1 = padding.

        Returns:
            [n, K_g] int32, one column for each of `columns`; padding stays -1.
        """
        if len(self.columns) < ids.shape[1]:
            ids = ids[:, list(self.columns)]
        salts, offsets = self._constants
        rows = _stack_rows(ids, salts, offsets, self.num_shards, self.depth)
        if ids.min(initial=0) < 0:
            rows[ids < 0] = -1
        return rows

    def table_rows(self, index: int, ids: np.ndarray) -> np.ndarray:
        """Maps rows `ids` of table `index` to rows of the stack, [n] int32."""
        placed = self.tables[index]
        return _stack_rows(
            ids,
            np.uint32(placed.salt),
            np.uint32(placed.offset),
            self.num_shards,
            self.depth,
        )

    def tables_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns the index into `tables` of rows of the stack, intp [n]."""
        return self._table_of_depth[rows % np.int32(self.depth)]

    @functools.cached_property
    def _table_of_depth(self) -> np.ndarray:
        """[R] intp."""
        starts = [table.offset for table in self.tables]
        sizes = np.diff([*starts, self.depth])
        return np.repeat(np.arange(len(starts)), sizes)

    def find(self, row: int) -> tuple[TableSpec, int]:
        """Inverse of `table_rows`: the table and its row at a row of the stack."""
        shard, depth = divmod(row, self.depth)
        placed = [table for table in self.tables if table.offset <= depth][-1]
        low = (shard - placed.salt) * pow(_odd(self.num_shards), -1, self.num_shards)
        below = low % self.num_shards
        return placed.spec, (depth - placed.offset) * self.num_shards + below


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplicatedStack(Stack):
    """Small tables stacked into one replicated array [V, D].

    Attributes:
        num_rows: V; `offset` of a table is its first row.
    """

    num_rows: int

    def stack_rows(self, ids: np.ndarray) -> np.ndarray:
        """Maps rows of tables to rows of the stack; padding becomes V (no row)."""
        ids = ids[:, list(self.columns)]
        _, offsets = self._constants
        return np.where(ids < 0, self.num_rows, ids + offsets).astype(np.int32)

    def table_rows(self, index: int, ids: np.ndarray) -> np.ndarray:
        """Maps rows `ids` of table `index` to rows of the stack, [n] int32."""
        return (ids + np.int32(self.tables[index].offset)).astype(np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablePlan:
    """The placement of every table; see the module.

    Attributes:
        groups: row-sharded stacks.
        stacks: replicated stacks.
        column_tables: table name of each of the K columns of the batch's ids.
        default_rows: tables whose last row serves ids outside of them -> that row.
    """

    groups: tuple[RowGroup, ...]
    stacks: tuple[ReplicatedStack, ...]
    column_tables: tuple[str, ...]
    default_rows: Mapping[str, int]

    @property
    def num_columns(self) -> int:
        """K."""
        return len(self.column_tables)

    @property
    def parts(self) -> tuple[RowGroup | ReplicatedStack, ...]:
        """All stacks."""
        return (*self.groups, *self.stacks)

    @property
    def dims(self) -> dict[str, int]:
        """Role -> D."""
        return {part.role: part.dim for part in self.parts}

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in all tables, padding rows excluded."""
        return sum(
            table.spec.num_rows * table.spec.dim
            for part in self.parts
            for table in part.tables
        )

    def __str__(self) -> str:
        """A table of tables, for people."""
        lines = [f"{'table':24} {'role':10} {'rows':>13} {'dim':>4}  placed"]
        for part in self.parts:
            where = "by row" if isinstance(part, RowGroup) else "replicated"
            for table in part.tables:
                spec = table.spec
                lines.append(
                    f"{spec.name:24} {spec.role:10} {spec.num_rows:13,} {spec.dim:4}  "
                    f"{where} in {part.name}"
                )
        return "\n".join(lines)


def check_num_shards(config: TablesConfig, *, num_devices: int) -> None:
    """Raises where tables cannot be split over the devices."""
    shards = config.num_shards
    if shards % num_devices:
        advice = f"a power of two of devices, up to {shards}"
        if num_devices & (num_devices - 1) == 0:
            advice = f"tables.num_shards = {num_devices} or a multiple of it"
        raise ConfigError(
            f"{num_devices} devices do not divide tables.num_shards = {shards}; use "
            + advice
        )


def plan_tables(
    specs: Sequence[TableSpec],
    *,
    column_tables: Sequence[str],
    column_fields: Sequence[str] = (),
    config: TablesConfig,
    num_devices: int,
    default_rows: Mapping[str, int] = types.MappingProxyType({}),
) -> TablePlan:
    """Places every table exactly once.

    Args:
        specs: the backbone's tables.
        column_tables: table name of each of the K columns of the batch's ids.
        column_fields: its field; needed where a spec is for some fields alone.
        config: layout options.
        num_devices: N.
        default_rows: see `TablePlan`.

    Raises:
        ConfigError: N does not divide S, two specs of one table in one role, widths
            that differ inside a role, a column without a table in any role, a table
            without a column, or a table that is too large for 32-bit row ids.
    """
    check_num_shards(config, num_devices=num_devices)
    shards = config.num_shards
    by_role: dict[str, dict[str, TableSpec]] = {}
    for spec in specs:
        names = by_role.setdefault(spec.role, {})
        if spec.name in names:
            raise ConfigError(f"table {spec.name!r} is asked for twice as {spec.role}")
        names[spec.name] = spec
    missing = sorted(set(column_tables) - {spec.name for spec in specs})
    if missing:
        raise ConfigError(
            f"a field uses table {missing[0]!r}, which the backbone does not declare "
            "for any role"
        )
    groups: list[RowGroup] = []
    stacks: list[ReplicatedStack] = []
    for role, names in by_role.items():
        kinds = {name: (spec.dim, spec.init) for name, spec in names.items()}
        if len(set(kinds.values())) > 1:
            raise ConfigError(
                f"tables of role {role!r} differ in (dim, init): {kinds}; one role has "
                "one width and one kind of initialisation"
            )
        read = [
            k
            for k, name in enumerate(column_tables)
            if name in names
            and (not names[name].fields or column_fields[k] in names[name].fields)
        ]
        unused = sorted(names.keys() - {column_tables[k] for k in read})
        if unused:
            raise ConfigError(
                f"the backbone declares table {unused[0]!r} for role {role!r}, but no "
                "field uses it"
            )
        limit = config.replicate_below_bytes
        small = [s for s in names.values() if s.num_rows * s.dim * 4 < limit]
        large = [s for s in names.values() if s not in small]
        parts: list[RowGroup | ReplicatedStack] = []
        if small:
            parts.append(_replicated(role, small))
        for index, members in enumerate(_split(large, shards)):
            parts.append(_sharded(f"{role}_{index}", role, members, shards))
        for part in parts:
            members = [table.spec.name for table in part.tables]
            columns = [k for k in read if column_tables[k] in members]
            part = dataclasses.replace(
                part,
                columns=tuple(columns),
                column_tables=tuple(members.index(column_tables[k]) for k in columns),
            )
            if isinstance(part, RowGroup):
                groups.append(part)
            else:
                stacks.append(part)
    plan = TablePlan(
        groups=tuple(groups),
        stacks=tuple(stacks),
        column_tables=tuple(column_tables),
        default_rows=dict(default_rows),
    )
    _check_every_table_once(plan, specs)
    return plan


def _check_every_table_once(plan: TablePlan, specs: Sequence[TableSpec]) -> None:
    """Asserts that the plan holds each spec once, in places of its own."""
    placed = Counter(table.spec for part in plan.parts for table in part.tables)
    assert placed == Counter(specs), (placed, specs)
    for part in plan.parts:
        is_group = isinstance(part, RowGroup)
        end = 0
        for table in part.tables:
            assert table.offset == end, (part.name, table)
            rows = table.spec.num_rows
            end += _depth(rows, part.num_shards) if is_group else rows
        assert end == (part.depth if is_group else part.num_rows), part.name


def _replicated(role: str, specs: list[TableSpec]) -> ReplicatedStack:
    placed, rows = [], 0
    for spec in specs:
        placed.append(PlacedTable(spec=spec, offset=rows))
        rows += spec.num_rows
    return ReplicatedStack(
        name=role,
        role=role,
        tables=tuple(placed),
        columns=(),
        column_tables=(),
        num_rows=rows,
        dim=specs[0].dim,
    )


def _sharded(name: str, role: str, specs: list[TableSpec], shards: int) -> RowGroup:
    placed, depth = [], 0
    for spec in specs:
        digest = hashlib.blake2b(f"{role}/{spec.name}".encode(), digest_size=8)
        salt = int.from_bytes(digest.digest(), "little") % shards
        placed.append(PlacedTable(spec=spec, offset=depth, salt=salt))
        depth += _depth(spec.num_rows, shards)
    return RowGroup(
        name=name,
        role=role,
        tables=tuple(placed),
        columns=(),
        column_tables=(),
        num_shards=shards,
        depth=depth,
        dim=specs[0].dim,
    )


def _split(specs: list[TableSpec], shards: int) -> list[list[TableSpec]]:
    """Splits tables, in order, into groups below the limit of 32-bit row ids."""
    groups: list[list[TableSpec]] = []
    used = 0
    for spec in specs:
        rows = _depth(spec.num_rows, shards) * shards
        if rows > MAX_GROUP_ROWS:
            raise ConfigError(
                f"table {spec.name!r} has {spec.num_rows:,} rows; at most "
                f"{MAX_GROUP_ROWS:,} fit 32-bit row ids: hash it to fewer rows"
            )
        if not groups or used + rows > MAX_GROUP_ROWS:
            groups.append([])
            used = 0
        groups[-1].append(spec)
        used += rows
    return groups


def _depth(num_rows: int, shards: int) -> int:
    return -(-num_rows // shards)


def _odd(shards: int) -> int:
    """An odd multiplier near S / golden ratio: neighbours land far apart."""
    return int(shards * 0.6180339887) | 1


def _stack_rows(
    ids: np.ndarray,
    salts: np.ndarray | np.uint32,
    offsets: np.ndarray | np.uint32,
    shards: int,
    depth: int,
) -> np.ndarray:
    k = ids.astype(np.uint32)
    mask = np.uint32(shards - 1)
    # S is a power of two, so wrapping 32-bit products keep the residue mod S. In
    # place, because every new array is a pass through memory.
    rows = k & mask
    rows *= np.uint32(_odd(shards))
    rows += salts
    rows &= mask
    rows *= np.uint32(depth)
    rows += offsets
    k >>= np.uint32(shards.bit_length() - 1)
    rows += k
    return rows.view(np.int32)
