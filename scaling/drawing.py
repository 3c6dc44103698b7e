"""How figures of a study are drawn: once for files, once for a page.

A figure is a title that says what was found, a function that draws it, and the table of
its numbers. `save` writes PNG, SVG and CSV; `inline` returns SVG for a page, which
gives it its colours. Series differ in colour and in marker, and the colours (after
Okabe and Ito) are told apart by readers who see fewer of them.
"""

from collections.abc import Callable, Hashable, Sequence
import csv
import dataclasses
import io
import pathlib
import textwrap
from typing import Any, TypeVar

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
import numpy as np

from rankax.observe import figures
from rankax.observe.console import amount

MARKERS = "osD^vP"

_Name = TypeVar("_Name", bound=Hashable)

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ink:
    """Colours of a drawing: text, axis labels, grid, and one a series."""

    ink: str
    muted: str
    line: str
    series: tuple[str, ...]


LIGHT = Ink(
    ink="#1a1f26",
    muted="#5d6773",
    line="#e2e5e9",
    series=("#0072b2", "#c44e00", "#007a5a", "#a3407f", "#8a6100", "#444b54"),
)
# Stand-ins, which the page's variables replace; those of text are the house's.
PAGE = Ink(
    ink="#010101",
    muted="#020202",
    line="#030303",
    series=("#040401", "#040402", "#040403", "#040404", "#040405", "#040406"),
)
_VARIABLES = {"#010101": "--ink", "#020202": "--muted", "#030303": "--line"}
_VARIABLES |= {colour: f"--series-{i}" for i, colour in enumerate(PAGE.series)}
_DARK = ("#5db4f0", "#ff9655", "#35c79a", "#e59ac6", "#e0b13f", "#b9c0c8")

CSS = (
    ":root {"
    + "".join(f" --series-{i}: {c};" for i, c in enumerate(LIGHT.series))
    + " }\n@media (prefers-color-scheme: dark) { :root {"
    + "".join(f" --series-{i}: {c};" for i, c in enumerate(_DARK))
    + " } }\n@media print { :root {"
    + "".join(f" --series-{i}: {c};" for i, c in enumerate(LIGHT.series))
    + " } }\n"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a study.

    Attributes:
        name: of its files.
        title: the finding, a sentence.
        note: how to read it.
        draw: draws it, given an empty canvas and colours.
        table: its numbers, rows of equal keys.
        size: width and height in inches, without the title.
    """

    name: str
    title: str
    note: str
    draw: Callable[[Canvas, Ink], None]
    table: Sequence[Row]
    size: tuple[float, float] = (6.4, 3.8)


def save(figure: Figure, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes NAME.png, NAME.svg and NAME.csv and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / figure.name
    paths = [stem.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")]
    paths[0].write_bytes(_rendered(figure, LIGHT, "png", has_title=True))
    paths[1].write_text(_trimmed(_rendered(figure, LIGHT, "svg", has_title=True)))
    with paths[2].open("w", newline="") as file:
        writer = csv.DictWriter(file, list(figure.table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(figure.table)
    return paths


def inline(figure: Figure) -> str:
    """Returns the figure as SVG text for a page with `CSS`; its title is the page's."""
    svg = _trimmed(_rendered(figure, PAGE, "svg", has_title=False))
    return figures.inline(svg, _VARIABLES)


def _trimmed(svg: bytes) -> str:
    """Text without the blanks that matplotlib leaves at the ends of lines."""
    return "\n".join(line.rstrip() for line in svg.decode().split("\n"))


def _rendered(figure: Figure, ink: Ink, kind: str, *, has_title: bool) -> bytes:
    style = figures.STYLE | {
        "text.color": ink.ink,
        "axes.edgecolor": ink.line,
        "axes.labelcolor": ink.muted,
        "grid.color": ink.line,
        "xtick.color": ink.line,
        "ytick.color": ink.line,
        "xtick.labelcolor": ink.muted,
        "ytick.labelcolor": ink.muted,
        "font.size": 9.5,
    }
    title = textwrap.fill(figure.title, int(10 * figure.size[0]))
    note = textwrap.fill(figure.note, int(13.5 * figure.size[0]))
    lines = title.count("\n") + note.count("\n") + 2 if has_title else 0
    width, height = figure.size
    with matplotlib.rc_context(style):
        whole = Canvas(figsize=(width, height + 0.19 * lines), layout="constrained")
        canvas: Any = whole
        if has_title:
            heights = [0.19 * lines, height]
            parts: Any = whole.subfigures(2, 1, height_ratios=heights)
            top, canvas = parts
            top.text(0.01, 0.97, title, weight="bold", size=10.5, va="top")
            top.text(0.01, 0.02, note, color=ink.muted, size=8.5, va="bottom")
        figure.draw(canvas, ink)
        buffer = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        is_page = not has_title
        whole.savefig(
            buffer,
            format=kind,
            dpi=160,
            transparent=is_page,
            facecolor="none" if is_page else "white",
            metadata=metadata,
        )
    return buffer.getvalue()


# ---------------------------------------------------------------- parts of figures


def logarithmic_x(axes: Axes, values: Sequence[float], label: str) -> None:
    """Makes x logarithmic with few ticks: decades, or the values where they are few."""
    axes.set_xscale("log")
    span = max(values) / min(values)
    own = sorted(set(values))
    if span < 30 and len(own) <= 8:
        axes.xaxis.set_major_locator(ticker.FixedLocator(own))
    elif span < 100:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    else:
        axes.xaxis.set_major_locator(ticker.LogLocator(numticks=8))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda v, _: amount(v)))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(label)


def label_ends(
    axes: Axes, ends: Sequence[tuple[str, float, str]], *, gap: float = 0.075
) -> None:
    """Writes names right of the axes at the heights of their lines, kept apart.

    Args:
        axes: whose limits are final.
        ends: (text, y, colour).
        gap: smallest distance, as a share of the height.
    """
    transform = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[1]
    heights = [float(transform.transform((x, y))[1]) for _, y, _ in ends]
    order = np.argsort(heights)
    placed = np.array(heights)[order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed -= max(0.0, placed[-1] - 1.0) if len(placed) else 0.0
    for rank, i in enumerate(order):
        text, _, colour = ends[i]
        axes.annotate(
            text,
            (1.01, placed[rank]),
            xycoords="axes fraction",
            va="center",
            ha="left",
            color=colour,
            fontsize=9,
            annotation_clip=False,
        )


def looks(ink: Ink, series: Sequence[_Name]) -> dict[_Name, tuple[str, str]]:
    """Returns name of a series -> (colour, marker)."""
    count = len(ink.series)
    return {
        name: (ink.series[i % count], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(series)
    }
