"""A bundle: what scores outside of the trainer, in one folder.

    signature.json            inputs, outputs, tables, origin, parity certificate
    rows/<role>-<table>.npy   [V, D] float32, or bfloat16 as uint16; memory-mapped
    dense.npz                 dense parameters: "network/backbone/..." -> array
    score.jax_export          StableHLO of the scoring function for cpu, cuda and tpu
    golden.json               some candidates with their logits
    orbax/                    dense parameters and rows as a plain Orbax checkpoint
    deltas/                   what has changed since (`rankax.serving.delta`)

The scoring function takes the dense parameters, the looked-up rows of every id column,
lengths, numbers and weights of lists (`rankax.data.schema`), for any number of
candidates. Nothing in a bundle is unpickled or executed but that function, and no name
in it leads out of its folder.
"""

from collections.abc import Mapping
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from typing import Any
import urllib.parse
import zipfile

import jax
from jax import export
import numpy as np

from rankax.data import card as cards
from rankax.data import records
from rankax.data.errors import DataError
from rankax.data.schema import Schema

FORMAT = 2
SIGNATURE, DENSE, FUNCTION = "signature.json", "dense.npz", "score.jax_export"
GOLDEN, ORBAX = "golden.json", "orbax"
SMALL = DENSE, FUNCTION, GOLDEN  # files whose digests are in the signature
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}


class BundleError(DataError):
    """A folder that is not a bundle, or a damaged one."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The tables that one input of the model is looked up in.

    Attributes:
        dim: D.
        dtype: of the rows, "float32" or "bfloat16".
        tables: name -> number of rows V.
    """

    dim: int
    dtype: str
    tables: dict[str, int]


def rows_file(role: str, table: str) -> str:
    """Returns where the rows of a table are."""
    names = (urllib.parse.quote(name, safe="") for name in (role, table))
    return f"rows/{'-'.join(names)}.npy"


def widened(rows: np.ndarray) -> np.ndarray:
    """Returns rows as float32, of which a bfloat16 pattern is the upper half."""
    if rows.dtype == np.float32:
        return rows
    return (rows.astype(np.uint32) << 16).view(np.float32)


def identity_in(folder: str | pathlib.Path) -> str:
    """Returns which bundle is in a folder now; "" = one that has no `id`.

    Raises:
        BundleError: its signature cannot be read.
    """
    path = pathlib.Path(folder) / SIGNATURE
    try:
        return str(json.loads(path.read_bytes()).get("id", ""))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise BundleError(
            f"{path} cannot be read ({error}); write a bundle there with --mode=export"
        ) from error


def digest(data: bytes) -> str:
    """Returns what the signature says of a small file."""
    return hashlib.sha256(data).hexdigest()


class Bundle:
    """An opened bundle.

    Attributes:
        folder: where it is.
        signature: `signature.json`.
        schema: fields and tasks.
        text_ids: features whose ids are texts.
        roles: role -> its tables.
        golden_tolerance: of the probabilities of the golden candidates.
    """

    def __init__(self, folder: str | pathlib.Path):
        """Reads the signature.

        Raises:
            BundleError: no bundle there, one of another format, or a damaged one.
        """
        self.folder = pathlib.Path(folder)
        path = self.folder / SIGNATURE
        try:
            self.signature: dict[str, Any] = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(
                f"{self.folder} is not a bundle: {SIGNATURE} cannot be read ({error}); "
                "make one with --mode=export"
            ) from error
        found = records.mapping(self.signature, str(path)).get("format")
        if found != FORMAT:
            raise BundleError(
                f"{self.folder} has format {found!r}, this version reads {FORMAT}; "
                "export it again"
            )
        try:
            card = cards.from_dict(self.signature["card"], where=f"{path}: card")
            fields, tasks, default_row = (
                self.signature[key] for key in ("fields", "tasks", "default_row")
            )
            if not (fields and tasks and type(default_row) is bool):
                raise TypeError("fields, tasks or default_row")
            self.schema = Schema.select(
                card, fields=fields, tasks=tasks, default_row=default_row
            )
            text_ids = self.signature["text_ids"]
            columns = {slot.column for slot in self.schema.slots}
            if not (isinstance(text_ids, list) and columns.issuperset(text_ids)):
                raise TypeError("text_ids")
            self.text_ids = frozenset(text_ids)
            self.roles: dict[str, Role] = {
                name: records.build(Role, entry, f"{path}: roles[{name!r}]")
                for name, entry in self.signature["roles"].items()
            }
            by_card = {
                name: {table: self.schema.num_rows[table] for table in role.tables}
                for name, role in self.roles.items()
            }
            if not (type(self.signature["id"]) is str and self.signature["id"]):
                raise TypeError("id")
            if type(self.signature["step"]) is not int:
                raise TypeError("step")
            self.golden_tolerance = float(self.signature["golden_tolerance"])
            sizes = dict(self.signature["files"])
            self._digests = dict(self.signature["digests"])
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise BundleError(
                f"{path} is damaged ({type(error).__name__}: {error}); export it again"
            ) from error
        if bool(self.roles) != bool(self.schema.slots):
            raise BundleError(f"{path} is damaged: no roles; export it again")
        for name, role in self.roles.items():
            if role.tables != by_card[name]:
                raise BundleError(
                    f"{path} is damaged: the tables of {name!r} have {role.tables} "
                    f"rows, by the card {by_card[name]}; export it again"
                )
        for name in self._needed():
            file = self.folder / name
            found = file.stat().st_size if file.is_file() else 0
            if found != sizes.get(name):
                raise BundleError(
                    f"{self.folder} is not whole: {name} has {found} bytes, its "
                    f"signature says {sizes.get(name)}; copy or export it again"
                )

    def _needed(self) -> list[str]:
        rows = [
            rows_file(r, table) for r, own in self.roles.items() for table in own.tables
        ]
        return [DENSE, FUNCTION, GOLDEN, *rows]

    def map_rows(self) -> dict[str, dict[str, np.ndarray]]:
        """Maps all rows: role -> table -> [V, D]; changes to them stay in memory.

        Raises:
            BundleError: a file of another dtype or shape.
        """
        return {
            role: {table: self._map(role, table) for table in own.tables}
            for role, own in self.roles.items()
        }

    @functools.cached_property
    def dense(self) -> dict[str, np.ndarray]:
        """The dense parameters by name."""
        data = io.BytesIO(self._read(DENSE))
        try:
            with np.load(data, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise BundleError(
                f"{self.folder}/{DENSE} is damaged ({error}); copy or export it again"
            ) from error

    @functools.cached_property
    def golden(self) -> Mapping[str, Any]:
        """{"features": name -> values, "logits": [n][T]}."""
        return records.mapping(
            json.loads(self._read(GOLDEN)), str(self.folder / GOLDEN)
        )

    def function(self) -> export.Exported:
        """Returns the scoring function.

        Raises:
            BundleError: it is damaged, or older than this version of jax can read.
        """
        data = bytearray(self._read(FUNCTION))
        try:
            return export.deserialize(data)
        except Exception as error:  # of any kind, as the damage is
            raise BundleError(
                f"{self.folder}/{FUNCTION} cannot be read by jax {jax.__version__} "
                f"({error}); export the bundle again from its checkpoint"
            ) from error

    def _read(self, name: str) -> bytes:
        """Returns a small file, if it is what was exported.

        What compiles StableHLO does not survive all of what a damaged file can hold.
        """
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise BundleError(
                f"{self.folder}/{name} cannot be read ({error}); copy or export the "
                "bundle again"
            ) from error
        if digest(data) != self._digests.get(name):
            raise BundleError(
                f"{self.folder}/{name} is damaged: it is not what was exported; copy "
                "or export the bundle again"
            )
        return data

    def _map(self, role: str, table: str) -> np.ndarray:
        own, path = self.roles[role], self.folder / rows_file(role, table)
        try:
            rows = np.load(path, mmap_mode="c", allow_pickle=False)
        except Exception as error:  # of any kind, as the damage is
            raise BundleError(
                f"{path} is damaged ({error}); copy or export the bundle again"
            ) from error
        expected = DTYPES.get(own.dtype), (own.tables[table], own.dim)
        # A damaged head may also tell of rows that begin elsewhere or stand on end.
        is_whole = rows.offset + rows.nbytes == path.stat().st_size
        is_whole = is_whole and rows.flags.c_contiguous
        if (rows.dtype, rows.shape) != expected or not is_whole:
            raise BundleError(
                f"{path} holds {rows.dtype}{list(rows.shape)}, the signature says "
                f"{own.dtype}{list(expected[1])}; export the bundle again"
            )
        return np.asarray(rows)  # still mapped; plain arrays are indexed faster
