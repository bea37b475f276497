"""Imported encoder-decoders against Hugging Face's transformers, on random weights."""

import numpy as np
import pytest
import torch
import transformers
from parity.case import one_of_each_family
from parity.encoder_decoders import BART, ENCODER_DECODERS, GATED
from parity.models_of_transformers import (
    VOCAB,
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
    text,
)
from safetensors.numpy import load_file, save_file
from tiers import slow

import fmjax
from fmjax.errors import UserError
from fmjax.interop.hugging_face import import_model


def compare(theirs, ours, names=("logits",)):
    """Compares all outputs, of two texts of different lengths."""
    for left in (False, True):
        tokens, mask = text(left=left)
        tokens = np.where(mask, tokens, theirs.config.pad_token_id)
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
            encoder_padding_mask=mask,
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


@pytest.mark.parametrize("name", one_of_each_family(ENCODER_DECODERS))
def test_every_output_is_theirs(name, tmp_path):
    theirs = random_model(*ENCODER_DECODERS[name])
    run = imported(theirs, tmp_path, max_shard_size="20KB")
    comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    compare(theirs, ours, () if "bare" in name else ("logits",))


@pytest.mark.parametrize("name", [slow("bart"), slow("marian")])
def test_an_untied_head_comes_with_a_table_of_each_side(name, tmp_path):
    architecture, options = ENCODER_DECODERS[name]
    theirs = random_model(architecture, {**options, "tie_word_embeddings": False})
    table = theirs.model.shared.weight
    for side in (theirs.model.encoder, theirs.model.decoder):
        assert side.embed_tokens.weight is not table
        side.embed_tokens.weight.data.copy_(table)
    run = imported(theirs, tmp_path)
    comes_back(theirs, run, tmp_path / "again")
    compare(theirs, fmjax.load(run))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_another_table_of_a_side_is_refused_by_its_name(name, tied, side, tmp_path):
    architecture, options = ENCODER_DECODERS[name]
    theirs = random_model(architecture, {**options, "tie_word_embeddings": tied})
    theirs.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    prefix, *_ = next(key for key in tensors if "shared" in key).split("shared")
    table = tensors[f"{prefix}shared.weight"]
    tensors["lm_head.weight"] = table + (not tied)
    for each in ("encoder", "decoder"):
        tensors[f"{prefix}{each}.embed_tokens.weight"] = table + (each == side)
    save_file(tensors, file)
    with pytest.raises(UserError, match=rf"{side}\.embed_tokens\.weight differs from"):
        import_model(tmp_path / "hf", tmp_path / "run")


def test_other_positions_of_pegasus_are_learned_ones(tmp_path):
    theirs = random_model("PegasusForConditionalGeneration", BART)
    with torch.no_grad():
        for side in (theirs.model.encoder, theirs.model.decoder):
            side.embed_positions.weight.mul_(0.5)
    run = imported(theirs, tmp_path)
    ours = fmjax.load(run)
    assert ours.model.positions == "learned"
    comes_back(theirs, run, tmp_path / "again")
    compare(theirs, ours)
    # A table that the files cannot hold is not made.
    edit_config(tmp_path / "hf", max_position_embeddings=2**31 - 1)
    with pytest.raises(UserError, match=r"embed_positions\.weight"):
        import_model(tmp_path / "hf", tmp_path / "run 2")


@pytest.mark.slow
def test_a_head_of_its_own_is_read_whatever_version_5_says_of_it(tmp_path):
    # Version 5 writes tie_word_embeddings = true always; the tensors tell.
    theirs = random_model("T5ForConditionalGeneration", GATED)
    head = torch.randn(VOCAB, 30)
    theirs.lm_head.weight = torch.nn.Parameter(head.clone())
    theirs.all_tied_weights_keys.pop("lm_head.weight")
    run = imported(theirs, tmp_path)
    comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    assert not ours.model.tie_embeddings
    compare(theirs, ours)
    # As version 4 had it: untied, and so not scaled.
    edit_config(tmp_path / "hf", tie_word_embeddings=False, scale_decoder_outputs=None)
    import_model(tmp_path / "hf", tmp_path / "version 4")
    back = comes_back(theirs, tmp_path / "version 4", tmp_path / "version 4 again")
    assert back.config.scale_decoder_outputs is False
    ours = fmjax.load(tmp_path / "version 4")
    assert (ours.model.tie_embeddings, ours.model.head_scale) == (False, False)
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert torch.equal(again.lm_head.weight, head)
    compare(again.eval(), ours)
