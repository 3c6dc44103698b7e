"""`report.html`: one run on one page, to be shown to somebody.

The page holds everything it needs: no script, no font and no picture from elsewhere.
It follows the reader's light or dark setting and prints on white.
"""

from collections.abc import Iterator, Mapping
from html import escape
import json
import string
from typing import Any

from etils import epath

from rankax.config.base import defaults_of
from rankax.metrics.task_metrics import MEAN
from rankax.observe import figures, slice_tables, stores, table_counters
from rankax.observe.console import amount, clock
from rankax.observe.writers import read_metrics

FILE_NAME = "report.html"

# Metrics that the table shows beside another one.
_COMPANIONS = (
    "auc_bound",
    "auc_low",
    "auc_high",
    "gauc_groups",
    "gauc_excluded_groups",
)
_TITLES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "log_loss": "log loss",
    "normalized_entropy": "normalized entropy",
    "positive_rate": "positive rate",
    "num_examples": "examples",
    "hit_rate": "hit rate",
    "ndcg": "NDCG",
}


def write_report(workdir: epath.PathLike) -> epath.Path:
    """Writes `report.html` of a finished run and returns its path.

    Args:
        workdir: run folder with `config.json`, `metrics.jsonl` and `result.json`.

    Raises:
        FileNotFoundError: the run has not finished.
    """
    folder = stores.locate(workdir)
    config = _read(folder / "config.json")["config"]
    result = _read(folder / "result.json")
    lines = read_metrics(folder)
    if "freshness" in result:
        verdicts = _freshness_verdicts(result)
        sections = [
            ("Freshness", "figures", "".join(_freshness(result))),
            ("Windows", "figures", "".join(_windows(lines, result))),
            ("Curves", "figures", "".join(_training_curves(lines))),
        ]
        note = _FRESHNESS_NOTE
    else:
        verdicts = (_verdict(task, result) for task in _tasks(result))
        sections = [
            ("Curves", "figures", "".join(_curves(lines, result))),
            ("Metrics", "scroll", _metrics_table(result)),
            ("Slices", "slicing", "".join(slice_tables.tables(result))),
        ]
        note = _NOTE
    sections += [
        ("Tables", "scroll", table_counters.table(result)),
        ("Calibration", "figures", "".join(_calibration(result))),
        ("Configuration", "cards", "".join(_config_tables(config))),
        ("Run and machine", "cards", "".join(_machine_tables(result))),
    ]
    page = PAGE.substitute(
        style=PAGE_STYLE,
        name=escape(stores.name_of(folder)),
        facts=_facts(result),
        verdicts="".join(verdicts),
        tiles="".join(_tiles(result)),
        sections="".join(
            f"<h2>{title}</h2>\n<div class={kind}>{body}</div>\n"
            for title, kind, body in sections
            if body
        ),
        note=note,
    )
    path = folder / FILE_NAME
    stores.write_text(path, page)
    return path


def _read(path: epath.Path) -> dict[str, Any]:
    """Reads JSON; Python also writes NaN, which no metric here should come as."""
    return json.loads(stores.read_text(path), parse_constant=lambda _: None)


# ---------------------------------------------------------------- summary


def _groups(result: Mapping[str, Any]) -> list[str]:
    """Tasks, and "mean" if the run selects by a mean over them."""
    return list(dict.fromkeys(name.rpartition("/")[0] for name in _names(result)))


def _names(result: Mapping[str, Any]) -> list[str]:
    """Metrics of the test split, or of validation while the test split is unread."""
    return list(result["metrics"] or result["best_validation"]["metrics"])


def _tasks(result: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name in _groups(result)
        if name != MEAN or f"{MEAN}/num_examples" in _names(result)
    ]


def _model(result: Mapping[str, Any]) -> str:
    return result["model"].removesuffix("Config")


def _facts(result: Mapping[str, Any]) -> str:
    facts = [
        f"{_model(result)} on {result['dataset']}",
        f"{result['step']:,} steps ({result['epoch']:.2f} epochs)",
        f"{amount(result['examples_seen'])} examples",
        f"seed {result['seed']}",
        f"config {result['config_hash']}",
    ]
    return escape(" · ".join(facts))


def _verdict(task: str, result: Mapping[str, Any]) -> str:
    """One sentence a task: what came out, how sure that is, what was possible."""
    if not result["metrics"]:
        return f"<p><b>{escape(task)}</b>: the test split has not been read.</p>"
    metrics = {name: result["metrics"].get(f"{task}/{name}") for name in _VERDICT}
    if metrics["auc"] is None:
        return f"<p><b>{escape(task)}</b>: the test split defines no AUC.</p>"
    text = f"test AUC <b>{metrics['auc']:.4f}</b>"
    if metrics["auc_low"] is not None:
        low, high = metrics["auc_low"], metrics["auc_high"]
        text += f" (95 % interval {low:.4f} to {high:.4f})"
    text += _against_oracle(metrics["auc"], metrics["oracle_auc"])
    if metrics["log_loss"] is not None:
        text += f"; log loss <b>{metrics['log_loss']:.4f}</b>"
        text += _against_oracle(metrics["log_loss"], metrics["oracle_log_loss"])
    return f"<p><b>{escape(task)}</b>: {text}.</p>"


_VERDICT = ("auc", "auc_low", "auc_high", "oracle_auc", "log_loss", "oracle_log_loss")


def _against_oracle(value: float, oracle: float | None) -> str:
    if oracle is None:
        return ""
    side = "below" if value < oracle else "above"
    return f", {abs(value - oracle):.4f} {side} the oracle’s {oracle:.4f}"


def _tiles(result: Mapping[str, Any]) -> Iterator[str]:
    for task in [] if "freshness" in result else _tasks(result):
        auc = result["metrics"].get(f"{task}/auc")
        calibration = result["metrics"].get(f"{task}/calibration")
        below = f"calibration {_number(calibration)}"
        yield _tile(f"{task} test AUC", _number(auc), below)
    seconds = result["wall_seconds"]
    yield _tile(
        "wall time", clock(seconds), f"{clock(result['train_seconds'])} of it training"
    )
    yield _tile(
        "examples per second",
        f"{result['examples_per_second']:,.0f}",
        f"input wait {result['input_wait']:.1%}",
    )
    yield _tile(
        "parameters",
        amount(result["num_dense_parameters"] + result["num_table_parameters"]),
        f"{amount(result['num_dense_parameters'])} dense, "
        f"{amount(result['num_table_parameters'])} in tables",
    )


def _tile(title: str, value: str, below: str) -> str:
    return (
        f"<div class=tile><span>{escape(title)}</span><b>{escape(value)}</b>"
        f"<span>{escape(below)}</span></div>"
    )


# ---------------------------------------------------------------- figures


def _freshness_verdicts(result: Mapping[str, Any]) -> Iterator[str]:
    """One sentence a task: what the next window got, and what it costs to be late."""
    yield (
        f"<p>{result['num_windows']} windows, each evaluated before it was learned.</p>"
    )
    for metric, rows in result["freshness"].items():
        task, _, name = metric.rpartition("/")
        if name != "auc":
            continue
        text = f"AUC of the next window <b>{rows[0]['mean']:.4f}</b>"
        for row in rows[1:]:
            half = figures.freshness_half_width(row)
            spread = "" if half is None else f" ± {half:.4f}"
            late = "window" if row["staleness"] == 1 else "windows"
            text += f"; {row['staleness']} {late} late {row['difference']:+.4f}{spread}"
        yield f"<p><b>{escape(task)}</b>: {text}.</p>"


def _freshness(result: Mapping[str, Any]) -> Iterator[str]:
    for metric, rows in result["freshness"].items():
        task, _, name = metric.rpartition("/")
        yield _panel(
            f"{task}: {_title(name)} by staleness",
            figures.freshness(rows),
            f"means over the same {rows[0]['windows']} windows",
        )


def _windows(lines: figures.Lines, result: Mapping[str, Any]) -> Iterator[str]:
    for metric, rows in result["freshness"].items():
        task, _, name = metric.rpartition("/")
        ends = rows[0]["staleness"], rows[-1]["staleness"]
        svg = figures.windows(lines, metric, ends)
        yield _panel(f"{task}: {_title(name)}", svg, "before the window is learned")


_CURVES = ("auc", "log_loss")  # of every task, beside the metric that selects


def _curves(lines: figures.Lines, result: Mapping[str, Any]) -> Iterator[str]:
    best = result["best_validation"]
    yield from _training_curves(lines)
    validated = {name for line in lines if line["split"] == "valid" for name in line}
    usual = [f"{task}/{name}" for task in _tasks(result) for name in _CURVES]
    for metric in dict.fromkeys([*usual, best["metric"]]):
        if metric in validated:
            svg = figures.validation(lines, metric, best_step=best["step"])
            task, _, name = metric.rpartition("/")
            title = f"{task}: validation {_title(name)}"
            yield _panel(title, svg, "dot: the checkpoint that was tested")


def _training_curves(lines: figures.Lines) -> Iterator[str]:
    if any(line["split"] == "train" for line in lines):
        yield _panel("Training loss", figures.train_loss(lines), "as logged; smoothed")
        yield _panel("Learning rate", figures.learning_rate(lines), "dense")
        yield _panel("Throughput", figures.throughput(lines), "between log lines")


def _calibration(result: Mapping[str, Any]) -> Iterator[str]:
    for task, table in result.get("calibration_table", {}).items():
        if table:
            yield _panel(
                f"{task}: calibration on the test split",
                figures.calibration(table),
                f"{len(table)} bins of equal mass with 95 % intervals; dashed: perfect",
            )


def _panel(title: str, svg: str, note: str) -> str:
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>"
        f"{svg}</figure>"
    )


# ---------------------------------------------------------------- tables


def _metrics_table(result: Mapping[str, Any]) -> str:
    test = result["metrics"]
    best = result["best_validation"]
    rows = [
        "<thead><tr><th><th>best validation<br>"
        f"<small>step {best['step']:,}</small><th>test"
        "<th>95 % interval<th>oracle, test<th class=text></tr></thead>"
    ]
    for task in _groups(result):
        rows.append(f"<tbody><tr><th colspan=6 class=task>{escape(task)}</tr>")
        for full in _names(result):
            name = full.removeprefix(f"{task}/")
            if full == name or name in _COMPANIONS or name.startswith("oracle_"):
                continue
            low, high = test.get(f"{full}_low"), test.get(f"{full}_high")
            interval = "" if low is None else f"{_number(low)} – {_number(high)}"
            oracle = f"{task}/oracle_{name}"
            cells = [
                _number(best["metrics"].get(full), name),
                _number(test.get(full), name),
                interval,
                _number(test[oracle]) if oracle in test else "",
            ]
            rows.append(
                f"<tr><th>{escape(_title(name))}"
                + "".join(f"<td>{cell}" for cell in cells)
                + f"<td class=text>{escape(_remark(name, task, test))}</tr>"
            )
        rows.append("</tbody>")
    return f"<table class=metrics>{''.join(rows)}</table>"


def _remark(name: str, task: str, test: Mapping[str, Any]) -> str:
    """What a reader needs to know to read the number."""
    if name == "auc" and test.get(f"{task}/auc_bound") is not None:
        bound = test[f"{task}/auc_bound"]
        return f"error of binning below {bound:.1e}" if bound else "exact"
    if name == "gauc" and f"{task}/gauc_groups" in test:
        used = int(test[f"{task}/gauc_groups"])
        excluded = int(test[f"{task}/gauc_excluded_groups"])
        return f"{used:,} groups; {excluded:,} of one class left out"
    if name.startswith("hit_rate@"):
        first = name.partition("@")[2]
        return f"groups with a positive among the first {first}, of those with one"
    return {
        "calibration": "predicted / observed; 1 is best",
        "normalized_entropy": "log loss / that of the base rate",
    }.get(name, "")


def _config_tables(config: Mapping[str, Any]) -> Iterator[str]:
    for section, tree in config.items():
        if not isinstance(tree, dict):
            continue
        rows = []
        for name, value, default in _options(tree):
            shown = escape(_json(value))
            if default is not None and value != default[0]:
                usual = escape(_json(default[0]))
                shown = f"<b>{shown}</b> <small>default {usual}</small>"
            # Long names may break, but at their joints only.
            name = escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")
            rows.append(f"<tr><th>{name}<td>{shown}</tr>")
        yield _card(section, "".join(rows))


def _options(
    tree: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, tuple[Any] | None]]:
    """Yields (name, value, (default,)) of a section; None where none is known."""
    defaults = defaults_of(tree.get("type", ""))
    for name, value in tree.items():
        if name == "type":
            continue
        default = (defaults[name],) if name in defaults else None
        if not isinstance(value, dict):
            yield prefix + name, value, default
            continue
        # A choice between classes, such as the backbone, is an option too.
        if default is None or default[0]["type"] != value["type"]:
            yield prefix + name, value["type"], None
        yield from _options(value, f"{prefix}{name}.")


_COSTS = {
    "num_dense_parameters": "dense parameters",
    "num_active_dense_parameters": "active dense parameters",
    "num_table_parameters": "table parameters",
    "flops_per_example": "FLOP an example, forward",
    "table_bytes_per_example": "bytes of table rows an example, training",
    "wire_bytes_per_step": "bytes a device sends a step, training",
}


def _machine_tables(result: Mapping[str, Any]) -> Iterator[str]:
    hardware = dict(result["hardware"])
    if "memory_bytes" in hardware:
        hardware["memory"] = f"{hardware.pop('memory_bytes') / 2**30:.1f} GiB"
    run = {
        "dataset": result["dataset"],
        "dataset_fingerprint": result["dataset_fingerprint"],
        "config_hash": result["config_hash"],
        "seed": result["seed"],
    }
    run |= {
        title: f"{result[name]:,.0f}"
        for name, title in _COSTS.items()
        if result.get(name)
    }
    if result.get("mfu"):
        run["model FLOPs utilisation"] = f"{result['mfu']:.1%}"
    for title, values in (
        ("run", run),
        ("hardware", hardware),
        ("versions", result["versions"]),
    ):
        rows = (
            f"<tr><th>{escape(str(name))}<td>{escape(str(value))}</tr>"
            for name, value in values.items()
        )
        yield _card(title, "".join(rows))


def _card(title: str, rows: str) -> str:
    return f"<div class=card><h3>{escape(title)}</h3><table>{rows}</table></div>"


# ---------------------------------------------------------------- text


def _title(name: str) -> str:
    """Returns what to call a metric; "ndcg@5" is NDCG@5."""
    stem, at, k = name.partition("@")
    return _TITLES.get(stem, stem) + at + k


def _number(value: float | None, name: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if name.startswith("num_") else f"{value:.4f}"


def _json(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


PAGE_STYLE = """
:root { color-scheme: light dark;
  --page: #fff; --ink: #1a1f26; --muted: #5d6773; --line: #e2e5e9; --soft: #f6f7f9;
  --first: #1c64c7; --second: #b8560b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #15181d; --ink: #e7eaee; --muted: #98a2ae; --line: #2d333b; --soft: #1c2026;
  --first: #76acfa; --second: #eda05c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 14px; padding-top: 14px;
  border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 0 0 4px; }
header p { margin: 6px 0 0; } .facts, small, figcaption, footer { color: var(--muted); }
.verdicts { font-size: 17px; margin-top: 18px; }
.tiles { display: grid; gap: 12px; margin-top: 24px;
  grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.tile { background: var(--soft); border-radius: 8px; padding: 12px 16px; }
.tile span { display: block; font-size: 13px; color: var(--muted); }
.tile b { display: block; font-size: 25px; line-height: 1.3; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.figures { display: grid; gap: 28px 32px;
  grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
figure { margin: 0; max-width: 620px; break-inside: avoid; }
figcaption { font-size: 13px; } figcaption b { color: var(--ink); font-size: 14px; }
svg { display: block; width: 100%; height: auto; margin-top: 6px;
  font-family: inherit; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; color: var(--muted); }
th, td { padding: 4px 16px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.metrics thead th { vertical-align: bottom; } .metrics small { font-weight: 400; }
.metrics td, .metrics thead th { text-align: right; white-space: nowrap; }
.metrics .text { text-align: left; color: var(--muted); width: 30%;
  white-space: normal; min-width: 200px; }
.metrics { min-width: 720px; } .metrics tbody { break-inside: avoid; }
.metrics tbody th { white-space: nowrap; }
.metrics .task { padding-top: 16px; color: var(--ink); font-weight: 600; }
.metrics td:nth-child(3) { font-weight: 600; }
.slices { table-layout: fixed; min-width: 860px; }
.slices th, .slices td { text-align: right; vertical-align: middle; }
.slices thead th { vertical-align: bottom; overflow-wrap: normal; }
.slices .text { text-align: left; width: 13%; } .slices .bar { width: 20%; }
.slices .bar svg { margin: 0; } .slices .bar small { float: left; }
.slices .bar small + small { float: right; }
.slices th:nth-last-child(2) { width: 12%; } .slices :last-child { padding-right: 0; }
.below { color: var(--second); font-weight: 600; } .slicing p { margin: 0 0 8px; }
.slicing h3:not(:first-child) { margin-top: 28px; }
summary { cursor: pointer; color: var(--muted); padding: 8px 0; }
.cards { columns: 3 300px; column-gap: 32px; font-size: 13px; }
.card { break-inside: avoid; margin-bottom: 24px; }
.card th { width: 55%; } .card td { text-align: right; padding-right: 0; }
.card small { display: block; }
footer { margin-top: 40px; font-size: 13px; }
@media print {
  :root { --page: #fff; --ink: #000; --muted: #444; --line: #ddd; --soft: #f4f4f4;
    --first: #1c64c7; --second: #b8560b; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  body { font-size: 11px; } main { padding: 0; max-width: none; }
  .figures { grid-template-columns: 1fr 1fr; gap: 16px; } h2 { break-after: avoid; }
  .slices { min-width: 0; font-size: 10px; }
  .cards { columns: 3; font-size: 9px; } .verdicts { font-size: 13px; } }
"""

_NOTE = """Intervals of the AUC hold the choice of the test examples; they do not hold
the spread between seeds, which <code>python -m rankax.compare</code> shows."""
_FRESHNESS_NOTE = """A model that is s windows behind was published s windows too late.
Bars and ± are 95 % t intervals of the difference to the freshest model over windows, as
if windows were independent; they do not hold the spread between seeds."""

PAGE = string.Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name · rankax</title>
<style>$style</style>
</head>
<body><main>
<header>
<h1>$name</h1>
<p class=facts>$facts</p>
<div class=verdicts>$verdicts</div>
<div class=tiles>$tiles</div>
</header>
$sections
<footer>$note</footer>
</main></body>
</html>
"""
)
