"""A made-up study with every kind of row that a fit or a report meets."""

import json

import numpy as np

from scaling import synthetic

SIZES = np.geomspace(1e5, 3e7, 6).astype(int).tolist()
CHECKPOINTS = (100_000, 300_000, 1_000_000, 3_000_000)
NETWORK = synthetic.Law(data_amount=0.02, noise=2e-5)
FLAT = synthetic.Law(size_amount=0.0, data_amount=0.02, noise=2e-5)
TABLES = synthetic.Law(size_amount=0.02, alpha=0.4, noise=2e-5)

SPEND = [
    {
        "axis": "n_dense_active",
        "what": "channels of mlcc",
        "dlogloss": -1.5e-4,
        "lo": -2e-4,
        "hi": -1e-4,
        "factor_flops": 2.0,
        "factor_table_bytes": 1.0,
        "factor_data": 1.0,
        "note": "",
    },
    {
        "axis": "samples_seen",
        "what": "twice the data",
        "dlogloss": -1.4e-3,
        "lo": None,
        "hi": None,
        "factor_flops": 1.0,
        "factor_table_bytes": None,
        "factor_data": 2.0,
        "note": "joint law",
    },
]


def rows():
    """Two networks, two ladders of tables, a learning-rate search, three bad runs."""
    options = {"sizes": SIZES, "checkpoints": CHECKPOINTS, "held_out": 1}
    network = synthetic.rows(NETWORK, model="mlcc", ladder="channels", **options)
    flat = synthetic.rows(FLAT, model="dnn", ladder="width", seed=1, **options)
    by_rows = synthetic.rows(
        TABLES, sizes=[1000, 4000, 16_000, 64_000, 256_000], ladder="rows", seed=2
    )
    by_dim = synthetic.rows(TABLES, sizes=[4, 8, 16, 32], ladder="dim", seed=3)
    found = [*network, *flat, *by_rows, *by_dim]
    search = [
        network[0]
        | {"run_id": f"lr{rate}", "lr_stage": True, "lr_dense": rate}
        | {"split": "valid", "final": True, "logloss": loss, "seed": 0}
        for rate, loss in ((5e-4, 0.5), (1e-3, 0.49), (2e-3, 0.48))
    ]
    final = next(r for r in network if r["final"] and r["split"] == "test")
    bad = [
        final | {"run_id": "diverged", "diverged": True, "logloss": 5.0, "auc": 0.5},
        final | {"run_id": "incomplete", "complete": False, "logloss": 0.6},
        final | {"run_id": "search", "lr_stage": True, "logloss": 0.6},
    ]
    return json.loads(json.dumps([*found, *search, *bad], default=float))


def write(folder):
    """Writes `runs.jsonl` and `spend.json` of the study into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows())
    (folder / "runs.jsonl").write_text(text)
    (folder / "spend.json").write_text(json.dumps(SPEND))
