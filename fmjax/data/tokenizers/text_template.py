"""The special tokens that a vocabulary puts around one text or two."""

from typing import Protocol, runtime_checkable

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.special_template import Slot
from fmjax.data.tokenizers.specials import end_id, find_special
from fmjax.data.tokenizers.tokenizers import Tokenizer


@runtime_checkable
class HasTemplates(Protocol):
    """A tokenizer that was saved with the special tokens that its model expects."""

    def template(self, texts: int) -> tuple[Slot, ...]:
        """The special tokens around one text or two."""


def text_template(tokenizer: Tokenizer, texts: int) -> tuple[Slot, ...]:
    """The special tokens around one text or two, for encoders and decoders.

    Those that the tokenizer was saved with; else [CLS] A [SEP] B [SEP] if the
    vocabulary has these tokens; else BOS A EOS B EOS, of which BOS may be missing.

    Args:
      tokenizer: the tokenizer.
      texts: 1 or 2.

    Raises:
      UserError: the vocabulary has none of these for two texts.
    """
    if isinstance(tokenizer, HasTemplates):
        return tokenizer.template(texts)
    ids = {
        "cls": find_special(tokenizer, "cls"),
        "sep": find_special(tokenizer, "sep"),
        "bos": tokenizer.bos_id,
    }
    if ids["cls"] is not None and ids["sep"] is not None:
        template = "cls A sep" if texts == 1 else "cls A sep B1 sep1"
    else:
        ids["eos"] = tokenizer.eos_id
        if texts == 2:
            ids["eos"] = end_id(tokenizer, "A task of labelled pairs of texts")
        template = "bos A eos" if texts == 1 else "bos A eos B eos"
    return special_template.parse(template, ids.get)
