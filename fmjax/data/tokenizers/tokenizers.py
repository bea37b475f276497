"""Tokenizers: from text to ids and back, saved in a folder.

Only `seqio_vocabulary` needs TensorFlow. A saved tokenizer is plain data: loading one
runs no code of the folder.
"""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import sentencepiece as spm
import xxhash

from fmjax.data.seqio_import import import_seqio
from fmjax.data.tokenizers import word_starts
from fmjax.data.tokenizers.characters import (
    CharacterTokenizer,
    character_vocabulary_class,
)
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.huggingface.vocabulary import vocabulary_class
from fmjax.data.tokenizers.id_tokenizer import IdTokenizer
from fmjax.data.tokenizers.special_names import names_above
from fmjax.data.tokenizers.tokenizer_files import (
    DESCRIPTOR,
    FORMAT,
    save_files,
    saved_chat_template,
)
from fmjax.errors import UserError
from fmjax.storage.objects import os_errors
from fmjax.storage.paths import as_path

# The spelling of the sentinels that seqio appends to a SentencePiece model.
_SEQIO_SENTINEL = re.compile("\u2581<extra_id_[0-9]+>")


class Tokenizer(Protocol):
    """The interface of tokenizers.

    Attributes:
      vocab_size: number of ids, with special tokens.
      pad_id: id of padding, or None.
      bos_id: id at the start of every document, or None.
      eos_id: id at the end of every document, or None.
      digest: digest of the tokenizer; tokenizers with equal digests are equal.
      chat_template: the chat template, in Jinja, that a run was trained with, in place
        of the tokenizer's own; None if there is none.
    """

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    digest: str
    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""

    def decode(self, ids) -> str:
        """Text of ids; special tokens and ids outside the vocabulary are skipped."""

    def id_of(self, special: str) -> int | None:
        """The id of a special token such as "[MASK]"; None if there is none."""

    def word_starts(self) -> np.ndarray:
        """Whether each id begins a word (with the white space before it), bool [V].

        Raises:
          UserError: the vocabulary does not mark word starts.
        """

    def token_bytes(self) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens."""

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the tokenizer's file."""

    def seqio_vocabulary(self):
        """The same vocabulary as a seqio.Vocabulary."""


@runtime_checkable
class TwoVocabularies(Protocol):
    """A tokenizer of what an encoder reads, and `target` of what a decoder writes."""

    target: Tokenizer


def start_id(tokenizer: Tokenizer) -> int | None:
    """The id before the first token of a document: BOS, or else EOS."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


class SentencePieceTokenizer:
    """A SentencePiece model.

    With models trained by fmjax without `sentencepiece.normalization`, decoding gives
    the exact text, except that the character U+2581, SentencePiece's mark for a space,
    becomes a space.
    """

    chat_template: str | None = None
    kind = "sentencepiece"
    file_name = "sentencepiece.model"

    def __init__(self, model: bytes):
        """Loads a serialized model; raises a UserError if it is not valid."""
        self._model = model
        self._processor = spm.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except Exception as error:
            raise UserError(f"Not a SentencePiece model: {error}") from error
        self.vocab_size = self._processor.get_piece_size()
        self.pad_id = _none_if_negative(self._processor.pad_id())
        self.bos_id = _none_if_negative(self._processor.bos_id())
        self.eos_id = _none_if_negative(self._processor.eos_id())
        self._seqio_sentinels = _seqio_sentinels(self._processor)
        self.digest = xxhash.xxh3_128_hexdigest(b"sentencepiece" + model)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._processor.encode(text)

    def decode(self, ids) -> str:
        """Text of ids; special tokens and ids outside the vocabulary are skipped."""
        end = self._seqio_sentinels.start
        return self._processor.decode([int(i) for i in ids if 0 <= i < end])

    def id_of(self, special: str) -> int | None:
        """The id of a special token such as "[MASK]"; None if there is none."""
        found = self._processor.piece_to_id("\u2581" + special)
        if found in self._seqio_sentinels:
            return found
        found = self._processor.piece_to_id(special)
        return found if self._processor.is_control(found) else None

    def has_piece(self, piece: str) -> bool:
        """Whether the model has this piece, special or not."""
        return not self._processor.is_unknown(self._processor.piece_to_id(piece))

    def word_starts(self) -> np.ndarray:
        """Whether each id begins a word (with the white space before it), bool [V]."""
        sp = self._processor
        ids = {sp.id_to_piece(i): i for i in range(self.vocab_size)}
        return word_starts.table(ids, word_starts.in_pieces, self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens."""
        return np.array([self._bytes(i) for i in range(self.vocab_size)], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and `sentencepiece.model`."""
        save_files(self, folder, self._model)

    @classmethod
    def from_file(cls, content: bytes) -> "SentencePieceTokenizer":
        """Reads the content of a file that `save` wrote."""
        return cls(content)

    def seqio_vocabulary(self):
        """A seqio.SentencePieceVocabulary, the same object for equal models."""
        return _sentencepiece_vocabulary(self._model)

    def _bytes(self, i: int) -> int:
        sp = self._processor
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            return 0
        if i in self._seqio_sentinels:
            return 0
        if sp.is_byte(i):
            return 1
        return len(sp.id_to_piece(i).replace("\u2581", " ").encode())


class ByteTokenizer:
    """UTF-8 bytes as in ByT5: 0 is padding, 1 EOS, 2 unknown, bytes start at 3.

    Special tokens come after the bytes.
    """

    chat_template: str | None = None
    kind = "bytes"
    file_name = "bytes.json"

    def __init__(self, names: tuple[str, ...] = ()):
        """Builds the vocabulary with special tokens `names` (see `names_above`)."""
        self.names = names
        self._special_ids = {name: i for i, name in enumerate(names, 259)}
        self.vocab_size = 259 + len(names)
        self.pad_id, self.bos_id, self.eos_id = 0, None, 1
        self.digest = xxhash.xxh3_128_hexdigest(b"bytes" + self._content())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids) -> str:
        """Text of ids; invalid UTF-8 becomes U+FFFD."""
        text = bytes(int(i) - 3 for i in ids if 3 <= i < 259)
        return text.decode("utf-8", errors="replace")

    def id_of(self, special: str) -> int | None:
        """The id of a special token such as "[MASK]"; None if there is none."""
        return self._special_ids.get(special)

    def word_starts(self) -> np.ndarray:
        """Raises a UserError: a byte does not show whether it begins a word."""
        raise UserError(
            "@bytes() does not mark where words begin; expected @sentencepiece() or a "
            "Hugging Face tokenizer."
        )

    def token_bytes(self) -> np.ndarray:
        """Bytes of text of each id, int32 [V]: 1 for bytes, 0 for special tokens."""
        return np.array([0] * 3 + [1] * 256 + [0] * len(self.names), np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and `bytes.json`."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "ByteTokenizer":
        """Reads the content of a file that `save` wrote."""
        return cls(tuple(map(str, json.loads(content)["names"])))

    def seqio_vocabulary(self):
        """A seqio.ByteVocabulary in which all special tokens are extra ids."""
        return import_seqio().ByteVocabulary(len(self.names))

    def _content(self) -> bytes:
        return json.dumps({"names": self.names}).encode()


_KINDS = {
    c.kind: c
    for c in (
        SentencePieceTokenizer,
        CharacterTokenizer,
        ByteTokenizer,
        HuggingFaceTokenizer,
        IdTokenizer,
    )
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Loads a tokenizer from a folder that `save` wrote.

    Raises:
      UserError: there is no tokenizer, or a file is damaged or of an unknown kind.
    """
    descriptor = as_path(folder) / DESCRIPTOR
    try:
        with os_errors(descriptor):
            fields = json.loads(descriptor.read_bytes())
        found, kind, digest = fields["format"], fields["kind"], fields["digest"]
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no tokenizer: {DESCRIPTOR} is missing."
        ) from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{descriptor} is damaged: {error!r}.") from error
    if found != FORMAT or not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{descriptor} has format {found!r:.200} and kind {kind!r:.200}; expected "
            f"format {FORMAT} and one of the kinds {sorted(_KINDS)}."
        )
    # The file's name follows from the kind: a descriptor cannot point elsewhere.
    file = as_path(folder) / _KINDS[kind].file_name
    try:
        tokenizer = _KINDS[kind].from_file(file.read_bytes())
    except Exception as error:  # Libraries raise various errors for damaged files.
        raise UserError(f"{file} cannot be read: {error}") from error
    if tokenizer.digest != digest:
        raise UserError(
            f"{file} has the digest {tokenizer.digest}; expected {digest}, as "
            f"{DESCRIPTOR} says."
        )
    tokenizer.chat_template = saved_chat_template(as_path(folder))
    return tokenizer


def from_seqio(vocabulary) -> Tokenizer:
    """The tokenizer of a seqio.Vocabulary.

    Raises:
      UserError: the vocabulary's class is not supported.
    """
    seqio = import_seqio()
    if isinstance(vocabulary, (character_vocabulary_class(), vocabulary_class())):
        return vocabulary.tokenizer
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceTokenizer(vocabulary.sp_model)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteTokenizer(names_above((), vocabulary.extra_ids, "ByteVocabulary"))
    raise UserError(
        f"A seqio task has a {type(vocabulary).__name__}; expected a "
        "SentencePieceVocabulary or ByteVocabulary."
    )


def _none_if_negative(i: int) -> int | None:
    return None if i < 0 else i


def _seqio_sentinels(processor: spm.SentencePieceProcessor) -> range:
    """Ids of the sentinels that seqio appended to a model."""
    first = end = processor.get_piece_size()
    while first and _SEQIO_SENTINEL.fullmatch(processor.id_to_piece(first - 1)):
        first -= 1
    return range(first, end)


@functools.cache
def _sentencepiece_vocabulary(model: bytes):
    """A seqio.SentencePieceVocabulary; seqio reads models only from files.

    It is cached, since seqio compares vocabularies by the names of their files.
    """
    seqio = import_seqio()
    with tempfile.TemporaryDirectory(prefix="fmjax-") as folder:
        file = Path(folder) / SentencePieceTokenizer.file_name
        file.write_bytes(model)
        vocabulary = seqio.SentencePieceVocabulary(str(file))
        vocabulary.load_model()
    return vocabulary
