"""Tokenized documents of a seqio task; corrupt ones are counted and left out."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from fmjax.data.records import BadRecord
from fmjax.data.sources.division import Conversation, TextExample, Tokens
from fmjax.data.sources.examples import Skipped, label_of, read_examples
from fmjax.data.sources.source import DOCUMENT_BYTES
from fmjax.data.sources.text_reader import is_utf8
from fmjax.data.tasks.conversations import all_tokens, trained_tokens
from fmjax.data.tokenizers.chat_tokens import ChatEncoder, ChatTokens
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.data.tokenizers.words import encode_words
from fmjax.errors import UserError

_EMPTY = "is empty"
_NOT_UTF8 = "is not UTF-8"
_SIDES = ("inputs", "targets")
_LABELLED_SIDES = ("targets", "second")
# The label of tokens without one, as in transformers.
NO_LABEL = -100


class LabelledExample(NamedTuple):
    """Tokenized texts and their labels.

    Attributes:
      texts: one or two texts, int32 [N] each, without special tokens.
      labels: numbers of the classes, int [number of labels], or a number, float [1],
        or of the tokens of one text, int [N], `NO_LABEL` where there is none.
    """

    texts: tuple[np.ndarray, ...]
    labels: np.ndarray


Document = np.ndarray | tuple[np.ndarray, ...] | LabelledExample | ChatTokens


@dataclasses.dataclass
class Tokenized:
    """A tokenized document, pair, labelled text or texts, or conversation.

    Attributes:
      tokens: int32 [N], with EOS if the vocabulary has one; a pair's targets; or a
        labelled text without EOS.
      size: bytes of its text; None if the task does not keep the text.
      inputs: int32 [M], the encoder's tokens of a pair; None for a document.
      negatives: int32 [M] each, hard negatives of a pair.
      second: int32 [M], the second of two labelled texts.
      labels: numbers of the classes, int [number of labels], or a number, float [1],
        or labels of the tokens, int [N]; None without labels.
      loss_mask: which tokens of a conversation are trained, bool [N]; None of others.
    """

    tokens: np.ndarray
    size: int | None
    inputs: np.ndarray | None = None
    negatives: tuple[np.ndarray, ...] = ()
    second: np.ndarray | None = None
    labels: np.ndarray | None = None
    loss_mask: np.ndarray | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the text, or of a pair's targets."""
        return len(self.tokens)

    @property
    def content(self) -> Document:
        """The input of a layout: tokens, (inputs, targets, negatives …), labels, …."""
        if self.loss_mask is not None:
            return ChatTokens(self.tokens, self.loss_mask)
        if self.labels is not None:
            texts = (
                (self.tokens,) if self.second is None else (self.tokens, self.second)
            )
            return LabelledExample(texts, self.labels)
        if self.inputs is None:
            return self.tokens
        return (self.inputs, self.tokens, *self.negatives)


def tokenized_documents(
    dataset, name: str, vocab_size: int, skipped: Skipped, pairs: bool = False
) -> Iterator[Tokenized]:
    """Yields the documents of a seqio task, without corrupt and empty ones.

    A source may tell itself that an example is corrupt, by the feature `record_fault`.
    Examples with `labels` are labelled texts, and may have a `second` text.

    Args:
      dataset: the task's tf.data.Dataset.
      name: its name, for messages.
      vocab_size: V; ids must be below.
      skipped: counts the documents that are left out.
      pairs: whether examples have `inputs` as well as `targets`.

    Raises:
      UserError: as in `read_examples`.
    """
    for number, example in read_examples(dataset, name, skipped):
        if broken := example.get("record_fault"):
            where = label_of(example, f"document {number}")
            skipped.add(f"{name}: {where} {broken.decode()}")
            continue
        sides = _SIDES if pairs else _SIDES[1:]
        sides += ("second",) if "second" in example else ()
        tokens = {side: np.asarray(example[side], np.int32) for side in sides}
        texts = {side: example.get(f"{side}_pretokenized") for side in sides}
        faults = [_fault(tokens[side], texts[side], vocab_size) for side in sides]
        for side, fault in zip(sides, faults):
            if fault is not None:
                where = label_of(example, f"document {number}")
                which = f" {side}" if len(sides) > 1 else ""
                empty = fault == _EMPTY
                kept = isinstance(texts[side], bytes) and not empty
                size = len(texts[side]) if kept else 0
                why = f"{name}: {where}{which} {fault}"
                skipped.add(why, size=size, empty=empty)
                break
        else:
            text = texts["targets"]
            size = len(text) if isinstance(text, bytes) else None
            yield Tokenized(
                tokens["targets"],
                size,
                tokens.get("inputs"),
                second=tokens.get("second"),
                labels=example.get("labels"),
            )


def tokenized_examples(
    examples: Iterable[TextExample],
    name: str,
    tokenizer: Tokenizer,
    skipped: Skipped,
    longest: int | None = None,
) -> Iterator[Tokenized]:
    """Yields what `tokenized_documents` yields of a `text_task`, without TensorFlow.

    Args:
      examples: documents, also tokenized ones, pairs of inputs and targets, labelled
        texts or words, or conversations, which the chat template makes texts of.
      name: name of the task and split, for messages.
      tokenizer: the task's; its EOS is appended, but to labelled texts and to
        conversations of which only the assistant's part is trained.
      skipped: counts the examples that are left out.
      longest: number of tokens to which these conversations are truncated; None for no
        limit.
    """
    encoders: dict[str | None, ChatEncoder] = {}
    for example in examples:
        skipped.total += 1
        if example.fault:
            skipped.add(f"{name}: {example.name} {example.fault}")
            continue
        if example.tokens is not None:
            ids, fault = _completed(example.tokens, tokenizer)
            if fault is None:
                yield Tokenized(ids, None)
            else:
                why = f"{name}: {example.name} {fault}"
                skipped.add(why, empty=fault == _EMPTY)
            continue
        if (conversation := example.conversation) is not None:
            template = conversation.template
            if template not in encoders:
                encoders[template] = ChatEncoder(tokenizer, template)
            encoder, fault = encoders[template], None
            try:
                yield _of_conversation(conversation, encoder, longest, skipped)
            except BadRecord as error:
                fault = str(error)
            except UserError:  # of a character that the vocabulary lacks
                fault = _outside(tokenizer.vocab_size)
            if fault is not None:
                why = f"{name}: {example.name} {fault}"
                skipped.add(why, empty=fault == _EMPTY)
            continue
        if example.are_words:
            found, fault = _labelled_words(example, tokenizer)
            if fault is None:
                yield found
            else:
                empty = fault == _EMPTY
                why = f"{name}: {example.name} {fault}"
                skipped.add(why, size=0 if empty else example.size, empty=empty)
            continue
        is_labelled = example.labels is not None
        sides = _LABELLED_SIDES if is_labelled else _SIDES[-len(example.texts) :]
        negatives = [f"negative {n}" for n in range(1, len(example.texts) - 1)]
        end = None if is_labelled else tokenizer.eos_id
        tokens = {}
        for side, text in zip((*sides, *negatives), example.texts):
            ids, fault = _encoded(text, tokenizer, end)
            if fault is not None:
                empty = fault == _EMPTY
                which = f" {side}" if len(example.texts) > 1 else ""
                why = f"{name}: {example.name}{which} {fault}"
                skipped.add(why, size=0 if empty else len(text), empty=empty)
                break
            tokens[side] = ids
        else:
            yield Tokenized(
                tokens["targets"],
                len(example.texts[sides.index("targets")]),
                tokens.get("inputs"),
                tuple(tokens[name] for name in negatives),
                second=tokens.get("second"),
                labels=_array(example.labels) if is_labelled else None,
            )


def _labelled_words(
    example: TextExample, tokenizer: Tokenizer
) -> tuple[Tokenized, str | None]:
    """The tokens of words, the first of each with its label, and what is wrong."""
    nothing = Tokenized(np.zeros(0, np.int32), None)
    if not example.texts:
        return nothing, _EMPTY
    if example.size > DOCUMENT_BYTES:
        return nothing, _too_long("bytes")
    try:
        pieces = encode_words(tokenizer, [word.decode() for word in example.texts])
    except UnicodeDecodeError:
        return nothing, _NOT_UTF8
    except UserError:  # of a character that the vocabulary lacks
        return nothing, _outside(tokenizer.vocab_size)
    labels = [
        [label, *[NO_LABEL] * (len(ids) - 1)][: len(ids)]
        for ids, label in zip(pieces, example.labels)
    ]
    tokens, labels = (
        np.fromiter(itertools.chain.from_iterable(each), np.int32)
        for each in (pieces, labels)
    )
    if not len(tokens):
        return nothing, _EMPTY
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        return nothing, _outside(tokenizer.vocab_size)
    return Tokenized(tokens, example.size, labels=labels), None


def _array(labels: tuple[int | float, ...]) -> np.ndarray:
    is_number = bool(labels) and isinstance(labels[0], float)
    return np.array(labels, np.float32 if is_number else np.int64)


def _of_conversation(
    conversation: Conversation,
    encoder: ChatEncoder,
    longest: int | None,
    skipped: Skipped,
) -> Tokenized:
    """A conversation as a document or, by default, with a loss mask.

    Raises:
      BadRecord: the template refuses it, it is too long, or nothing is trained.
      UserError: the tokenizer cannot tokenize it.
    """
    texts = [message["content"] for message in conversation.messages]
    size = sum(len(text.encode(errors="replace")) for text in texts)
    if size > DOCUMENT_BYTES:
        raise BadRecord(_too_long("bytes"))
    if not any(text.strip() for text in texts):
        raise BadRecord(_EMPTY)
    if conversation.trains_all:
        return Tokenized(all_tokens(conversation, encoder), size)
    found = trained_tokens(conversation, encoder, longest, skipped)
    return Tokenized(found.ids, size, loss_mask=found.loss_mask)


def _completed(tokens: Tokens, tokenizer: Tokenizer) -> tuple[np.ndarray, str | None]:
    """Ids with EOS and without BOS int32 [N], and what is wrong with them, or None."""
    ids, size = tokens.ids, tokenizer.vocab_size
    outside = np.flatnonzero((ids < 0) | (ids >= size))
    if len(outside):
        at = int(outside[0])
        return np.zeros(0, np.int32), (
            f"has the id {ids[at]} at token {tokens.first + at}; expected ids from 0 "
            f"to {size - 1}"
        )
    if len(ids) and tokenizer.bos_id is not None and ids[0] == tokenizer.bos_id:
        ids = ids[1:]  # Layouts add it.
    if not len(ids):
        return np.zeros(0, np.int32), _EMPTY
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    return np.concatenate([ids, np.array(end)]).astype(np.int32), None


def _encoded(
    text: bytes, tokenizer: Tokenizer, end: int | None
) -> tuple[np.ndarray, str | None]:
    """Tokens with the `end` int32 [N], and what is wrong with the text, or None."""
    nothing = np.zeros(0, np.int32)
    if len(text) > DOCUMENT_BYTES:
        return nothing, _too_long("bytes")
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return nothing, _NOT_UTF8
    if not text.strip():
        return nothing, _EMPTY
    try:
        ids = tokenizer.encode(decoded)
    except UserError:  # of a character that the vocabulary lacks
        return nothing, _outside(tokenizer.vocab_size)
    if end is not None:
        ids = [*ids, end]
    if not len(ids):
        return nothing, _EMPTY
    tokens = np.array(ids, np.int32)
    if tokens.min() < 0 or tokens.max() >= tokenizer.vocab_size:
        return nothing, _outside(tokenizer.vocab_size)
    return tokens, None


def _fault(tokens: np.ndarray, text: Any, vocab_size: int) -> str | None:
    """What is wrong with a text, or None; `text` is bytes if the task keeps it."""
    kept = isinstance(text, bytes)
    if len(text if kept else tokens) > DOCUMENT_BYTES:
        return _too_long("bytes" if kept else "tokens")
    if kept and not is_utf8(text):
        return _NOT_UTF8
    if not len(tokens) or (kept and not text.strip()):
        return _EMPTY
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        return _outside(vocab_size)
    return None


def _too_long(unit: str) -> str:
    return f"is too long; expected at most {DOCUMENT_BYTES:,} {unit}"


def _outside(vocab_size: int) -> str:
    return f"has ids outside the vocabulary of {vocab_size}"
