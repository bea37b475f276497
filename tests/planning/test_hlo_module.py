"""Computations, instructions and loops of compiled programs, read from their text.

The texts in hlo/ are written by hand, as short as they can be.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import pytest

from fmjax.models.layers import expert_blocks
from fmjax.models.layers.expert_blocks import experts_in_blocks
from fmjax.planning.hlo_module import parse_module

TEXTS = pathlib.Path(__file__).with_name("hlo")
# A kernel's attributes hold line breaks; the lines after them may start with a brace,
# and strings may hold unbalanced ones.
KERNEL = (TEXTS / "kernel.hlo").read_text()
# The outer loop counts from 1 to 7 by 2: three times. The inner one runs while
# 5 > counter, tested in a fusion: five times each. The last one's length is not told.
NESTED_LOOPS = (TEXTS / "nested_loops.hlo").read_text()


def test_kernels_with_line_breaks_in_their_attributes_are_one_instruction():
    entry = parse_module(KERNEL).computations["main"]

    assert [i.name for i in entry.instructions] == ["x", "y", "kernel.1", "out"]
    kernel = entry.by_name["kernel.1"]
    assert kernel.opcode == "custom-call"
    assert kernel.custom_call_target == "tpu_custom_call"
    assert kernel.operands == ("x", "y")
    assert [(a.dtype, a.dims) for a in kernel.results] == [
        ("bf16", (8, 16)),
        ("f32", (4,)),
    ]
    assert kernel.result_bytes == 2 * 8 * 16 + 4 * 4
    assert kernel.op_name == "jit(step)/kernel"
    assert kernel.estimated_cycles == 70
    assert entry.root.name == "out"


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("pred[3]", 3),
        ("s4[3]", 2),  # two elements a byte
        ("f8e4m3fn[2,5]", 10),
        ("c64[2]", 16),
        ("bf16[<=8,2]", 32),
        ("token[]", 0),
        ("f32[]", 4),
    ],
)
def test_sizes_follow_from_the_dtype(shape, size):
    text = (
        f"HloModule m\n\nENTRY %main () -> {shape} {{\n  ROOT %x = {shape} iota()\n}}"
    )
    assert parse_module(text).computations["main"].root.result_bytes == size


def test_loops_multiply_how_often_computations_run():
    module = parse_module(NESTED_LOOPS)
    runs = {name: c.runs for name, c in module.computations.items()}

    assert runs["main"] == 1
    assert runs["outer_body"] == 3
    assert runs["outer_condition"] == 4
    assert runs["inner_body"] == runs["double"] == 15
    assert runs["inner_condition"] == 18
    assert runs["noted_body"] == 11
    assert runs["unknown_body"] == 1
    assert module.unknown_loops == ("open",)


def test_the_inside_of_a_fusion_is_not_scheduled():
    names = {(c.name, i.name) for c, i in parse_module(NESTED_LOOPS).scheduled()}
    assert ("inner_body", "w") in names
    assert not {c for c, _ in names} & {"double", "less"}


def test_a_computation_that_loops_and_the_entry_call_counts_both():
    text = NESTED_LOOPS.replace(
        "ROOT %out = f32[4]{0} get-tuple-element(%open), index=1",
        "ROOT %out = f32[4]{0} call(%v), to_apply=%double",
    )
    double = parse_module(text).computations["double"]
    assert double.runs == 16


@pytest.mark.parametrize(
    "printed",
    [
        "conditional(%n, %x, %x), branch_computations={%double, %same}",
        "conditional(%n, %x, %x), true_computation=%double, false_computation=%same",
    ],
)
def test_branches_of_a_conditional_share_its_runs(printed):
    text = f"""
%double (p: f32[4]) -> f32[4] {{
  %p = f32[4]{{0}} parameter(0)
  ROOT %twice = f32[4]{{0}} add(%p, %p)
}}
%same (q: f32[4]) -> f32[4] {{
  ROOT %q = f32[4]{{0}} parameter(0)
}}
ENTRY %main (x: f32[4], n: s32[]) -> f32[4] {{
  %x = f32[4]{{0}} parameter(0)
  %n = s32[] parameter(1)
  ROOT %y = f32[4]{{0}} {printed}
}}"""
    module = parse_module(text)
    assert module.computations["double"].runs == module.computations["same"].runs == 0.5
    assert not module.computations["double"].fused


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        parse_module("error: out of memory")


def test_loops_of_real_programs_have_the_lengths_of_their_scans():
    def step(x, weights):
        def outer(carry, _):
            def inner(carry, w):
                return jnp.tanh(carry @ w), None

            return jax.lax.scan(inner, carry, weights)[0], None

        return jax.lax.scan(outer, x, None, length=3)[0].sum()

    arguments = jnp.ones((4, 8)), jnp.ones((5, 8, 8))
    compiled = jax.jit(jax.grad(step, 1)).lower(*arguments).compile()
    text = compiled.as_text()
    for annotated in (True, False):  # TPUs' compiler notes no trip counts
        shown = text if annotated else text.replace("known_trip_count", "other")
        module = parse_module(shown)
        bodies = sorted(
            module.computations[i.attributes["body"].strip("%")].runs
            for _, i in module.scheduled()
            if i.opcode == "while"
        )
        assert bodies == [3, 3, 15, 15]
        assert not module.unknown_loops


def test_loops_whose_length_the_data_decides_count_as_the_model_notes(monkeypatch):
    monkeypatch.setattr(expert_blocks, "SMALLEST_BLOCK", 1)

    def run(x, experts, kernel):
        kernels = {"in": kernel}
        product = functools.partial(experts_in_blocks, expected=8, feed_forward=forward)
        return product(x, experts, kernels).sum()

    def forward(x, kernels, multiply):
        return multiply(x, kernels["in"])

    arguments = jnp.ones((32, 4)), jnp.zeros(32, int), jnp.ones((2, 4, 4))
    compiled = jax.jit(jax.grad(run, (0, 2))).lower(*arguments).compile()
    module = parse_module(compiled.as_text())
    assert not module.unknown_loops
    runs = [
        module.computations[i.attributes["body"].strip("%")].runs
        for _, i in module.scheduled()
        if i.opcode == "while" and "expected_trips" in i.op_name
    ]
    assert 3 in runs
