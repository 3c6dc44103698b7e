"""All that is found out about a dataset folder, as one tree of plain values."""

from collections.abc import Iterator, Mapping
import dataclasses
import math
from typing import Any

from data_pipelines.inspection import (
    alone,
    future,
    past,
    sameness,
    splits,
    statistics,
)
from data_pipelines.inspection.folder import Column, Finding, Folder
from data_pipelines.inspection.values import Values

LOST = 0.2  # share of ids lost to collisions from which on a table is too small
LEVELS = ("error", "warning", "info")


def make(folder: Folder, *, auc_threshold: float = alone.THRESHOLD) -> dict[str, Any]:
    """Runs all statistics and checks.

    Args:
        folder: where the rows are.
        auc_threshold: AUC of one field from which on it is too good.

    Returns:
        A tree that JSON can hold; its "findings" are sorted, errors first.
    """
    unit = statistics.time_unit(folder)
    tree: dict[str, Any] = {
        "dataset": folder.card.name,
        "split_rule": folder.card.split_rule,
        "all_rows": not folder.is_sampled,
        "auc_threshold": auc_threshold,
        "splits": statistics.splits(folder),
        "time": {"column": folder.card.time, "unit": unit},
        "days": statistics.days(folder, unit),
    }
    found = list(_fields(folder, tree, auc_threshold))
    cardinality = {
        entry["name"]: entry["cardinality"]["train"]
        for entry in tree["fields"]
        if entry["kind"] in ("id", "number")
    }
    counters = future.evidence(folder, cardinality)
    for entry in tree["fields"]:
        if entry["name"] in counters:
            entry["function_of"] = dataclasses.asdict(counters[entry["name"]])
    found += future.findings(counters)
    more, tree["histories"] = past.findings(folder, unit)
    found += more
    tree["split_times"], more = splits.time_overlap(folder, unit)
    found += more
    tree["users"], more = splits.shared_users(folder)
    found += more
    tree["duplicate_rows"], more = sameness.duplicate_rows(folder)
    found += more
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    tree["findings"] = [dataclasses.asdict(finding) for finding in found]
    return _plain(tree)


def _fields(
    folder: Folder, tree: dict[str, Any], auc_threshold: float
) -> Iterator[Finding]:
    """Adds "fields" and "tables" to the tree; yields what is wrong with them."""
    entries: dict[str, dict[str, Any]] = {}
    signatures: dict[Column, bytes] = {}
    ids: dict[str, list[Values]] = {}
    for column, counted in statistics.counted_columns(folder):
        entry = statistics.field(folder, column, counted)
        entry["auc"] = alone.aucs(folder, column, counted)
        entries[column.name] = entry
        yield from alone.findings(column.name, entry["auc"], auc_threshold)
        if counted is None:
            continue
        yield from sameness.constant(column, counted, sum(entry["nulls"].values()))
        signatures[column] = sameness.signature(column, counted)
        if column.table:
            ids.setdefault(column.table, []).append(counted)
    yield from sameness.duplicate_columns(folder, signatures)
    tree["fields"] = [entries[column.name] for column in folder.columns]
    tree["tables"] = [
        statistics.table(entry, ids[entry.name])
        for entry in folder.card.tables
        if entry.name in ids
    ]
    for entry in tree["tables"]:
        yield from _table_findings(entry)


def _table_findings(entry: Mapping[str, Any]) -> Iterator[Finding]:
    name, num_rows = entry["name"], entry["num_rows"]
    if entry.get("num_outside"):
        yield Finding(
            check="ids outside the table",
            level="error",
            subject=name,
            found=f"{entry['num_outside']:,} ids are not in [0, {num_rows:,}), the "
            f"largest is {entry['largest_id']:,}",
            why="the table has no row for them",
            advice="set num_rows of the table, make its ids 'hash', or train with "
            "--config.tables.out_of_range=default_row",
        )
    if entry["ids"] == "hash" and entry["hashed_lost"] > LOST:
        yield Finding(
            check="collisions",
            level="warning",
            subject=name,
            found=f"{entry['num_ids']:,} ids hashed to {num_rows:,} rows lose "
            f"{entry['hashed_lost']:.1%} of the rows that they would need",
            why="ids that share a row share what is learnt of them",
            advice=f"{entry['hashed_rows_suggested']:,} rows lose "
            f"{statistics.MAX_LOST:.0%}; or count ids into a vocabulary",
            figures={"lost": entry["hashed_lost"]},
        )


def _plain(tree: Any) -> Any:
    """Makes NaN, which JSON does not have, None, and everything else plain."""
    if isinstance(tree, dict):
        return {str(key): _plain(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    if isinstance(tree, bool | int | str) or tree is None:
        return tree
    return tree.item() if hasattr(tree, "item") else str(tree)
