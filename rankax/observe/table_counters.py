"""The report's table of embedding tables: what was asked of each in the run."""

from collections.abc import Mapping
from html import escape
from typing import Any

_HEAD = (
    "<thead><tr><th>role / table<th>ids looked up<th>unique<th>outside, train"
    "<th>outside, test<th>extra rounds<th>never updated</tr></thead>"
)


def table(result: Mapping[str, Any]) -> str:
    """Returns an HTML table, one line a table; "" for a run without tables.

    Args:
        result: `result.json`; "tables" as `rankax.embeddings.counters` counts them.
    """
    counted = result.get("tables", {})
    train, test = counted.get("train", {}), counted.get("test", {})
    untouched = result.get("never_updated", {})
    rows = []
    for name, record in train.items():
        looked_up = record["looked_up"]
        cells = [
            f"{looked_up:,}",
            f"{record['unique'] / looked_up:.1%}" if looked_up else "–",
            _share(record),
            _share(test.get(name)),
            _count(record.get("overflow_rounds")),
            _count(untouched.get(name)),
        ]
        rows.append(f"<tr><th>{escape(name)}" + "".join(f"<td>{x}" for x in cells))
    if not rows:
        return ""
    return f"<table class=metrics>{_HEAD}<tbody>{''.join(rows)}</tbody></table>"


def _share(record: Mapping[str, Any] | None) -> str:
    """Ids outside the table, with their share."""
    if not record or not record["looked_up"]:
        return "–"
    outside = record["out_of_vocabulary"]
    share = f" ({outside / record['looked_up']:.2%})" if outside else ""
    return f"{outside:,}{share}"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
