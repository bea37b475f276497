"""Imported decoders against Hugging Face's transformers, on random weights."""

import numpy as np
import pytest
import torch
import transformers
from parity.case import one_of_each_family
from parity.decoders import DECODERS, LLAMA, VOCAB
from parity.models_of_transformers import (
    all_close,
    close,
    comes_back,
    edit_config,
    imported,
    random_model,
    text,
)
from safetensors.torch import load_file, save_file
from tiers import slow

import fmjax
from fmjax.inference.generate import generate_tokens
from fmjax.inference.sampling import Sampling
from fmjax.interop.hugging_face import import_model


@pytest.fixture(scope="module", params=one_of_each_family(DECODERS))
def pair(request, tmp_path_factory):
    """Their model, ours imported from shards of it, and theirs exported from that."""
    model = random_model(*DECODERS[request.param])
    folder = tmp_path_factory.mktemp("imported")
    run = imported(model, folder, max_shard_size="20KB")
    assert len(list((folder / "hf").glob("*.safetensors"))) > 2
    again = comes_back(model, run, folder / "again", max_shard_bytes=20_000)
    assert len(list((folder / "again").glob("*.safetensors"))) > 2
    return model, fmjax.load(run), again.eval()


def test_logits_and_hidden_states_are_theirs(pair):
    theirs, ours, again = pair
    # Rows padded on the right and on the left, in one call.
    tokens, mask = (
        np.concatenate(both) for both in zip(text(left=False), text(left=True))
    )
    read = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask).long(),
    }
    with torch.no_grad():
        expected = theirs(**read, output_hidden_states=True)
        # What config.json says has come back too.
        torch.testing.assert_close(again(**read).logits, expected.logits)
    out = ours(tokens=tokens, padding_mask=mask, hidden_states=True)
    # What padding itself computes differs, and means nothing.
    close(out["logits"], expected.logits, mask)
    states, last = expected.hidden_states, expected.hidden_states[-1]
    if last.shape[-1] == states[0].shape[-1]:
        close(out["hidden"], last, mask)
        all_close(out["hidden_states"], states, mask)
    else:  # Their last state is projected to the width of token vectors.
        all_close(out["hidden_states"][:-1], states[:-1], mask)
    assert expected.logits[torch.tensor(mask)].std() > 0.3  # it sees something


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("gpt2", "llama", "gemma2") else slow(name)
        for name in DECODERS
        if "," not in name
    ],
)
@pytest.mark.parametrize("tied", [True, slow(False)])
def test_decoders_without_a_head_are_theirs(name, tied, tmp_path):
    # Whatever they say of a head: there is none to tie.
    case = DECODERS[name]
    options = {**case.options, "tie_word_embeddings": tied}
    theirs = random_model(case.class_name("Model"), options)
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
    [name if case.own_cache else slow(name) for name, case in DECODERS.items()],
    indirect=True,
)
def test_greedy_generation_is_theirs(pair):
    theirs, ours, _ = pair
    # Longer than the length of pretraining of those that scale positions: transformers
    # computes Phi 3's cache again where a text grows beyond it.
    prompts = np.random.default_rng(1).integers(1, VOCAB, size=(3, 9))
    with torch.no_grad():
        expected = theirs.generate(
            torch.tensor(prompts),
            attention_mask=torch.ones(3, 9).long(),
            max_new_tokens=18,
            do_sample=False,
        )
    written = generate_tokens(
        ours.model,
        ours.params,
        prompts.tolist(),
        max_tokens=18,
        sampling=Sampling(temperature=0.0),
    )
    assert written == expected[:, 9:].tolist()


def test_layers_that_predict_further_tokens_are_left_out_by_name(tmp_path):
    # As layers.61 of DeepSeek-V3.
    theirs = random_model(*DECODERS["deepseek_v3"])
    theirs.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    names = {"embed_tokens", "enorm", "hnorm", "eh_proj", "shared_head.norm"}
    names |= {"self_attn.o_proj", "mlp.gate"}
    more = {f"model.layers.3.{name}.weight": torch.ones(2, 2) for name in names}
    save_file(tensors | more, file, {"format": "pt"})
    report = import_model(tmp_path / "hf", tmp_path / "run")
    assert set(report.left_out) == set(more)
    tokens, _ = text()
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor(tokens)).logits
    close(fmjax.load(tmp_path / "run")(tokens=tokens)["logits"], expected)


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
