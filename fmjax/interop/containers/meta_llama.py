"""Meta's own files of Llama: `params.json` and `consolidated.*.pth`.

Each file holds a part of every matrix, as tensor parallelism splits them: rows of
queries, keys, values, gate, up and head; columns of out and down; of the table columns
(Llama 1 and 2) or rows (Llama 3). The two numbers of a head that rotate together are
next to each other; transformers has them half a head apart.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers import torch_files
from fmjax.interop.containers.stored_tensor import StoredTensor
from fmjax.interop.options import Options
from fmjax.storage.git_lfs import refuse_pointer

PARAMS = "params.json"
_PARTS = "consolidated.*.pth"
# (pattern, name in transformers, axis along which parts are joined; None if each file
# has the whole).
_NAMES: tuple[tuple[str, str, int | None], ...] = (
    (r"tok_embeddings\.weight", "model.embed_tokens.weight", None),
    (r"output\.weight", "lm_head.weight", 0),
    (r"norm\.weight", "model.norm.weight", None),
    (r"layers\.(\d+)\.attention\.wq\.weight", "self_attn.q_proj.weight", 0),
    (r"layers\.(\d+)\.attention\.wk\.weight", "self_attn.k_proj.weight", 0),
    (r"layers\.(\d+)\.attention\.wv\.weight", "self_attn.v_proj.weight", 0),
    (r"layers\.(\d+)\.attention\.wo\.weight", "self_attn.o_proj.weight", 1),
    (r"layers\.(\d+)\.feed_forward\.w1\.weight", "mlp.gate_proj.weight", 0),
    (r"layers\.(\d+)\.feed_forward\.w2\.weight", "mlp.down_proj.weight", 1),
    (r"layers\.(\d+)\.feed_forward\.w3\.weight", "mlp.up_proj.weight", 0),
    (r"layers\.(\d+)\.attention_norm\.weight", "input_layernorm.weight", None),
    (r"layers\.(\d+)\.ffn_norm\.weight", "post_attention_layernorm.weight", None),
)
_TABLE, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Frequencies of the rotation, which params.json has.
_CONSTANTS = r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs"


def is_meta_llama(folder: Path) -> bool:
    """Whether a folder has Meta's files."""
    return (folder / PARAMS).is_file() and any(folder.glob(_PARTS))


def read_folder(
    folder: Path, ignore: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The config.json that params.json amounts to, and tensors named as transformers'.

    Raises:
      UserError: an option or a tensor is not Llama's, or the parts do not fit together.
    """
    parts = []
    for file in sorted(folder.glob(_PARTS)):
        refuse_pointer(file)
        parts.append(torch_files.read_file(file))
    options = Options.read(folder / PARAMS, ignore)
    width, heads = (_size(options, name) for name in ("dim", "n_heads"))
    kv_heads = options.take("n_kv_heads", int, None) or heads
    if width % heads:
        options.refuse("n_heads", heads, f"a divisor of dim = {width}")
    head = width // heads
    tensors: dict[str, StoredTensor] = {}
    for name in parts[0]:
        if re.fullmatch(_CONSTANTS, name):
            continue
        theirs, axis = _renamed(folder, name)
        if any(name not in part for part in parts):
            raise UserError(f"{folder}: {name} is not in all {len(parts)} parts.")
        pieces = [part[name] for part in parts]
        if theirs == _TABLE and len(pieces) > 1:
            axis = 0 if pieces[0].shape[-1] == width else 1
        if "k_proj" in theirs or "v_proj" in theirs:
            # With more parts than key heads, several have the same.
            copies = len(pieces) * pieces[0].shape[0] // (kv_heads * head)
            pieces = pieces[:: max(1, copies)]
        rotated = head if re.search(r"[qk]_proj", theirs) else None
        tensors[theirs] = _joined(folder, name, pieces, axis, rotated)
    config = _config(options, tensors, width, heads, kv_heads)
    options.finish()
    return config, tensors


def _size(options: Options, name: str) -> int:
    value = options.take(name, int, None)
    if value is None or value < 1:
        options.refuse(name, value, "a size")
    return value


def _renamed(folder: Path, name: str) -> tuple[str, int | None]:
    for pattern, theirs, axis in _NAMES:
        if match := re.fullmatch(pattern, name):
            layer = f"model.layers.{match[1]}." if match.groups() else ""
            return layer + theirs, axis
    raise UserError(f"{folder}: {name} is no tensor of Llama as Meta names them.")


def _joined(
    folder: Path,
    name: str,
    pieces: list[StoredTensor],
    axis: int | None,
    head: int | None,
) -> StoredTensor:
    """The parts of a tensor joined, with rows of heads in transformers' order."""
    first = pieces[0]
    if axis is None:
        return first
    if any(piece.shape != first.shape for piece in pieces) or len(first.shape) != 2:
        raise UserError(f"{folder}: parts of {name} have other shapes than the first.")
    shape = list(first.shape)
    shape[axis] *= len(pieces)
    if head is not None and (head % 2 or shape[0] % head):
        raise UserError(
            f"{folder}: {name} has {shape[0]} rows; expected heads of {head} rows."
        )

    def read() -> np.ndarray:
        parts = [piece.read() for piece in pieces]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
        return whole if head is None else _rotated(whole, head)

    return StoredTensor((shape[0], shape[1]), first.dtype, read)


def _rotated(rows: np.ndarray, head: int) -> np.ndarray:
    """Rows (0, 1), (2, 3), … of each head become (0, half), (1, half + 1), …."""
    columns = rows.shape[1]
    pairs = rows.reshape(-1, head // 2, 2, columns)
    return pairs.transpose(0, 2, 1, 3).reshape(-1, columns)


def _config(
    options: Options,
    tensors: Mapping[str, StoredTensor],
    width: int,
    heads: int,
    kv_heads: int,
) -> dict[str, Any]:
    layers = _size(options, "n_layers")
    gate = "model.layers.0.mlp.gate_proj.weight"
    for name in (_TABLE, gate):
        if name not in tensors:
            raise UserError(f"The parts of Llama have no tensor for {name}.")
    rows = tensors[_TABLE].shape[0]
    stated = options.take("vocab_size", int, -1)
    epsilon = options.take("norm_eps", float, 1e-5)
    theta = options.take("rope_theta", float, 10000.0)
    # How the width of the feed-forward layer was found, which the tensors have.
    options.ignore("multiple_of", "ffn_dim_multiplier", "max_batch_size")
    longest = options.take("max_seq_len", int, None)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": tensors[gate].shape[0],
        "vocab_size": rows if stated < 1 else stated,
        "rms_norm_eps": epsilon,
        "tie_word_embeddings": _HEAD not in tensors
        or _equal(tensors[_TABLE], tensors[_HEAD]),
    }
    # Neither lengths nor the factor are in params.json: those of the models that Meta
    # published. Llama 1 has another epsilon, Code Llama and 3 another base of rotation.
    if options.take("use_scaled_rope", bool, False):
        longest = longest or 131072
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0 if width >= 4096 else 32.0,  # Llama 3.1, Llama 3.2
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    elif theta > 10000.0:
        longest = longest or (16384 if theta == 1e6 else 8192)  # Code Llama, Llama 3
    else:
        longest = longest or (2048 if epsilon < 1e-5 else 4096)
    return config | {"rope_theta": theta, "max_position_embeddings": longest}


def _equal(first: StoredTensor, second: StoredTensor) -> bool:
    return first.shape == second.shape and np.array_equal(first.read(), second.read())
