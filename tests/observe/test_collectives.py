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
