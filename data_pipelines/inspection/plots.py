"""Small figures as SVG text that takes its colours from the page's variables."""

from collections.abc import Callable, Mapping, Sequence
import datetime
from html import escape
import math

WIDTH, HEIGHT = 560, 230
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 10, 26
COLOURS = ("--first", "--second", "--third")
BAR = 17  # height of a line of a bar chart
NUM_TICKS = 4

Points = Sequence[tuple[str, float]]


def by_day(series: Mapping[str, Points], form: Callable[[float], str]) -> str:
    """Draws one line per split over days.

    Args:
        series: split -> (ISO date, value), dates rising.
        form: writes a value at the axis.
    """
    dates = {
        day: datetime.date.fromisoformat(day).toordinal()
        for points in series.values()
        for day, _ in points
    }
    first, last = min(dates.values()), max(dates.values())
    step = _round_step(max(v for points in series.values() for _, v in points))
    top = NUM_TICKS * step
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(day: str) -> float:
        return LEFT + width * ((dates[day] - first) / max(last - first, 1))

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    parts = []
    for i in range(NUM_TICKS + 1):
        value = step * i
        parts.append(
            f'<path d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
            + _text(LEFT - 6, y(value) + 4, form(value), "end")
        )
    parts.append(_text(LEFT, HEIGHT - 6, min(dates), "start"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, max(dates), "end"))
    for i, (split, points) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = "L".join(f"{x(day):.1f} {y(value):.1f}" for day, value in points)
        parts.append(
            f'<path d="M{path}" fill="none" stroke="var({colour})" '
            f'stroke-width="1.8"><title>{escape(split)}</title></path>'
        )
        if len(points) <= 60:
            parts += [
                f'<circle cx="{x(day):.1f}" cy="{y(value):.1f}" r="2.5" '
                f'fill="var({colour})"><title>{escape(split)} {day}: '
                f"{escape(form(value))}</title></circle>"
                for day, value in points
            ]
    return _svg(WIDTH, HEIGHT, parts)


def bars(
    values: Sequence[tuple[str, float]],
    *,
    span: tuple[float, float],
    mark: float,
    form: Callable[[float], str],
) -> str:
    """Draws named values as horizontal bars, those above a mark in another colour.

    Args:
        values: name and value, in the order of the lines.
        span: values at the ends of the scale.
        mark: where a dashed upright line stands.
        form: writes a value beside its bar.
    """
    left, right = 170, 50
    height = BAR * len(values) + 6
    scale = (WIDTH - left - right) / (span[1] - span[0])

    def x(value: float) -> float:
        return left + (min(max(value, span[0]), span[1]) - span[0]) * scale

    parts = []
    for i, (name, value) in enumerate(values):
        middle = BAR * i + BAR / 2 + 3
        short = name if len(name) <= 24 else f"{name[:23]}…"
        colour = "--second" if value > mark else "--first"
        parts.append(
            _text(left - 8, middle + 4, short, "end")
            + f'<rect x="{left}" y="{middle - 5:.1f}" height="10" '
            f'width="{max(x(value) - left, 0):.1f}" fill="var({colour})">'
            f"<title>{escape(name)}</title></rect>"
            + _text(x(value) + 5, middle + 4, form(value), "start")
        )
    parts.append(
        f'<path d="M{x(mark):.1f} 0V{height}" stroke="var(--muted)" '
        'stroke-dasharray="4 3"/>'
    )
    return _svg(WIDTH, height, parts)


def _round_step(largest: float) -> float:
    """Returns 1, 2, 2.5 or 5 times a power of ten, of which few make the largest."""
    rough = (largest or 1.0) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.9999)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="11" '
        f'fill="var(--muted)">{escape(text)}</text>'
    )


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img">' + "\n".join(parts) + "</svg>"
    )
