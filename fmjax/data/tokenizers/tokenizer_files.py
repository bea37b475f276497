"""Saved tokenizers: a folder with the tokenizer's file and a descriptor."""

import json
from pathlib import Path

DESCRIPTOR = "fmjax_tokenizer.json"
FORMAT = 1


def save_files(tokenizer, folder: str | Path, content: bytes) -> None:
    """Writes a tokenizer's file, and the descriptor with its kind and digest.

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
