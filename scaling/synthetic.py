"""Rows of made-up runs whose law is known, for tests and for a look at the procedure.

    L(N, D) = E + A·(N / N₀)^-α + B·(D / D₀)^-β + noise of the run

with N₀ and D₀ the smallest size and checkpoint, so A and B are what the smallest size
and the first checkpoint lose. Other metrics follow the loss, with noise of their own.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from scaling.rows import Row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Constants of the law; the defaults are a CTR model's."""

    irreducible: float = 0.445
    size_amount: float = 0.006
    alpha: float = 0.12
    data_amount: float = 0.0
    beta: float = 0.25
    noise: float = 1e-4

    def loss(self, size: np.ndarray, data: np.ndarray) -> np.ndarray:
        """Returns the loss without noise of sizes / N₀ and examples / D₀."""
        of_size = self.size_amount * np.asarray(size, np.float64) ** -self.alpha
        of_data = self.data_amount * np.asarray(data, np.float64) ** -self.beta
        return self.irreducible + of_size + of_data


def rows(
    law: Law,
    *,
    sizes: Sequence[float],
    seeds: int = 3,
    checkpoints: Sequence[int] = (1_000_000,),
    model: str = "dnn",
    ladder: str = "width",
    held_out: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Returns rows like those of `runs.jsonl`.

    Args:
        law: the truth.
        sizes: dense parameters of each size, or table rows or dim of a table ladder.
        seeds: of every size; each seed's noise is the same at all its checkpoints.
        checkpoints: examples seen; the last one is read on the test split too.
        model: name.
        ladder: name; "rows" and "dim" scale tables, others the network.
        held_out: how many of the largest sizes are declared held out.
        seed: of the noise.
    """
    rng = np.random.default_rng(seed)
    found = []
    for index, size in enumerate(sizes):
        for run_seed in range(seeds):
            noise = law.noise * rng.standard_normal(2)
            for examples in checkpoints:
                final = examples == checkpoints[-1]
                for split in ("valid", "test") if final else ("valid",):
                    loss = law.loss(
                        np.array(size / sizes[0]), np.array(examples / checkpoints[0])
                    )
                    row = _row(model, ladder, index, size, run_seed, examples)
                    row |= _metrics(float(loss) + noise[0], noise[1])
                    row |= {"final": final, "split": split, "oracle_auc": 0.8}
                    row |= {"oracle_logloss": law.irreducible}
                    row["held_out"] = index >= len(sizes) - held_out
                    found.append(row)
    return found


def _row(
    model: str, ladder: str, index: int, size: float, seed: int, examples: int
) -> Row:
    is_table = ladder in ("rows", "dim")
    dense = 100_000 if is_table else int(size)
    table_rows = int(size) if ladder == "rows" else 50_000
    dim = int(size) if ladder == "dim" else 16
    flops = 2 * dense + 1_000
    return {
        "run_id": f"{model}-{ladder}-s{index}-{seed}",
        "study": "synthetic",
        "git_sha": "0" * 40,
        "config_hash": f"{model}{index}",
        "data_hash": "data",
        "eval_hash": "eval",
        "model": model,
        "ladder": ladder,
        "size_name": f"s{index}",
        "shape": {ladder: size},
        "n_dense_total": dense,
        "n_dense_active": dense,
        "n_table": table_rows * dim,
        "table_rows": table_rows,
        "table_dim": dim,
        "collision_share": 1 - math.exp(-40_000 / table_rows),
        "flops_fwd_per_sample": flops,
        "table_bytes_per_sample": 8 * dim * 10,
        "samples_seen": examples,
        "c_train": 3 * flops * examples,
        "seed": seed,
        "order_seed": 0,
        "lr_dense": 1e-3,
        "lr_sparse": 1e-2,
        "lr_stage": False,
        "batch": 1024,
        "dtype": "float32",
        "device": "cpu",
        "device_count": 1,
        "wall_s": examples * 1e-5,
        "samples_per_s": 3e10 / (flops + 1e5),
        "mfu": None,
        "diverged": False,
        "complete": True,
        "data_limited": False,
    }


def _metrics(loss: float, noise: float) -> Row:
    entropy = 0.56
    auc = 0.8 - 0.5 * (loss - 0.445) + 0.1 * noise
    return {
        "logloss": loss,
        "ne": loss / entropy,
        "auc": auc,
        "gauc": auc - 0.02,
        "calibration": 1.0,
        "progressive_logloss": None,
    }
