"""Decoders with one interface: prefill the prompts, then one step for each token."""

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
from fmjax.models.language.seq2seq import EncoderOutput
from fmjax.models.layers.attention import KeyValueCache
from fmjax.models.layers.text_inputs import TextInputs
from fmjax.models.layers.transformer import Cache
from fmjax.models.layers.virtual_tokens import prefix_length, prompt_length


class Prompts(NamedTuple):
    """Right-padded prompts, and images for models that read them.

    Attributes:
      tokens: int32 [B, P].
      lengths: int32 [B], from 1 to P.
      images: float32 [B, height, width, C], normalized; None if the model reads none.
    """

    tokens: Int[Array, "B P"]
    lengths: Int[Array, " B"]
    images: Float[Array, "B height width C"] | None = None


class Decoder(Protocol):
    """The interface of decoders: pure functions of device arrays, for use in jit.

    `prefill` reads prompts into slots. Then, for each token, `next_logits` gives the
    logits of the next id of each slot, the caller chooses ids (by sampling, in a beam
    search, in a server), and `decode_step` reads them. Greedy decoding:

        slots = decoder.prefill(params, prompts, max_tokens)
        for _ in range(max_tokens):
            tokens = decoder.next_logits(params, slots).argmax(-1)
            slots = decoder.decode_step(params, tokens, slots)

    Log-probabilities are `jax.nn.log_softmax` of these logits. `insert` of
    `fmjax.inference.slots` puts new texts into single slots between two steps.

    Attributes:
      model: the module, without parameters.
      reads_images: whether the model needs an image for each prompt.
    """

    model: nn.Module
    reads_images: bool

    def room(self, longest: int) -> int:
        """The maximum number of new tokens for a prompt of `longest` tokens."""

    def check(self, longest: int, max_tokens: int) -> None:
        """Raises a UserError if the prompt and the new tokens do not fit the model."""

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """Reads each prompt into a slot with room for `max_tokens` new ids."""

    def next_logits(self, params: dict, slots: Slots) -> Float[Array, "R V"]:
        """Logits of each slot's next id, float32 [R, V], without vocabulary padding."""

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """Reads one id in each slot, int32 [R], and advances the slots' positions."""

    def history(self, prompts: Prompts) -> History:
        """The ids that the decoder has read after `prefill`, for constraints."""


class _LanguageDecoder:
    """The base class of decoders, with the head over the slots' hidden vectors."""

    def next_logits(self, params: dict, slots: Slots) -> Float[Array, "R V"]:
        """See `Decoder`."""
        variables = {"params": params}
        logits = self.model.apply(variables, slots.hidden, method="head")
        return logits[:, 0, : self.model.vocab_size]


@dataclasses.dataclass(frozen=True)
class PromptDecoder(_LanguageDecoder):
    """The decoder of a decoder-only model, which continues prompts.

    Attributes:
      model: a model with `hidden`, `head` and `empty_cache`, and with `read_prompt` if
        its parameters have a prompt.
      virtual: learned positions that virtual tokens take.
    """

    model: nn.Module
    virtual: int = 0

    reads_images = False

    def room(self, longest: int) -> int:
        """See `Decoder`."""
        return self.model.max_length - self.virtual - longest

    def check(self, longest: int, max_tokens: int) -> None:
        """See `Decoder`."""
        if max_tokens > self.room(longest):
            virtual = f" and {self.virtual} virtual ones" if self.virtual else ""
            raise UserError(
                f"max_tokens = {max_tokens} after a prompt of {longest} tokens"
                f"{virtual} make {self.virtual + longest + max_tokens} tokens; "
                f"expected at most {self.model.gin_name}.max_length = "
                f"{self.model.max_length}."
            )

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """See `Decoder`."""
        B, P = prompts.tokens.shape
        size = min(P + max_tokens, self.model.max_length)
        before = jnp.zeros(B, jnp.int32)
        return self.extend(params, prompts, before, self.empty_cache(params, B, size))

    def empty_cache(self, params: dict, rows: int, length: int) -> KeyValueCache:
        """A cache for `length` ids of each row, which has read virtual tokens."""
        prompt = prompt_length(params)
        cache = self.model.empty_cache(rows, length + prompt)
        if prompt:
            cache = self.model.apply({"params": params}, cache, method="read_prompt")
        return cache.self_attention

    def extend(
        self,
        params: dict,
        more: Prompts,
        positions: Int[Array, " B"],
        cache: KeyValueCache,
    ) -> Slots:
        """Reads ids after those that are in the cache.

        Args:
          params: of the model.
          more: the ids; the padding must fit the cache too.
          positions: int32 [B], number of ids before them; what the cache has after
            these is overwritten.
          cache: [layers, B, N, G, K] each.
        """
        P = more.tokens.shape[1]
        at = positions[:, None] + jnp.arange(P)
        hidden, read = self._apply(params, more.tokens, at, Cache(cache))
        # New keys and values overwrite the padding: a row continues at its length.
        last = _last(hidden, more.lengths)
        return Slots(last, positions + more.lengths, read.self_attention)

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
        text = TextInputs(tokens, positions=positions)
        out = self.model.apply({"params": params}, text, cache, method="hidden")
        return out["hidden"], out["cache"]


@dataclasses.dataclass(frozen=True)
class SourceDecoder(_LanguageDecoder):
    """The decoder of an encoder-decoder, whose encoder reads the prompts.

    Attributes:
      model: a model with `encode`, `decode`, `head`, `empty_cache` and `start_id`.
      virtual: learned positions that virtual tokens take, on either side.
    """

    model: nn.Module
    virtual: int = 0

    reads_images = False

    def room(self, longest: int) -> int:
        """See `Decoder`; it does not depend on the prompt."""
        del longest
        return self.model.max_length - self.virtual

    def check(self, longest: int, max_tokens: int) -> None:
        """See `Decoder`."""
        limit = self.model.max_length - self.virtual
        for name, length in (("prompt", longest), ("max_tokens", max_tokens)):
            if length > limit:
                virtual = f" - {self.virtual} virtual ones" if self.virtual else ""
                raise UserError(
                    f"{name}: {length} tokens; expected at most "
                    f"{self.model.gin_name}.max_length = {self.model.max_length}"
                    f"{virtual}."
                )

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """Encodes the prompts and reads the start token; see `Decoder`."""
        tokens = prompts.tokens
        B, P = tokens.shape
        text = TextInputs(tokens, padding_mask=_padding_mask(P, prompts.lengths))
        encoded = self.model.apply({"params": params}, text, method="encode")
        # The vectors of virtual tokens are before those of the text.
        length = encoded["hidden"].shape[1]
        lengths = prompts.lengths + (length - P)
        padding_mask = _padding_mask(length, lengths)
        out = self.model.apply(
            {"params": params},
            TextInputs(
                jnp.full((B, 1), self.model.start_id),
                positions=jnp.zeros((B, 1), jnp.int32),
            ),
            EncoderOutput(encoded["hidden"], padding_mask=padding_mask),
            self.model.empty_cache(B, max_tokens, length),
            method="decode",
        )
        positions = jnp.ones_like(prompts.lengths)  # after the start token
        return Slots(out["hidden"], positions, *out["cache"], lengths)

    def decode_step(
        self, params: dict, tokens: Int[Array, " R"], slots: Slots
    ) -> Slots:
        """See `Decoder`; R / B consecutive slots share one encoded prompt."""
        padding_mask = _padding_mask(slots.cross_cache.k.shape[-3], slots.cross_lengths)
        out = self.model.apply(
            {"params": params},
            TextInputs(tokens[:, None], positions=slots.positions[:, None]),
            EncoderOutput(None, padding_mask=padding_mask),
            Cache(slots.cache, slots.cross_cache),
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
    """The decoder of a captioner, which reads an image and continues a prompt.

    Attributes:
      model: a model with `embed_images`, `decode`, `head`, `empty_cache` and
        `start_id`.
    """

    reads_images = True

    def prefill(self, params: dict, prompts: Prompts, max_tokens: int) -> Slots:
        """See `Decoder`."""
        B, P = prompts.tokens.shape
        size = min(P + max_tokens, self.model.max_length)
        encoded = self.model.apply(
            {"params": params}, prompts.images, method="embed_images"
        )
        hidden, (first, second) = self.model.apply(
            {"params": params},
            prompts.tokens,
            encoded["image_encoder_hidden"],
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
        """See `Decoder`; R / B consecutive slots share one image."""
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


def decoder_of(model: nn.Module, params: dict | None = None) -> Decoder:
    """The decoder of a model.

    Args:
      model: without parameters.
      params: of the model, for the room that their virtual tokens leave; None for
        parameters without virtual tokens.

    Raises:
      UserError: the model has no decoder.
    """
    if not isinstance(model, Generates):
        raise UserError(
            f"@{model.gin_name}() is an encoder and generates no text; expected a "
            "model with a decoder, such as @gpt(), @seq2seq() or @coca()."
        )
    if isinstance(model, GeneratesFromImages):
        return ImageDecoder(model)
    virtual = 0
    if getattr(model, "positions", None) == "learned":
        virtual = prefix_length(params) + prompt_length(params)
    if isinstance(model, GeneratesFromText):
        return SourceDecoder(model, virtual)
    return PromptDecoder(model, virtual)


def _moved(slots: Slots, hidden: jax.Array, cache) -> Slots:
    return dataclasses.replace(
        slots, hidden=hidden, positions=slots.positions + 1, cache=cache
    )


def _last(
    hidden: Float[Array, "B P D"], lengths: Int[Array, " B"]
) -> Float[Array, "B 1 D"]:
    """The hidden vector of each row's last token."""
    return jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)


def _padding_mask(length: int, lengths: jax.Array) -> Bool[Array, "B T"]:
    return jnp.arange(length) < lengths[:, None]
