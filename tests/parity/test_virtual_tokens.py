"""Prefixes and prompts with peft's tensors compute what peft does."""

import warnings

import numpy as np
import pytest
import torch
from flax import traverse_util
from parity.decoders import BLOOM, GPT2, LENGTH
from parity.encoder_decoders import T5
from parity.encoders import BERT
from parity.models_of_transformers import (
    LLAMA,
    close,
    imported,
    random_model,
    text,
)
from tiers import slow

import fmjax
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.optim.peft.p_tuning import PTuning
from fmjax.optim.peft.peft import Peft
from fmjax.optim.peft.prefix import Prefix
from fmjax.optim.peft.prompt import Prompt
from fmjax.training.state import abstract_variables

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

N = 3
DECODERS = {
    "llama": ("LlamaForCausalLM", LLAMA),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "bloom": ("BloomForCausalLM", BLOOM),
}
PROMPTS = {
    "prompt": (Prompt(N), peft.PromptTuningConfig, {}),
    "p_tuning": (
        PTuning(N, hidden_dim=14),
        peft.PromptEncoderConfig,
        {"encoder_hidden_size": 14},
    ),
}


def both(architecture, options, config, method, folder):
    """peft's model, the run of its base, and the parameters with places for tensors."""
    model = random_model(architecture, options)
    run = fmjax.load(imported(model, folder))
    theirs = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for weight in theirs.prompt_encoder.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    axes, shapes = abstract_variables(run.config.objective)
    plan = Peft(methods=(method,)).plan(axes["params"], shapes["params"])
    return theirs, run, plan


def with_tensors(run, plan, tensors):
    """The parameters of the run with those of a method; none may be left out."""
    assert tensors.keys() == plan.added.keys()
    flat = traverse_util.flatten_dict(run.params, sep="/")
    for path, tensor in tensors.items():
        assert tensor.shape == plan.added[path].shape
        flat[path] = tensor
    return traverse_util.unflatten_dict(flat, sep="/")


def encoder(theirs):
    """Parameters of peft's encoder of prompts, by name."""
    (prompt,) = theirs.prompt_encoder.values()
    return {name: each.detach().numpy() for name, each in prompt.named_parameters()}


def prompt_tensors(theirs, plan):
    """The tensors of a prompt, by path here."""
    owner = next(iter(plan.added)).rpartition("/")[0]
    found = encoder(theirs)
    own = {"rows": found.pop("embedding.weight")}
    for i, name in zip((0, 2, 4), ("in", "hidden", "out")):
        if found:
            own[name] = found.pop(f"mlp_head.{i}.weight").T
            own[f"{name}_bias"] = found.pop(f"mlp_head.{i}.bias")
    assert not found
    return {f"{owner}/{name}": each for name, each in own.items()}


@pytest.mark.parametrize("family", ["llama", "bloom", slow("gpt2")])
def test_a_prefix_of_peft_gives_the_same_logits(family, tmp_path):
    architecture, options = DECODERS[family]
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=N)
    theirs, run, plan = both(architecture, options, config, Prefix(N), tmp_path)
    c = run.model.transformer
    (rows,) = encoder(theirs).values()
    rows = rows.reshape(N, c.num_layers, 2, c.kv_heads, c.head_width)
    rows = rows.transpose(2, 1, 0, 3, 4)
    tensors = {
        f"stack/layers/attention/{name}_prefix/rows": rows[i]
        for i, name in enumerate(("key", "value"))
    }
    params = with_tensors(run, plan, tensors)
    tokens, mask = text(length=LENGTH - N)
    wanted = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
    found = run.model.apply({"params": params}, TextInputs(tokens, padding_mask=mask))
    close(found["logits"], wanted, mask)


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("gpt2", "prompt"),
        ("llama", "p_tuning"),
        slow("llama", "prompt"),
        slow("gpt2", "p_tuning"),
    ],
)
def test_a_prompt_of_peft_gives_the_same_logits(family, kind, tmp_path):
    method, make, options = PROMPTS[kind]
    config = make(task_type="CAUSAL_LM", num_virtual_tokens=N, **options)
    theirs, run, plan = both(*DECODERS[family], config, method, tmp_path)
    params = with_tensors(run, plan, prompt_tensors(theirs, plan))
    tokens, mask = text(length=LENGTH - N)
    wanted = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
    found = run.model.apply({"params": params}, TextInputs(tokens, padding_mask=mask))
    close(found["logits"], wanted[:, N:], mask)


def test_a_prompt_of_an_encoder_gives_the_same_vectors(tmp_path):
    config = peft.PromptTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=N
    )
    theirs, run, plan = both("BertModel", BERT, config, Prompt(N), tmp_path)
    params = with_tensors(run, plan, prompt_tensors(theirs, plan))
    tokens, mask = text(length=LENGTH - N)
    wanted = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    for given in ({"padding_mask": mask}, {"segment_ids": mask.astype(np.int32)}):
        found = run.model.apply({"params": params}, TextInputs(tokens, **given))
        close(found["hidden"], wanted.last_hidden_state[:, N:], mask)


def test_a_prompt_of_an_encoder_decoder_gives_the_same_logits(tmp_path):
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=N, num_transformer_submodules=1
    )
    theirs, run, plan = both(
        "T5ForConditionalGeneration", T5, config, Prompt(N), tmp_path
    )
    params = with_tensors(run, plan, prompt_tensors(theirs, plan))
    tokens, mask = text(length=LENGTH - N)
    wanted = theirs(
        torch.tensor(tokens),
        attention_mask=torch.tensor(mask),
        decoder_input_ids=torch.tensor(tokens[:, :9]),
    ).logits
    read = TextInputs(tokens, padding_mask=mask)
    found = run.model.apply({"params": params}, read, tokens[:, :9])
    close(found["logits"], wanted)
    assert found["encoder_hidden"].shape[1] == LENGTH - N
