"""Which vocabulary a task uses: read from a file, or made from the task's own text."""

import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece as spm

from fmjax.configurable import configurable, path
from fmjax.data.runtime.folders import atomic_folder, digest_of
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
from fmjax.errors import UserError, refuse_scheme, suggest

# SentencePiece leaves out longer training lines, silently.
_LINE_BYTES = 4096
# The smallest model: 256 bytes, padding, end, unknown, and some characters.
_LEAST_PIECES = 300


@configurable("sentencepiece")
@dataclasses.dataclass(frozen=True)
class SentencePiece:
    """A SentencePiece model; trained on the task's train split if no file is given.

    Attributes:
      file: a trained `.model`, whose own settings then hold; specials and sentinels
        that it lacks are put behind its pieces.
      vocab_size: ids of a trained model, with 0 padding, 1 end, 2 unknown, 256 bytes,
        specials and sentinels among them.
      model_type: 'bpe' (trains ten times faster) or 'unigram'.
      training_bytes: text to train on: lines spread evenly over the split.
      specials: tokens that stand for no text, such as '[MASK]'.
      sentinels: how many of <extra_id_0>, <extra_id_1>, … there are, the first of which
        has the highest id (T5).
    """

    file: str | None = path(None)
    vocab_size: int = 8192
    model_type: str = "bpe"
    training_bytes: int = 4_000_000
    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        if self.model_type not in ("bpe", "unigram"):
            raise UserError(
                f"sentencepiece.model_type is {self.model_type!r}; expected 'bpe' or "
                "'unigram'." + suggest(self.model_type, ("bpe", "unigram"))
            )
        if self.vocab_size < self.least:
            raise UserError(
                f"sentencepiece.vocab_size is {self.vocab_size}; expected at least "
                f"{self.least}: 256 bytes, specials, sentinels, and characters."
            )

    @property
    def least(self) -> int:
        """The smallest vocabulary there can be."""
        return _LEAST_PIECES + len(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Specials and sentinels, which have the highest ids; see `names_above`."""
        return names_above(self.specials, self.sentinels, "sentencepiece")

    def cached_in(self, source: Source, root: Path) -> Path | None:
        """Where the trained model is kept; None where a file is given."""
        if self.file is not None:
            return None
        key = dataclasses.asdict(self) | {"source": source.fingerprint("train")}
        return root / "tokenizers" / f"sentencepiece-{self.vocab_size}-{digest_of(key)}"

    def build(self, source: Source, root: Path) -> Tokenizer:
        """Reads the file, or trains on first use.

        Raises:
          UserError: the file is missing or no model, or the text is too small for
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
    """The distinct characters of the task's text, validation included, as nanoGPT does.

    Attributes:
      ends: add padding (0) and end of document (1) before the characters.
      specials: tokens that stand for no text, such as '[MASK]', behind them.
      sentinels: how many of <extra_id_0>, <extra_id_1>, … follow (T5).
    """

    ends: bool = False
    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        names_above(self.specials, self.sentinels, "characters")

    def cached_in(self, source: Source, root: Path) -> Path:
        """Where the list of characters is kept."""
        key = [self.ends, *(source.fingerprint(split) for split in source.splits)]
        if names := names_above(self.specials, self.sentinels, "characters"):
            key.append(names)
        return root / "tokenizers" / f"characters-{digest_of(key)}"

    def build(self, source: Source, root: Path) -> Tokenizer:
        """Reads the text on first use; documents that are not UTF-8 are left out.

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
                raise UserError(
                    f"There is no text to take the characters of{valid.instead}."
                )
            names = names_above(self.specials, self.sentinels, "characters")
            return CharacterTokenizer("".join(sorted(characters)), self.ends, names)

        return _built(self.cached_in(source, root), collect)


@configurable("bytes")
@dataclasses.dataclass(frozen=True)
class Bytes:
    """UTF-8 bytes with padding, end and unknown: 259 ids, nothing to train.

    Attributes:
      specials: tokens that stand for no text, such as '[MASK]', behind them.
      sentinels: how many of <extra_id_0>, <extra_id_1>, … follow (ByT5).
    """

    specials: tuple[str, ...] = ()
    sentinels: int = 0

    def __post_init__(self):
        names_above(self.specials, self.sentinels, "bytes")

    def cached_in(self, source: Source, root: Path) -> None:
        """None: nothing is cached."""

    def build(self, source: Source, root: Path) -> Tokenizer:
        """The byte tokenizer; the text is not read."""
        del source, root
        return ByteTokenizer(names_above(self.specials, self.sentinels, "bytes"))


def train_sentencepiece(
    files: str | tuple[str, ...],
    vocab_size: int,
    out: str,
    *,
    model_type: str = "bpe",
    training_bytes: int = 4_000_000,
) -> Tokenizer:
    """Trains a SentencePiece model on text files and writes it to the path `out`.

    Bind `sentencepiece.file` to `out` to use it, for instance in several tasks of a
    mixture.

    Raises:
      UserError: no files, too little text for `vocab_size`, or `out` is not writable.
    """
    refuse_scheme(out, "the tokenizer's file")
    settings = SentencePiece(
        vocab_size=vocab_size, model_type=model_type, training_bytes=training_bytes
    )
    source = TextFiles(files=files, validation_fraction=0.0)
    model = _train_model(source.documents("train"), source.size("train"), settings)
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        Path(out).write_bytes(model)
    except OSError as error:
        raise UserError(f"Cannot write the tokenizer to {out}: {error}") from error
    return SentencePieceTokenizer(model)


def _train_model(
    texts: Iterable[Document], size: int, settings: SentencePiece
) -> bytes:
    """Trains a model that decodes to exactly what it encoded.

    Newlines, tabs and rare characters are spelled in bytes; nothing is normalized.
    """
    valid = _Valid(texts)
    lines = _evenly(_lines(valid), min(1.0, settings.training_bytes / max(size, 1)))
    first = next(lines, None)
    if first is None:
        raise UserError(f"There is no text to train a tokenizer on{valid.instead}.")
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], lines),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size - len(settings.names),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2 * _LINE_BYTES,
            # seqio's convention for specials; no BOS, as in T5 and GPT-2.
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            # Written into the model, so a fixed number keeps its digest the same.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _misfit(settings, error) from error
    return with_specials(model.getvalue(), settings.names)


def _misfit(settings: SentencePiece, error: RuntimeError) -> UserError:
    """What to do where SentencePiece cannot make so many pieces of a text."""
    found = re.search(r"Please set it to a value <= (\d+)", str(error))
    if found is None:
        return UserError(
            f"sentencepiece.vocab_size = {settings.vocab_size} does not fit the text "
            f"it is trained on: {error}"
        )
    most = int(found[1]) + len(settings.names)
    if most < settings.least:
        return UserError(
            f"sentencepiece.vocab_size = {settings.vocab_size}: the text is too small "
            "or too repetitive for SentencePiece. Bind the tokenizer to @characters() "
            "or @bytes(), as in text_task.tokenizer=@characters()."
        )
    return UserError(
        f"sentencepiece.vocab_size = {settings.vocab_size} is more than the text "
        f"gives pieces for; expected at most {most}."
    )


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LINE_BYTES // 4):
                part = line[start : start + _LINE_BYTES // 4]
                if part.strip():
                    yield part


def _evenly(lines: Iterator[str], share: float) -> Iterator[str]:
    """Every 1/share-th line, by counting: the same text gives the same model."""
    due = 1.0
    for line in lines:
        if due >= 1:
            yield line
            due -= 1
        due += share


class _Valid:
    """The documents that are UTF-8, decoded; building a cache counts the others.

    Attributes:
      instead: a clause for an error message: the first that is not UTF-8.
    """

    def __init__(self, documents: Iterable[Document]):
        self._documents = documents
        self.instead = ""

    def __iter__(self) -> Iterator[str]:
        for name, text in self._documents:
            try:
                yield text.decode()
            except UnicodeDecodeError:
                self.instead = self.instead or f": {name} is not UTF-8"


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
    """Loads the tokenizer of a folder, making it first if need be."""
    if not (folder / DESCRIPTOR).is_file():
        with atomic_folder(folder) as temporary:
            make().save(temporary)
    return load_tokenizer(folder)
