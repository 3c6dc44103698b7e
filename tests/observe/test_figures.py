import numpy as np
import pytest
from scipy import stats

from rankax.metrics import auc, calibration
from rankax.observe import figures

LINES = [
    {"step": 100, "split": "train", "loss": 0.7, "input_wait": 0.0},
    {"step": 100, "split": "valid", "ctr/auc": 0.6, "ctr/oracle_auc": 0.9},
    {"step": 200, "split": "valid", "ctr/auc": None, "ctr/oracle_auc": 0.9},
    {"step": 300, "split": "valid", "ctr/auc": 0.5, "ctr/oracle_auc": 0.9},
    {"step": 300, "split": "valid", "ctr/auc": 0.8125, "ctr/oracle_auc": 0.9},
]


def test_figure_takes_its_colours_from_the_page():
    svg = figures.train_loss(LINES)
    assert svg.startswith("<svg viewBox=") and svg.endswith("</svg>")
    assert "var(--first)" in svg and "var(--muted)" in svg
    for foreign in ("#0", "http", "<style", "font-family", "black"):
        assert foreign not in svg


def test_best_checkpoint_and_oracle_are_marked():
    svg = figures.validation(LINES, "ctr/auc", best_step=300)
    assert ">0.8125<" in svg  # of two lines of one step the later one counts
    assert ">oracle 0.9000<" in svg
    assert "0.8125" not in figures.validation(LINES, "ctr/auc", best_step=0)


def test_same_run_gives_the_same_picture():
    pictures = {figures.validation(LINES, "ctr/auc", best_step=300) for _ in range(2)}
    assert len(pictures) == 1


def test_smoothing_keeps_a_constant_and_steps_over_gaps():
    np.testing.assert_allclose(figures.smoothed(np.full(50, 0.3)), 0.3)
    values = np.r_[0.3, np.nan, np.full(98, 0.3)]
    np.testing.assert_allclose(figures.smoothed(values), 0.3)
    # 100 values make a window of 5: weight 2 / (5 + 1) on the newest.
    ramp = figures.smoothed(np.arange(100.0))
    assert ramp[1] == pytest.approx((2 / 3 * 0 + 1) / (2 / 3 + 1))


@pytest.mark.parametrize("num", [2, 10])
def test_intervals_of_freshness_hold_the_truth_at_their_rate(num):
    """Of normal differences; 1.96 standard errors of 2 windows hold it at 70 %."""
    differences = np.random.default_rng(0).normal(-0.01, 0.02, (4_000, num))
    errors = differences.std(axis=1, ddof=1) / num**0.5
    rows = [{"difference_error": error, "windows": num} for error in errors]
    half = np.array([figures.freshness_half_width(row) for row in rows])
    covered = np.abs(differences.mean(axis=1) + 0.01) <= half
    assert covered.mean() == pytest.approx(0.95, abs=0.012)
    one = {"difference_error": None, "windows": 1}
    assert figures.freshness_half_width(one) is None


@pytest.mark.parametrize("clicks", [0, 3, 50])
def test_wilson_interval_equals_scipy(clicks):
    low, high = figures.wilson(np.array([clicks / 50]), np.array([50.0]))
    expected = stats.binomtest(clicks, 50).proportion_ci(method="wilson")
    assert low[0] == pytest.approx(expected.low, abs=1e-4)
    assert high[0] == pytest.approx(expected.high, abs=1e-4)


@pytest.mark.parametrize(
    "table",
    [
        [[0.1, 0.12, 50], [0.3, 0.25, 50]],
        [[0.001, 0.0, 5_000], [0.02, 0.03, 5_000], [0.4, 0.5, 5_000]],
        [[0.5, 1.0, 1]],
        [[0.1, 0.12, 50, 40], [0.3, 0.25, 50, 40]],
    ],
)
def test_calibration_of_any_rates_can_be_drawn(table):
    assert "mean predicted probability" in figures.calibration(table)


def test_intervals_of_calibration_are_as_wide_whatever_the_unit_of_weights():
    rng = np.random.default_rng(0)
    p = rng.uniform(0.02, 0.3, 2_000).astype(np.float32)
    label = rng.random(2_000) < p
    drawn = set()
    for weight in (1.0, 0.0625, 64.0):
        histogram = auc.AucHistogram()
        histogram.update(p, label, np.full(2_000, weight))
        drawn.add(figures.calibration(calibration.table(histogram)))
    assert len(drawn) == 1


def test_interval_bar_is_to_scale():
    svg = figures.interval_bar(
        0.7, (0.6, 0.8), whole=0.75, span=(0.5, 0.9), is_marked=False
    )
    # The scale runs from 5 to 195: 475 a unit.
    assert 'd="M52.5 8H147.5"' in svg and 'cx="100.0"' in svg
    assert 'd="M123.8 0V16"' in svg and "0.6000 to 0.8000" in svg
    assert "var(--first)" in svg and "var(--second)" not in svg
    marked = figures.interval_bar(
        0.7, (0.7, 0.7), whole=0.7, span=(0.7, 0.7), is_marked=True
    )
    assert "var(--second)" in marked and "nan" not in marked
