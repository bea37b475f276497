"""What libtpu makes of a train step for eight v5e chips, without having them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest
from on_meshes import OPTIMIZER
from tiers import slow
from tpu_compiler import compiled_step, text_batch, tpu_devices

from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.position_bias import RelativeBuckets
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.planning.attention_kernels import kernel_calls
from fmjax.planning.collectives import collectives
from fmjax.planning.hlo_module import parse_module
from fmjax.sharding.mesh import MeshConfig
from fmjax.training.state import abstract_variables

T, H = 4096, 4
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=256,
    num_heads=H,
    num_kv_heads=2,
    norm="rmsnorm",
    bias=False,
    rotary=Rotary(10000.0),
    remat="full",
)


ROWS, SHORT, V, PIXELS = 32, 256, 1536, 64
SMALL = dataclasses.replace(
    CONFIG,
    embed_dim=128,
    num_heads=2,
    num_kv_heads=None,
    rotary=None,
    remat="weights",
)
T5 = dataclasses.replace(SMALL, position_bias=RelativeBuckets(), attention_scale=1.0)


def of_pairs(rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    found = text_batch(rows, length)
    tokens = found.pop("tokens")
    return found | {"encoder_tokens": tokens, "decoder_positions": tokens}


def of_images(rows: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {
        "images": ((size, size, 3), jnp.float32),
        "labels": ((), jnp.int32),
        "weights": ((), jnp.float32),
    }
    return {
        name: jax.ShapeDtypeStruct((rows, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


MODELS = {
    "gpt": (CausalLM(GPT(SMALL, V, SHORT)), text_batch(ROWS, SHORT)),
    "t5": (
        Seq2SeqLM(Seq2Seq(T5, T5, V, SHORT, positions="none", start_id=0)),
        of_pairs(ROWS, SHORT),
    ),
    # 257 tokens, the class token among them, which splash pads to 384.
    "vit": (
        Classification(ViT(SMALL, PIXELS, 4, num_classes=10)),
        of_images(ROWS, PIXELS),
    ),
}


@pytest.mark.parametrize("name", ["gpt", slow("t5"), slow("vit")])
def test_small_models_for_eight_chips(name):
    objective, batch = MODELS[name]
    mesh = MeshConfig(data=1, fsdp=8)
    devices = tpu_devices("v5e:2x4")
    compiled = compiled_step(objective, OPTIMIZER, mesh, devices, batch)
    module = parse_module(compiled.as_text())
    kernels = {name.split("_")[2] for name in kernel_calls(module) if "splash" in name}
    # In T5 in cross-attention: its position bias is not for splash.
    assert kernels == {"fwd", "dkv"}
    # Weights and their gradients travel, activations do not.
    _, shapes = abstract_variables(objective)
    largest = max(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    activations = 2 * ROWS * SHORT * SMALL.embed_dim
    assert largest < activations
    found = collectives(module, {"fsdp": 8})
    assert max(c.bytes for c in found) < activations
    # Weights of the head and of the embedding once a step, not once a chunk.
    assert not [c for c in found if c.runs > SMALL.num_layers and c.bytes > largest / 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_a_gpt_attends_by_splash_and_holds_no_square_of_its_length(mesh):
    devices = tpu_devices("v5e:2x4")
    objective = CausalLM(GPT(CONFIG, 1536, T, positions="none"))
    compiled = compiled_step(objective, OPTIMIZER, mesh, devices, text_batch(8, T))
    text = compiled.as_text()
    kernels = set(re.findall(r'%(splash\w*?)[.\d]* = .*"tpu_custom_call"', text))
    assert {name.split("_")[2] for name in kernels} >= {"fwd", "dkv"}
    assert f"{T},{T}]" not in text
    # Of one row's scores in float32 a fraction: nothing of their kind is held.
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * H * T * T / 2


@pytest.mark.slow
def test_tensor_parallelism_gathers_and_scatters_the_length_of_the_residual_stream():
    devices = tpu_devices("v5e:2x4")
    objective = CausalLM(GPT(CONFIG, 1536, T, positions="none"))
    mesh = MeshConfig(data=4, tensor=2)
    compiled = compiled_step(objective, OPTIMIZER, mesh, devices, text_batch(4, T))
    found = collectives(parse_module(compiled.as_text()), {"data": 4, "tensor": 2})
    residual = 2 * T * CONFIG.embed_dim  # bytes of a row in bfloat16
    of_layers = [c for c in found if c.axes == ("tensor",) and c.runs >= 2]
    gathered = [c.bytes for c in of_layers if c.kind == "all-gather"]
    # The input of attention and of the feed-forward layer, of one row a device.
    assert gathered.count(residual) >= 2
    assert max(gathered) == residual
