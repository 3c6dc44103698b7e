"""The report of the made-up study says what `fits.json` and the rows say."""

import html.parser
import re

import pytest

from scaling import blocks, findings, fit, report, synthetic


@pytest.fixture(scope="module")
def pages(written):
    return [(written / name).read_text() for name in ("report.md", "report.html")]


def _section(markdown, title):
    return markdown.partition(f"## {title}\n")[2].partition("\n## ")[0]


def _line(text, start):
    found = [line for line in text.splitlines() if line.startswith(start)]
    assert found, start
    return found[0]


def test_numbers_of_the_fits_stand_in_both_reports(pages, fits):
    for entry in fits["fits"]:
        e = entry["params"].get("E")
        assert e is not None
        text = f"{e['value']:.5f} [{e['p5']:.5f}, {e['p95']:.5f}]"
        for page in pages:
            assert entry["id"] in page and text in page


def test_held_out_check_shows_prediction_and_measurement(pages, fits):
    section = _section(pages[0], "Held-out check")
    for entry in fits["fits"]:
        for each in entry["held_out"]:
            for form in {"power_const", "loglinear", "chinchilla"} & set(each):
                said = each[form]
                line = (
                    f"| {form} | {said['pred']:.5f} | {said['lo']:.5f} to "
                    f"{said['hi']:.5f} | {each['observed']:.5f} ({each['seeds']}) | "
                    f"{'yes' if said['inside'] else 'no'} |"
                )
                assert line in section
    inside, total = map(int, re.search(r"(\d+) of (\d+) predictions", section).groups())
    assert inside == section.count("| yes |") and total - inside == section.count(
        "| no |"
    )


def test_oracle_is_compared_honestly(pages, fits):
    section = _section(pages[0], "Irreducible loss")
    wanted = [
        e
        for e in fits["fits"]
        if e["metric"] == "logloss" and e["axis"] != "flops_fwd_per_sample"
    ]
    assert len(wanted) == 8
    for entry in wanted:
        e = entry["params"]["E"]
        sentence = _line(section, f"- {entry['id']}: ")
        if e["p5"] <= 0.445 <= e["p95"]:
            assert "the interval holds the oracle's 0.44500" in sentence
            assert ("says little" in sentence) != entry["identified"]
        else:
            side = "above" if e["value"] > 0.445 else "below"
            assert f"{abs(e['value'] - 0.445):.5f} {side}" in sentence
    # A law of size at one amount of data cannot reach the oracle, and the report says so.
    (network,) = (
        e for e in wanted if e["id"] == "mlcc/channels/logloss/n_dense_active"
    )
    assert network["params"]["E"]["p5"] > 0.445
    sentence = _line(section, f"- {network['id']}: ")
    assert "does not replace data and tables" in sentence


def test_model_without_a_trend_is_told_so(pages):
    summary = pages[0].partition("\n## ")[0]
    line = _line(summary, "- **dnn, width**")
    assert "curvature not identified" in line
    doubts = _section(pages[0], "What would change the conclusion")
    assert "**dnn, width**: curvature not identified" in doubts


def test_edge_of_the_learning_rate_search_is_flagged(pages):
    line = _line(_section(pages[0], "Runs"), "| mlcc/channels/s0 | 0.0005")
    assert line.endswith("| 0.002 | yes |")
    doubts = _section(pages[0], "What would change the conclusion")
    assert "the best learning rate tried is the largest of 3, 0.002" in doubts


def test_runs_that_are_left_out_are_named(pages):
    section = _section(pages[0], "Runs")
    assert "| diverged | 1 | diverged |" in section
    assert "| incomplete | 1 | incomplete |" in section
    assert _line(section, "| held out | ")


def test_spending_is_ordered_by_gain(pages):
    section = _section(pages[0], "Where to spend next")
    first, second = (
        line for line in section.splitlines() if line.startswith(("| samples", "| n_d"))
    )
    assert first == (
        "| samples_seen | twice the data | -1.4e-03 | ×1 | – | ×2 | joint law |"
    )
    assert "| -1.5e-04 [-2.0e-04, -1.0e-04] | ×2 | ×1 | ×1 |" in second


def test_figures_are_embedded_in_the_page_and_linked_from_markdown(pages, study_folder):
    markdown, page = pages
    links = re.findall(r"\]\((figures/\w+\.png)\)", markdown)
    assert len(links) == 10
    for link in links:
        assert (study_folder / link).is_file()
    assert page.count("<svg") == 10
    assert not re.search(r'(?:src|href)="(?!#)', page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for name in ("iso_flop", "ladders", "sparse_vs_dense"):
        assert f"`{name}`" in markdown


def test_page_closes_what_it_opens(pages):
    stack = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag in ("div", "table", "figure", "svg", "ul", "main", "header", "g"):
                stack.append(tag)

        def handle_endtag(self, tag):
            if tag in ("div", "table", "figure", "svg", "ul", "main", "header", "g"):
                assert stack.pop() == tag

    reader = Reader()
    reader.feed(pages[1])
    assert not stack


def test_pages_end_cleanly(pages):
    for page in pages:
        assert page.endswith("\n") and not page.endswith("\n\n")
        assert not any(line != line.rstrip() for line in page.splitlines())
        assert "nan" not in page.lower().split()


def test_report_of_two_sizes_says_what_they_do_not_tell():
    rows = synthetic.rows(synthetic.Law(), sizes=[1e5, 1e6], seeds=2)
    fits = fit.fit_study(
        rows, metrics=["logloss"], options=fit.Options(num_replicates=10)
    )
    whole = findings.Findings(name="small", rows=rows, fits=fits)
    text = blocks.markdown("t", "f", list(report.content(whole, [], {}, None)))
    assert "No size was held out" in text
    assert "No law with a constant was fitted: it wants 4 sizes." in text
    assert "with fewer there is only a straight line to fit" in text
    assert "No joint law of size and data" in text


def test_report_without_spending_says_how_to_get_it(study_folder):
    found = report.content(findings.load(study_folder), [], {}, None)
    text = blocks.markdown("title", "facts", list(found))
    assert "No spend.json: `python -m scaling.spend`" in text


def test_command_wants_fits(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "no runs.jsonl" in capsys.readouterr().err
