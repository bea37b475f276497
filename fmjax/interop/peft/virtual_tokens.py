"""Prefixes and prompts in the files of peft: one tensor of virtual tokens."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from fmjax.errors import UserError
from fmjax.interop.peft.adapter_config import PREFIX_TUNING, PROMPT_TUNING
from fmjax.interop.peft.base_model import BaseModel
from fmjax.models.language.bert import Bert
from fmjax.models.language.seq2seq import Seq2Seq
from fmjax.models.layers.transformer_config import TransformerConfig
from fmjax.models.layers.virtual_tokens import PREFIX, PROMPT, prompt_vectors
from fmjax.models.parameter_paths import SHARED
from fmjax.models.untie import TABLE
from fmjax.optim.peft.added import Method
from fmjax.optim.peft.p_tuning import PTuning
from fmjax.optim.peft.prefix import Prefix
from fmjax.optim.peft.prompt import Prompt

METHODS = (Prefix, Prompt, PTuning)
_KEY = "/attention/key"
_ROWS = "rows"
_ENCODER_DECODERS = 2  # peft's num_transformer_submodules of them.


def method_of(kind: str, length: int) -> Method:
    """The method here of an adapter's peft_type.

    A file of P-tuning has the outputs of its perceptron, so it is a prompt here.

    Args:
      kind: peft_type, `PREFIX_TUNING` or one of a prompt.
      length: number of virtual tokens.
    """
    if kind == PREFIX_TUNING:
        return Prefix(length)
    return Prompt(length, init="normal")


def kind_of(method: Method) -> str:
    """peft_type of one of `METHODS`."""
    return PREFIX_TUNING if isinstance(method, Prefix) else PROMPT_TUNING


def check_base(kind: str, base: BaseModel, where: str) -> None:
    """Raises a UserError for a model that peft's virtual tokens are read otherwise in.

    Args:
      kind: peft_type.
      base: the model.
      where: the file or run directory of the adapter, for messages.
    """
    model, stack = base.objective.model, _stack(base)
    if TABLE not in base.shapes:
        reason = "has no table of tokens"
    elif kind == PREFIX_TUNING and isinstance(model, Seq2Seq):
        reason = "has peft's prefix in its decoder alone, and here in both stacks"
    elif kind == PREFIX_TUNING and stack is None:
        reason = "has several stacks"
    elif kind == PREFIX_TUNING and stack.latent is not None:
        reason = "has latent attention, which reads no prefix"
    elif kind == PREFIX_TUNING and any(f"/{SHARED}/" in path for path in base.shapes):
        reason = "has one prefix here for layers that share their weights"
    elif kind != PREFIX_TUNING and isinstance(model, Bert) and model.num_classes:
        reason = (
            "is read at its first token, which for peft is a virtual one and here the "
            "text's"
        )
    elif base.family.model_type == "pegasus" and model.embed_scale:
        reason = "has its text's vectors scaled here, and for peft not"
    else:
        return
    raise UserError(
        f"{where}: {base.class_name} {reason}, so {kind} has no files for both. "
        "Expected another method or model."
    )


def notes(kind: str, base: BaseModel) -> list[str]:
    """Lines for the user on what differs from peft.

    Args:
      kind: peft_type.
      base: the model.
    """
    stack = _stack(base)
    if kind != PREFIX_TUNING or stack is None or stack.window is None:
        return []
    return [
        "in texts that are longer than a window less the prefix (transformer.window = "
        f"{stack.window}), outputs differ from peft's: there the prefix moves out of "
        "the window, here every token attends to it"
    ]


def from_file(
    kind: str, length: int, base: BaseModel, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """The parameters of a method, by path.

    Args:
      kind: peft_type.
      length: number of virtual tokens, n.
      base: the model.
      rows: `prompt_embeddings`, of the shape of `shape_of`.
    """
    if kind != PREFIX_TUNING:
        # Only the encoder of an encoder-decoder reads its own.
        return {f"{TABLE}{PROMPT}/{_ROWS}": rows[:length] / _scale(base)}
    places = [*_keys_and_values(base)]
    heads = _heads(base, places[0][0])
    found: dict[str, np.ndarray] = {}
    for i, (array, index) in enumerate(places):
        whole = found.setdefault(
            f"{array}{PREFIX}/{_ROWS}",
            np.zeros((*base.batch(array), length, *heads), np.float32),
        )
        whole[index] = rows.reshape(length, len(places), *heads)[:, i]
    return found


def shape_of(kind: str, length: int, copies: int, base: BaseModel) -> tuple[int, int]:
    """The shape of `prompt_embeddings`.

    Args:
      kind: peft_type.
      length: number of virtual tokens.
      copies: num_transformer_submodules.
      base: the model.
    """
    if kind == PREFIX_TUNING:
        places = [*_keys_and_values(base)]
        return length, len(places) * int(np.prod(_heads(base, places[0][0])))
    return length * copies, base.shapes[TABLE].shape[1]


def to_file(
    method: Method, added: Mapping[str, jax.Array], base: BaseModel
) -> tuple[np.ndarray, dict[str, Any]]:
    """`prompt_embeddings` and the options of adapter_config.json.

    A perceptron of P-tuning is replaced by its outputs, the vectors of a prompt.

    Args:
      method: one of `METHODS`.
      added: its parameters, by path.
      base: the model.
    """
    length = method.length
    options = {"num_virtual_tokens": length, "num_transformer_submodules": 1}
    if isinstance(method, Prefix):
        places = [*_keys_and_values(base)]
        heads, width = _heads(base, places[0][0])
        rows = np.stack(
            [
                np.asarray(added[f"{array}{PREFIX}/{_ROWS}"])[index]
                for array, index in places
            ],
            axis=1,
        )
        return rows.reshape(length, -1), options | {
            "peft_type": kind_of(method),
            "token_dim": heads * width,
            "num_attention_heads": heads,
            "num_layers": len(places) // 2,
            "prefix_projection": False,
        }
    owner = f"{TABLE}{PROMPT}/"
    rows = np.asarray(
        prompt_vectors({path.removeprefix(owner): x for path, x in added.items()})
    ) * np.float32(_scale(base))
    if isinstance(base.objective.model, Seq2Seq):
        # peft has vectors for the decoder too, and does not read them.
        rows = np.concatenate([rows, np.zeros_like(rows)])
        options["num_transformer_submodules"] = _ENCODER_DECODERS
    return rows, options | {"peft_type": kind_of(method), "token_dim": rows.shape[1]}


def _scale(base: BaseModel) -> float:
    """What multiplies vectors of tokens here, and those of a prompt in peft's files.

    Modules of transformers that have the table multiply by it too, so that peft's
    vectors are beside the products.
    """
    model = base.objective.model
    if not getattr(model, "embed_scale", False):
        return 1.0
    stack = model.encoder if isinstance(model, Seq2Seq) else model.transformer
    return stack.embed_dim**0.5


def _stack(base: BaseModel) -> TransformerConfig | None:
    """The config of the model's layers; None where there are several."""
    return getattr(base.objective.model, "transformer", None)


def _keys_and_values(base: BaseModel) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Array and index of the keys, and of the values, of each layer from the first."""
    found = {}
    for name, place in base.places.items():
        for path in place.row.paths:
            array, index = base.stored(path, place)
            if array.endswith(_KEY):
                found[array, index] = [
                    int(part) if part.isdigit() else part
                    for part in re.split(r"(\d+)", name)
                ]
    for array, index in sorted(found, key=found.__getitem__):
        yield array, index
        yield array.removesuffix("key") + "value", index


def _heads(base: BaseModel, array: str) -> tuple[int, int]:
    """Number and width of the heads of keys."""
    heads, width = base.shapes[array].shape[-2:]
    return heads, width
