"""Base class of models that read text: vocabulary, maximum length, inputs."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from fmjax.errors import UserError, require
from fmjax.models.layers.attention_mask import (
    AttentionMask,
    cached_self_attention,
    padding_mask_of,
    self_attention,
)
from fmjax.models.layers.block import Cache
from fmjax.models.layers.dropout import Keys, fold_keys
from fmjax.models.layers.inputs import InputEmbedding
from fmjax.models.layers.perturbation import perturbed
from fmjax.models.layers.text_inputs import Text, TextArguments, TextInputs
from fmjax.models.layers.virtual_tokens import prefix_length


class TextModel(nn.Module):
    """Base class of text models, with fields vocab_size, max_length, vocab_multiple.

    Attributes:
      text_arguments: the arrays that the model reads, see `TextArguments`.
      unbound_values: what fields are in a config that does not bind them.
    """

    text_arguments: ClassVar[TextArguments] = {
        "text": ("positions", "segment_ids", "padding_mask")
    }
    unbound_values: ClassVar[Mapping[str, Any]] = {"vocab_size": 0}

    def __post_init__(self):
        smallest = {"vocab_size": 0, "max_length": 1, "vocab_multiple": 1}
        for name, least in smallest.items():
            require(self, name, getattr(self, name) >= least, f"at least {least}")
        # Not every text model has these.
        for name in ("embed_dim", "num_classes", "token_classes"):
            value = getattr(self, name, None)
            require(self, name, value is None or value >= 1, "at least 1, or None")
        super().__post_init__()

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the embedding table: vocab_size rounded up to vocab_multiple."""
        if not self.vocab_size:
            raise UserError(f"{self.gin_name}.vocab_size has no value; bind it.")
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def _read(self, text: Text, argument: str = "text") -> TextInputs:
        """Converts and checks a text, and adds default positions.

        Raises:
          UserError: see `_check`.
        """
        text = self._check(text, argument)
        if text.positions is not None:
            return text
        return dataclasses.replace(text, positions=self._default_positions(text))

    def _check(self, text: Text, argument: str = "text") -> TextInputs:
        """Converts a text to the struct and checks it.

        Args:
          text: struct or tokens.
          argument: name of the argument in text_arguments.

        Raises:
          UserError: it has an array that the model does not read, or more than
            max_length tokens.
        """
        text, name = TextInputs.of(text), self.gin_name
        read = self.text_arguments[argument]
        unread = sorted(text.given - set(read))
        if unread:
            raise UserError(
                f"{argument} has {', '.join(unread)}, which @{name}() does not read; "
                f"expected tokens, and of {', '.join(read)} what is known."
            )
        length = text.tokens.shape[-1]
        if length > self.max_length:
            raise UserError(
                f"sequence of {length} tokens, {name}.max_length = {self.max_length}."
            )
        return text

    def _check_room(self, text: TextInputs, virtual: int) -> None:
        """Raises UserError if learned positions do not suffice for virtual tokens too.

        Args:
          text: of which the positions are not read.
          virtual: number of virtual tokens.
        """
        length = text.tokens.shape[-1]
        learned = virtual and self.positions == "learned"
        if learned and length + virtual > self.max_length:
            raise UserError(
                f"sequence of {virtual} virtual tokens (peft.methods) and {length} "
                f"others, {self.gin_name}.max_length = {self.max_length}."
            )

    def _prefix(self, stack: str) -> int:
        """Virtual tokens before texts in the attention of the stack of this name."""
        return prefix_length(self.variables.get("params", {}).get(stack))

    def _default_positions(self, text: TextInputs) -> Int[Array, "#B T"]:
        """Positions of a text that has none: 0 … T-1 in every row."""
        return jnp.arange(text.tokens.shape[1])[None]


def check_start_id(model: TextModel) -> None:
    """Raises UserError if model.start_id is neither None nor in the vocabulary."""
    start, name = model.start_id, model.gin_name
    known = model.vocab_size or float("inf")
    if start is not None and not 0 <= start < known:
        raise UserError(
            f"{name}.start_id = {start}: expected 0 to {name}.vocab_size - 1 = "
            f"{model.vocab_size - 1}."
        )


def check_same_width(model: TextModel, *stacks: str) -> None:
    """Raises UserError if stacks that read each other's output differ in width D.

    Args:
      model: that has the stacks.
      stacks: its fields that hold a `TransformerConfig`.
    """
    widths = [getattr(model, field).embed_dim for field in stacks]
    if len(set(widths)) > 1:
        found = "; ".join(
            f"{model.gin_name}.{field}: transformer.embed_dim = {width}"
            for field, width in zip(stacks, widths)
        )
        raise UserError(f"{found}. Expected the same, as one reads the other's output.")


def embed_text(
    tokens: Callable[[Array], Array],
    inputs: InputEmbedding,
    text: TextInputs,
    keys: Keys,
    prompt: Float[Array, "n E"] | None = None,
    prefix: int = 0,
) -> Float[Array, "B T E"]:
    """The input of a stack for a text.

    Args:
      tokens: the token embedding, from ids to vectors.
      inputs: adds positions and token types.
      text: with positions.
      keys: of the stack, one per example for dropout. Blocks fold in their index from 0
        on; the input folds in the number of blocks.
      prompt: vectors before those of the tokens, which `text` has positions for; None
        for none.
      prefix: virtual tokens in attention, which take the first positions.
    """
    at_input = fold_keys(keys, inputs.config.num_layers)
    mask = padding_mask_of(text.segment_ids, text.padding_mask)
    if mask is not None:
        mask = mask[:, -text.tokens.shape[1] :]  # Without the prompt.
    x, positions = perturbed(inputs, tokens(text.tokens), mask), text.positions
    if prompt is not None:
        first = jnp.broadcast_to(prompt.astype(x.dtype), (len(x), *prompt.shape))
        x = jnp.concatenate([first, x], axis=1)
    if prefix:
        positions = positions + prefix
    return inputs(x, positions, text.token_types, at_input)


def decoder_mask(
    text: TextInputs, cache: Cache | None, prompt: int = 0
) -> AttentionMask:
    """The causal mask of a decoder's text; with a cache, the mask over its slots.

    Args:
      text: behind a prompt.
      cache: of earlier tokens; None for none.
      prompt: virtual tokens before the text.
    """
    if cache is None:
        return self_attention(True, text.segment_ids, text.padding_mask, prompt)
    return cached_self_attention(text.positions)
