r"""The report of a study: `report.md`, and `report.html` that needs nothing else.

python -m scaling.report scaling/studies/NAME

Reads FOLDER/runs.jsonl, FOLDER/fits.json and, where it is, FOLDER/spend.json. It draws
the figures too, so that the report and they are of the same rows.
"""

import argparse
import collections
from collections.abc import Iterator, Sequence
import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np

from rankax.observe.console import amount
from scaling import blocks, drawing, findings, noise, plot, study
from scaling import rows as rows_lib
from scaling.blocks import Block, Heading, Picture, Points, Table, Text
from scaling.drawing import Figure
from scaling.findings import Findings

SPEND_NAME = "spend.json"

Entry = dict[str, Any]

_NONE = "–"
_SHOWN = ("logloss", "1-auc", "auc gain")  # others are like one of them
_NOTE = (
    "Intervals are 90 % bootstrap intervals over seeds (5 % and 95 % quantiles). They "
    "hold the noise of training, not the choice of the data set, its evaluation window "
    "or the shape rule of a ladder."
)


def write(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `report.md` and `report.html` of a folder, and its figures.

    Raises:
        FileNotFoundError: `runs.jsonl` or `fits.json` is missing.
    """
    whole = findings.load(folder)
    spend_path = folder / SPEND_NAME
    spend = json.loads(spend_path.read_text()) if spend_path.is_file() else None
    figures, missing = plot.figures_of(whole)
    for figure in figures:
        drawing.save(figure, folder / plot.FOLDER)
    found = list(content(whole, figures, missing, spend))
    title, facts = f"Scaling study {whole.name}", _facts(whole)
    if (folder / study.FILE_NAME).is_file():  # rows alone make a report too
        declared, _ = study.load(f"{folder}/")
        title = declared.title
        found.insert(0, Text(declared.note))
    markdown, html = folder / "report.md", folder / "report.html"
    text = blocks.markdown(title, facts, found)
    markdown.write_text(f"{text}\n{_NOTE}\n")
    html.write_text(blocks.html(title, facts, found, note=_NOTE))
    return markdown, html


def content(
    whole: Findings,
    figures: Sequence[Figure],
    missing: dict[str, str],
    spend: Sequence[Entry] | None,
) -> Iterator[Block]:
    """Yields the blocks of a report.

    Args:
        whole: rows and fits.
        figures: that could be drawn.
        missing: name of a figure that could not -> why.
        spend: of `spend.json`, None where there is none.
    """
    pictures = {figure.name: Picture(figure, plot.FOLDER) for figure in figures}
    yield Points(list(_summary(whole)))
    yield Heading("Size of the network")
    for name in ("loss_vs_params", "loss_vs_flops", "auc_vs_params", "reducible_loss"):
        yield from _shown(pictures, name)
    yield from _laws(whole)
    yield from _ratios(whole)
    yield Heading("Held-out check")
    yield from _held_out(whole)
    yield Heading("Irreducible loss")
    yield from _irreducible(whole)
    yield Heading("Data and compute")
    for name in ("loss_vs_data", "loss_vs_compute", "iso_flop"):
        yield from _shown(pictures, name)
    yield from _joint(whole)
    if any(key[1] in rows_lib.TABLE_AXES for key in whole.groups):
        yield Heading("Size of tables")
        for name in ("table_rows", "table_dim"):
            yield from _shown(pictures, name)
        yield from _tables(whole)
    yield Heading("Where to spend next")
    yield from _spend(spend)
    yield Heading("What would change the conclusion")
    yield Points(list(_doubts(whole)))
    yield Heading("Noise")
    yield from _noise(whole)
    yield Heading("Runs")
    yield from _runs(whole)
    for name in ("ladders", "sparse_vs_dense", "throughput", "auc_vs_logloss"):
        yield from _shown(pictures, name)
    yield from _learning_rates(whole)
    yield from _left_out(whole)
    if missing:
        yield Text("Figures that these rows do not allow:")
        yield Points([f"`{name}`: {why}" for name, why in missing.items()])


def _shown(pictures: dict[str, Picture], name: str) -> Iterator[Block]:
    if name in pictures:
        yield pictures[name]


# ---------------------------------------------------------------- summary


def _facts(whole: Findings) -> str:
    runs = {row["run_id"]: row for row in whole.rows}
    parts = [
        f"{len(runs)} runs",
        "models " + ", ".join(sorted({key[0] for key in whole.groups})),
        f"data {_all(whole, 'data_hash')}",
        f"evaluation {_all(whole, 'eval_hash')}",
        f"version {_all(whole, 'git_sha')}",
        f"on {_all(whole, 'device')}",
    ]
    return " · ".join(parts)


def _all(whole: Findings, name: str) -> str:
    values = sorted({str(row[name]) for row in whole.rows if row[name] is not None})
    return ", ".join(value[:12] for value in values) or _NONE


def _summary(whole: Findings) -> Iterator[str]:
    """What was found, a sentence a ladder."""
    floor = _noise_of(whole, "all", "logloss")
    if floor:
        yield (
            f"Noise of a seed: {floor['sigma']:.1e} log loss, so a difference below "
            f"**{floor['floor']:.1e}** is no difference."
        )
    for key in whole.groups:
        axis = rows_lib.TABLE_AXES.get(key[1], "n_dense_active")
        axis = "samples_seen" if key[1] == "data" else axis
        entry = whole.entry(key, axis, "logloss")
        if entry:
            yield f"**{key[0]}, {key[1]}**: {_verdict(entry)}"


def _verdict(entry: Entry) -> str:
    change = findings.decade_change(entry)
    assert change is not None  # a fitted entry has its line
    value, low, high = change
    axis = findings.AXIS_LABELS[entry["axis"]]
    if low <= 0 <= high:
        text = (
            f"no trend: 10× {axis} changes log loss by {value:+.2g} "
            f"[{low:+.2g}, {high:+.2g}], an interval that holds 0"
        )
    else:
        text = f"10× {axis} changes log loss by {value:+.2g} [{low:+.2g}, {high:+.2g}]"
    if entry["identified"]:
        alpha = entry["params"]["alpha"]
        text += f"; α = {_interval(alpha, '.3f')}"
    else:
        text += "; curvature not identified"
    check = [e for e in entry["held_out"] if e["without"] is None]
    for each in check:
        said = each.get(entry["preferred"], each)
        side = "inside" if said["inside"] else "outside"
        text += (
            f"; held-out {each['size_name']} measured {each['observed']:.5f}, {side} "
            f"the predicted {said['lo']:.5f} to {said['hi']:.5f}"
        )
    return text + "."


# ---------------------------------------------------------------- laws


def _laws(whole: Findings) -> Iterator[Block]:
    rows = []
    for entry in whole.fits["fits"]:
        if entry["form"] in (None, "chinchilla") or entry["metric"] not in _SHOWN:
            continue
        p = entry["params"]
        line = entry.get("loglinear", {}).get("params", {})
        rows.append(
            [
                _name(entry),
                str(entry["num_sizes"]),
                _interval(p.get("E"), ".5f"),
                _interval(p.get("alpha") or p.get("gamma"), ".3f"),
                _interval(line.get("b"), ".2e"),
                "yes" if entry["identified"] else "no",
                entry["preferred"],
                "; ".join(entry["warnings"]) or _NONE,
            ]
        )
    yield Text(
        "Laws of one axis. E and the exponent are those of E + A·x^-α (exponent γ for "
        "gains); the slope is that of a straight line in ln x. Where the curvature is "
        "not identified, E and α are not to be quoted. Normalized entropy, which is "
        "log loss over a constant, and GAUC stand in fits.json."
    )
    yield Table(
        [
            "model/ladder/metric/axis",
            "sizes",
            "E [90 %]",
            "exponent [90 %]",
            "slope [90 %]",
            "curvature identified",
            "believed",
            "warnings",
        ],
        rows,
    )
    failed = [e for e in whole.fits["fits"] if e["form"] is None]
    if failed:
        yield Points([f"{_name(e)}: {'; '.join(e['warnings'])}" for e in failed])


def _name(entry: Entry) -> str:
    return entry["id"]


def _ratios(whole: Findings) -> Iterator[Block]:
    wanted = [
        ratio
        for ratio in whole.fits["slope_ratios"]
        if ratio["metric"] == "logloss" and ratio["axis"] == "n_dense_active"
    ]
    if not wanted:
        return
    yield Text("Ratios of slopes of log loss per ln of active dense parameters:")
    yield Table(
        ["first / second", "ratio [90 %]", ""],
        [
            [
                f"{r['first']} / {r['second']}",
                _interval(r["ratio"], ".2f") if r["defined"] else _NONE,
                "" if r["defined"] else "undefined: the second has no trend",
            ]
            for r in wanted
        ],
    )


def _held_out(whole: Findings) -> Iterator[Block]:
    rows = []
    for entry in whole.fits["fits"]:
        for each in entry["held_out"] if entry["metric"] in _SHOWN else ():
            rows += [
                [
                    _name(entry),
                    each["size_name"]
                    + (" (data-limited)" if each["data_limited"] else ""),
                    each["without"] or _NONE,
                    form,
                    f"{each[form]['pred']:.5f}",
                    f"{each[form]['lo']:.5f} to {each[form]['hi']:.5f}",
                    f"{each['observed']:.5f} ({each['seeds']})",
                    "yes" if each[form]["inside"] else "no",
                ]
                for form in ("power_const", "loglinear", "chinchilla")
                if form in each
            ]
    if not rows:
        yield Text("No size was held out: there are too few.")
        return
    yield Text(
        "Sizes that the fit has not seen. The interval is that of the mean of so many "
        "seeds: of the curve, and of their noise. Lines with a size under “also "
        "without” leave the next largest out too."
    )
    yield Table(
        [
            "fit",
            "held out",
            "also without",
            "form",
            "predicted",
            "90 %",
            "measured (seeds)",
            "inside",
        ],
        rows,
    )
    total = len(rows)
    inside = sum(row[-1] == "yes" for row in rows)
    yield Text(f"{inside} of {total} predictions hold what was measured.")


def _irreducible(whole: Findings) -> Iterator[Block]:
    rows, words = [], []
    for entry in whole.fits["fits"]:
        if entry["metric"] != "logloss" or "E" not in entry["params"]:
            continue
        if entry["axis"] in ("flops_fwd_per_sample", "n_dense_total"):
            continue
        oracle = _oracle(whole, entry)
        if oracle is None:
            continue
        for which, e in _constants(entry):
            covers = e["p5"] <= oracle <= e["p95"]
            rows.append(
                [
                    _name(entry),
                    which,
                    _interval(e, ".5f"),
                    f"{oracle:.5f}",
                    "yes" if covers else "no",
                ]
            )
            if which == "fit":
                words.append(f"{_name(entry)}: {_miss(entry, e, oracle)}")
    if not rows and any(row["oracle_logloss"] is not None for row in whole.rows):
        yield Text("No law with a constant was fitted: it wants 4 sizes.")
        return
    if not rows:
        yield Text(
            "The data set knows no true probabilities, so there is no oracle to "
            "compare the fitted E with."
        )
        return
    yield Text(
        "The fitted E beside the log loss of the true probabilities. A law of the "
        "network's size has the loss of an infinite network on **this much data and "
        "these tables** as its E, which lies above the oracle's; only the joint law "
        "takes the data to infinity too, and none of them the tables."
    )
    yield Table(["fit", "sizes", "E [90 %]", "oracle", "interval holds it"], rows)
    yield Points(words)


def _constants(entry: Entry) -> Iterator[tuple[str, Entry]]:
    yield "fit", entry["params"]["E"]
    more = entry.get("all_sizes", {}).get("power_const")
    if more:
        yield "with the held-out ones", more["E"]


def _oracle(whole: Findings, entry: Entry) -> float | None:
    group = whole.groups[entry["model"], entry["ladder"]]
    values = [
        row["oracle_logloss"]
        for row in group
        if row["split"] == entry["split"] and row["oracle_logloss"] is not None
    ]
    return float(np.median(values)) if values else None


def _miss(entry: Entry, e: Entry, oracle: float) -> str:
    """An honest sentence about E and the oracle."""
    if e["p5"] <= oracle <= e["p95"]:
        width = e["p95"] - e["p5"]
        text = f"the interval holds the oracle's {oracle:.5f}; it is {width:.5f} wide"
        if not entry["identified"]:
            text += ", and since the curvature is not identified that says little"
        return text + "."
    gap = e["value"] - oracle
    if gap > 0:
        cause = {
            "n_dense_active,samples_seen": (
                "tables of this size, features that the model does not see and "
                "training that does not find the optimum remain at any N and D"
            ),
            "samples_seen": "the network and the tables are finite",
        }.get(entry["axis"], "more of this axis alone does not replace data and tables")
        return (
            f"the interval misses the oracle's {oracle:.5f}: E lies {gap:.5f} above "
            f"it; {cause}."
        )
    return (
        f"the interval misses the oracle's {oracle:.5f}: E lies {-gap:.5f} below what "
        "any model can reach, so the extrapolation is wrong: the form does not hold "
        "beyond the data, or the noise is not what the intervals assume."
    )


# ---------------------------------------------------------------- data and tables


def _joint(whole: Findings) -> Iterator[Block]:
    joint = [e for e in whole.fits["fits"] if e["form"] == "chinchilla"]
    if not joint:
        yield Text(
            "No joint law of size and data: it wants 3 sizes, read at 3 checkpoints."
        )
        return
    yield Text("L(N, D) = E + A·N^-α + B·D^-β over all checkpoints:")
    yield Table(
        [
            "model/ladder/metric",
            "E [90 %]",
            "α [90 %]",
            "β [90 %]",
            "best N ∝ C^a, a [90 %]",
            "2× parameters",
            "2× examples",
            "warnings",
        ],
        [
            [
                _name(e),
                _interval(e["params"]["E"], ".5f"),
                _interval(e["params"]["alpha"], ".3f"),
                _interval(e["params"]["beta"], ".3f"),
                _interval(e["params"]["allocation"], ".2f"),
                _interval(e["doubled_size"], "+.1e"),
                _interval(e["doubled_data"], "+.1e"),
                "; ".join(e["warnings"]) or _NONE,
            ]
            for e in joint
        ],
    )


def _tables(whole: Findings) -> Iterator[Block]:
    for ladder, axis in rows_lib.TABLE_AXES.items():
        rows = []
        for key in whole.groups:
            if key[1] != ladder:
                continue
            finals = whole.finals(key)
            losses = findings.means(finals, axis, "logloss")
            areas = findings.means(finals, axis, "1-auc")
            shares = {row["size_name"]: row["collision_share"] for row in finals}
            for loss, area in zip(losses, areas, strict=True):
                share = shares[loss["size_name"]]
                rows.append(
                    [
                        key[0],
                        f"{loss['x']:,.0f}",
                        str(loss["seeds"]),
                        _spread(loss["mean"], loss["sd"]),
                        _spread(1 - area["mean"], area["sd"]),
                        _NONE if share is None else f"{share:.1%}",
                    ]
                )
        if rows:
            header = ["model", findings.AXIS_LABELS[axis], "seeds", "log loss", "AUC"]
            yield Table([*header, "ids that share a row, forecast"], rows)


def _spend(spend: Sequence[Entry] | None) -> Iterator[Block]:
    if not spend:
        yield Text(
            f"No {SPEND_NAME}: `python -m scaling.spend` on this folder forecasts what "
            "twice of each axis would bring, and what it would cost."
        )
        return
    yield Text(
        "Predicted change of log loss (negative is good) for twice of one axis, with "
        "its 90 % interval, and by what factor it raises the cost. Best first."
    )
    ordered = sorted(spend, key=lambda e: _or_infinity(e["dlogloss"]))
    yield Table(
        ["axis", "what", "Δ log loss [90 %]", "FLOPs", "table bytes", "data", "note"],
        [
            [
                e["axis"],
                e["what"],
                _change(e),
                _factor(e["factor_flops"]),
                _factor(e["factor_table_bytes"]),
                _factor(e["factor_data"]),
                e["note"] or "",
            ]
            for e in ordered
        ],
    )


def _or_infinity(value: float | None) -> float:
    return math.inf if value is None else value


def _change(e: Entry) -> str:
    if e["dlogloss"] is None:
        return _NONE
    text = f"{e['dlogloss']:+.1e}"
    if e["lo"] is not None and e["hi"] is not None:
        text += f" [{e['lo']:+.1e}, {e['hi']:+.1e}]"
    return text


def _factor(value: float | None) -> str:
    return _NONE if value is None else f"×{value:.3g}"


# ---------------------------------------------------------------- doubts


def _doubts(whole: Findings) -> Iterator[str]:
    """What would change the conclusion, from the study's own numbers."""
    main = [whole.entry(key, "n_dense_active", "logloss") for key in whole.dense]
    for entry in filter(None, main):
        name = f"{entry['model']}, {entry['ladder']}"
        if not entry["identified"]:
            reasons = [
                w for w in entry["warnings"] if "curvature" in w or "no power" in w
            ]
            if entry["form"] == "loglinear":
                then = "with fewer there is only a straight line to fit"
            elif entry["preferred"] == "power_const":
                then = "the straight line misses the held-out size, so there is a bend"
            else:
                then = "until then the straight line is as good a law"
            yield (
                f"**{name}**: {'; '.join(reasons)}. More seeds narrow it first, sizes "
                f"further apart next; {then}."
            )
        missed = [
            e["size_name"]
            for e in entry["held_out"]
            if e["without"] is None and not e.get(entry["preferred"], e)["inside"]
        ]
        if missed:
            yield (
                f"**{name}**: the fit does not predict {', '.join(missed)}; a forecast "
                "beyond it is not to be trusted before this is explained."
            )
        if _common(entry):
            yield f"**{name}**: {_common(entry)}"
    yield from _close_models(whole)
    limited = sorted(
        {
            "/".join(rows_lib.size_key(row))
            for row in whole.rows
            if row["data_limited"] and not row["lr_stage"]
        }
    )
    if limited:
        yield (
            f"Data-limited: {', '.join(limited)}: their loss still falls faster with "
            "examples than that of the next smaller size. With more data they would "
            "move down, so laws of size leave them out and joint laws keep them."
        )
    for name, edge in _edges(whole):
        yield (
            f"**{name}**: the best learning rate tried is {edge}; a wider search may "
            "lower its loss."
        )
    yield (
        "One data set, one evaluation window, one order of examples: another day of "
        "data may order the models otherwise, and no interval here covers that."
    )


def _common(entry: Entry) -> str:
    said = [
        w for w in entry["warnings"] if w.startswith(("noise not", "intervals come"))
    ]
    return "; ".join(said)


def _close_models(whole: Findings) -> Iterator[str]:
    """Models whose best sizes differ by less than the noise floor."""
    floor = _noise_of(whole, "all", "logloss")
    if not floor:
        return
    best = {}
    for key in whole.dense:
        points = findings.means(whole.finals(key), "n_dense_active", "logloss")
        if points:
            best[key] = min(points, key=lambda p: p["mean"])
    ordered = sorted(best, key=lambda key: best[key]["mean"])
    for first, second in itertools.pairwise(ordered):
        a, b = best[first], best[second]
        if noise.is_difference(a["mean"], b["mean"], floor["sigma"]):
            continue
        yield (
            f"{'/'.join(first)} {a['size_name']} ({a['mean']:.5f}) and "
            f"{'/'.join(second)} {b['size_name']} ({b['mean']:.5f}) differ by less "
            f"than the noise floor {floor['floor']:.1e}: their order is open."
        )


def _edges(whole: Findings) -> Iterator[tuple[str, str]]:
    for name, tried, best, _ in _searches(whole):
        if len(tried) > 1 and best in (min(tried), max(tried)):
            which = "smallest" if best == min(tried) else "largest"
            yield name, f"the {which} of {len(tried)}, {best:g}"


# ---------------------------------------------------------------- noise and runs


def _noise_of(whole: Findings, of: str, metric: str) -> Entry | None:
    for each in whole.fits["noise"]:
        if (each["of"], each["metric"]) == (of, metric):
            return each
    return None


def _noise(whole: Findings) -> Iterator[Block]:
    if not whole.fits["noise"]:
        yield Text("No size was trained with two seeds: the noise is not known.")
        return
    yield Text(
        "Standard deviation of a seed, pooled within sizes. Below the floor of 2 σ a "
        "difference between two runs is no difference."
    )
    yield Table(
        ["of", "metric", "σ [90 %]", "degrees of freedom", "floor", "p of equal noise"],
        [
            [
                each["of"],
                findings.METRIC_WORDS[each["metric"]],
                f"{each['sigma']:.2e} [{each['low']:.2e}, {each['high']:.2e}]",
                str(each["degrees_of_freedom"]),
                f"{each['floor']:.2e}",
                _NONE if each["p_equal"] is None else f"{each['p_equal']:.3f}",
            ]
            for each in whole.fits["noise"]
        ],
    )


def _runs(whole: Findings) -> Iterator[Block]:
    rows = []
    for key in whole.groups:
        finals = rows_lib.by_size(whole.finals(key))
        for size, own in finals.items():
            loss = _mean_of(own, "logloss")
            area = _mean_of(own, "auc")
            flags = [
                text
                for name, text in (
                    ("held_out", "held out"),
                    ("data_limited", "data-limited"),
                )
                if any(row[name] for row in own)
            ]
            rows.append(
                [
                    f"{'/'.join(key)}/{size}",
                    _count(own[0]["n_dense_active"]),
                    _count(own[0]["n_table"]),
                    _count(own[0]["flops_fwd_per_sample"]),
                    str(len(own)),
                    _spread(*loss),
                    _spread(*area),
                    _count(plot.median([r["samples_per_s"] for r in own])),
                    ", ".join(flags) or _NONE,
                ]
            )
    yield Table(
        [
            "model/ladder/size",
            "dense, active",
            "table parameters",
            "FLOPs/example",
            "seeds",
            "log loss",
            "AUC",
            "examples/s",
            "flags",
        ],
        rows,
    )


def _mean_of(
    rows: Sequence[rows_lib.Row], name: str
) -> tuple[float | None, float | None]:
    known = [row[name] for row in rows if row[name] is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(
        known
    ) > 1 else None


def _searches(
    whole: Findings,
) -> Iterator[tuple[str, list[float], float, dict[float, float]]]:
    """Name of a size, rates tried, the best one, and rate -> mean loss."""
    losses: dict[str, dict[float, list[float]]] = {}
    stage = [row for row in whole.rows if row["lr_stage"]]
    split = rows_lib.final_split(stage)
    for row in rows_lib.last_rows(stage, split):
        name = "/".join(rows_lib.size_key(row))
        value = rows_lib.metric_value(row, "logloss")
        if row["diverged"] or value is None:
            value = math.inf
        losses.setdefault(name, {}).setdefault(row["lr_dense"], []).append(value)
    for name, of_size in losses.items():
        mean = {rate: float(np.mean(values)) for rate, values in of_size.items()}
        yield name, sorted(mean), min(mean, key=lambda rate: mean[rate]), mean


def _learning_rates(whole: Findings) -> Iterator[Block]:
    searches = list(_searches(whole))
    if not searches:
        yield Text(
            "No run of a learning-rate search: all sizes trained at the rates of their "
            "ladder, which may favour some of them."
        )
        return
    edges = dict(_edges(whole))
    yield Text("Learning rates tried, with the mean log loss of each:")
    yield Table(
        ["model/ladder/size", "tried", "best", "on the edge"],
        [
            [
                name,
                ", ".join(f"{rate:g}: {_loss(mean[rate])}" for rate in tried),
                f"{best:g}",
                "yes" if name in edges else "no",
            ]
            for name, tried, best, mean in searches
        ],
    )


def _loss(value: float) -> str:
    return f"{value:.5f}" if math.isfinite(value) else "diverged"


def _left_out(whole: Findings) -> Iterator[Block]:
    """Runs that a fit leaves out, and why."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for entry in whole.fits["fits"]:
        for point in entry["points"]["excluded"]:
            found[point["reason"]].add(point["run_id"])
    if found:
        yield Text("Runs that some fit leaves out:")
        yield Table(
            ["reason", "runs", "which"],
            [
                [reason, str(len(runs)), _listed(sorted(runs))]
                for reason, runs in sorted(found.items())
            ],
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# ---------------------------------------------------------------- text


def _interval(estimate: Entry | None, form: str) -> str:
    if not estimate:
        return _NONE
    value, low, high = (estimate[name] for name in ("value", "p5", "p95"))
    if low is None or high is None:
        return f"{value:{form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _spread(mean: float | None, deviation: float | None) -> str:
    if mean is None:
        return _NONE
    return f"{mean:.5f}" + ("" if deviation is None else f" ± {deviation:.5f}")


def _count(value: float | None) -> str:
    return _NONE if value is None else amount(value)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the report of a study."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.report",
        description="Writes FOLDER/report.md and FOLDER/report.html from runs.jsonl, "
        "fits.json and, where it is, spend.json; draws FOLDER/figures as well.",
    )
    parser.add_argument(
        "folder", type=pathlib.Path, help="holds runs.jsonl and fits.json"
    )
    flags = parser.parse_args(arguments)
    try:
        paths = write(flags.folder)
    except FileNotFoundError as error:
        parser.error(str(error))
    for path in paths:
        print(path)


if __name__ == "__main__":
    main()
