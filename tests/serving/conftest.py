"""Trained runs on every kind of field, and their bundles."""

from every_kind import CARD, ROWS, arrow, columns, make_config
import numpy as np
import pyarrow as pa
import pytest

from rankax.data.dataset_writer import DatasetWriter
from rankax.export import export
from rankax.train import train


@pytest.fixture(scope="session")
def every_kind(tmp_path_factory):
    """A dataset folder."""
    folder, rng = tmp_path_factory.mktemp("every") / "kind", np.random.default_rng(0)
    with DatasetWriter(folder, rows_per_group=100) as writer:
        with writer.part(0) as part:
            for split, n in ROWS.items():
                table = arrow(columns(rng, n))
                for name in ("click", "buy"):
                    label = pa.array(rng.integers(0, 2, n).astype(np.int8))
                    table = table.append_column(name, label)
                part.write(split, table)
            part.finish({})
        writer.finish(CARD)
    return folder


@pytest.fixture(scope="session")
def linear_run(every_kind, tmp_path_factory):
    """(config, run folder, signature) of an exported LR, which a loop can follow."""
    folder = tmp_path_factory.mktemp("linear") / "run"
    config = make_config(every_kind, "lr")
    train(config, str(folder))
    return config, folder, export(config, str(folder))


@pytest.fixture(scope="session")
def deep_run(every_kind, tmp_path_factory):
    """(config, run folder, signature) of an exported DNN with a history."""
    folder = tmp_path_factory.mktemp("deep") / "run"
    config = make_config(every_kind, "dnn", embedding_dim=4, hidden_dims=(8,))
    train(config, str(folder))
    return config, folder, export(config, str(folder))
