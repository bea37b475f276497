"""Models with quantized weights compute what they do with dequantized ones."""

import json

import numpy as np
import pytest
import torch
from parity.models_of_transformers import ENDS, close, random_model, text
from safetensors.numpy import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

import fmjax
from fmjax.interop.hugging_face import import_model

GPT_OSS = dict(
    vocab_size=203,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=10,
    num_local_experts=3,
    num_experts_per_tok=2,
    sliding_window=5,
    max_position_embeddings=28,
    **ENDS,
)


@pytest.mark.slow
def test_experts_of_gpt_oss_in_mxfp4(tmp_path):
    model = random_model("GptOssForCausalLM", GPT_OSS)
    rng = np.random.default_rng(0)
    packed, state = {}, model.state_dict()
    for name, whole in state.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = whole.shape
            shape = (experts, outputs, inputs // 32)
            blocks = rng.integers(0, 256, (*shape, 16)).astype(np.uint8)
            scales = rng.integers(122, 126, shape).astype(np.uint8)
            packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
            given = (torch.from_numpy(each) for each in (blocks, scales))
            state[name] = convert_moe_packed_tensors(*given, dtype=torch.float32)
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "hf")
    file = tmp_path / "hf" / "model.safetensors"
    kept = {
        name: tensor
        for name, tensor in load_file(file).items()
        if f"{name}_blocks" not in packed
    }
    assert len(kept) == len(state) - len(packed) // 2
    save_file(kept | packed, file)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
    }
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    report = import_model(tmp_path / "hf", tmp_path / "run")
    assert any("dequantized: mxfp4; 4 of" in note for note in report.notes)
    tokens, mask = text()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        ).logits
    ours = fmjax.load(tmp_path / "run")(tokens=tokens, padding_mask=mask)
    close(ours["logits"], expected, mask)
