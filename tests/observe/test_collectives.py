import jax
import jax.numpy as jnp

from rankax.observe import collectives
from rankax.parallel import mesh as meshes


def test_collective_bytes_are_those_of_a_ring():
    mesh = meshes.make_mesh(data=4, model=2)
    split, copied = meshes.ALL_DEVICES, jax.P()

    def exchange(x):  # [16, 8] float32 on each of 8 devices: 512 bytes
        swapped = jax.lax.all_to_all(x, meshes.AXES, 0, 0, tiled=True)
        gathered = jax.lax.all_gather(x[0, 0], meshes.AXES)  # 8 × 4 bytes
        scattered = jax.lax.psum_scatter(x, "model", tiled=True)  # 2 devices
        return swapped, jax.lax.psum(gathered, "data"), scattered

    program = jax.shard_map(
        exchange, mesh=mesh, in_specs=split, out_specs=(split, copied, split),
        check_vma=False,
    )  # fmt: skip
    compiled = jax.jit(program).lower(jnp.zeros((128, 8))).compile()
    expected = 7 / 8 * 512 + 7 / 8 * 32 + 1 / 2 * 512 + 2 * 3 / 4 * 32
    assert collectives.sent_bytes(compiled.as_text(), 8) == expected


def test_what_a_loop_sends_counts_as_often_as_it_runs():
    mesh = meshes.make_mesh(data=8)

    def exchange(x):  # [4] float32, summed 3 times by each of 5 turns, and once after
        def turn(x, _):
            def inner(x, _):
                return jax.lax.psum(x, meshes.AXES) / 8, None

            return jax.lax.scan(inner, x, None, length=3)

        return jax.lax.psum(jax.lax.scan(turn, x, None, length=5)[0], meshes.AXES)

    program = jax.shard_map(
        exchange, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    text = jax.jit(program).lower(jnp.zeros(4)).compile().as_text()
    found = collectives.read(text, 8)
    assert sum(each.times for each in found) == 5 * 3 + 1
    assert collectives.sent_bytes(text, 8) == 16 * (2 * 7 / 8 * 16)


def test_a_loop_of_which_only_the_condition_tells():
    text = """
%body (x: (s32[], f32[4])) -> (s32[], f32[4]) {
  %y = f32[4]{0:T(128)} all-reduce(%x.1), replica_groups={}
}
%condition (x: (s32[], f32[4])) -> pred[] {
  %number = s32[]{:T(128)} constant(23)
  %i = s32[]{:T(128)} get-tuple-element(%x), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %number), direction=LT, metadata={}
}
%other (x: (s32[], f32[4])) -> pred[] {
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %rounds), direction=LT, metadata={}
}
ENTRY %main (x: f32[4]) -> f32[4] {
  %loop = (s32[], f32[4]) while(%x), condition=%condition, body=%body
  %loop.1 = (s32[], f32[4]) while(%x), condition=%CONDITION, body=%body
}
"""
    assert collectives.read(text.replace("CONDITION", "other"), 8)[0].times == 24
    assert collectives.read(text.replace("CONDITION", "condition"), 8)[0].times == 46


def test_a_loop_that_runs_until_something_happens_counts_once():
    mesh = meshes.make_mesh(data=8)

    def exchange(x):
        return jax.lax.while_loop(
            lambda x: x[0] < 9, lambda x: jax.lax.psum(x, meshes.AXES), x
        )

    program = jax.shard_map(
        exchange, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    text = jax.jit(program).lower(jnp.ones(4)).compile().as_text()
    assert collectives.sent_bytes(text, 8) == 2 * 7 / 8 * 16


def test_collective_bytes_read_all_ways_to_write_groups_and_shapes():
    def sent(line, devices=8):
        return collectives.sent_bytes(f"  %x.1 = {line}, channel_id=1\n", devices)

    pair = "(bf16[4,3]{1,0}, /*index=1*/pred[8]{0}) all-to-all(%a, %b)"
    assert sent(f"{pair}, replica_groups={{{{0,1}},{{2,3}}}}") == (24 + 8) // 2
    whole = "s32[]{} all-reduce(%a)"
    assert sent(f"{whole}, replica_groups=[2,4]<=[8]") == 6
    assert sent(f"{whole}, replica_groups=mesh['x'=4,'y'=2] {{'y'}}") == 4
    assert sent(f"{whole}, replica_groups={{}}", devices=4) == 6
    assert sent("u16[6]{0} collective-permute(%a)") == 12
    assert sent("f32[64]{0} add(%all-reduce.1, %all-to-all)") == 0


def test_asynchronous_collectives_count_their_results_once():
    text = """
  %a = (f32[1]{0:T(128)}, f32[8]{0:T(128)}) all-gather-start(%x), replica_groups={}
  %b = f32[8]{0:T(128)} all-gather-done(%a)
  %c = f32[8]{0:T(128)S(1)} all-reduce-start(%b), replica_groups={}
  %d = ((f32[2], bf16[4]), (f32[2], bf16[4]), u32[], u32[]) collective-permute-start(%c, %c)
"""
    found = collectives.read(text, 8)
    assert [each.kind for each in found] == [
        "all-gather", "all-reduce", "collective-permute",
    ]  # fmt: skip
    assert [each.sent_bytes for each in found] == [7 / 8 * 32, 2 * 7 / 8 * 32, 8 + 8]
    assert found[2].result == "f32[2], bf16[4]"
