"""Prefixes and prompts of peft: imported, exported, and what their files hold."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from flax import traverse_util
from parity.decoders import DECODERS, LENGTH
from parity.encoder_decoders import ENCODER_DECODERS
from parity.encoders import ENCODERS
from parity.gradients_of_adapters import (
    assert_same,
    gradients_by_path,
    of_a_run,
    of_peft,
)
from parity.models_of_transformers import (
    close,
    imported,
    random_model,
    text,
    with_noise,
)
from safetensors.torch import load_file, save_file
from tiers import slow

import fmjax
from fmjax.errors import UserError
from fmjax.interop.peft import virtual_tokens
from fmjax.interop.peft.base_model import BaseModel
from fmjax.interop.peft.export_adapter import export_adapter
from fmjax.interop.peft.import_adapter import import_adapter
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.optim.peft.p_tuning import PTuning
from fmjax.optim.peft.peft import Peft
from fmjax.training.state import abstract_variables

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import peft

pytestmark = pytest.mark.filterwarnings("ignore")

N = 3
FAMILIES = {**DECODERS, **ENCODERS, **ENCODER_DECODERS}
KINDS = {
    "prefix": peft.PrefixTuningConfig,
    "prompt": peft.PromptTuningConfig,
    "p_tuning": peft.PromptEncoderConfig,
}
# Windows of the tests' models are shorter than their texts, and peft's prefix is not
# in every window.
PREFIXES = ["llama", slow("gpt2"), slow("bloom"), slow("gemma"), slow("bert")]
PREFIXES += map(slow, ("qwen3", "phi", "gpt_neox", "gptj", "stablelm", "cohere"))
PREFIXES += map(slow, ("glm4", "granite", "opt", "olmo2", "mixtral", "roberta"))
PROMPTS = ["gemma", slow("llama"), slow("gpt2"), slow("bert"), slow("t5")]
PROMPTS += map(slow, ("bloom", "gemma2", "gemma3_text", "mistral", "deepseek_v3"))
PROMPTS += map(slow, ("falcon", "gpt_oss", "opt", "deberta", "mpnet", "modernbert"))
PROMPTS += map(slow, ("bart", "bart, scaled", "mbart", "m2m_100", "mt5", "granite"))
PROMPTS += [slow("mixtral")]


def case(family, kind):
    values = family.values if hasattr(family, "values") else (family,)
    return pytest.param(*values, kind, marks=getattr(family, "marks", ()))


CASES = [case(family, "prefix") for family in PREFIXES]
CASES += [case(family, "prompt") for family in PROMPTS]
P_TUNINGS = ["t5", *map(slow, ("llama", "gpt2", "mixtral", "bert"))]
CASES += [case(family, "p_tuning") for family in P_TUNINGS]
GRADIENTS = [
    case(slow(family), kind)
    for kind in ("prefix", "prompt")
    for family in ("llama", "gpt2", "mixtral", "bert")
]
GRADIENTS += [case(slow("t5"), "prompt")]


def adapter_of(base, kind, task=None, **options):
    """peft's model with random virtual tokens, and of what is saved whole."""
    name = type(base).__name__
    if task is None:
        task = "FEATURE_EXTRACTION" if "MaskedLM" in name else "CAUSAL_LM"
        task = "SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else task
    torch.manual_seed(1)
    config = KINDS[kind](task_type=task, num_virtual_tokens=N, **options)
    return with_noise(peft.get_peft_model(base, config).eval(), 0.3)


def inputs(model):
    """Arguments of their call and of ours, and where outputs are compared."""
    tokens, mask = text(length=LENGTH - N)
    theirs = {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask).long(),
    }
    if not model.get_base_model().config.is_encoder_decoder:
        return theirs, {"tokens": tokens, "padding_mask": mask}, mask
    theirs["decoder_input_ids"] = torch.tensor(tokens[:, :9])
    ours = {
        "encoder_tokens": tokens,
        "encoder_padding_mask": mask,
        "decoder_tokens": tokens[:, :9],
    }
    return theirs, ours, None


def logits(model, theirs):
    """Of peft's model, of the text alone."""
    with torch.no_grad():
        found = model(**theirs).logits
    if model.get_base_model().config.is_encoder_decoder:
        return found
    return found[:, -theirs["input_ids"].shape[1] :]


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_an_adapter_of_peft_comes_in_and_goes_out(family, kind, tmp_path):
    architecture, options = FAMILIES[family]
    base = random_model(architecture, options)
    imported(base, tmp_path)
    model = adapter_of(base, kind)
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    theirs, ours, where = inputs(model)
    expected = logits(model, theirs)
    close(fmjax.load(tmp_path / "adapted")(**ours)["logits"], expected, where)

    export_adapter(tmp_path / "adapted", tmp_path / "out", base_model="base")
    again = random_model(architecture, options)
    assert (expected - again(**theirs).logits).abs().max() > 0.1
    found = peft.PeftModel.from_pretrained(again, tmp_path / "out").eval()
    torch.testing.assert_close(logits(found, theirs), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    rows = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert rows.keys() == {"prompt_embeddings"}


def test_what_is_trained_beside_a_prompt_is_kept(tmp_path):
    options = {**DECODERS["llama"].options} | {"num_labels": 3, "pad_token_id": 0}
    base = random_model("LlamaForSequenceClassification", options)
    imported(base, tmp_path)
    model = adapter_of(base, "prompt", "SEQ_CLS", modules_to_save=["norm"])
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    export_adapter(tmp_path / "adapted", tmp_path / "out")
    before, after = (
        load_file(tmp_path / name / "adapter_model.safetensors")
        for name in ("adapter", "out")
    )
    assert len(before) == 7  # the tokens, the head, five norms
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0)
    # A row without padding, which Llama's class tells by the ids alone.
    theirs, ours = ({n: x[:1] for n, x in each.items()} for each in inputs(model)[:2])
    with torch.no_grad():
        expected = model(**theirs).logits
    close(fmjax.load(tmp_path / "adapted")(**ours)["class_logits"], expected)


@pytest.mark.parametrize(("family", "kind"), GRADIENTS)
def test_gradients_are_those_of_peft(family, kind, tmp_path):
    base = random_model(*FAMILIES[family])
    imported(base, tmp_path)
    model = adapter_of(base, kind)
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    theirs, ours, where = inputs(model)
    expected = of_peft(model, theirs, where)
    found = of_a_run(tmp_path / "adapted", ours, where, tmp_path / "of")
    assert_same(found, {"prompt_embeddings": expected["embedding.weight"]})


@pytest.mark.parametrize("family", ["llama", *map(slow, ("gpt2", "mixtral", "bert"))])
def test_a_perceptron_of_p_tuning_gives_the_same_logits(family, tmp_path):
    architecture, options = FAMILIES[family]
    base = random_model(architecture, options)
    run = fmjax.load(imported(base, tmp_path))
    theirs = adapter_of(base, "p_tuning", encoder_hidden_size=14)
    axes, shapes = abstract_variables(run.config.objective)
    method = PTuning(N, hidden_dim=14)
    plan = Peft(methods=(method,)).plan(axes["params"], shapes["params"])
    (module,) = theirs.prompt_encoder.values()
    tensors = of_perceptron(module.named_parameters(), plan)
    assert tensors.keys() == plan.added.keys()
    flat = traverse_util.flatten_dict(run.params, sep="/") | tensors
    params = traverse_util.unflatten_dict(flat, sep="/")
    tokens, mask = text(length=LENGTH - N)
    wanted = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask)).logits
    found = run.model.apply({"params": params}, TextInputs(tokens, padding_mask=mask))
    close(found["logits"], wanted[:, N:], mask)
    peft_of_run = dataclasses.replace(run.config, peft=Peft(methods=(method,)))
    whole = dataclasses.replace(run, config=peft_of_run, params=params)
    read = {"tokens": tokens, "padding_mask": mask}
    ours = gradients_by_path(whole, read, mask)
    gradients = of_peft(theirs, inputs(theirs)[0], mask)
    expected = of_perceptron(gradients.items(), plan)
    assert_same(as_tensors(ours), as_tensors(expected))
    # Its file holds what it gives.
    described = BaseModel.of(run.config.objective)
    rows, config = virtual_tokens.to_file(method, tensors, described)
    assert config["peft_type"] == "PROMPT_TUNING"
    close(rows, theirs.get_prompt_embedding_to_save("default"))


def of_perceptron(found, plan):
    """The tensors of P-tuning, by path here, given them by name."""
    owner = next(iter(plan.added)).rpartition("/")[0]
    found = {name: each.detach().numpy() for name, each in found}
    own = {"rows": found.pop("embedding.weight")}
    for i, name in zip((0, 2, 4), ("in", "hidden", "out")):
        own[name] = found.pop(f"mlp_head.{i}.weight").T
        own[f"{name}_bias"] = found.pop(f"mlp_head.{i}.bias")
    assert not found
    return {f"{owner}/{name}": each for name, each in own.items()}


def as_tensors(arrays):
    return {name: torch.tensor(np.asarray(x)) for name, x in arrays.items()}


def test_a_window_is_noted(tmp_path):
    architecture, options = FAMILIES["mistral"]
    base = random_model(architecture, options)
    imported(base, tmp_path)
    adapter_of(base, "prefix").save_pretrained(tmp_path / "adapter")
    folders = tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run"
    assert "moves out of the window" in " ".join(import_adapter(*folders))
    notes = export_adapter(tmp_path / "adapted", tmp_path / "out")
    assert "moves out of the window" in " ".join(notes)


@pytest.mark.parametrize(
    ("family", "kind", "expected"),
    [
        ("t5", "prefix", "peft's prefix in its decoder alone"),
        slow("albert", "prefix", "layers that share their weights"),
        slow("deepseek_v3", "prefix", "latent attention"),
        slow("pegasus", "prompt", "vectors scaled here, and for peft not"),
        slow("falcon, one key", "prefix", r"\(3, 160\), but .* makes it \(3, 40\)"),
    ],
)
def test_what_peft_reads_otherwise_is_refused(family, kind, expected, tmp_path):
    base = random_model(*FAMILIES[family])
    imported(base, tmp_path)
    adapter_of(base, kind).save_pretrained(tmp_path / "adapter")
    refused(tmp_path, expected)


def test_files_that_do_not_agree_are_refused(tmp_path):
    base = random_model(*FAMILIES["gpt2"])
    imported(base, tmp_path)
    adapter_of(base, "prompt").save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text())
    for change, expected in (
        ({"num_virtual_tokens": 0}, "num_virtual_tokens = 0 .* at least 1"),
        ({"num_virtual_tokens": 4}, "prompt_embeddings has the shape"),
        ({"num_transformer_submodules": 3}, "expected 1 or 2"),
        ({"peft_type": "PREFIX_TUNING"}, "prompt_embeddings has the shape"),
        ({"peft_type": "CPT"}, "expected one of LORA"),
    ):
        file.write_text(json.dumps(config | change))
        refused(tmp_path, expected)
    file.write_text(json.dumps({"peft_type": "LORA"}))
    refused(tmp_path, "but the adapter has a tensor 'prompt_embeddings'")
    file.write_text(json.dumps(config))
    tensors = tmp_path / "adapter" / "adapter_model.safetensors"
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_{}.weight"
    low_rank = {name.format(side): torch.zeros(1, 1) for side in "AB"}
    save_file(load_file(tensors) | low_rank, tensors)
    refused(tmp_path, "beside 'prompt_embeddings'")


def refused(folder, expected):
    with pytest.raises(UserError, match=expected):
        import_adapter(folder / "adapter", folder / "adapted", folder / "run")
    assert not (folder / "adapted").exists()


def test_a_prompt_of_a_pooled_encoder_is_refused(tmp_path):
    options = {**ENCODERS["bert"].options} | {"num_labels": 3}
    base = random_model("BertForSequenceClassification", options)
    imported(base, tmp_path)
    adapter_of(base, "prompt", "SEQ_CLS").save_pretrained(tmp_path / "adapter")
    refused(tmp_path, "read at its first token")
