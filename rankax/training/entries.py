"""What two runs have in common, entry by entry.

"tables/<role>/<table>" is a logical table with its row optimizer's state and
`last_step`, wherever it stands in its stack; every array of the network is
"network/<path>", with its moments. `Side` finds them in the record of a checkpoint,
`compare` says what one run can take over from another.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
import json
import re
from typing import Any

from rankax.config.base import ConfigError, suggest
from rankax.config.experiment import TableSpec
from rankax.embeddings import remap
from rankax.embeddings.placement import PlacedTable, ReplicatedStack, RowGroup
from rankax.embeddings.remap import Placement

_MOMENT = re.compile(r"opt_state/(?:.*?/)?(\w+)/(network|tables)/(.+)")
_VALUE, _ROWS = "value", "rows"  # what an entry's arrays other than moments are called


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs.

    Attributes:
        arrays: name -> (dtype, shape).
        dense: entry -> what -> array.
        rows: stack -> what -> array.
        tables: "<role>/<table>" -> its record in the manifest.
        stacks: name -> placement.
        hashed: names of tables whose ids are hashed to rows.
    """

    arrays: Mapping[str, tuple[str, tuple[int, ...]]]
    dense: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, Mapping[str, str]]
    tables: Mapping[str, Mapping[str, Any]]
    stacks: Mapping[str, Placement]
    hashed: frozenset[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What becomes of an entry; `misfits` are its differences from the other run's."""

    kind: str  # "kept", "resized", "fresh" or "dropped"
    entry: str
    detail: str
    misfits: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.kind:8} {self.entry}  {self.detail}"
        return "; ".join([text, *self.misfits])


def side_of(manifest: Mapping[str, Any], origin: Mapping[str, Any]) -> Side:
    """Sorts the arrays of a manifest (`rankax.training.checkpoint`) by entry."""
    arrays, dense, rows = {}, {}, {}
    for name, text in manifest["arrays"].items():
        dtype, _, shape = text.partition("[")
        arrays[name] = dtype, tuple(json.loads("[" + shape))
        kind, _, rest = name.partition("/")
        if match := _MOMENT.fullmatch(name):
            moment, part, path = match.groups()
            entries = rows if part == "tables" else dense
            key = path if part == "tables" else f"network/{path}"
            entries.setdefault(key, {})[moment] = name
        elif kind == "tables":
            stack, _, what = rest.partition("/")
            rows.setdefault(stack, {})[what] = name
        elif name.startswith("params/tables/"):
            rows.setdefault(rest.partition("/")[2], {})[_ROWS] = name
        elif name.startswith("params/network/"):
            dense.setdefault(rest, {})[_VALUE] = name
        elif kind == "rest":  # statistics of norms
            dense.setdefault(f"network/{rest}", {})[_VALUE] = name
    tables = manifest["tables"]
    stacks = {
        stack: _placement(
            [(key, x) for key, x in tables.items() if x["stack"] == stack],
            arrays[rows[stack][_ROWS]][1],
        )
        for stack in dict.fromkeys(x["stack"] for x in tables.values())
    }
    return Side(
        arrays=arrays,
        dense=dense,
        rows=rows,
        tables=tables,
        stacks=stacks,
        hashed=frozenset(origin["hashed_tables"]),
    )


def _placement(
    records: list[tuple[str, Mapping[str, Any]]], shape: tuple[int, ...]
) -> Placement:
    """Rebuilds a stack's placement from its tables' records, for its row numbers."""
    placed = tuple(
        PlacedTable(
            spec=TableSpec(
                name=key, role="", num_rows=record["num_rows"], dim=record["dim"]
            ),
            offset=record["offset"],
            salt=record["salt"],
        )
        for key, record in records
    )
    _, first = records[0]
    common: dict[str, Any] = {
        "name": first["stack"],
        "role": "",
        "tables": placed,
        "columns": (),
        "column_tables": (),
        "dim": first["dim"],
    }
    if first["num_shards"]:
        return RowGroup(**common, num_shards=first["num_shards"], depth=shape[1])
    return ReplicatedStack(**common, num_rows=shape[0])


def renamed_tables(renames: tuple[str, ...], new: Side, old: Side) -> dict[str, str]:
    """Returns "<role>/<table>" -> the other run's, for all tables of this run."""
    names = dict(rename.split("=") for rename in renames)
    for side, used, where in (
        (new, names.keys(), "this run"),
        (old, names.values(), "the other run"),
    ):
        known = sorted({key.partition("/")[2] for key in side.tables})
        for name in used:
            if name not in known:
                raise ConfigError(
                    f"checkpoint.init_rename: {where} has no table {name!r}; "
                    f"{suggest(name, known)}"
                )
    pairs = {}
    for key in new.tables:
        role, _, name = key.partition("/")
        pairs[key] = f"{role}/{names.get(name, name)}"
    return pairs


# ---------------------------------------------------------------- what to take


def compare(
    new: Side, old: Side, renamed: Mapping[str, str], patterns: tuple[str, ...]
) -> list[Line]:
    """Says of every entry of both runs what becomes of it.

    Args:
        new: the run that takes over.
        old: the run that it takes from.
        renamed: of `renamed_tables`.
        patterns: of the entries that are asked for; () = all.
    """
    lines = []
    for key in new.tables:
        entry = f"tables/{key}"
        is_asked = _is_asked(entry, patterns)
        lines.append(_compare_table(entry, key, renamed[key], new, old, is_asked))
    for key in old.tables.keys() - set(renamed.values()):
        num_rows = old.tables[key]["num_rows"]
        lines.append(
            Line(kind="dropped", entry=f"tables/{key}", detail=f"{num_rows:,} rows")
        )
    for entry in new.dense:
        is_asked = _is_asked(entry, patterns)
        lines.append(_compare_dense(entry, new, old, is_asked))
    for entry in old.dense.keys() - new.dense.keys():
        detail = _text(old.arrays[old.dense[entry][_VALUE]])
        lines.append(Line(kind="dropped", entry=entry, detail=detail))
    return sorted(lines, key=lambda line: line.entry)


def _compare_table(
    entry: str, key: str, old_key: str, new: Side, old: Side, is_asked: bool
) -> Line:
    table, other = new.tables[key], old.tables.get(old_key)
    detail = f"{table['num_rows']:,} rows"

    def fresh(why: str) -> Line:
        return Line(kind="fresh", entry=entry, detail=detail, misfits=(why,))

    if other is None:
        return fresh("not there")
    if not is_asked:
        return fresh("not asked for")
    if table["dim"] != other["dim"]:
        return fresh(f"dim {other['dim']} there, {table['dim']} here")
    is_resized = table["num_rows"] != other["num_rows"]
    name, old_name = key.partition("/")[2], old_key.partition("/")[2]
    is_hashed, was_hashed = name in new.hashed, old_name in old.hashed
    if is_hashed != was_hashed:
        return fresh("hashed ids in one run and direct ids in the other")
    if is_hashed and (is_resized or name != old_name):
        return fresh("hashed ids have other rows under another size or name")
    misfits = []
    if (table["default_row"] < 0) != (other["default_row"] < 0):
        misfits.append(
            f"default row {'fresh' if other['default_row'] < 0 else 'dropped'}"
        )
    arrays, others = new.rows[table["stack"]], old.rows[other["stack"]]
    dtype, old_dtype = (
        side.arrays[names[_ROWS]][0] for side, names in ((new, arrays), (old, others))
    )
    if dtype != old_dtype:
        misfits.append(f"rows of {old_dtype} become {dtype}")
    common = common_rows(table["stack"], other["stack"], new, old)
    misfits += _differences(arrays.keys(), others.keys(), common)
    if is_resized:
        detail = f"{other['num_rows']:,} -> {detail}"
    if name != old_name:
        detail += f" (was {old_name})"
    kind = "resized" if is_resized else "kept"
    return Line(kind=kind, entry=entry, detail=detail, misfits=tuple(misfits))


def _compare_dense(entry: str, new: Side, old: Side, is_asked: bool) -> Line:
    arrays, others = new.dense[entry], old.dense.get(entry, {})
    detail = _text(new.arrays[arrays[_VALUE]])
    why = ""
    if not others:
        why = "not there"
    elif not is_asked:
        why = "not asked for"
    elif (found := _text(old.arrays[others[_VALUE]])) != detail:
        why = f"{found} there"
    if why:
        return Line(kind="fresh", entry=entry, detail=detail, misfits=(why,))
    common = common_dense(entry, new, old)
    misfits = _differences(arrays.keys(), others.keys(), common)
    return Line(kind="kept", entry=entry, detail=detail, misfits=tuple(misfits))


def common_dense(entry: str, new: Side, old: Side) -> list[str]:
    """Which arrays of an entry both have alike."""
    arrays, others = new.dense[entry], old.dense[entry]
    return [
        what
        for what in arrays.keys() & others.keys()
        if new.arrays[arrays[what]] == old.arrays[others[what]]
    ]


def common_rows(stack: str, old_stack: str, new: Side, old: Side) -> list[str]:
    """Which arrays of two stacks have the same numbers in each row."""
    arrays, others = new.rows[stack], old.rows[old_stack]
    common = []
    for what in arrays.keys() & others.keys():
        (dtype, shape), (old_dtype, old_shape) = (
            new.arrays[arrays[what]],
            old.arrays[others[what]],
        )
        tail = shape[remap.row_axes(new.stacks[stack]) :]
        old_tail = old_shape[remap.row_axes(old.stacks[old_stack]) :]
        if tail == old_tail and (dtype == old_dtype or what == _ROWS):
            common.append(what)
    return common


def _differences(new: Any, old: Any, common: list[str]) -> list[str]:
    return [
        *(f"{what} fresh" for what in sorted(new - set(common))),
        *(f"{what} dropped" for what in sorted(old - set(common))),
    ]


def _text(array: tuple[str, tuple[int, ...]]) -> str:
    return f"{array[0]}{list(array[1])}"


def _is_asked(entry: str, patterns: tuple[str, ...]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(entry, p) for p in patterns)
