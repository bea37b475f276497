"""Ids of a vocabulary that stand for no text, looked up by what they are for."""

import numpy as np

from fmjax.data.tokenizers import Tokenizer
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
        "not have. Add it where a vocabulary is trained: sentencepiece.specials = "
        f"({spellings[0]!r},)."
    )


def sentinel_ids(tokenizer: Tokenizer, count: int, reader: str) -> np.ndarray:
    """int32 [count]: ids of <extra_id_0>, <extra_id_1>, … (T5's sentinels)."""
    ids = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(count)]
    if None in ids:
        raise UserError(
            f"{reader} needs {count} sentinels, of which the vocabulary has "
            f"{ids.index(None)}. Where it is trained, set sentencepiece.sentinels = "
            f"{count} or bytes.sentinels = {count}."
        )
    return np.array(ids, np.int32)


def ordinary_ids(tokenizer: Tokenizer) -> np.ndarray:
    """int32: every id that stands for text."""
    return np.flatnonzero(tokenizer.token_bytes()).astype(np.int32)


def end_id(tokenizer: Tokenizer, reader: str) -> int:
    """EOS; raises a UserError for a vocabulary without."""
    if tokenizer.eos_id is None:
        raise UserError(
            f"{reader} needs a vocabulary with an end of document; characters have one "
            "with characters.specials = True."
        )
    return tokenizer.eos_id
