"""Ids of a vocabulary that stand for no text, looked up by what they are for."""

import itertools
from collections.abc import Iterable

import numpy as np

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# How vocabularies spell them; the first is what fmjax asks users to add.
_SPELLINGS = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
}


def special_id(tokenizer: Tokenizer, name: str, reader: str) -> int:
    """The id of a special token.

    Args:
      tokenizer: of the data.
      name: "mask", "cls", "sep", or a token as it is spelled, such as "[CLM]".
      reader: the configurable that needs it, for the message.

    Raises:
      UserError: the vocabulary has none.
    """
    spellings = _SPELLINGS.get(name, (name,))
    for spelling in spellings:
        found = tokenizer.id_of(spelling)
        if found is not None:
            return found
    raise UserError(
        f"{reader} needs the special token {spellings[0]!r}, which the vocabulary does "
        f"not have. Add it: sentencepiece.specials = ({spellings[0]!r},), or "
        "bytes.specials, or characters.specials."
    )


def sentinel_ids(tokenizer: Tokenizer, count: int, reader: str) -> np.ndarray:
    """int32 [count]: ids of <extra_id_0>, <extra_id_1>, … (T5's sentinels)."""
    ids = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(count)]
    if None in ids:
        raise UserError(
            f"{reader} needs {count} sentinels, of which the vocabulary has "
            f"{ids.index(None)}. Set sentencepiece.sentinels = {count}, or "
            "bytes.sentinels, or characters.sentinels."
        )
    return np.array(ids, np.int32)


def spellings(tokenizer: Tokenizer, also: Iterable[str] = ()) -> dict[int, str]:
    """Special tokens as they are spelled, by id: those known here, and `also`."""
    sentinels = (f"<extra_id_{i}>" for i in itertools.count())
    known = itertools.takewhile(
        lambda name: tokenizer.id_of(name) is not None, sentinels
    )
    found = {tokenizer.pad_id: "<pad>", tokenizer.eos_id: "</s>"}
    for name in (*itertools.chain(*_SPELLINGS.values()), *also, *known):
        found.setdefault(tokenizer.id_of(name), name)
    found.pop(None, None)
    return found


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """int32: every id that stands for text."""
    return np.flatnonzero(tokenizer.token_bytes()).astype(np.int32)


def end_id(tokenizer: Tokenizer, reader: str) -> int:
    """EOS; raises a UserError for a vocabulary without."""
    if tokenizer.eos_id is None:
        raise UserError(
            f"{reader} needs a vocabulary with an end of document; characters have one "
            "with characters.ends = True."
        )
    return tokenizer.eos_id
