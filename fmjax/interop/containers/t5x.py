"""Checkpoints of T5X: a msgpack file and a zarr array for each larger tensor.

The file `checkpoint` is flax's msgpack of {"version": 3, "optimizer": {"target": …}}.
In the place of a larger tensor it has a specification of TensorStore, of which only the
path is used: the folder's subfolder with the array. The sizes of the model follow from
the shapes; T5X keeps the rest of a config in gin files.
"""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax import serialization

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import StoredTensor

FILE = "checkpoint"
_VERSION = 3
_MT5_ROWS = 250112
# A zarr array may be compressed, but weights are not by as much.
_MOST_COMPRESSED = 1000
_ENCODER, _DECODER = r"encoder/layers_(\d+)", r"decoder/layers_(\d+)"
_NORM, _KERNEL = "layer_norm.weight", "weight"
_PARTS = {"query": "q", "key": "k", "value": "v", "out": "o"}
_HEAD, _TABLE = "lm_head.weight", "shared.weight"
_BIAS = "SelfAttention.relative_attention_bias.weight"


def _names() -> Iterator[tuple[str, str]]:
    """(pattern of T5X, name of transformers); kernels are transposed."""
    yield r"token_embedder/embedding", _TABLE
    yield r"decoder/logits_dense/kernel", _HEAD
    for side in ("encoder", "decoder"):
        yield rf"{side}/{side}_norm/scale", f"{side}.final_layer_norm.weight"
        yield rf"{side}/relpos_bias/rel_embedding", f"{side}.block.0.layer.0.{_BIAS}"
    sides: tuple[tuple[str, str, tuple[tuple[str, str, str], ...]], ...] = (
        (_ENCODER, "encoder", (("attention", "attention", "SelfAttention"),)),
        (
            _DECODER,
            "decoder",
            (
                ("self_attention", "self_attention", "SelfAttention"),
                ("cross_attention", "encoder_decoder_attention", "EncDecAttention"),
            ),
        ),
    )
    for layer, side, attentions in sides:
        for i, (norm, ours, theirs) in enumerate(attentions):
            block = rf"{side}.block.\1.layer.{i}"
            yield rf"{layer}/pre_{norm}_layer_norm/scale", f"{block}.layer_norm.weight"
            for part, letter in _PARTS.items():
                yield (
                    rf"{layer}/{ours}/{part}/kernel",
                    f"{block}.{theirs}.{letter}.weight",
                )
        last = rf"{side}.block.\1.layer.{len(attentions)}"
        yield rf"{layer}/pre_mlp_layer_norm/scale", f"{last}.layer_norm.weight"
        for name in ("wi", "wi_0", "wi_1", "wo"):
            dense = f"{last}.DenseReluDense.{name}.weight"
            yield rf"{layer}/mlp/{name}/kernel", dense


_NAMES = tuple(_names())


def is_t5x(folder: Path) -> bool:
    """Whether a folder has a checkpoint of T5X."""
    return (folder / FILE).is_file() and any(folder.glob("target.*"))


def read_folder(
    folder: Path, ignore: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """The config.json of the model, and the tensors as transformers' T5 has them.

    Args:
      folder: the checkpoint's.
      ignore: unused, for the shapes of tensors are all there is.

    Raises:
      UserError: the checkpoint is damaged, or of another model than T5.
    """
    del ignore
    tensors = {}
    for name, leaf in _leaves(folder):
        stored = _stored(folder, name, leaf)
        theirs = _renamed(folder, name)
        if re.search("kernel$|rel_embedding$", name):
            stored = _transposed(stored)
        tensors[theirs] = stored
    return _config(folder, tensors), tensors


def _leaves(folder: Path) -> Iterator[tuple[str, Any]]:
    file = folder / FILE
    try:
        content = serialization.msgpack_restore(file.read_bytes())
        version, target = content["version"], content["optimizer"]["target"]
    except Exception as error:  # Of msgpack, which has many.
        raise UserError(
            f"{file} is no checkpoint of T5X: {type(error).__name__}: {error!s:.100}. "
            'Expected msgpack of {"version": 3, "optimizer": {"target": …}}.'
        ) from error
    if version != _VERSION:
        raise UserError(f"{file} is of version {version!s:.20}; expected {_VERSION}.")
    yield from _flat(target, "")


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and not {"driver", "kvstore"} <= tree.keys():
        for name, inside in tree.items():
            yield from _flat(inside, f"{path}/{name}" if path else str(name))
    else:
        yield path, tree


def _renamed(folder: Path, name: str) -> str:
    for pattern, theirs in _NAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(theirs)
    scanned = re.match("(encoder/encoder|decoder/decoder)/", name)
    raise UserError(
        f"{folder}: {name:.100} is no tensor of T5, T5 1.1 or mT5"
        + (", whose layers are not scanned in T5X's own models." if scanned else ".")
    )


def _stored(folder: Path, name: str, leaf: Any) -> StoredTensor:
    if isinstance(leaf, np.ndarray):
        return StoredTensor(leaf.shape, leaf.dtype, lambda: leaf)
    path = leaf.get("kvstore", {}).get("path") if isinstance(leaf, dict) else None
    path = path.rstrip("/") if isinstance(path, str) else ""
    if not re.fullmatch(r"target\.[\w.]{1,200}", path) or ".." in path:
        raise UserError(
            f"{folder / FILE}: {name:.100} is neither an array nor the path of one in "
            "the folder."
        )
    return _zarr(folder / path)


def _zarr(array: Path) -> StoredTensor:
    """An array in the zarr format (version 2), all of whose chunks exist."""
    try:
        about = json.loads((array / ".zarray").read_bytes())
        shape, chunks = (tuple(map(int, about[name])) for name in ("shape", "chunks"))
        dtype = _dtype(about["dtype"])
        grid = [-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True)]
        files = [x for x in array.iterdir() if re.fullmatch(r"[\d.]+", x.name)]
        held = sum(file.stat().st_size for file in files)
    except (
        ArithmeticError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise UserError(f"{array} is no zarr array: {error!r:.200}.") from error
    if len(files) != math.prod(grid):
        raise UserError(
            f"{array} has {len(files)} chunks of {math.prod(grid)}: the checkpoint is "
            "not complete."
        )
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or size > _MOST_COMPRESSED * held:
        raise UserError(f"{array} has the shape {shape} in {held:,} bytes of chunks.")

    def read() -> np.ndarray:
        import tensorstore

        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(array)}}
        try:
            opened = tensorstore.open(spec, open=True, read=True).result()
            return np.asarray(opened.read().result())
        except (ValueError, OSError) as error:
            raise UserError(f"{array} cannot be read: {error!s:.300}") from error

    return StoredTensor(shape, dtype, read)


def _dtype(name: Any) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _transposed(stored: StoredTensor) -> StoredTensor:
    return StoredTensor(
        stored.shape[::-1], stored.dtype, lambda: np.asarray(stored.read()).T
    )


def _config(folder: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, Any]:
    first = "encoder.block.0.layer.0.SelfAttention"
    gated = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
    feed_forward = gated if gated in tensors else gated.replace("wi_0", "wi")
    needed = (_TABLE, f"{first}.q.weight", f"encoder.block.0.layer.0.{_BIAS}")
    for name in (*needed, feed_forward):
        if name not in tensors or len(tensors[name].shape) != 2:
            raise UserError(f"{folder} has no matrix for {name} of T5.")
    vocabulary, width = tensors[_TABLE].shape
    buckets, heads = tensors[needed[2]].shape

    def layers(side: str) -> int:
        found = (re.match(rf"{side}\.block\.(\d+)\.", name) for name in tensors)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    # mT5's vocabulary; its models are T5 1.1's otherwise.
    kind = "MT5" if vocabulary == _MT5_ROWS else "T5"
    return {
        "model_type": kind.lower(),
        "architectures": [f"{kind}ForConditionalGeneration"],
        "d_model": width,
        "d_kv": tensors[needed[1]].shape[0] // max(1, heads),
        "d_ff": tensors[feed_forward].shape[0],
        "num_heads": heads,
        "num_layers": layers("encoder"),
        "num_decoder_layers": layers("decoder"),
        "vocab_size": vocabulary,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "feed_forward_proj": "gated-gelu" if gated in tensors else "relu",
        "tie_word_embeddings": _HEAD not in tensors,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
