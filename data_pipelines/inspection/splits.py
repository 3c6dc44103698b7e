"""Whether the splits are apart in time and in users, as their rule says."""

import re
from typing import Any

import polars as pl

from data_pipelines.inspection import statistics
from data_pipelines.inspection.folder import TRAIN, Finding, Folder, collect

# Dates may be those of another clock than the time column's: a few rows may cross.
CROSSING = 0.01
MAX_USERS = 20_000_000  # that are compared; of more users a share
_BY_TIME = re.compile(r"\bby (the )?(time|date|day|hour)s?\b|\bvalid from\b")
_BY_USER = re.compile(
    r"\bby (the )?(user|group)s?\b|\b(user|group)s?[- ]disjoint\b|"
    r"\bdisjoint (user|group)s?\b"
)
_RANDOM = re.compile(r"\brandom(ly)?\b")


def time_overlap(folder: Folder, unit: str) -> tuple[dict[str, Any], list[Finding]]:
    """Compares the times of training with those of each held-out split.

    Args:
        folder: where the rows are.
        unit: of the card's time column; "" = unknown, times are shown as they are.
    """
    if not folder.card.time:
        return {}, []
    time = pl.col(folder.card.time)
    ends = folder.rows().group_by(" split").agg(low=time.min(), high=time.max())
    of_split = {folder.splits[i]: (low, high) for i, low, high in collect(ends).rows()}
    result = {
        split: {"first": _shown(low, unit), "last": _shown(high, unit)}
        for split, (low, high) in of_split.items()
    }
    findings = []
    for split in folder.splits[1:]:
        first, last = of_split[split][0], of_split[TRAIN][1]
        if first is None or last is None or last < first:
            continue
        in_train = folder.rows().filter(pl.col(" split") == 0)
        later = collect(in_train.select((time >= first).sum())).item()
        if later:
            findings.append(_overlap(folder, split, later, result))
            result[split]["training_rows_from_its_first"] = later
    return result, findings


def _overlap(folder: Folder, split: str, later: int, times: dict[str, Any]) -> Finding:
    first, last = times[split]["first"], times[TRAIN]["last"]
    rule = _rule(folder)
    share = later / folder.num_rows[TRAIN]
    is_by_time = bool(_BY_TIME.search(rule))
    level, advice = "warning", "say beside every figure how the split was made"
    if last == first or _RANDOM.search(rule):
        level = "info"
    elif is_by_time and share > CROSSING:
        level, advice = "error", "let training end before the first held-out row"
    elif is_by_time:
        advice = "see whether the rule and the column go by one clock"
    return Finding(
        check="splits overlap in time",
        level=level,
        subject=split,
        found=f"{later:,} rows of training ({share:.2%}) are not before the first row "
        f"of {split} ({first}); the last is at {last}",
        why="the model learns from days that it is then tested on, as it never can "
        "when it serves; trends and counts of the test period are known to it",
        advice=f"the rule is {rule!r}: {advice}",
        figures={"rows": later, "share": share},
    )


def _shown(time: Any, unit: str) -> str:
    """Writes a time for people."""
    if not unit or time is None:
        return str(time)
    moment = pl.select(statistics.as_datetime(pl.lit(time), unit)).item()
    return moment.isoformat(sep=" ", timespec="milliseconds").removesuffix(".000")


def shared_users(folder: Folder) -> tuple[dict[str, Any], list[Finding]]:
    """Counts the users of held-out splits that training has too."""
    if not folder.card.group:
        return {}, []
    rows = folder.rows().select(" split", user=pl.col(folder.card.group))
    step = -(
        -collect(rows.select(pl.col("user").approx_n_unique())).item() // MAX_USERS
    )
    if step > 1:
        rows = rows.filter(pl.col("user").hash() % step == 0)
    stands = [
        (pl.col(" split") == i).any().alias(split)
        for i, split in enumerate(folder.splits)
    ]
    users = collect(rows.group_by("user").agg(stands))
    result: dict[str, Any] = {"exact": step <= 1 and not folder.is_sampled}
    findings = []
    rule = _rule(folder)
    for i, split in enumerate(folder.splits):
        result[split] = {"users": int(users[split].sum()) * max(step, 1)}
        for other in folder.splits[:i]:
            both = int((users[split] & users[other]).sum()) * max(step, 1)
            result[split][f"in_{other}"] = both
            if both and _BY_USER.search(rule):
                findings.append(
                    Finding(
                        check="users in several splits",
                        level="error",
                        subject=split,
                        found=f"{both:,} of {result[split]['users']:,} users of "
                        f"{split} are also in {other}, but the rule is {rule!r}",
                        why="what is known of a user from one split is tested on the "
                        "other: figures for new users come out too high",
                        advice="split anew, all rows of a user into one split",
                        figures={"users": both},
                    )
                )
    return result, findings


def _rule(folder: Folder) -> str:
    """How the splits were made; what follows a semicolon tells of other things."""
    return folder.card.split_rule.partition(";")[0].strip()
