r"""What libtpu makes of whole train steps with 1e9 table rows, for slices of TPUs.

python -m benchmarks.compile_matrix --json=compile_matrix.json
python -m benchmarks.compile_matrix --only=dcnv2@v5e:4x4

Needs the tpu extra, and no TPU. A cell compiles the step that `rankax.main` runs, for
1e9 rows (one for 4e9) of 16 numbers with row-wise Adagrad, most of them in a few tables
as in production, and 512 examples a chip:

    state       bytes of the state on a chip, as numbers
    arguments   of the state and the batch, as the chip keeps them
    temporaries what the step takes beside them
    cpu_seconds of tracing and compiling, over all cores

Cells that the JSON file has already are left out, so a run may be ended and go on.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import re
import time
from typing import Any

import jax

from benchmarks import measure
from rankax.config.experiment import ExperimentConfig
from rankax.config.synthetic import SyntheticConfig
from rankax.data.card import Card, Label, Split, Table
from rankax.data.fields import (
    CategoricalField,
    NumericField,
    SequenceColumn,
    SequenceField,
)
from rankax.data.schema import Schema
from rankax.models import backbones  # noqa: F401
from rankax.models.base import named_config
from rankax.parallel import topology
from rankax.training import ahead_of_time
from rankax.training.ahead_of_time import CompiledStep

EXAMPLES_PER_CHIP = 512
DIM = 16
HISTORY = 50
# 1e9 rows in all.
ROWS = {"user": 500_000_000, "item": 380_000_000, "ad": 118_889_900}
ROWS |= {"shop": 1_000_000, "brand": 100_000, "query": 10_000, "hour": 24, "city": 76}

Record = dict[str, Any]
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?\S+ = (\(.*?\)|\S+) ([\w-]+)\(", re.M)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A row of the matrix.

    Attributes:
        backbone: its name.
        options: of the backbone.
        model_axis: devices along "model".
        scale: times `ROWS`.
        topologies: to compile for.
    """

    backbone: str
    options: dict[str, Any]
    model_axis: int = 1
    scale: int = 1
    topologies: tuple[str, ...] = ("v5e:4x4", "v5p:4x4x4")


MODELS = {
    "dcnv2": Model(backbone="dcnv2", options={"embedding_dim": DIM}),
    "mc_mlcc": Model(
        backbone="mc_mlcc", options={"num_channels": 2, "channel_dim": DIM // 2}
    ),
    "tokenmixer_large": Model(
        backbone="tokenmixer_large",
        options={
            "embedding_dim": DIM,
            "num_tokens": 8,
            "num_blocks": 2,
            "num_experts": 4,
            "num_active_experts": 3,
        },
        model_axis=4,
    ),
    "infnet": Model(backbone="infnet", options={"embedding_dim": DIM}),
    "dcnv2-4e9": Model(
        backbone="dcnv2",
        options={"embedding_dim": DIM},
        scale=4,
        topologies=("v5e:8x8",),
    ),
}
CELLS = tuple((name, where) for name, m in MODELS.items() for where in m.topologies)


def schema(scale: int = 1) -> Schema:
    """Eight id fields, a history that shares the items' table, four numbers."""
    ids = tuple(CategoricalField(name=name, table=name) for name in ROWS)
    numbers = tuple(NumericField(name=f"n{i}") for i in range(4))
    events = SequenceColumn(name="item", table="item", column="history")
    history = SequenceField(name="history", columns=(events,), max_length=HISTORY)
    return Schema.select(
        Card(
            name="compile matrix",
            tables=tuple(Table(name=k, num_rows=scale * n) for k, n in ROWS.items()),
            fields=(*ids, *numbers, history),
            labels=(Label(name="click"),),
            splits={"train": Split(num_rows=1)},
        )
    )


def compile_cell(name: str, where: str) -> CompiledStep:
    """Compiles the train step of a model for a slice."""
    model = MODELS[name]
    chips = topology.parse(where)
    config = ExperimentConfig()
    config.data.source = SyntheticConfig()  # not read: the schema is given
    config.model.backbone = named_config(model.backbone, **model.options)
    config.mesh.model = model.model_axis
    size = EXAMPLES_PER_CHIP * chips.num_devices
    config.train.batch_size = config.eval.batch_size = size
    config.train.num_steps = 1
    return ahead_of_time.compile_train_step(
        config, topology.devices(chips), schema=schema(model.scale)
    )


def logical_bytes(step: CompiledStep) -> int:
    """Returns the bytes of state and batch on one chip, as numbers without padding."""
    engine = step.steps.engine
    saved, kept = (
        sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tables))
        for tables in (
            engine.logical_shapes(),
            jax.eval_shape(engine.init_tables, jax.random.key(0)),
        )
    )
    return step.state_bytes + step.batch_bytes + (saved - kept) // engine.mesh.size


def table_sized(step: CompiledStep) -> Counter[str]:
    """Counts the operations whose result has as many numbers as a table on a chip."""
    sizes = [
        x.size // step.steps.mesh.size
        for arrays in step.steps.engine.logical_shapes().values()
        for x in arrays.values()
    ]
    found: Counter[str] = Counter()
    for result, operation in _INSTRUCTION.findall(step.compiled.as_text() or ""):
        shapes = re.findall(r"\w\[([\d,]+)\]", result)
        if any(math.prod(map(int, shape.split(","))) >= min(sizes) for shape in shapes):
            found[operation] += 1
    return found


def exchanges(step: CompiledStep) -> dict[str, int]:
    """Counts all-to-alls: of the tables, and of the model forward and backward."""
    found = dict.fromkeys(("tables", "forward", "backward"), 0)
    for each in step.collectives:
        if each.kind == "all-to-all":
            is_of_model = "jvp()" in each.op_name
            is_back = "transpose(jvp())" in each.op_name
            place = "backward" if is_back else "forward" if is_of_model else "tables"
            found[place] += 1
    return found


def record(name: str, where: str) -> Record:
    """Compiles a cell, and returns what the table says of it, for JSON."""
    begin = time.process_time()
    step = compile_cell(name, where)
    cpu_seconds = time.process_time() - begin
    held = logical_bytes(step)
    return {
        "model": name,
        "topology": where,
        "rows": MODELS[name].scale * sum(ROWS.values()),
        "batch_size": EXAMPLES_PER_CHIP * step.steps.mesh.size,
        "logical_bytes": held,
        "argument_bytes": step.memory.arguments,
        "temporary_bytes": step.memory.temporaries,
        "code_bytes": step.memory.code,
        "all_to_alls": exchanges(step),
        "sent_bytes": round(sum(each.sent_bytes for each in step.collectives)),
        "cpu_seconds": round(cpu_seconds),
    }


def table(records: Sequence[Record]) -> str:
    """Returns the records as Markdown."""
    lines = [
        "| model | slice | rows | GB a chip | / logical | temporaries, MB | CPU s |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for each in records:
        share = each["argument_bytes"] / each["logical_bytes"]
        lines.append(
            f"| {MODELS[each['model']].backbone} | {each['topology']} "
            f"| {each['rows']:.0e} | {each['argument_bytes'] / 1e9:.2f} "
            f"| {share:.3f} | {each['temporary_bytes'] / 1e6:,.0f} "
            f"| {each['cpu_seconds']} |".replace("e+0", "e")
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles all cells or some, and writes what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    parser.add_argument("--only", default="", help="MODEL@TOPOLOGY of one cell")
    options = parser.parse_args(argv)
    cells = [cell for cell in CELLS if options.only in ("", "@".join(cell))]
    if not cells:
        known = ", ".join(map("@".join, CELLS))
        parser.error(f"--only={options.only}: no such cell, only {known}")
    records: list[Record] = []
    if options.json and options.json.exists():
        records = json.loads(options.json.read_text())["cells"]
    machine, versions = measure.describe()
    done = {(each["model"], each["topology"]) for each in records}
    for cell in cells:
        if cell in done:
            continue
        records.append(record(*cell))
        print(json.dumps(records[-1]), flush=True)
        if options.json:
            told = {"hardware": machine, "versions": versions, "cells": records}
            options.json.write_text(json.dumps(told, indent=1) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
