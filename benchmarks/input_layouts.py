"""The data sets of `benchmarks/input.py`: dataset folders of made-up examples.

- criteo: 13 numbers, 26 ids, one label, as Criteo's logs have them: the numbers are
  logarithms of counts, the ids follow power laws over 4 to a million rows.
- criteo64: the same, with raw 64-bit ids that the reader hashes.
- sequence: a user, an item, a category, an hour, two numbers, and the user's last
  0 to 50 events (20 in the mean) as two aligned lists.
"""

from collections.abc import Callable, Iterator
import dataclasses
import hashlib
import pathlib

import numpy as np
import pyarrow as pa

from rankax.data import card as cards
from rankax.data.card import (
    Card,
    CategoricalField,
    Field,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.dataset_writer import ROWS_PER_GROUP, DatasetWriter

NUM_NUMBERS = 13
FIELD_ROWS = np.geomspace(4, 1_000_000, 26).astype(int).tolist()
HASHED_ROWS = 1_000_000  # of every field with raw ids
SEQUENCE_ROWS = {"user": 200_000, "item": 100_000, "category": 1_000, "hour": 24}
MAX_EVENTS = 50
EXPONENT = 1.05  # of the power law that ids follow within a field
OTHER_ROWS = 8_192  # of the splits "valid" and "test", which `rankax.main` wants

Columns = dict[str, np.ndarray | pa.Array]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One data set.

    Attributes:
        columns: makes n examples from a generator.
        fields: of the card.
        tables: of the card.
        num_rows: examples of the split "train".
        num_quick_rows: the same with --quick.
    """

    columns: Callable[[np.random.Generator, int], Columns]
    fields: tuple[Field, ...]
    tables: tuple[Table, ...]
    num_rows: int
    num_quick_rows: int = 200_000

    def write(self, name: str, num_rows: int, folder: pathlib.Path) -> None:
        """Writes the dataset folder, unless it stands there as this file writes it."""
        version = hashlib.sha256(pathlib.Path(__file__).read_bytes()).hexdigest()[:12]
        splits = {"train": num_rows, "valid": OTHER_ROWS, "test": OTHER_ROWS}
        card = Card(
            name=name,
            tables=self.tables,
            fields=self.fields,
            labels=(Label(name="click"),),
            splits={split: Split(num_rows=rows) for split, rows in splits.items()},
            origin=f"made-up examples of benchmarks/input_layouts.py, {version}",
        )
        if folder.exists() and cards.load(folder) == card:
            return
        with DatasetWriter(folder, overwrite=True) as writer:
            for seed, (split, rows) in enumerate(splits.items()):
                for table in self._tables(seed, rows):
                    writer.write(split, table)
            writer.finish(card)

    def _tables(self, seed: int, num_rows: int) -> Iterator[pa.Table]:
        """Makes a row group at a time; same seed, same examples."""
        for start in range(0, num_rows, ROWS_PER_GROUP):
            rng = np.random.default_rng([seed, start])
            rows = min(ROWS_PER_GROUP, num_rows - start)
            label = (rng.random(rows) < 0.25).astype(np.int8)
            yield pa.table({"click": label, **self.columns(rng, rows)})


def _skewed(rng: np.random.Generator, size: int, shape: int) -> np.ndarray:
    """Draws ids int32 in [0, size), frequent ones scattered."""
    # Inverse distribution function of the density x^-exponent on [1, size + 1).
    power = 1 - EXPONENT
    x = (1 - rng.random(shape) * (1 - (size + 1) ** power)) ** (1 / power)
    rank = np.minimum(x.astype(np.int64) - 1, size - 1)
    return (rank * 2_654_435_761 % size).astype(np.int32)  # a prime: one to one


def _numbers(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draws logarithms of skewed counts, float32.

    As multiples of 1/256 their sums are exact, whatever the order.
    """
    counts = np.floor(np.exp(rng.normal(1, 2, n)))
    return (np.round(256 * np.log1p(counts)) / 256).astype(np.float32)


def _criteo(rng: np.random.Generator, n: int) -> Columns:
    numbers = {f"n{i:02d}": _numbers(rng, n) for i in range(NUM_NUMBERS)}
    return numbers | {
        f"c{i:02d}": _skewed(rng, size, n) for i, size in enumerate(FIELD_ROWS)
    }


def _criteo64(rng: np.random.Generator, n: int) -> Columns:
    odd = np.int64(-7046029254386353131)  # one to one over all 64 bits
    return {
        name: column * odd if column.dtype == np.int32 else column
        for name, column in _criteo(rng, n).items()
    }


def _sequence(rng: np.random.Generator, n: int) -> Columns:
    ids = {name: _skewed(rng, size, n) for name, size in SEQUENCE_ROWS.items()}
    numbers = {f"n{i:02d}": _numbers(rng, n) for i in range(2)}
    lengths = np.minimum(rng.gamma(1.5, 14.5, n).astype(np.int32), MAX_EVENTS)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    events = {
        f"past_{name}": pa.ListArray.from_arrays(
            offsets, _skewed(rng, SEQUENCE_ROWS[name], int(offsets[-1]))
        )
        for name in ("item", "category")
    }
    return ids | numbers | events


def _criteo_layout(columns: Callable, sizes: list[int], ids: str) -> Layout:
    names = [f"c{i:02d}" for i in range(len(sizes))]
    return Layout(
        columns=columns,
        fields=(
            *(NumericField(name=f"n{i:02d}") for i in range(NUM_NUMBERS)),
            *(CategoricalField(name=name, table=name) for name in names),
        ),
        tables=tuple(
            Table(name=name, num_rows=size, ids=ids)
            for name, size in zip(names, sizes, strict=True)
        ),
        num_rows=2_000_000,
    )


LAYOUTS = {
    "criteo": _criteo_layout(_criteo, FIELD_ROWS, "direct"),
    "criteo64": _criteo_layout(_criteo64, [HASHED_ROWS] * len(FIELD_ROWS), "hash"),
    "sequence": Layout(
        columns=_sequence,
        fields=(
            *(CategoricalField(name=name, table=name) for name in SEQUENCE_ROWS),
            *(NumericField(name=f"n{i:02d}") for i in range(2)),
            SequenceField(
                name="past",
                max_length=MAX_EVENTS,
                columns=tuple(
                    SequenceColumn(name=name, table=name, column=f"past_{name}")
                    for name in ("item", "category")
                ),
            ),
        ),
        tables=tuple(
            Table(name=name, num_rows=size) for name, size in SEQUENCE_ROWS.items()
        ),
        num_rows=1_000_000,
    ),
}
