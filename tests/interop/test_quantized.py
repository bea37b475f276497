"""Quantized weights, dequantized as the formulas of their libraries say.

The witnesses are written out in float64: loops over integers and their places in words.
"""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationScheme
from interop.small_gpt2 import write
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save_file

import fmjax
from fmjax.errors import UserError
from fmjax.interop.containers.folder import read_folder
from fmjax.interop.hugging_face import import_model
from fmjax.interop.quantized.dequantize import dequantized
from fmjax.interop.quantized.float8 import block_sizes
from fmjax.interop.tensor_files import TensorFiles

RNG = np.random.default_rng(0)
FP8 = ml_dtypes.float8_e4m3fn


def read(tmp_path, tensors, settings, name="a.weight"):
    """A weight of a folder with these tensors, in float32."""
    save_file(tensors, tmp_path / "model.safetensors")
    files = TensorFiles(tmp_path, read_folder(tmp_path))
    files, form = dequantized(tmp_path, files, settings)
    assert name in files.names, files.names
    return files.read(name, files.shape(name)), form


def save_file_with_float8(tensors, file):
    """Writes float8 by torch, for NumPy's writer does not know it."""

    def tensor(array):
        if array.dtype == FP8:
            return torch.from_numpy(array.view(np.uint8)).view(torch.float8_e4m3fn)
        return torch.from_numpy(np.asarray(array))

    torch_save_file({name: tensor(array) for name, array in tensors.items()}, file)


def float8(tmp_path, tensors, settings):
    file = tmp_path / "model.safetensors"
    save_file_with_float8(tensors, file)
    files = TensorFiles(tmp_path, read_folder(tmp_path))
    files, form = dequantized(tmp_path, files, settings)
    assert files.names == ["a.weight"]
    return files.read("a.weight", files.shape("a.weight")), form


def random_float8(*shape):
    return (RNG.normal(size=shape) * 50).astype(np.float32).astype(FP8)


def test_blocks_of_deepseek_are_multiplied_by_their_scales(tmp_path):
    weight, scale = random_float8(300, 200), RNG.random((3, 2), np.float32)
    expected = weight.astype(np.float64)
    for i in range(300):
        for j in range(200):
            expected[i, j] *= scale[i // 128, j // 128]
    tensors = {"a.weight": weight, "a.weight_scale_inv": scale}
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found, form = float8(tmp_path, tensors, settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert form == "fp8, weight_block_size [128, 128]; 1 of 1 tensors"


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (5,), (1, 1)], ids=str)
@pytest.mark.parametrize("method", ["compressed-tensors", "fbgemm_fp8"])
def test_scales_of_rows_and_of_tensors(tmp_path, shape, method):
    weight, scale = random_float8(5, 7), np.asarray(RNG.random(shape) + 1, np.float32)
    tensors = {"a.weight": weight, "a.weight_scale": scale}
    tensors["a.input_scale"] = np.ones(1, np.float32)
    settings = {"quant_method": method, "format": "float-quantized"}
    found, _ = float8(tmp_path, tensors, settings)
    rows = np.broadcast_to(np.asarray(scale, np.float64).reshape(-1), 5)[:, None]
    np.testing.assert_allclose(found, weight.astype(np.float64) * rows, rtol=1e-6)


def words(integers, bits, axis, order=None):
    """Packs integers into int32, bit by bit."""
    rows = np.moveaxis(integers, axis, -1)
    packed = np.zeros((*rows.shape[:-1], -(-rows.shape[-1] * bits // 32)), np.uint64)
    for i in range(rows.shape[-1]):
        place = i if order is None else i // 8 * 8 + order.index(i % 8)
        for bit in range(bits):
            word, at = divmod(place * bits + bit, 32)
            packed[..., word] |= (rows[..., i].astype(np.uint64) >> bit & 1) << at
    whole = packed.astype(np.uint32).view(np.int32)
    return np.ascontiguousarray(np.moveaxis(whole, -1, axis))


def affine(integers, scale, zero, group):
    """(q - z) · s for integers [in, out], in float64; transposed."""
    found = np.empty(integers.shape)
    for i in range(len(integers)):
        g = group[i]
        found[i] = (integers[i].astype(np.float64) - zero[g]) * scale[g]
    return found.T


def test_awq_is_read_in_its_order(tmp_path):
    integers, zero = RNG.integers(0, 16, (64, 24)), RNG.integers(0, 16, (2, 24))
    scale = RNG.random((2, 24)).astype(np.float16)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "a.qweight": words(integers, 4, 1, order),
        "a.qzeros": words(zero, 4, 1, order),
        "a.scales": scale,
        "a.bias": np.ones(24, np.float16),
    }
    settings = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    found, form = read(tmp_path, tensors, settings)
    expected = affine(integers, scale.astype(np.float64), zero, np.arange(64) // 32)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert form == "awq, bits 4, group_size 32; 1 of 2 tensors"
    with pytest.raises(UserError, match=r"version = 'gemv' of AWQ"):
        read(tmp_path, tensors, settings | {"version": "gemv"})
    # As a file beside an older config.
    (tmp_path / "quant_config.json").write_text('{"w_bit": 4, "version": "GEMM"}')
    np.testing.assert_array_equal(read(tmp_path, tensors, None)[0], found)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq_is_read_with_its_groups(tmp_path, bits, act_order, version):
    most = 1 << bits
    integers, zero = RNG.integers(0, most, (64, 32)), RNG.integers(0, most, (4, 32))
    scale = RNG.random((4, 32)).astype(np.float16)
    group = RNG.integers(0, 4, 64) if act_order else np.arange(64) // 16
    stored = (zero - 1) % most if version == "gptq" else zero
    tensors = {
        "a.qweight": words(integers, bits, 0),
        "a.qzeros": words(stored, bits, 1),
        "a.scales": scale,
        "a.g_idx": group.astype(np.int32),
    }
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": version}
    found, _ = read(tmp_path, tensors, settings | {"desc_act": act_order})
    expected = affine(integers, scale.astype(np.float64), zero, group)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if not act_order:  # Files without desc_act need not have the groups.
        del tensors["a.g_idx"]
        np.testing.assert_array_equal(read(tmp_path, tensors, settings)[0], found)
    else:
        tensors["a.g_idx"] = np.full(64, 4, np.int32)
        with pytest.raises(UserError, match="g_idx names a group that has no scale"):
            read(tmp_path, tensors, settings)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["symmetric", "zero points", "ordered"])
def test_packed_integers_are_those_of_compressed_tensors(tmp_path, bits, kind):
    half = 1 << (bits - 1)
    integers = RNG.integers(-half, half, (6, 40)).astype(np.int8)
    zero = RNG.integers(-half, half, (6, 4)).astype(np.int8)
    scale = RNG.random((6, 4)).astype(np.float32)
    group = RNG.permutation(np.arange(40) // 10)

    def pack(array, axis):
        return pack_to_int32(torch.from_numpy(array), bits, packed_dim=axis).numpy()

    tensors = {
        "a.weight_packed": pack(integers, 1),
        "a.weight_scale": scale,
        "a.weight_shape": np.array([6, 40]),
    }
    columns = np.arange(40) // 10
    if kind == "zero points":
        tensors["a.weight_zero_point"] = pack(zero, 0)
    if kind == "ordered":
        tensors["a.weight_g_idx"] = columns = group.astype(np.int32)
    weights = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 10}
    settings = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    found, _ = read(tmp_path, tensors, settings)
    shift = zero.astype(np.float64) if kind == "zero points" else np.zeros((6, 4))
    expected = (integers - shift[:, columns]) * scale.astype(np.float64)[:, columns]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Format → numbers of a group, bits, and the library's class.
FLOATS = {
    "nvfp4-pack-quantized": (16, 4, NVFP4PackedCompressor),
    "mxfp4-pack-quantized": (32, 4, MXFP4PackedCompressor),
    "mxfp8-quantized": (32, 8, MXFP8QuantizationCompressor),
}


@pytest.mark.parametrize("kind", FLOATS)
def test_floats_are_those_of_compressed_tensors(tmp_path, kind):
    group, bits, compressor = FLOATS[kind]
    weights = {"num_bits": bits, "type": "float", "group_size": group}
    weights |= {"strategy": "tensor_group" if group == 16 else "group"}
    whole = torch.tensor([40.0])
    shape = (6, 64 // group)
    scale = (
        RNG.random(shape) + 0.1 if group == 16 else 2.0 ** RNG.integers(-3, 3, shape)
    )
    state = {
        "weight": torch.from_numpy(RNG.normal(size=(6, 64))).float(),
        "weight_scale": torch.from_numpy(scale).float(),
    }
    if group == 16:
        state["weight_scale"] *= whole
        state["weight_global_scale"] = whole
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    compressed = compressor.compress(state, scheme)
    expected = compressor.decompress(compressed, scheme)["weight"].float().numpy()
    assert len(np.unique(expected)) > 20
    file = tmp_path / "model.safetensors"
    torch_save_file({f"a.{name}": x for name, x in compressed.items()}, file)
    settings = {
        "quant_method": "compressed-tensors",
        "format": kind,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    files = TensorFiles(tmp_path, read_folder(tmp_path))
    files, _ = dequantized(tmp_path, files, settings)
    found = files.read("a.weight", files.shape("a.weight"))
    # The library multiplies and divides by scales in bfloat16.
    np.testing.assert_allclose(found, expected, rtol=2**-8 if group == 16 else 1e-6)
    if group == 16:
        scales = compressed["weight_scale"].double() / whole.double()
        per_weight = np.repeat(scales.numpy(), group, axis=1)
        codes = unpack_fp4_from_uint8(compressed["weight_packed"], 6, 64, torch.float64)
        np.testing.assert_allclose(found, codes.numpy() * per_weight, rtol=1e-6)


def test_int8_of_compressed_tensors(tmp_path):
    integers = RNG.integers(-128, 128, (6, 10)).astype(np.int8)
    scale = RNG.random((6, 1)).astype(np.float32)
    zero = RNG.integers(-5, 5, (6, 1)).astype(np.int8)
    tensors = {"a.weight": integers, "a.weight_scale": scale}
    tensors["a.weight_zero_point"] = zero
    settings = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    found, _ = read(tmp_path, tensors, settings)
    expected = (integers.astype(np.float64) - zero) * scale
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    with pytest.raises(UserError, match="'marlin-24' of compressed-tensors is not"):
        read(tmp_path, tensors, settings | {"format": "marlin-24"})


E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_mxfp4_of_gpt_oss(tmp_path):
    experts, outputs, groups = 3, 5, 2
    blocks = RNG.integers(0, 256, (experts, outputs, groups, 16)).astype(np.uint8)
    scales = RNG.integers(110, 140, (experts, outputs, groups)).astype(np.uint8)
    tensors = {
        "m.experts.down_proj_blocks": blocks,
        "m.experts.down_proj_scales": scales,
    }
    name = "m.experts.down_proj"
    found, _ = read(tmp_path, tensors, {"quant_method": "mxfp4"}, name)
    expected = np.empty((experts, groups * 32, outputs))
    for e in range(experts):
        for o in range(outputs):
            for g in range(groups):
                for k in range(32):
                    code = int(blocks[e, o, g, k // 2]) >> (4 * (k % 2)) & 15
                    value = E2M1[code & 7] * (-1) ** (code >> 3)
                    power = 2.0 ** (int(scales[e, o, g]) - 127)
                    expected[e, g * 32 + k, o] = value * power
    np.testing.assert_array_equal(found, expected)
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    theirs = convert_moe_packed_tensors(
        torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32
    )
    np.testing.assert_array_equal(found, theirs.numpy())


def test_int8_of_bitsandbytes(tmp_path):
    integers = RNG.integers(-127, 128, (6, 10)).astype(np.int8)
    most = RNG.random(6).astype(np.float32)
    tensors = {"a.weight": integers, "a.SCB": most}
    tensors["a.weight_format"] = np.zeros((), np.uint8)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    found, _ = read(tmp_path, tensors, settings)
    expected = integers * most.astype(np.float64)[:, None] / 127
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_int8_in_a_layout_of_a_gpu_is_refused(tmp_path):
    tensors = {"a.weight": np.zeros((32, 32), np.int8), "a.SCB": np.ones(32, "f4")}
    tensors["a.weight_format"] = np.array(2, np.uint8)
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    with pytest.raises(UserError, match="weight_format 0"):
        read(tmp_path, tensors, settings)


@pytest.mark.parametrize(
    ("shape", "scales", "stated", "expected"),
    [
        # The last block of rows is smaller: kv_a_proj_with_mqa of DeepSeek-V3.
        ((576, 7168), (5, 56), None, (128, 128)),
        ((576, 128), (5, 1), [128, 128], (128, 128)),
        ((256, 96), (4, 3), [64, 32], (64, 32)),
        # Scales of rows, and of a whole matrix.
        ((6, 40), (6, 1), None, (1, 40)),
        ((6, 40), (1, 1), [128, 128], (6, 40)),
        ((577, 7168), (4, 56), None, None),
    ],
    ids=str,
)
def test_blocks_are_those_of_the_config_or_of_transformers(
    shape, scales, stated, expected
):
    assert block_sizes(shape, scales, stated) == expected


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(6, 64), (5, 13)], ids=str)
def test_nf4_of_bitsandbytes(tmp_path, nested, shape):
    size, block = math.prod(shape), 64
    codes = RNG.integers(0, 16, size)
    levels = np.sort(RNG.normal(size=16)).astype(np.float32)
    count = -(-size // block)
    padded = np.append(codes, np.zeros(size % 2, int))
    bytes_ = (padded[0::2] << 4 | padded[1::2]).astype(np.uint8)
    state = {"quant_type": "nf4", "blocksize": block, "shape": list(shape)}
    tensors = {"a.weight": bytes_[:, None], "a.weight.quant_map": levels}
    if nested:
        table = np.sort(RNG.normal(size=256)).astype(np.float32)
        inner = RNG.integers(0, 256, count).astype(np.uint8)
        outer = RNG.random(-(-count // 4)).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_offset": 0.25}
        tensors |= {
            "a.weight.absmax": inner,
            "a.weight.nested_absmax": outer,
            "a.weight.nested_quant_map": table,
        }
        most = [float(table[inner[i]]) * outer[i // 4] + 0.25 for i in range(count)]
    else:
        most = RNG.random(count).astype(np.float32)
        tensors["a.weight.absmax"] = most
    end = "a.weight.quant_state.bitsandbytes__nf4"
    tensors[end] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    found, _ = read(tmp_path, tensors, settings)
    expected = [float(levels[c]) * most[i // block] for i, c in enumerate(codes)]
    np.testing.assert_allclose(found, np.reshape(expected, shape), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "quip"}, "quant_method = 'quip' is not supported; expected"),
        ({"bits": 4}, "quant_method = 'None' is not supported"),
        ({"quant_method": "gptq", "bits": 5}, r"a\.: 5 bits; expected 2, 3, 4, 8"),
        (
            {"quant_method": "gptq", "bits": 4},
            r"a\. has qweight .*expected qweight \[in",
        ),
        ({"quant_method": "awq", "bits": 3}, "3 bits .* of AWQ are not supported"),
        ({"quant_method": "awq"}, r"a\. has qweight .*expected qweight \[in, out / 8"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, settings, message):
    tensors = {
        "a.qweight": np.zeros((4, 8), np.int32),
        "a.qzeros": np.zeros((3, 1), np.int32),
        "a.scales": np.zeros((3, 8), np.float16),
    }
    with pytest.raises(UserError, match=message):
        read(tmp_path, tensors, settings)
    del tensors["a.scales"]
    settings = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(UserError, match=r"a\. has qweight, qzeros, but no scales"):
        read(tmp_path, tensors, settings)


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
    "vocab_size": 11,
    "tie_word_embeddings": True,
}


def test_a_quantized_model_is_imported_and_told_of(tmp_path, capsys):
    from fmjax.cli.main import main

    layer, tensors, expected = "model.layers.0", {}, {}
    tensors["model.embed_tokens.weight"] = RNG.normal(size=(11, 16)).astype(np.float16)
    for norm in (
        "norm",
        "layers.0.input_layernorm",
        "layers.0.post_attention_layernorm",
    ):
        tensors[f"model.{norm}.weight"] = np.ones(16, np.float16)
    shapes = {f"self_attn.{x}_proj": (16, 16) for x in "qkvo"}
    shapes |= {"mlp.gate_proj": (16, 24), "mlp.up_proj": (16, 24)}
    for name, (inputs, outputs) in (shapes | {"mlp.down_proj": (24, 16)}).items():
        integers = RNG.integers(0, 16, (inputs, outputs))
        scale = RNG.random((1, outputs)).astype(np.float16)
        zero = np.full((1, outputs), 7)
        tensors[f"{layer}.{name}.qweight"] = words(integers, 4, 0)
        tensors[f"{layer}.{name}.qzeros"] = words(zero, 4, 1)
        tensors[f"{layer}.{name}.scales"] = scale
        expected[name] = affine(integers, np.float64(scale), zero + 1, [0] * inputs)
    told = {"quant_method": "gptq", "bits": 4, "group_size": -1, "desc_act": False}
    config = LLAMA | {"quantization_config": told}
    write(tmp_path / "hf", tensors, config)
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    form = "gptq, bits 4, group_size -1; 7 of 11 tensors"
    assert f"quantized weights are dequantized: {form}" in capsys.readouterr().out
    run = fmjax.load(tmp_path / "run")
    assert run.config.imported.quantization == form
    assert run.config.imported.dtype == "float16"
    block = run.params["stack"]["layers"]
    gate = expected["mlp.gate_proj"].T
    np.testing.assert_allclose(block["mlp"]["gate"][0], gate, rtol=1e-6)
    query = expected["self_attn.q_proj"].T.reshape(16, 2, 8)
    np.testing.assert_allclose(block["attention"]["query"][0], query, rtol=1e-6)
    # Settings of weights that are not quantized say nothing, nor does an empty object.
    plain = {n: t for n, t in tensors.items() if "proj" not in n}
    for name, array in expected.items():
        plain[f"{layer}.{name}.weight"] = np.float32(array).copy(order="C")
    write(tmp_path / "plain", plain, config)
    write(tmp_path / "empty", plain, config | {"quantization_config": {}})
    assert import_model(tmp_path / "empty", tmp_path / "none").notes == []
    report = import_model(tmp_path / "plain", tmp_path / "again")
    assert report.notes == []
    np.testing.assert_array_equal(
        fmjax.load(tmp_path / "again").params["stack"]["layers"]["mlp"]["gate"],
        block["mlp"]["gate"],
    )
