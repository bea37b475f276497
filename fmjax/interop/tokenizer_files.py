"""A run's tokenizer as the files that transformers keeps beside a model."""

from pathlib import Path

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizers import Tokenizer

_SPECIALS = ("bos", "eos", "pad")


def write(folder: Path, tokenizer: Tokenizer | None) -> str:
    """Writes the files that there are; returns a sentence about them."""
    if tokenizer is None:
        return "no tokenizer files: the run has no tokenizer"
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.save_original(folder)
        return f"the tokenizer's own files: {', '.join(sorted(tokenizer.files))}"
    return f"no tokenizer files: {tokenizer.kind} has no form there"


def ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The ids of config.json that a tokenizer tells; None where it does not.

    None is written, for transformers takes what is not told for a model of its own: an
    id of another vocabulary, beyond the end of a smaller one.
    """
    found = {}
    for name in _SPECIALS:
        value = None
        if isinstance(tokenizer, HuggingFaceTokenizer):
            value = tokenizer.special_id(name)
        if value is None and tokenizer is not None:
            value = getattr(tokenizer, f"{name}_id")
        found[f"{name}_token_id"] = value
    return found
