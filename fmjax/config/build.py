"""Bindings, and the configurables that are built of them."""

from typing import Any

from fmjax.config import registry
from fmjax.config.construct import construct
from fmjax.config.statements import Macro, Reference
from fmjax.errors import UserError

# References and containers in one another; each takes three of Python's frames.
_MOST_DEPTH = 50
# Values that a config may stand for: seconds of work. A few lines can stand for more
# than fits any machine: each of thirty macros that names the one before twice makes a
# thousand million. A configurable counts as ten.
_MOST_VALUES = 100_000


class Bindings:
    """What fields and macros are bound to: the last statement about each counts."""

    def __init__(self):
        self.fields: dict[tuple[str, str], dict[str, Any]] = {}
        self.macros: dict[str, Any] = {}

    def bind(self, scope: str, owner: str, field: str, value: Any) -> None:
        """Binds `scope/owner.field`."""
        self.fields.setdefault((scope, owner), {})[field] = value

    def of(self, scopes: tuple[str, ...], owner: str) -> dict[str, Any]:
        """Fields bound for a configurable in a scope; the innermost scope's count."""
        found: dict[str, Any] = {}
        for count in range(len(scopes) + 1):
            found |= self.fields.get(("/".join(scopes[:count]), owner), {})
        return found


class Build:
    """Builds configurables of bindings, and notes what it read.

    A reference without scopes is built in the scopes of what it is part of; what a
    macro refers to, in the macro's name as the scope, as gin does.

    Attributes:
      configurables: names of those that were built.
      macros: names of those that were read.
    """

    def __init__(self, bindings: Bindings):
        self.configurables: set[str] = set()
        self.macros: set[str] = set()
        self._bindings = bindings
        self._inside: list[Any] = []
        self._values = 0

    def make(self, reference: Reference) -> Any:
        """The configurable that a reference stands for.

        Raises:
          UserError: something contains itself, stands for too much, or has a value of
            another type than its field; or what the configurable itself refuses.
        """
        self._enter(reference, 10)
        self.configurables.add(reference.name)
        bound = self._bindings.of(reference.scopes, reference.name)
        values = {
            field: self._value(value, reference.scopes)
            for field, value in bound.items()
        }
        made = construct(registry.CLASSES[reference.name], values)
        self._inside.pop()
        return made

    def _value(self, value: Any, scopes: tuple[str, ...]) -> Any:
        if isinstance(value, Reference):
            return self.make(Reference(value.scopes or scopes, value.name))
        if isinstance(value, Macro):
            self._enter(value, 1)
            self.macros.add(value.name)
            scopes = tuple(value.name.split("/"))
            value = self._value(self._bindings.macros[value.name], scopes)
        elif isinstance(value, dict):
            self._enter(None, 1)
            value = {
                self._value(k, scopes): self._value(v, scopes) for k, v in value.items()
            }
        elif isinstance(value, (list, tuple)):
            self._enter(None, 1)
            value = tuple(self._value(item, scopes) for item in value)
        else:
            self._count(1)
            return value
        self._inside.pop()
        return value

    def _enter(self, part: Reference | Macro | None, count: int) -> None:
        """Begins a part of the value that is being made; None for a container."""
        if part is not None and part in self._inside:
            raise UserError(f"{part} contains itself.")
        self._inside.append(part)
        self._count(count)
        if len(self._inside) > _MOST_DEPTH:
            raise UserError(
                f"{self._named()} is part of values in values, more than {_MOST_DEPTH} "
                "of them; expected fewer."
            )

    def _count(self, count: int) -> None:
        self._values += count
        if self._values > _MOST_VALUES:
            raise UserError(
                f"{self._named()}: with it the config stands for more than "
                f"{_MOST_VALUES:,} values; expected at most {_MOST_VALUES:,}."
            )

    def _named(self) -> str:
        return str([part for part in self._inside if part is not None][-1])
