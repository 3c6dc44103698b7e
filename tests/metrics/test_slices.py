import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rankax.metrics import binary
from rankax.metrics.slices import SliceMetrics, worst

COLUMNS = {"tab": ("home", "search", "draft"), "hour": ()}


def batches(num=6_000, size=1_000, seed=0):
    """Yields batches of two tasks, the last one padded with weight 0."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-1, 1.2, (num, 2))
    tab = rng.choice(3, num, p=(0.7, 0.29, 0.01))
    slices = np.stack([tab, rng.integers(-1, 4, num)], axis=1).astype(np.int32)
    columns = {
        "logits": truth + rng.normal(0, 0.3 + 2 * (tab == 1), (2, num)).T,
        "labels": rng.random((num, 2)) < 1 / (1 + np.exp(-truth)),
        "weight": rng.uniform(0.5, 2, num),
        "slices": slices,
    }
    for start in range(0, num, size):
        part = np.arange(start, start + size) % num
        batch = {
            name: values[part].astype(np.int32 if name == "slices" else np.float32)
            for name, values in columns.items()
        }
        batch["weight"][max(num - start, 0) :] = 0
        yield batch


def measured(parts):
    state = SliceMetrics(("ctr", "cvr"), COLUMNS)
    for part in parts:
        state.update(**part)
    return state


def real(num, parts):
    return {k: np.concatenate([p[k] for p in parts])[:num] for k in parts[0]}


def test_every_slice_equals_a_loop_over_values():
    parts = list(batches(5_500))
    columns = real(5_500, parts)
    result = measured(parts).result()
    for t, task in enumerate(("ctr", "cvr")):
        rows = {(row["slice"], row["value"]): row for row in result[task]}
        assert len(rows) == len(result[task]) == 3 + 5
        for g, (name, names) in enumerate(COLUMNS.items()):
            for value in np.unique(columns["slices"][:, g]):
                own = columns["slices"][:, g] == value
                row = rows[name, names[value] if names else str(value)]
                label = columns["labels"][own, t]
                logits = columns["logits"][own, t].astype(np.float64)
                weight = columns["weight"][own].astype(np.float64)
                p = 1 / (1 + np.exp(-logits))
                rate = weight @ label / weight.sum()
                loss = log_loss(label, p, sample_weight=weight)
                entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
                area = roc_auc_score(
                    label, binary.probability(logits), sample_weight=weight
                )
                expected = {
                    "num_examples": own.sum(),
                    "positive_rate": rate,
                    "auc": area,
                    "log_loss": loss,
                    "normalized_entropy": loss / entropy,
                    "calibration": weight @ p / (weight @ label),
                }
                assert {k: row[k] for k in expected} == pytest.approx(
                    expected, abs=1e-9
                )
                assert row["auc_low"] < row["auc"] < row["auc_high"]


def test_the_keys_are_a_promise():
    row = measured(batches()).result()["ctr"][0]
    assert list(row) == [
        "slice", "value", "num_examples", "positive_rate", "auc", "auc_low", "auc_high",
        "log_loss", "normalized_entropy", "calibration", "is_small",
    ]  # fmt: skip
    types = {type(value) for value in row.values()}
    assert types == {str, int, float, bool}


def test_the_worst_comes_first_and_small_slices_last():
    rows = measured(batches()).result()["ctr"]
    assert (rows[0]["slice"], rows[0]["value"]) == ("tab", "search")
    assert [row["is_small"] for row in rows] == [False] * 7 + [True]
    assert rows[-1]["value"] == "draft" and rows[-1]["num_examples"] < 100
    areas = [row["auc"] for row in rows[:-1]]
    assert areas == sorted(areas)


@pytest.mark.parametrize(
    ("num_examples", "num_positive", "is_small"),
    [(99, 50, True), (100, 10, False), (100, 9, True), (100, 91, True)],
)
def test_small_is_few_examples_or_few_of_a_class(num_examples, num_positive, is_small):
    label = (np.arange(num_examples) < num_positive)[:, None]
    state = SliceMetrics(("ctr",), {"all": ()})
    zeros = np.zeros((num_examples, 1))
    state.update(zeros, label, np.ones(num_examples), zeros.astype(np.int32))
    (row,) = state.result()["ctr"]
    assert row["is_small"] is is_small
    assert row["auc"] == 0.5


def test_merged_states_equal_one_pass():
    parts = list(batches())
    merged = measured(parts[:2])
    merged.merge(measured(parts[2:]))
    assert merged.result() == measured(parts).result()


def test_padding_counts_nowhere():
    part = next(batches())
    padded = {k: np.concatenate([v, v[:50]]) for k, v in part.items()}
    padded["weight"][-50:] = 0
    padded["slices"][-50:] = 2
    assert measured([padded]).result() == measured([part]).result()


def test_what_a_slice_does_not_define_is_nan():
    state = SliceMetrics(("ctr",), {"hour": ()})
    zeros = np.zeros((3, 1))
    state.update(zeros, zeros, np.ones(3), zeros.astype(np.int32))
    (row,) = state.result()["ctr"]
    undefined = [row[k] for k in ("auc", "auc_low", "auc_high", "calibration")]
    assert np.isnan([*undefined, row["normalized_entropy"]]).all()
    assert row["log_loss"] == pytest.approx(np.log(2))
    assert row["is_small"] and row["num_examples"] == 3


def test_without_examples_there_are_no_rows():
    assert measured([]).result() == {"ctr": [], "cvr": []}


def test_the_worst_slice_is_told_only_if_surely_below():
    def row(auc, high, *, small=False):
        return {"auc": auc, "auc_high": high, "is_small": small}

    rows = [
        row(0.60, 0.72),
        row(0.62, 0.64),
        row(0.63, 0.64),
        row(0.1, 0.2, small=True),
    ]
    assert worst(rows, 0.7) is rows[1]
    assert worst(rows, 0.64) is None
    assert worst([], 0.7) is None
