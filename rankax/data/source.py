"""Where examples come from: one protocol, and the choice by configuration class."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa

from rankax.config.base import ConfigError
from rankax.config.experiment import ParquetConfig, SourceConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import card as cards
from rankax.data import synthetic
from rankax.data.errors import DataError
from rankax.data.parquet import LeftOut, ParquetSplit
from rankax.data.schema import Schema


class SplitSource(Protocol):
    """One split as numbered row groups that can be read in any order, by any thread.

    Attributes:
        name: for messages, "<data set>/<split>".
        rows_per_group: int64 [G], examples of each row group.
        fingerprint: 12 hexadecimal digits that change when the examples change.
        text_ids: columns of ids that are texts.
    """

    name: str
    rows_per_group: np.ndarray
    fingerprint: str
    text_ids: frozenset[str]

    def read(self, group: int) -> pa.Table:
        """Returns the columns in need (`packing.needed_columns`) of one row group."""
        ...

    def times(self, group: int) -> np.ndarray:
        """Returns the card's time column [n] int64 of one row group."""
        ...

    def time_range(self, group: int) -> tuple[int, int] | None:
        """Returns its least and its largest time, if known without reading it."""
        ...

    def where(self, group: int) -> str:
        """Names a row group in messages: data set, split, file."""
        ...


def load_card(config: SourceConfig) -> cards.Card:
    """Returns the card of the data set that the configuration names."""
    if isinstance(config, ParquetConfig):
        return cards.load(config.path)
    if isinstance(config, SyntheticConfig):
        return synthetic.card(config)
    raise _unknown(config)


def open_split(
    config: SourceConfig,
    split: str,
    schema: Schema,
    *,
    left_out: Sequence[LeftOut] = (),
) -> SplitSource:
    """Opens one split for the columns that the schema needs.

    Args:
        config: where it is.
        split: its name.
        schema: fields and tasks in use.
        left_out: shards and row groups of files to do without.

    Raises:
        DataError: the split is missing, empty, or differs from the card.
    """
    if isinstance(config, ParquetConfig):
        return ParquetSplit(config.path, split, schema, left_out=left_out)
    if isinstance(config, SyntheticConfig):
        return synthetic.SyntheticSplit(config, split, schema)
    raise _unknown(config)


def check_same_ids(split: SplitSource, text_ids: Iterable[str]) -> None:
    """Checks that a split's ids are texts where those of training were.

    Args:
        split: the split.
        text_ids: of the training split.

    Raises:
        DataError: they are not; hashed, 42 and "42" have different rows.
    """
    for column in sorted(split.text_ids.symmetric_difference(text_ids)):
        kinds = ("texts", "integers")
        found, wanted = kinds if column in split.text_ids else kinds[::-1]
        raise DataError(
            f"{split.name}: column {column!r} holds {found}, and in training it held "
            f"{wanted}, which have other rows of the table even where they look alike; "
            "write the column with one type"
        )


def _unknown(config: SourceConfig) -> ConfigError:
    return ConfigError(
        f"data.source is a {type(config).__name__}; use ParquetConfig(path=...) "
        "or SyntheticConfig()"
    )
