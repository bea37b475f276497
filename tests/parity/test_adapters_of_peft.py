"""Adapters of peft on models of transformers: imported, exported, merged."""

import json

import numpy as np
import peft
import pytest
import torch
from parity.adapter_cases import (
    CASES,
    SEQ2SEQ,
    inputs,
    logits_of,
    lora,
    random_adapter,
)
from parity.decoders import DECODERS
from parity.encoders import BERT
from parity.gradients_of_adapters import assert_same, of_a_run, of_peft
from parity.models_of_transformers import PLAIN, close, imported, random_model
from safetensors.torch import load_file
from tiers import slow

import fmjax
from fmjax.interop.export import export_model
from fmjax.interop.peft.export_adapter import export_adapter
from fmjax.interop.peft.import_adapter import import_adapter
from fmjax.run.merge import merge_runs

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = ("gpt2, dora", "mixtral", "bert, ia3")


@pytest.fixture(scope="module", params=[n if n in QUICK else slow(n) for n in CASES])
def adapted(request, tmp_path_factory):
    """peft's model, its files, the run that they were imported into; and its base."""
    (architecture, options), config = CASES[request.param]
    folder = tmp_path_factory.mktemp("adapted")
    base = random_model(architecture, options)
    imported(base, folder)
    model = random_adapter(base, config)
    model.save_pretrained(folder / "adapter")
    import_adapter(folder / "adapter", folder / "adapted", folder / "run")

    def again():
        return random_model(architecture, options)

    return model, folder, again


def test_an_imported_adapter_computes_what_peft_does(adapted):
    model, folder, again = adapted
    theirs, ours, where = inputs(model)
    with torch.no_grad():
        # Biases that were trained stay when peft disables an adapter.
        expected, plain = (m(**theirs).logits for m in (model, again()))
    assert (expected - plain).abs().max() > 0.1
    close(logits_of(fmjax.load(folder / "adapted"), **ours), expected, where)
    close(logits_of(fmjax.load(folder / "run"), **ours), plain, where)


def test_an_exported_adapter_is_the_one_of_peft(adapted):
    model, folder, again = adapted
    export_adapter(folder / "adapted", folder / "out", base_model="base")
    before, after = (
        load_file(folder / name / "adapter_model.safetensors")
        for name in ("adapter", "out")
    )
    # peft also saves the base's weights beside adapters of tables.
    before = {n: x for n, x in before.items() if ".base_layer.weight" not in n}
    heads = {name for name in after if name not in before}
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-6, atol=0)
    for name in heads:  # Of a tied table that was trained: the head as it was.
        assert name == "base_model.model.lm_head.weight"
    config = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    found = peft.PeftModel.from_pretrained(again(), folder / "out").eval()
    theirs, _, _ = inputs(model)
    with torch.no_grad():
        torch.testing.assert_close(found(**theirs).logits, model(**theirs).logits)


def test_gradients_are_those_of_peft(adapted, tmp_path):
    model, folder, _ = adapted
    theirs, ours, where = inputs(model)
    expected = of_peft(model, theirs, where)
    found = of_a_run(folder / "adapted", ours, where, tmp_path)
    num_experts = getattr(model.get_base_model().config, "num_local_experts", 1)
    assert_same(found, expected, num_experts)


def test_merged_weights_are_those_of_peft(adapted):
    model, folder, _ = adapted
    export_model(folder / "adapted", folder / "merged", merged=True)
    merge_runs([folder / "adapted"], folder / "whole")
    theirs, ours, where = inputs(model)
    with torch.no_grad():
        expected = model(**theirs).logits
        cls = type(model.get_base_model())
        again, info = cls.from_pretrained(
            folder / "merged", output_loading_info=True, **PLAIN
        )
        assert not any(info.values()), info
        torch.testing.assert_close(
            again.eval()(**theirs).logits, expected, rtol=1e-5, atol=1e-5
        )
    whole = fmjax.load(folder / "whole")
    assert whole.config.peft is None
    close(logits_of(whole, **ours), expected, where)
    in_memory = fmjax.load(folder / "adapted").merged()
    close(logits_of(in_memory, **ours), expected, where)


@pytest.mark.slow
def test_merging_does_to_each_weight_what_peft_does(tmp_path):
    architecture, options = DECODERS["llama"]
    base = random_model(architecture, options)
    imported(base, tmp_path)
    model = random_adapter(base, CASES["llama"][1])
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    export_model(tmp_path / "adapted", tmp_path / "merged", merged=True)
    found = load_file(tmp_path / "merged" / "model.safetensors")
    for name, tensor in model.merge_and_unload().state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_experts_saved_by_earlier_versions_are_imported(tmp_path):
    architecture, options = DECODERS["mixtral"]
    base = random_model(architecture, options)
    imported(base, tmp_path)
    # Since version 5 peft reads these with the experts' tensors joined.
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for expert in range(5):
            for name, (wide, narrow) in {
                "w1": (50, 36),
                "w2": (36, 50),
                "w3": (50, 36),
            }.items():
                key = (
                    f"base_model.model.model.layers.{layer}.block_sparse_moe.experts."
                    f"{expert}.{name}.lora_"
                )
                a, b = rng.normal(size=(3, narrow)), rng.normal(size=(wide, 3))
                tensors[f"{key}A.weight"] = torch.tensor(0.1 * a).float()
                tensors[f"{key}B.weight"] = torch.tensor(0.1 * b).float()
    from safetensors.torch import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = lora(target_modules=["w1", "w2", "w3"])
    config.save_pretrained(folder)
    model = peft.PeftModel.from_pretrained(base, folder).eval()
    import_adapter(folder, tmp_path / "adapted", tmp_path / "run")
    theirs, ours, where = inputs(model)
    with torch.no_grad():
        expected = model(**theirs).logits
    close(logits_of(fmjax.load(tmp_path / "adapted"), **ours), expected, where)


@pytest.mark.parametrize(
    ("architecture", "bare"),
    [
        ("LlamaForSequenceClassification", "LlamaForCausalLM"),
        slow("BertForSequenceClassification", "BertModel"),
        slow("RobertaForTokenClassification", "RobertaForMaskedLM"),
    ],
)
def test_a_head_that_the_adapter_has_alone_is_added(architecture, bare, tmp_path):
    # RoBERTa counts positions from 2.
    options = BERT | {"num_labels": 3, "max_position_embeddings": 30}
    if "Llama" in architecture:
        options = {**DECODERS["llama"].options} | {"num_labels": 3, "pad_token_id": 0}
    theirs = random_model(architecture, options)
    base = random_model(bare, options)
    name = base.base_model_prefix
    inner = getattr(base, name, base)
    inner.load_state_dict(getattr(theirs, name).state_dict(), strict=False)
    imported(base, tmp_path)
    task = "TOKEN_CLS" if "Token" in architecture else "SEQ_CLS"
    model = random_adapter(theirs, lora(task_type=task))
    model.save_pretrained(tmp_path / "adapter")
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    # A row without padding, which Llama's class tells by the ids alone.
    theirs, ours = ({n: x[:1] for n, x in each.items()} for each in inputs(model)[:2])
    with torch.no_grad():
        expected = model(**theirs).logits
    found = fmjax.load(tmp_path / "adapted")(**ours)
    close(
        found["token_logits" if "Token" in architecture else "class_logits"], expected
    )


def test_a_file_of_torch_is_read(tmp_path):
    architecture, options = DECODERS["gpt2"]
    base = random_model(architecture, options)
    imported(base, tmp_path)
    model = random_adapter(base, lora(target_modules=["c_attn"], fan_in_fan_out=True))
    model.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    assert (tmp_path / "adapter" / "adapter_model.bin").is_file()
    import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    theirs, ours, where = inputs(model)
    with torch.no_grad():
        expected = model(**theirs).logits
    close(logits_of(fmjax.load(tmp_path / "adapted"), **ours), expected, where)


def test_an_adapter_of_a_table_that_peft_leaves_out_is_refused(tmp_path):
    base = random_model(*SEQ2SEQ)
    imported(base, tmp_path)
    model = random_adapter(base, lora(target_modules=["shared"]))
    theirs, _, _ = inputs(model)
    with torch.no_grad():
        plain = random_model(*SEQ2SEQ)(**theirs).logits
        assert torch.equal(model(**theirs).logits, plain)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(fmjax.errors.UserError, match="whose adapter peft leaves out"):
        import_adapter(tmp_path / "adapter", tmp_path / "adapted", tmp_path / "run")
    assert not (tmp_path / "adapted").exists()
