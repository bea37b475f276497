"""What transformers does with exports: special ids, and runs that began here."""

import json

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import linen as nn
from parity.models_of_transformers import (
    LENGTH,
    VOCAB,
    close,
    edit_config,
    random_model,
    text,
)

import fmjax
from fmjax.config.render import render
from fmjax.interop.export import export_model
from fmjax.interop.hugging_face import import_model
from fmjax.models.language.bert import Bert
from fmjax.models.language.gpt import GPT
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.rotary import Rotary
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.objectives.masked_lm import MaskedLM
from fmjax.objectives.seq2seq_lm import Seq2SeqLM
from fmjax.run import directory as run_dir
from fmjax.training.checkpoint import checkpoints
from fmjax.training.experiment import Experiment

BART = dict(
    vocab_size=VOCAB,
    d_model=30,
    encoder_layers=1,
    decoder_layers=2,
    encoder_attention_heads=5,
    decoder_attention_heads=3,
    encoder_ffn_dim=44,
    decoder_ffn_dim=42,
    max_position_embeddings=LENGTH,
)
# Each another than the class's own.
IDS = dict(
    bos_token_id=11,
    eos_token_id=[12, 13],
    pad_token_id=14,
    decoder_start_token_id=15,
    forced_eos_token_id=17,
)


@pytest.mark.parametrize("older", [False, True])
def test_special_ids_and_options_of_generation_survive(older, tmp_path):
    theirs = random_model("BartForConditionalGeneration", {**BART, **IDS})
    found = theirs.generation_config
    found.forced_bos_token_id, found.num_beams, found.max_length = 16, 3, 12
    theirs.save_pretrained(tmp_path / "hf")
    if older:  # Versions before 4.26 had all of it in config.json.
        (tmp_path / "hf" / "generation_config.json").unlink()
        edit_config(tmp_path / "hf", num_beams=3, max_length=12, forced_bos_token_id=16)
    import_model(tmp_path / "hf", tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "again")
    first, again = (
        transformers.BartForConditionalGeneration.from_pretrained(tmp_path / f).eval()
        for f in ("hf", "again")
    )
    assert {name: getattr(again.config, name) for name in IDS} == IDS
    generation = again.generation_config.to_dict()
    assert generation == first.generation_config.to_dict()
    assert (generation["forced_bos_token_id"], generation["num_beams"]) == (16, 3)
    tokens = torch.tensor(text()[0])
    written = again.generate(tokens)
    assert torch.equal(written, first.generate(tokens))
    # The 16 that is forced first, and the 17 at the end.
    assert written[0, 1] == 16
    assert {12, 13, 17} & set(written[0].tolist())
    labels = torch.where(tokens > 100, tokens, -100)
    assert torch.equal(
        again(tokens, labels=labels).loss, first(tokens, labels=labels).loss
    )


def test_ids_that_a_file_leaves_out_are_left_out_again(tmp_path):
    options = dict(hidden_size=36, intermediate_size=50, num_hidden_layers=1)
    options |= dict(num_attention_heads=6, vocab_size=VOCAB, eos_token_id=[2, 3])
    theirs = random_model("LlamaForCausalLM", options)
    theirs.save_pretrained(tmp_path / "hf")
    edit_config(tmp_path / "hf", bos_token_id=None, pad_token_id=None)
    import_model(tmp_path / "hf", tmp_path / "run")
    export_model(tmp_path / "run", tmp_path / "again")
    configs = [
        json.loads((tmp_path / name / "config.json").read_text())
        for name in ("hf", "again")
    ]
    for config in configs:
        assert config["eos_token_id"] == [2, 3]
        assert not {"bos_token_id", "pad_token_id"} & set(config)


GPT2 = TransformerConfig(2, 30, 5)
POST = TransformerConfig(2, 30, 5, norm_position="post")
LLAMA = TransformerConfig(
    2,
    36,
    6,
    num_kv_heads=2,
    mlp_dim=50,
    norm="rmsnorm",
    activation="silu",
    gated_mlp=True,
    bias=False,
    rotary=Rotary(500.0),
)
HEADS = dict(tie_embeddings=False, head_bias=True)
RUNS = {
    "gpt2": CausalLM(GPT(GPT2, VOCAB, LENGTH)),
    "llama": CausalLM(GPT(LLAMA, VOCAB, LENGTH, "none", tie_embeddings=False)),
    "bert": MaskedLM(Bert(POST, VOCAB, LENGTH)),
    "bart": Seq2SeqLM(
        Seq2Seq(POST, POST, VOCAB, LENGTH, 7, "learned", 2, embed_norm=True, **HEADS)
    ),
    # Its class's ids of padding and start are beyond the vocabulary.
    "marian": Seq2SeqLM(
        Seq2Seq(POST, POST, VOCAB, LENGTH, 7, "sinusoidal_halves", **HEADS)
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_began_here_is_theirs(name, tmp_path):
    objective = RUNS[name]
    sides = ("encoder_tokens", "decoder_tokens")
    inputs = sides if isinstance(objective.model, Seq2Seq) else ("tokens",)
    tokens, mask = text()
    given = dict.fromkeys(inputs, tokens)
    boxed = jax.eval_shape(
        lambda rng: objective.model.init(rng, *given.values()), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32),
        nn.unbox(boxed)["params"],
    )
    run_dir.write(tmp_path / "run", render(Experiment(objective)))
    checkpoints.save_model(tmp_path / "run", params)
    export_model(tmp_path / "run", tmp_path / "hf", model_type=name)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    theirs, info = cls.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(info.values()), info
    read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
    if len(inputs) > 1:
        read["decoder_input_ids"] = torch.tensor(tokens)
    with torch.no_grad():
        expected = theirs.eval()(**read).logits
    name = "padding_mask" if len(inputs) == 1 else "encoder_padding_mask"
    given[name] = mask
    out = fmjax.load(tmp_path / "run")(**given)["logits"]
    close(out, expected, mask)
