"""Figures of laws: loss against size, FLOPs, compute and data, and what is left."""

from collections.abc import Callable, Sequence
import math
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
import numpy as np

from rankax.observe.console import amount
from scaling import drawing, findings
from scaling import rows as rows_lib
from scaling.drawing import Figure, Ink
from scaling.findings import Findings
from scaling.rows import Row

Key = tuple[str, str]

_BUDGETS = 4
_SIZES_A_BUDGET = 4


def against(whole: Findings, *, axis: str, metric: str, name: str) -> Figure | str:
    """Returns a metric against an axis: points, fits, bands, held-out stars.

    Or why there is no such figure.
    """
    keys = [key for key in whole.dense if whole.finals(key)]
    points = {key: findings.means(whole.finals(key), axis, metric) for key in keys}
    keys = [key for key in keys if len(points[key]) > 1]
    if not keys:
        return "no model was trained at two sizes or more"
    x = [p["x"] for key in keys for p in points[key]]

    def draw(canvas: Any, ink: Ink) -> None:
        axes = canvas.subplots()
        ends = []
        for key, (colour, marker) in drawing.looks(ink, keys).items():
            last = draw_points(axes, whole, key, axis, metric, colour, marker)
            ends.append((whole.label(key), last, colour))
        drawing.logarithmic_x(axes, x, findings.AXIS_LABELS[axis])
        axes.set_ylabel(findings.METRIC_LABELS[metric])
        _limits(axes, [p["mean"] for key in keys for p in points[key]])
        drawing.label_ends(axes, ends)

    return Figure(
        name=name,
        title=_finding(whole, keys, axis, metric),
        note=(
            "Large marks: means over seeds (dots); stars: held out from the fit; open: "
            "data-limited, not fitted. Lines and 90 % bands: the fitted law up to "
            "twice the largest size, dashed where its curvature is not identified."
        ),
        draw=draw,
        table=[
            {"model": key[0], "ladder": key[1], "axis": axis, "metric": metric}
            | {k: p[k] for k in ("size_name", "x", "mean", "sd", "seeds")}
            | {
                "held_out": p["size_name"]
                in _held_out(whole.entry(key, axis, metric), points[key])
            }
            | {"data_limited": p["data_limited"]}
            | _predicted(whole.entry(key, axis, metric), p["x"])
            for key in keys
            for p in points[key]
        ],
    )


def compute(whole: Findings) -> Figure | str:
    """Returns loss against training FLOPs, and the lower envelope of all models."""
    keys = [key for key in whole.dense if whole.checkpoints(key)]
    curves = [
        (key, size, _curve(rows, "c_train"))
        for key in keys
        for size, rows in rows_lib.by_size(whole.checkpoints(key)).items()
    ]
    curves = [curve for curve in curves if len(curve[2])]
    points = sorted((x, y, key, size) for key, size, curve in curves for x, y in curve)
    if len(points) < 2:
        return "no checkpoint has training FLOPs and a loss"
    envelope = _envelope(points)

    def draw(canvas: Any, ink: Ink) -> None:
        axes = canvas.subplots()
        looks = drawing.looks(ink, keys)
        for key, _, curve in curves:
            colour, marker = looks[key]
            line = dict(color=colour, linewidth=1, alpha=0.75)
            axes.plot(*zip(*curve, strict=True), marker=marker, markersize=3, **line)
        axes.step(
            [p[0] for p in envelope],
            [p[1] for p in envelope],
            where="post",
            color=ink.ink,
            linewidth=1.2,
            dashes=(4, 2),
        )
        drawing.logarithmic_x(axes, [p[0] for p in points], "training FLOPs")
        axes.set_ylabel(findings.METRIC_LABELS["logloss"])
        ends = {key: curve[-1][1] for key, _, curve in curves}
        labels = [(whole.label(key), ends[key], looks[key][0]) for key in ends]
        drawing.label_ends(axes, [*labels, ("best so far", envelope[-1][1], ink.ink)])

    best = envelope[-1]
    return Figure(
        name="loss_vs_compute",
        title=(
            f"{whole.label(best[2])} {best[3]} reaches the lowest log loss, "
            f"{best[1]:.5f}, for {amount(best[0])}FLOP of training"
        ),
        note="One line a size, means over seeds at each checkpoint. Dashed: the lowest "
        "loss of any model for the compute spent.",
        draw=draw,
        table=[
            {
                "model": key[0],
                "ladder": key[1],
                "size_name": size,
                "c_train": x,
                "logloss": y,
                "on_envelope": (x, y, key, size) in envelope,
            }
            for x, y, key, size in points
        ],
    )


def data(whole: Findings) -> Figure | str:
    """Returns learning curves, coloured by size, a panel a model."""
    keys = [
        key
        for key in whole.dense
        if len({row["samples_seen"] for row in whole.checkpoints(key)}) > 1
    ]
    if not keys:
        return "no run was read at two checkpoints or more"
    curves = {
        key: {
            size: _curve(rows, "samples_seen")
            for size, rows in _ascending(whole.checkpoints(key))
        }
        for key in keys
    }

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, len(keys), sharey=True, squeeze=False)[0]
        for axes, key in zip(panels, keys, strict=True):
            sizes = list(curves[key])
            ends = []
            for i, size in enumerate(sizes):
                curve = curves[key][size]
                # Strong is large: a sequence, not a set of categories.
                share = 0.3 + 0.7 * (i + 1) / len(sizes)
                x, y = zip(*curve, strict=True)
                axes.plot(
                    x, y, color=ink.series[0], alpha=share, marker="o", markersize=3
                )
                ends.append((size, y[-1], ink.muted))
            seen = [x for curve in curves[key].values() for x, _ in curve]
            drawing.logarithmic_x(axes, seen, findings.AXIS_LABELS["samples_seen"])
            axes.set_title(whole.label(key), size=9.5, color=ink.ink, loc="left")
            drawing.label_ends(axes, [ends[0], ends[-1]] if len(ends) > 1 else ends)
        panels[0].set_ylabel(findings.METRIC_LABELS["logloss"])

    return Figure(
        name="loss_vs_data",
        title=_data_finding(curves, whole),
        note="Means over seeds at each checkpoint, on the split with checkpoints; the "
        "darker the larger the network.",
        draw=draw,
        size=(max(6.4, 3.1 * len(keys)), 3.6),
        table=[
            {"model": key[0], "ladder": key[1], "size_name": size}
            | {"samples_seen": x, "logloss": y}
            for key in keys
            for size, curve in curves[key].items()
            for x, y in curve
        ],
    )


def iso_flop(whole: Findings) -> Figure | str:
    """Returns loss against size at equal training FLOPs, with fitted parabolas.

    Losses between checkpoints are read off straight lines in ln C.
    """
    found = {}
    for key in whole.dense:
        curves = {
            size: (rows[0]["n_dense_active"], _curve(rows, "c_train"))
            for size, rows in _ascending(whole.checkpoints(key))
        }
        budgets = _budgets([curve for _, curve in curves.values()])
        if len(budgets) >= 3:
            found[key] = [(c, _at_budget(curves, c)) for c in budgets]
    if not found:
        return (
            f"fewer than 3 budgets of training FLOPs that {_SIZES_A_BUDGET} sizes of "
            "one model pass: it needs more checkpoints, or longer runs of small sizes"
        )

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, len(found), squeeze=False)[0]
        for axes, (key, budgets) in zip(panels, found.items(), strict=True):
            ends = []
            for i, (budget, points) in enumerate(budgets):
                colour = ink.series[i % len(ink.series)]
                x, y = zip(*points, strict=True)
                axes.plot(x, y, "o", color=colour, markersize=4)
                grid = np.geomspace(min(x), max(x), 50)
                fitted = np.polyval(_parabola(points), np.log(grid))
                axes.plot(grid, fitted, color=colour, linewidth=1.2)
                text = f"{amount(budget)}FLOP"
                ends.append((text, float(fitted[-1]), colour))
            sizes = [x for _, points in budgets for x, _ in points]
            drawing.logarithmic_x(axes, sizes, findings.AXIS_LABELS["n_dense_active"])
            axes.set_title(whole.label(key), size=9.5, color=ink.ink, loc="left")
            drawing.label_ends(axes, ends)
        panels[0].set_ylabel(findings.METRIC_LABELS["logloss"])

    return Figure(
        name="iso_flop",
        title=_iso_finding(found, whole),
        note="A curve a budget of training FLOPs; points are read between checkpoints, "
        "lines are parabolas in the logarithm of the size.",
        draw=draw,
        size=(max(6.4, 3.4 * len(found)), 3.6),
        table=[
            {"model": key[0], "ladder": key[1], "c_train": c}
            | {"n_dense_active": x, "logloss": y}
            | {"minimum_at": _minimum(points)}
            for key, budgets in found.items()
            for c, points in budgets
            for x, y in points
        ],
    )


def reducible(whole: Findings) -> Figure | str:
    """Returns L - E against size on logarithmic axes, and residuals beneath."""
    entries = {
        key: whole.entry(key, "n_dense_active", "logloss") for key in whole.dense
    }
    entries = {k: e for k, e in entries.items() if e and e["form"] == "power_const"}
    if not entries:
        return "no power law with a constant was fitted: it wants 4 sizes"
    rows = {
        key: [
            _rest(entry, point)
            for point in entry["points"]["used"]
            + [
                p
                for p in entry["points"]["excluded"]
                if p["reason"] == rows_lib.HELD_OUT
            ]
        ]
        for key, entry in entries.items()
    }

    def draw(canvas: Any, ink: Ink) -> None:
        upper, lower = canvas.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": (2, 1)}
        )
        ends = []
        for key, (colour, marker) in drawing.looks(ink, list(entries)).items():
            x = np.array([row["x"] for row in rows[key]])
            rest = np.array([row["reducible"] for row in rows[key]])
            stars = np.array([row["held_out"] for row in rows[key]])
            p = entries[key]["params"]
            grid = np.geomspace(x.min(), x.max(), 30)
            law = p["A"]["value"] * grid ** -p["alpha"]["value"]
            upper.plot(grid, law, color=colour)
            for axes, y in ((upper, rest), (lower, [r["residual"] for r in rows[key]])):
                y = np.array(y)
                axes.plot(x[~stars], y[~stars], marker, color=colour, markersize=4)
                axes.plot(x[stars], y[stars], "*", color=colour, markersize=9)
            ends.append((whole.label(key), float(law[-1]), colour))
        upper.set_yscale("log")
        upper.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        upper.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
        upper.yaxis.set_minor_locator(ticker.NullLocator())
        upper.set_ylabel("log loss - E")
        lower.axhline(0, color=ink.muted, linewidth=0.8)
        lower.set_ylabel("residual")
        x = [row["x"] for each in rows.values() for row in each]
        drawing.logarithmic_x(lower, x, findings.AXIS_LABELS["n_dense_active"])
        upper.grid(axis="x", visible=False)
        drawing.label_ends(upper, ends)

    return Figure(
        name="reducible_loss",
        title=_exponents(entries, whole),
        note="Dots: runs; stars: held out. E is the fit's and uncertain itself; a "
        "straight line here is a law only where its curvature is identified.",
        draw=draw,
        size=(6.4, 4.6),
        table=[
            {"model": key[0], "ladder": key[1]} | row
            for key, each in rows.items()
            for row in each
        ],
    )


# ---------------------------------------------------------------- drawing


def draw_points(
    axes: Axes,
    whole: Findings,
    key: Key,
    axis: str,
    metric: str,
    colour: str,
    marker: str,
) -> float:
    """Draws runs, means and law of one ladder; returns y at its right end."""
    points = findings.means(whole.finals(key), axis, metric)
    entry = whole.entry(key, axis, metric)
    _seeds(axes, whole.finals(key), axis, metric, colour)
    _means(axes, points, _held_out(entry, points), colour, marker)
    return _law(axes, entry, colour) if entry else points[-1]["mean"]


def _seeds(
    axes: Axes, rows: Sequence[Row], axis: str, metric: str, colour: str
) -> None:
    found = [(row[axis], rows_lib.metric_value(row, metric)) for row in rows]
    found = [(x, y) for x, y in found if x and y is not None]
    x, y = zip(*found, strict=True)
    axes.plot(x, y, ".", color=colour, alpha=0.35, markersize=4, markeredgewidth=0)


def _means(
    axes: Axes,
    points: Sequence[dict[str, Any]],
    held_out: set[str],
    colour: str,
    marker: str,
) -> None:
    for point in points:
        is_star = point["size_name"] in held_out
        face = "none" if point["data_limited"] else colour
        axes.plot(
            [point["x"]],
            [point["mean"]],
            "*" if is_star else marker,
            color=colour,
            markerfacecolor=face,
            markersize=11 if is_star else 5,
        )


def _law(axes: Axes, entry: dict[str, Any], colour: str) -> float:
    """Draws the fitted curve with its band, and returns its value at the right end."""
    band = entry["band"]
    dashes = (None, None) if entry["identified"] else (5, 2)
    axes.plot(band["x"], band["mid"], color=colour, dashes=dashes, linewidth=1.4)
    axes.fill_between(
        band["x"], band["lo"], band["hi"], color=colour, alpha=0.13, linewidth=0
    )
    return band["mid"][-1]


def _limits(axes: Axes, values: Sequence[float]) -> None:
    """Keeps a wide band from flattening the points."""
    low, high = min(values), max(values)
    room = 0.35 * (high - low) or 1e-4
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, low - room), min(top, high + room))


def _held_out(entry: dict[str, Any], points: Sequence[dict[str, Any]]) -> set[str]:
    if entry:
        return {e["size_name"] for e in entry["held_out"] if e["without"] is None}
    return {point["size_name"] for point in points if point["held_out"]}


def _predicted(entry: dict[str, Any], x: float) -> dict[str, float | None]:
    """The fitted curve at one x, read off its band."""
    if not entry:
        return {"fit": None, "fit_lo": None, "fit_hi": None}
    band = entry["band"]
    at = math.log(x)
    grid = np.log(band["x"])
    return {
        name: float(np.interp(at, grid, band[part]))
        for name, part in (("fit", "mid"), ("fit_lo", "lo"), ("fit_hi", "hi"))
    }


# ---------------------------------------------------------------- numbers


def _ascending(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    sizes = rows_lib.by_size(rows)
    return sorted(sizes.items(), key=lambda item: item[1][0]["n_dense_active"] or 0)


def _curve(rows: Sequence[Row], axis: str) -> list[tuple[float, float]]:
    """Mean loss over seeds at each x that all seeds were read at."""
    found: dict[float, list[float]] = {}
    for row in rows:
        value = rows_lib.metric_value(row, "logloss")
        if value is not None and row[axis]:
            found.setdefault(float(row[axis]), []).append(value)
    return [(x, float(np.mean(found[x]))) for x in sorted(found)]


def _envelope(points: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Points, ascending in x, that are lower than all before them."""
    found: list[tuple[Any, ...]] = []
    for point in points:
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def _budgets(curves: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Budgets, apart by equal factors, that the most sizes pass."""
    ends = [(c[0][0], c[-1][0]) for c in curves if len(c) > 1]
    if len(ends) < _SIZES_A_BUDGET:
        return []
    # Between these, at least so many curves can be read.
    low = sorted(e[0] for e in ends)[_SIZES_A_BUDGET - 1]
    high = sorted((e[1] for e in ends), reverse=True)[_SIZES_A_BUDGET - 1]
    if low >= high:
        return []
    found = np.geomspace(low, high, _BUDGETS)
    inside = [sum(a <= c <= b for a, b in ends) >= _SIZES_A_BUDGET for c in found]
    return [float(c) for c, good in zip(found, inside, strict=True) if good]


def _at_budget(
    curves: dict[str, tuple[float, list[tuple[float, float]]]], budget: float
) -> list[tuple[float, float]]:
    found = []
    for size, curve in curves.values():
        x, y = np.array(curve).T
        if x[0] <= budget <= x[-1]:
            loss = np.interp(math.log(budget), np.log(x), y)
            found.append((float(size), float(loss)))
    return found


def _parabola(points: Sequence[tuple[float, float]]) -> np.ndarray:
    x, y = np.array(points).T
    return np.polyfit(np.log(x), y, 2)


def _minimum(points: Sequence[tuple[float, float]]) -> float | None:
    """Size at the minimum of the parabola, None if it has none between the sizes."""
    square, linear, _ = _parabola(points)
    if square <= 0:
        return None
    at = math.exp(min(max(-linear / (2 * square), -700), 700))
    sizes = [x for x, _ in points]
    return at if min(sizes) < at < max(sizes) else None


def _rest(entry: dict[str, Any], point: dict[str, Any]) -> dict[str, Any]:
    """What is left of the loss of one run without E, and beyond the law."""
    p = {name: each["value"] for name, each in entry["params"].items()}
    rest = point["y"] - p["E"]
    return {
        "size_name": point["size_name"],
        "seed": point["seed"],
        "x": point["x"],
        "reducible": rest,
        "residual": rest - p["A"] * point["x"] ** -p["alpha"],
        "held_out": point.get("reason") == rows_lib.HELD_OUT,
    }


# ---------------------------------------------------------------- findings


def _finding(whole: Findings, keys: Sequence[Key], axis: str, metric: str) -> str:
    """What ten times of the axis bring, the steepest model first."""
    changes = []
    for key in keys:
        change = findings.decade_change(whole.entry(key, axis, metric))
        if change is not None:
            changes.append((change, whole.label(key)))
    word = findings.METRIC_WORDS[metric]
    if not changes:
        return f"{word[0].upper()}{word[1:]} against {findings.AXIS_LABELS[axis]}"
    parts = []
    for (value, low, high), label in sorted(changes):
        flat = low <= 0 <= high
        text = "no trend" if flat else f"{value:+.2g} [{low:+.2g}, {high:+.2g}]"
        parts.append(f"{label} {text}")
    return (
        f"{word[0].upper()}{word[1:]} per 10× {findings.AXIS_LABELS[axis]}: "
        + "; ".join(parts)
    )


def _data_finding(
    curves: dict[Key, dict[str, list[tuple[float, float]]]], whole: Findings
) -> str:
    parts = []
    for key, sizes in curves.items():
        size, curve = list(sizes.items())[-1]
        (x0, y0), (x1, y1) = curve[-2], curve[-1]
        slope = (y1 - y0) / math.log2(x1 / x0)
        parts.append(f"{whole.label(key)} {size} {slope:+.2g}")
    return "Log loss per doubling of examples, at the end: " + "; ".join(parts)


def _iso_finding(
    found: dict[Key, list[tuple[float, list[tuple[float, float]]]]], whole: Findings
) -> str:
    parts = []
    for key, budgets in found.items():
        minima = [(c, _minimum(points)) for c, points in budgets]
        inside = [(c, m) for c, m in minima if m is not None]
        if inside:
            budget, at = inside[-1]
            text = f"{amount(at)} at {amount(budget)}FLOP"
        else:
            text = "no minimum between its sizes"
        parts.append(f"{whole.label(key)}: {text}")
    return "Best size for a budget: " + "; ".join(parts)


def _exponents(entries: dict[Key, dict[str, Any]], whole: Findings) -> str:
    parts = []
    for key, entry in entries.items():
        alpha = entry["params"]["alpha"]
        text = f"α {alpha['value']:.3f} [{alpha['p5']:.3f}, {alpha['p95']:.3f}]"
        if not entry["identified"]:
            text += " (curvature not identified)"
        parts.append(f"{whole.label(key)} {text}")
    return "Loss above E: " + "; ".join(parts)


LAWS: tuple[tuple[str, Callable[[Findings], Figure | str]], ...] = (
    (
        "loss_vs_params",
        lambda s: against(
            s, axis="n_dense_active", metric="logloss", name="loss_vs_params"
        ),
    ),
    (
        "auc_vs_params",
        lambda s: against(
            s, axis="n_dense_active", metric="1-auc", name="auc_vs_params"
        ),
    ),
    (
        "loss_vs_flops",
        lambda s: against(
            s, axis="flops_fwd_per_sample", metric="logloss", name="loss_vs_flops"
        ),
    ),
    ("loss_vs_compute", compute),
    ("loss_vs_data", data),
    ("iso_flop", iso_flop),
    ("reducible_loss", reducible),
)
