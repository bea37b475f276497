"""Beam search of imported models against that of Hugging Face's transformers."""

import itertools

import numpy as np
import pytest
import torch
from parity.models_of_transformers import ENDS, VOCAB, imported, random_model

import fmjax
from fmjax.inference.beam_search import beam_search_tokens

GPT2 = dict(vocab_size=VOCAB, n_embd=30, n_layer=2, n_head=5, n_positions=28, **ENDS)
T5 = dict(vocab_size=VOCAB, d_model=30, d_kv=8, d_ff=44, num_layers=2, num_heads=5)
T5["decoder_start_token_id"] = 0
SIDE = {
    f"{side}_{name}": value
    for side in ("encoder", "decoder")
    for name, value in (("layers", 2), ("attention_heads", 5), ("ffn_dim", 44))
}
MARIAN = dict(
    vocab_size=VOCAB,
    d_model=30,
    max_position_embeddings=28,
    pad_token_id=VOCAB - 1,
    decoder_start_token_id=VOCAB - 1,
    **SIDE,
)
MODELS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "t5": ("T5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", {**MARIAN, "pad_token_id": 1}),
    "marian": ("MarianMTModel", MARIAN),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_four_best_are_theirs(name, tmp_path):
    theirs = random_model(*MODELS[name])
    ours = fmjax.load(imported(theirs, tmp_path))
    lengths = [9, 9, 9] if name == "gpt2" else [9, 5, 2]
    tokens = np.random.default_rng(1).integers(3, VOCAB - 1, size=(3, 9))
    mask = np.arange(9) < np.array(lengths)[:, None]
    options = dict(
        inputs=torch.tensor(tokens),
        attention_mask=torch.tensor(mask).long(),
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=theirs.config.pad_token_id,
        forced_eos_token_id=None,
    )
    with torch.no_grad():
        greedy = theirs.generate(**options, eos_token_id=None)[:, -12:]
        # An end that is likely here and there, and not everywhere.
        eos_id = int(greedy[0, 3])
        # Their penalty of the length is another; both are 1 with exponent 0.
        expected = theirs.generate(
            **options,
            eos_token_id=eos_id,
            num_beams=4,
            num_return_sequences=4,
            length_penalty=0.0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    found = beam_search_tokens(
        ours.model,
        ours.params,
        [row[:length].tolist() for row, length in zip(tokens, lengths)],
        max_tokens=12,
        beams=4,
        n_best=4,
        eos_id=eos_id,
    )
    begun = 9 if name == "gpt2" else 1
    for hypothesis, ids, value in zip(
        itertools.chain(*found),
        expected.sequences[:, begun:].tolist(),
        expected.sequences_scores.tolist(),
        strict=True,
    ):
        end = len(hypothesis.tokens)
        assert hypothesis.tokens == ids[:end]
        assert set(ids[end:]) <= {theirs.config.pad_token_id, eos_id}
        assert hypothesis.score == pytest.approx(value, abs=1e-4, rel=1e-4)
