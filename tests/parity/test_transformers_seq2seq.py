"""Imported encoder-decoders against Hugging Face's transformers, on random weights."""

import numpy as np
import pytest
import torch
import transformers
from parity.models_of_transformers import (
    LENGTH,
    VOCAB,
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
    text,
)

import fmjax
from fmjax.interop.hugging_face import import_model

T5 = dict(
    vocab_size=VOCAB,
    d_model=30,
    d_kv=8,
    d_ff=44,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=5,
    # Distances of the text go beyond the buckets.
    relative_attention_num_buckets=8,
    relative_attention_max_distance=14,
)
BART = dict(
    vocab_size=VOCAB,
    d_model=30,
    encoder_layers=2,
    decoder_layers=3,
    encoder_attention_heads=5,
    decoder_attention_heads=3,
    encoder_ffn_dim=44,
    decoder_ffn_dim=42,
    max_position_embeddings=LENGTH,
)
MARIAN = {**BART, "pad_token_id": VOCAB - 1, "decoder_start_token_id": VOCAB - 1}
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CONFIGS = {
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, gated": ("T5ForConditionalGeneration", GATED),
    "t5, gated silu": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-silu"},
    ),
    "bart": ("BartForConditionalGeneration", BART),
    "bart, scaled": (
        "BartForConditionalGeneration",
        {**BART, "scale_embedding": True, "activation_function": "relu"},
    ),
    "bart, bare": ("BartModel", BART),
    "marian": ("MarianMTModel", {**MARIAN, "scale_embedding": True}),
    "marian, swish": ("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
}


def compare(theirs, ours, names=("logits",)):
    """Compares all outputs, of two texts of different lengths."""
    for left in (False, True):
        tokens, mask = text(left=left)
        written = np.random.default_rng(3).integers(2, VOCAB, size=(4, 19))
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(mask).long(),
                decoder_input_ids=torch.tensor(written),
                output_hidden_states=True,
            )
        out = ours(
            encoder_tokens=tokens,
            encoder_mask=mask,
            decoder_tokens=written,
            hidden_states=True,
        )
        for name in names:
            close(out[name], expected[name])
        close(out["hidden"], expected.decoder_hidden_states[-1])
        close(out["encoder_hidden"], expected.encoder_last_hidden_state, mask)
        all_close(out["hidden_states"], expected.decoder_hidden_states)
        encoder = expected.encoder_hidden_states
        all_close(out["encoder_hidden_states"], encoder, mask)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_output_is_theirs(name, tmp_path):
    theirs = random_model(*CONFIGS[name])
    run = imported(theirs, tmp_path, max_shard_size="20KB")
    comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    compare(theirs, ours, () if "bare" in name else ("logits",))


def test_a_head_of_its_own_is_read_whatever_version_5_says_of_it(tmp_path):
    # Version 5 writes tie_word_embeddings = true always; the tensors tell.
    theirs = random_model("T5ForConditionalGeneration", GATED)
    head = torch.randn(VOCAB, 30)
    theirs.lm_head.weight = torch.nn.Parameter(head.clone())
    theirs.all_tied_weights_keys.pop("lm_head.weight")
    run = imported(theirs, tmp_path)
    ours = fmjax.load(run)
    assert not ours.model.tie_embeddings
    compare(theirs, ours)
    # As version 4 had it: untied, and so not scaled.
    edit_config(tmp_path / "hf", tie_word_embeddings=False, scale_decoder_outputs=None)
    import_model(tmp_path / "hf", tmp_path / "version 4")
    ours = fmjax.load(tmp_path / "version 4")
    assert (ours.model.tie_embeddings, ours.model.head_scale) == (False, False)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert torch.equal(again.lm_head.weight, head)
    compare(again.eval(), ours)
