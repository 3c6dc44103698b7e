"""Histories that hold what had not happened yet.

Where a history knows the times of its events, they are compared with the row's. Where
it does not, the folder itself tells: between two rows of a user, new ids come into the
history. Each of them should stand in a row of that user from the earlier row on and
before the later one. An id that stands in none, but in a row of the later time or
after it, came from the future.
"""

import dataclasses
import re

import polars as pl

from data_pipelines.inspection import statistics
from data_pipelines.inspection.folder import Column, Finding, Folder, collect
from rankax.data.card import SequenceField

SAMPLED_ROWS = 200_000  # rows of whole users, whose histories are followed
MIN_EVENTS = 20
# Shares of what came into histories; honest ones are at 0 on KuaiRand, MovieLens and
# Amazon. Where most of it stands in no row at all, the histories are not made of these
# rows, and may well hold an id that the user meets here later.
LEAK, DOUBTFUL, ELSEWHERE = 0.05, 0.005, 0.5
SHRINKS = 0.01
OWN_AUC = 0.75
_TIME = re.compile(r"(^|_)(times?|timestamps?|time_?(ms|us|ns)|ts)($|_)")
WHY = (
    "the history shows the model what the user does at the impression or after it; "
    "that is the label, and will not be there when the model serves"
)
ADVICE = (
    "build histories from events strictly before the row's time, as "
    "data_pipelines/engine/histories.py does"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """What came into the histories of one column between rows of a user.

    Attributes:
        num_new: ids that came in.
        at: share of them that stand in no row in between, but in one of the row's time.
        after: share that stand in none so far, but in a later one.
        elsewhere: share that stand neither there nor in a row in between.
        num_steps: pairs of successive times of a user.
        shrinks: share of them whose later history is shorter.
    """

    num_new: int
    at: float
    after: float
    elsewhere: float
    num_steps: int
    shrinks: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """How often the target's own id is the last event of its history, per task.

    Attributes:
        positives: share of positive rows with a history.
        negatives: share of negative rows with a history.
    """

    positives: float
    negatives: float

    @property
    def auc(self) -> float:
        """AUC of "it is the last event"."""
        return 0.5 + (self.positives - self.negatives) / 2


def findings(folder: Folder, unit: str) -> tuple[list[Finding], dict[str, dict]]:
    """Checks every sequence; returns what is wrong, and the figures.

    Args:
        folder: where the rows are.
        unit: of the card's time column, "" = unknown.
    """
    result: list[Finding] = []
    figures: dict[str, dict] = {}
    for sequence in folder.card.fields:
        if not isinstance(sequence, SequenceField):
            continue
        own: dict = {}
        times = _time_column(folder, sequence, unit)
        if times:
            at, after = _compare_times(folder, times, unit)
            own |= {"time_column": times, "rows_at": at, "rows_after": after}
            result += _judge_times(sequence.name, at, after)
        items = _items(folder, sequence)
        if items is not None:
            aspect, target = items
            last = last_is_target(folder, aspect, target)
            own["last_is_target"] = {
                task: {**dataclasses.asdict(entry), "auc": entry.auc}
                for task, entry in last.items()
            }
            result += _judge_target(sequence.name, target.name, last)
            if folder.card.group and folder.card.time:
                followed = follow(folder, aspect, target)
                own["followed"] = dataclasses.asdict(followed)
                result += _judge_followed(sequence.name, followed)
        figures[sequence.name] = own
    return result, figures


# ---------------------------------------------------------------- times of events


def _time_column(folder: Folder, sequence: SequenceField, unit: str) -> str:
    """A list column of the sequence that holds times in the unit of the rows."""
    schema = folder.rows().collect_schema()
    aspects = {aspect.column: aspect.name for aspect in sequence.columns}
    for column, dtype in schema.items():
        named = aspects.get(column) or column.removeprefix(f"{sequence.name}_")
        belongs = column in aspects or column.startswith(f"{sequence.name}_")
        if not (unit and belongs and _TIME.search(named)):
            continue
        if not isinstance(dtype, pl.List):
            continue
        if unit == "timestamp":
            if dtype.inner.is_temporal():
                return column
            continue
        elements = folder.rows().select(pl.col(column).explode().drop_nulls())
        ends = elements.select(low=pl.col(column).min(), high=pl.col(column).max())
        low, high = collect(ends).row(0)
        if dtype.inner.is_integer() and statistics.unit_of(low, high) == unit:
            return column
    return ""


def _compare_times(folder: Folder, column: str, unit: str) -> tuple[float, float]:
    """Shares of rows whose latest event is at the row's time, and after it."""
    latest = statistics.as_datetime(pl.col(column).list.max(), unit)
    time = statistics.as_datetime(pl.col(folder.card.time), unit)
    has_events = pl.col(column).list.len() > 0
    query = folder.rows().filter(has_events)
    shares = query.select(at=(latest == time).mean(), after=(latest > time).mean())
    at, after = collect(shares).row(0)
    return at or 0.0, after or 0.0


def _judge_times(sequence: str, at: float, after: float) -> list[Finding]:
    if not at + after:
        return []
    return [
        Finding(
            check="history from the future",
            level="error",
            subject=sequence,
            found=f"the latest event of {sequence} is at the row's time in {at:.2%} of "
            f"the rows, and after it in {after:.2%}",
            why=WHY,
            advice=ADVICE,
            figures={"rows_at": at, "rows_after": after},
        )
    ]


# ---------------------------------------------------------------- the target itself


def _items(folder: Folder, sequence: SequenceField) -> tuple[Column, Column] | None:
    """The first aspect whose table is also that of a field with one id, and the field.

    The same field that DIN takes for the target.
    """
    targets: dict[str, Column] = {}
    for column in folder.columns:
        if column.kind == "id":
            targets.setdefault(column.table, column)
    for column in folder.columns:
        if column.aspect_of == sequence.name and column.table in targets:
            return column, targets[column.table]
    return None


def _known(folder: Folder, target: Column, name: str) -> pl.Expr:
    """Whether an id names something: row 0 of a vocabulary is all unknown ids."""
    is_direct = any(
        table.name == target.table and table.ids == "direct"
        for table in folder.card.tables
    )
    return pl.col(name) != 0 if is_direct else pl.col(name).is_not_null()


def last_is_target(folder: Folder, aspect: Column, target: Column) -> dict[str, Target]:
    """Returns for each task how often a history ends with the row's own id."""
    rows = folder.select(events=aspect.values, target=target.values)
    rows = rows.filter(pl.col("events").list.len() > 0)
    rows = rows.filter(_known(folder, target, "target"))
    rows = rows.with_columns(own=pl.col("events").list.last() == pl.col("target"))
    shares = [
        pl.col("own").filter(pl.col(f"label {t}") == y).mean().alias(f"{t} {y}")
        for t in range(len(folder.labels))
        for y in (1, 0)
    ]
    found = [share or 0.0 for share in collect(rows.select(shares)).row(0)]
    return {
        task: Target(positives=found[2 * t], negatives=found[2 * t + 1])
        for t, task in enumerate(folder.labels)
    }


def _judge_target(
    sequence: str, target: str, found: dict[str, Target]
) -> list[Finding]:
    result = []
    for task, own in found.items():
        if max(own.auc, 1 - own.auc) < OWN_AUC:
            continue
        result.append(
            Finding(
                check="target in its own history",
                level="error",
                subject=sequence,
                found=f"{sequence} ends with the row's own {target} in "
                f"{own.positives:.2%} of the rows with {task} = 1 and in "
                f"{own.negatives:.2%} of the others (AUC {own.auc:.3f})",
                why=WHY,
                advice=ADVICE,
                figures={"task": task, "auc": own.auc},
            )
        )
    return result


# ---------------------------------------------------------------- what comes in


def follow(folder: Folder, aspect: Column, target: Column) -> Followed:
    """Follows the histories of some users from row to row; see the module."""
    rows = _rows_of_some_users(folder, aspect, target)
    key = ["user", "time"]
    # Rows of one time have one past; of many negatives of one positive too.
    visits = rows.unique(key, keep="first", maintain_order=True).sort(key)
    visits = visits.with_row_index("visit").with_columns(
        before=pl.col("time").shift().over("user"),
        shrinks=pl.col("events").list.len()
        < pl.col("events").list.len().shift().over("user"),
    )
    events = visits.select("visit", *key, "before", item="events").explode("item")
    events = events.drop_nulls("item").filter(_known(folder, target, "item")).unique()
    earlier = events.select(pl.col("visit") + 1, "user", "item")
    new = events.drop_nulls("before").join(earlier, ["visit", "user", "item"], "anti")
    met = rows.select("user", "time", item="target", met="time").drop_nulls()
    met = met.unique().sort("time")
    new = new.sort("time")
    same = {"on": "time", "by": ["user", "item"], "check_sortedness": False}
    new = new.join_asof(met, strategy="backward", allow_exact_matches=False, **same)
    new = new.join_asof(met, strategy="forward", suffix="_next", **same)
    is_new = pl.col("met").is_null() | (pl.col("met") < pl.col("before"))
    shares = {
        "at": is_new & (pl.col("met_next") == pl.col("time")),
        "after": is_new & (pl.col("met_next") > pl.col("time")),
        "elsewhere": is_new & pl.col("met_next").is_null(),
    }
    means = [share.fill_null(False).mean().fill_null(0.0) for share in shares.values()]
    at, after, elsewhere = new.select(
        mean.alias(name) for name, mean in zip(shares, means, strict=True)
    ).row(0)
    steps = visits.drop_nulls("before")
    (shrinks,) = steps.select(pl.col("shrinks").mean()).row(0)
    return Followed(
        num_new=len(new),
        at=at,
        after=after,
        elsewhere=elsewhere,
        num_steps=len(steps),
        shrinks=shrinks or 0.0,
    )


def _rows_of_some_users(folder: Folder, aspect: Column, target: Column) -> pl.DataFrame:
    user = pl.col(folder.card.group)
    total = sum(split.num_rows for split in folder.card.splits.values())
    step = -(-total // SAMPLED_ROWS)
    rows = folder.rows(whole=True)  # a user of whom rows are missing proves nothing
    if step > 1:
        rows = rows.filter(user.hash() % step == 0)
    return collect(
        rows.select(
            user=user,
            time=pl.col(folder.card.time).cast(pl.Int64),
            target=target.values,
            events=aspect.values,
        )
    )


def _judge_followed(sequence: str, found: Followed) -> list[Finding]:
    result = []
    share = found.at + found.after
    is_leak = share >= LEAK and found.elsewhere <= ELSEWHERE
    if found.num_new >= MIN_EVENTS and share >= DOUBTFUL:
        result.append(
            Finding(
                check="history from the future",
                level="error" if is_leak else "warning",
                subject=sequence,
                found=f"of {found.num_new:,} ids that come into {sequence} between two "
                f"rows of a user, {found.at:.2%} stand in no row in between but in one "
                f"of the later row's time, and {found.after:.2%} only in rows after it",
                why=WHY,
                advice=ADVICE,
                figures=dataclasses.asdict(found),
            )
        )
    if found.num_steps >= MIN_EVENTS and found.shrinks >= SHRINKS:
        result.append(
            Finding(
                check="history shrinks",
                level="warning",
                subject=sequence,
                found=f"{sequence} is shorter than at the user's row before in "
                f"{found.shrinks:.2%} of {found.num_steps:,} steps in time",
                why="a past only grows, up to its largest length; what shrinks was "
                "perhaps not made of what came before",
                advice="tell how the histories were cut, or build them anew",
                figures=dataclasses.asdict(found),
            )
        )
    return result
