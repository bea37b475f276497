"""A step of adapters keeps and computes nothing of the size of a frozen weight."""

import dataclasses
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import pytest
from on_meshes import build
from tiers import slow

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.optimizers import AdamW
from fmjax.optim.peft.coding import Int8, NormalFloat4
from fmjax.optim.peft.lora import LoRA
from fmjax.optim.peft.peft import Peft
from fmjax.optim.schedules import Constant
from fmjax.sharding.mesh import on_mesh
from fmjax.training.state import plan_state
from fmjax.training.step import make_train_step

# No activation of 2 rows of 5 tokens has as many elements as one of the matrices.
L, D, F, V, B, T, R = 12, 64, 192, 256, 2, 5, 3
CONFIG = TransformerConfig(
    num_layers=L,
    embed_dim=D,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=F,
    gated_mlp=True,
    norm="rmsnorm",
    bias=False,
    rotary=Rotary(1e4),
    dtype="float32",
)
DROPLESS = dataclasses.replace(CONFIG, experts=Experts(4))
CAPACITY = dataclasses.replace(CONFIG, experts=Experts(4, capacity=1.0))
# The matrices of a layer, inputs × outputs: q, k, v, o, and gate, in, out.
SIDES = ((D, D), (D, D // 2), (D, D // 2), (D, D), (D, F), (D, F), (F, D))
MATRICES = sum(a * b for a, b in SIDES)
OTHERS = V * D + (2 * L + 1) * D  # a table, which the head shares, and norms
ADAPTERS = L * R * sum(a + b for a, b in SIDES)
SCALES = L * len(SIDES)
PATHS = ("**/attention/*", "**/mlp/in", "**/mlp/gate", "**/mlp/out")
# Bytes of a layer's matrices: two codes in a byte, and a code of 64 weights' largest
# magnitude, a largest magnitude of 256 of those, at most one a matrix more, and a mean.
NF4 = sum(
    n // 2 + n // 64 + 4 * math.ceil(n // 64 / 256) + 4
    for n in (a * b for a, b in SIDES)
)
INT8 = MATRICES + 4 * sum(b for _, b in SIDES)
BASES = {
    "float32": (Peft, 4 * (L * MATRICES + OTHERS)),
    "bfloat16": (Peft, 2 * (L * MATRICES + OTHERS)),
    "nf4": (NormalFloat4, L * NF4 + 4 * OTHERS),
    "int8": (Int8, L * INT8 + 4 * OTHERS),
}
WEIGHTS = {(V, D), *SIDES}
LORA = LoRA(paths=PATHS, rank=R)


class Step:
    """A traced step of a model with adapters; of all its parameters without."""

    def __init__(self, peft, config=CONFIG):
        objective = CausalLM(GPT(config, V, T, positions="none", vocab_multiple=1))
        optimizer = AdamW(schedule=Constant(learning_rate=1e-3))
        self.mesh, rules = build(None)
        self.plan = plan_state(
            objective, optimizer, self.mesh, rules, train_steps=5, peft=peft
        )
        step = make_train_step(
            objective, self.plan, lambda s: 1e-3, self.mesh, rules, seed=0
        )
        ids = jax.ShapeDtypeStruct((B, T), jnp.int32)
        weights = jax.ShapeDtypeStruct((B, T), jnp.float32)
        batch = {"tokens": ids, "targets": ids, "weights": weights}
        with on_mesh(self.mesh, rules):
            self.traced = step.trace(self.plan.shapes, batch, 0)

        self.lowered = self.traced.lower()

    def arrays(self, operations):
        """(dtype, shape) of operands and results of each operation of these names."""
        lines = re.findall(rf"stablehlo\.(?:{operations})\b.*", self.lowered.as_text())
        for line in lines:
            found = re.findall(r"tensor<((?:\d+x)*)([a-z]\w+)>", line)
            yield [(kind, _sizes(shape, "x")) for shape, kind in found]

    def made(self):
        """Shapes of the results of all products and sums, as often as they occur."""
        operations = "dot_general|add|multiply"
        return Counter(arrays[-1][1] for arrays in self.arrays(operations))


def _sizes(text, between):
    return tuple(int(size) for size in text.split(between) if size)


def of_weights(shapes, weights):
    """Those with as many elements as one of the weights."""
    sizes = {math.prod(shape) for shape in weights}
    return {s: n for s, n in shapes.items() if math.prod(s) in sizes}


@pytest.mark.parametrize(
    ("config", "rank_stabilized"),
    [
        slow(CONFIG, False),
        (CONFIG, True),
        (DROPLESS, False),
        slow(CAPACITY, False),
    ],
)
def test_no_matrix_of_the_size_of_a_weight_is_made(config, rank_stabilized):
    weights = WEIGHTS
    if config.experts:
        weights = {(V, D), *SIDES[:4], *((4, *sides) for sides in SIDES[4:])}
    lora = dataclasses.replace(LORA, rank_stabilized=rank_stabilized)
    step = Step(Peft(methods=(lora,)), config)
    assert of_weights(step.made(), weights) == {}


def test_gradients_of_a_step_without_adapters_are_made():
    # So the test above finds what there is to find.
    found = of_weights(Step(None).made(), WEIGHTS)
    assert {math.prod(shape) for shape in found} == {a * b for a, b in WEIGHTS}


@pytest.mark.parametrize(
    "base", [slow("float32"), slow("bfloat16"), "nf4", slow("int8")]
)
def test_a_step_keeps_adapters_and_their_moments_beside_the_base(base):
    coding, size = BASES[base]
    peft = Peft(
        methods=(LORA,),
        base_dtype="float32" if coding is not Peft else base,
        coding=coding() if coding is not Peft else None,
    )
    step = Step(peft)
    moments = [leaf.shape for leaf in jax.tree.leaves(step.plan.shapes.opt_state)]
    assert sum(math.prod(shape) for shape in moments if shape) == 2 * ADAPTERS

    compiled = step.lowered.compile()
    memory = compiled.memory_analysis()
    state = size + 4 * (3 * ADAPTERS + SCALES)
    counters = 64  # of steps, and of updates
    batch = 3 * 4 * B * T
    assert 0 <= memory.argument_size_in_bytes - batch - state <= counters
    # Metrics, and the addresses of arrays.
    assert 0 <= memory.output_size_in_bytes - state <= 2048
    # The next state takes the place of the last one; frozen arrays stay where they are.
    assert 0 <= memory.alias_size_in_bytes - state <= counters
    if base in ("float32", "nf4"):
        # XLA multiplies bfloat16 in float32 on CPUs. Gradients of the base, or all of
        # it decoded, would be this large, beside what is there now.
        assert memory.temp_size_in_bytes < 4 * L * MATRICES
    shapes = re.findall(r"= \w+\[([\d,]+)\]\S* dot\(", compiled.as_text())
    products = Counter(_sizes(shape, ",") for shape in shapes)
    assert products
    assert of_weights(products, WEIGHTS) == {}


@pytest.mark.parametrize("dora", [slow(False), True])
def test_a_base_in_bfloat16_is_multiplied_in_bfloat16(dora):
    lora = dataclasses.replace(LORA, dora=dora)
    config = dataclasses.replace(CONFIG, dtype="bfloat16")
    step = Step(Peft(methods=(lora,), base_dtype="bfloat16"), config)
    sizes, found = {a * b for a, b in SIDES}, Counter()
    for arrays in step.arrays("dot_general"):
        operands = arrays[:-1]
        found.update(dtype for dtype, shape in operands if math.prod(shape) in sizes)
    assert set(found) == {"bf16"}
    # Once forward and once backward; with DoRA the norms read each weight once more.
    assert found["bf16"] >= (3 if dora else 2) * len(SIDES)
