r"""Figures of a study: PNG, SVG and the numbers as CSV.

python -m scaling.plot scaling/studies/NAME

Writes FOLDER/figures/NAME.{png,svg,csv} of every figure that the rows allow, and says
why others are missing.
"""

import argparse
from collections.abc import Callable, Sequence
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from rankax.observe.console import amount
from scaling import drawing, findings, law_figures
from scaling import rows as rows_lib
from scaling.drawing import Figure, Ink
from scaling.findings import Findings
from scaling.rows import Row

FOLDER = "figures"


def figures_of(whole: Findings) -> tuple[list[Figure], dict[str, str]]:
    """Returns the figures that the rows allow, and why the others are missing."""
    found: list[Figure] = []
    missing: dict[str, str] = {}
    for name, make in (*law_figures.LAWS, *_OTHERS):
        made = make(whole)
        if isinstance(made, str):
            missing[name] = made
        else:
            found.append(made)
    return found, missing


# ---------------------------------------------------------------- tables


def table_size(whole: Findings, ladder: str) -> Figure | str:
    """Returns loss and AUC against the size of tables, collisions of rows beside."""
    axis = rows_lib.TABLE_AXES[ladder]
    keys = [key for key in whole.groups if key[1] == ladder and whole.finals(key)]
    points = {
        key: {
            m: findings.means(whole.finals(key), axis, m) for m in ("logloss", "1-auc")
        }
        for key in keys
    }
    keys = [key for key in keys if len(points[key]["logloss"]) > 1]
    if not keys:
        return f"no ladder of table {ladder} with two sizes or more"
    shares = {key: _collisions(whole.finals(key), axis) for key in keys}
    has_shares = ladder == "rows" and any(shares.values())
    x = [p["x"] for key in keys for p in points[key]["logloss"]]

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, 3 if has_shares else 2)
        for axes, metric in zip(panels, ("logloss", "1-auc"), strict=False):
            for key, (colour, marker) in drawing.looks(ink, keys).items():
                law_figures.draw_points(axes, whole, key, axis, metric, colour, marker)
            drawing.logarithmic_x(axes, x, findings.AXIS_LABELS[axis])
            name = "AUC" if metric == "1-auc" else findings.METRIC_LABELS[metric]
            axes.set_title(name, size=9.5, color=ink.ink, loc="left")
        # AUC is read upwards: the axis shows it, whatever is fitted.
        panels[1].yaxis.set_major_formatter(lambda v, _: f"{1 - v:.4f}")
        panels[1].invert_yaxis()
        if has_shares:
            for key, (colour, marker) in drawing.looks(ink, keys).items():
                own = sorted(shares[key].items())
                style = dict(color=colour, marker=marker, markersize=4)
                panels[2].plot(*zip(*own, strict=True), **style)
            drawing.logarithmic_x(panels[2], x, findings.AXIS_LABELS[axis])
            panels[2].set_ylim(0, None)
            panels[2].yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
            text = "ids that share a row, forecast"
            panels[2].set_title(text, size=9.5, color=ink.ink, loc="left")
        if len(keys) > 1:
            looks = drawing.looks(ink, keys)
            ends = [
                (key[0], points[key]["1-auc"][-1]["mean"], looks[key][0])
                for key in keys
            ]
            drawing.label_ends(panels[1], ends)

    return Figure(
        name=f"table_{ladder}",
        title=_table_finding(points, shares if has_shares else {}, keys, axis),
        note="Large marks: means over seeds (dots); stars: held out; line and 90 % "
        "band: the fitted law. Network, data and seeds are the same at all sizes.",
        draw=draw,
        size=(9.6 if has_shares else 6.8, 3.4),
        table=[
            {"model": key[0], axis: p["x"], "size_name": p["size_name"]}
            | {"logloss": p["mean"], "logloss_sd": p["sd"], "seeds": p["seeds"]}
            | {"auc": 1 - q["mean"], "auc_sd": q["sd"]}
            | {"collision_share": shares[key].get(p["x"])}
            for key in keys
            for p, q in zip(*points[key].values(), strict=True)
        ],
    )


def _collisions(rows: Sequence[Row], axis: str) -> dict[float, float]:
    return {
        float(row[axis]): row["collision_share"]
        for row in rows
        if row[axis] and row["collision_share"] is not None
    }


def _table_finding(
    points: dict[tuple[str, str], Any],
    shares: dict[tuple[str, str], dict[float, float]],
    keys: Sequence[tuple[str, str]],
    axis: str,
) -> str:
    parts = []
    for key in keys:
        losses, areas = points[key]["logloss"], points[key]["1-auc"]
        text = (
            f"{key[0]}: log loss {losses[-1]['mean'] - losses[0]['mean']:+.4f}, AUC "
            f"{areas[0]['mean'] - areas[-1]['mean']:+.4f}"
        )
        own = shares.get(key, {})
        if losses[0]["x"] in own and losses[-1]["x"] in own:
            first, last = own[losses[0]["x"]], own[losses[-1]["x"]]
            text += f" while ids that share a row go from {first:.0%} to {last:.0%}"
        parts.append(text)
    ends = [points[keys[0]]["logloss"][i]["x"] for i in (0, -1)]
    span = " to ".join(amount(x) for x in ends)
    return f"From {span} {findings.AXIS_LABELS[axis]}, " + "; ".join(parts)


# ---------------------------------------------------------------- between models


def ladders(whole: Findings) -> Figure | str:
    """Returns the loss of one model along each of its ladders of the network."""
    by_model: dict[str, list[tuple[str, str]]] = {}
    for key in whole.dense:
        if len(findings.means(whole.finals(key), "n_dense_active", "logloss")) > 1:
            by_model.setdefault(key[0], []).append(key)
    several = {model: keys for model, keys in by_model.items() if len(keys) > 1}
    if not several:
        return "no model was scaled along two ladders (such as width and depth)"
    points = {
        key: findings.means(whole.finals(key), "n_dense_active", "logloss")
        for keys in several.values()
        for key in keys
    }

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, len(several), sharey=True, squeeze=False)[0]
        for axes, (model, keys) in zip(panels, several.items(), strict=True):
            ends = []
            for key, (colour, marker) in drawing.looks(ink, keys).items():
                x, y = zip(*((p["x"], p["mean"]) for p in points[key]), strict=True)
                axes.plot(x, y, color=colour, marker=marker, markersize=4)
                ends.append((key[1], y[-1], colour))
            x = [p["x"] for key in keys for p in points[key]]
            drawing.logarithmic_x(axes, x, findings.AXIS_LABELS["n_dense_active"])
            axes.set_title(model, size=9.5, color=ink.ink, loc="left")
            drawing.label_ends(axes, ends)
        panels[0].set_ylabel(findings.METRIC_LABELS["logloss"])

    parts = []
    for model, keys in several.items():
        key = min(keys, key=lambda key: points[key][-1]["mean"])
        parts.append(f"{model} is best along {key[1]} ({points[key][-1]['mean']:.5f})")
    return Figure(
        name="ladders",
        title="; ".join(parts),
        note="Means over seeds; a line a ladder.",
        draw=draw,
        size=(max(6.4, 3.4 * len(several)), 3.6),
        table=[
            {"model": key[0], "ladder": key[1]} | p
            for key, each in points.items()
            for p in each
        ],
    )


def sparse_against_dense(whole: Findings) -> Figure | str:
    """Returns mixtures of experts and dense models at equal active and total sizes."""
    keys = [key for key in whole.dense if whole.finals(key)]
    is_sparse = {
        key: any(
            row["n_dense_total"] != row["n_dense_active"] for row in whole.finals(key)
        )
        for key in keys
    }
    if len(set(is_sparse.values())) < 2:
        return "no mixture of experts beside a dense model"
    axes_names = ("n_dense_active", "n_dense_total")
    points = {
        key: {a: findings.means(whole.finals(key), a, "logloss") for a in axes_names}
        for key in keys
    }

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, 2, sharey=True)
        for axes, axis in zip(panels, axes_names, strict=True):
            ends = []
            for key, (colour, marker) in drawing.looks(ink, keys).items():
                own = points[key][axis]
                x, y = zip(*((p["x"], p["mean"]) for p in own), strict=True)
                axes.plot(x, y, color=colour, marker=marker, markersize=4)
                ends.append((whole.label(key), y[-1], colour))
            x = [p["x"] for key in keys for p in points[key][axis]]
            drawing.logarithmic_x(axes, x, findings.AXIS_LABELS[axis])
            drawing.label_ends(axes, ends)
        panels[0].set_ylabel(findings.METRIC_LABELS["logloss"])

    sparse = ", ".join(whole.label(key) for key in keys if is_sparse[key])
    return Figure(
        name="sparse_vs_dense",
        title=f"{sparse} against dense models at equal active and equal total sizes",
        note="Means over seeds.",
        draw=draw,
        size=(8.4, 3.6),
        table=[
            {"model": key[0], "ladder": key[1], "axis": axis} | p
            for key in keys
            for axis in axes_names
            for p in points[key][axis]
        ],
    )


def throughput(whole: Findings) -> Figure | str:
    """Returns examples per second, and MFU where the peak is known, against size."""
    keys = [key for key in whole.dense if whole.finals(key)]
    rows = [
        {
            "model": key[0],
            "ladder": key[1],
            "size_name": size,
            "n_dense_active": own[0]["n_dense_active"],
            "samples_per_s": float(np.median([r["samples_per_s"] for r in own])),
            "mfu": median([r["mfu"] for r in own]),
            "device": own[0]["device"],
            "device_count": own[0]["device_count"],
        }
        for key in keys
        for size, own in _timed(whole.finals(key)).items()
    ]
    if len(rows) < 2:
        return "no runs with examples per second"
    has_mfu = any(row["mfu"] is not None for row in rows)
    keys = [key for key in keys if any(_is_of(row, key) for row in rows)]

    def draw(canvas: Any, ink: Ink) -> None:
        panels = canvas.subplots(1, 2 if has_mfu else 1, squeeze=False)[0]
        for axes, name in zip(panels, ("samples_per_s", "mfu"), strict=False):
            ends = []
            for key, (colour, marker) in drawing.looks(ink, keys).items():
                own = [(r["n_dense_active"], r[name]) for r in rows if _is_of(r, key)]
                own = sorted((x, y) for x, y in own if y is not None)
                if own:
                    x, y = zip(*own, strict=True)
                    axes.plot(x, y, color=colour, marker=marker, markersize=4)
                    ends.append((whole.label(key), y[-1], colour))
            sizes = [row["n_dense_active"] for row in rows]
            drawing.logarithmic_x(axes, sizes, findings.AXIS_LABELS["n_dense_active"])
            axes.set_ylim(0, None)
            drawing.label_ends(axes, ends)
        panels[0].yaxis.set_major_formatter(lambda v, _: amount(v) if v else "0")
        panels[0].set_ylabel("examples a second")
        if has_mfu:
            panels[1].yaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
            panels[1].set_ylabel("model FLOPs utilisation")

    devices = sorted({f"{row['device_count']}× {row['device']}" for row in rows})
    slow = min(rows, key=lambda row: row["samples_per_s"])
    fast = max(rows, key=lambda row: row["samples_per_s"])
    return Figure(
        name="throughput",
        title=(
            f"From {amount(fast['samples_per_s'])} examples a second "
            f"({fast['model']} {fast['size_name']}) to "
            f"{amount(slow['samples_per_s'])} ({slow['model']} "
            f"{slow['size_name']})"
        ),
        note=f"Medians over seeds on {', '.join(devices)}, as trained: batch, dtype "
        "and table size are the study's, and other work may have shared the machine.",
        draw=draw,
        size=(8.4 if has_mfu else 6.4, 3.4),
        table=rows,
    )


def _is_of(row: Row, key: tuple[str, str]) -> bool:
    return (row["model"], row["ladder"]) == key


def _timed(rows: Sequence[Row]) -> dict[str, list[Row]]:
    known = [r for r in rows if r["samples_per_s"] and r["n_dense_active"]]
    return rows_lib.by_size(known)


def median(values: Sequence[float | None]) -> float | None:
    """Returns the median of the known values, None where there is none."""
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def agreement(whole: Findings) -> Figure | str:
    """Returns AUC against loss of all runs, and their rank correlation by size."""
    rows = [
        {
            "model": key[0],
            "ladder": key[1],
            "size_name": row["size_name"],
            "seed": row["seed"],
            "n_dense_active": row["n_dense_active"],
            "logloss": row["logloss"],
            "auc": row["auc"],
        }
        for key in whole.dense
        for row in whole.finals(key)
        if row["logloss"] is not None and row["auc"] is not None
    ]
    if len(rows) < 6:
        return f"{len(rows)} finished runs with a loss and an AUC: fewer than 6"
    edges = np.quantile([row["n_dense_active"] for row in rows], [1 / 3, 2 / 3])
    for row in rows:
        band = int(np.searchsorted(edges, row["n_dense_active"], side="right"))
        row["band"] = ("small", "middle", "large")[band]
    keys = [key for key in whole.dense if any(_is_of(row, key) for row in rows)]

    def draw(canvas: Any, ink: Ink) -> None:
        axes = canvas.subplots()
        ends = []
        for key, (colour, marker) in drawing.looks(ink, keys).items():
            own = [row for row in rows if _is_of(row, key)]
            x = [row["logloss"] for row in own]
            y = [row["auc"] for row in own]
            axes.plot(x, y, marker, color=colour, markersize=4, alpha=0.8)
            ends.append((whole.label(key), y[int(np.argmax(x))], colour))
        axes.set_xlabel(findings.METRIC_LABELS["logloss"])
        axes.set_ylabel("AUC")
        drawing.label_ends(axes, ends)

    correlations = []
    for band in ("small", "middle", "large"):
        own = [row for row in rows if row["band"] == band]
        if len(own) > 2:
            pairs = [[row["logloss"], row["auc"]] for row in own]
            rank = float(stats.spearmanr(np.array(pairs))[0])  # pyright: ignore
            correlations.append(f"{rank:+.2f} ({band}, {len(own)} runs)")
    return Figure(
        name="auc_vs_logloss",
        title="Rank correlation of AUC with log loss: " + ", ".join(correlations),
        note="One mark a run. -1: both metrics order models alike; bands are thirds of "
        "the runs by active dense parameters.",
        draw=draw,
        table=rows,
    )


_OTHERS: tuple[tuple[str, Callable[[Findings], Figure | str]], ...] = (
    ("ladders", ladders),
    ("sparse_vs_dense", sparse_against_dense),
    ("throughput", throughput),
    ("auc_vs_logloss", agreement),
    ("table_rows", lambda s: table_size(s, "rows")),
    ("table_dim", lambda s: table_size(s, "dim")),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws all figures of a study."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.plot",
        description="Draws a study: FOLDER/runs.jsonl and FOLDER/fits.json -> "
        "FOLDER/figures/*.{png,svg,csv}. Figures whose rows are missing are left out.",
    )
    parser.add_argument(
        "folder", type=pathlib.Path, help="holds runs.jsonl and fits.json"
    )
    flags = parser.parse_args(arguments)
    try:
        whole = findings.load(flags.folder)
    except FileNotFoundError as error:
        parser.error(str(error))
    found, missing = figures_of(whole)
    for figure in found:
        drawing.save(figure, flags.folder / FOLDER)
        print(f"{figure.name}: {figure.title}")
    for name, why in missing.items():
        print(f"no {name}: {why}")


if __name__ == "__main__":
    main()
