"""Deltas: what has changed in a model since it was published last, in one file.

    bundle/deltas/00000001.npz, 00000002.npz, ...

Delta n turns what delta n - 1 has left (the bundle itself is 0) into the model of a
later step: rows of tables as they are now, and the dense parameters in some of them.
Each names the bundle that it belongs to, its number, and the step that it starts from,
so that none is applied to anything else. A file appears when it is whole.
"""

from collections.abc import Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from rankax.data import records
from rankax.serving.bundle import DTYPES, Bundle, BundleError

FORMAT = 1
FOLDER = "deltas"
_HEADER = "header"


class DeltaError(BundleError):
    """A delta that cannot be applied; nothing of it was."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a delta says of itself.

    Attributes:
        base: `id` of the bundle's signature.
        number: n, from 1 on.
        previous_step: training step of what it is applied to.
        step: of what it makes of that.
        is_complete: all rows are those of `step`; False = a limit of its size has left
            some as they were.
        has_dense: it brings the dense parameters.
        tables: (role, table) of each entry.
        format: version of the file.
    """

    base: str
    number: int
    previous_step: int
    step: int
    is_complete: bool
    has_dense: bool
    tables: list[list[str]]
    format: int = FORMAT


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Rows of one table.

    Attributes:
        ids: [n] int32, ascending.
        rows: [n, D], what they are now; of the bundle's dtype.
    """

    ids: np.ndarray
    rows: np.ndarray

    @property
    def num_bytes(self) -> int:
        """In a file."""
        return self.ids.nbytes + self.rows.nbytes


Changes = dict[tuple[str, str], Change]  # (role, table) -> rows


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A delta in memory.

    Attributes:
        header: what it says of itself.
        changes: rows.
        dense: dense parameters by name, None without.
    """

    header: Header
    changes: Changes
    dense: dict[str, np.ndarray] | None = None

    @property
    def num_rows(self) -> int:
        """Of all tables."""
        return sum(len(change.ids) for change in self.changes.values())

    @property
    def num_bytes(self) -> int:
        """Of rows, their ids and the dense parameters."""
        dense = (self.dense or {}).values()
        return sum(own.num_bytes for own in self.changes.values()) + sum(
            x.nbytes for x in dense
        )


def make(
    bundle: Bundle,
    changes: Changes,
    dense: dict[str, np.ndarray] | None,
    *,
    number: int,
    previous_step: int,
    step: int,
    is_complete: bool = True,
) -> Delta:
    """Makes a delta of a bundle; the arguments are what `Header` and `Delta` say."""
    header = Header(
        base=bundle.signature["id"],
        number=number,
        previous_step=previous_step,
        step=step,
        is_complete=is_complete,
        has_dense=dense is not None,
        tables=[list(names) for names in changes],
    )
    return Delta(header=header, changes=changes, dense=dense)


def file_of(bundle: str | pathlib.Path, number: int) -> pathlib.Path:
    """Returns where delta `number` of a bundle's folder is, once it is there."""
    return pathlib.Path(bundle) / FOLDER / f"{number:08d}.npz"


def numbers(bundle: str | pathlib.Path) -> list[int]:
    """Returns the numbers of the deltas that are in a bundle's folder, ascending."""
    folder = pathlib.Path(bundle) / FOLDER
    names = [path.stem for path in folder.glob("*.npz")] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def write(bundle: str | pathlib.Path, delta: Delta) -> pathlib.Path:
    """Writes a delta where it belongs, and returns that place.

    Raises:
        DeltaError: there is a delta of this number already.
    """
    path = file_of(bundle, delta.header.number)
    path.parent.mkdir(exist_ok=True)
    header = json.dumps(dataclasses.asdict(delta.header)).encode()
    arrays: dict[str, Any] = {_HEADER: np.frombuffer(header, np.uint8)}
    for index, change in enumerate(delta.changes.values()):
        arrays |= {f"ids/{index}": change.ids, f"rows/{index}": change.rows}
    for name, values in (delta.dense or {}).items():
        arrays[f"dense/{name}"] = values
    draft = path.with_name(f"{path.stem}.part")
    try:
        with draft.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)  # unlike a rename, it replaces nothing
    except FileExistsError as error:
        raise DeltaError(
            f"{path} is there already: something else publishes to {bundle}; stop one "
            "of the two"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def read(path: str | pathlib.Path, bundle: Bundle) -> Delta:
    """Reads a delta and checks that it fits a bundle.

    Raises:
        DeltaError: it is not there, damaged, or belongs to another bundle.
    """
    path = pathlib.Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        tree = json.loads(arrays.pop(_HEADER).tobytes())
        header = records.build(Header, tree, str(path))
    except Exception as error:  # of any kind, as the damage is
        raise _damaged(path, error) from error
    if header.format != FORMAT:
        raise DeltaError(
            f"{path} has format {header.format}, this version reads {FORMAT}; publish "
            "and serve by the same version"
        )
    own = bundle.signature["id"]
    if header.base != own:
        raise DeltaError(
            f"{path} belongs to bundle {header.base}, and {bundle.folder} is {own}; "
            "open that bundle, or take its own deltas"
        )
    if not isinstance(header.tables, list):
        raise _damaged(path, "its list of tables")
    changes: Changes = {}
    for index, names in enumerate(header.tables):
        try:
            role, table = names
            ids, rows = arrays.pop(f"ids/{index}"), arrays.pop(f"rows/{index}")
            num_rows = bundle.roles[role].tables[table]
            dim, dtype = bundle.roles[role].dim, DTYPES[bundle.roles[role].dtype]
        except (KeyError, ValueError, TypeError) as error:
            raise _damaged(path, error) from error
        is_right = ids.dtype == np.int32 and ids.ndim == 1
        is_right = is_right and (rows.dtype, rows.shape) == (dtype, (len(ids), dim))
        if not is_right or (len(ids) and not 0 <= ids.min() <= ids.max() < num_rows):
            raise _damaged(path, f"ids or rows of {role}/{table}")
        changes[role, table] = Change(ids=ids, rows=rows)
    dense = {name.removeprefix("dense/"): x for name, x in arrays.items()}
    _check_dense(path, dense, bundle.dense if header.has_dense else {})
    return Delta(
        header=header, changes=changes, dense=dense if header.has_dense else None
    )


def _check_dense(
    path: pathlib.Path,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
) -> None:
    kinds = [
        {name: (x.dtype, x.shape) for name, x in arrays.items()}
        for arrays in (found, expected)
    ]
    if kinds[0] != kinds[1]:
        raise _damaged(path, "other dense parameters than the bundle's")


def _damaged(path: pathlib.Path, why: object) -> DeltaError:
    reason = f"{type(why).__name__}: {why}" if isinstance(why, Exception) else why
    return DeltaError(
        f"{path} cannot be read ({reason:.300}); copy it again, or export the bundle "
        "again"
    )
