"""Fields that count what training cannot know: statistics with the future in them.

A published table of statistics ("likes of this video") is often made over the whole
period, test days included. Such a field is recognised by three things together:

A. It is a function of an id (one value in all rows of the id) and a statistic of it:
   over ids, it goes with how often training has the id, or with the id's positive rate
   in training. Content does so less: on KuaiRand the rank correlation with the rows is
   .31 .. .70 for the leaking counters, and .23 at most for what is known of videos and
   users themselves; with the rate .38 at most, but .95 for a mean of the label.
B. It tells apart ids that training does not hold. A statistic of the training days
   has one value (nothing) for all of them.
C. Among ids with equal histories in training, 0 .. 3 rows with so many positives, it
   predicts held-out labels.

A, B and C are an error, A and B a warning. The folder cannot show which days a counter
covers: an honest one of days before training shows the same signs, and content that
goes with popularity may.
"""

# pyright: reportArgumentType=false
# Polars types a value of any series as a wide union.

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np
import polars as pl

from data_pipelines.inspection import values
from data_pipelines.inspection.folder import Column, Finding, Folder, collect

MIN_IDS = 100  # in training, for a field to have statistics of it
MIN_ROWS_PER_ID = 3  # else nearly everything is a function of the id
MIN_UNSEEN_ROWS = 30
RARE = 3  # rows in training
COUNTS = 0.3  # rank correlation with rows in training, of what counts
AVERAGES = 0.7  # rank correlation with rates in training, of what averages labels
MIN_PAST = 10  # rows in training, for an id to have a rate
LARGEST_SHARE = 0.5  # of one value among unseen ids, up to which it tells them apart
MIN_Z = 4.0
MIN_LIFT = 0.03  # of the AUC, over .5
FILTER_ROWS = 200_000  # by which most pairs of columns are ruled out


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The figures of one field; see the module.

    Attributes:
        id: the field that it is a function of.
        correlation: with the id's rows in training.
        rate_correlation: with its positive rate in training, the task's that goes best.
        unseen_rows: held-out rows of ids that training does not hold.
        largest_share: of one value among them.
        task: the one that it predicts best.
        auc: among ids with equal histories; below .5 = the smaller the likelier.
        z: how many standard errors the prediction is from chance, by ids.
    """

    id: str
    correlation: float
    rate_correlation: float
    unseen_rows: int
    largest_share: float
    task: str
    auc: float
    z: float

    @property
    def is_statistic(self) -> bool:
        """A."""
        averages = abs(self.rate_correlation) >= AVERAGES
        return averages or abs(self.correlation) >= COUNTS

    @property
    def knows_unseen(self) -> bool:
        """B."""
        enough = self.unseen_rows >= MIN_UNSEEN_ROWS
        return enough and self.largest_share <= LARGEST_SHARE

    @property
    def predicts(self) -> bool:
        """C."""
        return abs(self.z) >= MIN_Z and abs(self.auc - 0.5) >= MIN_LIFT


def evidence(folder: Folder, cardinality: Mapping[str, int]) -> dict[str, Evidence]:
    """Returns the figures of every field that is a function of an id.

    Args:
        folder: where the rows are.
        cardinality: values of each number and id in training.
    """
    ids = [
        column
        for column in folder.columns
        if column.kind == "id"
        and cardinality[column.name] >= MIN_IDS
        and folder.num_rows["train"] >= MIN_ROWS_PER_ID * cardinality[column.name]
    ]
    # A district tells the region, and large ones have many rows: what is known of
    # users through either is judged by users, the finest id.
    ids.sort(key=lambda column: -cardinality[column.name])
    fields = [
        column
        for column in folder.columns
        if column.kind in ("number", "id") and cardinality[column.name] > 1
    ]
    possible = {column.name: _functions(folder, column, fields) for column in ids}
    result = {}
    for field in fields:
        for column in ids:
            if field.name in possible[column.name]:
                entities = _entities(folder, column, field)
                if entities is not None:
                    result[field.name] = _evidence(folder, column, field, entities)
                    break
    return result


def findings(found: Mapping[str, Evidence]) -> list[Finding]:
    """Judges the figures; fields of one id that are judged alike make one finding."""
    groups: dict[tuple[bool, str], dict[str, Evidence]] = {}
    for name, figures in found.items():
        if figures.is_statistic and figures.knows_unseen:
            key = (not figures.predicts, figures.id)
            groups.setdefault(key, {})[name] = figures
    return [
        Finding(
            check="knows the future",
            level="warning" if is_unproven else "error",
            subject=", ".join(fields),
            found=f"{_text(id_name, fields)}: "
            + "; ".join(_figures(name, figures) for name, figures in fields.items()),
            why="a count made over days that include the held-out ones tells their "
            "labels; offline metrics rise and nothing of it is left when serving",
            advice="find out which days were counted; unless all lie before the row's, "
            "leave the field out or count anew (counters made of the training days "
            "pass this check, older ones do not)",
            figures={name: dataclasses.asdict(each) for name, each in fields.items()},
        )
        for (is_unproven, id_name), fields in sorted(groups.items())
    ]


def _text(id_name: str, fields: Mapping[str, Evidence]) -> str:
    first = next(iter(fields.values()))
    number = "1 field has" if len(fields) == 1 else f"{len(fields)} fields have"
    text = (
        f"{number} one value per {id_name}, rank correlation r with its rows in "
        f"training or p with its positive rate there, and different values for those "
        f"that training does not hold ({first.unseen_rows:,} rows)"
    )
    if first.predicts:
        text += f"; AUC and z among ids with equal histories of {RARE} rows at most"
    return text


def _figures(name: str, figures: Evidence) -> str:
    text = f"{name} r {figures.correlation:+.2f} p {figures.rate_correlation:+.2f}"
    if figures.predicts:
        text += f", {figures.task} AUC {figures.auc:.3f}, z {figures.z:.1f}"
    return text


def _functions(folder: Folder, column: Column, fields: Sequence[Column]) -> set[str]:
    """Names of the fields that may be functions of an id, judged by some rows."""
    others = {field.name: field.values for field in fields if field != column}
    if not others:
        return set()
    rows = folder.select(id=column.values, **others).head(FILTER_ROWS)
    varies = [(pl.col(name).min() != pl.col(name).max()).alias(name) for name in others]
    found = collect(rows.group_by("id").agg(varies))
    sums = found.select(pl.col(name).sum() for name in others).row(0)
    return {name for name, total in zip(others, sums, strict=True) if total <= 1}


def _entities(folder: Folder, column: Column, field: Column) -> pl.DataFrame | None:
    """Pairs (id, value) with rows and positives; None if it is no function.

    One id may have many values: the one that stands for all unknown ids, whose values
    then tell them apart.
    """
    labels = [f"label {t}" for t in range(len(folder.labels))]
    is_train = pl.col("split") == 0
    sums = []
    for number, rows in enumerate((is_train, ~is_train)):
        sums.append(rows.sum().cast(pl.Float64).alias(f"rows {number}"))
        sums += [pl.col(y).filter(rows).sum().alias(f"{y} {number}") for y in labels]
    query = folder.select(id=column.values, value=field.values)
    found = collect(query.group_by("id", "value").agg(sums))
    num_varying = (found["id"].value_counts()["count"] > 1).sum()
    return found.sort("id", "value") if num_varying <= 1 else None


def _evidence(
    folder: Folder, column: Column, field: Column, entities: pl.DataFrame
) -> Evidence:
    past, later = (entities[f"rows {i}"].to_numpy() for i in range(2))
    code = entities["value"].rank("dense").fill_null(0).to_numpy().astype(np.int64)
    is_number = field.kind == "number"
    new = (past == 0) & (later > 0)
    by_code = np.bincount(code[new], weights=later[new], minlength=1)
    known, often = past > 0, past >= MIN_PAST
    best: dict[str, Any] = {"task": "", "auc": 0.5, "z": 0.0}
    rate_correlations = [0.0]
    for t, task in enumerate(folder.labels):
        y, y_later = (entities[f"label {t} {i}"].to_numpy() for i in range(2))
        if often.sum() >= MIN_IDS:
            rate = y[often] / past[often]
            rate_correlations.append(_goes_with(code[often], rate, is_number=is_number))
        score = code if is_number else _rate_of_others(code, past, y)
        auc, z = _stratified(score, past, y, later, y_later)
        if abs(z) > abs(best["z"]):
            best = {"task": task, "auc": auc, "z": z}
    return Evidence(
        id=column.name,
        correlation=_goes_with(code[known], past[known], is_number=is_number),
        rate_correlation=max(rate_correlations, key=abs),
        unseen_rows=int(later[new].sum()),
        largest_share=float(by_code.max() / max(by_code.sum(), 1)),
        **best,
    )


def _goes_with(code: np.ndarray, target: np.ndarray, *, is_number: bool) -> float:
    """Rank correlation of a field with something that ids [n] have.

    A code has no order: one half of the ids gives each code the mean rank that the
    other half is judged by, and the other way round.
    """
    rank = _ranks(target)
    if is_number:
        return _correlation(_ranks(code), rank)
    half = np.random.default_rng(0).integers(0, 2, len(code))
    expected = np.empty(len(code))
    for mine in (0, 1):
        other = half != mine
        total = np.bincount(code[other], rank[other], minlength=code.max(initial=0) + 1)
        number = np.bincount(code[other], minlength=len(total))
        mean = (total + 2 * rank.mean()) / (number + 2)
        expected[half == mine] = mean[code[half == mine]]
    return max(_correlation(_ranks(expected), rank), 0.0)


def _rate_of_others(code: np.ndarray, past: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Positive rate in training of the other ids with the same code."""
    rows = np.bincount(code, past)[code] - past
    positives = np.bincount(code, y)[code] - y
    mean = y.sum() / max(past.sum(), 1)
    return (positives + values.PRIOR * mean) / (rows + values.PRIOR)


def _stratified(
    score: np.ndarray,
    past: np.ndarray,
    y: np.ndarray,
    later: np.ndarray,
    y_later: np.ndarray,
) -> tuple[float, float]:
    """AUC of held-out labels among rare ids of equal histories, and its z by ids."""
    rare = (past <= RARE) & (later > 0)
    stratum = past * (RARE + 1) + y
    ordered = pairs = 0.0
    terms = []
    for each in np.unique(stratum[rare]):
        at = rare & (stratum == each)
        rows, positives, scores = later[at], y_later[at], score[at]
        num_pairs = positives.sum() * (rows.sum() - positives.sum())
        if not num_pairs:
            continue
        ordered += num_pairs * values.weighted_auc(scores, positives, rows)
        pairs += num_pairs
        # Rank test whose error is estimated by ids: rows of one id are no news.
        surprise = positives - rows * (positives.sum() / rows.sum())
        rank = _ranks(scores, rows)
        centred = rank - (rank * rows).sum() / rows.sum()
        terms.append(centred * surprise / rows.sum())
    if not terms:
        return 0.5, 0.0
    term = np.concatenate(terms)
    error = np.sqrt((term**2).sum())
    return ordered / pairs, float(term.sum() / error) if error else 0.0


def _ranks(numbers: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Mid-ranks [n], each number counted as often as its weight says."""
    weight = np.ones(len(numbers)) if weight is None else weight
    _, which = np.unique(numbers, return_inverse=True)
    mass = np.bincount(which, weight)
    return (np.cumsum(mass) - mass / 2)[which]


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    if len(one) < 2 or one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])
