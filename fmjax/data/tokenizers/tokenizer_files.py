"""Saved tokenizers: a folder with the tokenizer's file and a descriptor."""

import json
from pathlib import Path

DESCRIPTOR = "fmjax_tokenizer.json"
FORMAT = 1
# The chat template that a run was trained with, if it is not the tokenizer's own.
CHAT_TEMPLATE = "chat_template.jinja"


def save_files(tokenizer, folder: str | Path, content: bytes) -> None:
    """Writes a tokenizer's file, an own chat template, and the descriptor with digest.

    Args:
      tokenizer: the tokenizer.
      folder: the folder, made if it does not exist.
      content: content of the tokenizer's file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / tokenizer.file_name).write_bytes(content)
    fields = {
        "format": FORMAT,
        "kind": tokenizer.kind,
        "file": tokenizer.file_name,
        "vocab_size": tokenizer.vocab_size,
        "digest": tokenizer.digest,
    }
    (folder / DESCRIPTOR).write_text(json.dumps(fields, indent=2) + "\n")
    if tokenizer.chat_template is not None:
        template = tokenizer.chat_template.encode()
        (folder / CHAT_TEMPLATE).write_bytes(template)


def saved_chat_template(folder: Path) -> str | None:
    """The chat template that `save_files` wrote beside a tokenizer; None if none."""
    file = folder / CHAT_TEMPLATE
    return file.read_text("utf-8", "replace") if file.is_file() else None
