"""The special tokens around a text that a model reads."""

from flax import linen as nn

from fmjax.data.tokenizers import special_template
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.text_template import text_template
from fmjax.data.tokenizers.tokenizers import Tokenizer, start_id
from fmjax.inference.text_rows import TextRow
from fmjax.models.contracts import Generates, GeneratesFromImages, GeneratesFromText


def as_read(
    model: nn.Module, tokenizer: Tokenizer, ids: list[int], *, imported: bool
) -> TextRow:
    """A text with special tokens as a language model has read texts in training.

    Arguments and errors are those of `with_specials`.
    """
    if isinstance(model, Generates):
        row = with_specials(model, tokenizer, ids, imported=imported)
        return TextRow(row, [0] * len(row))
    template = text_template(tokenizer, 1)
    return TextRow(*special_template.fill(template, [ids]))


def with_specials(
    model: nn.Module, tokenizer: Tokenizer, ids: list[int], *, imported: bool
) -> list[int]:
    """Ids of a prompt, of a text that is not whole yet, with special tokens.

    Args:
      model: of the run, with a decoder.
      tokenizer: likewise.
      ids: of the text alone.
      imported: whether the model was trained elsewhere; then only the tokenizer shows
        which special tokens it expects.
    """
    if isinstance(model, GeneratesFromText):
        if imported and isinstance(tokenizer, HuggingFaceTokenizer):
            return tokenizer.wrap(ids)[0]
        return ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id]
    if isinstance(model, GeneratesFromImages):
        first = tokenizer.bos_id if model.start_id is None else model.start_id
    else:
        first = tokenizer.bos_id if imported and ids else start_id(tokenizer)
    return ([] if first is None else [first]) + ids
