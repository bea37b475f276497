"""Train steps whose sequences are sharded compute what one device does."""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from on_meshes import (
    assert_same,
    assert_same_gradients,
    build,
    gradients_of,
    packed_rows,
    random_state,
    rows_of,
    run_steps,
)
from tiers import slow
from training.test_sharded_families import (
    BUCKETS,
    DEEPSEEK,
    EXPERTS,
    GEMMA2,
    GPT_OSS,
    PRE,
)
from training.test_sharded_step import CONFIG

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.mixture_of_experts import Experts
from fmjax.models.layers.position_bias import Alibi
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.vision.vit import ViT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.classification import Classification
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.sharding.mesh import MeshConfig, batch_sharding, on_mesh
from fmjax.training.accumulation import accumulate
from fmjax.training.step import example_keys

V, B, T, S = 60, 8, 32, 16
SIZES = {"vocab_size": V, "max_length": T, "vocab_multiple": 64}
LLAMA = dataclasses.replace(CONFIG, dropout=0.0, attention_dropout=0.0)
MESHES = {
    "context": MeshConfig(data=1, context=8),
    "data_context": MeshConfig(data=2, context=4),
    "fsdp_context_tensor": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
}


def without_dropout(config: TransformerConfig) -> TransformerConfig:
    return dataclasses.replace(
        config, dropout=0.0, attention_dropout=0.0, mlp_dropout=0.0
    )


def decoder(config: TransformerConfig, **fields) -> CausalLM:
    fields = {"positions": "none", "tie_embeddings": False} | fields
    return CausalLM(GPT(config, **SIZES, **fields), z_loss=1e-3)


def causal(step):
    rng = np.random.default_rng(step)
    tokens = rng.integers(0, V, (B, T + 1)).astype(np.int32)
    segments, positions = packed_rows(rng, B, T)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": (segments > 0).astype(np.float32),
        "segment_ids": segments,
        "positions": positions,
    }


def masked(step):
    data = causal(step)
    hidden = np.random.default_rng(step).random((B, T)) < 0.3
    return data | {
        "targets": data["tokens"],
        "weights": data["weights"] * hidden,
    }


def pairs(step):
    rng = np.random.default_rng(step)
    encoder, encoder_positions = packed_rows(rng, B, S)
    decoder, decoder_positions = packed_rows(rng, B, T)
    return {
        "encoder_tokens": rng.integers(0, V, (B, S)).astype(np.int32),
        "encoder_segment_ids": encoder,
        "encoder_positions": encoder_positions,
        "decoder_segment_ids": decoder,
        "decoder_positions": decoder_positions,
        "targets": rng.integers(0, V, (B, T)).astype(np.int32),
        "weights": (decoder > 0).astype(np.float32),
    }


def images(step):
    rng = np.random.default_rng(step)
    return {
        "images": rng.normal(size=(B, 8, 16, 3)).astype(np.float32),
        "labels": rng.integers(0, 6, B).astype(np.int32),
        "weights": (rng.random(B) < 0.8).astype(np.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
@pytest.mark.parametrize("microbatches", [1, 2])
def test_a_decoder_trains_as_on_one_device(name, microbatches):
    objective = decoder(LLAMA)
    assert_same(
        run_steps(objective, causal, None, steps=5),
        run_steps(objective, causal, MESHES[name], microbatches, steps=5),
    )


GEMMA = without_dropout(GEMMA2)
T5 = without_dropout(BUCKETS)
FAMILIES = {
    "decoder": (decoder(LLAMA), causal),
    # Drawn by position, so the order stays natural.
    "dropout": (
        decoder(dataclasses.replace(LLAMA, dropout=0.1, mlp_dropout=0.1)),
        causal,
    ),
    "dropped attention": (
        decoder(dataclasses.replace(LLAMA, attention_dropout=0.1)),
        causal,
    ),
    "windows and soft-caps": (decoder(GEMMA), causal),
    "alibi": (
        decoder(dataclasses.replace(LLAMA, rotary=None, position_bias=Alibi())),
        causal,
    ),
    "experts": (decoder(without_dropout(EXPERTS)), causal),
    "experts with a capacity": (
        decoder(
            dataclasses.replace(
                without_dropout(EXPERTS), experts=Experts(4, capacity=1.0)
            )
        ),
        causal,
    ),
    "sinks and experts": (decoder(without_dropout(GPT_OSS)), causal),
    "latent attention": (decoder(without_dropout(DEEPSEEK)), causal),
    "t5": (
        Seq2SeqLM(
            Seq2Seq(T5, T5, **SIZES, positions="none", start_id=0), label_smoothing=0.1
        ),
        pairs,
    ),
    "bert": (MaskedLM(Bert(without_dropout(PRE), **SIZES)), masked),
    "vit": (
        Classification(
            ViT(
                without_dropout(PRE),
                num_classes=6,
                image_size=(8, 16),
                patch_size=2,
                pooling="average",
                class_token=False,
            )
        ),
        images,
    ),
}


@pytest.mark.parametrize(
    "name", [name if name == "decoder" else slow(name) for name in FAMILIES]
)
def test_families_have_the_gradients_of_one_device(name):
    objective, batch = FAMILIES[name]
    loss, gradients = gradients_of(objective, batch(0), None)
    for mesh in ("data_context", "fsdp_context_tensor"):
        found, same = gradients_of(objective, batch(0), MESHES[mesh])
        np.testing.assert_allclose(found, loss, rtol=1e-5)
        assert_same_gradients(gradients, same)


def test_lengths_that_the_ring_does_not_divide_are_refused():
    def cut(step):
        return {name: x[:, :28] for name, x in causal(step).items()}

    with pytest.raises(
        UserError, match=r"mesh.context = 8: .* of 28; .* multiple of 16"
    ):
        gradients_of(decoder(LLAMA), cut(0), MESHES["context"])


def compiled(how: str):
    objective = decoder(dataclasses.replace(LLAMA, context_attention=how))
    mesh, rules = build(MESHES["data_context"])
    state = random_state(objective, mesh, rules)
    batch = jax.device_put(causal(0), batch_sharding(mesh, rules))

    @jax.jit
    def gradients(state, batch):
        keys = example_keys(0, state.step, rows_of(batch))
        return accumulate(objective, state, batch, keys, 1)[0]

    with on_mesh(mesh, rules):
        return gradients.lower(state, batch).compile()


def shapes(text: str, collective: str) -> list[tuple[int, ...]]:
    found = re.findall(rf"= \(?(\w+)\[([\d,]*)\].* {collective}(?:-start)?\(", text)
    return [
        tuple(int(n) for n in dims.split(",") if n)
        for dtype, dims in found
        if dtype == "f32"
    ]


def test_no_device_of_a_ring_has_all_keys():
    ring, gathered = (compiled(how).as_text() for how in ("ring", "all_gather"))
    whole = (B // 2, T, LLAMA.kv_heads, LLAMA.head_width)
    for text, expected in ((ring, False), (gathered, True)):
        # Beside parameters, which have two axes.
        found = [s for s in shapes(text, "all-gather") if len(s) > 2]
        assert found == [whole] * len(found)
        assert bool(found) == expected
    # Keys and values pass by, forwards and backwards; their gradients too.
    part = math.prod(whole) // 4
    passed = [int(np.prod(s)) for s in shapes(ring, "collective-permute")]
    assert passed.count(part) >= 4
    assert not [s for s in passed if s > B // 2 * T // 4 * LLAMA.embed_dim]
