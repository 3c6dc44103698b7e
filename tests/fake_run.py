"""Run folders as training leaves them, without training."""

import json
import pathlib

import numpy as np

from rankax.config.experiment import ExperimentConfig
from rankax.metrics.slices import SliceMetrics
from rankax.metrics.task_metrics import TaskMetrics
from rankax.observe.writers import MetricsWriter
from rankax.training.predictions import FILE_NAME, PredictionWriter


def config_dict(*, model="DCNv2Config", seed=0, **backbone):
    config = ExperimentConfig()
    config.train.seed = seed
    config.train.num_steps = 3_000
    config.optimizer.dense.learning_rate = 2e-3
    config.optimizer.schedule.warmup_steps = 200
    config.optimizer.schedule.decay = "cosine"
    tree = config.to_dict()
    tree["data"]["source"] = {"type": "SyntheticConfig", "num_examples": 1_000_000}
    tree["model"]["backbone"] = {"type": model, **backbone}
    return tree


def task_metrics(*, num, seed, noise, mean):
    """Metrics of a model that sees the true logits through noise."""
    rng = np.random.default_rng(seed)
    true_logits = rng.normal(mean, 1.1, num)
    truth = 1 / (1 + np.exp(-true_logits))
    state = TaskMetrics(exact_auc=False, has_group=True, has_true_probability=True)
    state.update(
        (true_logits + rng.normal(0, noise, num)).astype(np.float32),
        rng.random(num) < truth,
        np.ones(num),
        group=rng.integers(0, num // 25, num),
        true_probability=truth,
    )
    return state


def slice_rows(*, tasks, num, seed):
    """Slices of a model that is noisy in one tab and one hour, one tab all but empty."""
    rng = np.random.default_rng(seed)
    tab = rng.choice(4, num, p=(0.6, 0.3, 0.0995, 0.0005))
    hour = rng.integers(0, 24, num)
    noise = 0.3 + 0.9 * (tab == 2) + 0.9 * (hour == 4)
    true_logits = rng.normal(-1.5, 1.1, (num, len(tasks)))
    labels = rng.random((num, len(tasks))) < 1 / (1 + np.exp(-true_logits))
    state = SliceMetrics(tasks, {"tab": ("home", "search", "<b>", "draft"), "hour": ()})
    logits = true_logits + rng.normal(0, noise, (len(tasks), num)).T
    state.update(logits, labels, np.ones(num), np.stack([tab, hour], axis=1))
    return {task: [plain(row) for row in own] for task, own in state.result().items()}


def plain(values):
    return {
        k: None if isinstance(v, float) and np.isnan(v) else v
        for k, v in values.items()
    }


def write_run(
    folder,
    *,
    seed=0,
    model="DCNv2Config",
    auc=0.78,
    curves=False,
    tasks=("ctr",),
    **backbone,
) -> pathlib.Path:
    """Writes config.json, result.json and, with `curves`, metrics.jsonl."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = config_dict(model=model, seed=seed, **backbone)
    tree = {"hash": "0123456789ab", "config": config}
    (folder / "config.json").write_text(json.dumps(tree))
    metrics = {"ctr/auc": auc, "ctr/log_loss": 1 - auc, "ctr/calibration": 1.01}
    best = {
        "metric": "ctr/auc",
        "value": auc - 0.001,
        "step": 2_400,
        "metrics": metrics,
    }
    tables, slices = {}, {}
    if curves:
        slices = slice_rows(tasks=tasks, num=40_000, seed=5)
        best["metrics"] = write_curves(folder, tasks=tasks)
        best["value"] = best["metrics"]["ctr/auc"]
        metrics = {}
        for i, task in enumerate(tasks):
            state = task_metrics(num=40_000, seed=7 + i, noise=0.35, mean=-1.5 - i)
            metrics |= {f"{task}/{k}": v for k, v in plain(state.result()).items()}
            tables[task] = state.calibration_table()
    result = {
        "metrics": metrics,
        "best_validation": best,
        "step": 3_000,
        "epoch": 3.07,
        "examples_seen": 12_288_000,
        "examples_per_second": 81_250.4,
        "input_wait": 0.0124,
        "train_seconds": 151.2,
        "wall_seconds": 173.9,
        "seed": seed,
        "config_hash": "0123456789ab",
        "model": model,
        "dataset": "synthetic_clicks",
        "dataset_fingerprint": "fedcba987654",
        "num_dense_parameters": 1_234_567,
        "num_table_parameters": 16_000_000,
        "calibration_table": tables,
        "slices": slices,
        "versions": {"python": "3.11.7", "jax": "0.10.2", "rankax": "0.1.0"},
        "hardware": {
            "cpu": "AMD EPYC 9B14",
            "cpu_cores": 2,
            "memory_bytes": 25_276_510_208,
            "backend": "cpu",
            "device_kind": "cpu",
            "num_devices": 1,
            "num_processes": 1,
        },
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_predictions(
    folder, *, skill, seed=0, num=400, tasks=("ctr",), has_groups=True
):
    """Writes predictions.parquet and their metrics into a run of `write_run`.

    All runs see the same examples; those of a larger skill tell positives better.
    """
    folder = pathlib.Path(folder)
    examples, own = np.random.default_rng(11), np.random.default_rng(seed)
    labels = (examples.random((num, len(tasks))) < 0.3).astype(np.float32)
    noise = examples.normal(size=(num, 1)) + own.normal(0, 0.3, (num, len(tasks)))
    logits = (skill * labels + noise - 1).astype(np.float32)
    arrays = {"labels": labels, "weight": np.ones(num, np.float32)}
    if has_groups:
        arrays["group"] = examples.integers(0, num // 10, num)
    writer = PredictionWriter(folder / FILE_NAME, tasks)
    writer.write(logits, arrays)
    writer.close()
    result = json.loads((folder / "result.json").read_text())
    for t, task in enumerate(tasks):
        state = TaskMetrics(
            exact_auc=False, has_group=has_groups, has_true_probability=False
        )
        state.update(
            logits[:, t], labels[:, t], np.ones(num), group=arrays.get("group")
        )
        values = plain(state.result(interval=False))
        result["metrics"] |= {f"{task}/{name}": v for name, v in values.items()}
    (folder / "result.json").write_text(json.dumps(result))


def write_curves(folder, *, tasks):
    """Writes metrics.jsonl of 3,000 steps; returns the best validation's metrics."""
    rng = np.random.default_rng(0)
    writer = MetricsWriter(folder, tensorboard=False)
    best, best_auc = {}, 0.0
    for step in range(50, 3_001, 50):
        epoch = step / 977
        values = {
            "loss": 0.42 + 0.25 * np.exp(-step / 300) + rng.normal(0, 0.006),
            "learning_rate": 2e-3
            * min(step / 200, 0.5 + 0.5 * np.cos(step / 3_000 * np.pi)),
            "examples_per_second": 81_000
            + rng.normal(0, 1_500)
            - 30_000 * (step == 50),
            "input_wait": 0.012 + abs(rng.normal(0, 0.004)),
        }
        writer.write(step=step, split="train", epoch=epoch, values=values)
        if step % 300 == 0:
            values = {}
            for i, task in enumerate(tasks):
                noise = 0.35 + 1.2 * np.exp(-step / 500) + 1e-4 * max(step - 2_400, 0)
                state = task_metrics(num=20_000, seed=3, noise=noise, mean=-1.5 - i)
                result = state.result(interval=False)
                values |= {f"{task}/{k}": v for k, v in result.items()}
            writer.write(step=step, split="valid", epoch=epoch, values=values)
            if values[f"{tasks[0]}/auc"] > best_auc:
                best, best_auc = plain(values), values[f"{tasks[0]}/auc"]
    writer.close()
    return best
