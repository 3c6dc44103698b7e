"""What a dataset folder holds, as the reader packs it."""

import pathlib

import numpy as np

from rankax.config.experiment import ParquetConfig
from rankax.data import card as cards
from rankax.data import packing
from rankax.data.schema import Schema
from rankax.data.source import load_card, open_split


def arrays_of(folder: str | pathlib.Path, split: str) -> dict[str, np.ndarray]:
    """The packed arrays of a whole split."""
    config = ParquetConfig(path=str(folder))
    schema = Schema.select(load_card(config))
    source = open_split(config, split, schema)
    parts = [
        packing.pack(source.read(group), schema, where=split)
        for group in range(len(source.rows_per_group))
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def assert_same_datasets(one: pathlib.Path, other: pathlib.Path) -> None:
    """Asserts that all splits and the names of the slices are equal."""
    for split in ("train", "valid", "test"):
        a, b = arrays_of(one, split), arrays_of(other, split)
        assert a.keys() == b.keys() and a["ids"].size
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=f"{split} {key}")
    names = [(s.name, s.values) for s in cards.load(one).slices]
    assert names == [(s.name, s.values) for s in cards.load(other).slices]
