"""Prefixes that wrappers of a model put before the names of its tensors."""

import re
from collections.abc import Iterable

from fmjax.interop.family import Family
from fmjax.interop.tensor_files import TensorFiles

# Of data parallelism, of compiled models, of modules that hold a model.
PREFIXES = ("module.", "_orig_mod.", "model.", "transformer.")
_COMPILED = "_orig_mod."


def without_prefixes(files: TensorFiles, family: Family) -> tuple[TensorFiles, str]:
    """The tensors by the names that a family's table knows.

    Prefixes are taken off if all names have them and more of them are known without;
    that of compiled modules also inside of names.

    Returns:
      The tensors, and the prefixes that were taken off, joined.
    """
    known = known_names(family)

    def count(names: Iterable[str]) -> int:
        return sum(bool(known.fullmatch(family.short(name))) for name in names)

    best, taken = (count(files.names), files.names), ""
    tried = [(files.names, "")]
    while tried:
        names, so_far = tried.pop(0)
        for prefix in PREFIXES:
            shorter = [_without(name, prefix) for name in names]
            if None not in shorter and len(set(shorter)) == len(shorter):
                tried.append((shorter, so_far + prefix))
                if (found := count(shorter)) > best[0]:
                    best, taken = (found, shorter), so_far + prefix
    return files.renamed(dict(zip(files.names, best[1])).__getitem__), taken


def _without(name: str, prefix: str) -> str | None:
    """The name without a prefix; None if it has none."""
    if prefix == _COMPILED:
        return name.replace(_COMPILED, "") if _COMPILED in name else None
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def known_names(family: Family) -> re.Pattern:
    """Matches the short names of all tensors of a family."""
    rows = [r for a in family.architectures.values() for r in family.rows_of(a)]
    names = [row.name for row in rows] + list(family.copies)
    patterns = {
        re.sub(r"\\\{(layer|expert)\\\}", r"\\d+", re.escape(family.short(name)))
        for name in names
    }
    return re.compile("|".join([*sorted(patterns), family.constants, family.foreign]))
