"""Figures of the report, as SVG text that takes its colours from the page.

Matplotlib draws with stand-in colours, which are then replaced by CSS variables, so
that the same figure reads well on a light page, on a dark one and on paper.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import re
from typing import Any
import zlib

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from rankax.metrics import difference, task_metrics

# Stand-in -> CSS variable; any colours that matplotlib would not use by itself.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--muted",
    "#030303": "--line",
    "#040404": "--first",
    "#050505": "--second",
}
_INK, _MUTED, _LINE, _FIRST, _SECOND = _COLOURS

STYLE: Any = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "rankax",  # the same run gives the same file
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.formatter.useoffset": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "ytick.left": False,
}

Lines = Sequence[dict[str, Any]]


def train_loss(lines: Lines) -> str:
    """Returns the training loss over steps: as logged, and smoothed."""
    step, loss = _series(lines, "train", "loss")

    def draw(axes: Axes) -> None:
        axes.plot(step, loss, color=_FIRST, alpha=0.3, linewidth=1)
        axes.plot(step, smoothed(loss), color=_FIRST)

    return _figure(draw)


def learning_rate(lines: Lines) -> str:
    """Returns the dense learning rate over steps."""
    step, rate = _series(lines, "train", "learning_rate")

    def draw(axes: Axes) -> None:
        axes.plot(step, rate, color=_FIRST)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: f"{v:g}"))

    return _figure(draw)


def throughput(lines: Lines) -> str:
    """Returns examples per second over steps, and below it the wait for input."""
    step, rate = _series(lines, "train", "examples_per_second")
    wait_step, wait = _series(lines, "train", "input_wait")

    def draw(upper: Axes, lower: Axes) -> None:
        upper.plot(step, rate, color=_FIRST)
        upper.set_ylim(bottom=0)
        upper.yaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
        upper.set_ylabel("examples/s")
        lower.plot(wait_step, wait, color=_SECOND)
        lower.set_ylim(0, max(1.2 * np.nanmax(wait, initial=0), 0.01))
        lower.yaxis.set_major_locator(ticker.MaxNLocator(3))
        lower.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=1))
        lower.set_ylabel("input wait")

    return _figure(draw, rows=(2, 1))


def validation(lines: Lines, metric: str, *, best_step: int) -> str:
    """Returns a validation metric over steps.

    Args:
        lines: of `metrics.jsonl`.
        metric: "<task>/<name>".
        best_step: where the best checkpoint is, to be marked.
    """
    step, value = _series(lines, "valid", metric)
    task, _, name = metric.rpartition("/")
    _, oracle = _series(lines, "valid", f"{task}/oracle_{name}")

    def draw(axes: Axes) -> None:
        dots = "o" if len(step) <= 40 else ""
        axes.plot(step, value, color=_FIRST, marker=dots, markersize=3.5)
        axes.margins(x=0.05, y=0.15)
        if len(oracle) and np.isfinite(oracle[-1]):
            axes.axhline(oracle[-1], color=_SECOND, linewidth=1.2, dashes=(4, 3))
            _note(axes, f"oracle {oracle[-1]:.4f}", 1, oracle[-1], _SECOND, step=False)
        if best_step in step:
            best = value[step == best_step][-1]
            axes.plot([best_step], [best], "o", color=_INK, markersize=6)
            above = task_metrics.higher_is_better(metric)
            _note(axes, f"{best:.4f}", best_step, best, _INK, above=not above)

    return _figure(draw)


def freshness(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a metric against the staleness of the model.

    Args:
        rows: of one metric, ascending in staleness: "staleness", "mean",
            "difference_error", the standard error of the difference to the first, and
            "windows", their number.
    """
    x = np.array([row["staleness"] for row in rows])
    y = np.array([row["mean"] for row in rows])
    half = np.array([freshness_half_width(row) or 0.0 for row in rows])

    def draw(axes: Axes) -> None:
        axes.vlines(x, y - half, y + half, color=_MUTED, linewidth=1.2)
        axes.plot(x, y, color=_FIRST, marker="o", markersize=4.5)
        axes.axhline(y[0], color=_LINE, linewidth=1.2, dashes=(4, 3))
        axes.xaxis.set_major_locator(ticker.FixedLocator(x.tolist()))
        axes.margins(x=0.08, y=0.2)
        _note(axes, f"{y[0]:.4f}", x[0], y[0], _INK)
        for i in range(1, len(x)):
            _note(axes, f"{y[i] - y[0]:+.4f}", x[i], y[i], _INK)

    return _figure(draw, x_label="windows that the model is behind")


def freshness_half_width(row: dict[str, Any]) -> float | None:
    """Returns half the 95 % t interval of a row's difference; None for one window."""
    error = row["difference_error"]
    return None if error is None else difference.half_width(error, row["windows"] - 1)


def windows(lines: Lines, metric: str, staleness: Sequence[int]) -> str:
    """Returns a metric over windows, of the freshest and of the stalest model.

    Args:
        lines: of `metrics.jsonl`.
        metric: "<task>/<name>".
        staleness: the two.
    """

    def draw(axes: Axes) -> None:
        for own, color in zip(staleness, (_FIRST, _SECOND), strict=True):
            found = {
                line["window"]: np.nan if line[metric] is None else line[metric]
                for line in lines
                if line["split"] == "window" and line["staleness"] == own
            }
            x = sorted(found)
            y = [found[window] for window in x]
            axes.plot(x, y, color=color, marker="o", markersize=3.5)
            if x:
                _note(axes, f"{own:g} behind", x[-1], y[-1], color)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
        axes.margins(x=0.08, y=0.2)

    return _figure(draw, x_label="window")


def calibration(table: Sequence[Sequence[float]]) -> str:
    """Returns observed against predicted rates with 95 % Wilson intervals.

    Args:
        table: [mean predicted, observed, weight, count] of each bin; results of older
            versions lack the count, and their weight is taken for it.
    """
    columns = np.array(table, np.float64).T
    predicted, observed, count = columns[0], columns[1], columns[-1]
    low, high = wilson(observed, count)
    # Click rates spread over decades: equal steps would pile all bins in a corner.
    logarithmic = bool(predicted.max() > 20 * predicted.min() > 0)

    def draw(axes: Axes) -> None:
        ends = np.array([predicted.min(), predicted.max()])
        axes.plot(ends, ends, color=_SECOND, linewidth=1.2, dashes=(4, 3))
        axes.vlines(predicted, low, high, color=_FIRST, alpha=0.5, linewidth=1.4)
        axes.plot(predicted, observed, "o", color=_FIRST, markersize=4)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
            seen = observed[observed > 0].min(initial=1)
            axes.set_ylim(bottom=0.5 * min(predicted.min(), seen))
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                plain = ticker.FuncFormatter(lambda v, _: f"{v:g}")
                axis.set_major_formatter(plain)
                axis.set_minor_locator(ticker.NullLocator())
        axes.set_ylabel("observed rate")

    return _figure(draw, x_label="mean predicted probability", height=4.2)


def interval_bar(
    value: float,
    ends: tuple[float, float],
    *,
    whole: float,
    span: tuple[float, float],
    is_marked: bool,
) -> str:
    """Returns a value and its interval on a horizontal scale, one line of text high.

    Args:
        value: the dot.
        ends: of the line through it.
        whole: what to compare with, a dashed upright line.
        span: values at the ends of the scale.
        is_marked: draw it in the second colour.
    """
    width, margin = 200, 5
    scale = (width - 2 * margin) / ((span[1] - span[0]) or 1)
    x, low, high, at = (
        f"{margin + (v - span[0]) * scale:.1f}" for v in (value, *ends, whole)
    )
    colour = "--second" if is_marked else "--first"
    return (
        f'<svg viewBox="0 0 {width} 16" role="img">'
        f"<title>{ends[0]:.4f} to {ends[1]:.4f}</title>"
        f'<path d="M{at} 0V16" stroke="var(--muted)" stroke-dasharray="3 2"/>'
        f'<path d="M{low} 8H{high}" stroke="var({colour})" stroke-width="2.5" '
        'stroke-linecap="round" opacity=".55"/>'
        f'<circle cx="{x}" cy="8" r="3.5" fill="var({colour})"/></svg>'
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the exponential moving average [n], without bias at its start.

    Its window is a twentieth of the curve; undefined values are stepped over.
    """
    decay = 1 - 2 / (max(len(values) / 20, 1) + 1)
    total = mass = 0.0
    result = np.full(len(values), np.nan)
    for i, value in enumerate(values):
        if np.isfinite(value):
            total = decay * total + (1 - decay) * value
            mass = decay * mass + (1 - decay)
        if mass:
            result[i] = total / mass
    return result


def wilson(rate: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends of the 95 % Wilson interval of rates [n] over counts [n]."""
    z = 1.96
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(rate * (1 - rate) / count + (z / (2 * count)) ** 2)
    half = half / (1 + z**2 / count)
    return middle - half, middle + half


def _series(lines: Lines, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one curve; a step written twice counts once, as last seen."""
    values = {
        line["step"]: np.nan if line[name] is None else line[name]
        for line in lines
        if line["split"] == split and name in line
    }
    steps = sorted(values)
    return np.array(steps), np.array([values[step] for step in steps], np.float64)


def _note(
    axes: Axes,
    text: str,
    x: float,
    y: float,
    color: str,
    *,
    above: bool = True,
    step: bool = True,
) -> None:
    """Writes beside a point; `step` False takes x as a fraction of the width."""
    axes.annotate(
        text,
        (x, y),
        xycoords=axes.transData if step else axes.get_yaxis_transform(),
        xytext=(0 if step else -2, 7 if above else -14),
        textcoords="offset points",
        ha="center" if step else "right",
        color=color,
    )


def _figure(
    draw: Callable[..., None],
    *,
    rows: tuple[int, ...] = (1,),
    x_label: str = "step",
    height: float = 3.1,
) -> str:
    """Returns the SVG of a figure of rows of the given relative heights."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        axes = figure.subplots(
            len(rows),
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": rows},
        )[:, 0]
        for each in axes:
            each.grid(axis="x", visible=False)
        if x_label == "step":
            axes[-1].xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
            axes[-1].xaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes[-1].set_xlabel(x_label)
        draw(*axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue(), _COLOURS)


def inline(svg: str, colours: Mapping[str, str]) -> str:
    """Makes a stand-alone SVG file part of a page that follows the page's colours.

    Args:
        svg: what matplotlib wrote.
        colours: that it was drawn with -> CSS variables.
    """
    svg = svg[svg.index("<svg") :]
    for unwanted in (
        # All but the view box: its size is the column's, its address means nothing.
        r'(?<=<svg)[^>]*(?= viewBox)|(?<=")( xmlns="[^"]*")? version="1.1"',
        r"<metadata>.*?</metadata>",
        r"<style.*?</style>",  # would hold for the whole page
        r" font-family:[^;]*;",
        r'(?<=<g) id="[^"]*"',  # would repeat between figures
        r"(?<=\n) +",
    ):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    # Equal shapes get equal ids in every figure; a page wants each id once.
    own = f"{zlib.crc32(svg.encode()):x}-"
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{own}", svg)
    for colour, variable in colours.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg.strip()
