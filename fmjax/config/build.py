"""Bindings, and the configurables built from them."""

from typing import Any

from fmjax.config import registry
from fmjax.config.construct import construct
from fmjax.config.statements import Macro, Reference
from fmjax.errors import UserError

# Maximum nesting of references and containers; each level takes three Python frames.
_MAX_DEPTH = 50
# Maximum number of values that a config may expand to, some seconds of work. A few
# lines can expand to more than fits any machine: thirty macros that each name the
# previous one twice make 2**30 values. A configurable counts as ten.
_MAX_VALUES = 100_000


class Bindings:
    """The values of fields and macros; of several statements the last one counts."""

    def __init__(self):
        self.fields: dict[tuple[str, str], dict[str, Any]] = {}
        self.macros: dict[str, Any] = {}

    def bind(self, scope: str, owner: str, field: str, value: Any) -> None:
        """Binds `scope/owner.field`."""
        self.fields.setdefault((scope, owner), {})[field] = value

    def of(self, scopes: tuple[str, ...], owner: str) -> dict[str, Any]:
        """Values of a configurable's bound fields; inner scopes override outer ones."""
        found: dict[str, Any] = {}
        for count in range(len(scopes) + 1):
            found |= self.fields.get(("/".join(scopes[:count]), owner), {})
        return found


class Build:
    """Builds configurables from bindings and records which ones were used.

    As in gin, a reference without scopes is built in the scopes of the configurable
    that contains it, and a macro's value in a scope named like the macro.

    Attributes:
      configurables: names of the configurables built so far.
      macros: names of the macros read so far.
    """

    def __init__(self, bindings: Bindings):
        self.configurables: set[str] = set()
        self.macros: set[str] = set()
        self._bindings = bindings
        self._inside: list[Any] = []
        self._values = 0

    def make(self, reference: Reference) -> Any:
        """Builds the configurable that a reference names.

        Raises:
          UserError: a value contains itself, is nested too deeply, expands to too many
            values or has the wrong type; or the configurable refuses its fields.
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
        """Enters a part of the value that is being built; None for a container."""
        if part is not None and part in self._inside:
            raise UserError(f"{part} contains itself.")
        self._inside.append(part)
        self._count(count)
        if len(self._inside) > _MAX_DEPTH:
            raise UserError(
                f"{self._named()} is nested in more than {_MAX_DEPTH} values; expected "
                f"at most {_MAX_DEPTH}."
            )

    def _count(self, count: int) -> None:
        self._values += count
        if self._values > _MAX_VALUES:
            raise UserError(
                f"{self._named()}: with it the config expands to more than "
                f"{_MAX_VALUES:,} values; expected at most {_MAX_VALUES:,}."
            )

    def _named(self) -> str:
        return str([part for part in self._inside if part is not None][-1])
