"""Tokenizers run by the package `tokenizers`: tokenizer.json and older formats."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from fmjax.data.tokenizers import word_starts
from fmjax.data.tokenizers.huggingface import unigram
from fmjax.data.tokenizers.huggingface.families import UNIGRAMS
from fmjax.data.tokenizers.huggingface.files import (
    BPE,
    MERGES,
    TOKENIZER,
    WORDPIECE,
    TokenizerFiles,
)
from fmjax.data.tokenizers.special_template import Slot, of_encoding
from fmjax.errors import UserError

# A byte piece of vocabularies with byte fallback, such as Llama 2's.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

# CLIP's pre-tokenization of lower-case text: digits are separate, spaces are dropped,
# and the last piece of a word ends in a mark.
_CLIP_WORDS = (
    r"<\|(?:startof|endof)text\|>|'(?:[stmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_CLIP_END = "</w>"

# Qwen 2's pre-tokenization, from GPT-4's: digits are separate.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class DefinedTokenizer:
    """A tokenizer.json, or WordPiece, byte-level BPE, unigram in older file formats.

    Attributes:
      ids: maps every token, with special and added tokens, to its id.
      special_ids: ids of the special tokens.
      added_ids: ids of tokens that are matched before a text is cut, special or not.
      template: special tokens around one text and around two; None if the files do not
        define them.
    """

    def __init__(self, files: TokenizerFiles):
        """Builds the tokenizer.

        Raises:
          UserError: a file is invalid or has an option that is not supported.
        """
        if TOKENIZER in files.contents:
            self._tokenizer = _parsed(files)
            known = self._tokenizer.get_vocab()
            self._add(
                [
                    (i, token)
                    for i, token in files.added(known).items()
                    if token.content not in known
                ]
            )
        else:
            matched: list[AddedToken] = []
            if files.family.vocabulary == "wordpiece":
                self._tokenizer = _wordpiece(files)
            elif files.family.vocabulary in UNIGRAMS:
                self._tokenizer, matched = unigram.read(files)
            else:
                self._tokenizer = _byte_level(files)
            known = self._tokenizer.get_vocab()
            self._add(list(files.added(known, matched).items()))
        self.ids = self._tokenizer.get_vocab()
        self._end = getattr(self._tokenizer.model, "end_of_word_suffix", None) or ""
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {i for i, token in added.items() if token.special}
        self.added_ids = set(added)
        self.template = self._template() if TOKENIZER in files.contents else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it.

        Raises:
          UserError: the text has an unknown token, and the vocabulary no id for it.
        """
        return self._encoding(text).ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and start and end of each in characters.

        Raises:
          UserError: as of `encode`.
        """
        encoding = self._encoding(text)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are skipped."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        # The byte-level decoder does not replace the mark of a word's end.
        return text.replace(self._end, " ").strip() if self._end else text

    def token_bytes(self, size: int) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens.

        Args:
          size: V.

        Raises:
          UserError: the decoder's type is not supported.
        """
        kinds = self._decoder_parts()
        types = {part.get("type") for part in kinds}
        if not types & {"ByteLevel", "Metaspace", "ByteFallback", "WordPiece"}:
            raise UserError(
                "tokenizer.json: the bytes of a token are not known for the decoders "
                f"{sorted(map(str, types))}; expected ByteLevel, Metaspace, "
                "ByteFallback or WordPiece."
            )
        prefix = next(
            (k["prefix"] for k in kinds if k.get("type") == "WordPiece"), None
        )
        sizes = np.zeros(size, np.int32)
        added = self._tokenizer.get_added_tokens_decoder()
        for piece, i in self.ids.items():
            if i in self.special_ids:
                continue
            if i in added:
                sizes[i] = len(piece.encode())
            elif "ByteLevel" in types:
                # One character for each byte, and a space after the end of a word.
                whole = piece.removesuffix(self._end)
                sizes[i] = len(whole) + (whole != piece)
            elif _BYTE.fullmatch(piece):
                sizes[i] = 1
            elif prefix is None:
                sizes[i] = len(piece.replace("\u2581", " ").encode())
            elif piece.startswith(prefix):
                sizes[i] = len(piece.removeprefix(prefix).encode())
            else:
                sizes[i] = 1 + len(piece.encode())  # the space before a word
        return sizes

    def word_starts(self, size: int) -> np.ndarray:
        """Whether each id begins a word (with the white space before it), bool [V].

        Model and decoder show how word starts are marked. The tokens alone do not: BPE
        may have learned '##' from Markdown.

        Args:
          size: V.

        Raises:
          UserError: the vocabulary does not mark word starts.
        """
        if self._end:
            raise UserError(
                f"tokenizer.json marks the ends of words with {self._end!r}, so it is "
                "not known where words begin."
            )
        prefix = getattr(self._tokenizer.model, "continuing_subword_prefix", None)
        types = {part.get("type") for part in self._decoder_parts()}
        if prefix:
            begins = word_starts.unless_marked(prefix)
        elif "ByteLevel" in types:
            begins = word_starts.in_bytes
        elif types & {"Metaspace", "ByteFallback"}:
            begins = word_starts.in_pieces
        else:
            raise UserError(
                "tokenizer.json: it is not known where words begin for the decoders "
                f"{sorted(map(str, types))}; expected WordPiece, ByteLevel, Metaspace "
                "or ByteFallback."
            )
        return word_starts.table(self.ids, begins, size)

    def _encoding(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # The package raises no specific exception.
            raise UserError(f"A text cannot be tokenized: {error}.") from error

    def _decoder_parts(self) -> list[dict]:
        decoder = self._tokenizer.decoder
        return list(_decoders(json.loads(decoder.__getstate__()) if decoder else None))

    def _add(self, tokens: Sequence) -> None:
        for i, token in tokens:
            self._tokenizer.add_tokens([token])
            if (given := self._tokenizer.token_to_id(token.content)) != i:
                raise UserError(
                    f"The added token {token.content!r} has the id {i}; expected "
                    f"{given}, the next id after the vocabulary."
                )

    def _template(self) -> tuple[tuple[Slot, ...], tuple[Slot, ...]] | None:
        encode = self._tokenizer.encode
        probe = next((p for p in ("a", *self.ids) if self.encode(p)), None)
        if probe is None:
            return None
        return of_encoding(encode(probe)), of_encoding(encode(probe, probe))


def _parsed(files: TokenizerFiles) -> Tokenizer:
    definition = files.text(TOKENIZER)
    try:
        tokenizer = Tokenizer.from_str(definition)
    except BaseException as error:  # Rust panics are not Exceptions.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"{TOKENIZER} is not valid: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if files.model.get("model_type") == "siglip2" and "Lowercase" not in definition:
        # Files have Gemma's definition; transformers' class for the model type adds
        # what SigLIP 2 was trained with.
        steps = [normalizers.Lowercase()]
        steps += [tokenizer.normalizer] if tokenizer.normalizer else []
        tokenizer.normalizer = normalizers.Sequence(steps)
    return tokenizer


def _wordpiece(files: TokenizerFiles) -> Tokenizer:
    files.require("do_basic_tokenize", True)
    files.require("never_split", None, [])
    lines = files.text(WORDPIECE).split("\n")
    pieces = lines[:-1] if lines[-1] == "" else lines
    vocabulary = {piece.removesuffix("\r"): i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=files.names().get("unk", "[UNK]"))
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=files.flag("tokenize_chinese_chars", True),
        strip_accents=files.flag("strip_accents", None),
        lowercase=files.flag("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _byte_level(files: TokenizerFiles) -> Tokenizer:
    lines = files.text(MERGES).split("\n")
    # The first line may be a version.
    lines = lines[1:] if lines[0].startswith("#version") else lines
    merges = [tuple(line.rstrip("\r").split(" ")) for line in lines if line.strip()]
    ids = files.ids(BPE)
    for parts in merges:
        # If the joined token is missing, the package panics.
        if len(parts) != 2 or not ids.keys() >= {*parts, "".join(parts)}:
            raise UserError(
                f"{MERGES} does not fit {BPE}: {' '.join(parts)!r} does not merge two "
                "tokens of the vocabulary to a third."
            )
    if files.family.vocabulary == "clip":
        return _clip(files, ids, merges)
    tokenizer = Tokenizer(models.BPE(ids, merges))
    space = files.flag("add_prefix_space", False)
    if files.family.vocabulary == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
            ]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _clip(files: TokenizerFiles, ids: dict, merges: list) -> Tokenizer:
    unknown = files.names().get("unk")
    model = models.BPE(ids, merges, unk_token=unknown, end_of_word_suffix=_CLIP_END)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _decoders(decoder: Mapping | None) -> Iterator[dict]:
    """Yields a decoder of a tokenizer.json and the decoders that it contains."""
    if decoder:
        yield decoder
        for inner in decoder.get("decoders", ()):
            yield from _decoders(inner)
