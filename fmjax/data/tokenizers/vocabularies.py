"""Configurables of tokenizers: read from a file, or made from the text of a task."""

import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import sentencepiece as spm

from fmjax.configurable import configurable, path
from fmjax.data.folders import atomic_folder, digest_of, is_built, publish
from fmjax.data.sources.source import Document, Source
from fmjax.data.sources.text_files import TextFiles
from fmjax.data.tokenizers.special_names import names_above
from fmjax.data.tokenizers.special_pieces import with_specials
from fmjax.data.tokenizers.tokenizers import (
    DESCRIPTOR,
    ByteTokenizer,
    CharacterTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
)
from fmjax.errors import UserError, require
from fmjax.storage.paths import refuse_scheme

# SentencePiece silently ignores longer training lines.
_LINE_BYTES = 4096
# Minimum vocabulary: 256 bytes, padding, EOS, unknown, and some characters.
_MIN_PIECES = 300
Normalization = Literal["identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf"]


@configurable("sentencepiece")
@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model, read from a file or trained on the task's train split.

    Attributes:
      file: a trained `.model`; then `vocab_size`, `model_type`, `training_bytes` and
        `normalization` have no effect. Missing special tokens and sentinels are added
        after its pieces.
      vocab_size: number of ids of a trained model, with padding (0), EOS (1), unknown
        (2), 256 bytes, special tokens and sentinels.
      model_type: 'bpe' (trains ten times faster) or 'unigram'.
      training_bytes: bytes of text to train on, in lines spread evenly over the split.
      normalization: what a trained model does to text before it is divided: 'identity'
        leaves it as it is, 'nfkc' is Unicode's, 'nmt_nfkc' also makes one kind of
        space of line ends and tabs; with '_cf' at the end letters become lower case.
        All but 'identity' lose something, so that decoding gives the normalized text,
        and bits per byte are of that.
      specials: special tokens, such as '[MASK]'.
      sentinels: number of T5's sentinels <extra_id_0>, <extra_id_1>, …; the first has
        the highest id.
    """

    file: str | None = path(None)
    vocab_size: int = 8192
    model_type: Literal["bpe", "unigram"] = "bpe"
    training_bytes: int = 4_000_000
    normalization: Normalization = "identity"
    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        require(
            self,
            "vocab_size",
            self.vocab_size >= self.minimum,
            f"at least {self.minimum}, for 256 bytes, characters, special tokens and "
            "sentinels",
        )

    @property
    def minimum(self) -> int:
        """The minimum vocabulary size."""
        return _MIN_PIECES + len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Special tokens and sentinels, in the order of ids; see `names_above`."""
        return names_above(self.specials, self.sentinels, "sentencepiece")

    def cached_in(self, source: Source, root: Path) -> Path | None:
        """The folder of the trained model; None if `file` is bound."""
        if self.file is not None:
            return None
        key = dataclasses.asdict(self) | {"source": source.fingerprint("train")}
        return root / "tokenizers" / f"sentencepiece-{self.vocab_size}-{digest_of(key)}"

    def build(self, source: Source, root: Path) -> Tokenizer:
        """Reads the model, or trains it on first use.

        Raises:
          UserError: the file is missing or not a model, or the text is too small for
            `vocab_size`.
        """
        if self.file is not None:
            return _read_model(self.file, self.names)

        def train() -> Tokenizer:
            size = source.size("train") or sum(
                len(text) for _, text in source.documents("train")
            )
            model = _train_model(source.documents("train"), size, self)
            return SentencePieceTokenizer(model)

        return _built(self.cached_in(source, root), train)


@configurable("characters")
@dataclasses.dataclass(frozen=True)
class Characters:
    """The distinct characters of a task's text, of all splits, as in nanoGPT.

    Attributes:
      ends: whether to add padding (0) and EOS (1) before the characters.
      specials: special tokens after the characters, such as '[MASK]'.
      sentinels: number of T5's sentinels <extra_id_0>, <extra_id_1>, … at the end.
    """

    ends: bool = False
    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        names_above(self.specials, self.sentinels, "characters")

    def cached_in(self, source: Source, root: Path) -> Path:
        """The folder of the tokenizer."""
        key = [self.ends, *(source.fingerprint(split) for split in source.splits)]
        if names := names_above(self.specials, self.sentinels, "characters"):
            key.append(names)
        return root / "tokenizers" / f"characters-{digest_of(key)}"

    def build(self, source: Source, root: Path) -> Tokenizer:
        """Reads the tokenizer, or makes it on first use from all UTF-8 documents.

        Raises:
          UserError: there is no text.
        """

        def collect() -> Tokenizer:
            characters: set[str] = set()
            every = map(source.documents, source.splits)
            valid = _Valid(itertools.chain.from_iterable(every))
            for text in valid:
                characters.update(text)
            if not characters:
                raise UserError(f"@characters() found no text{valid.invalid}.")
            names = names_above(self.specials, self.sentinels, "characters")
            return CharacterTokenizer("".join(sorted(characters)), self.ends, names)

        return _built(self.cached_in(source, root), collect)


@configurable("bytes")
@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes with padding, EOS and unknown, as in ByT5: 259 ids, no training.

    Attributes:
      specials: special tokens after the bytes, such as '[MASK]'.
      sentinels: number of sentinels <extra_id_0>, <extra_id_1>, … at the end.
    """

    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        names_above(self.specials, self.sentinels, "bytes")

    def cached_in(self, source: Source, root: Path) -> None:
        """None, since nothing is cached."""

    def build(self, source: Source, root: Path) -> Tokenizer:
        """The byte tokenizer; it does not depend on the text."""
        del source, root
        return ByteTokenizer(names_above(self.specials, self.sentinels, "bytes"))


def train_sentencepiece(
    files: str | tuple[str, ...],
    vocab_size: int,
    out: str,
    *,
    model_type: Literal["bpe", "unigram"] = "bpe",
    training_bytes: int = 4_000_000,
    normalization: Normalization = "identity",
) -> Tokenizer:
    """Trains a SentencePiece model on text files and writes it to a file.

    Bind `sentencepiece.file` to use it, for instance in several tasks of a mixture.

    Args:
      files: paths, folders or globs, as in `text_files.files`.
      vocab_size: number of ids.
      out: the file to write.
      model_type: 'bpe' or 'unigram'.
      training_bytes: bytes of text to train on.
      normalization: see `SentencePiece`.

    Raises:
      UserError: there are no files, too little text for `vocab_size`, or `out` cannot
        be written.
    """
    refuse_scheme(out, "--out")
    settings = SentencePiece(
        vocab_size=vocab_size,
        model_type=model_type,
        training_bytes=training_bytes,
        normalization=normalization,
    )
    source = TextFiles(files=files, validation_fraction=0.0)
    model = _train_model(source.documents("train"), source.size("train"), settings)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_bytes(model)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error}") from error
    return SentencePieceTokenizer(model)


def trained_on(
    texts: Iterable[Document], size: int, settings: SentencePiece
) -> Tokenizer:
    """A SentencePiece tokenizer of texts in memory.

    Args:
      texts: names and texts in UTF-8.
      size: bytes of all of them.
      settings: its size and type, and how many bytes it is trained on.

    Raises:
      UserError: there is too little text for the vocabulary's size.
    """
    return SentencePieceTokenizer(_train_model(texts, size, settings))


def _train_model(
    texts: Iterable[Document], size: int, settings: SentencePiece
) -> bytes:
    """Trains a model with bytes for rare characters, lossless but for normalization."""
    valid = _Valid(texts)
    lines = _evenly(_lines(valid), min(1.0, settings.training_bytes / max(size, 1)))
    first = next(lines, None)
    if first is None:
        raise UserError(f"There is no text to train a tokenizer on{valid.invalid}.")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size - len(settings.names),
            byte_fallback=True,
            normalization_rule_name=settings.normalization,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2 * _LINE_BYTES,
            # seqio's convention for specials; no BOS, as in T5 and GPT-2.
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # It is stored in the model, so a fixed number keeps the digest constant.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _vocab_size_error(settings, error) from error
    return with_specials(model.getvalue(), settings.names)


def _vocab_size_error(settings: SentencePiece, error: RuntimeError) -> UserError:
    """The error for a text of which SentencePiece cannot make so many pieces."""
    found = re.search(r"Please set it to a value <= (\d+)", str(error))
    if found is None:
        return UserError(
            f"sentencepiece.vocab_size = {settings.vocab_size} does not fit the text "
            f"it is trained on: {error}"
        )
    maximum = int(found[1]) + len(settings.names)
    if maximum < settings.minimum:
        return UserError(
            f"sentencepiece.vocab_size = {settings.vocab_size}: the text is too small "
            "or too repetitive for SentencePiece. Bind the tokenizer to @characters() "
            "or @bytes(), as in text_task.tokenizer=@characters()."
        )
    return UserError(
        f"sentencepiece.vocab_size = {settings.vocab_size}: expected at most "
        f"{maximum}, the number of pieces that this text gives."
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_BYTES // 4):
                part = line[start : start + _LINE_BYTES // 4]
                if part.strip():
                    yield part


def _evenly(lines: Iterator[str], share: float) -> Iterator[str]:
    """Every (1 / share)-th line, so that the same text gives the same model."""
    due = 1.0
    for line in lines:
        if due >= 1:
            yield line
            due -= 1
        due += share


class _Valid:
    """Decodes the documents that are UTF-8; others count when a cache is built.

    Attributes:
      invalid: a clause for an error message with the first document that is not UTF-8.
    """

    def __init__(self, documents: Iterable[Document]):
        self._documents = documents
        self.invalid = ""

    def __iter__(self) -> Iterator[str]:
        for name, text in self._documents:
            try:
                yield text.decode()
            except UnicodeDecodeError:
                self.invalid = self.invalid or f": {name} is not UTF-8"


def _read_model(file: str, names: tuple[str, ...]) -> Tokenizer:
    try:
        model = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise UserError(
            f"sentencepiece.file = {file!r} cannot be read: {error}"
        ) from error
    try:
        return SentencePieceTokenizer(with_specials(model, names))
    except UserError as error:
        raise UserError(f"sentencepiece.file = {file!r}: {error}") from error


def _built(folder: Path, make) -> Tokenizer:
    """Loads the tokenizer of a folder; if it is missing, `make` builds it first."""
    if is_built(folder, DESCRIPTOR):
        publish(folder)
    else:
        with atomic_folder(folder) as temporary:
            make().save(temporary)
    return load_tokenizer(folder)
