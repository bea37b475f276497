"""The configurable `token_ids`: a vocabulary of which only the ids are known."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable
from fmjax.data.sources.source import Source
from fmjax.data.tokenizers.id_tokenizer import IdTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import require


@configurable("token_ids")
@dataclasses.dataclass(frozen=True)
class TokenIds:
    """A vocabulary of which only the size is known, for files of ids.

    Prompts and generated texts are ids in decimal, with spaces between them.

    Attributes:
      vocab_size: number of ids; all must be below.
      eos_id: id at the ends of documents; None if there is none.
      bos_id: id at the starts of documents, which are read without it and get it from
        the layout of rows; None if there is none.
    """

    vocab_size: int
    eos_id: int | None = None
    bos_id: int | None = None

    def __post_init__(self):
        require(self, "vocab_size", self.vocab_size >= 1, "at least 1")
        for name in ("eos_id", "bos_id"):
            value = getattr(self, name)
            valid = value is None or 0 <= value < self.vocab_size
            require(self, name, valid, "None, or an id below token_ids.vocab_size")

    def cached_in(self, source: Source, root: Path) -> None:
        """None, since nothing is cached."""

    def build(self, source: Source, root: Path) -> Tokenizer:
        """The vocabulary; it does not depend on the text."""
        del source, root
        return IdTokenizer(self.vocab_size, self.bos_id, self.eos_id)
