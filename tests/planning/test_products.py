"""Matrix FLOPs and memory traffic of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fmjax.planning.hlo_module import parse_module
from fmjax.planning.memory_traffic import memory_bytes
from fmjax.planning.products import product_flops

# Reads one layer of a stack of twelve.
ONE_LAYER = """
%read (w: f32[12,8,8], n: s32[]) -> f32[8,8] {
  %w = f32[12,8,8]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = f32[1,8,8]{2,1,0} dynamic-slice(%w, %n, %zero, %zero), \
dynamic_slice_sizes={1,8,8}
  ROOT %same = f32[8,8]{1,0} bitcast(%layer)
}
"""


def parse(entry: str, *before: str):
    module = parse_module(
        "\n".join(["HloModule m", *before, "ENTRY %main () -> f32[] {"])
        + "\n"
        + entry.strip("\n")
        + "\n}"
    )
    return module, module.computations["main"]


def flops_of(entry: str, *before: str) -> float:
    module, main = parse(entry, *before)
    return product_flops(module, main, main.root)


def traffic_of(entry: str, *before: str) -> int:
    module, main = parse(entry, *before)
    return memory_bytes(module, main, main.root)


def step_flops(compiled) -> float:
    module = parse_module(compiled.as_text())
    return sum(c.runs * product_flops(module, c, i) for c, i in module.scheduled())


def test_scanned_products_count_in_every_iteration():
    def step(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ w), None

        return jax.lax.scan(layer, x, weights)[0].sum()

    arguments = jnp.ones((4, 16)), jnp.ones((5, 16, 16))
    forward = 5 * 2 * 4 * 16 * 16
    assert step_flops(jax.jit(step).lower(*arguments).compile()) == forward
    # Weights' and inputs' gradients; the first layer's inputs need none.
    gradient = jax.jit(jax.grad(step, 1)).lower(*arguments).compile()
    assert step_flops(gradient) == 3 * forward


def test_products_with_batches_count_each_once():
    product = jax.jit(lambda a, b: jnp.einsum("bhtk,bhsk->bhts", a, b))
    compiled = product.lower(jnp.ones((2, 3, 4, 8)), jnp.ones((2, 3, 5, 8))).compile()
    assert step_flops(compiled) == 2 * 2 * 3 * 4 * 5 * 8


def test_products_inside_a_fusion_belong_to_it():
    fused = """
%fused (a: f32[4,8], b: f32[8,6]) -> f32[4,6] {
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,6]{1,0} parameter(1)
  %c = f32[4,6]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %d = f32[4,6]{1,0} tanh(%c)
}
"""
    entry = """
  %a = f32[4,8]{1,0} parameter(0)
  %b = f32[8,6]{1,0} parameter(1)
  ROOT %f = f32[4,6]{1,0} fusion(%a, %b), kind=kOutput, calls=%fused
"""
    assert flops_of(entry, fused) == 2 * 4 * 8 * 6
    assert traffic_of(entry, fused) == 4 * (4 * 8 + 8 * 6 + 4 * 6)


def test_products_written_as_convolutions_count_as_products():
    # [T, D] × [H, K, D] → [T, H, K], as TPUs' compiler prints it.
    entry = """
  %x = bf16[64,32,1]{1,0,2} parameter(0)
  %w = bf16[8,16,32]{2,1,0} parameter(1)
  ROOT %y = bf16[64,8,16]{2,0,1} convolution(%x, %w), \
window={size=8 pad=7_7 rhs_reversal=1}, dim_labels=bf0_0oi->b0f
"""
    assert flops_of(entry) == 2 * 64 * 32 * 8 * 16


@pytest.mark.parametrize(
    ("window", "options"),
    [
        ("size=3x3 pad=1_1x1_1", {"padding": ((1, 1), (1, 1))}),
        ("size=3x3 stride=2x2", {"window_strides": (2, 2)}),
        ("size=3x3 rhs_dilate=2x2", {"rhs_dilation": (2, 2)}),
        (
            "size=3x3 pad=2_1x2_1 lhs_dilate=2x2",
            {"lhs_dilation": (2, 2), "padding": ((2, 1), (2, 1))},
        ),
        (
            "size=3x3 stride=4x2 pad=3_0x0_2 lhs_dilate=6x4 rhs_dilate=2x1",
            {
                "window_strides": (4, 2),
                "padding": ((3, 0), (0, 2)),
                "lhs_dilation": (6, 4),
                "rhs_dilation": (2, 1),
            },
        ),
    ],
)
def test_padding_and_holes_of_convolutions_multiply_nothing(window, options):
    # With ones everywhere, a convolution adds up how often it multiplies.
    y = jax.lax.conv_general_dilated(
        jnp.ones((2, 9, 7, 5)),
        jnp.ones((3, 3, 5, 4)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **{"window_strides": (1, 1), "padding": "VALID"} | options,
    )
    entry = f"""
  %x = f32[2,9,7,5]{{3,2,1,0}} parameter(0)
  %w = f32[3,3,5,4]{{3,2,1,0}} parameter(1)
  ROOT %y = f32[{",".join(map(str, y.shape))}]{{3,2,1,0}} convolution(%x, %w), \
window={{{window}}}, dim_labels=b01f_01io->b01f
"""
    assert flops_of(entry) == 2 * y.sum()


def test_the_patches_of_a_real_convolution_count_once():
    def patches(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (4, 4), "VALID", None, None, numbers)

    arguments = jnp.ones((2, 16, 16, 3)), jnp.ones((4, 4, 3, 8))
    compiled = jax.jit(patches).lower(*arguments).compile()
    assert step_flops(compiled) == 2 * (2 * 16 * 16 * 3) * 8


def test_products_of_cublas_count_and_its_workspace_does_not():
    entry = """
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,6]{1,0} parameter(1)
  ROOT %c = (bf16[4,6]{1,0}, s8[4096]{0}) custom-call(%a, %b), \
custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],\
"rhs_contracting_dimensions":["0"]}}}
"""
    assert flops_of(entry) == 2 * 4 * 8 * 6
    assert traffic_of(entry) == 2 * (4 * 8 + 8 * 6 + 4 * 6)  # without the workspace


def test_of_stacked_weights_only_the_layer_that_is_read_counts():
    fused = (
        ONE_LAYER
        + """%write (w: f32[12,8,8], n: s32[], x: f32[8,8]) -> f32[12,8,8] {
  %w = f32[12,8,8]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = f32[8,8]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %layer = f32[1,8,8]{2,1,0} bitcast(%x)
  ROOT %all = f32[12,8,8]{2,1,0} dynamic-update-slice(%w, %layer, %n, %zero, %zero)
}
"""
    )
    entry = """
  %w = f32[12,8,8]{2,1,0} parameter(0)
  %n = s32[] parameter(1)
  %x = f32[8,8]{1,0} fusion(%w, %n), kind=kLoop, calls=%read
  ROOT %y = f32[12,8,8]{2,1,0} fusion(%w, %n, %x), kind=kLoop, calls=%write
"""
    module, main = parse(entry, fused)
    layer, index = 4 * 8 * 8, 4
    for name in ("x", "y"):
        assert memory_bytes(module, main, main.by_name[name]) == 2 * layer + index
    assert memory_bytes(module, main, main.by_name["w"]) == 0


def test_names_of_arrays_cost_nothing():
    entry = """
  %x = f32[8]{0} parameter(0)
  %t = (f32[8]{0}) tuple(%x)
  ROOT %y = f32[8]{0} get-tuple-element(%t), index=0
"""
    assert traffic_of(entry) == 0


def test_a_real_elementwise_program_reads_and_writes_each_array_once():
    compiled = jax.jit(lambda x, y: jnp.tanh(x) * y + 1).lower(
        jnp.ones((64, 32)), jnp.ones((64, 32))
    )
    module = parse_module(compiled.compile().as_text())
    moved = sum(c.runs * memory_bytes(module, c, i) for c, i in module.scheduled())
    assert moved == 3 * np.ones((64, 32), np.float32).nbytes


def test_what_a_fusion_hands_on_or_a_collective_moves_is_no_traffic_of_its_own():
    # A product beside a gather, which began before and goes on after it.
    beside = """
%beside (shard: f32[4,8], whole: f32[32,8], w: f32[12,8,8], n: s32[]) -> f32[8,8] {
  %shard = f32[4,8]{1,0} parameter(0)
  %whole = f32[32,8]{1,0} parameter(1)
  %w = f32[12,8,8]{2,1,0} parameter(2)
  %n = s32[] parameter(3)
  %layer = f32[8,8]{1,0} fusion(%w, %n), kind=kLoop, calls=%read
  %y = f32[8,8]{1,0} negate(%layer)
  %gather = f32[32,8]{1,0} all-gather(%shard), replica_groups={}, dimensions={0}
  ROOT %all = (f32[8,8]{1,0}, f32[4,8]{1,0}, f32[32,8]{1,0}, f32[32,8]{1,0}) \
tuple(%y, %shard, %whole, %gather)
}
"""
    entry = """
  %shard = f32[4,8]{1,0} parameter(0)
  %whole = f32[32,8]{1,0} parameter(1)
  %w = f32[12,8,8]{2,1,0} parameter(2)
  %n = s32[] parameter(3)
  ROOT %y = (f32[8,8]{1,0}, f32[4,8]{1,0}, f32[32,8]{1,0}, f32[32,8]{1,0}) \
fusion(%shard, %whole, %w, %n), kind=kOutput, calls=%beside
"""
    # One layer and its number are read, one layer is written.
    assert traffic_of(entry, ONE_LAYER, beside) == 2 * 4 * 8 * 8 + 4


def test_arrays_on_a_tpu_are_not_in_its_memory():
    entry = """
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %y = f32[8,128]{1,0:T(8,128)S(1)} negate(%x)
  %z = f32[8,128]{1,0:T(8,128)S(1)} copy-start(%x)
  ROOT %w = f32[8,128]{1,0:T(8,128)} add(%y, %y)
"""
    module, main = parse(entry)
    size = 4 * 8 * 128
    for name, expected in (("y", size), ("z", 0), ("w", size)):
        i = main.by_name[name]
        assert memory_bytes(module, main, i, spaces=True) == expected
    assert memory_bytes(module, main, main.by_name["y"]) == 2 * size
