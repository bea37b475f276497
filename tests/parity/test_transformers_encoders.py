"""Imported encoders against Hugging Face's transformers, on random weights."""

import re

import numpy as np
import pytest
import torch
import transformers
from parity.case import one_of_each_family
from parity.encoder_decoders import T5
from parity.encoders import ENCODERS, ROBERTA
from parity.models_of_transformers import (
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
    text,
)
from safetensors.numpy import load_file, save_file

import fmjax
from fmjax.interop.hugging_face import import_model

# What theirs is called here.
OUTPUTS = {
    "prediction_logits": "logits",
    "seq_relationship_logits": "next_sentence",
    "sop_logits": "next_sentence",
    "pooler_output": "pooled",
}


@pytest.mark.parametrize("name", one_of_each_family(ENCODERS))
def test_every_output_is_theirs(name, tmp_path):
    architecture, options = ENCODERS[name]
    theirs = random_model(architecture, options)
    run = imported(theirs, tmp_path, max_shard_size="20KB")
    if "other names" not in name:
        comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    types = getattr(theirs.config, "type_vocab_size", 0)
    for left in (False, True):
        tokens, mask = text(left=left)
        if options.get("pad_token_id") is not None:
            tokens = np.where(mask, np.maximum(tokens, 5), options["pad_token_id"])
        inputs = {"tokens": tokens, "padding_mask": mask}
        read = {
            "input_ids": torch.tensor(tokens),
            "attention_mask": torch.tensor(mask).long(),
        }
        if types and "roberta" not in name:
            token_types = np.random.default_rng(2).integers(types, size=tokens.shape)
            inputs["token_types"] = token_types
            read["token_type_ids"] = torch.tensor(token_types)
        with torch.no_grad():
            expected = theirs(**read, output_hidden_states=True)
        out = ours(**inputs, hidden_states=True)
        close(out["hidden"], expected.hidden_states[-1], mask)
        all_close(out["hidden_states"], expected.hidden_states, mask)
        compared = 0
        for key, value in expected.items():
            key = OUTPUTS.get(key, key)
            if key in ("last_hidden_state", "hidden_states"):
                continue
            if key == "logits" and "classes" in name:
                key = "class_logits"
            if key == "logits" and "alone" in name:
                key = "next_sentence"
            # Of a text, where its first token is no padding.
            whole = key not in ("logits",)
            where = mask[:, 0] if whole else mask
            close(out[key], value, where)
            compared += 1
        assert compared == len(set(out) - {"hidden", "hidden_states"} - _inner(name))


def test_a_sentence_encoder_is_read_though_named_after_its_pretraining(tmp_path):
    # As sentence-transformers' all-mpnet-base-v2.
    theirs = random_model("MPNetModel", ROBERTA)
    theirs.save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", architectures=["MPNetForMaskedLM"])
    import_model(tmp_path / "hf", tmp_path / "run")
    tokens, mask = text()
    with torch.no_grad():
        read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        expected = theirs(**read)
    out = fmjax.load(tmp_path / "run")(tokens=tokens, padding_mask=mask)
    close(out["pooled"], expected.pooler_output)
    close(out["hidden"], expected.last_hidden_state, mask)
    assert "logits" not in out


def test_the_heads_of_deberta_v3_are_read_and_left_out(tmp_path):
    theirs = random_model(*ENCODERS["deberta"])
    theirs.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = {
        re.sub(r"cls\.predictions\.(transform\.)?", "lm_predictions.lm_head.", name): x
        for name, x in load_file(file).items()
    }
    told = {
        f"mask_predictions.{name}": np.zeros(30, np.float32)
        for name in ("dense.bias", "LayerNorm.weight", "classifier.weight")
    }
    save_file(tensors | told, file)
    left_out = import_model(tmp_path / "hf", tmp_path / "run").left_out
    assert set(left_out) == set(told)
    tokens, mask = text()
    with torch.no_grad():
        read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        expected = theirs(**read).logits
    ours = fmjax.load(tmp_path / "run")
    close(ours(tokens=tokens, padding_mask=mask)["logits"], expected, mask)


@pytest.mark.slow
def test_a_decoder_beside_an_encoder_is_left_out(tmp_path):
    # As transformers does: files of encoders for sentences may have the decoder too.
    theirs = random_model("T5ForConditionalGeneration", T5)
    theirs.save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", architectures=["T5EncoderModel"])
    left_out = import_model(tmp_path / "hf", tmp_path / "run").left_out
    assert left_out
    assert all(name.startswith("decoder.") for name in left_out)
    tokens, mask = text()
    read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    encoder = transformers.T5EncoderModel.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        expected = encoder(**read).last_hidden_state
    ours = fmjax.load(tmp_path / "run")(tokens=tokens, padding_mask=mask)
    close(ours["hidden"], expected, mask)


def _inner(name):
    """What we give and they keep to themselves."""
    kept_back = {"classes", "pairs", "pairs alone"}
    return {"pooled"} if kept_back & set(name.split(", ")) else set()
