"""Planning: what a run takes on machines that nobody has rented yet.

Tables, network and batch are shapes alone. For a slice of Cloud TPU the real train step
is compiled by libtpu, which tells memory, collectives and what it refuses; for CPUs XLA
compiles it here, and for GPUs too, whose figures are therefore estimates. The speed is
what the data sheets allow (`rankax.observe.forecast`).
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np

from rankax.config.base import ConfigError
from rankax.config.experiment import ExperimentConfig
from rankax.data.errors import DataError
from rankax.data.schema import Schema
from rankax.embeddings.layout import LANES, Lines
from rankax.observe import (
    accounting,
    environment,
    forecast,
    peaks,
    plan_screen,
    traffic,
)
from rankax.observe.accounting import Cost
from rankax.observe.collectives import Collective
from rankax.observe.forecast import Forecast
from rankax.observe.peaks import Peaks
from rankax.parallel import topology as topologies
from rankax.parallel.topology import Topology
from rankax.training import ahead_of_time, footprint, setup
from rankax.training.ahead_of_time import CompiledStep
from rankax.training.footprint import Footprint
from rankax.training.step import DeviceBatch, Steps

# Compiled in turn, if the compiler needs more than the forecast said.
_MOST_COMPILED = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """A run on some devices, before anything is compiled."""

    topology: Topology
    peaks: Peaks | None
    steps: Steps
    batch: DeviceBatch
    held: Footprint
    cost: Cost
    sent: dict[str, float]

    @property
    def is_fitting(self) -> bool:
        """By formula; then the compiler is asked."""
        return self.held.forecast * self.topology.devices_per_chip <= _room(self)


def plan(
    config: ExperimentConfig,
    *,
    topology: str,
    price_per_chip_hour: float = 0.0,
    json_path: str = "",
) -> dict[str, Any]:
    """Prints what the run takes on the named machine, and returns it.

    Args:
        config: the run.
        topology: such as "v5p:4x4x4" (`rankax.parallel.topology`); without a size the
            smallest that fits is looked for.
        price_per_chip_hour: in any currency; 0 = unknown.
        json_path: file to write the plan into as JSON; "" = none, "-" = print it
            instead of the screen.

    Raises:
        ConfigError: options that do not fit each other, the data or the devices, or no
            folder for the file.
        DataError: no card of the data set.
    """
    folder = pathlib.Path(json_path).parent
    if not folder.is_dir():  # a plan may take minutes
        raise ConfigError(f"--plan.json={json_path}: there is no folder {folder}")
    names = [topology] if ":" in topology else list(topologies.sizes(topology))
    topologies.prepare(names)
    config.validate()
    schema = setup.schema_of(config)
    sample_ids, sample_note = _sample(config, schema)
    if len(names) == 1:
        report = _report(
            config, _draft(config, schema, topology, sample_ids), sample_note
        )
    else:
        report = _search(config, schema, names, sample_ids, sample_note)
    _add_price(report, price_per_chip_hour)
    if not report["is_fitting"]:
        report["advice"] = list(_advice(config, report))
    text = json.dumps(report, indent=1)
    if json_path == "-":
        print(text)
    else:
        print(plan_screen.render(report))
        if json_path:
            pathlib.Path(json_path).write_text(text + "\n")
            _tell(f"written: {json_path}")
    return report


def _search(
    config: ExperimentConfig,
    schema: Schema,
    names: Sequence[str],
    sample_ids: np.ndarray | None,
    sample_note: str,
) -> dict[str, Any]:
    """Returns the plan of the smallest machine that fits, or of the last one tried."""
    tried: list[dict[str, Any]] = []
    compiled: list[dict[str, Any]] = []
    for name in names:
        try:
            draft = _draft(config, schema, name, sample_ids)
        except ConfigError as error:
            tried.append({"topology": name, "problem": str(error)})
            continue
        row = _summary(draft)
        tried.append(row)
        if not draft.is_fitting:
            _tell(f"{name}: too small, by formula")
            continue
        report = _report(config, draft, sample_note)
        compiled.append(report)
        row["compiled_bytes_per_chip"] = report["memory"]["total"]
        row["is_fitting"] = report["is_fitting"]
        if report["is_fitting"] or len(compiled) == _MOST_COMPILED:
            break
    if not compiled:
        raise ConfigError(_nothing_fits(tried))
    return {**compiled[-1], "tried": tried}


def _sample(config: ExperimentConfig, schema: Schema) -> tuple[np.ndarray | None, str]:
    """Returns ids of the run's first batch, if there are any, and how it was."""
    try:
        return setup.sample_ids_of(config, schema), "sized by the first batch"
    except DataError:
        return None, "sized for ids that never repeat, for there are no examples here"


def _draft(
    config: ExperimentConfig, schema: Schema, name: str, sample_ids: np.ndarray | None
) -> _Draft:
    topology = topologies.parse(name)
    devices = topologies.devices(topology)
    steps = ahead_of_time.plan_steps(
        config, devices, schema=schema, sample_ids=sample_ids
    )
    batch = steps.abstract_batch(config.train.batch_size, sample_ids=sample_ids)
    draft = _Draft(
        topology=topology,
        peaks=peaks.peaks(topology.device_kind),
        steps=steps,
        batch=batch,
        held=footprint.footprint(config, schema, steps, batch),
        cost=accounting.account(config, schema, steps.engine),
        sent={
            "all-to-all": traffic.exchange_bytes_per_step(config, steps.engine),
            "all-reduce": traffic.gradient_bytes_per_step(steps.engine, steps.params),
        },
    )
    hosts = _num_hosts(draft)
    if config.data.lanes % hosts:
        raise ConfigError(
            f"data.lanes = {config.data.lanes} cannot be split over the {hosts} hosts "
            f"of {name}, a process each; set data.lanes = {hosts} or a multiple of it"
        )
    return draft


def _summary(draft: _Draft) -> dict[str, Any]:
    """A line of the sizes that were tried, from the forecast alone."""
    per_chip = draft.topology.devices_per_chip
    return {
        "topology": draft.topology.name,
        "chips": draft.topology.num_chips,
        "forecast_bytes_per_chip": draft.held.forecast * per_chip,
        "memory_bytes_per_chip": _room(draft),
        "is_fitting": draft.is_fitting,
    }


def _room(draft: _Draft) -> float:
    """Bytes of memory of a chip; simulated devices share this machine's."""
    if draft.peaks is None:
        return environment.hardware()["memory_bytes"] / draft.topology.num_chips
    return draft.peaks.memory_bytes * draft.topology.devices_per_chip


# ---------------------------------------------------------------- one machine


def _report(
    config: ExperimentConfig, draft: _Draft, sample_note: str
) -> dict[str, Any]:
    """Compiles for one machine and says everything that is known, in plain values."""
    topology = draft.topology
    compiled, refusal = _compile(draft)
    collectives = _collectives(draft, compiled)
    sent = {row["kind"]: row["sent_bytes"] for row in collectives}
    examples = config.train.batch_size / topology.num_devices
    speed = _forecast(config, draft, sent)
    memory = _memory(draft, compiled)
    room = _room(draft)
    is_fitting = not refusal and memory["total"] <= room
    cost = draft.cost
    return {
        "data_set": draft.steps.schema.card.name,
        "backbone": type(config.model.backbone).__name__,
        "batch_size": config.train.batch_size,
        "topology": topology.name,
        "chips": topology.num_chips,
        "devices": topology.num_devices,
        "device_kind": topology.device_kind,
        "source": _source(draft, compiled, refusal),
        "is_fitting": is_fitting,
        "refusal": refusal,
        "compile_seconds": compiled.seconds if compiled else None,
        "exchange": sample_note,
        "tables": [
            _per_chip(dataclasses.asdict(table), topology)
            for table in draft.held.tables
        ],
        "modules": [
            _per_chip(dataclasses.asdict(module), topology)
            for module in draft.held.modules
        ],
        "parameters": {
            "dense": cost.num_dense_parameters,
            "active_dense": cost.num_active_dense_parameters,
            "tables": cost.num_table_parameters,
        },
        "memory": memory,
        "memory_bytes_per_chip": room,
        "collectives": collectives,
        "wire_bytes_per_step": sum(sent.values()),
        "flops_per_example": cost.flops_per_example,
        "train_flops_per_example": cost.train_flops_per_example,
        "bytes_per_example": _moved(config, draft) / examples,
        "arithmetic_intensity": _intensity(config, draft),
        "forecast": _speed(speed),
        "input": _input(config, draft, speed),
        "train_rows": _train_rows(draft),
        "checkpoint_bytes": footprint.whole(config, draft.steps.schema).total,
    }


def _compile(draft: _Draft) -> tuple[CompiledStep | None, str]:
    """Returns the program, or what the compiler says against it.

    Neither where the state alone does not fit: no compiler can change that.
    """
    room = _room(draft)
    if draft.held.state * draft.topology.devices_per_chip > room:
        return None, ""
    _tell(f"{draft.topology.name}: compiling, which can take minutes")
    try:
        return ahead_of_time.compile_steps(draft.steps, draft.batch), ""
    except jax.errors.JaxRuntimeError as error:
        return None, str(error).strip()


def _tell(text: str) -> None:
    """Shows progress, apart from the screen or the JSON on stdout."""
    print(text, file=sys.stderr, flush=True)


def _source(draft: _Draft, compiled: CompiledStep | None, refusal: str) -> str:
    if refusal:
        return "estimate, for the compiler refuses it"
    if compiled is None:
        return "estimate: not compiled, for tables and weights alone do not fit"
    if draft.topology.platform == "gpu":
        return "estimate: compiled by XLA for as many CPU devices"
    compiler = "libtpu" if draft.topology.platform == "tpu" else "XLA"
    return f"compiled by {compiler}"


def _memory(draft: _Draft, compiled: CompiledStep | None) -> dict[str, Any]:
    """Bytes of a chip: what is held, and what the step takes beside it."""
    held = draft.held
    rest = held.state - held.table_bytes - held.dense_bytes
    parts = {
        "tables": held.table_bytes,
        "dense": held.dense_bytes + rest,
        "batch": held.batch,
        "temporaries": 2 * held.activations + held.exchange,
        "padding": 0,
        "code": 0,
    }
    if compiled:
        memory = compiled.memory
        parts["temporaries"] = memory.temporaries
        parts["code"] = memory.code
        new = memory.outputs - memory.aliased
        parts["padding"] = memory.arguments + new - held.state - held.batch
    scale = draft.topology.devices_per_chip
    parts = {name: size * scale for name, size in parts.items()}
    return {
        **parts,
        "total": sum(parts.values()),
        "activations": held.activations * scale,
    }


def _per_chip(row: dict[str, Any], topology: Topology) -> dict[str, Any]:
    size = row.pop("bytes_per_device")
    return {**row, "bytes_per_chip": size * topology.devices_per_chip}


def _collectives(draft: _Draft, compiled: CompiledStep | None) -> list[dict[str, Any]]:
    """What a device sends, by kind: of the program, or by formula without one."""
    if compiled is None:
        return [
            {"kind": kind, "count": None, "sent_bytes": size}
            for kind, size in draft.sent.items()
        ]
    kinds: dict[str, list[Collective]] = {}
    for each in compiled.collectives:
        kinds.setdefault(each.kind, []).append(each)
    return [
        {
            "kind": kind,
            "count": sum(each.times for each in found),
            "sent_bytes": sum(each.sent_bytes for each in found),
        }
        for kind, found in kinds.items()
    ]


# ---------------------------------------------------------------- speed and cost


def _moved(config: ExperimentConfig, draft: _Draft) -> float:
    """Bytes between memory and chip, of one device in a step (`forecast`)."""
    examples = config.train.batch_size / draft.topology.num_devices
    held = draft.held
    network = held.dense_bytes - held.network_moments
    return (
        draft.cost.table_bytes_per_example * examples
        + 6 * network
        + 2 * held.network_moments
        + 2 * held.activations
    )


def _intensity(config: ExperimentConfig, draft: _Draft) -> float | None:
    flops = draft.cost.train_flops_per_example
    if flops is None:
        return None
    examples = config.train.batch_size / draft.topology.num_devices
    return flops * examples / _moved(config, draft)


def _forecast(
    config: ExperimentConfig, draft: _Draft, sent: dict[str, float]
) -> Forecast | None:
    products = draft.cost.product_flops_per_example
    if draft.peaks is None or products is None:
        return None
    examples = config.train.batch_size / draft.topology.num_devices
    return forecast.forecast(
        draft.peaks,
        draft.topology,
        dtype=config.model.compute_dtype,
        batch_size=config.train.batch_size,
        product_flops=3 * products * examples,
        memory_bytes=_moved(config, draft),
        sent_bytes=sent,
    )


def _speed(found: Forecast | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "seconds": found.parts,
        "bound": found.bound,
        "most_examples_per_second": found.most_examples_per_second,
        "least_examples_per_second": found.least_examples_per_second,
    }


def _input(
    config: ExperimentConfig, draft: _Draft, found: Forecast | None
) -> dict[str, Any]:
    """What each host must read, pack and send to its chips to keep up."""
    hosts = _num_hosts(draft)
    size = draft.held.batch * draft.topology.num_devices / config.train.batch_size
    rate = found.most_examples_per_second / hosts if found else None
    return {
        "hosts": hosts,
        "bytes_per_example": size,
        "examples_per_second_per_host": rate,
        "bytes_per_second_per_host": rate * size if rate else None,
    }


def _train_rows(draft: _Draft) -> int:
    """Of an epoch; 0 = the card does not say."""
    split = draft.steps.schema.card.splits.get("train")
    return split.num_rows if split else 0


def _num_hosts(draft: _Draft) -> int:
    if draft.topology.platform == "gpu" and draft.peaks:
        near = draft.peaks.num_neighbours or draft.topology.num_devices
        return -(-draft.topology.num_devices // near)
    return len({device.process_index for device in draft.steps.mesh.devices.flat})


def _add_price(report: dict[str, Any], price: float) -> None:
    """Adds chip-hours, and their price, of a billion examples."""
    found = report["forecast"]
    if found is None:
        return
    hours = {
        name: 1e9 / found[f"{name}_examples_per_second"] / 3600 * report["chips"]
        for name in ("most", "least")
    }
    found["chip_hours_per_billion"] = [hours["most"], hours["least"]]
    if price:
        found["price_per_chip_hour"] = price
        found["price_per_billion"] = [hours["most"] * price, hours["least"] * price]


# ---------------------------------------------------------------- what to change


def _advice(config: ExperimentConfig, report: dict[str, Any]) -> Iterator[str]:
    memory, room = report["memory"], report["memory_bytes_per_chip"]
    over = max(memory["total"] - room, 0)
    tables = [t for t in report["tables"] if t["placement"] != "replicated"]
    numbers = sum(t["num_rows"] * t["dim"] for t in tables) / report["chips"]
    if config.tables.dtype == "float32" and 2 * numbers > over / 4:
        yield (
            "tables.dtype = 'bfloat16' halves the rows, not their optimizer's state: "
            f"about {plan_screen.size(2 * numbers)} less on each chip"
        )
    larger = _enough_chips(report, sum(t["bytes_per_chip"] for t in tables))
    if larger:
        yield f"more chips: {larger} should do (--plan.topology={larger})"
    if memory["temporaries"] > max(over, memory["total"] / 5):
        yield (
            f"train.batch_size = {report['batch_size'] // 2:,} about halves the "
            f"temporaries, {plan_screen.size(memory['temporaries'])}"
        )
    if report["device_kind"].startswith("TPU"):
        yield from _empty_lanes({t["dim"] for t in tables})
    yield "fewer rows (hash ids to fewer), or narrower ones (embedding_dim)"


def _enough_chips(report: dict[str, Any], row_bytes: float) -> str:
    """Names the smallest larger machine that has room by proportion; "" = none."""
    memory, room = report["memory"], report["memory_bytes_per_chip"]
    shared = row_bytes + memory["temporaries"] + memory["padding"]
    fixed = memory["total"] - shared
    if fixed >= room:
        return ""
    needed = report["chips"] * shared / (room - fixed) * 1.1
    for name in topologies.sizes(topologies.parse(report["topology"]).kind):
        chips = topologies.parse(name).num_chips
        if chips > report["chips"] and chips >= needed:
            return name
    return ""


def _empty_lanes(dims: Iterable[int]) -> Iterator[str]:
    """What of the tables is only there to fill lines, if it is more than a tenth."""
    for dim in sorted(dims):
        line = Lines(num_rows=1, tail=(dim,), dtype=np.dtype(np.float32))
        empty = 1 - line.per_line * dim / line.shape[1]
        if dim > 1 and empty > 0.1:
            yield (
                f"rows of {dim} numbers leave {empty:.0%} of their lines of "
                f"{line.shape[1]} empty; divisors and multiples of {LANES} fill them"
            )


def _nothing_fits(tried: list[dict[str, Any]]) -> str:
    last = tried[-1]
    start = f"no size fits, up to {last['topology']}: "
    if "problem" in last:
        return start + last["problem"]
    return start + (
        f"a chip would hold {plan_screen.size(last['forecast_bytes_per_chip'])} of "
        f"{plan_screen.size(last['memory_bytes_per_chip'])}; use fewer, narrower or "
        "16-bit rows (tables.dtype = 'bfloat16'), or another kind of chip"
    )
