"""What models read of a text: the arrays, their defaults, and how they are named."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.models.call_arguments import array_names, call_arguments
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.multimodal.clip import CLIP
from fmjax.models.multimodal.m3ae import M3AE
from fmjax.models.multimodal.text_encoder import TextEncoder
from fmjax.models.vision.vit import ViT

BLOCK = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, dtype="float32")
V, B, T = 20, 2, 5
TEXT = {"vocab_size": V, "max_length": T}
ENCODER = TextEncoder(BLOCK, **TEXT)
MODELS = {
    "gpt": GPT(BLOCK, **TEXT),
    "bert": Bert(BLOCK, **TEXT),
    "electra": Electra(BLOCK, BLOCK, **TEXT),
    "seq2seq": Seq2Seq(BLOCK, BLOCK, **TEXT, positions="learned"),
    "text_encoder": ENCODER,
    "clip": CLIP(ViT(BLOCK, image_size=8, patch_size=4), ENCODER, embed_dim=8),
    "m3ae": M3AE(BLOCK, BLOCK, image_size=8, patch_size=4, **TEXT),
}
TOKENS = np.random.default_rng(0).integers(0, V, (B, T)).astype(np.int32)
# What each array is when it is not given, as TextInputs documents it.
DEFAULTS = {
    "token_types": np.zeros((B, T), np.int32),
    "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
    "segment_ids": np.ones((B, T), np.int32),
    "padding_mask": np.ones((B, T), bool),
}


def random_parameters(model, *texts):
    """Larger than at the start, so that every input shows."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *texts)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        nn.unbox(shapes),
    )


def output_and_parameters(model, *texts):
    params = random_parameters(model, *texts)
    return jax.jit(model.apply)(params, *texts)["hidden"], params


def test_a_mean_is_of_tokens_and_of_a_row_without_tokens_zero():
    model = Bert(BLOCK, **TEXT, pooler="tanh", pooling="mean")
    mask = np.array([[True, True, True, False, False], [False] * T])
    params = random_parameters(model, TOKENS)
    out = jax.jit(model.apply)(params, TextInputs(TOKENS, padding_mask=mask))
    pool = jax.tree.map(np.float64, params["params"]["pool"])
    means = np.stack([np.float64(out["hidden"])[0, :3].mean(0), np.zeros(8)])
    expected = np.tanh(means @ pool["kernel"] + pool["bias"])
    np.testing.assert_allclose(out["pooled"], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt", "bert", "electra", "seq2seq", "text_encoder"])
def test_tokens_alone_stand_for_a_text_of_defaults(name):
    model = MODELS[name]
    alone = [TOKENS] * len(model.text_arguments)
    spelled_out = [
        TextInputs(TOKENS, **{field: DEFAULTS[field] for field in fields})
        for fields in model.text_arguments.values()
    ]
    hidden, params = output_and_parameters(model, *alone)
    given = jax.jit(model.apply)(params, *spelled_out)["hidden"]
    np.testing.assert_allclose(given, hidden, atol=1e-5)


@pytest.mark.parametrize("field", DEFAULTS)
def test_arrays_that_a_model_reads_change_what_it_gives(field):
    model = MODELS["bert"]
    hidden, params = output_and_parameters(model, TOKENS)
    other = DEFAULTS[field].copy()
    other[:, T // 2 :] = {"padding_mask": False}.get(field, 1)
    other[:, : T // 2] = {"padding_mask": True, "segment_ids": 2}.get(field, 0)
    text = TextInputs(TOKENS, **{field: other})
    changed = jax.jit(model.apply)(params, text)["hidden"]
    assert np.abs(changed - hidden).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "argument", "field"),
    [
        ("gpt", "text", "token_types"),
        ("text_encoder", "text", "segment_ids"),
        ("seq2seq", "encoder_text", "token_types"),
        ("seq2seq", "decoder_text", "padding_mask"),
    ],
)
def test_arrays_that_a_model_does_not_read_are_refused(name, argument, field):
    model = MODELS[name]
    text = TextInputs(TOKENS, **{field: DEFAULTS[field]})
    texts = dict.fromkeys(model.text_arguments, TOKENS) | {argument: text}
    with pytest.raises(UserError, match=rf"{argument} has {field}, which @{name}\(\)"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), **texts))


def test_a_text_that_is_too_long_is_refused():
    model = MODELS["gpt"]
    with pytest.raises(UserError, match=r"6 tokens, gpt\.max_length = 5"):
        jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, T + 1), np.int32))


def test_arrays_have_the_names_that_users_give_them():
    names = {name: list(array_names(model)) for name, model in MODELS.items()}
    assert names == {
        "gpt": ["tokens", "positions", "segment_ids", "padding_mask"],
        "bert": ["tokens", "token_types", "positions", "segment_ids", "padding_mask"],
        "electra": [
            "tokens",
            "token_types",
            "positions",
            "segment_ids",
            "padding_mask",
        ],
        "seq2seq": [
            "encoder_tokens",
            "encoder_padding_mask",
            "encoder_segment_ids",
            "encoder_positions",
            "decoder_tokens",
            "decoder_segment_ids",
            "decoder_positions",
        ],
        "text_encoder": ["tokens", "padding_mask"],
        "clip": ["images", "tokens", "padding_mask"],
        "m3ae": ["images", "tokens", "padding_mask", "visible"],
    }
    needed = array_names(MODELS["seq2seq"])
    assert {name for name in needed if needed[name]} == {
        "encoder_tokens",
        "decoder_tokens",
    }


def test_a_padding_mask_without_tokens_is_refused():
    images = np.zeros((B, 8, 8, 3), np.float32)
    arrays = {"images": images, "padding_mask": DEFAULTS["padding_mask"]}
    for name in ("clip", "m3ae"):
        with pytest.raises(UserError, match="tokens is missing; padding_mask goes"):
            call_arguments(MODELS[name], arrays)
