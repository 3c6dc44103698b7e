r"""Synthetic clicks as a data source, and as a dataset folder.

    python -m rankax.data.synthetic --rows=1_000_000 --out=datasets/synthetic

writes the folder that `ParquetConfig` reads; `SyntheticConfig` needs no folder. What
is planted: `rankax.data.synthetic_world` and docs/synthetic.md.
"""

import argparse
import dataclasses
import functools
import hashlib
import pathlib
import sys
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import Progress

from rankax.config.base import ConfigError, config_hash
from rankax.config.synthetic import SyntheticConfig
from rankax.data import packing
from rankax.data import synthetic_world as worlds
from rankax.data.card import (
    Card,
    CategoricalField,
    Label,
    NumericField,
    SequenceColumn,
    SequenceField,
    Split,
    Table,
)
from rankax.data.dataset_writer import DatasetWriter
from rankax.data.errors import DataError
from rankax.data.schema import Schema
from rankax.metrics import auc, binary

VERSION = 1  # raise it when the same settings make other rows
SPLITS = ("train", "valid", "test")
TASKS = ("ctr", "ctcvr")
_LENGTH_OF = {
    "tags": "num_tags",
    "history_item": "num_events",
    "history_category": "num_events",
}


def card(config: SyntheticConfig) -> Card:
    """Returns the card of the rows that these settings make.

    Raises:
        ConfigError: a setting out of range.
    """
    config.check()
    num_rows = {name: field.num_ids for name, field in worlds.FIELDS.items()}
    num_rows |= {"user_id": config.num_users, "item_id": config.num_items}
    num_rows |= {"tags": worlds.NUM_TAGS}
    history = {"item": "item_id", "category": "category"}
    return Card(
        name="synthetic",
        tables=tuple(Table(name=name, num_rows=n) for name, n in num_rows.items()),
        fields=(
            *(CategoricalField(name=name, table=name) for name in worlds.FIELDS),
            CategoricalField(name="tags", table="tags", max_length=worlds.MAX_TAGS),
            *(NumericField(name=name) for name in ("price", "quality", "idle")),
            SequenceField(
                name="history",
                columns=tuple(
                    SequenceColumn(name=name, table=table, column=f"history_{name}")
                    for name, table in history.items()
                ),
                max_length=worlds.MAX_HISTORY,
            ),
        ),
        labels=tuple(
            Label(name=task, true_probability=f"{task}_probability") for task in TASKS
        ),
        splits={name: Split(num_rows=_range(config, name)[1]) for name in SPLITS},
        group="user_id",
        time="time",
        domain="domain",
        split_rule="consecutive in time: train, valid, test",
        origin=f"rankax.data.synthetic {VERSION}, settings {config_hash(config)}",
        licence="Apache-2.0",
    )


class SyntheticSplit:
    """One split as a `SplitSource`, whose row groups are made when they are read."""

    text_ids: frozenset[str] = frozenset()

    def __init__(self, config: SyntheticConfig, split: str, schema: Schema):
        """Prepares the world, once per process and settings.

        Raises:
            ConfigError: a setting out of range.
            DataError: a split other than train, valid and test.
        """
        self._first, num_rows = _range(config, split)
        self._world = _world(config)
        self._columns = packing.needed_columns(schema)
        size = config.rows_per_group
        starts = np.arange(0, num_rows, size, dtype=np.int64)
        self.rows_per_group = np.minimum(num_rows - starts, size)
        self._starts = self._first + starts
        self.name = f"synthetic/{split}"
        text = f"{VERSION}/{config_hash(config)}/{split}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()[:12]

    def read(self, group: int) -> pa.Table:
        """Returns the needed columns of one row group."""
        rows = self._world.rows(*self._range(group))
        return pa.table({name: _array(rows, name) for name in self._columns})

    def times(self, group: int) -> np.ndarray:
        """Returns the times [n] int64 of one row group."""
        return self._world.times(*self._range(group))

    def time_range(self, group: int) -> tuple[int, int]:
        """Returns the first and the last time of one row group; times rise."""
        first, count = self._range(group)
        (least,), (largest,) = (
            self._world.times(row, 1) for row in (first, first + count - 1)
        )
        return int(least), int(largest)

    def where(self, group: int) -> str:
        """Names a row group in messages."""
        return f"{self.name} row group {group}"

    def _range(self, group: int) -> tuple[int, int]:
        """Returns the first row of a group and their number."""
        return int(self._starts[group]), int(self.rows_per_group[group])


def oracle(config: SyntheticConfig, split: str) -> dict[str, float]:
    """Scores the true probabilities of a split against its labels.

    Returns:
        For each task "<task>/oracle_auc" and "<task>/oracle_log_loss", what no model
        beats but by luck, and "<task>/positive_rate".
    """
    return dict(_oracle(tuple(config.options()), split))


@functools.lru_cache(maxsize=16)
def _oracle(options: tuple[tuple[str, Any], ...], split: str) -> dict[str, float]:
    config = SyntheticConfig(**dict(options))
    source = SyntheticSplit(config, split, Schema.select(card(config)))
    names = [name for task in TASKS for name in (task, f"{task}_probability")]
    groups = [
        source.read(group).select(names) for group in range(len(source.rows_per_group))
    ]
    columns = pa.concat_tables(groups)
    result = {}
    for task in TASKS:
        label = columns[task].to_numpy()
        probability = columns[f"{task}_probability"].to_numpy()
        weight = np.ones(label.size)
        loss = binary.log_loss_of_probability(probability, label, weight)
        result[f"{task}/oracle_auc"] = auc.exact(probability, label)
        result[f"{task}/oracle_log_loss"] = loss / label.size
        result[f"{task}/positive_rate"] = float(label.mean())
    return result


def _world(config: SyntheticConfig) -> worlds.World:
    return _cached_world(tuple(config.options()))


@functools.lru_cache(maxsize=2)
def _cached_world(options: tuple[tuple[str, Any], ...]) -> worlds.World:
    return worlds.World(SyntheticConfig(**dict(options)))


def _range(config: SyntheticConfig, split: str) -> tuple[int, int]:
    """Returns the first row of a split, and how many it has."""
    num_rows = (config.num_train_rows, config.num_valid_rows, config.num_test_rows)
    if split not in SPLITS:
        raise DataError(
            f"the synthetic source has no split {split!r}; known: {', '.join(SPLITS)}"
        )
    place = SPLITS.index(split)
    return sum(num_rows[:place]), num_rows[place]


def _array(rows: dict[str, np.ndarray], name: str) -> pa.Array:
    """Returns one column; of a list column, the last entries that count."""
    values = rows[name]
    if name not in _LENGTH_OF:
        return pa.array(values)
    lengths, width = rows[_LENGTH_OF[name]], values.shape[1]
    ends = np.cumsum(lengths)
    kept = values[np.arange(width) >= width - lengths[:, None]]
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, kept)


# ---------------------------------------------------------------- dataset folder


def write(
    config: SyntheticConfig, folder: str | pathlib.Path, *, overwrite: bool = False
) -> Card:
    """Writes a dataset folder, one row group at a time, and returns its card.

    Raises:
        ConfigError: a setting out of range.
        DataError: the folder exists already.
    """
    plain = card(config)
    schema = Schema.select(plain)
    size = config.rows_per_group
    bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())
    with DatasetWriter(folder, overwrite=overwrite, rows_per_group=size) as writer, bar:
        splits = {}
        for name in SPLITS:
            source = SyntheticSplit(config, name, schema)
            num_rows = int(source.rows_per_group.sum())
            positives = dict.fromkeys(TASKS, 0)
            shown = bar.add_task(f"{name} rows", total=num_rows)
            for group in range(source.rows_per_group.size):
                table = source.read(group)
                writer.write(name, table)
                for task in TASKS:
                    positives[task] += int(table[task].to_numpy().sum())
                bar.advance(shown, table.num_rows)
            rates = {task: count / num_rows for task, count in positives.items()}
            splits[name] = Split(num_rows=num_rows, positive_rate=rates)
        written = dataclasses.replace(plain, splits=splits)
        writer.finish(written)
    return written


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    flags = _parser().parse_args(arguments)
    tenth = max(flags.rows // 10, 1)
    config = SyntheticConfig(
        seed=flags.seed,
        num_train_rows=flags.rows,
        num_valid_rows=flags.valid_rows or tenth,
        num_test_rows=flags.test_rows or tenth,
    )
    try:
        written = write(config, flags.out, overwrite=flags.overwrite)
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")
    for name, split in written.splits.items():
        scores = {} if name == "train" else oracle(config, name)
        print(f"{name}: {split.num_rows:,} rows")
        for task, rate in split.positive_rate.items():
            line = f"  {task}: positive rate {rate:.4f}"
            if scores:
                line += f", oracle AUC {scores[f'{task}/oracle_auc']:.4f}"
                line += f", oracle log loss {scores[f'{task}/oracle_log_loss']:.4f}"
            print(line)
    print(f"written to {flags.out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rankax.data.synthetic",
        description="Writes synthetic clicks with known probabilities as a folder.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--rows", type=int, required=True, metavar="N", help="rows of the train split"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    for split in ("valid", "test"):
        parser.add_argument(
            f"--{split}_rows",
            type=int,
            default=0,
            metavar="N",
            help="default: a tenth of --rows",
        )
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed is another world"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the dataset folder DIR"
    )
    return parser


if __name__ == "__main__":
    main()
