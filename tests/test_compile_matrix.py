"""Whole train steps of 1e9 rows and more, compiled for slices of TPUs by libtpu."""

import importlib.util

import pytest

from benchmarks import compile_matrix
from rankax.embeddings import layout

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is for Linux on x86"
)
# What may have a table as its result: views, writes in place, and computations whose
# own lines are looked at too.
IN_PLACE = {"parameter", "tuple", "get-tuple-element", "bitcast"}
IN_PLACE |= {"scatter", "fusion", "while"}


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(("name", "where"), compile_matrix.CELLS)
def test_a_chip_holds_its_part_of_the_tables_once(name, where):
    step = compile_matrix.compile_cell(name, where)
    groups = step.steps.engine.plan.groups
    assert sum(group.num_rows for group in groups) >= 0.99e9
    logical = compile_matrix.logical_bytes(step)
    assert 0.99 * logical <= step.memory.arguments <= 1.1 * logical
    assert step.memory.aliased >= 0.99 * step.state_bytes
    assert step.memory.temporaries <= 0.5 * logical  # rows alone are 0.94 of it

    found = compile_matrix.table_sized(step)
    assert set(found) <= IN_PLACE, found  # above all no copy and no all-gather
    assert found["scatter"] >= 2 * len(groups)  # rows and accumulators were seen

    expected = {"tables": 4 * len(groups), "forward": 0, "backward": 0}
    if name == "tokenmixer_large":
        num_blocks = compile_matrix.MODELS[name].options["num_blocks"]
        # The norm stands before the mix; see tests/models/test_token_parallel.py.
        expected |= dict.fromkeys(("forward", "backward"), 2 * num_blocks + 2)
    assert compile_matrix.exchanges(step) == expected


@pytest.mark.slow
@needs_libtpu
def test_rows_by_themselves_would_be_copied_in_every_step(monkeypatch):
    monkeypatch.setattr(layout, "is_in_lines", lambda mesh: False)
    step = compile_matrix.compile_cell("dcnv2", "v5e:4x4")
    assert step.memory.temporaries > 0.5 * compile_matrix.logical_bytes(step)
    assert set(compile_matrix.table_sized(step)) - IN_PLACE


@pytest.mark.parametrize("name", compile_matrix.MODELS)
def test_the_matrix_has_its_rows(name):
    scale = compile_matrix.MODELS[name].scale
    tables = compile_matrix.schema(scale).tables.values()
    assert sum(table.num_rows for table in tables) == scale * 1_000_000_000
