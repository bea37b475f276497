"""Virtual tokens: vectors that are learned in place of those of a text's tokens.

A prefix (Li and Liang 2021) is keys and values before those of a text in the attention
of a layer. A prompt (Lester et al. 2021) is vectors before those of a text in the input
of a model. Both lie beside the weights that they extend, see
`fmjax.models.layers.adapters`, and both take the positions before the text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from fmjax.models.layers.adapters import Adapter, adapter_of
from fmjax.models.layers.text_inputs import TextInputs

# Suffixes of the names of adapters.
PREFIX = "_prefix"
PROMPT = "_prompt"


def read_prefix(
    module: nn.Module, batch_size: int, dtype: jnp.dtype
) -> tuple[Array, Array] | None:
    """The keys and values [B, n, G, K] before those of a text; None without a prefix.

    Args:
      module: attention with the weights `key` and `value`.
      batch_size: B.
      dtype: of the result.
    """
    found = [adapter_of(module, name + PREFIX) for name in ("key", "value")]
    if None in found:
        return None
    k, v = (
        jnp.broadcast_to(one["rows"].astype(dtype), (batch_size, *one["rows"].shape))
        for one in found
    )
    return k, v


def prefix_length(params: Mapping[str, Any] | None) -> int:
    """The number of virtual tokens before a text in the attention of these layers.

    Args:
      params: nested dict of the parameters of a stack or a model; None for none.
    """
    return _length(params, PREFIX, axis=-3)


def prompt_length(params: Mapping[str, Any] | None) -> int:
    """The number of virtual tokens in the input of a model; params as above."""
    return _length(params, PROMPT, axis=-2)


def _length(params: Mapping[str, Any] | None, suffix: str, axis: int) -> int:
    found = 0
    for name, below in (params or {}).items():
        if name.endswith(suffix):
            found = max(found, below["rows"].shape[axis])
        elif isinstance(below, Mapping):
            found = max(found, _length(below, suffix, axis))
    return found


def prompt_vectors(prompt: Adapter) -> Float[Array, "n D"]:
    """The vectors of a prompt, float32.

    Those of P-tuning (Liu et al. 2021) are the output of a perceptron with two hidden
    layers, as in peft.
    """
    x = prompt["rows"]
    for name in ("in", "hidden", "out"):
        if name in prompt:
            x = x @ prompt[name] + prompt[f"{name}_bias"]
            x = x if name == "out" else jax.nn.relu(x)
    return x


def behind_prompt(text: TextInputs, count: int) -> TextInputs:
    """The positions and masks of a text with virtual tokens before it.

    The ids are still those of the text alone. Virtual tokens are of segment 1; see
    `AttentionMask.shared` for the others.

    Args:
      text: with positions.
      count: number of virtual tokens; 0 leaves the text as it is.
    """
    if not count:
        return text

    def pad(x, value):
        width = ((0, 0), (count, 0))
        return None if x is None else jnp.pad(x, width, constant_values=value)

    own = jnp.arange(count)[None]
    own = jnp.broadcast_to(own, (len(text.positions), count))
    return dataclasses.replace(
        text,
        token_types=pad(text.token_types, 0),
        positions=jnp.concatenate([own, text.positions + count], axis=1),
        segment_ids=pad(text.segment_ids, 1),
        padding_mask=pad(text.padding_mask, True),
    )


def moved_by(text: TextInputs, count: int) -> TextInputs:
    """The text at positions that are larger by `count`."""
    return dataclasses.replace(text, positions=text.positions + count)


def without_prompt(out: dict[str, Any], count: int) -> dict[str, Any]:
    """The outputs of a stack without the vectors of virtual tokens."""
    if not count:
        return out
    cut = {"hidden": out["hidden"][:, count:]}
    if "hidden_states" in out:
        cut["hidden_states"] = out["hidden_states"][:, :, count:]
    return out | cut
