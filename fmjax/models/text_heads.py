"""The outputs of a language model's heads for texts, whatever its family."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from fmjax.models.contracts import GeneratesFromText
from fmjax.models.layers.dropout import Keys
from fmjax.models.layers.text_inputs import TextInputs


def text_outputs(
    model: nn.Module, variables: Mapping[str, Any], text: TextInputs, keys: Keys = None
) -> dict[str, Any]:
    """All that a model computes of texts, but the logits of the next or masked tokens.

    An encoder-decoder reads the text on both sides, on that of the decoder behind its
    start id (Lewis et al. 2020, section 3.1).

    Args:
      model: of texts.
      variables: of the model.
      text: [B, T], each row a text, with a padding mask or segment ids.
      keys: one key per text for dropout; None in evaluation.

    Returns:
      The outputs of `hidden`: "hidden", and "class_logits" and "token_logits" where the
      model has those heads.
    """
    texts = (text,)
    if isinstance(model, GeneratesFromText):
        segment_ids = text.segment_ids
        if segment_ids is None:
            segment_ids = text.padding_mask.astype(jnp.int32)
        read = dataclasses.replace(text, segment_ids=segment_ids, padding_mask=None)
        shifted = jnp.roll(text.tokens, 1, 1).at[:, 0].set(model.start_id)
        texts = (read, dataclasses.replace(read, tokens=shifted))
    return model.apply(variables, *texts, keys=keys, method="hidden")


def init_variables(model: nn.Module, rng: Array) -> dict[str, Any]:
    """Boxed variables of a model of texts."""
    token = jnp.zeros((1, 1), jnp.int32)
    sides = 2 if isinstance(model, GeneratesFromText) else 1
    return model.init(rng, *[token] * sides)
