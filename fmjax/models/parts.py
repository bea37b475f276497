"""The configurables inside of a configurable: visiting and replacing them."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from flax import linen as nn

Part = TypeVar("Part")


def parts_of(node: Any, kind: type[Part]) -> dict[str, Part]:
    """The parts of a kind by dotted field names, the node itself as "", in order."""
    found = {"": node} if isinstance(node, kind) else {}
    for name, child in _children(node).items():
        for inner, part in parts_of(child, kind).items():
            found[f"{name}.{inner}".rstrip(".")] = part
    return found


def replace_parts(
    node: Any, kind: type[Part], change: Callable[[str, Part], Part], path: str = ""
) -> Any:
    """The node with each part of a kind replaced; inner parts first.

    Args:
      node: a configurable.
      kind: a class of configurables.
      change: (dotted field names, part) → the part to put in its place.
      path: dotted field names of `node`.
    """
    changes = {
        name: new
        for name, child in _children(node).items()
        if (new := replace_parts(child, kind, change, f"{path}.{name}".lstrip(".")))
        is not child
    }
    if changes and isinstance(node, nn.Module):
        node = node.clone(**changes)
    elif changes:
        node = dataclasses.replace(node, **changes)
    return change(path, node) if isinstance(node, kind) else node


def _children(node: Any) -> dict[str, Any]:
    return {
        field.name: value
        for field in dataclasses.fields(node)
        if field.init and field.name not in ("parent", "name")
        if dataclasses.is_dataclass(value := getattr(node, field.name))
    }
