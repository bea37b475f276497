"""Conversations with a run's model: a reply to messages, and a chat turn by turn."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from fmjax.data.records import BadRecord
from fmjax.data.tokenizers.chat_tokens import ChatEncoder
from fmjax.errors import UserError, explained_out_of_memory
from fmjax.inference.constraints import constrains
from fmjax.inference.decoder import Prompts, SourceDecoder, decoder_of
from fmjax.inference.in_batch import end_ids, in_batch, settings_of, text_after
from fmjax.inference.prompts import eos_array
from fmjax.inference.run import LESS_MEMORY, Run
from fmjax.inference.sampling import Sampling
from fmjax.inference.slots import Slots
from fmjax.inference.token_loop import (
    MAX_SEED,
    LoopState,
    ScoredTokens,
    generate_one,
    generate_tokens,
    loop_state,
    row_keys,
)
from fmjax.models.generation import Generation

Message = Mapping[str, Any]

# Default of max_tokens, if so many fit the model.
_TOKENS = 512
# What is read is padded to a power of two, at least this, so that few shapes are
# compiled.
_MIN_BUCKET = 16
# So many tokens before a reply its text may depend on.
_CONTEXT = 16


class Reply(NamedTuple):
    """What the assistant answers.

    Attributes:
      text: the text.
      ended: whether it ended by itself, at a stop token.
    """

    text: str
    ended: bool


@dataclasses.dataclass(frozen=True)
class ChatOptions:
    """How replies are drawn; what is None is taken from `experiment.generation`.

    Attributes:
      max_tokens: maximum number of tokens of a reply; if None too, 512, or as many as
        fit the model.
      temperature: see `Sampling`; default 1.
      top_k: see `Sampling`; default None.
      top_p: see `Sampling`; default None.
      seed: random seed from 0 to 2**32 - 1.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self):
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UserError(f"max_tokens = {self.max_tokens}: expected at least 1.")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(
                f"seed = {self.seed}: expected 0 to 2**32 - 1 = {MAX_SEED}."
            )

    def sampling(self, settings: Generation) -> Sampling:
        """The settings of sampling; raises a UserError if one is out of range."""
        chosen = {}
        for name in ("temperature", "top_k", "top_p"):
            own = getattr(self, name)
            value = getattr(settings, name) if own is None else own
            if value is not None:
                chosen[name] = value
        sampling = Sampling(**chosen)
        sampling.check()
        # An int and a float would be compiled separately.
        return dataclasses.replace(
            sampling, temperature=np.float32(sampling.temperature)
        )


@explained_out_of_memory(LESS_MEMORY)
def chat(
    run: Run,
    conversations: Sequence[Sequence[Message]],
    options: ChatOptions | None = None,
) -> list[Reply]:
    """The assistant's replies to conversations, all in one batch.

    Args:
      run: a run with a chat template, from `fmjax.load`.
      conversations: messages of each, with "role" and "content"; the last is usually
        of the user.
      options: how replies are drawn.

    Raises:
      UserError: the run has no tokenizer, chat template or decoder, the template
        refuses a conversation, one leaves no room for a reply, or an option is out of
        range.
    """
    options = options or ChatOptions()
    encoder, ends = _encoder_of(run), stop_ids(run)
    ids = [_prompt(encoder, messages) for messages in conversations]
    longest = max(map(len, ids), default=0)
    max_tokens = _max_tokens(run, options, longest)

    def draw(filled: list[list[int]], **batch) -> list[ScoredTokens]:
        return generate_tokens(
            run.model,
            run.params,
            filled,
            max_tokens=max_tokens,
            sampling=options.sampling(settings_of(run)),
            seed=options.seed,
            rows=[*range(len(ids)), *[0] * (len(filled) - len(ids))],
            **batch,
        )

    return [
        Reply(text_after(run, prompt, new, ends), bool(new) and new[-1] in ends)
        for prompt, new in zip(ids, in_batch(run, ids, None, draw, ends))
    ]


class Chat:
    """A conversation turn by turn, of which keys and values are read once.

    Attributes:
      messages: the conversation so far, with the system prompt first if there is one.
      ended: whether the last reply ended at a stop token.
    """

    def __init__(
        self, run: Run, system: str | None = None, options: ChatOptions | None = None
    ):
        """Reads nothing yet.

        Args:
          run: a run with a chat template, from `fmjax.load`.
          system: the system prompt.
          options: how replies are drawn.

        Raises:
          UserError: the run has no tokenizer, chat template or decoder, or an option is
            out of range.
        """
        self._options = options or ChatOptions()
        self.switch(run)
        self.ended = False
        self.messages: list[Message] = []
        self.reset(system)

    def switch(self, run: Run) -> None:
        """Goes on with another run, such as one of other adapters.

        It reads the conversation from the start before its first reply.

        Raises:
          UserError: as of a new chat with the run.
        """
        self._encoder, self._ends = _encoder_of(run), stop_ids(run)
        self._sampling = self._options.sampling(settings_of(run))
        self._decoder = decoder_of(run.model, run.params)
        self._run = run
        self._read: list[int] = []
        self._slots: Slots | None = None

    def reset(self, system: str | None = None) -> None:
        """Begins another conversation.

        Args:
          system: its system prompt; None for none.
        """
        self.messages = [] if not system else [{"role": "system", "content": system}]

    def reply(self, text: str) -> Iterator[str]:
        """Yields the reply to what the user says, in pieces as they are generated.

        Both are added to `messages`, the reply as far as it was generated if the
        iteration ends early.

        Raises:
          UserError: as of `chat`; `messages` are as before then.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        prompt = _prompt(self._encoder, asked)
        limit = _max_tokens(self._run, self._options, len(prompt))
        return self._pieces(asked, prompt, limit)

    def _pieces(
        self, asked: list[Message], prompt: list[int], limit: int
    ) -> Iterator[str]:
        new: list[int] = []
        said, self.ended = "", False
        try:
            for i in self._tokens(prompt, limit):
                new.append(i)
                whole = text_after(self._run, prompt[-_CONTEXT:], new, self._ends)
                # Half of a character, of several tokens, waits for the rest.
                if whole.startswith(said) and not whole.endswith("\ufffd"):
                    piece, said = whole[len(said) :], whole
                    if piece:
                        yield piece
            whole = text_after(self._run, prompt[-_CONTEXT:], new, self._ends)
            piece, said = whole[len(said) :], whole
            if piece:
                yield piece
        finally:
            self.ended = bool(new) and new[-1] in self._ends
            self.messages = [*asked, {"role": "assistant", "content": said}]

    def _tokens(self, prompt: list[int], limit: int) -> Iterator[int]:
        """Yields the ids of a reply."""
        run, model = self._run, self._run.model
        settings, padding = run.config.generation, run.tokenizer.pad_id
        own = settings if settings is not None and constrains(settings) else None
        # Constraints alone look at what was read before, and at the limit.
        before = _padded(prompt if own else [0], run.row_multiple, model.max_length)
        room = limit if own else _max_tokens(run, self._options, 1)
        constants = (
            before,
            np.uint32(self._options.seed),
            np.zeros(run.row_multiple, np.int32),
            self._sampling,
            eos_array(self._ends or None, Generation()),
            np.int32(-1 if padding is None or padding in self._ends else padding),
        )
        size = min(model.vocab_size, run.tokenizer.vocab_size)
        with run.on_mesh():
            rules = nn.get_logical_axis_rules()
            state = loop_state(self._extended(prompt, rules), room)
        for number in range(limit):
            self._slots = None  # given away
            with run.on_mesh():
                state = _next(
                    self._decoder, rules, size, own, run.params, state, *constants
                )
            i = int(np.asarray(state.tokens[0, number]))
            self._slots = state.slots
            self._read.append(i)
            yield i
            if i in self._ends:
                return

    def _extended(self, prompt: list[int], rules) -> Slots:
        """Slots that have read a prompt, of which only what is new is read."""
        model, rows = self._run.model, self._run.row_multiple
        shared = 0
        if self._slots is not None:
            pairs = zip(self._read, prompt[:-1])
            differ = (n for n, (a, b) in enumerate(pairs) if a != b)
            shared = next(differ, min(len(self._read), len(prompt) - 1))
            cache = self._slots.cache
        else:
            params = self._run.params
            cache = self._decoder.empty_cache(params, rows, model.max_length)
        more = _padded(prompt[shared:], rows, model.max_length - shared)
        self._slots, self._read = None, []  # given away
        positions = np.full(rows, shared, np.int32)
        slots = _read(self._decoder, rules, self._run.params, more, positions, cache)
        self._read = list(prompt)
        return slots


def stop_ids(run: Run) -> tuple[int, ...]:
    """The ids that end a reply: the template's stop tokens, and those of `end_ids`."""
    return tuple(dict.fromkeys([*_encoder_of(run).stop_ids(), *end_ids(run)]))


def _encoder_of(run: Run) -> ChatEncoder:
    if run.tokenizer is None:
        raise UserError("This run has no tokenizer, so it cannot read or write text.")
    if isinstance(decoder_of(run.model), SourceDecoder) or (
        decoder_of(run.model).reads_images
    ):
        raise UserError(
            f"@{run.model.gin_name}() does not continue a conversation; expected a "
            "model that is a decoder alone, such as @gpt()."
        )
    return ChatEncoder(run.tokenizer)


def _prompt(encoder: ChatEncoder, messages: Sequence[Message]) -> list[int]:
    try:
        return encoder.prompt(messages)
    except BadRecord as error:
        raise UserError(f"The conversation {error}.") from None


def _max_tokens(run: Run, options: ChatOptions, longest: int) -> int:
    room = run.model.max_length - longest
    if room < 1:
        raise UserError(
            f"The conversation has {longest} tokens, which leaves no room for a reply, "
            f"since {run.model.gin_name}.max_length = {run.model.max_length}."
        )
    wanted = options.max_tokens or settings_of(run).max_new_tokens or _TOKENS
    return min(wanted, room)


def _padded(ids: list[int], rows: int, limit: int) -> Prompts:
    """The same ids in so many rows, padded to a power of two of at most `limit`."""
    bucket = max(_MIN_BUCKET, 1 << (len(ids) - 1).bit_length())
    tokens = np.zeros((rows, min(bucket, limit)), np.int32)
    tokens[:, : len(ids)] = ids
    return Prompts(tokens, np.full(rows, len(ids), np.int32))


# flax's logical axis rules are global state that jit does not see, so they are a static
# argument.
@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=5)
def _read(decoder, rules, params, more, positions, cache) -> Slots:
    del rules
    return decoder.extend(params, more, positions, cache)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _next(
    decoder,
    rules,
    vocab_size,
    generation,
    params,
    state: LoopState,
    before,
    seed,
    rows,
    sampling,
    eos_ids,
    padding_id,
) -> LoopState:
    del rules
    return generate_one(
        decoder,
        params,
        state,
        before,
        vocab_size=vocab_size,
        generation=generation,
        keys=row_keys(seed, rows),
        sampling=sampling,
        eos_ids=eos_ids,
        padding_id=padding_id,
    )
