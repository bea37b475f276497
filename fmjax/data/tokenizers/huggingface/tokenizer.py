"""Hugging Face's tokenizers, each described whole by the files saved with a model."""

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
from fmjax.data.tokenizers.huggingface.families import NAMES
from fmjax.data.tokenizers.huggingface.files import (
    MOST_IDS,
    TARGET,
    TOKENIZER,
    TokenizerFiles,
)
from fmjax.data.tokenizers.huggingface.sentencepiece import PieceTokenizer
from fmjax.data.tokenizers.huggingface.vocabulary import vocabulary_class
from fmjax.errors import UserError, suggest

_SIDES = ("source", "target")
# What `add_bos_token` and `add_eos_token` put around a text, and around two.
_ADDED_ENDS = {
    (False, False): ("A", "A B1"),
    (True, False): ("bos A", "bos A bos1 B1"),
    (False, True): ("A eos", "A eos B1 eos1"),
    (True, True): ("bos A eos", "bos A eos bos1 B1 eos1"),
}


class HuggingFaceTokenizer:
    """A tokenizer as transformers saved it: tokenizer.json, or the older files.

    Read are WordPiece's vocab.txt, byte-level BPE's vocab.json and merges.txt,
    SentencePiece models and Marian's pair of them; specials are those that
    tokenizer_config.json, special_tokens_map.json and added_tokens.json name. None
    of the folder's code is run.

    Its bos_id is what the tokenizer itself puts in front of a text, not what some
    config calls so: GPT-2 has a BOS by name that no document began with.

    Attributes:
      files: the files that it was read from, by name, for a model's export.
    """

    kind = "hugging_face"
    file_name = "hugging_face.json"

    def __init__(
        self,
        files: Mapping[str, bytes],
        model: Mapping[str, object] | None = None,
        side: str = "source",
    ):
        """Takes the tokenizer's files.

        Args:
          files: their contents by name.
          model: of config.json, `model_type` and the ids of bos, eos and pad, which
            tokenizers that name no class or special need.
          side: 'source' or 'target': in Marian's models each language has its own
            pieces.

        Raises:
          UserError: the files do not describe a tokenizer that can be read here.
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
          UserError: it has one of a kind, or with an option, that is not known here.
        """
        try:
            files = TokenizerFiles.read(folder)
            return None if files is None else cls(files.contents, files.model)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @functools.cached_property
    def target(self) -> "HuggingFaceTokenizer":
        """For a decoder's texts: of Marian's two models the second, else itself."""
        if TARGET not in self.files or self._side == "target":
            return self
        return HuggingFaceTokenizer(self.files, self._model, side="target")

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials around it; see `wrap`."""
        return self._tokenizer.encode(text)

    def decode(self, ids) -> str:
        """Text of ids; specials and ids past the vocabulary stand for nothing."""
        return self._tokenizer.decode([int(i) for i in ids if 0 <= i < self.vocab_size])

    def wrap(
        self, first: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """One or two encoded texts with the specials that the model expects.

        BERT gets [CLS] first [SEP] second [SEP], T5 a </s> behind each, GPT-2 nothing.

        Returns:
          The ids, and the token type of each: of BERT's and DeBERTa's 1 for the second
          text.
        """
        if second is None:
            return special_template.fill(self._single, [first])
        return special_template.fill(self._pair, [first, second])

    def special_id(self, name: str) -> int | None:
        """The id of 'bos', 'eos', 'unk', 'sep', 'pad', 'cls' or 'mask'; None without.

        Raises:
          UserError: for another name.
        """
        if name not in NAMES:
            raise UserError(
                f"No special is called {name!r}; expected one of {', '.join(NAMES)}."
                f"{suggest(name, NAMES)}"
            )
        return self._tokenizer.ids.get(self._names.get(name))

    def id_of(self, special: str) -> int | None:
        """The id of a special token as it is spelled, None where there is none."""
        found = self._tokenizer.ids.get(special)
        return found if found in self._tokenizer.special_ids else None

    def word_starts(self) -> np.ndarray:
        """bool [V]: ids that begin a word, white space before it included.

        Raises:
          UserError: for pieces whose marks tell something else, or that have none.
        """
        return self._tokenizer.word_starts(self.vocab_size)

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0.

        WordPiece's words count the space before them.

        Raises:
          UserError: for pieces that are neither bytes nor text with a mark for spaces.
        """
        return self._tokenizer.token_bytes(self.vocab_size)

    def save(self, folder: str | Path) -> None:
        """Writes `fmjax_tokenizer.json` and the file it names."""
        from fmjax.data.tokenizers.tokenizers import (
            save_files,  # which imports this module
        )

        save_files(self, folder, self._content())

    def save_original(self, folder: str | Path) -> None:
        """Writes the files that this was read from, as they were."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    @classmethod
    def from_file(cls, content: bytes) -> "HuggingFaceTokenizer":
        """Reads the bytes of the file that `save` wrote."""
        fields = json.loads(content)
        if fields["side"] not in _SIDES:
            raise UserError(f"side is {fields['side']!r}; expected one of {_SIDES}.")
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
        ):
            self._tokenizer = DefinedTokenizer(described)
        else:
            self._tokenizer = PieceTokenizer(described, self._side)
        ids = self._tokenizer.ids.values()
        self.vocab_size = max(ids, default=-1) + 1
        if min(ids, default=0) < 0 or self.vocab_size > MOST_IDS:
            raise UserError(
                f"The vocabulary has ids from {min(ids)} to {max(ids)}; expected 0 to "
                f"{MOST_IDS - 1}."
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
        """The specials around one text, and around two."""
        flags = [files.flag(f"add_{name}_token", None) for name in ("bos", "eos")]
        if flags != [None, None]:
            bos, eos = flags
            if bos is None:
                # The class's own: Llama's puts BOS in front unless told not to.
                bos = files.family.single.startswith("bos")
            templates = _ADDED_ENDS[bos, bool(eos)]
        elif self._tokenizer.template is not None:
            return self._tokenizer.template
        else:
            templates = files.family.single, files.family.pair
        return [special_template.parse(t, self.special_id) for t in templates]

    def _named_or_of_model(self, name: str) -> int | None:
        found = self.special_id(name)
        if found is None:
            found = self._model.get(f"{name}_token_id")
        # Instruction-tuned models list several ends; the tokenizer's own was not named.
        found = found[0] if isinstance(found, list) and found else found
        return found if type(found) is int and 0 <= found < MOST_IDS else None


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Inside, whatever files that are no tokenizer make the libraries raise."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:  # what `tokenizers` panics with is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise
        raise UserError(
            f"The files describe no tokenizer: {type(error).__name__}: {error!s:.200}"
        ) from error


def _printable(content: bytes) -> tuple[str, str]:
    try:
        return "text", content.decode("utf-8")
    except UnicodeDecodeError:
        return "base64", base64.b64encode(content).decode()
