"""Predicted times of steps whose parts are known."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec
from planning.chips import GPU, TPU

from fmjax.planning.hlo_module import parse_module
from fmjax.planning.step_time import predict

TEXTS = pathlib.Path(__file__).with_name("hlo")


def read(name: str):
    return parse_module((TEXTS / name).read_text())


def test_tpus_take_the_cycles_of_what_is_scheduled_as_often_as_it_runs():
    time = predict(read("async_fusions.hlo"), TPU, {"fsdp": 8})
    assert time.by_cycles
    assert time.compute_s == pytest.approx((6 * (300 + 500) + 50) / 1e3)
    # Two products [8, 8] × [8, 8] within the fusions of each iteration.
    assert time.products_flops == 6 * 2 * (2 * 8 * 8 * 8)
    assert not time.uncounted_kernels


@pytest.mark.parametrize("link", [1e4, 100.0])
def test_asynchronous_collectives_hide_behind_the_compute_of_their_loop(link):
    chip = dataclasses.replace(TPU, link_bandwidth=link)
    time = predict(read("async_fusions.hlo"), chip, {"fsdp": 8})  # 2 × 4 chips
    gather = 6 * (32 * 8 * 2) * 7 / 8 / (2 * link)
    scatter = (16 * 8 * 2) * 7 / 8 / (2 * link)
    loop = 6 * (300 + 500) / 1e3

    assert time.async_collectives_s == pytest.approx(gather)
    assert time.collectives_s == pytest.approx(scatter)
    assert time.high_s == pytest.approx(time.compute_s + scatter + gather)
    exposed = max(0.0, gather - loop)
    assert (exposed > 0) == (link == 100)
    assert time.low_s == pytest.approx(time.compute_s + scatter + exposed)


def test_kernels_without_cycles_are_named():
    text = (TEXTS / "kernel.hlo").read_text()
    counted = predict(parse_module(text), TPU, {"fsdp": 1})
    assert counted.compute_s == pytest.approx(70 / 1e3)
    assert counted.uncounted_kernels == ()

    bare = text.replace('"estimated_cycles":"70",', "")
    left_out = predict(parse_module(bare), TPU, {"fsdp": 1})
    assert left_out.uncounted_kernels == ("kernel.1",)


def test_attention_kernels_run_at_a_share_of_the_peak():
    text = """HloModule m
ENTRY %main () -> f32[] {
  %q = bf16[1,256,2,64]{3,2,1,0} parameter(0)
  ROOT %c = (bf16[1,2,256,64]{3,1,2,0}) custom-call(%q, %q, %q), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={\
"cudnn_fmha_backend_config":{"intermediate_tensor_shape":\
{"dimensions":["1","2","256","256"]},"mask_type":"NO_MASK"}}
}"""
    flops = 4 * 2 * 256 * 256 * 64
    for share in (0.5, 0.8):
        time = predict(parse_module(text), GPU, {"a": 1}, kernel_efficiency=share)
        assert time.kernels_flops == flops
        assert time.kernels_s == pytest.approx(flops / (share * 1e6))
        assert time.low_s == time.high_s == time.kernels_s
        assert time.compute_s == time.products_flops == 0


def test_without_cycles_a_roofline_bounds_each_instruction():
    def step(x, weights):
        def layer(x, w):
            return x @ w, None

        return jax.lax.scan(layer, x, weights)[0]

    arguments = jnp.ones((64, 32)), jnp.ones((5, 32, 32))
    module = parse_module(jax.jit(step).lower(*arguments).compile().as_text())
    # So much memory bandwidth that products are all that takes time, and vice versa.
    chip = dataclasses.replace(GPU, memory_bandwidth=1e15)
    time = predict(module, chip, {"a": 1})
    assert not time.by_cycles
    assert time.products_flops == 5 * 2 * 64 * 32 * 32
    assert time.compute_s == pytest.approx(time.products_flops / 1e6, rel=1e-4)

    chip = dataclasses.replace(GPU, peak_flops=1e15)
    time = predict(module, chip, {"a": 1})
    products = 5 * 4 * (64 * 32 + 32 * 32 + 64 * 32) / 1e4
    # Besides, each iteration copies its weights out of the stack and the activations.
    copies = 5 * 4 * 2 * (32 * 32 + 64 * 32) / 1e4
    assert products < time.compute_s < products + 1.5 * copies


def test_a_real_sharded_step_waits_for_its_collectives():
    shape = {"data": 2, "fsdp": 4}
    mesh = jax.make_mesh((2, 4), tuple(shape), axis_types=(AxisType.Auto,) * 2)

    def step(x, weights):
        def layer(x, w):
            return x @ jax.lax.all_gather(w, "fsdp", axis=0, tiled=True), None

        x, _ = jax.lax.scan(layer, x, weights)
        return jax.lax.psum(x, ("data", "fsdp"))

    sharded = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(None, "fsdp")),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    compiled = jax.jit(sharded).lower(jnp.ones((4, 8)), jnp.ones((6, 8, 8))).compile()
    time = predict(parse_module(compiled.as_text()), TPU, shape)

    gathers = 6 * (8 * 8 * 4) * 3 / 4 / 100  # along the four of 2 × 4
    reduction = 2 * (4 * 8 * 4) * 7 / 8 / 200
    assert time.collectives_s == pytest.approx(gathers + reduction)
    assert time.async_collectives_s == 0
    assert time.low_s == time.high_s == time.compute_s + time.collectives_s
