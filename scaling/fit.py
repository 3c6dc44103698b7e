r"""Laws of a study: `runs.jsonl` -> `fits.json`.

python -m scaling.fit scaling/studies/NAME

For each model and ladder: the metric against parameters, FLOPs or table size, as a
power law with a constant and as a straight line in the logarithm; against parameters
and examples together where runs were read at several checkpoints. The largest sizes are
held out and predicted. docs/scaling.md says how to read the result.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np

from rankax.config.base import suggest
from scaling import curve, forms, noise
from scaling import rows as rows_lib
from scaling.curve import Fit, Points
from scaling.noise import Noise
from scaling.rows import Row, Selection

FILE_NAME = "fits.json"
VERSION = 1

# Below which a law with a constant is not fitted, and below which it is not trusted.
_FEWEST_SIZES, _ENOUGH_SIZES, _ENOUGH_DECADES = 4, 5, 2
_JOINT_SIZES, _JOINT_CHECKPOINTS = 3, 3
_JOINT_METRICS = ("logloss", "1-auc")
_BAND_POINTS = 41
_REFUTED = 0.05  # p-value of a lack of fit
_COMPACT = (",", ":")

Entry = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to fit: replicates of the bootstrap, and the seed of its drawing."""

    num_replicates: int = curve.NUM_REPLICATES
    seed: int = 0


def fit_study(
    rows: Sequence[Row],
    *,
    metrics: Sequence[str] = rows_lib.METRICS,
    baseline: str = "",
    options: Options | None = None,
) -> dict[str, Any]:
    """Returns what `fits.json` holds.

    Args:
        rows: of `runs.jsonl`, of one data set, one evaluation and one version.
        metrics: which to fit, of `rows.METRICS`.
        baseline: "MODEL/LADDER/SIZE" whose mean AUC gains are over; "" for no gains.
        options: replicates and seed.
    """
    options = options or Options()
    entries: list[Entry] = []
    lines: dict[tuple[str, str, str, str], Fit] = {}
    for (model, ladder), group in _groups(rows).items():
        for metric in metrics:
            for axis in _axes(ladder, group):
                selection = rows_lib.select_final(group, axis=axis, metric=metric)
                source = _Source(group, rows, selection, model, ladder, axis, metric)
                entry, line = _curve_entry(source, options)
                entries.append(entry)
                if line is not None:
                    lines[model, ladder, axis, metric] = line
            entries += _data_entries(group, rows, model, ladder, metric, options)
            if metric in _JOINT_METRICS:
                entries += _joint_entries(group, rows, model, ladder, metric, options)
        if baseline:
            entries += _gain_entries(group, rows, model, ladder, baseline, options)
    return {
        "version": VERSION,
        "studies": sorted({row["study"] for row in rows}),
        "n_boot": options.num_replicates,
        "noise": _noises(rows, metrics),
        "fits": entries,
        "slope_ratios": _slope_ratios(lines),
    }


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns `fits.json` of a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"no {FILE_NAME} in {folder}; make it with `python -m scaling.fit {folder}`"
        )
    return json.loads(path.read_text())


def find(
    fits: dict[str, Any], *, model: str, ladder: str, axis: str, metric: str = "logloss"
) -> Entry | None:
    """Returns the entry of a model's ladder along one axis, None if there is none."""
    for entry in fits["fits"]:
        found = entry["model"], entry["ladder"], entry["axis"], entry["metric"]
        if found == (model, ladder, axis, metric) and entry["form"] != "gain_power":
            return entry
    return None


def points(rows: Sequence[Row], *, axis: str, metric: str) -> Points:
    """Returns rows that were selected, as points of a law of one axis."""
    return Points(
        x=np.array([row[axis] for row in rows], np.float64),
        y=np.array([rows_lib.metric_value(row, metric) for row in rows], np.float64),
        sizes=[row["size_name"] for row in rows],
        runs=[row["run_id"] for row in rows],
        checkpoints=[row["samples_seen"] for row in rows],
    )


# ---------------------------------------------------------------- what is fitted


@dataclasses.dataclass(frozen=True, slots=True)
class _Source:
    """Rows of one fit, and what they are called."""

    group: Sequence[Row]  # of the model and ladder
    study: Sequence[Row]
    selection: Selection
    model: str
    ladder: str
    axis: str
    metric: str

    @property
    def split(self) -> str:
        seen = [*self.selection.used, *self.selection.held_out]
        return seen[0]["split"] if seen else rows_lib.final_split(self.group)

    def noise(self) -> Noise | None:
        """That of the ladder, or of the whole study where it has too few seeds."""
        split = rows_lib.final_split(self.group)
        own = noise.measure(self.group, self.metric, split=split)
        if own is not None and own.freedom > 1:
            return own
        split = rows_lib.final_split(self.study)
        return noise.measure(self.study, self.metric, split=split) or own

    def sigma(self, rows: Sequence[Row]) -> float | np.ndarray | None:
        measured = self.noise()
        if measured is None or not measured.sigma:
            return None
        if measured.is_equal:
            return measured.sigma
        sizes = ["/".join(rows_lib.size_key(row)) for row in rows]
        return np.array([measured.of_size(size) for size in sizes])

    def value(self, row: Row) -> float:
        value = rows_lib.metric_value(row, self.metric)
        assert value is not None  # selected
        return value

    def points(self, rows: Sequence[Row]) -> Points:
        return points(rows, axis=self.axis, metric=self.metric)

    def fit(self, form: forms.Form, rows: Sequence[Row], options: Options) -> Fit:
        return curve.fit(
            form,
            self.points(rows),
            sigma=self.sigma(rows),
            num_replicates=options.num_replicates,
            seed=options.seed,
        )


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["ladder"]), []).append(row)
    return found


def _axes(ladder: str, rows: Sequence[Row]) -> list[str]:
    if ladder in rows_lib.TABLE_AXES:
        return [rows_lib.TABLE_AXES[ladder]]
    if ladder == "data":
        return ["samples_seen"]
    axes = ["n_dense_active", "flops_fwd_per_sample"]
    if any(row["n_dense_total"] != row["n_dense_active"] for row in rows):
        axes.insert(1, "n_dense_total")
    return axes


def _with_held_out(selection: Selection, axis: str) -> tuple[list[Row], list[Row], str]:
    """Rows to fit, rows to predict, and who said which: declared, largest, or none."""
    used = list(selection.used)
    if selection.held_out:
        return used, list(selection.held_out), "declared"
    sizes = _ascending(used, axis)
    if len(sizes) <= _FEWEST_SIZES:
        return used, [], "none: too few sizes"
    largest = sizes[-1]
    return (
        [row for row in used if row["size_name"] != largest],
        [row for row in used if row["size_name"] == largest],
        "largest",
    )


def _ascending(rows: Sequence[Row], axis: str) -> list[str]:
    """Size names by their mean on the axis."""
    sizes = rows_lib.by_size(rows)
    return sorted(sizes, key=lambda size: np.mean([row[axis] for row in sizes[size]]))


# ---------------------------------------------------------------- one axis


def _curve_entry(source: _Source, options: Options) -> tuple[Entry, Fit | None]:
    """The entry of one axis, and its straight line for ratios of slopes."""
    used, held_out, declared = _with_held_out(source.selection, source.axis)
    entry = _head(source, used, held_out, declared)
    sizes = _ascending(used, source.axis)
    if len(sizes) < 2 or len(used) < 3:
        return _unfitted(entry, f"{len(sizes)} sizes, {len(used)} points"), None
    line = source.fit(forms.LOGLINEAR, used, options)
    power = None
    if len(sizes) >= _FEWEST_SIZES:
        power = source.fit(forms.POWER_CONST, used, options)
    main = power or line
    entry |= _described(main) | {"form": main.form.name}
    entry["held_out"] = list(_held_out(source, used, held_out, power, line, options))
    entry["loglinear"] = {
        "params": _params(line),
        "held_out_error": _error(entry["held_out"], "loglinear"),
        "objective": line.objective,
    }
    entry["held_out_error"] = _error(entry["held_out"], "power_const")
    entry["identified"] = power is not None and power.is_curvature_identified
    entry["preferred"] = _preferred(entry, power)
    everything = [*used, *_sound(held_out)]
    entry |= _outlook(source, everything, entry["preferred"], options)
    entry["band"] = _band(main, [row[source.axis] for row in everything])
    entry["warnings"] = list(_warnings(source, entry, power, line, used))
    return entry, line


def _head(
    source: _Source, used: Sequence[Row], held_out: Sequence[Row], declared: str
) -> Entry:
    label = "joint" if "," in source.axis else source.axis
    excluded = {id(row): (row, why) for row, why in source.selection.excluded}
    for row in held_out:
        excluded.setdefault(id(row), (row, rows_lib.HELD_OUT))
    return {
        "id": f"{source.model}/{source.ladder}/{source.metric}/{label}",
        "model": source.model,
        "ladder": source.ladder,
        "axis": source.axis,
        "metric": source.metric,
        "split": source.split,
        "holding_out": declared,
        "points": {
            "used": [_point(source, row) for row in used],
            "excluded": [
                _point(source, row) | {"reason": why} for row, why in excluded.values()
            ],
        },
        "num_sizes": len(rows_lib.by_size(used)),
    }


def _point(source: _Source, row: Row) -> Entry:
    axes = source.axis.split(",")
    x = [row[axis] for axis in axes]
    return {
        "run_id": row["run_id"],
        "size_name": row["size_name"],
        "seed": row["seed"],
        "x": x if len(x) > 1 else x[0],
        "y": rows_lib.metric_value(row, source.metric),
        "data_limited": row["data_limited"],
    }


def _unfitted(entry: Entry, found: str) -> Entry:
    return entry | {
        "form": None,
        "params": {},
        "held_out": [],
        "identified": False,
        "preferred": None,
        "warnings": [f"no fit: {found}; a line needs 2 sizes and 3 points"],
    }


def _described(fit: Fit) -> Entry:
    return {
        "params": _params(fit),
        "delta": fit.delta,
        "sigma": fit.sigma,
        "n_boot": len(fit.draws),
        "resampled": fit.resampled,
        "objective": fit.objective,
        "converged": fit.converged,
        "share_converged": fit.share_converged,
        "x_scale": fit.scales.tolist(),
        "residual_rms": float(np.sqrt((fit.residuals**2).mean())),
    }


def _params(fit: Fit) -> Entry:
    return {name: each.to_dict() for name, each in fit.parameters().items()}


def _held_out(
    source: _Source,
    used: Sequence[Row],
    held_out: Sequence[Row],
    power: Fit | None,
    line: Fit,
    options: Options,
) -> Iterator[Entry]:
    """Predictions of the sizes left out, then once more without the next largest."""
    if not held_out:
        return
    for size, of_size in rows_lib.by_size(_sound(held_out)).items():
        yield _predicted(
            source, size, of_size, {"power_const": power, "loglinear": line}
        )
    sizes = _ascending(used, source.axis)
    fewer = [row for row in used if row["size_name"] != sizes[-1]]
    if len(sizes) - 1 < _FEWEST_SIZES:
        return
    fits = {
        form.name: source.fit(form, fewer, options)
        for form in (forms.POWER_CONST, forms.LOGLINEAR)
    }
    second = [row for row in used if row["size_name"] == sizes[-1]]
    for size, of_size in rows_lib.by_size([*second, *_sound(held_out)]).items():
        yield _predicted(source, size, of_size, fits) | {"without": sizes[-1]}


def _sound(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if rows_lib.flaw(row) is None]


def _predicted(
    source: _Source, size: str, rows: Sequence[Row], fits: Mapping[str, Fit | None]
) -> Entry:
    """What the fits say of one size that they have not seen, and what was measured.

    Intervals are those of a mean of as many seeds: of the curve, and of their noise.
    """
    x = np.array([[row[axis] for axis in source.axis.split(",")] for row in rows])
    observed = float(np.mean([source.value(row) for row in rows]))
    sigma = source.sigma(rows)
    error = 0.0 if sigma is None else float(np.median(sigma)) / math.sqrt(len(rows))
    entry: Entry = {
        "size_name": size,
        "x": x.mean(0).tolist() if x.shape[1] > 1 else float(x.mean()),
        "observed": observed,
        "seeds": len(rows),
        "data_limited": any(row["data_limited"] for row in rows),
        "without": None,
    }
    for name, fit in fits.items():
        if fit is not None:
            said = _with_noise(fit, x.mean(0), error)
            said["inside"] = said["lo"] <= observed <= said["hi"]
            entry[name] = said
    first = next(entry[name] for name in fits if fits[name] is not None)
    return entry | first


def _with_noise(fit: Fit, x: np.ndarray, error: float) -> Entry:
    """Prediction at one point; its interval holds the noise of what is measured."""
    rng = np.random.default_rng(1)
    draws = fit.predict_draws(x[None])[:, 0]
    noisy = draws + error * rng.standard_normal(len(draws))
    low, high = np.percentile(noisy, [curve.LOW, curve.HIGH])
    return {
        "pred": float(fit.predict(x[None])[0]),
        "lo": float(low),
        "hi": float(high),
    }


def _error(held_out: Sequence[Entry], form: str) -> float | None:
    """Mean distance of a form's predictions from what was measured."""
    found = [abs(e[form]["pred"] - e["observed"]) for e in held_out if form in e]
    return float(np.mean(found)) if found else None


def _preferred(entry: Entry, power: Fit | None) -> str:
    """The form to believe: the better predictor of held-out sizes.

    A curve that is not identified is not it, unless the straight line is refuted: what
    was held out lies outside its interval, but inside the curve's.
    """
    if power is None:
        return "loglinear"
    if not entry["identified"]:
        refuted = any(
            e["power_const"]["inside"] and not e["loglinear"]["inside"]
            for e in entry["held_out"]
            if not e["data_limited"] and e["without"] is None
        )
        return "power_const" if refuted else "loglinear"
    own, straight = entry["held_out_error"], entry["loglinear"]["held_out_error"]
    if own is None or straight is None or own <= straight:
        return "power_const"
    return "loglinear"


def _outlook(
    source: _Source, rows: Sequence[Row], preferred: str, options: Options
) -> Entry:
    """Both forms on all sizes; by the preferred one the metric of twice the largest.

    The check of the held-out sizes is made; a forecast may use them.
    """
    sizes = _ascending(rows, source.axis)
    fits = {"loglinear": source.fit(forms.LOGLINEAR, rows, options)}
    if len(sizes) >= _FEWEST_SIZES:
        fits["power_const"] = source.fit(forms.POWER_CONST, rows, options)
    chosen = fits.get(preferred, fits["loglinear"])
    largest = max(row[source.axis] for row in rows)
    change = chosen.change(largest, 2 * largest)
    (said,) = chosen.interval([2 * largest])
    return {
        "all_sizes": {name: _params(fit) for name, fit in fits.items()},
        "doubled": {
            "form": chosen.form.name,
            "from": largest,
            "to": 2 * largest,
            "from_size": sizes[-1],
            "pred": said.to_dict(),
            "change": change.to_dict(),
        },
    }


def _band(fit: Fit, x: Sequence[float]) -> Entry:
    grid = np.geomspace(min(x), 2 * max(x), _BAND_POINTS)
    said = fit.interval(grid)
    return {
        "x": [float(f"{v:.6g}") for v in grid],
        "mid": [float(f"{e.value:.8g}") for e in said],
        "lo": [float(f"{e.p5:.8g}") for e in said],
        "hi": [float(f"{e.p95:.8g}") for e in said],
    }


def _warnings(
    source: _Source, entry: Entry, power: Fit | None, line: Fit, used: Sequence[Row]
) -> Iterator[str]:
    count = entry["num_sizes"]
    x = [row[source.axis] for row in used]
    decades = math.log10(max(x) / min(x))
    if count < _ENOUGH_SIZES or round(decades, 1) < _ENOUGH_DECADES:
        yield (
            f"{count} sizes over {decades:.1f} decades: a law with a constant wants "
            f"{_ENOUGH_SIZES} sizes over {_ENOUGH_DECADES}"
        )
    if power is None:
        yield f"no power law: it wants {_FEWEST_SIZES} sizes"
    elif not entry["identified"]:
        reasons = "; ".join(power.why_not_identified())
        yield f"curvature not identified: {reasons}"
    slope = line.parameters()["b"]
    if slope.p5 <= 0 <= slope.p95:
        yield "no trend: the 90 % interval of the slope holds 0"
    yield from _common_warnings(power or line)


def _common_warnings(fit: Fit) -> Iterator[str]:
    if fit.sigma is None:
        yield (
            f"noise not measured: δ is {curve.DEFAULT_DELTA:g}, which protects little "
            "from outliers; train some size with several seeds"
        )
    if not fit.converged:
        yield "the search for the best parameters did not converge"
    if fit.share_converged < 0.95:
        yield f"only {fit.share_converged:.0%} of bootstrap replicates converged"
    if fit.resampled != "seeds within sizes":
        yield f"intervals come from {fit.resampled}: no size has two seeds"


# ---------------------------------------------------------------- data, and both axes


def _data_entries(
    group: Sequence[Row],
    study: Sequence[Row],
    model: str,
    ladder: str,
    metric: str,
    options: Options,
) -> Iterator[Entry]:
    """The learning curve of the largest size that is not held out."""
    if ladder in rows_lib.TABLE_AXES or ladder == "data":
        return
    selection = rows_lib.select_checkpoints(group, metric=metric)
    sizes = _ascending(selection.used, "n_dense_active")
    if not sizes:
        return
    rows = [row for row in selection.used if row["size_name"] == sizes[-1]]
    if len({row["samples_seen"] for row in rows}) < _FEWEST_SIZES:
        return
    own = Selection(used=rows, held_out=(), excluded=())
    source = _Source(group, study, own, model, ladder, "samples_seen", metric)
    line = source.fit(forms.LOGLINEAR, rows, options)
    power = source.fit(forms.POWER_CONST, rows, options)
    entry = _head(source, rows, (), "none: checkpoints of one size")
    entry["id"] += f"/{sizes[-1]}"
    entry |= {"size_name": sizes[-1], "form": power.form.name} | _described(power)
    entry |= {"held_out": [], "held_out_error": None}
    entry["loglinear"] = {"params": _params(line), "held_out_error": None}
    entry["identified"] = power.is_curvature_identified
    # Without held-out sizes the points themselves must refute the straight line.
    bends = curve.lack_of_fit(line) < _REFUTED and power.objective < line.objective
    chosen = power if entry["identified"] or bends else line
    entry["preferred"] = chosen.form.name
    seen = max(row["samples_seen"] for row in rows)
    (said,) = chosen.interval([2 * seen])
    entry["doubled"] = {
        "form": chosen.form.name,
        "from": seen,
        "to": 2 * seen,
        "from_size": sizes[-1],
        "pred": said.to_dict(),
        "change": chosen.change(seen, 2 * seen).to_dict(),
    }
    entry["band"] = _band(power, [row["samples_seen"] for row in rows])
    entry["warnings"] = list(_common_warnings(power))
    if not entry["identified"]:
        reasons = "; ".join(power.why_not_identified())
        entry["warnings"].insert(0, f"curvature not identified: {reasons}")
    yield entry


def _joint_entries(
    group: Sequence[Row],
    study: Sequence[Row],
    model: str,
    ladder: str,
    metric: str,
    options: Options,
) -> Iterator[Entry]:
    """Size and data together, where at least three of each were read."""
    if ladder in rows_lib.TABLE_AXES or ladder == "data":
        return
    selection = rows_lib.select_checkpoints(group, metric=metric)
    axes = "n_dense_active,samples_seen"
    source = _Joint(group, study, selection, model, ladder, axes, metric)
    used, held_out, declared = _with_held_out(selection, "n_dense_active")
    checkpoints = {row["samples_seen"] for row in used}
    enough = len(checkpoints) >= _JOINT_CHECKPOINTS
    if len(rows_lib.by_size(used)) < _JOINT_SIZES or not enough:
        return
    fit = source.fit(forms.CHINCHILLA, used, options)
    entry = _head(source, used, held_out, declared)
    entry |= {"form": fit.form.name} | _described(fit)
    last = max(checkpoints)
    ends = [row for row in _sound(held_out) if row["samples_seen"] == last]
    entry["held_out"] = [
        _predicted(source, size, of_size, {"chinchilla": fit})
        for size, of_size in rows_lib.by_size(ends).items()
    ]
    entry["held_out_error"] = _error(entry["held_out"], "chinchilla")
    entry["identified"] = fit.is_curvature_identified
    entry["preferred"] = fit.form.name
    size = max(row["n_dense_active"] for row in used)
    entry["doubled_size"] = fit.change((size, last), (2 * size, last)).to_dict()
    entry["doubled_data"] = fit.change((size, last), (size, 2 * last)).to_dict()
    entry["warnings"] = list(_common_warnings(fit))
    if not entry["identified"]:
        reasons = "; ".join(fit.why_not_identified())
        entry["warnings"].insert(0, f"curvature not identified: {reasons}")
    yield entry


class _Joint(_Source):
    __slots__ = ()

    def points(self, rows: Sequence[Row]) -> Points:
        axes = self.axis.split(",")
        return Points(
            x=np.array([[row[axis] for axis in axes] for row in rows], np.float64),
            y=np.array([self.value(row) for row in rows]),
            sizes=[row["size_name"] for row in rows],
            runs=[row["run_id"] for row in rows],
            checkpoints=[row["samples_seen"] for row in rows],
        )


# ---------------------------------------------------------------- gains and slopes


def _gain_entries(
    group: Sequence[Row],
    study: Sequence[Row],
    model: str,
    ladder: str,
    baseline: str,
    options: Options,
) -> Iterator[Entry]:
    """c·N^γ, N in millions of parameters, of the AUC gained over a baseline."""
    over = [row for row in study if "/".join(rows_lib.size_key(row)) == baseline]
    base = rows_lib.select_final(over, axis="n_dense_active", metric="1-auc").used
    if not base:
        known = sorted({"/".join(rows_lib.size_key(row)) for row in study})
        raise ValueError(
            f"no finished run of the baseline {baseline!r}; known: {', '.join(known)}"
        )
    selection = rows_lib.select_final(group, axis="n_dense_active", metric="1-auc")
    source = _Source(group, study, selection, model, ladder, "n_dense_active", "1-auc")
    level = float(np.mean([source.value(row) for row in base]))
    gained = [row for row in selection.used if source.value(row) < level]
    if len(rows_lib.by_size(gained)) < 2 or ladder in rows_lib.TABLE_AXES:
        return
    points = source.points(gained)
    sigma = source.sigma(gained)
    fit = curve.fit(
        forms.GAIN_POWER,
        dataclasses.replace(points, x=points.x / 1e6, y=level - points.y),
        # Noise of ln Δ is σ/Δ: small gains weigh little.
        sigma=sigma if sigma is None else np.broadcast_to(sigma, len(gained)).copy(),
        num_replicates=options.num_replicates,
        seed=options.seed,
    )
    entry = _head(source, gained, (), "none")
    entry["id"] += "/gain"
    entry |= {"form": fit.form.name, "metric": "auc gain", "baseline": baseline}
    entry |= _described(fit) | {"baseline_auc": 1 - level, "held_out": []}
    entry |= {"identified": True, "preferred": fit.form.name}
    entry["warnings"] = [
        f"gains are over {baseline}: exponents over other baselines do not compare",
        "intervals leave out the noise of the baseline",
        *_common_warnings(fit),
    ]
    left = {id(row) for row in gained}
    entry["points"]["excluded"] += [
        _point(source, row) | {"reason": "no gain over the baseline"}
        for row in selection.used
        if id(row) not in left
    ]
    yield entry


def _slope_ratios(lines: dict[tuple[str, str, str, str], Fit]) -> list[Entry]:
    """Slopes of every two models along one axis, first over second."""
    found = []
    for (first, a), (second, b) in itertools.combinations(lines.items(), 2):
        if first[2:] != second[2:] or first[0] == second[0]:
            continue
        below = b.parameters()["b"]
        found.append(
            {
                "first": f"{first[0]}/{first[1]}",
                "second": f"{second[0]}/{second[1]}",
                "axis": first[2],
                "metric": first[3],
                "ratio": curve.slope_ratio(a, b).to_dict(),
                "defined": not below.p5 <= 0 <= below.p95,
            }
        )
    return found


def _noises(rows: Sequence[Row], metrics: Sequence[str]) -> list[Entry]:
    """The noise of every ladder and metric, and that of all ladders together."""
    found = []
    groups = {"/".join(key): group for key, group in _groups(rows).items()}
    for name, group in [("all", rows), *groups.items()]:
        for metric in metrics:
            split = rows_lib.final_split(group)
            measured = noise.measure(group, metric, split=split)
            if measured is not None:
                head = {"of": name, "metric": metric, "split": split}
                found.append(head | measured.to_dict())
    return found


def _plain(value: Any) -> Any:
    """Returns JSON of it, eight digits: strict readers refuse the word NaN."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.8g}") if math.isfinite(value) else None
    return value


def _lines(fits: dict[str, Any]) -> str:
    """JSON with a line for each part of a list: short, and still good to compare."""
    parts = []
    for key, value in fits.items():
        text = json.dumps(value, allow_nan=False, separators=_COMPACT)
        if isinstance(value, list) and value:
            rows = ",\n".join(
                json.dumps(each, allow_nan=False, separators=_COMPACT) for each in value
            )
            text = f"[\n{rows}\n]"
        parts.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def write(folder: pathlib.Path, fits: dict[str, Any]) -> pathlib.Path:
    """Writes `fits.json` and returns its path."""
    path = folder / FILE_NAME
    path.write_text(_lines(_plain(fits)) + "\n")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Fits a study and says what it found, a line a fit."""
    parser = argparse.ArgumentParser(
        prog="python -m scaling.fit",
        description="Fits scaling laws to the runs of a study: FOLDER/runs.jsonl -> "
        "FOLDER/fits.json. Then: python -m scaling.plot FOLDER, and scaling.report.",
    )
    parser.add_argument("folder", type=pathlib.Path, help="holds runs.jsonl")
    parser.add_argument(
        "--metrics",
        default=",".join(rows_lib.METRICS),
        help="comma-separated, of %(default)s (the default)",
    )
    parser.add_argument(
        "--replicates",
        type=int,
        default=curve.NUM_REPLICATES,
        help="of the bootstrap (%(default)s)",
    )
    parser.add_argument(
        "--baseline",
        default="",
        metavar="MODEL/LADDER/SIZE",
        help="also fit c·N^γ to AUC gains over it, to compare with published figures",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the bootstrap (%(default)s)"
    )
    flags = parser.parse_args(arguments)
    metrics = flags.metrics.split(",")
    for metric in metrics:
        if metric not in rows_lib.METRICS:
            parser.error(
                f"no metric {metric!r}; there are {', '.join(rows_lib.METRICS)}"
            )
    if flags.replicates < 1:
        parser.error(f"--replicates={flags.replicates}: intervals need 1 at least")
    try:
        rows = rows_lib.read(flags.folder)
    except FileNotFoundError as error:
        parser.error(str(error))
    sizes = sorted({"/".join(rows_lib.size_key(row)) for row in rows})
    if flags.baseline and flags.baseline not in sizes:
        parser.error(
            f"--baseline: no size {flags.baseline!r}; {suggest(flags.baseline, sizes)}"
        )
    fits = fit_study(
        rows,
        metrics=metrics,
        baseline=flags.baseline,
        options=Options(num_replicates=flags.replicates, seed=flags.seed),
    )
    path = write(flags.folder, fits)
    for entry in fits["fits"]:
        print(summary(entry))
    print(f"{len(fits['fits'])} fits in {path}")


def summary(entry: Entry) -> str:
    """Returns one line about a fit."""
    params = ", ".join(
        f"{name} {each['value']:.4g} [{each['p5']:.4g}, {each['p95']:.4g}]"
        for name, each in entry["params"].items()
        if name in ("E", "alpha", "beta", "gamma", "b")
    )
    verdict = "" if entry["identified"] else "; curvature not identified"
    return f"{entry['id']}: {entry['form'] or 'no fit'} {params}{verdict}"


if __name__ == "__main__":
    main()
