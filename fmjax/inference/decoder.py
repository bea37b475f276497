"""Decoders behind one contract: prefill prompts, then one step for each token."""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from fmjax.errors import UserError
from fmjax.inference.constraints import History
from fmjax.inference.slots import Slots
from fmjax.models.contracts import Generates, GeneratesFromImages, GeneratesFromText
from fmjax.models.layers.transformer import Cache


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


class Decoder(Protocol):
    """What generates text: pure functions of device arrays, to be compiled by callers.

    `prefill` reads prompts into slots. Then, for each token, `next_logits` gives the
    logits of what follows each slot's text, the caller chooses ids (by sampling, by
    beams, from a server's clients), and `decode_step` reads them. Greedy decoding:

        slots = decoder.prefill(params, prompts, max_tokens)
        for _ in range(max_tokens):
            tokens = decoder.next_logits(params, slots).argmax(-1)
            slots = decoder.decode_step(params, tokens, slots)

    Log-probabilities are `jax.nn.log_softmax` of these logits. `insert` of
    `fmjax.inference.slots` gives single slots a new text between two steps.

    Attributes:
      model: the module; without parameters.
      reads_images: whether prompts come with images.
    """

    model: nn.Module
    reads_images: bool

    def room(self, longest: int) -> int:
        """The most tokens that can be generated for a prompt of so many."""

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError where a prompt or what is generated is too long."""

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """Reads prompts, each into a slot with room for max_tokens ids."""

    def next_logits(self, params: dict, slots: Slots) -> Float[Array, "R V"]:
        """float32 logits of each slot's next id, without vocabulary padding."""

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """Reads one id a slot, at its position, and moves that on by one."""

    def history(self, prompts: Prompts) -> History:
        """The ids that the decoder has read after `prefill`."""


class _LanguageDecoder:
    """What all decoders share: the head over the slots' hidden vectors."""

    def next_logits(self, params: dict, slots: Slots) -> Float[Array, "R V"]:
        """See `Decoder`."""
        variables = {"params": params}
        logits = self.model.apply(variables, slots.hidden, method="head")
        return logits[:, 0, : self.model.vocab_size]


@dataclasses.dataclass(frozen=True)
class PromptDecoder(_LanguageDecoder):
    """A decoder-only model: it continues prompts.

    Attributes:
      model: with `hidden`, `head` and `empty_cache`.
    """

    model: nn.Module

    reads_images = False

    def room(self, longest: int) -> int:
        """See `Decoder`."""
        return self.model.max_length - longest

    def check(self, longest: int, max_tokens: int) -> None:
        """See `Decoder`."""
        if longest + max_tokens > self.model.max_length:
            raise UserError(
                f"max_tokens = {max_tokens} after a prompt of {longest} tokens make "
                f"{longest + max_tokens}, {self.model.gin_name}.max_length = "
                f"{self.model.max_length}."
            )

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """See `Decoder`."""
        B, P = prompts.tokens.shape
        size = min(P + max_tokens, self.model.max_length)
        cache = self.model.empty_cache(B, size)
        positions = jnp.broadcast_to(jnp.arange(P), (B, P))
        hidden, cache = self._apply(params, prompts.tokens, positions, cache)
        # Cache slots are positions: a row goes on at its own length, over its padding.
        return Slots(
            _last(hidden, prompts.lengths), prompts.lengths, cache.self_attention
        )

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """See `Decoder`."""
        tokens, positions = tokens[:, None], slots.positions[:, None]
        hidden, cache = self._apply(params, tokens, positions, Cache(slots.cache))
        return _moved(slots, hidden, cache.self_attention)

    def history(self, prompts: Prompts) -> History:
        """See `Decoder`."""
        return History(prompts.tokens, prompts.lengths)

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
class SourceDecoder(_LanguageDecoder):
    """An encoder-decoder: the encoder reads the prompts.

    Attributes:
      model: with `encode`, `decode`, `head`, `empty_cache` and `start_id`.
    """

    model: nn.Module

    reads_images = False

    def room(self, longest: int) -> int:
        """See `Decoder`; the prompt's length does not matter."""
        del longest
        return self.model.max_length

    def check(self, longest: int, max_tokens: int) -> None:
        """See `Decoder`."""
        limit = self.model.max_length
        for name, length in (("prompt", longest), ("max_tokens", max_tokens)):
            if length > limit:
                raise UserError(
                    f"{name}: {length} tokens, {self.model.gin_name}.max_length = "
                    f"{limit}."
                )

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """Encodes prompts, and reads the decoder's start token; see `Decoder`."""
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
        behind_start = jnp.ones_like(prompts.lengths)
        return Slots(out["hidden"], behind_start, *out["cache"], prompts.lengths)

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """See `Decoder`; each R / B slots side by side share what the encoder gave."""
        out = self.model.apply(
            {"params": params},
            tokens[:, None],
            None,
            _padding_mask(slots.cross_cache.k.shape[-3], slots.cross_lengths),
            decoder_positions=slots.positions[:, None],
            cache=Cache(slots.cache, slots.cross_cache),
            method="decode",
        )
        return _moved(slots, out["hidden"], out["cache"].self_attention)

    def history(self, prompts: Prompts) -> History:
        """See `Decoder`."""
        B = len(prompts.lengths)
        start = jnp.full((B, 1), self.model.start_id, jnp.int32)
        return History(start, jnp.ones(B, jnp.int32))


@dataclasses.dataclass(frozen=True)
class ImageDecoder(PromptDecoder):
    """A captioner: it reads an image, and continues a prompt about it.

    Attributes:
      model: with `embed_images`, `decode`, `head`, `empty_cache` and `start_id`.
    """

    reads_images = True

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """See `Decoder`."""
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
        return Slots(
            last,
            prompts.lengths,
            (first.self_attention, second.self_attention),
            second.cross_attention,
        )

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """See `Decoder`; each R / B slots side by side share an image."""
        first, second = slots.cache
        hidden, (first, second) = self.model.apply(
            {"params": params},
            tokens[:, None],
            None,
            slots.positions[:, None],
            (Cache(first), Cache(second, slots.cross_cache)),
            method="decode",
        )
        return _moved(slots, hidden, (first.self_attention, second.self_attention))


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder of a model.

    Raises:
      UserError: the model is an encoder.
    """
    if not isinstance(model, Generates):
        raise UserError(
            f"@{model.gin_name}() is an encoder: it reads texts whole and writes none. "
            "Expected a model with a decoder, such as @gpt(), @seq2seq() or @coca()."
        )
    if isinstance(model, GeneratesFromImages):
        return ImageDecoder(model)
    if isinstance(model, GeneratesFromText):
        return SourceDecoder(model)
    return PromptDecoder(model)


def _moved(slots: Slots, hidden: jax.Array, cache) -> Slots:
    return dataclasses.replace(
        slots, hidden=hidden, positions=slots.positions + 1, cache=cache
    )


def _last(
    hidden: Float[Array, "B P D"], lengths: Int[Array, " B"]
) -> Float[Array, "B 1 D"]:
    """The hidden vector of each row's last token."""
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)


def _padding_mask(length: int, lengths: jax.Array) -> Bool[Array, "B {length}"]:
    return jnp.arange(length) < lengths[:, None]
