"""Tokenizers that the package `tokenizers` runs, from the files that describe them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from fmjax.data.text import word_starts
from fmjax.data.tokenizers.huggingface.files import (
    BPE,
    MERGES,
    TOKENIZER,
    WORDPIECE,
    TokenizerFiles,
)
from fmjax.data.tokenizers.special_template import Slot, of_encoding
from fmjax.errors import UserError

# A byte without a piece of its own, in vocabularies made like Llama 2's.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

# How CLIP does, in lower case: each digit alone, and no spaces; a word's last piece has
# a mark behind it.
_CLIP_WORDS = (
    r"<\|(?:startof|endof)text\|>|'(?:[stmd]|re|ve|ll)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_CLIP_END = "</w>"

# How Qwen 2 cuts a text before it counts bytes, after GPT-4: digits stand alone.
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class DefinedTokenizer:
    """A tokenizer.json, or WordPiece or byte-level BPE in the older files.

    Attributes:
      ids: of every piece, specials and added tokens included.
      special_ids: those that stand for no text.
      template: the specials that it puts around a text, and around two; None where
        the files do not tell.
    """

    def __init__(self, files: TokenizerFiles):
        """Raises UserError for files that are not what their names say."""
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
            read = _wordpiece if files.family.vocabulary == "wordpiece" else _byte_level
            self._tokenizer = read(files)
            known = self._tokenizer.get_vocab()
            self._add(list(files.added(known).items()))
        self.ids = self._tokenizer.get_vocab()
        self._end = getattr(self._tokenizer.model, "end_of_word_suffix", None) or ""
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {i for i, token in added.items() if token.special}
        self.template = self._template() if TOKENIZER in files.contents else None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without specials around it.

        Raises:
          UserError: the vocabulary has no piece for what is unknown, and the text some.
        """
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except Exception as error:  # The package has no other.
            raise UserError(f"A text cannot be tokenized: {error}.") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; specials stand for nothing."""
        text = self._tokenizer.decode(ids, skip_special_tokens=True)
        # What a decoder of bytes leaves in it, and where a word ends.
        return text.replace(self._end, " ").strip() if self._end else text

    def token_bytes(self, size: int) -> np.ndarray:
        """int32 [V]: UTF-8 bytes of text that each id stands for; specials 0.

        Raises:
          UserError: for pieces that are neither bytes nor text with a mark for spaces.
        """
        kinds = self._decoder_parts()
        types = {part.get("type") for part in kinds}
        if not types & {"ByteLevel", "Metaspace", "ByteFallback", "WordPiece"}:
            raise UserError(
                "tokenizer.json: bytes of a token are known for decoders ByteLevel, "
                "Metaspace, ByteFallback and WordPiece; found "
                f"{sorted(map(str, types))}."
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
                # A character for each byte; behind a word's end comes a space.
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
        """bool [V]: ids that begin a word, white space before it included.

        Model and decoder tell how pieces are marked; pieces would not: of text full of
        '##', as Markdown is, BPE makes a piece too.

        Raises:
          UserError: for pieces whose marks tell something else, or that have none.
        """
        if self._end:
            raise UserError(
                f"A vocabulary that marks with {self._end!r} where words end does not "
                "say where they begin."
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
                "tokenizer.json: where words begin is known for WordPiece and for "
                "decoders ByteLevel, Metaspace and ByteFallback; found "
                f"{sorted(map(str, types))}."
            )
        return word_starts.table(self.ids, begins, size)

    def _decoder_parts(self) -> list[dict]:
        decoder = self._tokenizer.decoder
        return list(_decoders(json.loads(decoder.__getstate__()) if decoder else None))

    def _add(self, tokens: Sequence) -> None:
        for i, token in tokens:
            self._tokenizer.add_tokens([token])
            if (given := self._tokenizer.token_to_id(token.content)) != i:
                raise UserError(
                    f"The added token {token.content!r} has the id {i}; expected "
                    f"{given}, the next after the vocabulary."
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
    except BaseException as error:  # its panics are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise UserError(f"Not a tokenizer.json: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
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
        # Where the joined piece is missing, the package panics past `except Exception`.
        if len(parts) != 2 or not ids.keys() >= {*parts, "".join(parts)}:
            raise UserError(
                f"{MERGES} does not fit {BPE}: {' '.join(parts)!r} does not join two "
                "pieces to a third."
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
    """A decoder of a tokenizer.json and those inside it."""
    if decoder:
        yield decoder
        for inner in decoder.get("decoders", ()):
            yield from _decoders(inner)
