"""Tables of the report that show, slice by slice, where the model is worse."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from rankax.metrics import slices
from rankax.observe import figures

_NUM_OPEN = 15  # rows that stand open; the rest is folded

Rows = Sequence[Mapping[str, Any]]


def tables(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields the tables of one task after the other, worst AUC first.

    Args:
        result: `result.json`; without slices there is nothing to show.
    """
    for task, rows in result.get("slices", {}).items():
        if not rows:
            continue
        whole = {
            name: result["metrics"].get(f"{task}/{name}")
            for name in ("auc", "num_examples")
        }
        large = [row for row in rows if not row["is_small"]]
        small = [row for row in rows if row["is_small"]]
        span = _span(large, whole["auc"])
        yield _caption(task, large, whole["auc"])
        if large:
            yield _table(large[:_NUM_OPEN], whole, span)
        if more := large[_NUM_OPEN:]:
            yield _folded(f"{len(more):,} more", _table(more, whole, span))
        if small:
            title = (
                f"{len(small):,} small: fewer than {slices.MIN_EXAMPLES} examples, or "
                f"{slices.MIN_OF_CLASS} of a class"
            )
            yield _folded(title, _table(small, whole, _span(small, whole["auc"])))


def _caption(task: str, rows: Rows, auc: float | None) -> str:
    text = f"<h3>{escape(task)}</h3>"
    if auc is None or not rows:
        return text
    below = sum(_is_below(row, auc) for row in rows)
    return (
        f"{text}<p class=facts>AUC of the whole split: {auc:.4f} (dashed). Lines: 95 "
        f"% intervals; {below:,} of {len(rows):,} lie "
        "<b class=below>wholly below</b>.</p>"
    )


def _folded(title: str, table: str) -> str:
    return f"<details><summary>{title}</summary>{table}</details>"


def _table(
    rows: Rows, whole: Mapping[str, float | None], span: tuple[float, float]
) -> str:
    low, high = span
    head = (
        "<thead><tr><th class=text>slice<th class=text>value<th>examples<th>share"
        "<th>positive rate<th>AUC"
        f"<th class=bar><small>{low:.3f}</small><small>{high:.3f}</small>"
        "<th>normalized entropy<th>calibration</tr></thead>"
    )
    body = "".join(_row(row, whole, span) for row in rows)
    return f"<div class=scroll><table class=slices>{head}{body}</table></div>"


def _row(
    row: Mapping[str, Any],
    whole: Mapping[str, float | None],
    span: tuple[float, float],
) -> str:
    auc, count = whole["auc"], whole["num_examples"]
    is_below = auc is not None and _is_below(row, auc)
    share = f"{row['num_examples'] / count:.1%}" if count else "–"
    bar = ""
    if auc is not None and row["auc_low"] is not None:
        ends = row["auc_low"], row["auc_high"]
        bar = figures.interval_bar(
            row["auc"], ends, whole=auc, span=span, is_marked=is_below
        )
    return (
        f"<tr><td class=text>{escape(row['slice'])}"
        f"<td class=text>{escape(row['value'])}"
        f"<td>{row['num_examples']:,}"
        f"<td>{share}"
        f"<td>{_number(row['positive_rate'])}"
        f"<td{' class=below' if is_below else ''}>{_number(row['auc'])}"
        f"<td class=bar>{bar}"
        f"<td>{_number(row['normalized_entropy'])}"
        f"<td>{_number(row['calibration'])}</tr>"
    )


def _is_below(row: Mapping[str, Any], auc: float) -> bool:
    return not row["is_small"] and row["auc_high"] < auc


def _span(rows: Rows, auc: float | None) -> tuple[float, float]:
    """Ends of the scale that the intervals of all rows fit on."""
    ends = [row[name] for row in rows for name in ("auc_low", "auc_high")]
    known = [end for end in (*ends, auc) if end is not None]
    return (min(known), max(known)) if known else (0.0, 1.0)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
