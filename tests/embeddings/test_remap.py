"""Rows carried between placements arrive where the new placement looks them up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankax.config.experiment import TablesConfig, TableSpec
from rankax.embeddings import layout, remap
from rankax.embeddings.placement import plan_tables
from rankax.embeddings.remap import TableMove
from rankax.parallel import mesh as meshes

DIM = 3


def stack_of(num_rows, *, num_shards, is_replicated=False, dim=DIM):
    """A stack of tables t0, t1, ... of so many rows."""
    names = [f"t{i}" for i in range(len(num_rows))]
    specs = [
        TableSpec(name=name, role="embedding", num_rows=rows, dim=dim)
        for name, rows in zip(names, num_rows, strict=True)
    ]
    config = TablesConfig(
        num_shards=num_shards, replicate_below_bytes=2**30 if is_replicated else 0
    )
    plan = plan_tables(specs, column_tables=names, config=config, num_devices=1)
    return plan.parts[0]


def array_of(stack, mesh, *, dtype=np.float32, seed=0):
    """Random bits, -0.0 and NaN included, and how the engine would lay them."""
    if hasattr(stack, "depth"):
        shape = (stack.num_shards, stack.depth, stack.dim)
        is_split = stack.num_shards % mesh.size == 0
    else:
        shape, is_split = (stack.num_rows, stack.dim), False
    sharding = meshes.over_all_devices(mesh) if is_split else meshes.replicated(mesh)
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, shape, np.uint32)
    bits[..., 0] = 0x80000000
    x = bits.astype(np.uint16) if dtype == np.uint16 else bits.view(dtype)
    return jax.device_put(x, sharding)


def tables(stack, array):
    """Logical tables, read one row after the other by the inverse of the placement."""
    flat = np.array(array).reshape(-1, stack.dim)
    if not hasattr(stack, "depth"):
        starts = [table.offset for table in stack.tables]
        return [
            flat[start : start + table.spec.num_rows]
            for start, table in zip(starts, stack.tables, strict=True)
        ]
    result = [np.zeros((t.spec.num_rows, stack.dim), flat.dtype) for t in stack.tables]
    for row, values in enumerate(flat):
        spec, k = stack.find(row)
        if k < spec.num_rows:
            result[int(spec.name[1:])][k] = values
    return result


def same_bits(a, b):
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "source, target",
    [
        ({"num_shards": 8}, {"num_shards": 8}),
        ({"num_shards": 32}, {"num_shards": 8}),
        ({"num_shards": 4}, {"num_shards": 16}),  # 4 do not split over 8 devices
        ({"num_shards": 1, "is_replicated": True}, {"num_shards": 16}),
        ({"num_shards": 16}, {"num_shards": 1, "is_replicated": True}),
        ({"num_shards": 1, "is_replicated": True},) * 2,
    ],
)
def test_every_row_arrives_and_others_stay(source, target, devices, monkeypatch):
    monkeypatch.setattr(remap, "_PIECE_BYTES", 4 * DIM * 32)  # several pieces
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    old = stack_of([40, 7, 100], **source)
    new = stack_of([55, 130, 7, 20], **target)
    old_array = array_of(old, mesh)
    new_array = array_of(new, mesh, seed=1)
    expected = tables(new, new_array)
    rows = tables(old, old_array)
    moves = [
        TableMove(0, 0, 39, extra=((39, 54),)),  # grown; its last row stays its last
        TableMove(1, 2, 100),  # another name, hence another salt
        TableMove(3, 0, 20),  # shrunk
    ]
    for move in moves:
        expected[move.index][: move.num_rows] = rows[move.source_index][: move.num_rows]
    expected[0][54] = rows[0][39]
    sharding = new_array.sharding
    result = remap.carry(new_array, old_array, moves, stack=new, source_stack=old)
    assert result.sharding == sharding
    for found, table in zip(tables(new, result), expected, strict=True):
        assert same_bits(found, table)


def test_a_number_per_row_goes_the_same_way():
    mesh = meshes.make_mesh()
    old, new = stack_of([30, 40], num_shards=16), stack_of([50, 44], num_shards=8)
    steps = jax.device_put(
        np.arange(16 * old.depth, dtype=np.int32).reshape(16, -1),
        meshes.over_all_devices(mesh),
    )
    fresh = jax.device_put(
        np.full((8, new.depth), -1, np.int32), meshes.over_all_devices(mesh)
    )
    moves = [TableMove(0, 0, 30), TableMove(1, 1, 40)]
    result = np.asarray(
        remap.carry(fresh, steps, moves, stack=new, source_stack=old)
    ).ravel()
    for index, count in ((0, 30), (1, 40)):
        ids = np.arange(count)
        expected = np.asarray(steps).ravel()[old.table_rows(index, ids)]
        assert (result[new.table_rows(index, ids)] == expected).all()
    assert (result >= 0).sum() == 70


def test_rows_of_16_bits_become_floats_and_back():
    mesh = meshes.make_mesh()
    sharded, replicated = (
        stack_of([50], num_shards=8),
        stack_of([50], num_shards=1, is_replicated=True),
    )
    bits = array_of(sharded, mesh, dtype=np.uint16)
    empty = jax.device_put(
        jnp.zeros((replicated.num_rows, DIM)), meshes.replicated(mesh)
    )
    moves = [TableMove(0, 0, 50)]
    floats = remap.carry(empty, bits, moves, stack=replicated, source_stack=sharded)
    (rows,) = tables(sharded, bits)
    assert same_bits(floats, (rows.astype(np.uint32) << 16).view(np.float32))
    fresh = jax.device_put(jnp.zeros(bits.shape, jnp.uint16), bits.sharding)
    again = remap.carry(fresh, floats, moves, stack=sharded, source_stack=replicated)
    is_number = ~np.isnan(np.asarray(floats))
    (back,) = tables(sharded, again)
    assert same_bits(back[is_number], rows[is_number])


@pytest.mark.guard
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("dim", [1, 16])
def test_carrying_takes_memory_for_a_piece_alone(devices, dim, monkeypatch):
    monkeypatch.setattr(remap, "_PIECE_BYTES", 2**14)
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    stack = stack_of([1_000_000], num_shards=64, dim=dim)
    array = array_of(stack, mesh)
    rows = np.zeros(2**14 // 4 // dim, np.int32)
    compiled = remap._carry.lower(
        array,
        array_of(stack, mesh),
        rows,
        rows,
        layout=layout.of(array, stack),
        source_layout=layout.of(array, stack),
        sharding=array.sharding,
        source_sharding=array.sharding,
    ).compile()
    memory = compiled.memory_analysis()
    assert memory.temp_size_in_bytes < 10 * 2**14 < array.nbytes // devices
    assert memory.alias_size_in_bytes == array.nbytes // devices
