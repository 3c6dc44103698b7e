"""`fits.json` of a made-up study whose laws are known."""

import json
import math
import pathlib

import made_up_study
import numpy as np
import pytest

from scaling import curve, fit, forms, synthetic
from scaling import rows as rows_lib

LAW = made_up_study.NETWORK
QUICK = fit.Options(num_replicates=40)


def _entry(fits, **where):
    where = {"model": "mlcc", "ladder": "channels", "axis": "n_dense_active"} | where
    found = fit.find(fits, **where)
    assert found is not None
    return found


def _truth(size):
    """Log loss of the network at the last checkpoint."""
    data = made_up_study.CHECKPOINTS[-1] / made_up_study.CHECKPOINTS[0]
    return float(LAW.loss(np.array(size / made_up_study.SIZES[0]), np.array(data)))


def test_every_ladder_and_metric_has_its_fits(fits):
    found = {(e["model"], e["ladder"], e["axis"], e["metric"]) for e in fits["fits"]}
    for metric in ("logloss", "1-auc"):
        for model, ladder in (("mlcc", "channels"), ("dnn", "width")):
            for axis in (
                "n_dense_active",
                "flops_fwd_per_sample",
                "samples_seen",
                "n_dense_active,samples_seen",
            ):
                assert (model, ladder, axis, metric) in found
        assert ("dnn", "rows", "table_rows", metric) in found
        assert ("dnn", "dim", "table_dim", metric) in found
    assert len({e["id"] for e in fits["fits"]}) == len(fits["fits"])


def test_planted_law_is_found(fits):
    entry = _entry(fits)
    assert entry["form"] == entry["preferred"] == "power_const"
    assert entry["identified"] and not entry["warnings"]
    alpha = entry["params"]["alpha"]
    assert alpha["p5"] < alpha["value"] < alpha["p95"]
    assert alpha["value"] == pytest.approx(LAW.alpha, abs=0.05)
    assert entry["sigma"] == pytest.approx(LAW.noise, rel=0.5)
    assert entry["delta"] == pytest.approx(2.5 * entry["sigma"] / 0.457, rel=0.01)
    assert entry["n_boot"] == 100 and entry["converged"]


def test_held_out_sizes_are_predicted_and_not_fitted(fits):
    entry = _entry(fits)
    assert entry["holding_out"] == "declared" and entry["num_sizes"] == 5
    assert "s5" not in {p["size_name"] for p in entry["points"]["used"]}
    first, second, again = entry["held_out"]
    assert (first["size_name"], first["without"]) == ("s5", None)
    assert (second["size_name"], second["without"]) == ("s4", "s4")
    assert (again["size_name"], again["without"]) == ("s5", "s4")
    truth = _truth(made_up_study.SIZES[-1])
    assert first["observed"] == pytest.approx(truth, abs=5e-5) and first["seeds"] == 3
    assert first["pred"] == pytest.approx(truth, abs=2e-4)
    assert first["lo"] < first["pred"] < first["hi"]
    assert first["inside"] == (first["lo"] <= first["observed"] <= first["hi"])
    # A straight line does not bend, and the held-out size shows it.
    assert not first["loglinear"]["inside"]
    assert entry["held_out_error"] < entry["loglinear"]["held_out_error"]
    errors = [abs(e["pred"] - e["observed"]) for e in entry["held_out"]]
    assert entry["held_out_error"] == pytest.approx(np.mean(errors), abs=1e-7)


def test_model_that_does_not_scale_has_no_trend(fits):
    entry = _entry(fits, model="dnn", ladder="width")
    assert not entry["identified"] and entry["preferred"] == "loglinear"
    assert any(w.startswith("curvature not identified") for w in entry["warnings"])
    slope = entry["loglinear"]["params"]["b"]
    assert abs(slope["value"]) < 1e-5


def test_unsound_runs_are_excluded_with_their_reason(fits):
    for axis in ("n_dense_active", "flops_fwd_per_sample"):
        points = _entry(fits, axis=axis)["points"]
        reasons = {p["run_id"]: p["reason"] for p in points["excluded"]}
        assert reasons["diverged"] == rows_lib.DIVERGED
        assert reasons["incomplete"] == rows_lib.INCOMPLETE
        assert reasons["search"] == reasons["lr0.001"] == rows_lib.LEARNING_RATE
        assert len(points["used"]) == 15
        assert max(p["y"] for p in points["used"]) < 0.47


def test_diverged_and_incomplete_runs_change_no_number():
    sound = synthetic.rows(LAW, sizes=made_up_study.SIZES, seeds=2)
    bad = [
        sound[-1] | {"run_id": name, "logloss": 3.0} | values
        for name, values in (
            ("a", {"diverged": True}),
            ("b", {"complete": False}),
            ("c", {"lr_stage": True}),
        )
    ]
    options = {"metrics": ["logloss"], "options": QUICK}
    clean = fit.fit_study(sound, **options)["fits"][0]
    spoiled = fit.fit_study([*bad, *sound], **options)["fits"][0]
    assert len(spoiled["points"]["excluded"]) == len(clean["points"]["excluded"]) + 3
    for name in ("params", "held_out", "loglinear", "delta", "sigma", "doubled"):
        assert clean[name] == spoiled[name]


def test_joint_law_finds_the_exponent_of_data(fits):
    entry = _entry(fits, axis="n_dense_active,samples_seen")
    assert entry["form"] == "chinchilla"
    beta = entry["params"]["beta"]["value"]
    assert beta == pytest.approx(LAW.beta, abs=0.01)
    (held,) = entry["held_out"]
    assert held["size_name"] == "s5" and held["x"][1] == made_up_study.CHECKPOINTS[-1]
    assert held["pred"] == pytest.approx(_truth(made_up_study.SIZES[-1]), abs=3e-4)
    # Twice the data, in closed form.
    ratio = made_up_study.CHECKPOINTS[-1] / made_up_study.CHECKPOINTS[0]
    gain = LAW.data_amount * ratio**-LAW.beta * (2**-LAW.beta - 1)
    assert entry["doubled_data"]["value"] == pytest.approx(gain, rel=0.02)
    assert entry["doubled_size"]["value"] < 0


def test_learning_curve_is_that_of_the_largest_fitted_size(fits):
    entry = _entry(fits, axis="samples_seen")
    assert entry["size_name"] == "s4"
    assert entry["params"]["alpha"]["value"] == pytest.approx(LAW.beta, abs=0.01)


def test_forecast_of_twice_the_largest_size(fits):
    entry = _entry(fits)
    doubled = entry["doubled"]
    largest = made_up_study.SIZES[-1]
    assert (doubled["from"], doubled["to"]) == (largest, 2 * largest)
    change = _truth(2 * largest) - _truth(largest)
    assert doubled["change"]["p5"] < doubled["change"]["value"] < 0
    assert doubled["change"]["value"] == pytest.approx(change, abs=8e-5)
    assert doubled["pred"]["value"] == pytest.approx(_truth(2 * largest), abs=2e-4)


def test_band_is_the_fitted_law(fits):
    entry = _entry(fits)
    p = {name: each["value"] for name, each in entry["params"].items()}
    x = np.array(entry["band"]["x"])
    assert x[0] == pytest.approx(made_up_study.SIZES[0])
    assert x[-1] == pytest.approx(2 * made_up_study.SIZES[-1])
    law = p["E"] + p["A"] * x ** -p["alpha"]
    np.testing.assert_allclose(entry["band"]["mid"], law, rtol=1e-5)
    assert (np.array(entry["band"]["lo"]) <= entry["band"]["hi"]).all()


def test_slope_ratio_names_both_ladders_and_doubts_a_flat_one(fits):
    (found,) = (
        r
        for r in fits["slope_ratios"]
        if (r["axis"], r["metric"]) == ("n_dense_active", "logloss")
    )
    assert (found["first"], found["second"]) == ("mlcc/channels", "dnn/width")
    flat = _entry(fits, model="dnn", ladder="width")["loglinear"]["params"]["b"]
    steep = _entry(fits)["loglinear"]["params"]["b"]
    assert found["ratio"]["value"] == pytest.approx(steep["value"] / flat["value"])
    assert found["defined"] == (not flat["p5"] <= 0 <= flat["p95"])


def test_noise_stands_beside_the_fits(fits):
    (found,) = (
        n
        for n in fits["noise"]
        if (n["of"], n["metric"]) == ("mlcc/channels", "logloss")
    )
    assert found["degrees_of_freedom"] == 12
    assert found["low"] < LAW.noise < found["high"]
    assert found["floor"] == 2 * found["sigma"]


def test_file_is_strict_json_of_short_lines(study_folder):
    def refuse(word):
        raise AssertionError(word)

    text = (study_folder / "fits.json").read_text()
    parsed = json.loads(text, parse_constant=refuse)
    assert text.endswith("}\n")
    assert text.count("\n") > len(parsed["fits"])


def test_two_sizes_get_a_line_and_say_what_is_missing():
    rows = synthetic.rows(LAW, sizes=[1e5, 1e6], seeds=2)
    entry = fit.fit_study(rows, metrics=["logloss"], options=QUICK)["fits"][0]
    assert entry["form"] == entry["preferred"] == "loglinear"
    assert not entry["identified"] and entry["held_out"] == []
    assert "no power law: it wants 4 sizes" in entry["warnings"]
    assert any(w.startswith("2 sizes over 1.0 decades") for w in entry["warnings"])


def test_one_size_gets_no_fit_and_no_error():
    rows = synthetic.rows(LAW, sizes=[1e5], seeds=2)
    entry = fit.fit_study(rows, metrics=["logloss"], options=QUICK)["fits"][0]
    assert entry["form"] is None and not entry["identified"]
    assert entry["warnings"] == [
        "no fit: 1 sizes, 2 points; a line needs 2 sizes and 3 points"
    ]


def test_one_seed_says_where_its_intervals_come_from():
    rows = synthetic.rows(LAW, sizes=made_up_study.SIZES, seeds=1)
    entry = fit.fit_study(rows, metrics=["logloss"], options=QUICK)["fits"][0]
    assert entry["holding_out"] == "largest"
    assert entry["sigma"] is None and entry["delta"] == curve.DEFAULT_DELTA
    assert any(w.startswith("noise not measured") for w in entry["warnings"])
    assert "intervals come from residuals: no size has two seeds" in entry["warnings"]


def test_gains_over_a_baseline_follow_their_power_law():
    # AUC = base + 0.003·(N / 1e6)^0.12: planted as a loss that only gains know.
    rows = synthetic.rows(synthetic.Law(noise=0), sizes=made_up_study.SIZES, seeds=1)
    for row in rows:
        row["auc"] = 0.75 + 0.003 * (row["n_dense_active"] / 1e6) ** 0.12
    base = synthetic.rows(synthetic.Law(), sizes=[1e5], seeds=1, model="lr")
    for row in base:
        row["auc"] = 0.75
    fits = fit.fit_study(
        [*rows, *base], metrics=["1-auc"], baseline="lr/width/s0", options=QUICK
    )
    (entry,) = (e for e in fits["fits"] if e["form"] == "gain_power")
    assert entry["params"]["gamma"]["value"] == pytest.approx(0.12, abs=1e-6)
    assert entry["params"]["c"]["value"] == pytest.approx(0.003, rel=1e-6)
    assert entry["baseline"] == "lr/width/s0"
    assert any("over other baselines" in w for w in entry["warnings"])
    with pytest.raises(ValueError, match="no finished run of the baseline 'x/y/z'"):
        fit.fit_study(rows, metrics=["1-auc"], baseline="x/y/z", options=QUICK)


def test_unequal_noise_weighs_points_and_equal_noise_does_not():
    rows = synthetic.rows(synthetic.Law(noise=0), sizes=made_up_study.SIZES, seeds=6)
    rng = np.random.default_rng(0)
    noisy = [
        r
        | {
            "logloss": r["logloss"]
            + rng.normal() * (1e-3 if r["size_name"] == "s0" else 1e-6)
        }
        for r in rows
    ]
    entry = fit.fit_study(noisy, metrics=["logloss"], options=QUICK)["fits"][0]
    alpha = entry["params"]["alpha"]["value"]
    assert alpha == pytest.approx(synthetic.Law().alpha, abs=0.01)
    points = entry["points"]["used"]
    x, y = ([p[name] for p in points] for name in ("x", "y"))
    equal = curve.fit(
        forms.POWER_CONST,
        curve.Points(x=np.array(x), y=np.array(y)),
        sigma=1.0,
        num_replicates=0,
    ).parameters()["alpha"]
    assert abs(equal.value - 0.12) > 2 * abs(alpha - 0.12)


@pytest.mark.slow
def test_held_out_interval_holds_what_is_measured_nine_times_in_ten():
    inside = []
    for trial in range(60):
        rows = synthetic.rows(
            synthetic.Law(), sizes=made_up_study.SIZES, held_out=1, seed=trial
        )
        rows = [r for r in rows if not (r["held_out"] and r["seed"])]  # one seed there
        options = fit.Options(num_replicates=100, seed=trial)
        fits = fit.fit_study(rows, metrics=["logloss"], options=options)
        first = fits["fits"][0]["held_out"][0]
        assert first["size_name"] == "s5" and first["seeds"] == 1
        inside.append(first["power_const"]["inside"])
    assert 0.78 <= np.mean(inside) <= 0.98


def test_command_refuses_what_it_does_not_know(tmp_path, capsys):
    study = str(pathlib.Path(fit.__file__).parent / "studies/kuairand")
    for arguments, message in (
        ([str(tmp_path)], "no runs.jsonl"),
        ([study, "--baseline=dnn/width/h46"], "no size 'dnn/width/h46'; did you mean"),
        ([str(tmp_path), "--metrics=ndcg"], "no metric 'ndcg'; there are logloss"),
        ([str(tmp_path), "--replicates=0"], "intervals need 1 at least"),
    ):
        with pytest.raises(SystemExit):
            fit.main(arguments)
        assert message in capsys.readouterr().err


def test_summary_says_what_was_found(fits):
    entry = _entry(fits)
    alpha = entry["params"]["alpha"]
    line = fit.summary(entry)
    assert line.startswith("mlcc/channels/logloss/n_dense_active: power_const")
    assert f"alpha {alpha['value']:.4g} [{alpha['p5']:.4g}, {alpha['p95']:.4g}]" in line
    assert math.isfinite(alpha["value"])
