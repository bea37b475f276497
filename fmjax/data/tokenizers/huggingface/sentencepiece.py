"""SentencePiece models with added tokens, as transformers' tokenizers use them.

SentencePiece tokenizes the text between added tokens; ids may differ from the model's.
"""

import string
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import sentencepiece as spm
from tokenizers import AddedToken, Tokenizer, models

from fmjax.data.tokenizers import word_starts
from fmjax.data.tokenizers.huggingface.files import (
    BPE,
    CONFIG,
    SENTENCEPIECES,
    SOURCE,
    TARGET,
    TARGET_VOCABULARY,
    TokenizerFiles,
)
from fmjax.errors import UserError

# The first pieces of every XLM-R; they replace the first three of its model.
_XLM_ROBERTA = ("<s>", "<pad>", "</s>", "<unk>")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class PieceTokenizer:
    """A SentencePiece model, the ids of its pieces, and added tokens.

    Attributes:
      ids: maps every piece, with special and added tokens, to its id.
      special_ids: ids of the special tokens.
      added_ids: ids of tokens that are matched before a text is cut, special or not.
      template: None, since the files do not define special tokens around a text.
    """

    template = None

    def __init__(self, files: TokenizerFiles, side: str):
        """Builds the tokenizer.

        Args:
          files: the tokenizer's files.
          side: 'source' or 'target' language; matters for Marian only.

        Raises:
          UserError: a file is invalid or has an option that is not supported.
        """
        files.require("sp_model_kwargs", None, {})
        files.require("split_by_punct", False)
        name, content = _model(files, side)
        self._pieces = _processor(name, content)
        self._bare = _processor(name, content, add_dummy_prefix=False)
        self._strips = self._bare.normalize(" a") == "a"
        self._prefix = _prefix(files)
        self._canonical = files.family.canonical
        self._lower = bool(files.flag("do_lower_case", self._canonical))
        self._codes = files.family.vocabulary == "marian"
        self.ids, within = _ids(files, side, self._pieces)
        self._unknown = _unknown(files, self.ids, self._pieces)
        added = files.added(self.ids)
        self._added = {i: token for i, token in within.items() if i not in added}
        self._added |= added
        self.ids |= {token.content: i for i, token in self._added.items()}
        self.special_ids = {i for i, token in self._added.items() if token.special}
        self.special_ids.add(self._unknown)
        self.special_ids |= {self.ids[token] for token in files.languages()}
        self.added_ids = set(self._added)
        self._names = {i: piece for piece, i in self.ids.items()}
        self._splitter = _splitter(self._added)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens around it."""
        ids: list[int] = []
        for start, part, found in self._parts(text):
            if found is not None:
                ids.append(found)
            else:
                pieces = self._cut(part, first=start == 0)
                ids.extend(self.ids.get(piece, self._unknown) for piece in pieces)
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of a text, and start and end of each in characters.

        Raises:
          UserError: the text is changed before it is cut, so that offsets are unknown.
        """
        if self._lower or self._canonical or self._codes:
            raise UserError(
                "This tokenizer changes a text before it cuts it, so it is not known "
                "which characters its tokens stand for; expected a tokenizer.json."
            )
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for start, part, found in self._parts(text):
            if found is not None:
                ids.append(found)
                offsets.append((start, start + len(part)))
                continue
            processor = self._processor_for(part, first=start == 0)
            places = iter(range(start, start + len(part)))
            # Places in UTF-8 → places in the text; inside a character, its start.
            at = [place for place, c in zip(places, part) for _ in c.encode()]
            at.append(start + len(part))
            pieces = processor.encode(part, return_type="proto").pieces
            for number, piece in enumerate(pieces):
                ids.append(self.ids.get(piece.piece, self._unknown))
                # The bytes of a character all stand for it; the last one says where.
                last = number
                while _is_byte(pieces[last].piece) and not pieces[last].surface:
                    last += 1
                offsets.append((at[piece.begin], at[pieces[last].end]))
        return ids, offsets

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are skipped."""
        processor = self._bare if self._prefix == "never" else self._pieces
        texts, pieces = [], []
        for i in ids:
            if i in self.special_ids or i not in self._names:
                continue
            if i in self._added:
                texts += [processor.decode_pieces(pieces), self._names[i]]
                pieces = []
            else:
                pieces.append(self._names[i])
        return "".join([*texts, processor.decode_pieces(pieces)])

    def token_bytes(self, size: int) -> np.ndarray:
        """Bytes of UTF-8 text of each id, int32 [V]; 0 for special tokens."""
        sizes = np.zeros(size, np.int32)
        sp = self._pieces
        for piece, i in self.ids.items():
            own = sp.piece_to_id(piece)
            if i in self.special_ids or sp.is_unused(own) or sp.is_control(own):
                continue
            text = piece if i in self._added else piece.replace("\u2581", " ")
            sizes[i] = 1 if sp.is_byte(own) else len(text.encode())
        return sizes

    def word_starts(self, size: int) -> np.ndarray:
        """Whether each id begins a word (with the white space before it), bool [V]."""
        return word_starts.table(self.ids, word_starts.in_pieces, size)

    def _parts(self, text: str) -> Iterator[tuple[int, str, int | None]]:
        """Yields (start, text, id) of added tokens and, with id None, of other text."""
        encoding = self._splitter.encode(text)
        for (start, end), kind in zip(encoding.offsets, encoding.ids, strict=True):
            token = self._splitter.id_to_token(kind)
            yield start, text[start:end], self.ids[token] if kind else None

    def _cut(self, text: str, first: bool) -> list[str]:
        text = text.lower() if self._lower else text
        if self._canonical:
            text = text.replace("\u2581", " ").translate(_NO_PUNCTUATION)
            text = " ".join(text.split())
        code = []
        if self._codes and text.startswith(">>") and "<<" in text:
            # The target language, as in '>>fra<< the cat'.
            end = text.index("<<") + 2
            code, text = [text[:end]], text[end:]
        return code + self._processor_for(text, first).encode(text, out_type=str)

    def _processor_for(self, text: str, first: bool) -> spm.SentencePieceProcessor:
        # White space that the model strips still separates words.
        spaced = self._strips and text[:1].isspace()
        has_prefix = self._prefix == "always" or (
            self._prefix == "first" and (first or spaced)
        )
        return self._pieces if has_prefix else self._bare


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x")


def _model(files: TokenizerFiles, side: str) -> tuple[str, bytes]:
    if files.family.vocabulary == "marian":
        name = SOURCE if side == "source" else TARGET
    else:
        name = next((n for n in SENTENCEPIECES if n in files.contents), None)
    if name not in files.contents:
        raise UserError(
            f"{name or ' or '.join(SENTENCEPIECES)} is missing; found only "
            f"{', '.join(files.contents)}."
        )
    return name, files.contents[name]


def _processor(name: str, content: bytes, **changes) -> spm.SentencePieceProcessor:
    processor = spm.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(content)
        if changes:
            processor.override_normalizer_spec(**changes)
    except Exception as error:
        raise UserError(f"{name} is not a SentencePiece model: {error}") from error
    return processor


def _prefix(files: TokenizerFiles) -> str:
    """Which parts of a text get the dummy prefix: 'always', 'first' or 'never'.

    The option `legacy` of Llama and T5 decides about text after a special token.
    """
    if files.flag("add_prefix_space", True) is False:
        return "never"
    return "always" if files.flag("legacy", files.family.legacy) else "first"


def _ids(
    files: TokenizerFiles, side: str, sp: spm.SentencePieceProcessor
) -> tuple[dict[str, int], dict[int, AddedToken]]:
    """(ids of all pieces, pieces that are matched in a text like added tokens)."""
    if files.family.vocabulary == "marian":
        separate = side == "target" and files.flag("separate_vocabs", False)
        return files.ids(TARGET_VOCABULARY if separate else BPE), {}
    if files.family.vocabulary == "m2m_100":
        ids, first = files.ids(BPE), len(files.ids(BPE))
        # Not found in a text, unless the files list them as special tokens.
        return ids | {token: first + i for i, token in enumerate(files.languages())}, {}
    pieces = [sp.id_to_piece(i) for i in range(sp.get_piece_size())]
    controls = [piece for i, piece in enumerate(pieces) if sp.is_control(i)]
    if files.family.canonical:
        controls = []  # Their punctuation is removed from a text before matching.
    if files.family.vocabulary == "xlm_roberta":
        pieces = [*_XLM_ROBERTA, *pieces[3:]]
    ids = {piece: i for i, piece in enumerate(pieces)}
    within = {
        ids[piece]: AddedToken(piece, special=True, normalized=False)
        for piece in controls
        if piece in ids
    }
    sentinels = files.config.get("extra_ids", files.family.extra_ids)
    if type(sentinels) is not int or not 0 <= sentinels <= 100_000:
        raise UserError(
            f"{CONFIG}: extra_ids = {sentinels!r}; expected a number up to 100000."
        )
    for i in range(sentinels):
        # Numbered from the end of the vocabulary.
        token = f"<extra_id_{i}>"
        ids[token] = len(pieces) + sentinels - 1 - i
        within[ids[token]] = AddedToken(
            token, lstrip=True, rstrip=True, special=True, normalized=False
        )
    return ids, within


def _unknown(
    files: TokenizerFiles, ids: Mapping[str, int], sp: spm.SentencePieceProcessor
) -> int:
    if files.family.vocabulary == "xlm_roberta":
        return ids["<unk>"]
    if files.family.vocabulary == "sentencepiece":
        return sp.unk_id()
    token = files.names().get("unk")
    if token not in ids:
        raise UserError(f"{BPE} has no id for the unknown token {token!r}.")
    return ids[token]


def _splitter(added: Mapping[int, AddedToken]) -> Tokenizer:
    """A tokenizer that finds added tokens; text between them is one word of id 0."""
    splitter = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    splitter.add_tokens(list(added.values()))
    return splitter
