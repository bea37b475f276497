"""What of a stored config is not as by default."""

import ast
from collections.abc import Mapping

from fmjax.config import registry
from fmjax.config.reference import default_of
from fmjax.configurable import fields_of


def changed_fields(
    bindings: Mapping[tuple[str, str], str], everything: bool = True
) -> list[tuple[str, str, str | None]]:
    """The fields of a stored config that do not have their defaults.

    Args:
      bindings: (configurable with its scope, field) → gin text, of every field.
      everything: whether to include paths, and fields that affect no result.

    Returns:
      (binding, value, default) in the order of the config; the default is None for a
      field that must be bound, or of a configurable that is not known here.
    """
    registry.register_rooms()
    changed = []
    for (owner, name), text in bindings.items():
        bare = owner.rsplit("/", 1)[-1]
        cls = registry.CLASSES.get(bare)
        fields = {field.name: field for field in fields_of(cls)} if cls else {}
        metadata = fields[name].metadata if name in fields else {}
        if not everything and (metadata.get("path") or metadata.get("runtime")):
            continue
        default = default_of(bare, fields[name]) if name in fields else None
        if default is None or not _same_value(text, default):
            changed.append((f"{owner}.{name}", text, default))
    return changed


def _same_value(text: str, other: str) -> bool:
    """Whether two gin texts are the same literal, or the same text."""
    try:
        return ast.literal_eval(text) == ast.literal_eval(other)
    except (ValueError, SyntaxError):
        return text == other
