from html import parser
import json
import re

from fake_run import write_run
import pytest

from rankax.observe.report import write_report


class Page(parser.HTMLParser):
    """Text, tags and addresses of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("href", "src", "xlink:href")]

    def handle_data(self, data):
        if self.tags[-1:] != ["style"]:
            self.text += data + " "


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quick start"
    return write_run(folder, curves=True, tasks=("ctr", "cvr"))


@pytest.fixture
def edited(run, tmp_path):
    """Writes the run again with parts of its files changed; returns the page."""

    def write(name, change):
        for path in run.iterdir():
            (tmp_path / path.name).write_text(path.read_text())
        tree = json.loads((tmp_path / name).read_text())
        change(tree)
        (tmp_path / name).write_text(json.dumps(tree))
        return write_report(tmp_path).read_text()

    return write


def test_page_needs_nothing_from_elsewhere(run):
    text = write_report(run).read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(address.startswith("#") for address in page.addresses)
    assert "url(http" not in text and "@import" not in text
    assert "prefers-color-scheme: dark" in text and "@media print" in text
    assert len(text) < 300_000


def test_page_says_what_the_run_reached(run):
    text = Page(write_report(run).read_text()).text
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    for task in ("ctr", "cvr"):
        for name in ("auc", "auc_low", "auc_high", "log_loss", "oracle_auc", "gauc"):
            assert f"{metrics[f'{task}/{name}']:.4f}" in text
        gap = metrics[f"{task}/oracle_auc"] - metrics[f"{task}/auc"]
        assert f"{gap:.4f} below the oracle" in text
    for words in (
        "quick start", "DCNv2 on synthetic_clicks", "81,250", "input wait 1.2%",
        "2:54", "1.23 M dense", "AMD EPYC 9B14", "23.5 GiB", "0.10.2", "step 2,400",
        "cvr: validation log loss", "ctr: calibration on the test split",
    ):  # fmt: skip
        assert words in text, words


def test_every_curve_is_there(run):
    page = Page(write_report(run).read_text())
    # loss, rate, throughput; AUC, log loss and calibration of both tasks
    assert page.tags.count("figure") == 3 + 2 * 3
    slices = json.loads((run / "result.json").read_text())["slices"]
    num_slices = sum(len(rows) for rows in slices.values())
    assert page.tags.count("svg") == page.tags.count("figure") + num_slices


def test_ids_inside_figures_do_not_clash(run):
    text = write_report(run).read_text()
    ids = re.findall(r' id="([^"]*)"', text)
    assert len(ids) == len(set(ids)) > 5
    used = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', text)
    assert {clip or mark for clip, mark in used} <= set(ids)


def test_changed_options_are_emphasised(run):
    text = write_report(run).read_text()
    assert "<b>0.002</b> <small>default 0.001</small>" in text
    assert "<b>cosine</b> <small>default constant</small>" in text
    assert "<td>0.999</tr>" in text  # b1 and the like keep their default


def test_text_of_the_run_is_escaped(edited):
    def change(result):
        result["dataset"] = "<script>alert(1)</script>"
        result["hardware"]["cpu"] = '<img src="http://x">'
        result["metrics"]["<i>ctr</i>/auc"] = 0.5

    text = edited("result.json", change)
    assert "<script" not in text and "<img" not in text and "<i>" not in text
    assert "&lt;script&gt;" in text
    text = edited(
        "config.json",
        lambda c: c["config"]["data"].update({"fields": ["<b onload=1>"]}),
    )
    assert "<b onload" not in text


def test_undefined_metrics_are_dashes_even_if_written_as_nan(edited):
    def change(result):
        result["calibration_table"] = {}
        result["metrics"] = {"ctr/auc": float("nan"), "ctr/gauc": None}
        result["best_validation"].update(value=None, step=0, metrics={})

    text = Page(edited("result.json", change)).text
    assert "the test split defines no AUC" in text and "oracle’s" not in text
    assert "–" in text and "nan" not in text.lower()


def test_slices_stand_worst_first_and_the_long_tail_is_folded(run):
    text = write_report(run).read_text()
    section = text[text.index("<h2>Slices") : text.index("<h2>Calibration")]
    assert text.index("<h2>Metrics") < text.index("<h2>Slices")
    result = json.loads((run / "result.json").read_text())
    for task, own in zip(("ctr", "cvr"), section.split("<h3>")[1:], strict=True):
        rows = result["slices"][task]
        large = [row for row in rows if not row["is_small"]]
        first, more, small = own.split("<details>")
        assert (first.count("<tr>") - 1, more.count("<tr>") - 1) == (
            15,
            len(large) - 15,
        )
        assert f"<summary>{len(large) - 15} more" in more
        assert "1 small: fewer than 100 examples, or 10 of a class" in small
        assert "draft" in small and "draft" not in first + more
        whole = result["metrics"][f"{task}/auc"]
        below = sum(row["auc_high"] < whole for row in large)
        assert f"{below} of {len(large)} lie" in first and below >= 2
        assert own.count("<td class=below>") == below
        assert own.count('fill="var(--second)"') == below
        worst = rows[0]
        share = worst["num_examples"] / result["metrics"][f"{task}/num_examples"]
        for shown in (
            f"{worst['num_examples']:,}", f"{share:.1%}", f"{worst['auc']:.4f}",
            f"{worst['positive_rate']:.4f}", f"{worst['normalized_entropy']:.4f}",
            f"{worst['calibration']:.4f}",
        ):  # fmt: skip
            assert f">{shown}<" in first, shown


def test_a_run_without_slices_has_no_such_section(edited):
    for empty in ({}, {"ctr": []}):
        text = edited("result.json", lambda r, empty=empty: r.update(slices=empty))
        assert "<table class=slices>" not in text
    text = edited("result.json", lambda r: r.pop("slices"))
    assert "<h2>Slices" not in text and "<h2>Calibration" in text


def test_undefined_slices_have_no_bar(edited):
    def change(result):
        row = result["slices"]["ctr"][-1]
        row.update(auc=None, auc_low=None, auc_high=None, calibration=None)
        result["slices"] = {"ctr": [row]}

    text = edited("result.json", change)
    assert "<td>–<td class=bar><td>" in text and "0 of 0 lie" not in text


def test_a_mean_that_selects_is_no_task(edited):
    def change(result):
        result["metrics"]["mean/ndcg@5"] = 0.1234
        result["metrics"]["ctr/hit_rate@5"] = 0.4321
        result["best_validation"]["metric"] = "mean/ndcg@5"
        result["best_validation"]["metrics"]["mean/ndcg@5"] = 0.2345

    text = edited("result.json", change)
    page = Page(text)
    assert "mean test AUC" not in page.text and "<b>mean</b>" not in text
    assert "NDCG@5" in page.text and "0.1234" in page.text and "0.2345" in page.text
    assert "hit rate@5" in page.text and "among the first 5" in page.text


def test_unfinished_run_has_no_page(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"result.json"):
        write_report(tmp_path)


def test_tables_show_what_was_asked_of_them(edited, run):
    assert "ids looked up" not in write_report(run).read_text()  # an older result

    def add_tables(result):
        user = {"looked_up": 4000, "unique": 1000, "out_of_vocabulary": 0}
        result["tables"] = {
            "train": {
                "embedding/<user>": {**user, "overflow_rounds": 3},
                "weight/city": {"looked_up": 0, "unique": 0, "out_of_vocabulary": 0},
            },
            "test": {"embedding/<user>": {**user, "out_of_vocabulary": 50}},
        }
        result["never_updated"] = {"embedding/<user>": 12345}

    text = Page(edited("result.json", add_tables)).text
    cells = (
        "embedding/<user> ",
        "4,000 ",
        "25.0% ",
        "0 ",
        "50 (1.25%) ",
        "3 ",
        "12,345",
    )
    assert "".join(cells) in text
    assert "weight/city 0 – – – – –" in text


def test_the_run_table_shows_what_the_run_cost(edited, run):
    assert "FLOP an example" not in write_report(run).read_text()  # an older result

    def add_costs(result):
        result["num_active_dense_parameters"] = 654_321
        result["flops_per_example"] = 2_469_134.25
        result["table_bytes_per_example"] = 1_500.4
        result["wire_bytes_per_step"] = 0.0
        result["mfu"] = 0.4123

    text = Page(edited("result.json", add_costs)).text
    for words in (
        "active dense parameters 654,321",
        "FLOP an example, forward 2,469,134",
        "bytes of table rows an example, training 1,500",
        "model FLOPs utilisation 41.2%",
    ):
        assert words in text, words
    assert "bytes a device sends" not in text  # one device
