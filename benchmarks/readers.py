"""Who reads in `benchmarks/input.py`, and how it is checked that all was read.

A contestant is a function (folder, schema, rows) -> epoch, where `epoch()` goes through
the first `rows` training examples once and yields batches: packed arrays as
`rankax.data.schema` names them, or columns by name. What it does before it returns
`epoch` is not timed. None needs what another one needs, so that packages are imported
inside.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from rankax.data import packing, transforms
from rankax.data.schema import Schema

BATCH_SIZE = 4096
LANES = 16
TABLE_DIM = 16  # of tables that ids are routed for
TOTALS = ("examples", "ids", "numeric", "labels", "positives")

Batch = Any  # a pa.Table, or a dict of arrays
Epoch = Callable[[], Iterator[Batch]]


# ---------------------------------------------------------------- rankax and its limit


def arrow(folder: pathlib.Path, schema: Schema, rows: int) -> Epoch:
    """Decodes the columns into Arrow memory and does nothing with them."""
    del rows  # all
    return functools.partial(_row_groups, folder, schema)


def _row_groups(folder: pathlib.Path, schema: Schema) -> Iterator[pa.Table]:
    columns = list(packing.needed_columns(schema))
    for path in _shards(folder):
        with pq.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group, columns, use_threads=False)


def rankax(
    folder: pathlib.Path,
    schema: Schema,
    rows: int,
    *,
    shuffle: bool,
    is_routed: bool = False,
) -> Epoch:
    """Reads packed batches with one loader thread, epoch after epoch as training does.

    So the first epoch, which is not timed, pays for fresh memory and for the checksums
    of pages, and later ones do not.
    """
    del rows  # all
    from rankax.config.experiment import ParquetConfig
    from rankax.data import lanes, source

    split = source.open_split(ParquetConfig(path=str(folder)), "train", schema)
    map_batch = _router(schema) if is_routed else lambda batch: batch

    batches = lanes.read_batches(
        split,
        schema,
        batch_size=BATCH_SIZE,
        lanes=LANES,
        seed=0,
        shuffle=shuffle,
        num_epochs=None,
        map_batch=map_batch,
    )
    num_batches = lanes.num_batches_per_epoch(split, batch_size=BATCH_SIZE, lanes=LANES)
    return lambda: itertools.islice((batch for batch, _ in batches), num_batches)


def _router(schema: Schema) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """Adds to a batch where the rows of its ids are, each once, for one device."""
    import jax

    from benchmarks import contestants
    from rankax.parallel import mesh as meshes

    (num_rows,) = set(schema.num_rows.values())
    workload = contestants.Workload(
        num_rows=num_rows * schema.num_id_columns,
        dim=TABLE_DIM,
        batch_size=BATCH_SIZE,
        num_fields=schema.num_id_columns,
    )
    engine = contestants.make_engine(
        workload, meshes.make_mesh(devices=jax.devices()[:1])
    )

    def route(batch: dict[str, np.ndarray]) -> dict[str, Any]:
        routes = engine.route(batch["ids"], is_counted=batch["weight"] > 0)
        return {**batch, "routes": routes}

    return route


# ---------------------------------------------------------------- others


def dataset(folder: pathlib.Path, schema: Schema, rows: int) -> Epoch:
    """Packs the batches of `pyarrow.dataset`, in the order of the files."""
    del rows  # all
    source = pyarrow.dataset.dataset(_shards(folder), format="parquet")
    columns = list(packing.needed_columns(schema))

    def epoch() -> Iterator[Batch]:
        for batch in source.to_batches(
            columns=columns, batch_size=BATCH_SIZE, use_threads=False
        ):
            yield _packed({name: batch[name] for name in columns}, schema)

    return epoch


def polars(folder: pathlib.Path, schema: Schema, rows: int) -> Epoch:
    """Reads whole shards with Polars and packs slices of them, in order."""
    del rows  # all
    import polars as pl

    columns = list(packing.needed_columns(schema))
    lists = {slot.column for slot in schema.slots if slot.bag >= 0}

    def epoch() -> Iterator[Batch]:
        for path in _shards(folder):
            frame = pl.read_parquet(path, columns=columns)
            for batch in frame.iter_slices(BATCH_SIZE):
                yield _packed(
                    {
                        name: batch[name].to_arrow()
                        if name in lists
                        else batch[name].to_numpy()
                        for name in columns
                    },
                    schema,
                )

    return epoch


def torch_rows(
    folder: pathlib.Path, schema: Schema, rows: int, *, num_workers: int
) -> Epoch:
    """Collates rows of one array in PyTorch's DataLoader, shuffled, as FuxiCTR does.

    FuxiCTR 2.3.10's NpzDataLoader stacks all columns of the set to one float64 array in
    memory; an item is a row of it, and a batch of rows is cut into columns again.
    """
    from torch.utils import data

    table = _head(folder, schema, rows)
    widths = {slot.column: slot.width for slot in schema.slots}
    columns = {
        name: _block(table[name], widths.get(name, 1)) for name in table.schema.names
    }
    stops = np.cumsum([column.shape[1] for column in columns.values()]).tolist()
    places = [slice(*pair) for pair in itertools.pairwise([0, *stops])]
    stacked = np.column_stack([x.astype(np.float64) for x in columns.values()])
    examples: Any = _Rows(stacked)  # needs not be a subclass of theirs
    loader = data.DataLoader(
        examples,
        batch_size=BATCH_SIZE,
        shuffle=True,
        num_workers=num_workers,
        # The default of a process that was spawned itself would be another one.
        multiprocessing_context="fork" if num_workers else None,
        collate_fn=_Collate(dict(zip(columns, places, strict=True))),
    )
    return lambda: iter(loader)


@dataclasses.dataclass(frozen=True, slots=True)
class _Rows:
    """What PyTorch calls a map-style data set."""

    stacked: np.ndarray

    def __len__(self) -> int:
        return len(self.stacked)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.stacked[index, :]


@dataclasses.dataclass(frozen=True, slots=True)
class _Collate:
    places: dict[str, slice]

    def __call__(self, rows: list[np.ndarray]) -> Batch:
        from torch.utils.data.dataloader import default_collate

        batch = default_collate(rows)
        return {name: batch[:, place] for name, place in self.places.items()}


def grain_rows(folder: pathlib.Path, schema: Schema, rows: int) -> Epoch:
    """Batches the single rows of Grain's own Parquet data set, in order."""
    import grain

    widths = {slot.column: slot.width for slot in schema.slots if slot.bag >= 0}

    def pad(row: dict[str, Any]) -> dict[str, Any]:
        for name, width in widths.items():
            padded = np.full(width, packing.PADDING, np.int32)
            padded[: len(row[name])] = row[name]
            row[name] = padded
        return row

    def epoch() -> Iterator[Batch]:
        examples = grain.experimental.ParquetIterDataset(_shards(folder)[0])
        if widths:
            examples = examples.map(pad)
        batches = iter(examples.batch(BATCH_SIZE))
        return itertools.islice(batches, -(-rows // BATCH_SIZE))

    return epoch


# ---------------------------------------------------------------- their pieces


def _shards(folder: pathlib.Path) -> list[str]:
    return sorted(str(path) for path in (folder / "train").glob("*.parquet"))


def _head(folder: pathlib.Path, schema: Schema, rows: int) -> pa.Table:
    """Returns the first training examples, every column in one chunk."""
    tables, num_rows = [], 0
    for table in _row_groups(folder, schema):
        tables.append(table)
        num_rows += table.num_rows
        if num_rows >= rows:
            break
    return pa.concat_tables(tables).slice(0, rows).combine_chunks()


def _packed(columns: Mapping[str, Any], schema: Schema) -> dict[str, np.ndarray]:
    """Returns three arrays of the columns, whose ids are as the files have them."""
    ids = [_block(columns[slot.column], slot.width) for slot in schema.slots]
    numeric = [columns[field.name] for field in schema.numeric]
    labels = [columns[label.name] for label in schema.labels]
    return {
        "ids": np.concatenate(ids, axis=1),
        "numeric": np.concatenate([_block(x, 1) for x in numeric], axis=1),
        "labels": np.concatenate([_block(x, 1) for x in labels], axis=1),
    }


def _block(column: Any, width: int) -> np.ndarray:
    """Returns a column as [n, 1], or its lists of at most L ids padded to [n, L]."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ListArray | pa.LargeListArray):
        lengths = column.value_lengths().to_numpy()
        block = np.full((len(lengths), width), packing.PADDING, np.int32)
        block[np.arange(width) < lengths[:, None]] = column.flatten().to_numpy()
        return block
    return np.asarray(column).reshape(len(column), width)


# ---------------------------------------------------------------- was all read?


def totals(batches: Iterable[Batch], schema: Schema) -> dict[str, float]:
    """Adds up what batches hold; the order of the examples does not matter.

    Returns:
        Number of examples; sums of table rows, numbers and labels; and the sum of the
        first field's rows over positive examples, which tells whether labels are still
        those of their examples. Whole numbers below 2^53, so they are exact.
    """
    sums = np.zeros(len(TOTALS))
    for batch in batches:
        if isinstance(batch, pa.Table):
            batch = dict(zip(batch.schema.names, batch.columns, strict=True))
        if "ids" not in batch:  # columns
            batch = _packed(batch, schema)
        weight = batch.get("weight", np.ones(len(batch["labels"])))
        rows = _table_rows(batch["ids"], schema).astype(np.float64)
        labels = batch["labels"][:, 0] * weight
        sums += [
            weight.sum(),
            rows.sum(axis=1) @ weight,
            batch["numeric"].sum(axis=1, dtype=np.float64) @ weight,
            labels.sum(),
            rows[:, 0] @ labels,
        ]
    return dict(zip(TOTALS, sums.tolist(), strict=True))


def expected_totals(
    folder: pathlib.Path, schema: Schema, rows: int
) -> dict[str, float]:
    """Returns `totals` of the first training examples."""
    return totals([_head(folder, schema, rows)], schema)


def _table_rows(ids: np.ndarray, schema: Schema) -> np.ndarray:
    """Returns rows of tables; 64-bit ids are raw ones, padding counts as row 0."""
    if ids.dtype == np.int64:
        columns = [
            transforms.hash_rows(
                np.ascontiguousarray(ids[:, slot.start]),
                num_rows=schema.tables[slot.table].num_rows,
                salt=transforms.table_salt(slot.table),
            )
            for slot in schema.slots
        ]
        ids = np.stack(columns, axis=1)
    return np.maximum(ids, 0)


# ---------------------------------------------------------------- all


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A line of the table.

    Attributes:
        title: its name there.
        open: makes it ready to read.
        layouts: that it can read.
        max_rows: examples that a slow one reads, of the first row groups; 0 = all.
        module: that must be installed.
    """

    title: str
    open: Callable[[pathlib.Path, Schema, int], Epoch]
    layouts: tuple[str, ...] = ("criteo", "criteo64", "sequence")
    max_rows: int = 0
    module: str = "pyarrow"


_PLAIN = ("criteo", "sequence")  # 32-bit ids: not all others can hash or hold more

READERS = {
    "arrow": Reader(title="Arrow decode alone", open=arrow),
    "rankax": Reader(
        title="rankax, shuffled", open=functools.partial(rankax, shuffle=True)
    ),
    "rankax_in_order": Reader(
        title="rankax, in order", open=functools.partial(rankax, shuffle=False)
    ),
    "rankax_routed": Reader(
        title="rankax, shuffled, ids de-duplicated",
        open=functools.partial(rankax, shuffle=True, is_routed=True),
        layouts=("criteo64",),
    ),
    "polars": Reader(
        title="Polars, packed, in order", open=polars, layouts=_PLAIN, module="polars"
    ),
    "dataset": Reader(
        title="pyarrow.dataset, packed, in order", open=dataset, layouts=_PLAIN
    ),
    "torch": Reader(
        title="PyTorch DataLoader over rows, shuffled",
        open=functools.partial(torch_rows, num_workers=0),
        layouts=_PLAIN,
        max_rows=50 * BATCH_SIZE,
        module="torch",
    ),
    "torch_worker": Reader(
        title="the same in 1 worker process",
        open=functools.partial(torch_rows, num_workers=1),
        layouts=_PLAIN,
        max_rows=50 * BATCH_SIZE,
        module="torch",
    ),
    "grain": Reader(
        title="Grain's Parquet rows, in order",
        open=grain_rows,
        layouts=_PLAIN,
        max_rows=4 * BATCH_SIZE,
    ),
}
