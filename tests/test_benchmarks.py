"""The contestants of `benchmarks/models.py` train the same network."""

import numpy as np
import pytest

from benchmarks import models
from benchmarks.models import Schedule, Workload

SMALL = Workload(
    num_fields=3, num_rows=200, batch_size=64, num_batches=2, hidden_dims=(8, 4)
)
SCHEDULE = Schedule(warmup_steps=1, num_chunks=2, steps_per_chunk=2)
WIDTH = SMALL.num_fields * SMALL.dim
NUM_PARAMETERS = (
    3 * (WIDTH * WIDTH + WIDTH) + (WIDTH * 8 + 8) + (8 * 4 + 4) + (WIDTH + 4 + 1)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    models.write_examples(SMALL, folder)
    return folder


def test_examples_are_skewed_ids_within_their_tables_and_depend_on_the_seed():
    workload = Workload(num_batches=1)
    sizes = workload.table_sizes()
    assert sum(sizes) == workload.num_rows
    ids, labels = workload.examples()
    assert ids.min() == 0
    assert (ids < np.array(sizes)).all()
    assert 0.1 < labels.mean() < 0.5
    # The share of the first id is ∫₁² x⁻ᵃ dx / ∫₁ⁿ⁺¹ x⁻ᵃ dx, about 7 % here.
    grid = np.linspace(0, np.log(sizes[0] + 1), 100_001)
    density = np.exp(-0.05 * grid)  # of log x
    expected = density[grid < np.log(2)].sum() / density.sum()
    assert (ids[:, 0] == 0).mean() == pytest.approx(expected, abs=0.02)
    again, _ = workload.examples()
    assert (ids == again).all()
    other, _ = Workload(num_batches=1, seed=1).examples()
    assert (ids != other).any()


def test_rankax_trains_the_network_from_the_files(folder):
    trial = models.run_rankax(SMALL, folder, SCHEDULE)
    assert trial.num_dense_parameters == NUM_PARAMETERS
    assert len(trial.times.wall) == len(trial.times.cpu) == 2
    assert 0 <= trial.input_wait <= 1
    assert 0.4 < trial.loss < 0.9


@pytest.mark.parametrize("tables", ["adam", "fused_adam", "sparse_adam"])
def test_torch_trains_the_network_of_equal_size(folder, tables):
    pytest.importorskip("torch")  # the bench extra
    trial = models.run_torch(SMALL, folder, SCHEDULE, tables=tables)
    assert trial.num_dense_parameters == NUM_PARAMETERS
    assert 0.4 < trial.loss < 0.9


def test_table_shows_rates_and_ratios_to_torch_adam():
    def trial(seconds):
        return models.Trial(
            times=models.Times(wall=seconds, cpu=seconds),
            loss=0.5,
            num_dense_parameters=1,
            input_wait=0.01,
            version="",
        )

    results = {
        "rankax": [trial([0.1, 0.2]), trial([0.2, 0.3])],
        "torch_adam": [trial([0.4, 0.4]), trial([0.4, 0.6])],
    }
    line = models.round_line(0, results, 100)
    assert line.startswith("round 1: rankax 667/s (2.67×), torch_adam 250/s; load")
    table = models.markdown(
        {name: models.summarize(t, batch_size=100) for name, t in results.items()}
    ).splitlines()
    assert "| 500 | 2.00 / 4.00 | 200 / 100 | 200 | 1.0% |" in table[2]
    assert "| 250 | 1.00 / 1.00 | 400 / 400 |" in table[3]
