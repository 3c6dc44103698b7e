"""The commands of docs/ do what the page says, and its numbers are the code's."""

import gzip
import itertools
import json
import math
import os
import pathlib
import pkgutil
import re
import shlex
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import kubernetes_validate
from made_up import shop
import numpy as np
import pytest
import yaml

from benchmarks import compile_matrix, contestants
from benchmarks import embedding as benchmark
from experiments import quickstart
from experiments.trillion import dcnv2
from rankax.config.base import ConfigError
from rankax.config.experiment import (
    ROW_DTYPES,
    ROW_OPTIMIZERS,
    DenseOptimizerConfig,
    SparseOptimizerConfig,
    TablesConfig,
    TableSpec,
)
from rankax.data import collisions
from rankax.embeddings import counters, optimizers, placement, routing, sizes
from rankax.embeddings.engine import TableEngine
from rankax.models import backbones, base  # noqa: F401
from rankax.observe import plan_screen
from rankax.optim.dense import NETWORK, TABLES, dense_optimizer
from rankax.parallel import mesh as meshes
from rankax.parallel import topology
from rankax.training import ahead_of_time, footprint
from tpu import gke, program, render, slices, slurm, tpu_vm

ROOT = pathlib.Path(__file__).parents[1]
EMBEDDINGS = (ROOT / "docs/embeddings.md").read_text()


def block(page: str, marker: str) -> str:
    """The fenced block under a marker of a page."""
    text = (ROOT / "docs" / page).read_text()
    found = re.search(rf"{re.escape(marker)}\n```\w*\n(.*?)```", text, flags=re.S)
    assert found, f"{page} has no block under {marker}"
    return found[1]


def table(page: str, marker: str) -> dict[str, dict[str, str]]:
    """The table under a marker: first cell -> title -> cell, without backticks."""
    text = (ROOT / "docs" / page).read_text().replace("`", "")
    found = re.search(rf"{re.escape(marker)}\n((?:\|.*\|\n)+)", text)
    assert found, f"{page} has no table under {marker}"
    titles, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in found[1].splitlines()
    ]
    return {line[0]: dict(zip(titles, line, strict=True)) for line in lines}


def run(command: str, folder: pathlib.Path) -> str:
    """Runs a page's command in a folder that looks like a checkout; returns stdout."""
    words = shlex.split(command)
    assigned = [word for word in words if re.match(r"[A-Z_]+=", word)]
    program, *arguments = words[len(assigned) :]
    assert program == "python"
    for name in ("rankax", "experiments", "data_pipelines", "tpu"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | dict(word.split("=", 1) for word in assigned),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


# ---------------------------------------------------------------- data.md


@pytest.mark.slow
def test_six_lines_lead_from_a_csv_to_two_compared_models(tmp_path):
    lines = block("data.md", "<!-- command: six lines -->")
    assert lines.count("\n") == 6
    shop.write(tmp_path / "shop.csv", num_rows=1_500)
    header = (tmp_path / "shop.csv").read_text().splitlines()[0]
    assert f"```csv\n{header}\n" in (ROOT / "docs/data.md").read_text()
    output = ""
    for command in lines.replace("\\\n", " ").splitlines():
        output = run(command, tmp_path)
    assert re.search(r"^shop-din +1 +0\.\d+", output, flags=re.M)
    folder = tmp_path / "runs/shop"
    assert "device" in (folder / "report.html").read_text()

    # And what embeddings.md says of a run folder.
    written = (folder / "metrics.jsonl").read_text().splitlines()
    logged = [x for x in map(json.loads, written) if x["split"] == "tables"]
    result = json.loads((folder / "result.json").read_text())
    assert result["tables"].keys() == {"train", "test"}
    for counts in result["tables"].values():
        for name, record in counts.items():
            assert f"{name}/unique_ratio" in logged[0]
            assert min(record["unique"], record["looked_up"]) > 0
    assert result["never_updated"] == {}
    assert "placed" in (folder / "tables.txt").read_text()


# ---------------------------------------------------------------- embeddings.md


def said(pattern: str) -> tuple[str, ...]:
    """What a pattern's groups find in the page."""
    found = re.search(pattern, EMBEDDINGS)
    assert found, f"embeddings.md does not say {pattern}"
    return found.groups()


def make_engine(**options):
    """Two tables by row and one replicated, on eight devices."""
    config = TablesConfig(num_shards=64, replicate_below_bytes=10_000, **options)
    rows = {"user": 3_000, "item": 5_000, "city": 20}
    plan = placement.plan_tables(
        [
            TableSpec(name=name, role="embedding", num_rows=n, dim=8)
            for name, n in rows.items()
        ],
        column_tables=tuple(rows),
        config=config,
        num_devices=8,
    )
    engine = TableEngine(plan, meshes.make_mesh(), optimizers.sgd(), config=config)
    ids = np.random.default_rng(0).integers(0, 20, (64, 3)).astype(np.int32)
    return engine, ids


def test_plan_is_printed_before_any_array_exists(tmp_path):
    snippet = block("embeddings.md", "<!-- file: plan.py -->")
    check = "import jax\nassert not jax.live_arrays()\n"
    (tmp_path / "plan.py").write_text(snippet + check)
    command = block("embeddings.md", "<!-- command: plan -->")
    shown = block("embeddings.md", "<!-- output: plan -->")
    assert shown.endswith("\n…\n")
    assert run(command, tmp_path).startswith(shown[: -len("…\n")])


def test_formula_of_the_page_places_every_row():
    formula = block("embeddings.md", "<!-- formula: place -->")
    engine, _ = make_engine()
    (group,) = engine.plan.groups
    for index, placed in enumerate(group.tables):
        k = np.arange(placed.spec.num_rows)
        names = {"k": k, "S": 64, "N": 8, "offset": placed.offset, "salt": placed.salt}
        exec(formula, names)
        rows = group.table_rows(index, k)
        assert (names["shard"] * group.depth + names["depth"] == rows).all()
        assert (names["device"] == rows // (group.num_rows // 8)).all()


def test_picture_shows_what_the_host_does():
    path = ROOT / "docs/embeddings.svg"
    assert f"]({path.name})" in EMBEDDINGS
    assert path.stat().st_size < 12_000
    drawing = ElementTree.parse(path)
    texts = [x.text for x in drawing.iter("{http://www.w3.org/2000/svg}text")]
    for device in range(2):
        start = texts.index(f"ids of device {device}") + 1
        ids = np.array(texts[start : start + 4], np.int32).reshape(2, 2)
        unique, slots = routing.deduplicate(ids)
        assert texts[start + 4 : start + 7] == [str(row) for row in unique]
        lines = texts[start + 7 : start + 9]
        assert lines == [" ".join(map(str, line)) for line in slots]


def test_exchange_has_the_size_that_the_page_says():
    assert "**C** = m + 6 · √m, rounded up to 8" in EMBEDDINGS
    for mean in (1, 10, 1_000):
        room = sizes.capacity(8 * mean, 10**6, num_devices=8, margin=6)
        assert room % 8 == 0
        assert 0 <= room - (mean + 6 * math.sqrt(mean)) < 8 + 1


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_exchange_moves_the_bytes_that_the_page_says(dtype):
    (formula,) = said(r"A device hands (.*) bytes to the exchange")
    engine, ids = make_engine(dtype=dtype)
    (group,) = engine.plan.groups

    def step(tables, routes):
        requests = engine.request(routes)
        rows = engine.lookup(tables, requests)
        zero = jnp.int32(0)
        return engine.update(
            tables,
            requests,
            rows,
            rows,
            learning_rate=zero,
            step=zero,
            enabled=zero > 0,
        )

    tables = jax.eval_shape(engine.init_tables, jax.random.key(0))
    program = jax.jit(step).lower(tables, engine.route(ids)).as_text()
    arrays = re.findall(r"all_to_all.*-> tensor<([\dx]+)x[a-z]+(\d+)>", program)
    assert len(arrays) == 4
    moved = sum(math.prod(map(int, n.split("x"))) * int(b) // 8 for n, b in arrays)
    names = {"N": 8, "D": 8, "b": 4 if dtype == "float32" else 2}
    names["C"] = engine.sizes.capacity(group, examples_per_device=len(ids) // 8)
    assert moved == eval(formula.replace("·", "*"), names)


def test_collisions_of_the_page_are_the_forecast():
    lines = table("embeddings.md", "<!-- table: collisions -->")
    assert list(lines) == ["0.1", "0.5", "1", "2"]
    for load, line in lines.items():
        expected = collisions.forecast(round(float(load) * 10**7), 10**7)
        assert line["rows lost per id"] == f"{100 * expected.lost:.1f} %"
        assert line["ids that share a row"] == f"{100 * expected.sharing:.1f} %"
    call = said(r"collisions\.rows_for\((\S+), (\S+)\)` is ([\d,]+)")
    assert collisions.rows_for(int(call[0]), float(call[1])) == int(
        call[2].replace(",", "")
    )


def test_row_optimizers_of_the_page_are_all_with_their_options_and_state():
    lines = table("embeddings.md", "<!-- table: optimizers -->")
    assert lines.keys() == ROW_OPTIMIZERS.keys()
    for name, line in lines.items():
        assert line["options"] == ", ".join(ROW_OPTIMIZERS[name])
        for option in set(ROW_OPTIMIZERS[name]) - {"initial_accumulator"}:
            assert option in line["u"]
        assert state_bytes(name, dim=16) == eval(
            line["state, bytes a row"].replace("·", "*"), {"D": 16}
        )


def state_bytes(name: str, *, dim: int) -> int:
    """Bytes of optimizer state of one row."""
    optimizer = optimizers.from_config(SparseOptimizerConfig(name=name))
    state = optimizer.init((1,), dim)
    return sum(x.size * x.dtype.itemsize for x in state.values())


def test_memory_of_the_page_is_what_would_be_allocated():
    lines = table("embeddings.md", "<!-- table: memory -->")
    assert lines.keys() == ROW_OPTIMIZERS.keys()
    specs = [TableSpec(name="x", role="embedding", num_rows=10**9, dim=16)]
    for name, line in lines.items():
        for dtype in ROW_DTYPES:
            config = TablesConfig(dtype=dtype)
            plan = placement.plan_tables(
                specs, column_tables=("x",), config=config, num_devices=8
            )
            engine = TableEngine(
                plan,
                meshes.make_mesh(),
                optimizers.from_config(SparseOptimizerConfig(name=name)),
                config=config,
            )
            arrays = jax.eval_shape(engine.init_tables, jax.random.key(0))
            size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
            assert line[dtype] == f"{size / 1e9:.0f}"


def test_replicated_tables_have_the_optimizer_that_the_page_says():
    assert "√(a + eps), a starts at 0.1" in EMBEDDINGS
    assert "AdamW's decay spares tables" in EMBEDDINGS
    params = {NETWORK: {"kernel": jnp.ones((2, 2))}, TABLES: {"x": jnp.ones((2, 2))}}

    def direction(gradient: float, **options) -> Any:
        optimizer = dense_optimizer(DenseOptimizerConfig(**options))
        gradients = jax.tree.map(lambda x: gradient * x, params)
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    got = direction(0.5, name="adagrad", eps=0.01)[TABLES]["x"]
    np.testing.assert_allclose(got, 0.5 / math.sqrt(0.1 + 0.25 + 0.01), rtol=1e-6)
    decayed = direction(0.0, name="adamw", weight_decay=0.1)
    assert (decayed[NETWORK]["kernel"] != 0).all()
    assert (decayed[TABLES]["x"] == 0).all()


def test_counters_of_the_page_are_those_of_the_code():
    lines = table("embeddings.md", "<!-- table: counters -->")
    by_row = {name for name, line in lines.items() if "by-row tables" in line["is"]}
    engine, ids = make_engine()
    routes = engine.route(ids)
    given = {"rounds": 1, "largest": 0, "capacity": 8}
    groups = {name: group | given for name, group in routes["groups"].items()}
    counts = counters.sum_over_devices({**routes, "groups": groups})
    total = counters.accumulate(None, jax.device_get(counts))
    summary = counters.summarize(engine.plan, total)
    found: dict[str, set[str]] = {}
    for key in counters.log_values(summary):
        _, name, counter = key.split("/")
        found.setdefault(name, set()).add(counter)
    assert found["user"] == lines.keys() - {"never_updated"}  # a line of its own
    assert found["city"] == lines.keys() - by_row


def test_names_and_defaults_of_the_page_exist():
    config = quickstart.get_config()
    options = re.findall(r"`((?:tables|optimizer)\.\w[\w.]*)`(?: = (\d+))?", EMBEDDINGS)
    assert len(options) > 10
    for name, default in options:
        if name == "tables.txt":
            continue
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        assert not default or value == float(default), name
    for name, value in re.findall(r'`tables\.(\w+) = "(\w+)"`', EMBEDDINGS):
        changed = quickstart.get_config()
        setattr(changed.tables, name, value)
        changed.validate()
    assert "6 is `tables.capacity_margin`" in EMBEDDINGS
    assert TablesConfig().capacity_margin == 6
    assert "`tables.replicate_below_bytes` (1 MiB" in EMBEDDINGS
    assert TablesConfig().replicate_below_bytes == 2**20
    assert "2^31 − 2^25 rows" in EMBEDDINGS
    assert placement.MAX_GROUP_ROWS == 2**31 - 2**25
    assert "64 rounds" in EMBEDDINGS
    assert routing.MAX_ROUNDS == 64
    (names,) = said(r"one number\s+per task \((.*)\)")
    with_weights = {
        name
        for name in base.registered()
        for spec in base.named_config(name).tables({"x": 5}, num_tasks=2)
        if (spec.role, spec.dim) == ("weight", 2)
    }
    assert set(names.lower().split(", ")) == with_weights
    for name in re.findall(r"`(rankax\.[\w.]+)", EMBEDDINGS):
        pkgutil.resolve_name(name)


def test_measured_times_of_the_page_are_those_of_the_results_file():
    path = ROOT / "benchmarks" / "results" / "embedding.json"
    runs = json.loads(path.read_text())["runs"]
    measured = {
        (x["dim"], x["batch_size"], x["rows"], x["contestant"]): x
        for run in runs
        for x in run["sections"].get("step", [])
    }
    _, *lines = EMBEDDINGS.split("<!-- table: measured -->")[1].strip().split("\n")
    rows = 0
    for line in itertools.takewhile(lambda line: line.startswith("| "), lines[1:]):
        dim, batch_size, num_rows, *cells = line.strip("| ").split(" | ")
        for contestant, cell in zip(contestants.CONTESTANTS, cells, strict=True):
            key = int(dim), int(batch_size), int(float(num_rows)), contestant
            record = measured.pop(key)
            if record["status"] == "ok":
                assert cell == f"{record['median_ms']:,.1f}", key
            else:
                assert cell == record["status"], key
        rows += 1
    assert rows >= 4 and not measured


def test_benchmark_of_the_page_is_a_command():
    marker = "<!-- measured: embedding -->"
    command = EMBEDDINGS.split(marker)[1].split("`")[1]
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", benchmark.__name__]
    assert benchmark.parse_arguments(words[3:]).json.name == "embedding.json"


# ---------------------------------------------------------------- launch.md


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder that looks like a checkout, with the files of the page."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    for name in ("claim.yaml", "commands.txt"):
        text = block("launch.md", f"<!-- file: {name} -->")
        (tmp_path / name).write_text(text)
    return tmp_path


def render_here(name: str) -> str:
    """Runs a command of the page, in this process; returns the file that it writes."""
    words = shlex.split(block("launch.md", f"<!-- command: {name} -->"))
    assert words[:3] == ["python", "-m", render.__name__]
    (out,) = [word for word in words if word.startswith("--out=")]
    render.main(words[3:])
    return pathlib.Path(out.removeprefix("--out=")).read_text()


def test_commands_of_the_page_write_what_it_says(checkout):
    files = {
        name: render_here(name)
        for name in ("tpu-vm", "gke", "gke-gpu", "slurm", "list", "list-gke")
    }
    assert files["slurm"] == block("launch.md", "<!-- output: slurm -->")
    kinds = {
        name: yaml.safe_load(files[name])["kind"]
        for name in ("gke", "gke-gpu", "list-gke")
    }
    assert kinds == {"gke": "JobSet", "gke-gpu": "JobSet", "list-gke": "Job"}
    page = (ROOT / "docs/launch.md").read_text()
    for action in re.findall(r"^bash ctr.sh (\w+)", page, flags=re.M):
        assert f"\n{action}() {{" in files["tpu-vm"]
    commands = (checkout / "commands.txt").read_text().splitlines()
    assert len(commands) == 2
    for name in ("list", "list-gke"):
        assert all(command in files[name] for command in commands)
    call = re.search(r"`tpu\.render\.array\((.*)\)`", page)
    assert call
    from_python = eval(
        f"render.array({call[1]})", {"render": render}, {"commands": commands}
    )
    assert from_python == files["list"]


def test_names_and_numbers_of_the_page_are_those_of_the_code():
    page = (ROOT / "docs/launch.md").read_text()
    first = page.split("**What has been tried.**")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", first, flags=re.M) == list(render.ROUTES)
    for name in re.findall(r"`((?:v\d\w|tpu7x|h100):[\dx]+)`", page):
        slices.parse(name)
    (listed,) = re.findall(
        r"number of GPUs \(([^)]*): `h100:16`", " ".join(page.split())
    )
    gpus = [kind for kind in topology.KINDS if kind != "cpu" and is_gpu(kind)]
    assert re.findall(r"`([\w-]+)`", listed) == gpus
    assert f"exit status {slurm.STOPPED} " in " ".join(page.split())
    assert f"a TPU VM ends after {tpu_vm.SPOT_SECONDS} s" in page
    assert f"a pod on GKE after {gke.SPOT_SECONDS} s" in page
    rate = program.SAVED_BYTES_PER_SECOND / 1e9
    flat = " ".join(page.split())
    assert f"at {rate:g} GB/s for each machine" in flat
    assert f"and {program.SECONDS_BESIDE_A_SAVE} s; at least" in flat
    assert (
        f"at least {program.MIN_GRACE_SECONDS} s, and {program.UNKNOWN_GRACE_SECONDS} s"
        in flat
    )
    for name in re.findall(r"`(tpu/test_\w+\.py)`", page):
        assert (ROOT / "tests" / name).exists()


def is_gpu(kind: str) -> bool:
    """Whether a number of them is a topology."""
    try:
        return slices.parse(f"{kind}:8").is_gpu
    except ConfigError:
        return False


def test_claim_of_the_page_is_one_that_kubernetes_takes(checkout):
    claim = yaml.safe_load((checkout / "claim.yaml").read_text())
    kubernetes_validate.validate(claim, "1.33", strict=True)
    assert (
        f"--volume=claim:{claim['metadata']['name']} "
        in (ROOT / "docs/launch.md").read_text()
    )


def test_the_compile_matrix_of_the_page_is_that_of_its_command():
    text, marker = EMBEDDINGS, "<!-- table: compile matrix -->\n"
    path = ROOT / "benchmarks" / "results" / "compile_matrix.json"
    cells = json.loads(path.read_text())["cells"]
    assert {(x["model"], x["topology"]) for x in cells} == set(compile_matrix.CELLS)
    assert text.split(marker)[1].startswith(f"{compile_matrix.table(cells)}\n\n")
    command = text.split("<!-- measured: compile matrix -->")[1].split("`")[1]
    assert command.split()[:3] == ["python", "-m", compile_matrix.__name__]


# ---------------------------------------------------------------- plan.md


@pytest.mark.slow
def test_a_plan_of_this_machine_takes_one_command(tmp_path):
    told = run(block("plan.md", "<!-- command: plan -->"), tmp_path)
    assert "cpu:8: 8 chips; compiled by XLA" in told
    assert "it fits cpu:8" in told


@pytest.mark.slow
def test_the_traced_steps_are_those_of_the_page(tmp_path):
    run(block("plan.md", "<!-- command: profile -->"), tmp_path)
    (path,) = tmp_path.glob("runs/profiled/profile/process_0/**/*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    numbers = [
        int(event["args"]["step_num"])
        for event in events
        if event.get("name") == "train" and "step_num" in event.get("args", {})
    ]
    assert sorted(numbers) == list(range(21, 31))


@pytest.mark.slow
def test_the_page_states_what_1e12_parameters_take_of_a_chip():
    """By formula, on 64 devices; the compiler's part is in the compile matrix."""
    config = dcnv2.get_config()
    config.data.source.path = str(ROOT / "experiments/trillion")
    where = topology.parse("v5p:4x4x4")
    pytest.importorskip("libtpu")
    steps = ahead_of_time.plan_steps(config, topology.devices(where))
    batch = steps.abstract_batch(config.train.batch_size)
    found = footprint.footprint(config, steps.schema, steps, batch)
    page = (ROOT / "docs/plan.md").read_text()
    count = steps.engine.plan.num_parameters
    assert count >= 1e12 and f"{count:,} table and" in page
    assert f"tables {plan_screen.size(found.table_bytes)}," in page
    largest = max(found.tables, key=lambda table: table.bytes_per_device)
    assert f"{plan_screen.size(largest.bytes_per_device)}  by row" in page
