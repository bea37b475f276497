"""FLOPs of attention kernels: of the blocks that their masks leave."""

import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import (
    CausalMask,
    FullMask,
    LocalMask,
    MultiHeadMask,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as mask_info,
)

from fmjax.models.layers.attention_kernels.splash import FIRST_KEY
from fmjax.planning.attention_kernels import (
    attention_flops,
    is_kernel,
    kernel_calls,
)
from fmjax.planning.hlo_module import parse_module

H, T, K = 3, 64, 16
MASKS = {
    "causal": CausalMask((T, T)),
    "window": LocalMask((T, T), (15, 0), 0),
    "full": FullMask((T, T)),
}


def blocks_with_elements(mask, block_q: int, block_kv: int) -> int:
    """Blocks of the mask that are not empty."""
    dense = np.asarray(mask[:, :])
    tiles = dense.reshape(T // block_q, block_q, T // block_kv, block_kv)
    return int(tiles.any((1, 3)).sum())


def splash(
    name: str,
    mask,
    block_q: int,
    block_kv: int,
    results: list[str],
    scope: str = "",
):
    """A call of splash attention with the operands that JAX's kernel has."""
    dkv = "_dkv" in name
    make = mask_info.process_mask_dkv if dkv else mask_info.process_mask
    info, function = make(MultiHeadMask([mask] * H), (block_q, block_kv))
    shapes = [
        f"s8[{','.join(map(str, a.shape))}]"
        for a in (info.data_next, info.block_mask)
        if a is not None
    ]
    shapes += [f"bf16[{H},{T},{K}]"] * 3
    if "_segmented" in name:
        shapes += [f"s32[{T},128]", f"s32[8,{T}]"]
    if dkv:
        shapes += [f"f32[{H},8,{T}]", f"bf16[{H},{T},{K}]", f"f32[{H},8,{T}]"]
    if function is not None:
        shapes += [f"s32[8,{T}]" if dkv else f"s32[{T},128]"]
    phase = "_dkv" if dkv else "_dq" if "_dq" in name else ""
    given = "\n".join(
        f"  %p{n} = {s}{{0}} parameter({n})" for n, s in enumerate(shapes)
    )
    taken = ", ".join(f"%p{n}" for n in range(len(shapes)))
    text = f"""ENTRY %main () -> f32[] {{
{given}
  ROOT %{name} = ({", ".join(results)}) custom-call({taken}), \
custom_call_target="tpu_custom_call", metadata={{op_name="{scope}/{name}"}}, \
frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q{phase}\\": {block_q}, \
\\"block_kv{phase}\\": {block_kv}, \\"block_kv_compute\\": 1, \
\\"q_layout\\": 1, \\"v_layout\\": 1}}"
}}}}
}}"""
    main = parse_module(text).computations["main"]
    return attention_flops(main, main.root)


FORWARD = [f"f32[8,{K}]", f"bf16[{H},{T},{K}]", f"f32[{H},{T},128]"]
KEYS = [f"f32[8,{K}]", f"bf16[{H},{T},{K}]", f"bf16[{H},{T},{K}]"]


@pytest.mark.parametrize("blocks", [(8, 8), (16, 8), (8, 16), (32, 32)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("name", "products", "results"),
    [
        ("splash_mha_fwd_residuals.3", 2, FORWARD),
        ("splash_mha_fwd_segmented_residuals", 2, FORWARD),
        ("splash_mha_dq_no_residuals.1", 3, [f"bf16[{H},{T},{K}]"]),
        ("splash_mha_dkv_no_residuals.1", 4, KEYS),
        # The gradients of the queries come apart for each block of keys.
        ("splash_mha_dkv_segmented_no_residuals", 5, [f"bf16[4,{H},{T},{K}]", *KEYS]),
    ],
)
def test_splash_counts_the_blocks_that_the_mask_leaves(
    name, products, results, mask, blocks
):
    visited = blocks_with_elements(MASKS[mask], *blocks) * blocks[0] * blocks[1]
    assert splash(name, MASKS[mask], *blocks, results) == 2 * H * visited * K * products


@pytest.mark.parametrize("blocks", [(8, 8), (16, 8), (8, 16)], ids=str)
def test_splash_may_begin_with_a_later_key(blocks):
    results = [f"bf16[1,{H},{T},{K}]", *KEYS]
    for first in (0, 16, 48):
        mask = CausalMask((T, T), -first)
        visited = blocks_with_elements(mask, *blocks) * blocks[0] * blocks[1]
        name, scope = "splash_mha_dkv_no_residuals.1", f"{FIRST_KEY}{first}"
        found = splash(name, mask, *blocks, results, scope)
        assert found == 2 * H * visited * K * 5


def cudnn(target: str, mask: str, window: int = 0):
    text = f"""ENTRY %main () -> f32[] {{
  %q = bf16[2,1024,8,64]{{3,2,1,0}} parameter(0)
  %k = bf16[2,1024,4,64]{{3,2,1,0}} parameter(1)
  %v = bf16[2,1024,4,64]{{3,2,1,0}} parameter(2)
  ROOT %c = (bf16[2,8,1024,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %k, %v), \
custom_call_target="{target}", backend_config={{"operation_queue_id": "0", \
"cudnn_fmha_backend_config": {{"algorithm": {{"algo_id": "0"}}, \
"intermediate_tensor_shape": {{"element_type": "BF16", \
"dimensions": ["2", "8", "1024", "1024"]}}, \
"mask_type": "{mask}", "sliding_window_length": {window}}}}}
}}"""
    main = parse_module(text).computations["main"]
    assert is_kernel(main.root)
    return attention_flops(main, main.root)


def test_cudnn_counts_half_of_the_square_and_the_diagonal():
    square = 2 * 2 * 8 * 1024 * 1024 * 64
    assert cudnn("__cudnn$fmhaSoftmax", "NO_MASK") == 2 * square
    assert cudnn("__cudnn$fmhaSoftmaxBackward", "PADDING") == 5 * square
    diagonal = (1024 + 128) / (2 * 1024)
    assert cudnn("__cudnn$fmhaSoftmax", "CAUSAL") == 2 * square * diagonal
    assert (
        cudnn("__cudnn$fmhaSoftmaxDropoutBackward", "PADDING_CAUSAL")
        == 5 * square * diagonal
    )
    # 128 keys back reach into the block before: 1 + 7 · 2 of 64 blocks.
    assert cudnn("__cudnn$fmhaSoftmax", "CAUSAL", 128) == 2 * square * 15 / 64


def triton_kernel(name: str):
    text = f"""ENTRY %main () -> f32[] {{
  %first = s32[1,8]{{1,0}} parameter(0)
  %last = s32[1,8]{{1,0}} parameter(1)
  %q = bf16[2,512,4,64]{{3,2,1,0}} parameter(2)
  %k = bf16[2,512,2,64]{{3,2,1,0}} parameter(3)
  %v = bf16[2,512,2,64]{{3,2,1,0}} parameter(4)
  ROOT %pallas_call.3 = bf16[2,512,4,64]{{3,2,1,0}} custom-call(%first, %last, %q, \
%k, %v), custom_call_target="__gpu$xla.gpu.triton", \
metadata={{op_name="jit(f)/jvp()/shard_map/{name}/pallas_call"}}, \
backend_config={{grid_x = 8 : i32, ir = "ML\\EFR\\22\\0D(", num_warps = 4 : i32}}
}}"""
    module = parse_module(text)
    assert kernel_calls(module) == {name: 1}
    return attention_flops(
        module.computations["main"], module.computations["main"].root
    )


def test_triton_counts_what_its_name_says_of_the_mask():
    square = 2 * 2 * 4 * 512 * 512 * 64
    for program, products in (("forward", 2), ("into_queries", 3), ("into_keys", 4)):
        name = f"flash_attention_{program}"
        assert triton_kernel(name) == products * square
        # 36 of 64 blocks of 64 × 64; with 64 keys back, 1 + 7 · 2.
        assert triton_kernel(f"{name}_causal") == products * square * 36 / 64
        assert triton_kernel(f"{name}_causal_window_64") == products * square * 15 / 64
    assert triton_kernel("another") is None


def test_other_kernels_are_known_to_be_unknown():
    text = """ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %sorted = f32[8]{0} custom-call(%x), custom_call_target="TopK"
  ROOT %y = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"
}"""
    main = parse_module(text).computations["main"]
    assert attention_flops(main, main.root) is None
    assert is_kernel(main.root)
    assert not is_kernel(main.by_name["sorted"])
