"""The tensors that a quantized weight consists of, found by the ends of their names."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.containers.stored_tensor import Stored, StoredTensor

Settings = Mapping[str, Any]


class Parts:
    """The tensors of a module by the ends of their names, which are taken out.

    Attributes:
      module: the module's name.
    """

    def __init__(self, module: str, tensors: dict[str, StoredTensor]):
        self.module = module
        self._tensors = tensors

    def __getitem__(self, end: str) -> StoredTensor:
        """The tensor with an end.

        Raises:
          UserError: there is none.
        """
        if end not in self._tensors:
            found = ", ".join(self._tensors)
            raise UserError(f"{self.module} has {found}, but no {end}.")
        return self._tensors[end]

    def get(self, end: str) -> StoredTensor | None:
        """The tensor with an end, if there is one."""
        return self._tensors.get(end)

    def array(self, end: str) -> np.ndarray:
        """The values of the tensor with an end."""
        return self[end].read()

    def refuse(self, expected: str) -> None:
        """Raises a UserError that shows all shapes."""
        shapes = (f"{n} {t.dtype.name}{t.shape}" for n, t in self._tensors.items())
        raise UserError(f"{self.module} has {', '.join(shapes)}; expected {expected}.")

    def expect(self, right: bool, expected: str) -> None:
        """Raises a UserError that shows all shapes unless they are right."""
        if not right:
            self.refuse(expected)


def modules(
    tensors: dict[str, StoredTensor], mark: str, ends: tuple[str, ...]
) -> Iterator[Parts]:
    """Modules with a tensor of a mark, whose tensors are taken out of `tensors`.

    Args:
      tensors: by names; those of the modules are removed.
      mark: end of the name of a tensor that each such module has.
      ends: ends of the names of its other tensors; each need not be there.
    """
    for name in [n for n in tensors if n.endswith(mark)]:
        module = name.removesuffix(mark)
        own = {end: tensors.pop(module + end, None) for end in (mark, *ends)}
        yield Parts(module, {end: t for end, t in own.items() if t is not None})


def without(tensors: Stored, ends: tuple[str, ...]) -> dict[str, StoredTensor]:
    """Tensors whose names do not have one of the ends."""
    return {n: tensor for n, tensor in tensors.items() if not n.endswith(ends)}
