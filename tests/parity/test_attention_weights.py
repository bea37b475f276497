"""Attention weights of all layers against Hugging Face's transformers."""

import dataclasses

import numpy as np
import pytest
import torch
from parity.decoders import DECODERS
from parity.encoder_decoders import T5
from parity.encoders import BERT, DEBERTA
from parity.image_encoders import VISION
from parity.models_of_transformers import (
    ENDS,
    LENGTH,
    LLAMA,
    VOCAB,
    all_close,
    imported,
    random_model,
    text,
)
from tiers import slow

import fmjax
from fmjax.models.layers.transformer import unstack_layers

GEMMA2 = {
    **LLAMA,
    "head_dim": 10,
    "sliding_window": 4,
    "attn_logit_softcapping": 2.0,
}
BLOOM = dict(vocab_size=VOCAB, hidden_size=42, n_layer=3, n_head=6, **ENDS)
TEXT = {**BERT, "num_hidden_layers": 2, "eos_token_id": 5}
ONE_STACK = {
    "gemma2": ("Gemma2ForCausalLM", GEMMA2),
    "bloom": ("BloomForCausalLM", BLOOM),
    "bert": ("BertForMaskedLM", BERT),
    "deberta": ("DebertaV2ForMaskedLM", DEBERTA),
    "deepseek_v3": DECODERS["deepseek_v3"],
}


def of_real_queries(weights, mask):
    """Rows of queries that are no padding, with heads last but one, of each layer."""
    return [np.moveaxis(np.asarray(layer), 1, 2)[mask] for layer in weights]


@pytest.mark.parametrize(
    "name", ["gemma2", "deepseek_v3", *map(slow, ("bloom", "bert", "deberta"))]
)
def test_weights_of_a_stack_are_theirs(name, tmp_path):
    theirs = random_model(*ONE_STACK[name])
    ours = fmjax.load(imported(theirs, tmp_path))
    tokens, mask = text()
    read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    with torch.no_grad():
        expected = theirs(**read, output_attentions=True).attentions
    found = ours.attention_weights(tokens=tokens, padding_mask=mask)
    (weights,) = found.values()
    np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
    all_close(
        of_real_queries(weights, mask),
        [torch.tensor(layer) for layer in of_real_queries(expected, mask)],
    )


@pytest.mark.parametrize("layers", ["scanned", slow("unrolled")])
def test_weights_of_an_encoder_decoder_are_theirs(layers, tmp_path):
    theirs = random_model("T5ForConditionalGeneration", T5)
    ours = fmjax.load(imported(theirs, tmp_path))
    if layers == "unrolled":
        ours = unrolled(ours)
    tokens, mask = text()
    written = np.random.default_rng(3).integers(2, VOCAB, size=(4, 19))
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            decoder_input_ids=torch.tensor(written),
            output_attentions=True,
        )
    found = ours.attention_weights(
        encoder_tokens=tokens, encoder_padding_mask=mask, decoder_tokens=written
    )
    assert {*found} == {
        "encoder_stack/attention",
        "decoder_stack/attention",
        "decoder_stack/cross_attention",
    }
    all_close(
        of_real_queries(found["encoder_stack/attention"], mask),
        [torch.tensor(x) for x in of_real_queries(expected.encoder_attentions, mask)],
    )
    all_close(found["decoder_stack/attention"], expected.decoder_attentions)
    all_close(found["decoder_stack/cross_attention"], expected.cross_attentions)


def test_weights_of_both_towers_have_the_rows_of_each(tmp_path):
    theirs = random_model(
        "CLIPModel", dict(text_config=TEXT, vision_config=VISION, projection_dim=22)
    )
    ours = fmjax.load(imported(theirs, tmp_path))
    images = np.random.default_rng(0).normal(size=(3, 21, 21, 3)).astype(np.float32)
    tokens = np.random.default_rng(1).integers(8, VOCAB, size=(4, LENGTH))
    tokens[:, -1] = 5
    pictures = {"pixel_values": torch.tensor(images).permute(0, 3, 1, 2)}
    with torch.no_grad():
        of_images = theirs.vision_model(**pictures, output_attentions=True)
        of_texts = theirs.text_model(torch.tensor(tokens), output_attentions=True)
    found = ours.attention_weights(images=images, tokens=tokens)
    (image,) = (key for key in found if key.startswith("image"))
    (words,) = found.keys() - {image}
    all_close(found[image], of_images.attentions)
    all_close(found[words], of_texts.attentions)


def unrolled(run):
    """The same model with a separate module for each layer."""
    model, params = run.model, dict(run.params)
    for side in ("encoder", "decoder"):
        stack = getattr(model, side)
        apart = dataclasses.replace(stack, scan_layers=False)
        model = model.clone(**{side: apart})
        name = f"{side}_stack"
        params[name] = unstack_layers(params[name], stack.num_layers)
    return dataclasses.replace(run, model=model, params=params)
