"""How a tokenizer lies in a folder: one file of its own, and one that describes it."""

import json
from pathlib import Path

DESCRIPTOR = "fmjax_tokenizer.json"
FORMAT = 1


def save_files(tokenizer, folder: str | Path, content: bytes) -> None:
    """Writes a tokenizer's file and the descriptor that says what kind it is."""
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
