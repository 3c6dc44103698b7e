"""Contestants of one benchmark train the same network, and numbers mean what they say."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import threading

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from benchmarks import (
    contestants,
    embedding,
    engine_alone,
    input_layouts,
    measure,
    models,
    peers,
    readers,
    serving_http,
    wire,
)
from benchmarks import input as reading
from benchmarks.contestants import CONTESTANTS
from benchmarks.input_layouts import LAYOUTS
from benchmarks.peers import Workload
from benchmarks.readers import READERS
from rankax.data import card, transforms
from rankax.data.schema import Schema
from rankax.models import ranker
from rankax.parallel import mesh as meshes

SMALL = Workload(
    num_fields=3, num_rows=200, batch_size=64, num_batches=2, hidden_dims=(8, 4)
)
WIDTH = SMALL.num_fields * SMALL.dim
NUM_PARAMETERS = (
    3 * (WIDTH * WIDTH + WIDTH) + (WIDTH * 8 + 8) + (8 * 4 + 4) + (WIDTH + 4 + 1)
)


# ---------------------------------------------------------------- benchmarks/peers.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    peers.write_examples(SMALL, folder)
    return folder


def build_peer(name, folder):
    pytest.importorskip({"rankax": "jax", "fbgemm": "fbgemm_gpu"}.get(name, "torch"))
    if name == "fuxictr":
        pytest.importorskip("fuxictr")
    if name != "rankax":  # threads that spin would disturb the other tests
        pytest.importorskip("torch").set_num_threads(1)
    return peers.CONTESTANTS[name].build(SMALL, folder)


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


@pytest.mark.parametrize("name", peers.CONTESTANTS)
def test_every_peer_trains_a_network_of_equal_size_and_learns(folder, name):
    program = build_peer(name, folder)
    losses = [float(program.step()) for _ in range(60)]
    program.finish()
    assert program.num_dense_parameters == NUM_PARAMETERS
    # Logits start near 0, and 128 examples are soon known by heart.
    assert losses[0] == pytest.approx(math.log(2), abs=0.02)
    assert np.mean(losses[-2:]) < np.mean(losses[:2]) - 0.02
    assert len(program.waits) == (60 if name == "rankax" else 0)


def test_the_network_of_the_peers_is_ours(folder):
    torch = pytest.importorskip("torch")
    config = peers.rankax_config(SMALL, folder, peers.backbone(SMALL))
    schema = Schema.select(card.load(folder))
    dims = {"embedding": SMALL.dim}
    ours = ranker.Ranker(config.model, schema, dims, rngs=nnx.Rngs(0))
    theirs = peers.torch_network(SMALL)
    cross, mlp = ours.backbone.cross, ours.backbone.mlp
    for layer, linear in zip(
        [*cross.layers, *mlp.linears, ours.head.linear],
        [x for x in theirs.modules() if isinstance(x, torch.nn.Linear)],
        strict=True,
    ):
        linear.weight.data = torch.tensor(np.array(layer.kernel[...]).T)
        linear.bias.data = torch.tensor(np.array(layer.bias[...]))
    x = np.random.default_rng(0).normal(size=(5, SMALL.num_fields, SMALL.dim))
    x = x.astype(np.float32)
    expected = theirs(torch.from_numpy(x).flatten(1)).detach().numpy()
    lengths, numeric = jnp.zeros((5, 0), jnp.int32), jnp.zeros((5, 0))
    found = ours({"embedding": jnp.asarray(x)}, lengths, numeric)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fuxictr_learns_as_pytorch_with_adam_does(folder):
    pytest.importorskip("fuxictr")
    torch = pytest.importorskip("torch")
    model = peers.fuxictr_model(SMALL)
    module = peers.torch_network(SMALL)
    layers = [
        [x for x in network.modules() if isinstance(x, torch.nn.Linear)]
        for network in (model, module)
    ]
    for theirs, ours in zip(*layers, strict=True):
        theirs.weight.data = ours.weight.data.clone()
        theirs.bias.data = ours.bias.data.clone()
    tables = [x for x in model.modules() if isinstance(x, torch.nn.Embedding)]
    table = torch.nn.Embedding.from_pretrained(
        torch.cat([x.weight.data for x in tables]), freeze=False
    )
    parameters = [table.weight, *module.parameters()]
    adam = torch.optim.Adam(parameters, lr=contestants.NETWORK_RATE)
    ids, labels = map(torch.from_numpy, peers.read_examples(SMALL, folder))
    offsets = torch.tensor([0, *SMALL.table_sizes()[:-1]]).cumsum(0)
    for step in range(6):
        rows, label = ids[step % 2], labels[step % 2]
        batch = {"ctr": label, **dict(zip(SMALL.fields, rows.T, strict=True))}
        found = model.train_step(batch).item()
        adam.zero_grad()
        logits = module(table(rows + offsets).flatten(1))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, peers.CLIP_NORM)
        adam.step()
        assert found == pytest.approx(loss.item(), rel=1e-5)


# ---------------------------------------------------------------- benchmarks/models.py


def record(name, rounds, *, rows=1000, threads=2, **more):
    """Of a contestant whose processor time is twice that of the clock."""
    wall = {"median_ms": float(np.median(rounds)), "min_ms": min(rounds)}
    wall["rounds_ms"] = rounds
    cpu = {f"cpu_{key}": np.multiply(2, value).tolist() for key, value in wall.items()}
    key = {"name": name, "rows": rows, "threads": threads, "status": "ok"}
    return {**key, **wall, **cpu, **more}


def test_times_are_compared_round_by_round_and_along_the_rows():
    records = [
        record("rankax", [10, 20, 10]),
        record("rankax", [11, 22, 11], rows=9000),
        record("fuxictr", [30, 30, 50]),
        record("fuxictr", [7, 7, 7], threads=1),
        record("rankax", [70, 7, 7], threads=1),
    ]
    found = [models.compare(x, records, "rankax") for x in records]
    assert found[0] == {"ratio": 1, "ratio_min": 1, "ratio_max": 1, "growth": 1}
    assert found[1]["growth"] == pytest.approx(1.1)
    assert found[2] == {"ratio": 3, "ratio_min": 1.5, "ratio_max": 5, "growth": 1}
    assert found[3] == {"ratio": 1, "ratio_min": 0.1, "ratio_max": 1, "growth": 1}
    assert "ratio" not in models.compare(records[2], records[2:3], "rankax")


@pytest.fixture
def models_command(tmp_path, monkeypatch):
    """Runs the benchmark with stand-ins for its trials; returns its JSON."""

    def run_alone(function, *arguments, num_threads=None):
        if function not in (models.run_peer, models.run_model):
            return function(*arguments)
        name, workload, folder, _ = arguments
        assert (folder / "dataset.json").exists()
        if name == "fbgemm":
            raise ModuleNotFoundError("No module named 'fbgemm_gpu'")
        seconds = (4 if name in ("fuxictr", "fm") else 2) * workload.num_rows / 1e6
        return {
            "times": measure.Times(wall=[seconds] * 4, cpu=[num_threads * seconds] * 4),
            "load": 99.0,
            "loss": 0.5,
            "input_wait": 0.01,
            "peak_mb": 3.0,
            "num_dense_parameters": sizes.get(name, 100),
            "num_active_dense_parameters": 100,
            "mflop_per_example": 5.0,
        }

    sizes = {}

    def run(flags):
        path = tmp_path / "models.json"
        line = f"models --fields 3 --batch_size 16 --json {path} {flags}"
        monkeypatch.setattr("sys.argv", line.split())
        models.main()
        return json.loads(path.read_text())

    monkeypatch.setattr(measure, "run_alone", run_alone)
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "GLIBC_TUNABLES"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back afterwards
    run.sizes = sizes
    return run


def test_command_compares_peers_and_names_the_missing(models_command, capsys):
    content = models_command(
        "--rows 1e3 2e3 --contestants rankax fbgemm fuxictr --rounds 2"
    )
    shown = capsys.readouterr()
    lines = [x for x in shown.out.splitlines() if x.startswith("| ")]
    assert len({line.count("|") for line in lines}) == 1
    title = models.CONTESTANTS["fuxictr"].title
    wall = f"| 1e+03 | {title} | 4,000 | 4 / 4 | 8 | 2.00 (2.00 - 2.00) | 1.00 | 3 |"
    cpu = f"| 2e+03 | {title} | 2,000 | 8 / 8 | 8 | 2.00 (2.00 - 2.00) | 2.00 | 3 |"
    assert any(line.startswith(wall) for line in lines)
    assert any(line.startswith(cpu) for line in lines)
    missing = [line for line in lines if "not installed: No module named" in line]
    assert len(missing) == 4
    assert "Not a quiet machine: load 99.0" in shown.out
    assert "1 thread, processor time:" in shown.out
    assert content["versions"]["jax"] == jax.__version__
    assert content["plan"]["rounds"] == 2
    assert len(content["records"]) == 2 * 2 * 3
    assert content["records"][0]["rounds_ms"] == [2, 2]


def test_command_tells_the_cost_of_models(models_command, capsys):
    content = models_command("--models fm dcnv2 --rows 1e3 --threads 2 --quick")
    shown = capsys.readouterr().out
    assert (
        "| 1e+03 | fm | 4,000 | 4 / 4 | 8 | 2.00 (2.00 - 2.00) | 5.00 | 20 |" in shown
    )
    assert content["plan"]["chunk_seconds"] == 0.5
    assert set(models.all_models()) >= {"lr", "fm", "dnn", "dcnv2", "mc_mlcc"}


def test_networks_of_unequal_size_are_no_comparison(models_command):
    models_command.sizes["fuxictr"] = 99
    with pytest.raises(SystemExit, match=r"the networks differ: .* \[99, 100\]"):
        models_command("--rows 1e3 --quick")


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--batch_size=40", "--batch_size=40 must be a multiple of 16"),
        ("--models fm --contestants rankax", "leave them out of --models"),
        ("--json=nowhere/a.json", "there is no folder nowhere"),
        ("--contestants tensorflow", "invalid choice: 'tensorflow'"),
    ],
)
def test_flags_of_models_that_cannot_be_used_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        models.parse_arguments(flags.split())
    assert message in capsys.readouterr().err


def test_a_model_is_measured_with_its_cost(folder):
    found = models.run_model("dnn", SMALL, folder, 0.0)
    widths = (WIDTH, 256, 128, 64, 1)
    expected = sum((a + 1) * b for a, b in itertools.pairwise(widths))
    assert found["num_dense_parameters"] == expected
    products = 2 * sum(a * b for a, b in itertools.pairwise(widths))
    assert found["mflop_per_example"] * 1e6 == pytest.approx(3 * products, rel=0.02)
    assert len(found["times"].wall) == 4
    assert 0 <= found["input_wait"] < 1


# ---------------------------------------------------------------- benchmarks/measure.py


def test_a_process_alone_returns_a_result_or_its_error():
    assert measure.run_alone(math.comb, 5, 2) == 10
    assert len(measure.run_alone(os.sched_getaffinity, 0, num_threads=1)) == 1
    with pytest.raises(ZeroDivisionError):
        measure.run_alone(eval, "1 / 0")


def test_memory_that_runs_out_is_a_memory_error_however_it_shows():
    with pytest.raises(MemoryError, match="killed"):
        measure.run_alone(eval, "__import__('os').kill(__import__('os').getpid(), 9)")
    with pytest.raises(MemoryError):
        measure.run_alone(np.ones, 10**15)
    with pytest.raises(MemoryError, match="RESOURCE_EXHAUSTED"):
        jax_says = "RuntimeError('RESOURCE_EXHAUSTED: no room')"
        measure.run_alone(exec, f"raise {jax_says}")


def test_peak_memory_is_the_own_process_not_its_parents():
    ballast = np.ones(50_000_000)  # 400 MB here
    assert measure.peak_memory_bytes() > ballast.nbytes
    assert 1e6 < measure.run_alone(measure.peak_memory_bytes) < 200e6


def test_warm_steps_fill_the_time_of_four_chunks():
    steps = []
    times = measure.time_warm(lambda: steps.append(1), lambda: None, 0.001)
    assert len(times.wall) == 4
    assert len(steps) % 4 == 1  # the first one tells how many fit
    assert len(steps) > 5
    slow = []
    measure.time_warm(lambda: slow.append(1), lambda: None, 0.0)
    assert len(slow) == 5


# ---------------------------------------------------------------- contestants of tables

TABLES = contestants.Workload(
    num_rows=26 * 40, dim=4, batch_size=256, num_batches=4, seed=3
)


def test_ids_follow_a_power_law_in_scattered_rows_of_every_field():
    workload = contestants.Workload(
        num_rows=26_000, dim=4, batch_size=4096, num_batches=2
    )
    ids, labels = workload.batches()
    assert ids.shape == (2, 4096, 26)
    assert ids.min() == 0
    assert ids.max() == 999
    assert 0.1 < labels.mean() < 0.5
    # Of density x^-1.05 on [1, 1001): ∫ from 1 to 2 over the whole.
    expected = (1 - 2**-0.05) / (1 - 1001**-0.05)
    shares = np.bincount(ids[..., 5].ravel(), minlength=1000) / 8192
    first, second = np.argsort(-shares)[:2]
    assert shares[first] == pytest.approx(expected, abs=0.02)
    assert abs(int(first) - int(second)) > 1
    assert (workload.batches()[0] == ids).all()


@pytest.fixture
def zero_tables(monkeypatch):
    """Contestants draw their own tables; from zero all of them start equal."""
    monkeypatch.setattr(contestants, "TABLE_BOUND", 0.0)


def losses_of(name):
    pytest.importorskip(CONTESTANTS[name].module)
    program = CONTESTANTS[name].build(TABLES)
    losses = [float(program.step()) for _ in range(8)]
    program.finish()
    return losses


@pytest.mark.parametrize("name", CONTESTANTS)
def test_every_contestant_starts_from_the_same_loss_and_learns(zero_tables, name):
    labels = TABLES.batches()[1][0]
    losses = losses_of(name)
    network = TABLES.network()  # of zeros: both biases are zero, so is every logit
    assert not np.any(network["bias_0"]) and not np.any(network["bias_1"])
    assert labels.shape == (256,)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert losses[-1] < losses[0] - 1e-3


@pytest.mark.parametrize(
    "name, same",
    [
        ("fbgemm", "rankax"),
        ("jax_adam", "torch_adam"),
        ("torch_fused_adam", "torch_adam"),
    ],
)
def test_contestants_with_one_update_rule_learn_the_same(zero_tables, name, same):
    np.testing.assert_allclose(losses_of(name), losses_of(same), rtol=1e-5)


def test_initial_tables_of_ours_are_uniform_within_the_bound():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    engine, init, _, _ = contestants.engine_program(TABLES, mesh)
    (group,) = engine.plan.groups
    rows = np.asarray(init()["tables"][group.name]["rows"]).reshape(-1, 4)
    used = rows[group.stack_rows(np.arange(40, dtype=np.int32)[:, None].repeat(26, 1))]
    assert np.abs(used).max() <= contestants.TABLE_BOUND
    assert used.std() == pytest.approx(contestants.TABLE_BOUND / math.sqrt(3), rel=0.05)


def test_memory_needed_is_that_of_the_arrays_a_step_holds():
    workload = contestants.Workload(num_rows=26_000, dim=16, batch_size=8)
    table = 26_000 * 16 * 4
    needed = {name: c.needed_bytes(workload) for name, c in CONTESTANTS.items()}
    assert needed["rankax"] == needed["fbgemm"] == table + 26_000 * 4
    assert needed["torch_sparse_adam"] == 3 * table
    assert needed["jax_adam"] == needed["torch_fused_adam"] == 4 * table


# ---------------------------------------------------------------- benchmarks/embedding.py


def test_cells_take_turns_and_a_killed_one_is_left_out(monkeypatch):
    calls = []

    def run_alone(function, *arguments, num_threads):
        calls.append(arguments[0])
        return function(*arguments)

    def run(name):
        if name == "large":
            raise MemoryError("the process was killed")
        seconds = 0.001 * len(calls)
        return {
            "times": measure.Times(wall=[seconds] * 2, cpu=[1.0]),
            "loss": len(calls),
        }

    monkeypatch.setattr(measure, "run_alone", run_alone)
    cells = {name: (run, name) for name in ("a", "large", "b")}
    results = measure.in_turn(cells, num_rounds=3)
    assert calls == ["a", "large", "b", "a", "b", "a", "b"]
    assert results["large"] == {"status": "does not fit: the process was killed"}
    assert results["a"]["status"] == "ok"
    assert results["a"]["chunks_ms"] == pytest.approx([1, 1, 4, 4, 6, 6])
    assert results["a"]["median_ms"] == pytest.approx(4)
    assert results["a"]["min_ms"] == pytest.approx(1)
    assert results["a"]["loss"] == 4


def test_a_contestant_beyond_the_memory_is_not_started(monkeypatch):
    started = []

    def run_alone(function, name, workload, chunk_seconds, **_):
        started.append(name)
        wall = [0.004 if name == "fbgemm" else 0.002]
        return {
            "times": measure.Times(wall=wall, cpu=[1.0]),
            "loss": 0.7,
            "peak_mb": 1.0,
        }

    monkeypatch.setattr(measure, "run_alone", run_alone)
    plan = embedding.Plan(
        rows=[26_000], dims=[16], batch_sizes=[8], rounds=2, memory_bytes=5_000_000
    )
    records = embedding.measure_step(plan)
    assert set(started) == {"rankax", "fbgemm"}
    by_name = {record["contestant"]: record for record in records}
    assert list(by_name) == list(CONTESTANTS)
    assert by_name["torch_adam"]["status"] == "does not fit: needs 0 GB"
    assert by_name["fbgemm"]["median_ratio"] == pytest.approx(2)
    lines = embedding.SECTIONS["step"].table(records).splitlines()
    assert lines[2].startswith(
        "| 16 | 8 | 3e+04 | rankax, row-wise Adagrad | 2.0 / 2.0"
    )
    assert "| 4.0 / 4.0 | 2.00 / 2.00 |  | 1 | 0.7000 |" in lines[3]
    assert "| does not fit: needs 0 GB |  |" in lines[4]
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("name", ["rankax", "torch_sparse_adam"])
def test_one_step_cell_measures_time_loss_and_memory(name):
    pytest.importorskip(CONTESTANTS[name].module)
    result = embedding.run_step(name, TABLES, 0.0)
    assert len(result["times"].wall) == 4
    assert 0.5 < result["loss"] < math.log(2)
    assert result["peak_mb"] > 50
    assert ("routing_ms" in result) == (name == "rankax")


def test_command_writes_tables_json_and_plot(tmp_path, monkeypatch, capsys):
    def run_alone(function, *arguments, **_):
        if function is measure.describe:
            return measure.describe()
        if function is embedding.run_step:
            times = measure.Times(wall=[0.002], cpu=[1.0])
            return {"times": times, "loss": 0.7, "load": 99.0, "peak_mb": 1.0}
        return function(*arguments)

    monkeypatch.setattr(measure, "run_alone", run_alone)
    path = tmp_path / "result.json"
    command = "embedding --quick --sections step init --contestants rankax jax_adam"
    monkeypatch.setattr(embedding, "QUICK", embedding.Plan(rounds=1, init_rows=2600))
    monkeypatch.setattr(
        "sys.argv", [*command.split(), "--rows", "1e3", "--json", str(path)]
    )
    embedding.main()
    shown = capsys.readouterr()
    assert "| 16 | 4096 | 1e+03 | rankax, row-wise Adagrad | 2.0 / 2.0 |" in shown.out
    assert "Not a quiet machine: load 99.0" in shown.out
    assert "round 1 of 1, jax_adam: 2.00 ms" in shown.err
    content = json.loads(path.read_text())
    assert content["plan"]["rows"] == [1000]
    assert content["versions"]["jax"] == jax.__version__
    assert len(content["sections"]["step"]) == 2 * 2 * 2
    (init,) = content["sections"]["init"]
    # 26 tables of 100 rows, rounded up to 1024 shards, and an accumulator a row.
    assert init["table_mb"] == pytest.approx(26 * 1024 * (64 + 1) * 4 / 1e6)
    assert (tmp_path / "result.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--rows 20", "--rows=20 is too few for 26 fields"),
        ("--rows 1.5", "1.5 is not a positive whole number"),
        ("--json nowhere/a.json", "there is no folder nowhere"),
        ("--contestants tensorflow", "invalid choice: 'tensorflow'"),
    ],
)
def test_flags_that_cannot_be_used_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        embedding.parse_arguments(flags.split())
    assert message in capsys.readouterr().err


def test_a_contestant_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "jax" or None)
    args = embedding.parse_arguments(["--contestants", "rankax", "fbgemm"])
    with pytest.raises(
        SystemExit, match=r"not installed: fbgemm; .*--contestants rankax"
    ):
        embedding.make_plan(args, memory_bytes=1)
    without = embedding.parse_arguments(["--sections", "host", "--batch_sizes", "64"])
    assert embedding.make_plan(without, memory_bytes=1).batch_sizes == [64]


# ---------------------------------------------------------------- parts of the engine


def test_parts_of_the_engine_are_timed(monkeypatch):
    monkeypatch.setattr(engine_alone, "UPDATED_ROWS", 500)
    small = engine_alone.time_update(10_000, 0.0)
    large = engine_alone.time_update(80_000, 0.0)
    assert len(small["times"].wall) == 4
    assert 0 < small["temporary_mb"] == large["temporary_mb"] < 1
    assert len(engine_alone.time_host(64, 0.0)["times"].wall) == 4


# ---------------------------------------------------------------- benchmarks/wire.py


def test_the_wire_reference_looks_up_and_updates_as_the_engine_does():
    mesh = meshes.make_mesh()
    engine, init, route, _ = contestants.engine_program(TABLES, mesh)
    (group,) = engine.plan.groups
    tables = init()["tables"]
    ids, labels = (x[0] for x in TABLES.batches())
    routes = route(ids, labels)["routes"]
    target = jnp.asarray(
        np.random.default_rng(0).normal(0, 0.1, (256, 26, 4)), jnp.float32
    )

    @jax.jit
    def ours(tables, routes):
        requests = engine.request(routes)
        rows = engine.lookup(tables, requests)
        embedded, back = jax.vjp(
            lambda rows: engine.embed({}, rows, requests)["embedding"], rows
        )
        new = engine.update(
            tables,
            requests,
            rows,
            back(target)[0],
            learning_rate=jnp.float32(0.1),
            step=jnp.int32(0),
            enabled=jnp.bool_(True),
        )
        return embedded, new[group.name]

    flat = {
        name: x.reshape(group.num_rows, *x.shape[2:])
        for name, x in tables[group.name].items()
    }
    rows = jnp.asarray(group.stack_rows(ids))
    embedded, new = ours(tables, routes)
    lookup = jax.jit(functools.partial(wire.reference_lookup, mesh))
    np.testing.assert_array_equal(lookup(flat["rows"], rows), embedded)
    update = functools.partial(
        wire.reference_update, mesh, contestants.row_optimizer(), learning_rate=0.1
    )
    moved = jax.jit(update)(flat, rows, target)
    assert np.any(moved["rows"] != flat["rows"])
    for name, x in moved.items():
        np.testing.assert_allclose(x, new[name].reshape(x.shape), rtol=0, atol=1e-5)


def test_bytes_of_the_wire_section_are_the_formula():
    n, fields, dim = 8, 26, 16
    workload = contestants.Workload(
        num_rows=26_000, dim=dim, batch_size=512, num_batches=1
    )
    found = wire.compare(workload, meshes.make_mesh())
    network = (fields * dim * 64 + 64 + 64 + 1) * 4
    assert found["network_mb"] == pytest.approx(2 * 7 / 8 * network / 1e6)
    ids, rows = 512 * fields * 4, 512 * fields * dim * 4
    reference = (n - 1) / n * (ids + 2 * rows) / 1e6 + found["network_mb"]
    assert found["reference_mb"] == pytest.approx(reference, rel=1e-3)
    assert found["engine_mb"] < found["reference_mb"] / 2


# ---------------------------------------------------------------- benchmarks/input.py

NUM_EXAMPLES = 5_000  # more than one batch, less than two


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Dataset folder and schema of every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    made = {}
    for name, layout in LAYOUTS.items():
        layout.write(name, NUM_EXAMPLES, folder / name)
        made[name] = folder / name, Schema.select(card.load(folder / name))
    return made


def rows_of_column(table, slot, schema):
    """All rows of a slot, example by example."""
    spec = schema.tables[slot.table]
    salt = transforms.table_salt(slot.table)
    for cell in table[slot.column].to_pylist():
        ids = cell if isinstance(cell, list) else [cell]
        if spec.ids == "hash":
            raw = np.array(ids, np.int64)
            ids = transforms.hash_rows(raw, num_rows=spec.num_rows, salt=salt).tolist()
        yield ids


@pytest.mark.parametrize("name", LAYOUTS)
def test_expected_totals_are_those_of_a_plain_loop(layouts, name):
    folder, schema = layouts[name]
    table = pa.concat_tables(readers.arrow(folder, schema, 0)()).slice(0, 300)
    labels = table["click"].to_pylist()
    slots = [list(rows_of_column(table, slot, schema)) for slot in schema.slots]
    assert readers.expected_totals(folder, schema, 300) == {
        "examples": 300,
        "ids": sum(sum(ids) for slot in slots for ids in slot),
        "numeric": sum(sum(table[f.name].to_pylist()) for f in schema.numeric),
        "labels": sum(labels),
        "positives": sum(x[0] * y for x, y in zip(slots[0], labels, strict=True)),
    }


@pytest.mark.parametrize(
    "layout, name",
    [(layout, name) for name, r in READERS.items() for layout in r.layouts],
)
def test_every_reader_reads_every_example_once(layouts, layout, name):
    pytest.importorskip(READERS[name].module)
    folder, schema = layouts[layout]
    expected = readers.expected_totals(folder, schema, NUM_EXAMPLES)
    if name == "torch_worker":  # forks, which a process that runs jax must not
        arguments = (name, folder, NUM_EXAMPLES, 0.0)
        trial = measure.run_alone(reading.run_reader, *arguments)
        assert trial["totals"] == expected
        return
    epoch = READERS[name].open(folder, schema, NUM_EXAMPLES)
    for _ in range(2):  # every epoch is a whole one
        assert readers.totals(epoch(), schema) == expected


def test_totals_notice_a_lost_example_and_labels_of_others(layouts):
    folder, schema = layouts["criteo"]
    (table,) = readers.arrow(folder, schema, 0)()
    expected = readers.totals([table], schema)
    assert readers.totals([table.slice(100), table.slice(0, 100)], schema) == expected
    assert readers.totals([table.slice(1)], schema) != expected
    turned = np.roll(table["click"].to_numpy(), 1)
    place = table.schema.get_field_index("click")
    found = readers.totals([table.set_column(place, "click", [turned])], schema)
    assert found.pop("positives") != expected["positives"]
    assert found.items() <= expected.items()


def test_routed_batches_hold_each_row_of_a_batch_once(layouts):
    folder, schema = layouts["criteo64"]
    batch = next(iter(READERS["rankax_routed"].open(folder, schema, 0)()))
    (route,) = batch["routes"]["groups"].values()
    distinct = sum(len(np.unique(column)) for column in batch["ids"].T)
    assert distinct < batch["ids"].size
    assert route["num_requests"].sum() == distinct


def test_examples_have_the_shape_that_the_layouts_promise(layouts):
    folder, schema = layouts["sequence"]
    (table,) = readers.arrow(folder, schema, 0)()
    lengths = [len(events) for events in table["past_item"].to_pylist()]
    assert lengths == [len(events) for events in table["past_category"].to_pylist()]
    assert (min(lengths), max(lengths)) == (0, input_layouts.MAX_EVENTS)
    assert np.mean(lengths) == pytest.approx(20, abs=1)
    assert 0.2 < np.mean(table["click"].to_numpy()) < 0.3
    folder, schema = layouts["criteo"]
    (table,) = readers.arrow(folder, schema, 0)()
    assert table.num_columns == 13 + 26 + 1
    shares = np.bincount(table["c25"].to_numpy()) / NUM_EXAMPLES
    # Of density x^-1.05 on [1, 1e6 + 1): ∫ from 1 to 2 over the whole.
    assert shares.max() == pytest.approx((1 - 2**-0.05) / (1 - 1e6**-0.05), abs=0.02)


def test_a_layout_is_written_again_only_when_it_differs(tmp_path):
    def inode():
        return (tmp_path / "criteo").stat().st_ino

    layout = LAYOUTS["criteo"]
    layout.write("criteo", 100, tmp_path / "criteo")
    before = inode()
    layout.write("criteo", 100, tmp_path / "criteo")
    assert inode() == before
    layout.write("criteo", 101, tmp_path / "criteo")
    assert card.load(tmp_path / "criteo").splits["train"].num_rows == 101


def test_processor_time_of_threads_and_children_counts():
    burn = "sum(range(10_000_000))"
    before = reading._cpu_seconds()
    subprocess.run([sys.executable, "-c", burn], check=True)
    child = reading._cpu_seconds() - before
    thread = threading.Thread(target=eval, args=(burn,))
    thread.start()
    thread.join()
    assert child > 0.05
    assert reading._cpu_seconds() - before - child > 0.05


def test_ratios_are_taken_round_by_round():
    def trials(*cpu_seconds):
        return [{"rows": 1_000_000, "cpu_s": s, "wall_s": 2 * s} for s in cpu_seconds]

    results = {
        "arrow": trials(0.1, 0.2, 0.1),
        "rankax": trials(0.2, 0.2, 0.4),
        "grain": trials(20, 40, 40),
    }
    records = [
        {"layout": "criteo", "reader": name, **reading.summarize(results, name)}
        for name in results
    ]
    assert records[1]["rows_per_cpu_second"] == pytest.approx(5e6)
    assert records[1]["rows_per_second"] == pytest.approx(2.5e6)
    assert records[1]["of_limit"] == pytest.approx(0.5)
    table = reading.table(records).splitlines()
    assert "| rankax, shuffled | 5.000 | 50.0% (25.0% - 100.0%) | 1.00 |" in table[3]
    assert "| 0.025 | 0.5% (0.2% - 0.5%) | 100.00 | 0.013 |" in table[4]
    alone = reading.summarize({"grain": results["grain"]}, "grain")
    table = reading.table([{"layout": "criteo", "reader": "grain", **alone}])
    assert "| 0.025 |  |  | 0.013 |" in table


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the benchmark on few examples, in this process."""

    def run(flags):
        path = tmp_path / "result.json"
        line = f"input --quick --json {path} --folder {tmp_path / 'data'} {flags}"
        monkeypatch.setattr("sys.argv", line.split())
        reading.main()
        return json.loads(path.read_text())

    few = dataclasses.replace(LAYOUTS["criteo"], num_quick_rows=500)
    monkeypatch.setitem(LAYOUTS, "criteo", few)
    monkeypatch.setattr(measure, "run_alone", lambda f, *args: f(*args))
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    return run


def test_command_reads_and_writes_table_and_json(command, capsys):
    content = command("--layouts=criteo --readers=arrow,rankax_in_order --rounds=1")
    shown = capsys.readouterr()
    assert "| criteo | Arrow decode alone |" in shown.out
    assert "| criteo | rankax, in order |" in shown.out
    assert "criteo, round 1 of 1: arrow " in shown.err
    assert content["versions"]["pyarrow"] == pa.__version__
    ours = content["reading"][1]
    (trial,) = ours["trials"]
    assert trial["cpu_s"] >= 0.3
    assert trial["totals"]["examples"] == 500
    assert ours["rows_per_cpu_second"] == trial["rows"] / trial["cpu_s"]


def test_a_reader_that_loses_examples_ends_the_benchmark(command, monkeypatch):
    def lossy(folder, schema, rows):
        epoch = readers.arrow(folder, schema, rows)
        return lambda: (table.slice(1) for table in epoch())

    reader = dataclasses.replace(READERS["dataset"], open=lossy)
    monkeypatch.setitem(READERS, "dataset", reader)
    with pytest.raises(SystemExit, match=r"packed, in order read .* 499.* expected "):
        command("--layouts=criteo --readers=dataset")


def test_training_tells_the_input_wait_of_the_run(command, monkeypatch, capsys):
    def run(arguments, **_):
        flags = dict(x.split("=", 1) for x in arguments if "=" in x)
        folder = pathlib.Path(flags["--workdir"])
        folder.mkdir()
        data = card.load(flags["--config.data.source.path"])
        assert data.splits["train"].num_rows == 500
        assert flags["--config.train.num_steps"] == "200"
        lines = [
            {"split": "train", "input_wait": 0.01},
            {"split": "train"},  # a window of one step has no time
            {"split": "valid", "input_wait": 0.9},
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
        result = {"examples_per_second": 1e4, "input_wait": 0.012}
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr("subprocess.run", run)
    content = command("--train")
    assert content["training"]["input_wait"] == 0.012
    assert content["training"]["input_waits"] == [0.01]
    expected = "200 steps: 10,000 examples/s, input-wait 1.20% (windows: 1.00%)"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--layouts=criteo,sequences", "'sequences' is unknown; did you mean"),
        ("--readers=tensorflow", "'tensorflow' is unknown"),
        ("--rounds=0", "--rounds=0 is not a positive number"),
        ("--json=nowhere/a.json", "there is no folder nowhere"),
        ("--train --readers=arrow", "--readers is not for --train"),
    ],
)
def test_input_flags_that_cannot_be_used_are_refused(flags, message, capsys):
    with pytest.raises(SystemExit):
        reading.parse_arguments(flags.split())
    assert message in capsys.readouterr().err


def test_a_reader_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name != "torch")
    with pytest.raises(SystemExit):
        reading.parse_arguments(["--readers=arrow,torch"])
    assert "what torch need; " in (error := capsys.readouterr().err)
    assert "--readers=arrow\n" in error


# ---------------------------------------------------------------- benchmarks/serving_http.py


@pytest.mark.slow
def test_http_is_measured_beside_the_scorer(tmp_path, monkeypatch, capsys):
    path = tmp_path / "serving_http.json"
    flags = ["--quick", "--rows=2e4", "--requests=3", f"--json={path}"]
    monkeypatch.setattr(sys, "argv", ["serving_http", *flags])
    serving_http.main()
    assert "| p50 - scorer, ms |" in capsys.readouterr().out
    content = json.loads(path.read_text())
    names = [record["contestant"] for record in content["latency"]]
    assert names == ["scorer", "text", "http"]
    assert all(0 < x["p50_ms"] <= x["p99_ms"] for x in content["latency"])
    load = content["load"]  # where wrk is
    assert [x["concurrency"] for x in load] == (
        [1, 4, 16] if shutil.which("wrk") else []
    )
    assert all(x["requests"] > 0 and x["errors"] == 0 for x in load)
