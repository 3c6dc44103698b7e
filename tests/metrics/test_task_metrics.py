import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from rankax.metrics import task_metrics
from rankax.metrics.task_metrics import TaskMetrics


def batches(num=10_000, size=1_024, seed=0):
    """Yields batches like the reader's: the last one padded with weight 0."""
    rng = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-rng.normal(-2, 1.2, num)))
    columns = {
        "logits": np.log(truth / (1 - truth)) + rng.normal(0, 0.7, num),
        "labels": (rng.random(num) < truth),
        "weight": rng.uniform(0.5, 2, num),
        "group": rng.integers(0, 400, num),
        "true_probability": truth,
    }
    for start in range(0, num, size):
        part = np.arange(start, start + size) % num
        batch = {
            name: values[part].astype(np.int64 if name == "group" else np.float32)
            for name, values in columns.items()
        }
        batch["weight"][max(num - start, 0) :] = 0
        yield batch


def measured(parts, *, exact_auc=False, drop=()):
    state = TaskMetrics(
        exact_auc=exact_auc,
        has_group="group" not in drop,
        has_true_probability="true_probability" not in drop,
    )
    for part in parts:
        state.update(**{k: v for k, v in part.items() if k not in drop})
    return state


def test_every_metric_equals_its_independent_value():
    parts = list(batches())
    result = measured(parts, exact_auc=True).result()
    real = {k: np.concatenate([p[k] for p in parts])[:10_000] for k in parts[0]}
    label, weight = real["labels"], real["weight"].astype(np.float64)
    p = 1 / (1 + np.exp(-real["logits"].astype(np.float64)))
    expected = {
        "auc": roc_auc_score(label, p, sample_weight=weight),
        "log_loss": log_loss(label, p, sample_weight=weight),
        "calibration": weight @ p / (weight @ label),
        "positive_rate": weight @ label / weight.sum(),
        "num_examples": 10_000,
        "oracle_auc": roc_auc_score(
            label, real["true_probability"], sample_weight=weight
        ),
        "oracle_log_loss": log_loss(
            label, real["true_probability"].astype(np.float64), sample_weight=weight
        ),
    }
    for name, value in expected.items():
        # The oracle is always binned; nobody needs its fifth decimal.
        error = 1e-5 if name == "oracle_auc" else 1e-7
        assert result[name] == pytest.approx(value, abs=error), name
    assert result["auc_low"] < result["auc"] < result["auc_high"]
    assert result["auc"] < result["oracle_auc"]
    assert result["gauc_groups"] + result["gauc_excluded_groups"] == 400


def test_keys_are_a_promise():
    always = {
        "auc", "auc_bound", "auc_low", "auc_high", "log_loss", "normalized_entropy",
        "calibration", "positive_rate", "num_examples",
    }  # fmt: skip
    group = {"gauc", "gauc_groups", "gauc_excluded_groups"}
    oracle = {"oracle_auc", "oracle_log_loss"}
    part = list(batches(1_000))
    assert measured(part).result().keys() == always | group | oracle
    bare = measured(part, drop=("group", "true_probability"))
    assert bare.result().keys() == always
    assert bare.result(interval=False).keys() == always - {"auc_low", "auc_high"}
    assert all(type(value) is float for value in measured(part).result().values())


def test_exact_auc_has_no_error_bound():
    parts = list(batches())
    exact = measured(parts, exact_auc=True).result()
    binned = measured(parts).result()
    assert exact["auc_bound"] == 0
    assert abs(exact["auc"] - binned["auc"]) <= binned["auc_bound"] < 1e-3
    assert exact["auc_low"] == binned["auc_low"]


@pytest.mark.parametrize("exact_auc", [False, True])
def test_merged_states_equal_one_pass(exact_auc):
    parts = list(batches())
    merged = measured(parts[:3], exact_auc=exact_auc)
    merged.merge(measured(parts[3:], exact_auc=exact_auc))
    whole = measured(parts, exact_auc=exact_auc)
    assert merged.result() == pytest.approx(whole.result(), abs=1e-10)
    np.testing.assert_allclose(merged.calibration_table(), whole.calibration_table())


def test_without_examples_all_is_nan():
    state = measured([])
    result = state.result()
    assert result["num_examples"] == 0
    assert np.isnan([result["auc"], result["gauc"], result["oracle_log_loss"]]).all()
    assert state.calibration_table() == []


def test_columns_must_be_those_announced():
    part = next(batches())
    state = TaskMetrics(exact_auc=False, has_group=True, has_true_probability=False)
    with pytest.raises(ValueError, match=r"group is missing, but .* has_group=True"):
        state.update(part["logits"], part["labels"], part["weight"])
    with pytest.raises(ValueError, match="true_probability is given"):
        state.update(**part)


def test_direction_of_a_metric():
    assert task_metrics.higher_is_better("ctr/auc")
    assert not task_metrics.higher_is_better("ctr/log_loss")
    with pytest.raises(ValueError, match=r"'ctr/log_los' .* did you mean 'log_loss'"):
        task_metrics.higher_is_better("ctr/log_los")


def test_ranking_metrics_are_those_of_the_groups():
    parts = list(batches())
    state = TaskMetrics(
        exact_auc=False, has_group=True, has_true_probability=True, top_k=3
    )
    for part in parts:
        state.update(**part)
    real = {k: np.concatenate([p[k] for p in parts])[:10_000] for k in parts[0]}
    hits = []
    for group in np.unique(real["group"]):
        own = real["group"] == group
        best_first = np.argsort(-real["logits"][own])
        labels = real["labels"][own][best_first]
        hits += [labels[:3].any()] if labels.any() else []
    result = state.result()
    assert result["hit_rate@3"] == pytest.approx(np.mean(hits), abs=1e-12)
    assert 0 < result["ndcg@3"] < result["hit_rate@3"]
    assert result.keys() - measured(parts).result().keys() == {"hit_rate@3", "ndcg@3"}
    empty = TaskMetrics(
        exact_auc=False, has_group=True, has_true_probability=False, top_k=3
    )
    assert np.isnan(empty.result()["hit_rate@3"])


def test_direction_of_ranking_metrics_needs_their_number():
    assert task_metrics.higher_is_better("next_item/ndcg@5")
    assert task_metrics.higher_is_better("mean/hit_rate@10")
    for wrong in ("ctr/ndcg", "ctr/ndcg@0", "ctr/ndcg@x"):
        with pytest.raises(ValueError, match="did you mean 'ndcg@K'"):
            task_metrics.higher_is_better(wrong)


def test_mean_over_tasks_is_there_if_it_selects():
    values = {"a/auc": 0.5, "b/auc": 0.7, "a/log_loss": 1.0, "b/log_loss": 2.0}
    mean = task_metrics.mean_over_tasks(values, "mean/auc", ("a", "b"))
    assert mean == {"mean/auc": pytest.approx(0.6)}
    assert task_metrics.mean_over_tasks(values, "a/auc", ("a", "b")) == {}
    assert task_metrics.mean_over_tasks(values, "", ("a", "b")) == {}
    undefined = values | {"a/auc": float("nan")}
    assert np.isnan(
        task_metrics.mean_over_tasks(undefined, "mean/auc", ("a", "b"))["mean/auc"]
    )
    of_a_task = task_metrics.mean_over_tasks(
        {"mean/auc": 0.5, "b/auc": 0.7}, "mean/auc", ("mean", "b")
    )
    assert of_a_task == {}
