"""The size of the vocabulary where config, table and tokenizer do not agree."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.family import Family
from fmjax.interop.tensor_files import TensorFiles

_TABLE, _FIELD = "tokens/table", "vocab_size"


def vocabulary_rows(
    files: TensorFiles, family: Family, values: Mapping[str, Any], needed: int | None
) -> tuple[int | None, str]:
    """The size of a model's vocabulary, by its config, table and tokenizer.

    A table that was padded has more rows than the config says; the rows after the
    vocabulary are never read or predicted. A table may also have fewer, where a config
    counts tokens that were never added; then the tokenizer must do with these.

    Args:
      files: the tensors.
      family: the family of the model.
      values: fields of the model.
      needed: ids of the tokenizer; None without one.

    Returns:
      The size, None for a model of which it is not known, and a note for the user; ""
      if all agree.

    Raises:
      UserError: the tokenizer has ids for which the table has no rows.
    """
    stated = values.get(_FIELD)
    names = [family.short(row.name) for row in family.rows if row.path == _TABLE]
    in_files = {family.short(name): name for name in files.names}
    named = next((in_files[name] for name in names if name in in_files), None)
    if stated is None or named is None or not files.shape(named):
        return stated, ""
    rows = files.shape(named)[0]
    if (needed or 0) > max(rows, stated):
        raise UserError(
            f"{files.folder}: its tokenizer has ids up to {needed - 1}, config.json a "
            f"vocab_size of {stated} and {named} {rows} rows."
        )
    if rows > stated:
        size = max(stated, needed or 0)
        return size, (
            f"{named} has {rows:,} rows, config.json a vocab_size of {stated:,}"
            f"{_of_tokenizer(needed)}: the first {size:,} are the vocabulary, the rest "
            "is left out as padding"
        )
    if rows < stated and needed is not None and needed <= rows:
        return rows, (
            f"config.json has a vocab_size of {stated:,}, {named} only {rows:,} rows"
            f"{_of_tokenizer(needed)}: these are the vocabulary"
        )
    return stated, ""


def _of_tokenizer(needed: int | None) -> str:
    return "" if needed is None else f", the tokenizer {needed:,} ids"


def check_tokenizer(folder: Path, needed: int | None, vocab_size: int) -> None:
    """Raises a UserError for a tokenizer with more ids than a model's vocabulary."""
    if needed is not None and needed > vocab_size:
        raise UserError(
            f"{folder}: its tokenizer has ids up to {needed - 1}, config.json a "
            f"vocab_size of {vocab_size}."
        )
