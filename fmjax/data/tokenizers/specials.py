"""Looking up the special tokens of a vocabulary by their role."""

import itertools
from collections.abc import Iterable

import numpy as np

from fmjax.data.tokenizers.tokenizers import Tokenizer
from fmjax.errors import UserError

# Role → spellings in vocabularies; error messages suggest the first.
_SPELLINGS = {
    "mask": ("[MASK]", "<mask>"),
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
}


def special_id(tokenizer: Tokenizer, name: str, reader: str) -> int:
    """The id of a special token.

    Args:
      tokenizer: the tokenizer of the data.
      name: "mask", "cls", "sep", or a special token such as "[CLM]".
      reader: the configurable that needs it, for the error message.

    Raises:
      UserError: the vocabulary does not have it.
    """
    found = find_special(tokenizer, name)
    if found is not None:
        return found
    spelling, *_ = _SPELLINGS.get(name, (name,))
    raise UserError(
        f"{reader} needs the special token {spelling!r}, but the vocabulary does "
        f"not have it. Add it with sentencepiece.specials = ({spelling!r},), "
        "bytes.specials or characters.specials."
    )


def find_special(tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a special token, as `special_id`; None if there is none."""
    ids = (tokenizer.id_of(spelling) for spelling in _SPELLINGS.get(name, (name,)))
    return next((found for found in ids if found is not None), None)


def sentinel_ids(tokenizer: Tokenizer, count: int, reader: str) -> np.ndarray:
    """Ids of T5's sentinels <extra_id_0>, <extra_id_1>, …, int32 [count].

    Raises:
      UserError: the vocabulary has fewer sentinels.
    """
    ids = [tokenizer.id_of(f"<extra_id_{i}>") for i in range(count)]
    if None in ids:
        raise UserError(
            f"{reader} needs {count} sentinels, but the vocabulary has only "
            f"{ids.index(None)}. Add them with sentencepiece.sentinels = {count}, "
            "bytes.sentinels or characters.sentinels."
        )
    return np.array(ids, np.int32)


def spellings(tokenizer: Tokenizer, also: Iterable[str] = ()) -> dict[int, str]:
    """Maps ids to special tokens: those with a known role, sentinels, and `also`."""
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
    """All ids that are text, int32 [N]."""
    return np.flatnonzero(tokenizer.token_bytes()).astype(np.int32)


def end_id(tokenizer: Tokenizer, reader: str) -> int:
    """The id of EOS; raises a UserError if the vocabulary has none."""
    if tokenizer.eos_id is None:
        raise UserError(
            f"{reader} needs a vocabulary with an end-of-sequence token. For "
            "@characters(), set characters.ends = True."
        )
    return tokenizer.eos_id
