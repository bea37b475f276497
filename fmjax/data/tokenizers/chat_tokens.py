"""Tokens of conversations, and which of them the assistant says.

The text of the chat template is tokenized as a whole, without special tokens around it,
as `apply_chat_template` of transformers does. What the assistant says is the text of
`{% generation %}` in the template. Without it, a turn of the assistant begins where the
text of the messages before it, with the prompt to answer, and the text of the whole
conversation part; it ends where the text up to the turn and the whole part, without the
white space after its stop token.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fmjax.data.records import BadRecord
from fmjax.data.tokenizers.chat_template import BOS, EOS, RenderedChat, chat_template
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer

Message = Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]] | None

_ASSISTANT = "assistant"
_ENDS = re.compile(f"({BOS}|{EOS})")
_PROBE = (
    {"role": "user", "content": "Hello"},
    {"role": _ASSISTANT, "content": "Hi"},
)


class ChatTokens(NamedTuple):
    """A tokenized conversation.

    Attributes:
      ids: int32 [N].
      loss_mask: whether the assistant says each, so that it is trained, bool [N].
    """

    ids: np.ndarray
    loss_mask: np.ndarray


class BadTemplate(BadRecord):
    """A conversation of which the template makes what cannot be trained on."""


class ChatEncoder:
    """A tokenizer with a chat template."""

    def __init__(self, tokenizer: Tokenizer, own: str | None = None):
        """Compiles the template.

        Args:
          tokenizer: the tokenizer.
          own: a template in place of the tokenizer's.

        Raises:
          UserError: there is none, or it is not valid.
        """
        self.tokenizer = tokenizer
        self._template = chat_template(tokenizer, own)
        self._for_tools = chat_template(tokenizer, own, with_tools=True)

    def encode(self, messages: Sequence[Message], tools: Tools = None) -> ChatTokens:
        """The tokens of a conversation.

        Raises:
          BadTemplate: a turn of the assistant cannot be told from the rest.
          BadRecord: the template refuses the conversation.
          UserError: the tokenizer cannot tokenize the text.
        """
        template = self._for_tools if tools else self._template
        rendered = template.render(messages, tools)
        if template.marks_generation:
            return self._tokens(rendered)
        spans = self._spans_by_prefixes(rendered.text, messages, tools)
        return self._tokens(RenderedChat(rendered.text, spans), are_exact=False)

    def encode_text(
        self, messages: Sequence[Message], tools: Tools = None
    ) -> list[int]:
        """The ids of a conversation, of which all may be trained.

        Raises:
          BadRecord: the template refuses the conversation.
          UserError: the tokenizer cannot tokenize the text.
        """
        template = self._for_tools if tools else self._template
        return self._ids(template.render(messages, tools).text)

    def prompt(self, messages: Sequence[Message], tools: Tools = None) -> list[int]:
        """The ids of a conversation up to where the assistant's next message begins.

        Raises:
          BadRecord: the template refuses the conversation.
          UserError: the tokenizer cannot tokenize the text.
        """
        template = self._for_tools if tools else self._template
        rendered = template.render(messages, tools, add_generation_prompt=True)
        return self._ids(rendered.text)

    def require_offsets(self) -> None:
        """Raises a UserError if it cannot tell which characters tokens stand for."""
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            self.tokenizer.encode_with_offsets("")

    def stop_ids(self) -> tuple[int, ...]:
        """The ids that end what the assistant says; empty if the template has none.

        They are the special tokens at the end of a turn, such as `<|end|>` and EOS.
        """
        try:
            ids, loss_mask = self.encode(_PROBE)
        except BadRecord:
            return ()
        found: list[int] = []
        for i in ids[loss_mask][::-1].tolist():
            if self._is_mark(i):
                found.insert(0, i)
            elif not self._is_blank(i):
                break
        return tuple(found)

    def check(self, messages: Sequence[Message], tools: Tools = None) -> None:
        """Checks what the template makes of a conversation.

        Raises:
          BadTemplate: the text begins with BOS twice, a turn of the assistant has no
            tokens, or its stop token is not trained; the message names the turn.
          BadRecord: the template refuses the conversation.
          UserError: the tokenizer cannot tokenize the text.
        """
        ids, loss_mask = self.encode(messages, tools)
        first = self._bos_id()
        if first is not None and ids[:2].tolist() == [first, first]:
            raise BadTemplate("begins with BOS twice by the chat template")
        turns = [n for n, m in enumerate(messages) if m["role"] == _ASSISTANT]
        runs = _runs(loss_mask)
        if len(runs) < len(turns):
            raise BadTemplate(
                f"has {len(turns)} turns of the assistant, of which the chat template "
                f"marks only {len(runs)} by {{% generation %}}"
            )
        for number, (start, end) in enumerate(runs):
            if self._stop(ids, start, end) is not None:
                continue
            turn = f"turn {turns[number] + 1}" if len(runs) == len(turns) else "a turn"
            after = self._spelling(ids, loss_mask, end)
            raise BadTemplate(
                f"ends {turn}, of the assistant, without a stop token that is trained"
                + (f"; {after!r} follows, outside of {{% generation %}}" if after else
                   ", by the chat template")
            )  # fmt: skip

    def turn_that_changes(
        self, messages: Sequence[Message], tools: Tools = None
    ) -> int | None:
        """The number, from 1, of the first turn whose text later turns change.

        None if there is none: then the template preserves prefixes.
        """
        template = self._for_tools if tools else self._template
        text = template.render(messages, tools).text
        for number, message in enumerate(messages):
            if message["role"] == _ASSISTANT:
                until = template.render(messages[: number + 1], tools).text
                if not text.startswith(self._without_ends(until)):
                    return number + 1
        return None

    def _spans_by_prefixes(
        self, text: str, messages: Sequence[Message], tools: Tools
    ) -> tuple[tuple[int, int], ...]:
        template = self._for_tools if tools else self._template
        spans: list[tuple[int, int]] = []
        for number, message in enumerate(messages):
            if message["role"] != _ASSISTANT:
                continue
            before, until = messages[:number], messages[: number + 1]
            asked = template.render(before, tools, add_generation_prompt=True).text
            start = _common(text, asked)
            whole = template.render(until, tools).text
            end = _common(text, whole)
            is_kept = text.startswith(self._without_ends(whole))
            if not is_kept or start >= end or (spans and start < spans[-1][1]):
                raise BadTemplate(
                    f"has another text at turn {number + 1}, of the assistant, once "
                    "later turns follow, so the chat template does not show what the "
                    "assistant says; expected {% generation %} in it "
                    "(conversation_files.chat_template)"
                )
            spans.append((start, end))
        return tuple(spans)

    def _without_ends(self, text: str) -> str:
        """A text without the special tokens and the white space at its end."""
        while True:
            shorter = text.rstrip()
            for length, marks in self._marks.items():
                if shorter[-length:] in marks:
                    shorter = shorter[:-length]
            if shorter == text:
                return text
            text = shorter

    @functools.cached_property
    def _marks(self) -> dict[int, set[str]]:
        """The special tokens by their lengths; some vocabularies have thousands."""
        marks = {BOS, EOS}
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            tokenizer = self.tokenizer
            marks = {tokenizer.piece(i) for i in tokenizer.added_ids} - {""}
        return {n: {m for m in marks if len(m) == n} for n in {len(m) for m in marks}}

    def _tokens(self, rendered: RenderedChat, are_exact: bool = True) -> ChatTokens:
        """Tokenizes a text.

        Args:
          rendered: the text, and the spans that are trained, in order.
          are_exact: whether a token of which a span has a part is trained; if not, the
            one at its end is not, nor is the white space there.
        """
        if not isinstance(self.tokenizer, HuggingFaceTokenizer):
            return self._tokens_of_own(rendered, are_exact)
        ids, offsets = self.tokenizer.encode_with_offsets(_as_utf8(rendered.text))
        starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
        loss_mask = np.zeros(len(ids), bool)
        for start, end in rendered.spans:
            if are_exact:
                loss_mask |= (ends > start) & (starts < end)
                continue
            inside = np.flatnonzero((ends > start) & (ends <= end))
            while len(inside):
                last = inside[-1]
                if rendered.text[starts[last] : ends[last]].strip():
                    break
                inside = inside[:-1]
            loss_mask[inside] = True
        return ChatTokens(np.array(ids, np.int32), loss_mask)

    def _tokens_of_own(self, rendered: RenderedChat, are_exact: bool) -> ChatTokens:
        """Tokenizes a text part by part.

        No token is in two parts, so that the prompt's tokens begin the conversation's.
        """
        text, cuts = rendered.text, [0]
        for start, end in rendered.spans:
            kept = text[start:end] if are_exact else text[start:end].rstrip()
            cuts += [start, start + len(kept)]
        ids: list[int] = []
        loss_mask: list[bool] = []
        for number, (start, end) in enumerate(zip(cuts, [*cuts[1:], len(text)])):
            found = self._ids(text[start:end])
            ids += found
            loss_mask += [number % 2 == 1] * len(found)
        return ChatTokens(np.array(ids, np.int32), np.array(loss_mask, bool))

    def _ids(self, text: str) -> list[int]:
        tokenizer, ids = self.tokenizer, []
        text = _as_utf8(text)
        if isinstance(tokenizer, HuggingFaceTokenizer):
            return tokenizer.encode(text)
        ends = {BOS: tokenizer.bos_id, EOS: tokenizer.eos_id}
        for part in _ENDS.split(text):
            if part:
                ids += [ends[part]] if part in ends else tokenizer.encode(part)
        return ids

    def _bos_id(self) -> int | None:
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            return self.tokenizer.special_id("bos")
        return self.tokenizer.bos_id

    def _stop(self, ids: np.ndarray, start: int, end: int) -> int | None:
        """The stop token at the end of ids[start:end], before white space, or None."""
        last = end - 1
        while last > start and self._is_blank(int(ids[last])):
            last -= 1
        return int(ids[last]) if self._is_mark(int(ids[last])) else None

    def _is_mark(self, i: int) -> bool:
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            return i in self.tokenizer.added_ids or i == self.tokenizer.eos_id
        return i == self.tokenizer.eos_id

    def _is_blank(self, i: int) -> bool:
        return not self._is_mark(i) and not self.tokenizer.decode([i]).strip()

    def _spelling(self, ids: np.ndarray, loss_mask: np.ndarray, at: int) -> str | None:
        """The special token that follows in a text without being trained, or None."""
        while at < len(ids) and self._is_blank(int(ids[at])):
            at += 1
        if at == len(ids) or loss_mask[at] or not self._is_mark(int(ids[at])):
            return None
        if isinstance(self.tokenizer, HuggingFaceTokenizer):
            return self.tokenizer.piece(int(ids[at]))
        return "EOS"


def _as_utf8(text: str) -> str:
    """A text with a question mark for each half of a surrogate pair."""
    return text.encode(errors="replace").decode()


def _common(text: str, other: str) -> int:
    """The number of characters with which both begin."""
    if text.startswith(other):
        return len(other)
    pairs = enumerate(zip(text, other))
    return next((n for n, (a, b) in pairs if a != b), min(len(text), len(other)))


def _runs(loss_mask: np.ndarray) -> list[tuple[int, int]]:
    """Starts and ends of what is True without a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], loss_mask, [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
