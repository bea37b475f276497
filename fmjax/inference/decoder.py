"""Decoders as a loop over tokens sees them, whatever is read before the first one."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.errors import UserError
from fmjax.models.layers.attention import KeyValueCache
from fmjax.models.layers.transformer import Cache

# What a decoder adds every token to: a cache, or one for each of its halves.
Own = KeyValueCache | tuple[KeyValueCache, KeyValueCache]


class Prompts(NamedTuple):
    """Right-padded prompts, and the images that go with them.

    Attributes:
      tokens: int32 [B, P].
      lengths: int32 [B], from 1 to P.
      images: float32 [B, height, width, C], normalized; None for a model of texts.
    """

    tokens: Int[Array, "B P"]
    lengths: Int[Array, " B"]
    images: Float[Array, "B height width C"] | None = None


class Begun(NamedTuple):
    """What has been read before the first token is written.

    Attributes:
      hidden: [B, 1, D], of which the first token is predicted.
      own: the decoder's cache, which every token is added to.
      source: of an encoder's output, which stays as it is; None without an encoder.
    """

    hidden: Float[Array, "B 1 D"]
    own: Own
    source: KeyValueCache | None


@dataclasses.dataclass(frozen=True)
class PromptDecoder:
    """A model without an encoder: it goes on behind a prompt.

    Attributes:
      model: with `hidden`, `head` and `empty_cache`.
    """

    model: nn.Module

    reads_images = False

    def room(self, longest: int) -> int:
        """How many tokens fit behind a prompt of so many."""
        return self.model.max_length - longest

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError where a prompt and what is written are too long."""
        if longest + max_tokens > self.model.max_length:
            raise UserError(
                f"max_tokens = {max_tokens} after a prompt of {longest} tokens make "
                f"{longest + max_tokens}, {self.model.gin_name}.max_length = "
                f"{self.model.max_length}."
            )

    def begin(self, params: dict, prompts: Prompts, max_tokens: int) -> Begun:
        """Reads prompts at once."""
        B, P = prompts.tokens.shape
        size = min(P + max_tokens, self.model.max_length)
        cache = self.model.empty_cache(B, size)
        positions = jnp.broadcast_to(jnp.arange(P), (B, P))
        hidden, cache = self._apply(params, prompts.tokens, positions, cache)
        return Begun(_last(hidden, prompts.lengths), cache.self_attention, None)

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
        return hidden, cache.self_attention

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

    reads_images = False

    def room(self, longest: int) -> int:
        """How many tokens can be written, whatever was read."""
        del longest
        return self.model.max_length

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError where either side is too long."""
        limit = self.model.max_length
        for name, length in (("prompt", longest), ("max_tokens", max_tokens)):
            if length > limit:
                raise UserError(
                    f"{name}: {length} tokens, {self.model.gin_name}.max_length = "
                    f"{limit}."
                )

    def begin(self, params: dict, prompts: Prompts, max_tokens: int) -> Begun:
        """Encodes prompts, and reads the decoder's first input."""
        tokens = prompts.tokens
        B, P = tokens.shape
        padding_mask = _padding_mask(P, prompts.lengths)
        encoded = self.model.apply(
            {"params": params}, tokens, padding_mask, method="encode"
        )
        out = self.model.apply(
            {"params": params},
            jnp.full((B, 1), self.model.start_id),
            encoded["hidden"],
            padding_mask,
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
            _padding_mask(source.k.shape[-3], lengths),
            decoder_positions=positions,
            cache=Cache(own, source),
            method="decode",
        )
        return out["hidden"], out["cache"].self_attention


@dataclasses.dataclass(frozen=True)
class ImageDecoder(PromptDecoder):
    """A captioner: it sees an image, and goes on behind a prompt.

    Attributes:
      model: with `embed_images`, `decode`, `head`, `empty_cache` and `start_id`.
    """

    reads_images = True

    def begin(self, params: dict, prompts: Prompts, max_tokens: int) -> Begun:
        """Sees the images and reads the prompts, both at once."""
        B, P = prompts.tokens.shape
        size = min(P + max_tokens, self.model.max_length)
        seen = self.model.apply(
            {"params": params}, prompts.images, method="embed_images"
        )
        hidden, (first, second) = self.model.apply(
            {"params": params},
            prompts.tokens,
            seen["image_encoder_hidden"],
            jnp.broadcast_to(jnp.arange(P), (B, P)),
            self.model.empty_cache(B, size),
            method="decode",
        )
        last = _last(hidden, prompts.lengths)
        return Begun(
            last, (first.self_attention, second.self_attention), second.cross_attention
        )

    def read(
        self,
        params: dict,
        tokens: Int[Array, "R 1"],
        positions: Int[Array, "R 1"],
        own: Own,
        source: KeyValueCache,
        lengths: Int[Array, " B"],
    ) -> tuple[Float[Array, "R 1 D"], Own]:
        """As `PromptDecoder.read`; R / B rows in a row share an image."""
        del lengths
        cache = (Cache(own[0]), Cache(own[1], source))
        hidden, (first, second) = self.model.apply(
            {"params": params}, tokens, None, positions, cache, method="decode"
        )
        return hidden, (first.self_attention, second.self_attention)


Decoder = PromptDecoder | SourceDecoder | ImageDecoder


def decoder_of(model: nn.Module) -> Decoder:
    """How a model writes.

    Raises:
      UserError: it only reads.
    """
    if not hasattr(model, "empty_cache"):
        raise UserError(
            f"@{model.gin_name}() is an encoder: it reads texts whole and writes none. "
            "Expected a model with a decoder, such as @gpt(), @seq2seq() or @coca()."
        )
    if hasattr(model, "embed_images"):
        return ImageDecoder(model)
    return SourceDecoder(model) if hasattr(model, "encode") else PromptDecoder(model)


def next_logits(
    model: nn.Module, params: dict, hidden: Float[Array, "R 1 D"]
) -> Float[Array, "R V"]:
    """Of the token behind each row, without padding of the vocabulary."""
    logits = model.apply({"params": params}, hidden, method="head")
    return logits[:, 0, : model.vocab_size]


def _last(
    hidden: Float[Array, "B P D"], lengths: Int[Array, " B"]
) -> Float[Array, "B 1 D"]:
    """Of each row that of its last token."""
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)


def _padding_mask(length: int, lengths: jax.Array) -> Bool[Array, "B {length}"]:
    return jnp.arange(length) < lengths[:, None]
