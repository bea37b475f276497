"""On a mesh a head's weights travel once a step, and not once for each chunk."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from on_meshes import MESHES, build, random_state, rows_of

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.sharding.mesh import batch_sharding, on_mesh
from fmjax.training.accumulation import accumulate
from fmjax.training.step import example_keys

V, D, T, B = 1280, 16, 32, 16
CONFIG = TransformerConfig(
    num_layers=1, embed_dim=D, num_heads=4, mlp_dim=24, dtype="float32"
)
COLLECTIVE = re.compile(
    r"= (\S+|\(.*?\)) (all-gather|all-reduce|reduce-scatter|all-to-all)(-start)?\("
)


def collectives(mesh_name, tie_embeddings):
    """(inside of a loop, size in elements) of each collective of a gradient."""
    objective = CausalLM(
        GPT(CONFIG, V, T, tie_embeddings=tie_embeddings), head_chunks=8
    )
    mesh, rules = build(MESHES[mesh_name])
    state = random_state(objective, mesh, rules)
    ids = np.zeros((B, T), np.int32)
    batch = {"tokens": ids, "targets": ids, "weights": np.ones((B, T), np.float32)}
    batch = jax.device_put(batch, batch_sharding(mesh, rules))

    @jax.jit
    def gradients(state, batch):
        keys = example_keys(0, state.step, rows_of(batch))
        return accumulate(objective, state, batch, keys, 1)[0]

    with on_mesh(mesh, rules):
        text = gradients.lower(state, batch).compile().as_text()
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    assert bodies  # the loop over chunks is one
    inside, found = None, []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" "):
            inside = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line).group(1)
        if match := COLLECTIVE.search(line):
            for shape in re.findall(r"\[([\d,]*)\]", match.group(1)):
                size = np.prod([int(n) for n in shape.split(",") if n], dtype=int)
                found.append((inside in bodies, int(size)))
    return found


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("mesh_name", MESHES)
def test_a_heads_weights_cross_the_mesh_outside_of_the_loop(mesh_name, tie_embeddings):
    mesh = MESHES[mesh_name]
    whole = V * D // dataclasses.asdict(mesh)["tensor"]
    found = collectives(mesh_name, tie_embeddings)
    inside = [size for in_loop, size in found if in_loop]
    # Sums over the vocabulary of a chunk's places, at most.
    assert max(inside, default=0) <= B * T
    # Each of: the gather of the head's weight where it is sharded, the sum of its
    # gradient, the same of the embedding; a tied table is gathered once for both.
    assert 1 <= sum(size >= whole for _, size in found) <= (3 if tie_embeddings else 4)
