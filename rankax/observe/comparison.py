"""The table of `python -m rankax.compare`, as aligned text or Markdown."""

from collections.abc import Sequence
from typing import Any

from rankax.observe.console import amount

NONE = "–"


def render(comparison: dict[str, Any], *, markdown: bool = False) -> str:
    """Returns the table of what `rankax.compare.compare` found, and notes below it."""
    lines = [_header(comparison)]
    lines += [_cells(comparison, row) for row in comparison["models"]]
    if comparison["oracle"]:
        cells = ["oracle", ""]
        for name in comparison["metrics"]:
            value = comparison["oracle"].get(name)
            cells.append(NONE if value is None else f"{value:.5f}")
            cells += [""] * (len(comparison["baselines"]) + 1)
        lines.append(cells + [""] * (len(lines[0]) - len(cells)))
    table = _markdown(lines) if markdown else _aligned(lines)
    return "\n\n".join([table, *_notes(comparison)])


def _header(comparison: dict[str, Any]) -> list[str]:
    header = ["model", "seeds"]
    for name in comparison["metrics"]:
        arrow = {True: " ↑", False: " ↓", None: ""}[
            comparison["higher_is_better"][name]
        ]
        header += [f"test {name}{arrow}"]
        header += [f"minus {baseline}" for baseline in comparison["baselines"]]
        header += ["verdict"]
    return [
        *header,
        "interval",
        "best validation",
        "dense / table parameters",
        "FLOPs/example",
        "examples/s",
    ]


def _cells(comparison: dict[str, Any], row: dict[str, Any]) -> list[str]:
    cells = [row["model"], str(len(row["seeds"]))]
    baselines = comparison["baselines"]
    methods: dict[str, list[str]] = {}
    for name in comparison["metrics"]:
        cell = row["metrics"][name]
        spread = "" if cell["sd"] is None else f" ± {cell['sd']:.5f}"
        cells.append(f"{cell['mean']:.5f}{spread}")
        for baseline in baselines:
            delta = cell["differences"].get(baseline)
            cells.append(_delta(delta))
            if delta:
                of = name if len(baselines) == 1 else f"{name} minus {baseline}"
                methods.setdefault(delta["method"], []).append(of)
        cells.append(_verdicts(comparison, cell["differences"]))
    best = row["best_validation"]
    return [
        *cells,
        _method(methods),
        f"{best['metric']} {best['mean']:.5f}" if best else NONE,
        _parameters(row),
        _count(row["flops_per_example"]),
        NONE
        if row["examples_per_second"] is None
        else f"{row['examples_per_second']:,.0f}",
    ]


def _delta(delta: dict[str, Any] | None) -> str:
    if delta is None:
        return NONE
    text = f"{delta['value']:+.5f}"
    if delta["low"] is None:
        return text
    return f"{text} [{delta['low']:+.5f}, {delta['high']:+.5f}]"


def _verdicts(comparison: dict[str, Any], deltas: dict[str, dict[str, Any]]) -> str:
    verdicts = []
    for baseline, delta in deltas.items():
        verdict = delta["verdict"]
        # The other verdicts name the baseline.
        if delta["sign"] == 0 and len(comparison["baselines"]) > 1:
            verdict += f" from {baseline}"
        verdicts.append(verdict)
    return "; ".join(verdicts) or NONE


def _method(methods: dict[str, list[str]]) -> str:
    """One method as it is, several with what each of them is of."""
    if len(methods) < 2:
        return "".join(methods) or "baseline"
    return "; ".join(f"{method} ({', '.join(of)})" for method, of in methods.items())


def _parameters(row: dict[str, Any]) -> str:
    dense, active = row["num_dense_parameters"], row["num_active_dense_parameters"]
    text = _count(dense)
    if active not in (None, dense):
        text += f" ({_count(active)} active)"
    return f"{text} / {_count(row['num_table_parameters'])}"


def _count(number: float | None) -> str:
    return NONE if number is None else amount(number)


def _notes(comparison: dict[str, Any]) -> list[str]:
    level = f"{comparison['level']:.0%}"
    count = comparison["num_comparisons"]
    notes = [
        f"Mean ± standard deviation over seeds; difference [{level} interval]. A "
        f"verdict says whether the interval excludes 0. {count} "
        f"comparison{'' if count == 1 else 's'}, not corrected for their number: of "
        f"models that do not differ, {1 - comparison['level']:.0%} get a verdict."
    ]
    if comparison["num_resamples"]:
        notes.append(
            f"Bootstrap: percentile interval of {comparison['num_resamples']:,} "
            f"resamples of the test {comparison['resampled']} and of the seeds."
        )
    names = ", ".join(comparison["without_predictions"])
    if names or comparison["resampled"] == "seeds":
        notes.append("t: interval over the seeds alone, on this one test split.")
    if names and comparison["resampled"] != "seeds":
        notes[-1] += (
            f" Not every run of {names} has predictions.parquet; to resample test "
            "examples as well, repeat their commands with --mode=evaluate "
            "--config.eval.save_predictions=True."
        )
    if any(len(row["seeds"]) < 2 for row in comparison["models"]):
        notes.append("One seed tells two runs apart, not two models: no verdict.")
    return notes


def _aligned(lines: Sequence[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([texts[0], rule, *texts[1:]])


def _markdown(lines: Sequence[list[str]]) -> str:
    rule = ["---", *["--:"] * (len(lines[0]) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
