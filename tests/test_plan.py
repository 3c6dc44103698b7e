import dataclasses
import json
import os

from final_states import final_state
import jax
import pytest

from rankax import plan as planning
from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig, ParquetConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data import synthetic
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.observe import plan_screen
from rankax.parallel import topology as topologies
from rankax.train import train


def make_config(**options):
    config = ExperimentConfig()
    config.data.source = SyntheticConfig(num_train_rows=1024, rows_per_group=512)
    config.data.tasks = ("ctr",)
    config.model.backbone = named_config("dnn", hidden_dims=(16,))
    config.train.batch_size = 256
    config.train.num_steps = 1
    config.tables.replicate_below_bytes = 10_000
    for name, value in options.items():
        setattr(config.tables, name, value)
    return config


@pytest.fixture(autouse=True, scope="module")
def devices():
    """All eight, before a plan asks jax for fewer."""
    jax.devices()


@pytest.fixture(scope="module")
def gpus(tmp_path_factory):
    """(plan, its JSON, what was printed) of eight GPUs, with a price."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    found = planning.plan(
        make_config(), topology="h100:8", price_per_chip_hour=3.0, json_path=str(path)
    )
    return found, json.loads(path.read_text())


def test_a_plan_says_everything_and_json_says_the_same(gpus):
    found, saved = gpus
    assert saved == json.loads(json.dumps(found))
    assert found["source"].startswith("estimate")
    assert found["is_fitting"] and found["chips"] == 8
    memory = found["memory"]
    parts = ("tables", "dense", "batch", "temporaries", "padding", "code")
    assert memory["total"] == sum(memory[name] for name in parts)
    assert memory["tables"] == sum(t["bytes_per_chip"] for t in found["tables"])
    assert found["memory_bytes_per_chip"] == 80e9
    sent = sum(row["sent_bytes"] for row in found["collectives"])
    assert found["wire_bytes_per_step"] == pytest.approx(sent)
    assert {row["kind"] for row in found["collectives"]} == {"all-to-all", "all-reduce"}
    assert found["train_flops_per_example"] == 3 * found["flops_per_example"]


def test_cost_and_input_follow_from_the_forecast(gpus):
    found, _ = gpus
    most = found["forecast"]["most_examples_per_second"]
    hours = 1e9 / most / 3600 * 8
    assert found["forecast"]["chip_hours_per_billion"][0] == pytest.approx(hours)
    assert found["forecast"]["price_per_billion"][0] == pytest.approx(3 * hours)
    fed = found["input"]
    assert fed["hosts"] == 1
    assert fed["examples_per_second_per_host"] == most
    assert fed["bytes_per_second_per_host"] == pytest.approx(
        most * fed["bytes_per_example"]
    )


def test_the_screen_is_one_screen_and_names_what_matters(gpus):
    found, _ = gpus
    text = plan_screen.render(found)
    assert len(text.splitlines()) <= 45
    for part in ("h100:8: 8 chips; estimate", "site", "all-to-all", "examples/s",
                 "chip-hours", "it fits h100:8"):  # fmt: skip
        assert part in text


@pytest.mark.slow
def test_nothing_is_allocated(monkeypatch):
    """Tables of 2e9 rows each, more than a machine like this one has memory for."""
    config = make_config()
    config.model.backbone = named_config("lr")
    config.train.batch_size = 64
    card = synthetic.card(config.data.source)
    monkeypatch.setattr(
        planning.setup.sources, "load_card", lambda source: huge(card, 2_000_000_000)
    )
    found = planning.plan(config, topology="cpu:8")
    assert found["parameters"]["tables"] > 1e10
    assert found["memory"]["tables"] * 8 > 1e11


def huge(card, num_rows):
    tables = tuple(
        dataclasses.replace(table, num_rows=num_rows, ids="hash")
        for table in card.tables
    )
    return dataclasses.replace(card, tables=tables)


def test_what_does_not_fit_comes_with_what_to_change(monkeypatch, capsys):
    config = make_config()
    card = synthetic.card(config.data.source)
    monkeypatch.setattr(
        planning.setup.sources, "load_card", lambda source: huge(card, 100_000_000)
    )
    found = planning.plan(config, topology="h100:1")
    assert not found["is_fitting"]
    assert "tables and weights alone do not fit" in found["source"]
    told = capsys.readouterr().out
    assert "it does not fit h100:1" in told
    assert "tables.dtype = 'bfloat16'" in told
    assert "--plan.topology=h100:" in told


def test_a_gpu_of_which_jax_takes_too_little_by_default_is_told(gpus):
    found, _ = gpus
    assert "MEM_FRACTION" not in plan_screen.render(found)
    large = {**found, "memory": {**found["memory"], "total": 61e9}}  # of 80
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in plan_screen.render(large)
    on_tpu = {**large, "device_kind": "TPU v5"}
    assert "MEM_FRACTION" not in plan_screen.render(on_tpu)


def test_speed_and_cost_are_those_of_a_run_that_fits(gpus):
    found, _ = gpus
    text = plan_screen.render(found)
    assert "epoch: 1,024 examples, 0.0 s to 0.0 s" in text
    hour = 3600 * found["forecast"]["most_examples_per_second"]
    assert " examples, 60 min to" in plan_screen.render(
        {**found, "train_rows": int(hour)}
    )
    assert "cost: 0.00 " not in text  # 1e9 examples of a tiny network
    large = {**found, "is_fitting": False, "advice": []}
    for part in ("forecast", "input", "cost", "epoch"):
        assert f"\n{part}: " in text
        assert f"\n{part}: " not in plan_screen.render(large)


def test_a_checkpoint_is_what_a_save_writes(gpus, tmp_path):
    found, _ = gpus
    config = make_config()
    config.data.source.num_valid_rows = 256
    config.eval.batch_size = 256
    config.eval.test = False
    train(config, str(tmp_path / "run"))
    _, state, _ = final_state(config, tmp_path / "run")
    assert found["checkpoint_bytes"] == sum(x.nbytes for x in jax.tree.leaves(state))


def test_simulated_devices_share_the_memory_of_this_machine(monkeypatch):
    memory = planning.environment.hardware()["memory_bytes"]
    found = planning.plan(make_config(), topology="cpu:8")
    assert found["memory_bytes_per_chip"] == memory / 8
    assert "of this machine's memory" in plan_screen.render(found)
    monkeypatch.setattr(
        planning.environment, "hardware", lambda: {"memory_bytes": 800_000}
    )
    assert not planning.plan(make_config(), topology="cpu:8")["is_fitting"]


def test_a_file_that_cannot_be_written_is_told_before_anything_is_compiled(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(planning, "_draft", None)
    with pytest.raises(ConfigError, match=r"there is no folder .*/missing"):
        planning.plan(
            make_config(),
            topology="cpu:8",
            json_path=str(tmp_path / "missing" / "plan.json"),
        )


def advice_for(topology, *, optimizer="rowwise_adagrad", dim=16, room=5e9):
    """What is advised of 1e9 rows of 16 numbers on eight chips."""
    config = make_config()
    config.optimizer.sparse.name = optimizer
    state = {"rowwise_adagrad": 4, "lazy_adam": 8 * dim}[optimizer]
    rows = 10**9 // 8 * (4 * dim + state)
    memory = {"total": rows, "temporaries": 0, "padding": 0}
    report = {
        "topology": topology,
        "device_kind": topologies.parse(topology).device_kind,
        "chips": 8,
        "batch_size": 256,
        "memory": memory,
        "memory_bytes_per_chip": room,
        "tables": [
            {"placement": "by row in x", "num_rows": 10**9, "dim": dim,
             "bytes_per_chip": rows},
        ],
    }  # fmt: skip
    return "\n".join(planning._advice(config, report))


def test_rows_of_16_bits_save_half_of_the_rows_and_nothing_of_their_state():
    for optimizer in ("rowwise_adagrad", "lazy_adam"):
        # 1e9 · 16 numbers on 8 chips, two bytes less for each.
        found = advice_for("h100:8", optimizer=optimizer, room=20e9)
        assert "about 4.00 GB less" in found


def test_never_fewer_chips_are_advised():
    """A compiler may refuse what has room by formula."""
    small = advice_for("v5p:2x2x2", dim=2)
    assert "v5p:2x2x4 should do" in small
    large = advice_for("v5p:2x2x2", optimizer="lazy_adam")
    assert "v5p:4x4x4 should do" in large  # 24 GB a chip of 5 GB


def test_lines_that_rows_do_not_fill_are_told():
    assert "rows of 96 numbers leave 25% of their lines of 128" in advice_for(
        "v5e:2x4", dim=96
    )
    assert "lines" not in advice_for("v5e:2x4", dim=24)  # 5 of them, 120 numbers
    assert "lines" not in advice_for("h100:8", dim=96)


def test_without_a_size_the_smallest_that_fits_is_chosen(monkeypatch):
    config = make_config()
    card = synthetic.card(config.data.source)
    monkeypatch.setattr(
        planning.setup.sources, "load_card", lambda source: huge(card, 100_000_000)
    )
    found = planning.plan(config, topology="h100")
    sizes = {row["topology"]: row["is_fitting"] for row in found["tried"]}
    *smaller, chosen = sizes
    assert found["topology"] == chosen and found["is_fitting"]
    assert smaller and not any(sizes[name] for name in smaller)


def test_if_no_size_fits_the_reason_is_that_of_the_largest(monkeypatch):
    card = synthetic.card(SyntheticConfig())
    monkeypatch.setattr(
        planning.setup.sources, "load_card", lambda source: huge(card, 1_000_000_000)
    )

    def told(*counts):
        monkeypatch.setattr(topologies, "_COUNTS", counts)
        with pytest.raises(ConfigError, match="no size fits, up to h100:") as error:
            planning.plan(make_config(), topology="h100")
        return str(error.value)

    assert "of 80.0 GB; use fewer, narrower or 16-bit rows" in told(1, 2)
    # One is too small, and three cannot share the tables: rows would not help.
    assert "do not divide" in told(1, 3) and "16-bit" not in told(1, 3)


def test_a_compiler_that_refuses_is_quoted(monkeypatch, capfd):
    def refuse(steps, batch):
        os.write(2, b"check failed\n")  # all that is left of one that crashes
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory on HBM")

    monkeypatch.setattr(planning.ahead_of_time, "compile_steps", refuse)
    found = planning.plan(make_config(), topology="cpu:8")
    assert not found["is_fitting"]
    told = capfd.readouterr()
    assert "the compiler says: RESOURCE_EXHAUSTED: Ran out of memory on HBM" in told.out
    assert told.err == "cpu:8: compiling, which can take minutes\ncheck failed\n"


def test_a_card_alone_is_enough(tmp_path, capsys):
    config = make_config()
    card = synthetic.card(config.data.source)
    card.save(tmp_path)
    config.data.source = ParquetConfig(path=str(tmp_path))
    found = planning.plan(config, topology="cpu:8", json_path="-")
    assert "never repeat" in found["exchange"]
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))


def test_machines_that_cannot_run_it_are_refused_with_advice(monkeypatch):
    with pytest.raises(ConfigError, match=r"3 devices do not divide .* power of two"):
        planning.plan(make_config(), topology="cpu:3")
    odd = make_config()
    odd.train.batch_size, odd.data.lanes = 36, 12
    odd.eval.batch_size = 24
    with pytest.raises(ConfigError, match=r"a multiple of the 8 devices; use 24"):
        planning.plan(odd, topology="h100:8")
    monkeypatch.setattr(planning, "_num_hosts", lambda draft: 3)
    with pytest.raises(
        ConfigError, match=r"16 cannot be .* 3 hosts of h100:8.*lanes = 3"
    ):
        planning.plan(make_config(), topology="h100:8")
    with pytest.raises(ConfigError, match="did you mean"):
        planning.plan(make_config(), topology="h10:8")


@pytest.mark.slow
def test_a_slice_is_compiled_for_and_told_apart_from_an_estimate():
    pytest.importorskip("libtpu")
    found = planning.plan(make_config(), topology="v5e:2x2")
    assert found["source"] == "compiled by libtpu"
    assert found["memory"]["code"] > 0
    assert found["input"]["hosts"] == 1
    twice = planning.plan(make_config(), topology="tpu7x:2x2x1")
    assert (twice["chips"], twice["devices"]) == (4, 8)
    assert twice["memory_bytes_per_chip"] == 2 * 94.75 * 2**30
