"""The special tokens around a text that a model reads."""

from flax import linen as nn

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.specials import special_id
from fmjax.data.tokenizers.tokenizers import Tokenizer, start_id
from fmjax.models.contracts import Generates, GeneratesFromImages, GeneratesFromText


def with_specials(
    model: nn.Module, tokenizer: Tokenizer, ids: list[int], *, imported: bool
) -> list[int]:
    """Ids of a text, or of the beginning of one, with special tokens as in training.

    Args:
      model: of the run.
      tokenizer: likewise.
      ids: of the text alone.
      imported: whether the model was trained elsewhere; then only the tokenizer shows
        which special tokens it expects.

    Raises:
      UserError: the vocabulary lacks [CLS] or [SEP], which an encoder needs.
    """
    wraps = imported and isinstance(tokenizer, HuggingFaceTokenizer)
    if not isinstance(model, Generates):
        if wraps:
            return tokenizer.wrap(ids)[0]
        ends = [special_id(tokenizer, name, "an encoder") for name in ("cls", "sep")]
        return [ends[0], *ids, ends[1]]
    if isinstance(model, GeneratesFromText):
        if wraps:
            return tokenizer.wrap(ids)[0]
        return ids if tokenizer.eos_id is None else [*ids, tokenizer.eos_id]
    if isinstance(model, GeneratesFromImages):
        first = tokenizer.bos_id if model.start_id is None else model.start_id
    else:
        first = tokenizer.bos_id if imported and ids else start_id(tokenizer)
    return ([] if first is None else [first]) + ids
