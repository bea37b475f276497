"""Tokenizers: text to ids and back, the bytes behind each id, a folder on disk.

Nothing here needs TensorFlow, except that each can give itself to seqio. A saved
tokenizer is a folder of plain data: loading a stranger's runs none of their code.
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

from fmjax.data.tasks.seqio_import import import_seqio
from fmjax.data.text import word_starts
from fmjax.data.tokenizers.characters import (
    CharacterTokenizer,
    character_vocabulary_class,
)
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.huggingface.vocabulary import vocabulary_class
from fmjax.data.tokenizers.special_names import names_above
from fmjax.data.tokenizers.tokenizer_files import DESCRIPTOR, FORMAT, save_files
from fmjax.errors import UserError

# How seqio spells the sentinels that it puts behind a SentencePiece model.
_SEQIO_SENTINEL = re.compile("\u2581<extra_id_[0-9]+>")


class Tokenizer(Protocol):
    """What models, data and inference know of a tokenizer.

    Attributes:
      vocab_size: number of ids, specials included.
      pad_id: id of padding, or None.
      bos_id: id that starts every document, or None.
      eos_id: id that ends every document, or None.
      digest: names the vocabulary: equal digests tokenize alike.
    """

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    digest: str

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""

    def id_of(self, special: str) -> int | None:
        """The id of a special token as it is spelled, None where there is none."""

    def word_starts(self) -> np.ndarray:
        """bool [V]: ids that begin a word, white space before it included.

        Raises:
          UserError: the vocabulary does not tell.
        """

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0."""

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""

    def seqio_vocabulary(self):
        """The same vocabulary as a seqio.Vocabulary."""


@runtime_checkable
class TwoVocabularies(Protocol):
    """A tokenizer of what an encoder reads, and `target` of what a decoder writes."""

    target: Tokenizer


def start_id(tokenizer: Tokenizer) -> int | None:
    """The id that a model reads before a document's first token: BOS, or else EOS."""
    return tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id


class SentencePieceTokenizer:
    """A SentencePiece model.

    Models trained by fmjax give every text back exactly, save that the character
    U+2581, SentencePiece's mark for a space, comes back as a space.
    """

    kind = "sentencepiece"
    file_name = "sentencepiece.model"

    def __init__(self, model: bytes):
        """Takes the serialized model; raises UserError if it is not one."""
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
        """Ids of a text, without specials."""
        return self._processor.encode(text)

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""
        end = self._seqio_sentinels.start
        return self._processor.decode([int(i) for i in ids if 0 <= i < end])

    def id_of(self, special: str) -> int | None:
        """The id of a special token as it is spelled, None where there is none."""
        found = self._processor.piece_to_id("\u2581" + special)
        if found in self._seqio_sentinels:
            return found
        found = self._processor.piece_to_id(special)
        return found if self._processor.is_control(found) else None

    def has_piece(self, piece: str) -> bool:
        """Whether a piece is so spelled, special or not."""
        return not self._processor.is_unknown(self._processor.piece_to_id(piece))

    def word_starts(self) -> np.ndarray:
        """bool [V]: ids that begin a word, white space before it included."""
        sp = self._processor
        ids = {sp.id_to_piece(i): i for i in range(self.vocab_size)}
        return word_starts.table(ids, word_starts.in_pieces, self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0."""
        return np.array([self._bytes(i) for i in range(self.vocab_size)], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        save_files(self, folder, self._model)

    @classmethod
    def from_file(cls, content: bytes) -> "SentencePieceTokenizer":
        """Reads the bytes of the file that `save` wrote."""
        return cls(content)

    def seqio_vocabulary(self):
        """A seqio.SentencePieceVocabulary, one object a model."""
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
    """UTF-8 bytes as ByT5 has them: 0 padding, 1 end, 2 unknown, bytes from 3 on.

    Special tokens follow the bytes.
    """

    kind = "bytes"
    file_name = "bytes.json"

    def __init__(self, names: tuple[str, ...] = ()):
        """Takes the names of the ids that follow the bytes, as `names_above` does."""
        self.names = names
        self._special_ids = {name: i for i, name in enumerate(names, 259)}
        self.vocab_size = 259 + len(names)
        self.pad_id, self.bos_id, self.eos_id = 0, None, 1
        self.digest = xxhash.xxh3_128_hexdigest(b"bytes" + self._content())

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        return [byte + 3 for byte in text.encode()]

    def decode(self, ids) -> str:
        """Text of ids; broken UTF-8 shows as U+FFFD."""
        text = bytes(int(i) - 3 for i in ids if 3 <= i < 259)
        return text.decode("utf-8", errors="replace")

    def id_of(self, special: str) -> int | None:
        """The id of a special token as it is spelled, None where there is none."""
        return self._special_ids.get(special)

    def word_starts(self) -> np.ndarray:
        """Raises UserError: bytes don't say where words begin."""
        raise UserError("A vocabulary of bytes does not say where words begin.")

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: 1 for each byte, 0 for specials."""
        return np.array([0] * 3 + [1] * 256 + [0] * len(self.names), np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "ByteTokenizer":
        """Reads the bytes of the file that `save` wrote."""
        return cls(tuple(map(str, json.loads(content)["names"])))

    def seqio_vocabulary(self):
        """A seqio.ByteVocabulary, to which all specials are extra ids."""
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
    )
}


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer that `save` wrote into a folder.

    Raises:
      UserError: there is none, or a file of it is damaged or of an unknown kind.
    """
    descriptor = Path(folder) / DESCRIPTOR
    try:
        fields = json.loads(descriptor.read_bytes())
        found, kind, digest = fields["format"], fields["kind"], fields["digest"]
    except FileNotFoundError:
        raise UserError(f"No tokenizer in {folder}: {DESCRIPTOR} is missing.") from None
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise UserError(f"{descriptor} is damaged: {error!r}.") from error
    if found != FORMAT or not isinstance(kind, str) or kind not in _KINDS:
        raise UserError(
            f"{descriptor} has format {found!r:.200} and kind {kind!r:.200}; this "
            f"fmjax reads format {FORMAT} and kinds {sorted(_KINDS)}."
        )
    # The file's name follows from the kind: a descriptor cannot point elsewhere.
    file = Path(folder) / _KINDS[kind].file_name
    try:
        tokenizer = _KINDS[kind].from_file(file.read_bytes())
    except Exception as error:  # Whatever a damaged file makes the readers raise.
        raise UserError(f"{file} cannot be read: {error}") from error
    if tokenizer.digest != digest:
        raise UserError(
            f"{file} is not the file that {DESCRIPTOR} describes: its digest is "
            f"{tokenizer.digest}, expected {digest}."
        )
    return tokenizer


def from_seqio(vocabulary) -> Tokenizer:
    """The tokenizer behind a seqio.Vocabulary of a user's own task."""
    seqio = import_seqio()
    if isinstance(vocabulary, (character_vocabulary_class(), vocabulary_class())):
        return vocabulary.tokenizer
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceTokenizer(vocabulary.sp_model)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteTokenizer(names_above((), vocabulary.extra_ids, "ByteVocabulary"))
    raise UserError(
        f"A task's targets have a {type(vocabulary).__name__}; fmjax reads "
        "SentencePieceVocabulary and ByteVocabulary."
    )


def _none_if_negative(i: int) -> int | None:
    return None if i < 0 else i


def _seqio_sentinels(processor: spm.SentencePieceProcessor) -> range:
    """The ids that seqio put behind a model."""
    first = end = processor.get_piece_size()
    while first and _SEQIO_SENTINEL.fullmatch(processor.id_to_piece(first - 1)):
        first -= 1
    return range(first, end)


@functools.cache
def _sentencepiece_vocabulary(model: bytes):
    """seqio reads models from files, and holds vocabularies equal whose files are."""
    seqio = import_seqio()
    with tempfile.TemporaryDirectory(prefix="fmjax-") as folder:
        file = Path(folder) / SentencePieceTokenizer.file_name
        file.write_bytes(model)
        vocabulary = seqio.SentencePieceVocabulary(str(file))
        vocabulary.load_model()
    return vocabulary
