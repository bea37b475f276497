"""Pipelines compute what one device does, with unequal valid tokens a microbatch."""

import dataclasses

import numpy as np
import pytest
from on_meshes import assert_same, assert_same_gradients, gradients_of, run_steps
from training.test_context_step import LLAMA, SIZES, T5, causal, pairs
from training.test_sharded_families import EXPERTS

from fmjax.errors import UserError
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.pipeline import bubble
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.sharding.mesh import MeshConfig

MESHES = {
    "stage": MeshConfig(data=1, stage=4, fsdp=2),
    "joint": MeshConfig(data=1, stage=2, fsdp=2, tensor=2),
    "with context": MeshConfig(data=1, stage=2, context=2, tensor=2),
    "with experts": MeshConfig(data=1, stage=2, fsdp=2, expert=2),
}
DROPPED = dataclasses.replace(
    LLAMA, num_layers=4, dropout=0.1, mlp_dropout=0.1, stochastic_depth=0.2
)


def decoder(config, rounds=1, microbatches=None, **fields) -> CausalLM:
    config = dataclasses.replace(
        config, pipeline_rounds=rounds, pipeline_microbatches=microbatches
    )
    fields = {"positions": "none", "tie_embeddings": False} | fields
    return CausalLM(GPT(config, **SIZES, **fields), z_loss=1e-3)


def wide(batch, times=2):
    """Batches of more rows."""

    def rows(step):
        several = [batch(100 * i + step) for i in range(times)]
        return {
            name: np.concatenate([data[name] for data in several])
            for name in several[0]
        }

    return rows


def test_a_decoder_has_the_gradients_of_one_device():
    objective = decoder(DROPPED, rounds=2, microbatches=4)
    loss, gradients = gradients_of(objective, wide(causal)(0), None)
    found, same = gradients_of(objective, wide(causal)(0), MESHES["joint"])
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same_gradients(gradients, same)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "rounds", "pieces", "accumulated"),
    [
        ("joint", 2, 4, 1),
        ("stage", 1, None, 1),
        ("stage", 1, 8, 1),
        ("joint", 1, 2, 2),
        ("joint", 2, 2, 1),
    ],
)
def test_a_decoder_trains_as_on_one_device(mesh, rounds, pieces, accumulated):
    objective = decoder(DROPPED, rounds, pieces)
    assert_same(
        run_steps(objective, wide(causal), None, steps=4),
        run_steps(objective, wide(causal), MESHES[mesh], accumulated, steps=4),
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["joint", "with experts"])
def test_experts(mesh):
    objective = dataclasses.replace(decoder(EXPERTS), load_balance=1e-2, router_z=1e-3)
    loss, gradients = gradients_of(objective, wide(causal)(0), None)
    found, same = gradients_of(objective, wide(causal)(0), MESHES[mesh])
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same_gradients(gradients, same)


@pytest.mark.slow
def test_encoder_and_decoder():
    config = dataclasses.replace(T5, num_layers=2)
    model = Seq2Seq(config, config, **SIZES, positions="none", start_id=0)
    objective = Seq2SeqLM(model)
    loss, gradients = gradients_of(objective, pairs(0), None)
    found, same = gradients_of(objective, pairs(0), MESHES["joint"])
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same_gradients(gradients, same)


@pytest.mark.slow
def test_rings_in_a_pipeline():
    objective = decoder(dataclasses.replace(LLAMA, num_layers=4), 2)
    loss, gradients = gradients_of(objective, causal(0), None)
    found, same = gradients_of(objective, causal(0), MESHES["with context"])
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    assert_same_gradients(gradients, same)


@pytest.mark.parametrize(
    ("layers", "rounds", "pieces", "message"),
    [
        (2, 1, None, r"mesh.stage = 4 does not divide axis 'layers'"),
        (4, 2, None, r"pipeline_rounds = 2: .*\.num_layers = 4"),
        (4, 1, 6, r"pipeline_microbatches = 6: expected a multiple of mesh.stage = 4"),
        (4, 1, 8, r"pipeline_microbatches = 8 and 2 shards .* the 8 rows"),
    ],
)
def test_what_stages_cannot_share_is_refused(layers, rounds, pieces, message):
    objective = decoder(dataclasses.replace(LLAMA, num_layers=layers), rounds, pieces)
    with pytest.raises(UserError, match=message):
        gradients_of(objective, causal(0), MESHES["stage"])


def test_layers_that_are_not_in_one_scan_are_refused():
    objective = decoder(dataclasses.replace(LLAMA, num_layers=4, scan_layers=False))
    with pytest.raises(UserError, match=r"mesh.stage = 4: .*\.scan_layers = True"):
        gradients_of(objective, causal(0), MESHES["stage"])


def test_the_bubble_is_what_the_schedule_idles():
    for S, R, M in ((4, 1, 4), (4, 2, 8), (2, 3, 2)):
        busy = np.zeros((R * M + S - 1, S), bool)
        for t, s in np.ndindex(busy.shape):
            busy[t, s] = 0 <= t - s < R * M
        assert busy.sum() == R * M * S
        assert bubble(S, R, M) == pytest.approx(1 - busy.mean())
