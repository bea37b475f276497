"""Writing a run's tokenizer as the files of transformers."""

from pathlib import Path

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.data.tokenizers.tokenizer_files import CHAT_TEMPLATE
from fmjax.data.tokenizers.tokenizers import Tokenizer

_SPECIALS = ("bos", "eos", "pad")


def write(folder: Path, tokenizer: Tokenizer | None) -> str:
    """Writes the tokenizer files, if there are any, and returns a note about them."""
    if tokenizer is None:
        return "no tokenizer files: the run has no tokenizer"
    if isinstance(tokenizer, HuggingFaceTokenizer):
        tokenizer.save_original(folder)
        if tokenizer.chat_template is not None:
            template = tokenizer.chat_template.encode()
            (folder / CHAT_TEMPLATE).write_bytes(template)
        return f"the tokenizer's own files: {', '.join(sorted(tokenizer.files))}"
    return f"no tokenizer files: {tokenizer.kind} has no form there"


def ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """The special ids of config.json for a tokenizer; None for those it does not have.

    None is written, since transformers replaces missing ids by defaults of its own,
    which may be outside of a smaller vocabulary.
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
