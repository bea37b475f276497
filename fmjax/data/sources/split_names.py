"""Splits by the names of files, as in trees of the Hugging Face Hub.

`train-00000-of-00002.parquet`, `data/validation-*.parquet`, `test/0000.parquet`. The
words are those of `datasets` (its `data_files.py`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from fmjax.data.sources.data_files import common_folder, relative_name
from fmjax.errors import UserError

_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def files_by_split(
    files: Sequence[Path], binding: str, owner: str
) -> dict[str, list[Path]] | None:
    """Sorts files by the splits that their names tell.

    The word is in the file's name, or else in that of the nearest folder, below the
    folder that all files have in common.

    Args:
      files: absolute paths.
      binding: gin value that names the files, for messages.
      owner: gin name of the source.

    Returns:
      Files of "train", "validation" and "test"; None unless there are files of "train"
      and of another split.

    Raises:
      UserError: there are such files, but others tell no split.
    """
    root = common_folder(files)
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": []}
    others = []
    for file in files:
        split = _split_of(file.relative_to(root))
        (others if split is None else found[split]).append(file)
    if not found["train"] or not (found["validation"] or found["test"]):
        return None
    if others:
        firsts = (group[0] for group in found.values() if group)
        known = ", ".join(relative_name(file, root) for file in firsts)
        raise UserError(
            f"{binding}: the name of {others[0]} tells no split, but those of other "
            f"files do ({known}). Leave it out, or bind {owner}.split='hash' to "
            "ignore the names."
        )
    return found


def _split_of(path: Path) -> str | None:
    """The split that the last part of a path that has just one of the words tells."""
    for part in reversed(path.parts):
        words = set(re.split(r"[^a-z]+", part.lower()))
        splits = [split for split, known in _WORDS.items() if words & {*known}]
        if splits:
            return splits[0] if len(splits) == 1 else None
    return None
