"""Tokenizers: text to ids and back, the bytes behind each id, a folder on disk.

Nothing here needs TensorFlow, except that each can give itself to seqio. A saved
tokenizer is a folder of plain data: loading a stranger's runs none of their code.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import sentencepiece as spm
import xxhash

from fmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from fmjax.data.hugging_face_vocabulary import vocabulary_class
from fmjax.data.seqio_import import import_seqio
from fmjax.errors import UserError

DESCRIPTOR = "fmjax_tokenizer.json"
_FORMAT = 1


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
        """bool [V]: ids that begin a word, a space before it included.

        Raises:
          UserError: the vocabulary does not tell.
        """

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0."""

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""

    def seqio_vocabulary(self):
        """The same vocabulary as a seqio.Vocabulary."""


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
        self.digest = xxhash.xxh3_128_hexdigest(b"sentencepiece" + model)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials."""
        return self._processor.encode(text)

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""
        return self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def id_of(self, special: str) -> int | None:
        """The id of a special token as it is spelled, None where there is none."""
        found = self._processor.piece_to_id(special)
        return found if self._processor.is_control(found) else None

    def word_starts(self) -> np.ndarray:
        """bool [V]: ids that begin a word, a space before it included."""
        sp = self._processor
        pieces = (sp.id_to_piece(i) for i in range(self.vocab_size))
        return np.array([piece.startswith("\u2581") for piece in pieces])

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0."""
        return np.array([self._bytes(i) for i in range(self.vocab_size)], np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        save_files(self, folder, self._model)

    @classmethod
    def from_file(cls, content: bytes) -> "SentencePieceTokenizer":
        """Of the content of the file that `save` wrote."""
        return cls(content)

    def seqio_vocabulary(self):
        """A seqio.SentencePieceVocabulary, one object a model."""
        return _sentencepiece_vocabulary(self._model)

    def _bytes(self, i: int) -> int:
        sp = self._processor
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i):
            return 0
        if sp.is_byte(i):
            return 1
        return len(sp.id_to_piece(i).replace("\u2581", " ").encode())


class CharacterTokenizer:
    """One id a character, in the order of code points.

    With specials, 0 is padding and 1 the end of a document; without, ids start at 0.
    """

    kind = "characters"
    file_name = "characters.json"

    def __init__(self, characters: str, specials: bool = False):
        """Takes the distinct characters, sorted."""
        if list(characters) != sorted(set(characters)):
            raise UserError("Characters of a vocabulary must be distinct and sorted.")
        self.characters = characters
        self.specials = specials
        self._offset = 2 if specials else 0
        self._ids = {c: i + self._offset for i, c in enumerate(characters)}
        self.vocab_size = len(characters) + self._offset
        self.pad_id = 0 if specials else None
        self.bos_id = None
        self.eos_id = 1 if specials else None
        self.digest = xxhash.xxh3_128_hexdigest(b"characters" + self._content())

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises UserError for a character never seen."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise UserError(
                f"The character {error.args[0]!r} is not among the "
                f"{len(self.characters)} of this vocabulary."
            ) from None

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""
        shifted = (int(i) - self._offset for i in ids)
        return "".join(
            self.characters[i] for i in shifted if 0 <= i < len(self.characters)
        )

    def id_of(self, special: str) -> None:
        """There are no specials but padding and end."""
        del special

    def word_starts(self) -> np.ndarray:
        """Raises UserError: characters don't say where words begin."""
        raise UserError("A vocabulary of characters does not say where words begin.")

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0."""
        sizes = [len(character.encode()) for character in self.characters]
        return np.array([0] * self._offset + sizes, np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "CharacterTokenizer":
        """Of the content of the file that `save` wrote."""
        fields = json.loads(content)
        return cls(str(fields["characters"]), bool(fields["specials"]))

    def seqio_vocabulary(self):
        """A seqio.Vocabulary; a character never seen becomes -1 in TensorFlow."""
        return _character_vocabulary_class()(self)

    def _content(self) -> bytes:
        fields = {"characters": self.characters, "specials": self.specials}
        return json.dumps(fields).encode()


class ByteTokenizer:
    """UTF-8 bytes as ByT5 has them: 0 padding, 1 end, 2 unknown, bytes from 3 on."""

    kind = "bytes"
    file_name = "bytes.json"

    def __init__(self, extra_ids: int = 0):
        """Takes the number of sentinel ids after the bytes."""
        self.extra_ids = extra_ids
        self.vocab_size = 259 + extra_ids
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
        """The id of <extra_id_i>, the first of which is the highest, as in ByT5."""
        for i in range(self.extra_ids):
            if special == f"<extra_id_{i}>":
                return self.vocab_size - 1 - i
        return None

    def word_starts(self) -> np.ndarray:
        """Raises UserError: bytes don't say where words begin."""
        raise UserError("A vocabulary of bytes does not say where words begin.")

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: 1 for each byte, 0 for specials."""
        return np.array([0] * 3 + [1] * 256 + [0] * self.extra_ids, np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "ByteTokenizer":
        """Of the content of the file that `save` wrote."""
        extra_ids = json.loads(content)["extra_ids"]
        if not isinstance(extra_ids, int) or not 0 <= extra_ids <= 100_000:
            raise UserError(f"extra_ids is {extra_ids!r}; expected 0 to 100000.")
        return cls(extra_ids)

    def seqio_vocabulary(self):
        """A seqio.ByteVocabulary."""
        return import_seqio().ByteVocabulary(self.extra_ids)

    def _content(self) -> bytes:
        return json.dumps({"extra_ids": self.extra_ids}).encode()


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
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{descriptor} is damaged: {error!r}.") from error
    if found != _FORMAT or kind not in _KINDS:
        raise UserError(
            f"{descriptor} has format {found!r} and kind {kind!r}; this fmjax reads "
            f"format {_FORMAT} and kinds {sorted(_KINDS)}."
        )
    # The file's name follows from the kind: a descriptor cannot point elsewhere.
    file = Path(folder) / _KINDS[kind].file_name
    try:
        tokenizer = _KINDS[kind].from_file(file.read_bytes())
    except (ValueError, KeyError, TypeError, OSError) as error:
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
    if isinstance(vocabulary, (_character_vocabulary_class(), vocabulary_class())):
        return vocabulary.tokenizer
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return SentencePieceTokenizer(vocabulary.sp_model)
    if isinstance(vocabulary, seqio.ByteVocabulary):
        return ByteTokenizer(vocabulary.extra_ids)
    raise UserError(
        f"A task's targets have a {type(vocabulary).__name__}; fmjax reads "
        "SentencePieceVocabulary and ByteVocabulary."
    )


def save_files(tokenizer: Tokenizer, folder: str | Path, content: bytes) -> None:
    """Writes a tokenizer's file and the descriptor that says what kind it is."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / tokenizer.file_name).write_bytes(content)
    fields = {
        "format": _FORMAT,
        "kind": tokenizer.kind,
        "file": tokenizer.file_name,
        "vocab_size": tokenizer.vocab_size,
        "digest": tokenizer.digest,
    }
    (folder / DESCRIPTOR).write_text(json.dumps(fields, indent=2) + "\n")


def _none_if_negative(i: int) -> int | None:
    return None if i < 0 else i


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


@functools.cache
def _character_vocabulary_class():
    seqio = import_seqio()
    import tensorflow as tf

    class CharacterVocabulary(seqio.Vocabulary):
        def __init__(self, tokenizer: CharacterTokenizer):
            super().__init__()
            self.tokenizer = tokenizer
            self._points = [ord(character) for character in tokenizer.characters]
            self._offset = 2 if tokenizer.specials else 0

        eos_id = property(lambda self: self.tokenizer.eos_id)
        bos_id = property(lambda self: None)
        unk_id = property(lambda self: None)
        _base_vocab_size = property(lambda self: self.tokenizer.vocab_size)

        def _encode(self, s):
            return self.tokenizer.encode(s)

        def _decode(self, ids):
            return self.tokenizer.decode(ids)

        def _encode_tf(self, s):
            points = tf.constant(self._points, tf.int32)
            found = tf.strings.unicode_decode(s, "UTF-8")
            ids = tf.minimum(tf.searchsorted(points, found), len(self._points) - 1)
            known = tf.equal(tf.gather(points, ids), found)
            return tf.where(known, ids + self._offset, -1)

        def _decode_tf(self, ids):
            points = tf.gather(tf.constant(self._points), ids - self._offset)
            return tf.strings.unicode_encode(points, "UTF-8")

        def __eq__(self, other):
            return (
                isinstance(other, CharacterVocabulary)
                and self.tokenizer.digest == other.tokenizer.digest
            )

        __hash__ = None

    return CharacterVocabulary
