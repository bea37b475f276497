"""Models with quantized weights compute what they do with dequantized ones."""

import json

import numpy as np
import pytest
import torch
from parity.models_of_transformers import ENDS, close, random_model, text
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as torch_save_file
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


LLAMA = dict(
    vocab_size=203,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=28,
    **ENDS,
)
RNG = np.random.default_rng(0)
# What is added to integers of four bits; numbers of a group.
HALF, GROUP = 8, 32


def of_four_bits(weight):
    """Integers from 0 to 15 [out, in], and scales [out, groups]."""
    groups = weight.reshape(len(weight), -1, GROUP)
    scale = (np.abs(groups).max(-1) / 7).astype(np.float32)
    integers = np.clip(np.round(groups / scale[..., None]), -8, 7) + HALF
    return integers.reshape(weight.shape).astype(np.int32), scale


def awq(weight):
    integers, scale = of_four_bits(weight)
    zeros = np.full((scale.shape[1], len(weight)), HALF)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {
        "qweight": in_words(integers.T, 1, order),
        "qzeros": in_words(zeros, 1, order),
        "scales": scale.T.copy(),
    }, affine(integers, scale)


def gptq(weight):
    integers, scale = of_four_bits(weight)
    zeros = np.full((scale.shape[1], len(weight)), HALF - 1)
    return {
        "qweight": in_words(integers.T, 0),
        "qzeros": in_words(zeros, 1),
        "scales": scale.T.copy(),
        "g_idx": (np.arange(weight.shape[1]) // GROUP).astype(np.int32),
    }, affine(integers, scale)


def packed(weight):
    integers, scale = of_four_bits(weight)
    return {
        "weight_packed": in_words(integers, 1),
        "weight_scale": scale,
        "weight_shape": np.array(weight.shape),
    }, affine(integers, scale)


def fp8(weight):
    rows, columns = (-(-n // 32) for n in weight.shape)
    scale = (RNG.random((rows, columns)) / 100 + 0.01).astype(np.float32)
    every = np.kron(scale, np.ones((32, 32), np.float32))[: len(weight)]
    codes = torch.from_numpy(weight / every).to(torch.float8_e4m3fn)
    whole = codes.float().numpy() * every
    return {"weight": codes, "weight_scale_inv": scale}, whole


def affine(integers, scale):
    return (integers - HALF) * np.repeat(scale, GROUP, axis=1)


def in_words(integers, axis, order=range(8)):
    """Eight integers of four bits in a word, along an axis."""
    eights = np.moveaxis(integers, axis, -1)
    eights = eights.reshape(*eights.shape[:-1], -1, 8).astype(np.int64)
    words = sum(eights[..., i] << (4 * list(order).index(i)) for i in range(8))
    words = words.astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis))


METHODS = {
    "awq": (awq, {"bits": 4, "group_size": GROUP, "version": "gemm"}),
    "gptq": (gptq, {"bits": 4, "group_size": GROUP}),
    "compressed-tensors": (
        packed,
        {
            "format": "pack-quantized",
            "config_groups": {"group_0": {"weights": {"num_bits": 4}}},
        },
    ),
    "fp8": (fp8, {"weight_block_size": [32, 32]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_llama_of_fewer_bits(method, tmp_path):
    coded, settings = METHODS[method]
    model = random_model("LlamaForCausalLM", LLAMA)
    state, tensors = model.state_dict(), {}
    for name, whole in state.items():
        if not name.endswith("_proj.weight"):
            tensors[name] = whole
            continue
        parts, values = coded(whole.numpy())
        module = name.removesuffix("weight")
        tensors |= {module + end: torch.as_tensor(part) for end, part in parts.items()}
        state[name] = torch.from_numpy(values.astype(np.float32))
        assert 0 < (state[name] - whole).abs().max() < whole.abs().max()
    model.load_state_dict(state)
    model.save_pretrained(tmp_path / "hf")
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    torch_save_file(contiguous, tmp_path / "hf" / "model.safetensors")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method} | settings
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    report = import_model(tmp_path / "hf", tmp_path / "run")
    assert any(f"dequantized: {method}" in note for note in report.notes)
    tokens, mask = text()
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()
        ).logits
    ours = fmjax.load(tmp_path / "run")(tokens=tokens, padding_mask=mask)
    close(ours["logits"], expected, mask)


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
