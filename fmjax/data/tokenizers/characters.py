"""The character tokenizer (nanoGPT's for tinyshakespeare)."""

import functools
import json
from pathlib import Path

import numpy as np
import xxhash

from fmjax.data.seqio_import import import_seqio
from fmjax.data.tokenizers.tokenizer_files import save_files
from fmjax.errors import UserError


class CharacterTokenizer:
    """A tokenizer with one id for each character, in the order of code points.

    If `ends` is True, 0 is padding and 1 is EOS, and characters follow. Special tokens
    come after the characters.
    """

    chat_template: str | None = None
    kind = "characters"
    file_name = "characters.json"

    def __init__(
        self, characters: str, ends: bool = False, names: tuple[str, ...] = ()
    ):
        """Builds the vocabulary.

        Args:
          characters: distinct characters, sorted.
          ends: whether to add padding and EOS.
          names: special tokens, from `names_above`.

        Raises:
          UserError: the characters are not distinct and sorted.
        """
        if list(characters) != sorted(set(characters)):
            raise UserError(
                "The characters of a vocabulary are not distinct and sorted."
            )
        self.characters = characters
        self.ends, self.names = ends, names
        self.offset = 2 if ends else 0
        self._ids = {c: i + self.offset for i, c in enumerate(characters)}
        first = len(characters) + self.offset
        self._special_ids = {name: i for i, name in enumerate(names, first)}
        self.vocab_size = first + len(names)
        self.pad_id = 0 if ends else None
        self.bos_id = None
        self.eos_id = 1 if ends else None
        self.digest = xxhash.xxh3_128_hexdigest(b"characters" + self._content())

    def encode(self, text: str) -> list[int]:
        """Ids of a text; raises a UserError for an unknown character."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise UserError(
                f"The character {error.args[0]!r} is not one of the "
                f"{len(self.characters)} characters of this vocabulary."
            ) from None

    def decode(self, ids) -> str:
        """Text of ids; special tokens and ids outside the vocabulary are skipped."""
        shifted = (int(i) - self.offset for i in ids)
        return "".join(
            self.characters[i] for i in shifted if 0 <= i < len(self.characters)
        )

    def id_of(self, special: str) -> int | None:
        """The id of a special token such as "[MASK]"; None if there is none."""
        return self._special_ids.get(special)

    def word_starts(self) -> np.ndarray:
        """Raises a UserError: a character does not show whether it begins a word."""
        raise UserError(
            "@characters() does not mark where words begin; expected @sentencepiece() "
            "or a Hugging Face tokenizer."
        )

    def token_bytes(self) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens."""
        sizes = [len(character.encode()) for character in self.characters]
        specials = [0] * len(self.names)
        return np.array([0] * self.offset + sizes + specials, np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and `characters.json`."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "CharacterTokenizer":
        """Reads the content of a file that `save` wrote."""
        fields = json.loads(content)
        names = tuple(map(str, fields.get("names", ())))
        return cls(str(fields["characters"]), bool(fields["specials"]), names)

    def seqio_vocabulary(self):
        """A seqio.Vocabulary; in TensorFlow an unknown character becomes -1."""
        return character_vocabulary_class()(self)

    def _content(self) -> bytes:
        fields = {"characters": self.characters, "specials": self.ends}
        if self.names:
            fields["names"] = self.names
        return json.dumps(fields).encode()


@functools.cache
def character_vocabulary_class():
    """The class of seqio vocabularies, defined here because seqio loads slowly."""
    seqio = import_seqio()
    import tensorflow as tf

    class CharacterVocabulary(seqio.Vocabulary):
        def __init__(self, tokenizer: CharacterTokenizer):
            super().__init__()
            self.tokenizer = tokenizer
            self._points = [ord(character) for character in tokenizer.characters]
            self._offset = tokenizer.offset

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
