"""The report as one HTML page, which holds all it needs and no script."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
import string
from typing import Any

from data_pipelines.inspection import plots, text

Tree = Mapping[str, Any]
NUM_BARS = 40


def render(tree: Tree) -> str:
    """Returns the page."""
    sections = (
        ("Findings", "".join(map(_finding, tree["findings"]))),
        ("By day", _panels(_days(tree))),
        ("What each field tells alone", "".join(_alone(tree))),
        ("Fields", _fields(tree["fields"])),
        ("Most frequent ids", _top_ids(tree)),
        ("Numbers and lengths", _numbers(tree["fields"])),
        ("Tables", _tables(tree["tables"])),
        ("Histories", _histories(tree["histories"])),
        ("Rows that come twice, and users", _overlaps(tree)),
    )
    return _PAGE.substitute(
        style=_STYLE,
        name=escape(tree["dataset"]),
        facts=escape(
            " · ".join(
                [
                    f"{sum(s['rows'] for s in tree['splits'].values()):,} rows"
                    + ("" if tree["all_rows"] else " (a sample)"),
                    f"{len(tree['fields'])} columns",
                    f"{len(tree['tables'])} tables",
                    f"splits: {tree['split_rule'] or 'no rule stated'}",
                ]
            )
        ),
        verdict=escape(text.verdict(tree["findings"])),
        splits=_splits(tree),
        sections="".join(
            f"<h2>{title}</h2>\n{body}\n" for title, body in sections if body
        ),
    )


def _finding(finding: Tree) -> str:
    return (
        f"<div class='finding {finding['level']}'><b>{finding['level']}: "
        f"{escape(finding['check'])}</b><p>{escape(finding['found'])}</p>"
        f"<p class=facts>{escape(finding['why'])}</p>"
        f"<p>→ {escape(finding['advice'])}</p></div>"
    )


def _splits(tree: Tree) -> str:
    tasks = list(next(iter(tree["splits"].values()))["positive_rate"])
    rows = []
    for name, split in tree["splits"].items():
        times = tree["split_times"].get(name, {"first": "", "last": ""})
        rates = [text.percent(split["positive_rate"][task]) for task in tasks]
        rows.append([name, f"{split['rows']:,}", *rates, times["first"], times["last"]])
    head = ["split", "rows", *(f"{task} positive" for task in tasks)]
    return _table([*head, "first time", "last time"], rows)


def _days(tree: Tree) -> Iterator[str]:
    if not tree["days"]:
        return
    splits = list(dict.fromkeys(day["split"] for day in tree["days"]))
    tasks = tree["days"][0]["positive_rate"]
    colours = ", ".join(
        f"<span style='color: var({plots.COLOURS[i % len(plots.COLOURS)]})'>"
        f"{escape(split)}</span>"
        for i, split in enumerate(splits)
    )
    rows = {
        split: [(d["day"], d["rows"]) for d in tree["days"] if d["split"] == split]
        for split in splits
    }
    yield _panel("rows", colours, plots.by_day(rows, "{:,.0f}".format))
    for task in tasks:
        rates = {
            split: [
                (d["day"], d["positive_rate"][task] or 0.0)
                for d in tree["days"]
                if d["split"] == split
            ]
            for split in splits
        }
        yield _panel(
            f"{task}: positive rate", colours, plots.by_day(rates, text.percent)
        )


def _alone(tree: Tree) -> Iterator[str]:
    found = [
        (f"{entry['name']} ({best[1]})", best[0])
        for entry in tree["fields"]
        if (best := text.best_auc(entry))
    ]
    if not found:
        return
    found.sort(key=lambda pair: -pair[1])
    yield _panel(
        "best AUC on held-out rows of a model of one field",
        f"and its task; dashed: {tree['auc_threshold']:g}, above it a leak is likely"
        + (f"; the first {NUM_BARS} of {len(found)}" if len(found) > NUM_BARS else ""),
        plots.bars(
            found[:NUM_BARS],
            span=(0.5, 1.0),
            mark=tree["auc_threshold"],
            form="{:.3f}".format,
        ),
    )


def _fields(entries: Sequence[Tree]) -> str:
    if not entries:
        return ""
    splits = list(entries[0]["nulls"])
    head = ["field", "kind", "table", *(f"values, {split}" for split in splits)]
    head += [*(f"unseen rows, {split}" for split in splits[1:]), "nulls", "best AUC"]
    rows = []
    for entry in entries:
        about = "" if entry.get("exact", True) else "~"
        counts, unseen = entry.get("cardinality", {}), entry.get("unseen_rows", {})
        best = text.best_auc(entry)
        rows.append(
            [
                entry["name"],
                entry["kind"],
                entry.get("table", ""),
                *(f"{about}{counts[s]:,}" if s in counts else "" for s in splits),
                *(text.percent(unseen[s]) if s in unseen else "" for s in splits[1:]),
                f"{sum(entry['nulls'].values()):,}",
                f"{best[0]:.4f} {best[1]}" if best else "",
            ]
        )
    return _table(head, rows)


def _top_ids(tree: Tree) -> str:
    rows = [
        [
            entry["name"] if not i else "",
            top["id"],
            text.percent(top["share"]),
            *(text.percent(rate) for rate in top["positive_rate"].values()),
        ]
        for entry in tree["fields"]
        for i, top in enumerate(entry.get("top", []))
    ]
    tasks = next(iter(tree["splits"].values()))["positive_rate"]
    head = ["field", "id", "share of training", *(f"{task} positive" for task in tasks)]
    return _folded(_table(head, rows)) if rows else ""


def _numbers(entries: Sequence[Tree]) -> str:
    rows, head = [], []
    for entry in entries:
        of_split = entry.get("numbers") or entry.get("lengths") or {}
        what = f"{entry['name']}{' (length)' if 'lengths' in entry else ''}"
        for split, found in of_split.items():
            head = max(head, list(found), key=len)
            cells = {name: _number(value) for name, value in found.items()}
            rows.append((what, split, cells))
    table = [
        [what, split, *(c.get(name, "") for name in head)] for what, split, c in rows
    ]
    return _folded(_table(["field", "split", *head], table)) if rows else ""


def _tables(entries: Sequence[Tree]) -> str:
    head = ["table", "ids", "rows", "distinct ids", "largest id", "lost if hashed"]
    rows = [
        [
            entry["name"],
            entry["ids"],
            f"{entry['num_rows']:,}",
            f"{'' if entry['exact'] else '~'}{entry['num_ids']:,}",
            f"{entry['largest_id']:,}" if "largest_id" in entry else "",
            text.percent(entry["hashed_lost"]),
            text.percent(entry["hashed_sharing"]),
            f"{entry['hashed_rows_suggested']:,}",
        ]
        for entry in entries
    ]
    return _table([*head, "ids that share", "rows to lose 5 %"], rows) if rows else ""


def _histories(found: Mapping[str, Tree]) -> str:
    rows = []
    for name, own in found.items():
        followed = own.get("followed", {})
        rows.append(
            [
                name,
                f"{followed['num_new']:,}" if followed else "",
                text.percent(followed["at"]) if followed else "",
                text.percent(followed["after"]) if followed else "",
                text.percent(followed["shrinks"]) if followed else "",
                ", ".join(
                    f"{task} {entry['auc']:.3f}"
                    for task, entry in own.get("last_is_target", {}).items()
                ),
            ]
        )
    head = ["sequence", "ids that came in", "of the row’s time", "of later rows"]
    head += ["steps that shrink", "AUC of “the target is the last event”"]
    return _table(head, rows) if rows else ""


def _overlaps(tree: Tree) -> str:
    twice, users = tree["duplicate_rows"], tree["users"]
    rows = [
        [
            split,
            text.percent(share),
            text.percent(twice["in_train"][split])
            if split in twice["in_train"]
            else "",
            f"{users[split]['users']:,}" if split in users else "",
            f"{users[split].get('in_train', ''):,}"
            if "in_train" in users.get(split, {})
            else "",
        ]
        for split, share in twice["within"].items()
    ]
    head = ["split", "features of an earlier row", "features of a training row"]
    return _table([*head, "users", "of them in training"], rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.6g}"


def _panels(panels: Iterator[str]) -> str:
    joined = "".join(panels)
    return f"<div class=figures>{joined}</div>" if joined else ""


def _panel(title: str, note: str, svg: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {note}</figcaption>{svg}</figure>"
    )


def _folded(table: str) -> str:
    return f"<details><summary>show</summary>{table}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>\n"
        for row in rows
    )
    names = "".join(f"<th>{escape(name)}" for name in head)
    return f"<div class=scroll><table><tr>{names}</tr>\n{lines}</table></div>"


_STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --ink: #1a1f26; --muted: #5d6773; --line: #e2e5e9; --soft: #f6f7f9;
  --first: #1c64c7; --second: #b8560b; --third: #2c7a4b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181d; --ink: #e7eaee; --muted: #98a2ae; --line: #2d333b; --soft: #1c2026;
  --first: #76acfa; --second: #eda05c; --third: #7ccf9c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 40px 0 14px; padding-top: 14px;
  border-top: 1px solid var(--line); }
p { margin: 4px 0; } .facts, figcaption, summary { color: var(--muted); }
.verdict { font-size: 17px; margin: 16px 0; }
.finding { background: var(--soft); border-left: 4px solid var(--muted);
  padding: 10px 16px; margin-bottom: 12px; border-radius: 4px; break-inside: avoid;
  overflow-wrap: anywhere; }
.error { border-color: var(--second); } .error > b { color: var(--second); }
.warning { border-color: var(--first); }
.figures { display: grid; gap: 28px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
figure { margin: 0; max-width: 620px; break-inside: avoid; }
figcaption { font-size: 13px; } figcaption b { color: var(--ink); font-size: 14px; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
.scroll { overflow-x: auto; } summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: bottom; }
td { white-space: nowrap; }
th { font-weight: 400; color: var(--muted); }
th:first-child, td:first-child { text-align: left; }
@media print { :root { --page: #fff; --ink: #000; --muted: #444; --line: #ddd;
  --soft: #f4f4f4; --first: #1c64c7; --second: #b8560b; --third: #2c7a4b; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 11px; } main { padding: 0; max-width: none; } }
"""

_PAGE = string.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name · dataset</title>
<style>$style</style>
</head>
<body><main>
<h1>$name</h1>
<p class=facts>$facts</p>
<p class=verdict><b>$verdict</b></p>
$splits
$sections
</main></body>
</html>
"""
)
