"""The configurable `saved_tokenizer`: that of a run or of a Hugging Face folder."""

import dataclasses
from pathlib import Path

from fmjax.configurable import configurable, path
from fmjax.data.sources.source import Source
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import DESCRIPTOR, Tokenizer, load_tokenizer
from fmjax.errors import UserError


@configurable("saved_tokenizer")
@dataclasses.dataclass(frozen=True)
class SavedTokenizer:
    """The tokenizer of a run, trained or imported, or of a Hugging Face folder.

    Attributes:
      folder: a run directory, a folder with a tokenizer of fmjax, or a folder with
        tokenizer.json, vocab.txt, merges.txt or a SentencePiece model.
    """

    folder: str = path()

    def cached_in(self, source: Source, root: Path) -> None:
        """None, since nothing is cached."""

    def build(self, source: Source, root: Path) -> Tokenizer:
        """Reads the tokenizer.

        Raises:
          UserError: the folder has no supported tokenizer.
        """
        del source, root
        folder = Path(self.folder).expanduser()
        for place in (folder, folder / "tokenizer"):
            if (place / DESCRIPTOR).is_file():
                return load_tokenizer(place)
        tokenizer = (
            HuggingFaceTokenizer.from_folder(folder) if folder.is_dir() else None
        )
        if tokenizer is None:
            raise UserError(
                f"saved_tokenizer.folder = {self.folder!r} has no tokenizer; expected "
                f"a run directory, or a folder with {DESCRIPTOR} or with tokenizer "
                "files of Hugging Face."
            )
        return tokenizer
