"""Parameters by path and by pattern, the same for scanned and for unrolled layers.

A path joins names with slashes. Layer i of a stack is called `layer_i` in it wherever
it lies: the scanned array `stack/layers/mlp/in` of L layers stands for the L paths
`stack/layer_0/mlp/in`, `stack/layer_1/mlp/in`, …. Layers before experts
(experts.dense_layers) are `stack/dense/layer_i`; those after them count from 0 again.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fmjax.errors import UserError, suggest

SCANNED = "layers"
# The parameters of all layers where they share them (transformer.share_layers).
SHARED = "shared_layer"
# The first layers of a stack of experts, which have none (experts.dense_layers).
DENSE = "dense"


class Slot(NamedTuple):
    """Where a path's weight lies.

    Attributes:
      array: the path of the array that holds it.
      layer: which slice of the array's axis 0; None for all of it.
    """

    array: str
    layer: int | None


def is_scanned(array: str) -> bool:
    """Whether axis 0 of the array at a path runs over layers."""
    return SCANNED in array.split("/")


def slots(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Slot]:
    """Every path of a model whose arrays have these shapes, and where it lies."""
    found = {}
    for array, shape in shapes.items():
        if not is_scanned(array):
            found[array] = Slot(array, None)
            continue
        names = array.split("/")
        at = names.index(SCANNED)
        for i in range(shape[0]):
            path = "/".join([*names[:at], f"layer_{i}", *names[at + 1 :]])
            found[path] = Slot(array, i)
    return found


class Pattern:
    """A path in which `*` stands for any text of one level, `**` for any levels.

    `layers` is the same as `layer_*`.
    """

    def __init__(self, text: str, binding: str):
        """Takes the pattern, and the gin binding it is from, for messages.

        Raises:
          UserError: it is empty, has an empty level, or `**` beside other text.
        """
        self.text, self.binding = text, binding
        levels = text.split("/")
        if "" in levels or any("**" in level and level != "**" for level in levels):
            raise UserError(
                f"{binding}: {text!r} is no pattern; expected names between single "
                "slashes, such as 'encoder_stack/**' or 'stack/layer_0/*/query'."
            )
        self._levels = ["layer_*" if level == SCANNED else level for level in levels]
        self._regex = re.compile(self._as_regex())

    @property
    def wildcards(self) -> list[str]:
        """Its `*` and `**`, in order."""
        return [w for level in self._levels for w in re.findall(r"\*+", level)]

    def match(self, path: str) -> tuple[str, ...] | None:
        """What each wildcard stands for, or None if the path is another."""
        found = self._regex.fullmatch(path)
        return None if found is None else found.groups()

    def fill(self, texts: Iterable[str]) -> str:
        """The path in which the wildcards stand for these texts."""
        texts = iter(texts)
        levels = []
        for level in self._levels:
            filled = re.sub(r"\*+", lambda _: next(texts).strip("/"), level)
            if filled:
                levels.append(filled)
        return "/".join(levels)

    def find(self, paths: Iterable[str], whose: str) -> dict[str, tuple[str, ...]]:
        """The paths that match, each with what the wildcards stand for.

        Raises:
          UserError: there is none; the message names the nearest.
        """
        paths = list(paths)
        matches = {path: self.match(path) for path in paths}
        found = {path: texts for path, texts in matches.items() if texts is not None}
        if not found:
            raise UserError(
                f"{self.binding}: {self.text!r} matches no parameter of {whose}."
                + suggest(self.text, self._candidates(paths))
                + f" It has {', '.join(sorted({p.split('/')[0] for p in paths}))}."
            )
        return found

    def _as_regex(self) -> str:
        parts = []
        for i, level in enumerate(self._levels, start=1):
            last = i == len(self._levels)
            if level == "**":
                parts.append("(.+)" if last else "((?:[^/]+/)*)")
                continue
            parts.append(re.escape(level).replace(r"\*", "([^/]*)"))
            parts.append("" if last else "/")
        return "".join(parts)

    @staticmethod
    def _candidates(paths: list[str]) -> list[str]:
        """Paths, and patterns of all that lies below a name; layers once."""
        once = {re.sub(r"\blayer_\d+\b", "layer_*", path) for path in paths}
        below = {
            "/".join([*names[:i], "**"])
            for names in (path.split("/") for path in once)
            for i in range(1, len(names))
        }
        return sorted(once | below)
