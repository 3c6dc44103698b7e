"""Columns that say nothing, columns that say the same, and rows that come twice."""

from collections.abc import Mapping
import hashlib
import itertools
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.inspection.folder import TRAIN, Column, Finding, Folder, collect
from data_pipelines.inspection.values import Values

MAX_ROWS = 20_000_000  # whose hashes are compared; of more rows a share of the hashes
MANY = 0.01  # share of held-out rows with a twin in training that is worth a warning


def constant(column: Column, counted: Values, nulls: int) -> list[Finding]:
    """Tells of a column with one value in all rows of all splits, or with none."""
    num_values = int((counted.rows.sum(0) > 0).sum())
    if num_values > 1 or (num_values == 1 and nulls):
        return []
    found = "has no value at all"
    if num_values:
        found = f"is {counted.value[0]!r} in every row"
        if column.kind == "list":
            found = f"holds no other id than {counted.value[0]!r}"
    return [
        Finding(
            check="constant column",
            level="warning",
            subject=column.name,
            found=f"{column.name} {found}",
            why="it can teach nothing, and costs a table and a share of every step",
            advice="leave the field out",
        )
    ]


def signature(column: Column, counted: Values) -> bytes:
    """Returns what columns have in common that are equal up to a renumbering."""
    table = np.concatenate([counted.rows, *counted.positives])
    ordered = table[:, np.lexsort(table)]
    kind = f"{column.kind} {ordered.shape}".encode()
    return hashlib.blake2b(kind + np.ascontiguousarray(ordered).tobytes()).digest()


def duplicate_columns(
    folder: Folder, signatures: Mapping[Column, bytes]
) -> list[Finding]:
    """Finds ids that are equal up to a renumbering, and equal numbers and lists."""
    groups: dict[bytes, list[Column]] = {}
    for column, key in signatures.items():
        groups.setdefault(key, []).append(column)
    findings = []
    for columns in groups.values():
        for first, second in itertools.combinations(columns, 2):
            how = _sameness(folder, first, second)
            if how:
                findings.append(
                    Finding(
                        check="duplicate column",
                        level="warning",
                        subject=second.name,
                        found=f"{second.name} is {how} {first.name} in every row",
                        why="it adds nothing but a second table or weight to learn",
                        advice=f"keep one of {first.name} and {second.name}",
                        figures={"same_as": first.name},
                    )
                )
    return findings


def _sameness(folder: Folder, first: Column, second: Column) -> str:
    one, other = first.values, second.values
    both = folder.rows().select(one=one, other=other)
    # Hashes can be compared whatever the type is.
    is_equal = pl.col("one").hash() == pl.col("other").hash()
    if collect(both.select(is_equal.all())).item():
        return "equal to"
    if first.kind != "id":
        return ""
    numbers = collect(both.unique().select(pl.len(), pl.all().n_unique())).row(0)
    return "a renumbering of" if len(set(numbers)) == 1 else ""


def duplicate_rows(folder: Folder) -> tuple[dict[str, Any], list[Finding]]:
    """Counts rows whose features all stand in an earlier row, within and between.

    Labels, time, group and weight are not features.
    """
    step = -(-sum(folder.num_rows.values()) // MAX_ROWS) or 1
    features = pl.struct([column.column for column in folder.columns]).hash()
    rows = folder.rows().select(split=pl.col(" split"), key=features)
    if step > 1:
        rows = rows.filter(pl.col("key") % step == 0)
    counts = [
        (pl.col("split") == i).sum().cast(pl.Int64).alias(split)
        for i, split in enumerate(folder.splits)
    ]
    found = collect(rows.group_by("key").agg(counts))
    result: dict[str, Any] = {"exact": step == 1, "within": {}, "in_train": {}}
    for split in folder.splits:
        here = found[split].to_numpy()
        total = max(here.sum(), 1)
        result["within"][split] = float(1 - (here > 0).sum() / total)
        if split != TRAIN:
            known = found[TRAIN].to_numpy() > 0
            result["in_train"][split] = float(here[known].sum() / total)
    findings = [
        Finding(
            check="duplicate rows",
            level="warning",
            subject=split,
            found=f"{share:.2%} of {split} have the same features as a row of training",
            why="the model may have learnt their labels by heart; metrics flatter it",
            advice="drop repeated rows before splitting, unless the same features do "
            "come again when the model serves",
            figures={"share": share},
        )
        for split, share in result["in_train"].items()
        if share >= MANY
    ]
    return result, findings
