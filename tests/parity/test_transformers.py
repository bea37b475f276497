"""Imported decoders against Hugging Face's transformers, on random weights."""

import numpy as np
import pytest
import torch
import transformers
from parity.models_of_transformers import (
    ENDS,
    LENGTH,
    LLAMA,
    VOCAB,
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
    text,
)
from tiers import one_of_each_family, slow

import fmjax
from fmjax.inference.generate import generate_tokens
from fmjax.inference.sampling import Sampling
from fmjax.interop.hugging_face import import_model

GPT2 = dict(
    vocab_size=VOCAB, n_positions=LENGTH, n_embd=30, n_layer=3, n_head=5, **ENDS
)
OPT = dict(
    vocab_size=VOCAB,
    hidden_size=30,
    num_hidden_layers=3,
    num_attention_heads=5,
    ffn_dim=44,
    max_position_embeddings=LENGTH,
    **ENDS,
)
# Six heads: no power of two, so that slopes of a second sequence are among them.
BLOOM = dict(vocab_size=VOCAB, hidden_size=42, n_layer=3, n_head=6, **ENDS)
CONFIGS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2 untied, gelu, inner": (
        "GPT2LMHeadModel",
        {
            **GPT2,
            "tie_word_embeddings": False,
            "activation_function": "gelu",
            "n_inner": 44,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "opt": ("OPTForCausalLM", OPT),
    "opt, post-norm, untied": (
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "tie_word_embeddings": False},
    ),
    "bloom": ("BloomForCausalLM", BLOOM),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama, wide heads": (
        "LlamaForCausalLM",
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "head_dim": 10,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
    ),
    "llama, all heads": (
        "LlamaForCausalLM",
        {**LLAMA, "num_key_value_heads": None},
    ),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 5}),
    "mistral, whole": ("MistralForCausalLM", {**LLAMA, "sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2, window": (
        "Qwen2ForCausalLM",
        {
            **LLAMA,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 0,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 10}),
    "qwen3, every second window": (
        "Qwen3ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gemma2": (
        "Gemma2ForCausalLM",
        {
            **LLAMA,
            "num_hidden_layers": 5,
            "head_dim": 10,
            "sliding_window": 4,
            "query_pre_attn_scalar": 14,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma2, no caps": (
        "Gemma2ForCausalLM",
        {
            **LLAMA,
            "head_dim": 10,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "mixtral": (
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 5, "num_experts_per_tok": 3},
    ),
    "mixtral, window": (
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 3, "sliding_window": 5},
    ),
}


@pytest.fixture(scope="module", params=one_of_each_family(CONFIGS))
def pair(request, tmp_path_factory):
    """Their model, and ours imported from shards of it, which go back unchanged."""
    model = random_model(*CONFIGS[request.param])
    folder = tmp_path_factory.mktemp("imported")
    run = imported(model, folder, max_shard_size="20KB")
    assert len(list((folder / "hf").glob("*.safetensors"))) > 2
    comes_back(model, run, folder / "again", max_shard_bytes=20_000)
    assert len(list((folder / "again").glob("*.safetensors"))) > 2
    return model, fmjax.load(run)


def test_logits_and_hidden_states_are_theirs(pair):
    theirs, ours = pair
    for left in (False, True):
        tokens, mask = text(left=left)
        with torch.no_grad():
            expected = theirs(
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(mask).long(),
                output_hidden_states=True,
            )
        out = ours(tokens=tokens, padding_mask=mask, hidden_states=True)
        # What padding itself computes differs, and means nothing.
        close(out["logits"], expected.logits, mask)
        close(out["hidden"], expected.hidden_states[-1], mask)
        all_close(out["hidden_states"], expected.hidden_states, mask)
        assert expected.logits[torch.tensor(mask)].std() > 0.3  # it sees something


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("GPT2Model", GPT2),
        slow("OPTModel", OPT),
        slow("BloomModel", BLOOM),
        ("LlamaModel", LLAMA),
        slow("MistralModel", LLAMA),
        slow("Qwen3Model", {**LLAMA, "head_dim": 10}),
        ("Gemma2Model", {**LLAMA, "head_dim": 10}),
    ],
)
@pytest.mark.parametrize("tied", [True, slow(False)])
def test_decoders_without_a_head_are_theirs(architecture, options, tied, tmp_path):
    # Whatever they say of a head: there is none to tie.
    theirs = random_model(architecture, {**options, "tie_word_embeddings": tied})
    run = imported(theirs, tmp_path)
    comes_back(theirs, run, tmp_path / "again")
    ours = fmjax.load(run)
    assert ours.model.tie_embeddings
    tokens, mask = text()
    with torch.no_grad():
        read = {"input_ids": torch.tensor(tokens), "attention_mask": torch.tensor(mask)}
        expected = theirs(**read).last_hidden_state
    close(ours(tokens=tokens, padding_mask=mask)["hidden"], expected, mask)


@pytest.mark.parametrize(
    "pair",
    ["opt", "bloom", "mistral", "gemma2"],
    indirect=True,
)
def test_greedy_generation_is_theirs(pair):
    theirs, ours = pair
    prompts = np.random.default_rng(1).integers(1, VOCAB, size=(3, 6))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(3, 6).long(),
            max_new_tokens=20,
            do_sample=False,
        )
    written = generate_tokens(
        ours.model,
        ours.params,
        prompts.tolist(),
        max_tokens=20,
        sampling=Sampling(temperature=0.0),
    )
    assert written == expected[:, 6:].tolist()


def test_a_single_file_in_half_precision_is_read(tmp_path):
    run = imported(random_model("LlamaForCausalLM", LLAMA).to(torch.bfloat16), tmp_path)
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    tokens, _ = text()
    model = transformers.LlamaForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32
    ).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits
    close(fmjax.load(run)(tokens=tokens)["logits"], expected)


def test_options_spelled_as_in_version_4_are_read(tmp_path):
    options = {**LLAMA, "rope_parameters": {"rope_theta": 500.0}}
    model = random_model("LlamaForCausalLM", options)
    model.save_pretrained(tmp_path / "hf")
    changes = dict.fromkeys(("rope_parameters", "head_dim", "dtype"))
    edit_config(
        tmp_path / "hf",
        **changes,
        rope_theta=500.0,
        torch_dtype="float32",
    )
    import_model(tmp_path / "hf", tmp_path / "run")
    tokens, _ = text()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(tokens)).logits
    close(fmjax.load(tmp_path / "run")(tokens=tokens)["logits"], expected)
