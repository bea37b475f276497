"""Steps of parameter-efficient methods are the same on every mesh."""

import jax
import numpy as np
from on_meshes import (
    MESHES,
    OPTIMIZER,
    assert_same_gradients,
    build,
    gradients_of,
    packed_rows,
)

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.optim.peft.bottleneck import Bottleneck
from fmjax.optim.peft.peft import Peft
from fmjax.optim.peft.prefix import Prefix
from fmjax.optim.peft.prompt import Prompt
from fmjax.training.state import plan_state

V, T, B = 60, 12, 16
CONFIG = TransformerConfig(
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_dim=48,
    norm="rmsnorm",
    rotary=Rotary(10000.0),
    dtype="float32",
)
OBJECTIVE = CausalLM(GPT(CONFIG, V, T, positions="none", vocab_multiple=64))
PEFT = Peft(
    methods=(
        Prefix(3),
        Prompt(4),
        Bottleneck("houlsby", 8, init_std=0.2),
        Bottleneck("pfeiffer", 8, init_std=0.2),
    )
)


def batch():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    segments, positions = packed_rows(rng, B, T)
    return {
        "tokens": ids[:, :-1],
        "targets": ids[:, 1:],
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments,
        "positions": positions,
    }


def gradients(mesh_config, microbatches):
    mesh, rules = build(mesh_config)
    plan = plan_state(OBJECTIVE, OPTIMIZER, mesh, rules, train_steps=9, peft=PEFT)
    state = plan.init()
    loss, found = gradients_of(OBJECTIVE, batch(), mesh_config, microbatches, state)
    rows = state.params["stack"]["layers"]["attention"]["key_prefix"]["rows"]
    return loss, found, rows.sharding.shard_shape(rows.shape)


def test_gradients_are_those_of_one_device_and_one_batch():
    loss, found, whole = gradients(None, 1)
    other, split, shard = gradients(MESHES["data_fsdp_tensor"], 2)
    assert whole == (2, 3, 2, 8)
    assert shard == (2, 3, 1, 8)
    np.testing.assert_allclose(other, loss, rtol=1e-5)
    assert_same_gradients(found, split)
    added = {name: leaf for name, leaf in found.items() if "_p" in name or "_h" in name}
    assert all(np.abs(leaf).max() > 0 for leaf in added.values())
    assert len(added) == 2 + 1 + 3 * 4
    assert jax.device_count() == 8
