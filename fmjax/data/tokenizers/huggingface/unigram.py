"""SentencePiece models that transformers 5 reads by the package `tokenizers`.

The classes of ALBERT, CamemBERT, mBART and Pegasus put ids of their own before the
pieces, and normalize a text by rules of their own, so that their ids may differ from
SentencePiece's: mBART's class does not use the normalization of the model.
"""

from collections.abc import Callable

from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from fmjax.data.tokenizers.huggingface.files import (
    CONFIG,
    SENTENCEPIECES,
    TokenizerFiles,
)
from fmjax.errors import UserError

_Vocabulary = list[tuple[str, float]]
# Values of trainer_spec.model_type and of a piece's type.
_UNIGRAM, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"
_SPACES = normalizers.Replace(Regex(" {2,}"), " ")
_MOST_OFFSET = 10_000


def read(files: TokenizerFiles) -> tuple[Tokenizer, list[AddedToken]]:
    """A tokenizer, and the pieces of its model that are matched in a text first.

    Args:
      files: with a SentencePiece model.

    Raises:
      UserError: there is no such file, or it is no unigram model.
    """
    name = next((n for n in SENTENCEPIECES if n in files.contents), None)
    if name is None:
        raise UserError(
            f"{' or '.join(SENTENCEPIECES)} is missing; found only "
            f"{', '.join(files.contents)}."
        )
    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(files.contents[name])
    except DecodeError as error:
        raise UserError(f"{name} is not a SentencePiece model: {error}") from error
    if proto.trainer_spec.model_type != _UNIGRAM:
        raise UserError(
            f"{name}: trainer_spec.model_type = {proto.trainer_spec.model_type} is not "
            f"supported; expected {_UNIGRAM}, a unigram model."
        )
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    kind = files.family.vocabulary
    vocabulary, unknown = _VOCABULARIES[kind](files, pieces)
    if not 0 <= unknown < len(vocabulary):
        raise UserError(f"{name}: {len(pieces)} pieces; expected more.")
    tokenizer = Tokenizer(
        models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False)
    )
    rules = _normalizers(kind, files, proto.normalizer_spec.precompiled_charsmap)
    if rules:
        tokenizer.normalizer = normalizers.Sequence(rules)
    has_prefix = files.flag("add_prefix_space", True) or kind not in _WITH_PREFIX_OPTION
    scheme = "always" if has_prefix else "never"
    spaced = pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    if kind in _SPLIT_AT_SPACES:
        cuts = [pre_tokenizers.WhitespaceSplit(), spaced]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    else:
        tokenizer.pre_tokenizer = spaced
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=scheme)
    matched = [
        AddedToken(piece.piece, special=piece.type == _CONTROL, normalized=False)
        for piece in proto.pieces
        if piece.type in (_CONTROL, _USER_DEFINED)
    ]
    own = files.languages()
    if kind == "pegasus":
        own = [piece for piece, _ in vocabulary[: len(vocabulary) - len(pieces[2:])]]
    matched += [AddedToken(piece, special=True, normalized=False) for piece in own]
    return tokenizer, matched


_WITH_PREFIX_OPTION = ("albert", "camembert")
_SPLIT_AT_SPACES = ("albert", "camembert", "mbart")


def _normalizers(kind: str, files: TokenizerFiles, charsmap: bytes) -> list:
    rules = [normalizers.Precompiled(charsmap)] if charsmap else []
    if kind == "camembert":
        return rules
    if kind == "mbart":
        return []
    if kind == "mbart50":
        return [*rules, _SPACES]
    if kind == "pegasus":
        return [*(rules or [normalizers.Replace(Regex("\n"), " ")]), _SPACES]
    before = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not files.flag("keep_accents", False):
        before += [normalizers.NFKD(), normalizers.StripAccents()]
    if files.flag("do_lower_case", True):
        before.append(normalizers.Lowercase())
    return before + rules


def _albert(files: TokenizerFiles, pieces: _Vocabulary) -> tuple[_Vocabulary, int]:
    return pieces, 1


def _camembert(files: TokenizerFiles, pieces: _Vocabulary) -> tuple[_Vocabulary, int]:
    named = files.names()
    first = ["<s>NOTUSED", named["pad"], "</s>NOTUSED", named["unk"]]
    vocabulary = [*((piece, 0.0) for piece in first), ("<unk>NOTUSED", -100.0)]
    return [*vocabulary, *pieces[1:], (named["mask"], 0.0)], 3


def _mbart(files: TokenizerFiles, pieces: _Vocabulary) -> tuple[_Vocabulary, int]:
    named = files.names()
    first = [named[name] for name in ("bos", "pad", "eos", "unk")]
    last = [*files.languages(), named["mask"]]
    vocabulary = [(piece, 0.0) for piece in first]
    return [*vocabulary, *pieces[3:], *((piece, 0.0) for piece in last)], 3


def _pegasus(files: TokenizerFiles, pieces: _Vocabulary) -> tuple[_Vocabulary, int]:
    named = files.names()
    offset = files.config.get("offset", 103)
    if type(offset) is not int or not 2 <= offset <= _MOST_OFFSET:
        raise UserError(
            f"{CONFIG}: offset = {offset!r:.200}; expected a number from 2 to "
            f"{_MOST_OFFSET}."
        )
    # The masks of sentences and of tokens, in the order of published weights.
    sentence = files.config.get("mask_token_sent", "<mask_1>")
    first = [named["pad"], named["eos"], sentence, named["mask"]]
    vocabulary = [(str(piece), 0.0) for piece in first]
    vocabulary += [(f"<unk_{i}>", -100.0) for i in range(2, offset)]
    unknown = next((i for i, (x, _) in enumerate(pieces) if x == named["unk"]), -1)
    return vocabulary + pieces[2:], len(vocabulary) + unknown - 2


_VOCABULARIES: dict[
    str, Callable[[TokenizerFiles, _Vocabulary], tuple[_Vocabulary, int]]
] = {
    "albert": _albert,
    "camembert": _camembert,
    "mbart": _mbart,
    "mbart50": _mbart,
    "pegasus": _pegasus,
}
