"""Figures of the made-up study: they exist, and their tables hold what the rows hold."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import made_up_study
import numpy as np
import pytest

from scaling import drawing, findings, fit, plot, synthetic


@pytest.fixture(scope="module")
def whole(study_folder):
    return findings.load(study_folder)


@pytest.fixture(scope="module")
def drawn(written):
    return written / "figures"


def _table(drawn, name):
    with (drawn / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def _finals(model, ladder):
    return [
        r
        for r in made_up_study.rows()
        if (r["model"], r["ladder"]) == (model, ladder)
        and r["final"]
        and r["split"] == "test"
        and r["complete"]
        and not r["diverged"]
        and not r["lr_stage"]
    ]


def test_all_figures_that_the_rows_allow_are_drawn(drawn):
    names = {path.stem for path in drawn.iterdir()}
    assert names == {
        "loss_vs_params",
        "auc_vs_params",
        "loss_vs_flops",
        "loss_vs_compute",
        "loss_vs_data",
        "reducible_loss",
        "throughput",
        "auc_vs_logloss",
        "table_rows",
        "table_dim",
    }
    for name in names:
        png = (drawn / f"{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG") and len(png) > 10_000
        svg = (drawn / f"{name}.svg").read_text()
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert not any(line != line.rstrip() for line in svg.splitlines())


def test_missing_figures_say_what_they_miss(whole):
    _, missing = plot.figures_of(whole)
    assert set(missing) == {"iso_flop", "ladders", "sparse_vs_dense"}
    assert "fewer than 3 budgets" in missing["iso_flop"]
    assert "mixture of experts" in missing["sparse_vs_dense"]


def test_table_of_loss_against_parameters_holds_the_means_of_the_rows(drawn, fits):
    table = _table(drawn, "loss_vs_params")
    assert len(table) == 12
    for model, ladder in (("mlcc", "channels"), ("dnn", "width")):
        finals = _finals(model, ladder)
        for line in (t for t in table if t["model"] == model):
            own = [r["logloss"] for r in finals if r["size_name"] == line["size_name"]]
            assert float(line["mean"]) == pytest.approx(np.mean(own), rel=1e-12)
            assert float(line["sd"]) == pytest.approx(np.std(own, ddof=1), rel=1e-9)
            assert int(line["seeds"]) == len(own) == 3
            assert line["held_out"] == str(line["size_name"] == "s5")
    entry = next(e for e in fits["fits"] if e["id"].endswith("logloss/n_dense_active"))
    p = {name: each["value"] for name, each in entry["params"].items()}
    for line in table[:6]:
        law = p["E"] + p["A"] * float(line["x"]) ** -p["alpha"]
        assert float(line["fit"]) == pytest.approx(law, abs=2e-6)


def test_table_of_table_rows_holds_loss_auc_and_collisions(drawn):
    finals = _finals("dnn", "rows")
    table = _table(drawn, "table_rows")
    assert [float(t["table_rows"]) for t in table] == [1e3, 4e3, 1.6e4, 6.4e4, 2.56e5]
    for line in table:
        own = [r for r in finals if r["size_name"] == line["size_name"]]
        assert float(line["logloss"]) == pytest.approx(
            np.mean([r["logloss"] for r in own])
        )
        assert float(line["auc"]) == pytest.approx(np.mean([r["auc"] for r in own]))
        assert float(line["collision_share"]) == own[0]["collision_share"]


def test_learning_curves_hold_all_checkpoints(drawn):
    table = _table(drawn, "loss_vs_data")
    assert len(table) == 2 * len(made_up_study.SIZES) * len(made_up_study.CHECKPOINTS)
    rows = [r for r in made_up_study.rows() if not r["lr_stage"]]
    line = next(t for t in table if t["size_name"] == "s3" and t["model"] == "mlcc")
    own = [
        r["logloss"]
        for r in rows
        if (r["model"], r["size_name"], r["split"]) == ("mlcc", "s3", "valid")
        and r["samples_seen"] == float(line["samples_seen"])
    ]
    assert float(line["logloss"]) == pytest.approx(np.mean(own))


def test_envelope_is_the_lowest_loss_so_far(drawn):
    table = _table(drawn, "loss_vs_compute")
    points = sorted((float(t["c_train"]), float(t["logloss"])) for t in table)
    lowest = np.minimum.accumulate([y for _, y in points])
    expected = {
        points[i] for i in range(len(points)) if i == 0 or lowest[i] < lowest[i - 1]
    }
    marked = {
        (float(t["c_train"]), float(t["logloss"]))
        for t in table
        if t["on_envelope"] == "True"
    }
    assert marked == expected and len(marked) > 2


def test_titles_tell_the_finding(whole, fits):
    figures = {figure.name: figure for figure in plot.figures_of(whole)[0]}
    entry = next(e for e in fits["fits"] if e["id"].endswith("logloss/n_dense_active"))
    slope = np.log(10) * entry["loglinear"]["params"]["b"]["value"]
    assert f"mlcc {slope:+.2g}" in figures["loss_vs_params"].title
    assert "dnn" in figures["loss_vs_params"].title
    losses = [r["logloss"] for r in _finals("dnn", "rows")]
    change = np.mean(losses[-3:]) - np.mean(losses[:3])
    assert f"log loss {change:+.4f}" in figures["table_rows"].title
    svg = drawing.inline(figures["loss_vs_params"])
    assert ">mlcc<" in svg and ">dnn<" in svg  # labels at the lines, no legend
    assert "active dense parameters" in svg and "log loss, nats" in svg


def test_inline_figure_takes_its_colours_from_the_page(whole):
    for figure in plot.figures_of(whole)[0]:
        svg = drawing.inline(figure)
        assert svg.startswith("<svg") and "var(--series-0)" in svg
        assert "#0404" not in svg and "http" not in svg
        assert figure.title[:20] not in svg  # the page says it


def test_iso_flop_minimum_is_where_the_law_puts_it():
    """L = E + a·N^-α + b·D^-β has, at D = C / 6N, its minimum in closed form."""
    law = synthetic.Law(
        size_amount=0.05, alpha=0.3, data_amount=0.05, beta=0.3, noise=0
    )
    sizes = np.geomspace(1e5, 1e7, 9).astype(int).tolist()
    checkpoints = np.geomspace(1e5, 1e8, 40).astype(int).tolist()
    rows = synthetic.rows(law, sizes=sizes, seeds=1, checkpoints=checkpoints)
    for row in rows:
        row["c_train"] = 6.0 * row["n_dense_active"] * row["samples_seen"]
    fits = {"fits": [], "noise": [], "slope_ratios": []}
    figures = plot.figures_of(findings.Findings(name="iso", rows=rows, fits=fits))[0]
    (figure,) = (f for f in figures if f.name == "iso_flop")
    minima = {t["c_train"]: t["minimum_at"] for t in figure.table}
    assert len(minima) >= 3
    inside = {c: m for c, m in minima.items() if m is not None}
    assert inside
    for compute, at in inside.items():
        # α a N₀^α N^-α = β b D₀^β D^-β with α = β and a = b: N / N₀ = D / D₀.
        best = np.sqrt(compute / 6 / checkpoints[0] * sizes[0])
        assert np.log(at / best) == pytest.approx(0, abs=0.25)


def test_points_that_are_short_of_data_are_open():
    rows = synthetic.rows(synthetic.Law(noise=0), sizes=[1e5, 1e6, 1e7], seeds=1)
    for row in rows:
        row["data_limited"] = row["size_name"] == "s2"
    fits = {"fits": [], "noise": [], "slope_ratios": []}
    figures = plot.figures_of(findings.Findings(name="open", rows=rows, fits=fits))[0]
    (figure,) = (f for f in figures if f.name == "loss_vs_params")
    flags = [line["data_limited"] for line in figure.table]
    assert flags == [False, False, True]
    assert "fill: none" in drawing.inline(figure).replace(
        "fill-opacity: 0", "fill: none"
    )


def test_command_draws_what_a_small_study_allows(tmp_path, capsys):
    rows = synthetic.rows(synthetic.Law(), sizes=[1e5, 1e6], seeds=1)
    for row in rows:
        row["samples_per_s"] = None
    (tmp_path / "runs.jsonl").write_text(
        "".join(json.dumps(row, default=float) + "\n" for row in rows)
    )
    fit.main([str(tmp_path), "--replicates=5", "--metrics=logloss"])
    plot.main([str(tmp_path)])
    said = capsys.readouterr().out
    assert "no throughput: no runs with examples per second" in said
    assert "no loss_vs_data: no run was read at two checkpoints" in said
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"loss_vs_params.png", "loss_vs_params.svg", "loss_vs_params.csv"} <= names


def test_command_wants_fits(tmp_path, capsys):
    made_up_study.write(tmp_path)
    with pytest.raises(SystemExit):
        plot.main([str(tmp_path)])
    assert "python -m scaling.fit" in capsys.readouterr().err
