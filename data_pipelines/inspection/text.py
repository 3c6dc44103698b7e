"""The report for the console."""

from collections.abc import Iterator, Mapping, Sequence
import textwrap
from typing import Any

WIDTH = 100


def render(tree: Mapping[str, Any]) -> str:
    """Returns the report as lines of text; findings come last, where one looks."""
    parts = [
        f"{tree['dataset']}" + ("" if tree["all_rows"] else " (sample of its rows)"),
        *_splits(tree),
        _table(
            ("field", "ids", "unseen", "nulls", "best AUC", "most frequent id"),
            [_field_row(entry) for entry in tree["fields"]],
        ),
        _table(
            ("table", "ids", "rows", "distinct", "lost if hashed", "for 5 % lost"),
            [_table_row(entry) for entry in tree["tables"]],
        ),
        *_findings(tree["findings"]),
    ]
    return "\n\n".join(part for part in parts if part)


def verdict(findings: Sequence[Mapping[str, Any]]) -> str:
    """Returns how many errors and warnings there are, in words."""
    counts = {level: 0 for level in ("error", "warning", "info")}
    for finding in findings:
        counts[finding["level"]] += 1
    words = [
        f"{number} {level}{'s' if number > 1 and level != 'info' else ''}"
        for level, number in counts.items()
        if number
    ]
    return ", ".join(words) or "nothing to complain about"


def percent(share: float | None) -> str:
    """Returns a share for people, without rounding a little to nothing."""
    if share is None:
        return "–"
    if 0 < share < 0.0001:
        return "<0.01%"
    return f"{share:.2%}"


def best_auc(entry: Mapping[str, Any]) -> tuple[float, str] | None:
    """The best AUC of a field over tasks and held-out splits, and which task."""
    found = [
        (value, task)
        for task, by_split in entry["auc"].items()
        for value in by_split.values()
        if value is not None
    ]
    return max(found, default=None)


def _splits(tree: Mapping[str, Any]) -> Iterator[str]:
    lines = []
    for name, split in tree["splits"].items():
        rates = [
            f"{task} {percent(rate)}" for task, rate in split["positive_rate"].items()
        ]
        line = f"{name}: {split['rows']:,} rows, positive {', '.join(rates)}"
        times = tree["split_times"].get(name)
        if times:
            line += f", {tree['time']['column']} {times['first']} .. {times['last']}"
        lines.append(line)
    if tree["time"]["column"]:
        unit = tree["time"]["unit"]
        known = f"the times are read as {unit}, days are those of UTC"
        unknown = "the unit of the times is not known: no figures by day"
        lines.append(known if unit else unknown)
    yield "\n".join(lines)


def _field_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    cardinality, unseen, best = entry.get("cardinality"), "", best_auc(entry)
    if cardinality:
        unseen = " ".join(percent(share) for share in entry["unseen_rows"].values())
    top = next(iter(entry.get("top", [])), None)
    about = "" if entry.get("exact", True) else "~"
    return (
        entry["name"],
        f"{about}{cardinality['train']:,}" if cardinality else "",
        unseen,
        f"{sum(entry['nulls'].values()):,}",
        f"{best[0]:.3f} {best[1]}" if best else "",
        f"{top['id']} {percent(top['share'])}" if top else "",
    )


def _table_row(entry: Mapping[str, Any]) -> tuple[str, ...]:
    about = "" if entry["exact"] else "~"
    return (
        entry["name"],
        entry["ids"],
        f"{entry['num_rows']:,}",
        f"{about}{entry['num_ids']:,}",
        percent(entry["hashed_lost"]),
        f"{entry['hashed_rows_suggested']:,}",
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns; the first is text, the others end alike."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _findings(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for finding in findings:
        head = f"{finding['level'].upper()} {finding['check']}: {finding['found']}"
        lines = textwrap.wrap(head, WIDTH, subsequent_indent="  ")
        for title, text in (("why", finding["why"]), ("do", finding["advice"])):
            if text:
                lines += textwrap.wrap(
                    f"{title}: {text}",
                    WIDTH,
                    initial_indent="  ",
                    subsequent_indent="    ",
                )
        yield "\n".join(lines)
    yield verdict(findings)
