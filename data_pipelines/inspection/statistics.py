"""Numbers about a dataset folder: splits, days, fields, tables."""

from collections.abc import Iterator
import datetime
from typing import Any

import polars as pl

from data_pipelines.inspection import values
from data_pipelines.inspection.folder import TRAIN, Column, Folder, collect
from data_pipelines.inspection.values import Values
from rankax.data import collisions
from rankax.data.card import Table

NUM_TOP = 5  # ids that are named
TOP_ROWS = 1_000_000  # of training, where the ids are too many to count them all
MAX_LOST = 0.05  # share of ids that the suggested rows lose to collisions
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
# Largest time of each unit if dates lie between 1973 and 5138.
UNITS = {"seconds": 10**11, "ms": 10**14, "us": 10**17, "ns": 2**63}
MAX_DAY = 47_000  # days since 1970 in 2098
DATES = (19_000_101, 21_001_231)  # as YYYYMMDD


def splits(folder: Folder) -> dict[str, Any]:
    """Returns rows and positive rates of each split."""
    query = folder.select().group_by("split")
    found = collect(query.agg(pl.col("^label .*$").mean())).sort("split")
    return {
        folder.splits[row["split"]]: {
            "rows": folder.num_rows[folder.splits[row["split"]]],
            "positive_rate": {
                task: row[f"label {i}"] for i, task in enumerate(folder.labels)
            },
        }
        for row in found.iter_rows(named=True)
    }


# ---------------------------------------------------------------- time


def time_unit(folder: Folder) -> str:
    """Returns the unit of the card's time column; "" = there is none, or none fits.

    Integers say it by their magnitude; "date" is YYYYMMDD, "days" are since 1970.
    """
    if not folder.card.time:
        return ""
    column = pl.col(folder.card.time)
    dtype = folder.rows().collect_schema()[folder.card.time]
    if dtype.is_temporal():
        return "timestamp"
    low, high = collect(
        folder.rows().select(column.min().alias("low"), column.max().alias("high"))
    ).row(0)
    return unit_of(low, high)


def unit_of(low: int | None, high: int | None) -> str:
    """Returns the unit of integer times from the smallest and the largest one."""
    if low is None or high is None:
        return ""
    if DATES[0] <= low and high <= DATES[1]:
        return "date"
    if low > 0 and high <= MAX_DAY:
        return "days"
    if low < 10**8:
        return ""
    return next(unit for unit, limit in UNITS.items() if high < limit)


def as_datetime(column: pl.Expr, unit: str) -> pl.Expr:
    """Converts times of a unit that `unit_of` knows."""
    if unit == "timestamp":
        return column.cast(pl.Datetime("us"))
    if unit == "date":
        return column.cast(pl.String).str.to_datetime("%Y%m%d", time_unit="us")
    if unit == "days":
        return (column.cast(pl.Int64) * 86_400_000_000).cast(pl.Datetime("us"))
    if unit == "seconds":
        return (column.cast(pl.Int64) * 1_000_000).cast(pl.Datetime("us"))
    per = {"ms": pl.Datetime("ms"), "us": pl.Datetime("us"), "ns": pl.Datetime("ns")}
    return column.cast(pl.Int64).cast(per[unit])


def days(folder: Folder, unit: str) -> list[dict[str, Any]]:
    """Returns rows and positive rates of each split by day (UTC)."""
    if not unit:
        return []
    day = as_datetime(pl.col(folder.card.time), unit).dt.date()
    query = folder.select(day=day).group_by("split", "day")
    found = collect(query.agg(pl.len(), pl.col("^label .*$").mean()))
    return [
        {
            "split": folder.splits[row["split"]],
            "day": row["day"].isoformat(),
            "rows": row["len"],
            "positive_rate": {
                task: row[f"label {i}"] for i, task in enumerate(folder.labels)
            },
        }
        for row in found.sort("day", "split").iter_rows(named=True)
        if isinstance(row["day"], datetime.date)
    ]


# ---------------------------------------------------------------- fields


def field(folder: Folder, column: Column, counted: Values | None) -> dict[str, Any]:
    """Returns what is to say of one column.

    Args:
        folder: where the rows are.
        column: the column.
        counted: its values; None for a vector.
    """
    entry: dict[str, Any] = {
        "name": column.name,
        "column": column.column,
        "kind": f"{column.kind} of ids" if column.kind == "list" else column.kind,
    }
    if column.table:
        entry["table"] = column.table
    if counted is not None:
        entry |= _cardinality(folder, counted)
    if counted is not None and column.table:
        entry["top"] = _top(folder, column, counted)
    of_split = _by_split(folder, nulls=column.values.null_count(), **_spread(column))
    entry["nulls"] = {split: found.pop("nulls") for split, found in of_split.items()}
    if any(of_split.values()):
        entry["lengths" if column.kind == "list" else "numbers"] = of_split
    return entry


def _spread(column: Column) -> dict[str, pl.Expr]:
    """What is told of the lengths of lists, and of numbers."""
    if column.kind == "list":
        return _distribution(column.values.list.len())
    if column.kind == "number":
        return _distribution(column.values)
    if column.kind == "vector":
        elements = column.values.explode()
        ends = {"min": elements.min(), "max": elements.max()}
        return {**ends, "mean": elements.mean()}
    return {}


def _by_split(folder: Folder, **what: pl.Expr) -> dict[str, Any]:
    found = collect(folder.rows().group_by(" split").agg(**what)).sort(" split")
    return {
        folder.splits[number]: dict(zip(what, answer, strict=True))
        for number, *answer in found.iter_rows()
    }


def _distribution(numbers: pl.Expr) -> dict[str, pl.Expr]:
    quantiles = {
        f"p{100 * q:g}": numbers.quantile(q, interpolation="nearest") for q in QUANTILES
    }
    return {
        "min": numbers.min(),
        "mean": numbers.mean(),
        **quantiles,
        "max": numbers.max(),
    }


def _cardinality(folder: Folder, counted: Values) -> dict[str, Any]:
    """How many values a split has, and how much of it training has never seen."""
    is_seen = counted.rows > 0
    is_unseen = ~is_seen[0]
    is_whole = counted.step == 1 and not counted.is_rounded
    entry: dict[str, Any] = {
        "exact": is_whole and not folder.is_sampled,
        "cardinality": {
            split: int(is_seen[i].sum()) * counted.step
            for i, split in enumerate(folder.splits)
        },
        "unseen_values": {},
        "unseen_rows": {},
    }
    for i, split in enumerate(folder.splits):
        if split != TRAIN:
            new, rows = is_unseen & is_seen[i], counted.rows[i]
            entry["unseen_values"][split] = float(new.sum() / max(is_seen[i].sum(), 1))
            entry["unseen_rows"][split] = float(rows[new].sum() / max(rows.sum(), 1))
    return entry


def _top(folder: Folder, column: Column, counted: Values) -> list[dict[str, Any]]:
    """The ids that training has most often, with share and positive rate."""
    if counted.step > 1:  # the most frequent id may be one that was not sampled
        sample = folder.select(value=column.values).filter(pl.col("split") == 0)
        sample = sample.head(TOP_ROWS)
        if column.kind == "list":
            sample = sample.explode("value")
        sums = [pl.len().cast(pl.Float64), pl.col("^label .*$").sum()]
        found = collect(sample.drop_nulls("value").group_by("value").agg(sums))
    else:
        found = pl.DataFrame({"value": counted.value, "len": counted.rows[0]})
        for task, positives in enumerate(counted.positives[0]):
            found = found.with_columns(pl.Series(f"label {task}", positives))
    total = found["len"].sum()
    top = found.sort(["len", "value"], descending=[True, False]).head(NUM_TOP)
    names = _raw_ids(folder, column.table, top["value"])
    return [
        {
            "value": row["value"],
            "id": names.get(row["value"], str(row["value"])),
            "share": row["len"] / total,
            "positive_rate": {
                task: row[f"label {i}"] / row["len"]
                for i, task in enumerate(folder.labels)
            },
        }
        for row in top.iter_rows(named=True)
        if row["len"]
    ]


def _raw_ids(folder: Folder, table: str, rows: pl.Series) -> dict[int, str]:
    """Row -> the id as the raw data had it, where the folder has a vocabulary."""
    path = folder.path / "vocabularies" / f"{table}.parquet"
    if not path.is_file():
        return {}
    known = pl.scan_parquet(path).filter(pl.col("row").is_in(rows.implode()))
    names = pl.col("id").cast(pl.String).fill_null(pl.col("kind").cast(pl.String))
    return dict(collect(known.select("row", names)).iter_rows())


# ---------------------------------------------------------------- tables


def counted_columns(folder: Folder) -> Iterator[tuple[Column, Values | None]]:
    """Yields every column with its values, a vector without."""
    steps = values.sampling(folder)
    for column in folder.columns:
        is_vector = column.kind == "vector"
        step = steps[column.name]
        yield column, None if is_vector else values.count(folder, column, step=step)


def table(entry: Table, ids: list[Values]) -> dict[str, Any]:
    """Returns how many ids a table gets, and how many rows they want.

    Args:
        entry: the table of the card.
        ids: those of its columns.
    """
    distinct = pl.concat([_as_key(each.value) for each in ids]).unique()
    step = ids[0].step
    num_ids = len(distinct) * step
    forecast = collisions.forecast(num_ids, entry.num_rows)
    result = {
        "name": entry.name,
        "ids": entry.ids,
        "num_rows": entry.num_rows,
        "num_ids": num_ids,
        "exact": step == 1,
        "hashed_lost": forecast.lost,
        "hashed_sharing": forecast.sharing,
        "hashed_rows_suggested": collisions.rows_for(num_ids, MAX_LOST),
    }
    if entry.ids == "direct" and num_ids:
        result["largest_id"] = distinct.max()
        outside = (distinct < 0) | (distinct >= entry.num_rows)
        result["num_outside"] = int(outside.sum()) * step
    return result


def _as_key(ids: pl.Series) -> pl.Series:
    """Makes ids of one table comparable: columns may differ in their integer type."""
    if ids.dtype == pl.UInt64:
        return ids.reinterpret(signed=True)
    return ids.cast(pl.Int64 if ids.dtype.is_integer() else pl.String)
