"""Decoders as a loop over tokens sees them, whatever is read before the first one."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.errors import UserError
from fmjax.models.attention import KeyValueCache
from fmjax.models.transformer import Cache


class Begun(NamedTuple):
    """What has been read before the first token is written.

    Attributes:
      hidden: [B, 1, D], of which the first token is predicted.
      own: the decoder's cache, which every token is added to.
      source: of an encoder's output, which stays as it is; None without an encoder.
    """

    hidden: Float[Array, "B 1 D"]
    own: KeyValueCache
    source: KeyValueCache | None


@dataclasses.dataclass(frozen=True)
class PromptDecoder:
    """A model without an encoder: it goes on behind a prompt.

    Attributes:
      model: with `hidden`, `head` and `empty_cache`.
    """

    model: nn.Module

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError where a prompt and what is written are too long."""
        if longest + max_tokens > self.model.max_length:
            raise UserError(
                f"max_tokens = {max_tokens} after a prompt of {longest} tokens make "
                f"{longest + max_tokens}, {self.model.gin_name}.max_length = "
                f"{self.model.max_length}."
            )

    def begin(
        self,
        params: dict,
        prompts: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        max_tokens: int,
    ) -> Begun:
        """Reads right-padded prompts at once."""
        B, P = prompts.shape
        size = min(P + max_tokens, self.model.max_length)
        cache = self.model.empty_cache(B, size)
        positions = jnp.broadcast_to(jnp.arange(P), (B, P))
        hidden, cache = self._apply(params, prompts, positions, cache)
        last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
        return Begun(last, cache.own, None)

    def position(
        self, lengths: Int[Array, " B"], count: Int[Array, ""]
    ) -> Int[Array, " B"]:
        """Of the token that is written after `count` others."""
        # Slots are positions: each row goes on at its own length, over its padding.
        return lengths + count

    def read(
        self,
        params: dict,
        tokens: Int[Array, "R 1"],
        positions: Int[Array, "R 1"],
        own: KeyValueCache,
        source: KeyValueCache | None,
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "R 1 D"], KeyValueCache]:
        """What the next token is predicted of, and the cache with this one in it."""
        del source, lengths
        hidden, cache = self._apply(params, tokens, positions, Cache(own))
        return hidden, cache.own

    def _apply(self, params, tokens, positions, cache):
        out = self.model.apply(
            {"params": params},
            tokens,
            positions=positions,
            cache=cache,
            method="hidden",
        )
        return out["hidden"], out["cache"]


@dataclasses.dataclass(frozen=True)
class SourceDecoder:
    """An encoder-decoder: prompts are what the encoder reads.

    Attributes:
      model: with `encode`, `decode`, `head`, `empty_cache` and `start_id`.
    """

    model: nn.Module

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError where either side is too long."""
        limit = self.model.max_length
        for name, length in (("prompt", longest), ("max_tokens", max_tokens)):
            if length > limit:
                raise UserError(
                    f"{name}: {length} tokens, {self.model.gin_name}.max_length = "
                    f"{limit}."
                )

    def begin(
        self,
        params: dict,
        prompts: Int[Array, "B P"],
        lengths: Int[Array, " B"],
        max_tokens: int,
    ) -> Begun:
        """Encodes right-padded prompts, and reads the decoder's first input."""
        B, P = prompts.shape
        mask = _real(P, lengths)
        encoded = self.model.apply({"params": params}, prompts, mask, method="encode")
        out = self.model.apply(
            {"params": params},
            jnp.full((B, 1), self.model.start_id),
            encoded["hidden"],
            mask,
            decoder_positions=jnp.zeros((B, 1), jnp.int32),
            cache=self.model.empty_cache(B, max_tokens, P),
            method="decode",
        )
        return Begun(out["hidden"], *out["cache"])

    def position(
        self, lengths: Int[Array, " B"], count: Int[Array, ""]
    ) -> Int[Array, " B"]:
        """Of the token that is written after `count` others, behind the start id."""
        return jnp.full_like(lengths, 1 + count)

    def read(
        self,
        params: dict,
        tokens: Int[Array, "R 1"],
        positions: Int[Array, "R 1"],
        own: KeyValueCache,
        source: KeyValueCache,
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "R 1 D"], KeyValueCache]:
        """As `PromptDecoder.read`; R / B rows in a row share a source."""
        out = self.model.apply(
            {"params": params},
            tokens,
            None,
            _real(source.k.shape[-3], lengths),
            decoder_positions=positions,
            cache=Cache(own, source),
            method="decode",
        )
        return out["hidden"], out["cache"].own


Decoder = PromptDecoder | SourceDecoder


def decoder_of(model: nn.Module) -> Decoder:
    """How a model writes.

    Raises:
      UserError: it only reads.
    """
    if not hasattr(model, "empty_cache"):
        raise UserError(
            f"@{model.gin_name}() is an encoder: it reads texts whole and writes none. "
            "Expected a model with a decoder, such as @gpt() or @seq2seq()."
        )
    return SourceDecoder(model) if hasattr(model, "encode") else PromptDecoder(model)


def next_logits(
    model: nn.Module, params: dict, hidden: Float[Array, "R 1 D"]
) -> Float[Array, "R V"]:
    """Of the token behind each row, without padding of the vocabulary."""
    logits = model.apply({"params": params}, hidden, method="head")
    return logits[:, 0, : model.vocab_size]


def _real(length: int, lengths: jax.Array) -> Bool[Array, "B {length}"]:
    return jnp.arange(length) < lengths[:, None]
