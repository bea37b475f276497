"""The vocabulary of which only the ids are known."""

import json
from pathlib import Path

import numpy as np
import xxhash

from fmjax.data.seqio_import import import_seqio
from fmjax.data.tokenizers.tokenizer_files import save_files
from fmjax.errors import UserError


class IdTokenizer:
    """Ids without texts: a text of it is ids in decimal, with spaces between them.

    Attributes: as of `Tokenizer`; there is no padding, and bytes of text are not known.
    """

    chat_template: str | None = None
    kind = "ids"
    file_name = "ids.json"

    def __init__(self, vocab_size: int, bos_id: int | None, eos_id: int | None):
        """Remembers the ids.

        Args:
          vocab_size: V, number of ids.
          bos_id: id at the start of every document, or None.
          eos_id: id at the end of every document, or None.
        """
        self.vocab_size, self.bos_id, self.eos_id = vocab_size, bos_id, eos_id
        self.pad_id = None
        self.digest = xxhash.xxh3_128_hexdigest(b"ids" + self._content())

    def encode(self, text: str) -> list[int]:
        """The ids that a text such as "17 4 0" lists.

        Raises:
          UserError: it has something else, or ids outside of the vocabulary.
        """
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            ids = [-1]
        if not all(0 <= i < self.vocab_size for i in ids):
            raise UserError(
                f"{text!r:.50}: the vocabulary has ids without texts; expected ids "
                f"below {self.vocab_size} with spaces between them, such as '17 4 0'."
            )
        return ids

    def decode(self, ids) -> str:
        """The ids in decimal; BOS, EOS and ids outside the vocabulary are skipped."""
        ends = (self.bos_id, self.eos_id)
        known = (int(i) for i in ids if 0 <= i < self.vocab_size and i not in ends)
        return " ".join(map(str, known))

    def id_of(self, special: str) -> None:
        """None: special tokens are not known."""

    def word_starts(self) -> np.ndarray:
        """Raises a UserError: it is not known where words begin."""
        raise UserError(
            "@token_ids() does not tell where words begin; expected @sentencepiece() "
            "or a Hugging Face tokenizer."
        )

    def token_bytes(self) -> np.ndarray:
        """Zeros int32 [V]: bytes of text are not known."""
        return np.zeros(self.vocab_size, np.int32)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and `ids.json`."""
        save_files(self, folder, self._content())

    @classmethod
    def from_file(cls, content: bytes) -> "IdTokenizer":
        """Reads the content of a file that `save` wrote."""
        fields = json.loads(content)
        names = ("vocab_size", "bos_id", "eos_id")
        size, *ends = (fields[name] for name in names)
        if type(size) is not int or not all(
            end is None or (type(end) is int and 0 <= end < size) for end in ends
        ):
            raise UserError(f"{fields!r:.200}: expected {', '.join(names)}.")
        return cls(size, *ends)

    def seqio_vocabulary(self):
        """A seqio.PassThroughVocabulary."""
        return import_seqio().PassThroughVocabulary(self.vocab_size, self.eos_id)

    def _content(self) -> bytes:
        ends = {"bos_id": self.bos_id, "eos_id": self.eos_id}
        return json.dumps({"vocab_size": self.vocab_size} | ends).encode()
