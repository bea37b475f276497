"""What libtpu makes of a train step for eight v5e chips, without having them."""

import re

import pytest
from on_meshes import OPTIMIZER
from tpu_compiler import compiled_step, tpu_devices

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.planning.collectives import collectives
from fmjax.planning.hlo_module import parse_module
from fmjax.sharding.mesh import MeshConfig

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


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh", [MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2)]
)
def test_a_gpt_attends_by_splash_and_holds_no_square_of_its_length(mesh):
    devices = tpu_devices("v5e:2x4")
    objective = CausalLM(GPT(CONFIG, 1536, T, positions="none"))
    compiled = compiled_step(objective, OPTIMIZER, mesh, devices, rows=8, length=T)
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
    compiled = compiled_step(objective, OPTIMIZER, mesh, devices, rows=4, length=T)
    found = collectives(parse_module(compiled.as_text()), {"data": 4, "tensor": 2})
    residual = 2 * T * CONFIG.embed_dim  # bytes of a row in bfloat16
    of_layers = [c for c in found if c.axes == ("tensor",) and c.runs >= 2]
    gathered = [c.bytes for c in of_layers if c.kind == "all-gather"]
    # The input of attention and of the feed-forward layer, of one row a device.
    assert gathered.count(residual) >= 2
    assert max(gathered) == residual
