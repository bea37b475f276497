"""The tokenizer of a Hugging Face folder, read from the files saved with a model."""

import base64
import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.huggingface.definitions import DefinedTokenizer
from fmjax.data.tokenizers.huggingface.families import NAMES, UNIGRAMS
from fmjax.data.tokenizers.huggingface.files import (
    MOST_IDS,
    TARGET,
    TOKENIZER,
    TokenizerFiles,
)
from fmjax.data.tokenizers.huggingface.sentencepiece import PieceTokenizer
from fmjax.data.tokenizers.huggingface.vocabulary import vocabulary_class
from fmjax.data.tokenizers.tokenizer_files import save_files
from fmjax.errors import UserError, suggest

_SIDES = ("source", "target")
# (add_bos_token, add_eos_token) → templates of one text and of two.
_ADDED_ENDS = {
    (False, False): ("A", "A B1"),
    (True, False): ("bos A", "bos A bos1 B1"),
    (False, True): ("A eos", "A eos B1 eos1"),
    (True, True): ("bos A eos", "bos A eos bos1 B1 eos1"),
}


class HuggingFaceTokenizer:
    """A tokenizer saved by transformers: tokenizer.json or the older file formats.

    The older formats are WordPiece's vocab.txt, byte-level BPE's vocab.json and
    merges.txt, SentencePiece models, and Marian's two SentencePiece models. Special
    tokens are read from tokenizer_config.json, special_tokens_map.json and
    added_tokens.json. No code of the folder is run.

    `bos_id` is the token that the tokenizer puts before a text, not the one that a
    config names: GPT-2 names a BOS that is not at the start of documents.

    Attributes:
      files: maps the names of the files to their contents, for exports.
      chat_template: a template in place of that of the files; None for theirs.
    """

    chat_template: str | None = None
    kind = "hugging_face"
    file_name = "hugging_face.json"

    def __init__(
        self,
        files: Mapping[str, bytes],
        model: Mapping[str, object] | None = None,
        side: str = "source",
    ):
        """Reads the tokenizer's files.

        Args:
          files: maps names to contents.
          model: `model_type` and the ids of bos, eos and pad from config.json, for
            tokenizers whose files do not define class or special tokens.
          side: 'source' or 'target' language; matters for Marian only.

        Raises:
          UserError: the files do not define a supported tokenizer.
        """
        self.files = dict(files)
        self._model = dict(model or {})
        self._side = side
        with _refused():
            self._read(TokenizerFiles(self.files, self._model))
        self.digest = xxhash.xxh3_128_hexdigest(b"hugging_face" + self._content())

    @classmethod
    def from_folder(cls, folder: Path) -> "HuggingFaceTokenizer | None":
        """Reads a folder that transformers saved; None if it has no tokenizer.

        Raises:
          UserError: the tokenizer has a class or option that is not supported.
        """
        try:
            files = TokenizerFiles.read(folder)
            return None if files is None else cls(files.contents, files.model)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @functools.cached_property
    def target(self) -> "HuggingFaceTokenizer":
        """The tokenizer of the decoder's texts: Marian's second model, else itself."""
        if TARGET not in self.files or self._side == "target":
            return self
        return HuggingFaceTokenizer(self.files, self._model, side="target")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it; see `wrap`."""
        return self._tokenizer.encode(text)

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text without special tokens around it, and start and end of each.

        Raises:
          UserError: it is not known which characters tokens stand for.
        """
        return self._tokenizer.encode_with_offsets(text)

    @property
    def added_ids(self) -> set[int]:
        """Ids of tokens that are matched before a text is cut, special or not."""
        return self._tokenizer.added_ids

    def piece(self, i: int) -> str:
        """The token of an id as the vocabulary writes it; "" if there is none."""
        return self._pieces.get(i, "")

    @functools.cached_property
    def _pieces(self) -> dict[int, str]:
        return {i: piece for piece, i in self._tokenizer.ids.items()}

    def decode(self, ids) -> str:
        """Text of ids; special tokens and ids outside the vocabulary are skipped."""
        return self._tokenizer.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def wrap(
        self, first: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Adds the special tokens that the model expects around one or two texts.

        BERT: [CLS] first [SEP] second [SEP]; T5: </s> after each text; GPT-2: none.

        Returns:
          The ids, and the token type of each (for BERT and DeBERTa 1 in the second
          text).
        """
        if second is None:
            return special_template.fill(self._single, [first])
        return special_template.fill(self._pair, [first, second])

    def special_tokens(self) -> dict[str, str]:
        """The special tokens by transformers' names, such as "bos_token"."""
        return {f"{name}_token": token for name, token in self._names.items()}

    def template(self, texts: int) -> tuple[special_template.Slot, ...]:
        """The special tokens that the model expects around one text or two."""
        return tuple(self._single if texts == 1 else self._pair)

    def special_id(self, name: str) -> int | None:
        """The id of a special token by its name; None if there is none.

        Args:
          name: 'bos', 'eos', 'unk', 'sep', 'pad', 'cls' or 'mask'.

        Raises:
          UserError: the name is another one.
        """
        if name not in NAMES:
            raise UserError(
                f"There is no special token {name!r}; expected one of "
                f"{', '.join(NAMES)}.{suggest(name, NAMES)}"
            )
        return self._tokenizer.ids.get(self._names.get(name))

    def id_of(self, special: str) -> int | None:
        """The id of a special token such as "[MASK]"; None if there is none."""
        found = self._tokenizer.ids.get(special)
        return found if found in self._tokenizer.special_ids else None

    def word_starts(self) -> np.ndarray:
        """Whether each id begins a word (with the white space before it), bool [V].

        Raises:
          UserError: the vocabulary does not mark word starts.
        """
        return self._tokenizer.word_starts(self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens.

        A word of WordPiece includes the space before it.

        Raises:
          UserError: the decoder's type is not supported.
        """
        return self._tokenizer.token_bytes(self.vocab_size)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and `hugging_face.json`."""
        save_files(self, folder, self._content())

    def save_original(self, folder: str | Path) -> None:
        """Writes the original files."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    @classmethod
    def from_file(cls, content: bytes) -> "HuggingFaceTokenizer":
        """Reads the content of a file that `save` wrote."""
        fields = json.loads(content)
        if fields["side"] not in _SIDES:
            raise UserError(f"side = {fields['side']!r}: expected one of {_SIDES}.")
        files = {}
        for name, (encoding, text) in fields["files"].items():
            plain = encoding == "text"
            files[name] = text.encode() if plain else base64.b64decode(text)
        return cls(files, fields["model"], fields["side"])

    def seqio_vocabulary(self):
        """A seqio.Vocabulary with the same ids."""
        return vocabulary_class()(self)

    def _read(self, described: TokenizerFiles) -> None:
        described.require("split_special_tokens", False)
        if TOKENIZER in self.files or described.family.vocabulary in (
            "wordpiece",
            "byte_level",
            "qwen2",
            "clip",
            *UNIGRAMS,
        ):
            self._tokenizer = DefinedTokenizer(described)
        else:
            self._tokenizer = PieceTokenizer(described, self._side)
        ids = self._tokenizer.ids.values()
        self.vocab_size = max(ids, default=-1) + 1
        if min(ids, default=0) < 0 or self.vocab_size > MOST_IDS:
            raise UserError(
                f"The vocabulary has ids from {min(ids)} to {max(ids)}; expected ids "
                f"from 0 to {MOST_IDS - 1}."
            )
        self._names = described.names()
        self._single, self._pair = self._templates(described)
        first, last = self._single[0], self._single[-1]
        self.bos_id = first.special
        self.pad_id = self._named_or_of_model("pad")
        self.eos_id = self.special_id("eos")
        if self.eos_id is None:
            self.eos_id = last.special
        if self.eos_id is None:
            self.eos_id = self._named_or_of_model("eos")

    def _content(self) -> bytes:
        files = {name: _printable(content) for name, content in self.files.items()}
        fields = {"files": files, "model": self._model, "side": self._side}
        return json.dumps(fields, sort_keys=True).encode()

    def _templates(self, files: TokenizerFiles):
        """Templates of the special tokens around one text and around two."""
        flags = [files.flag(f"add_{name}_token", None) for name in ("bos", "eos")]
        if flags != [None, None]:
            bos, eos = flags
            if bos is None:
                # The default of the class: Llama's adds BOS.
                bos = files.family.single.startswith("bos")
            templates = _ADDED_ENDS[bos, bool(eos)]
        elif self._tokenizer.template is not None:
            return self._tokenizer.template
        else:
            templates = files.family.single, files.family.pair
        language = files.language() if files.family.languages else None

        def named(name: str) -> int | None:
            if name == "lang":
                return self._tokenizer.ids.get(language)
            return self.special_id(name)

        return [special_template.parse(t, named) for t in templates]

    def _named_or_of_model(self, name: str) -> int | None:
        found = self.special_id(name)
        if found is None:
            found = self._model.get(f"{name}_token_id")
        # Instruction-tuned models list several ends; the first is the tokenizer's.
        found = found[0] if isinstance(found, list) and found else found
        return found if type(found) is int and 0 <= found < MOST_IDS else None


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Turns exceptions that libraries raise for invalid files into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # Panics of `tokenizers` are not Exceptions.
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise UserError(
            "The files do not define a valid tokenizer: "
            f"{type(error).__name__}: {error!s:.200}"
        ) from error


def _printable(content: bytes) -> tuple[str, str]:
    try:
        return "text", content.decode("utf-8")
    except UnicodeDecodeError:
        return "base64", base64.b64encode(content).decode()
