"""Gin text parsed into statements, with nothing bound or built yet.

The language is gin's, read by gin's own parser; what statements mean is told by
`reader` and `build`. So nothing is kept in gin's global state.
"""

import dataclasses
import threading
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from gin import config_parser

from fmjax.errors import UserError

# What gin's parser raises: its own errors, and those of Python's.
_SYNTAX_ERRORS = (SyntaxError, ValueError, RecursionError, tokenize.TokenError)

# Python 3.11 counts the depth of literals for all threads together, and then refuses
# them (github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@SCOPES/NAME()`, or without parentheses where it is not `called`."""

    scopes: tuple[str, ...]
    name: str
    called: bool = True

    def __str__(self):
        return f"@{'/'.join((*self.scopes, self.name))}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __str__(self):
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """`SCOPE/OWNER.FIELD = VALUE`.

    Attributes:
      owner: name of a configurable.
      field: name of its field.
      value: a Python literal in which References and Macros may stand.
      scope: names with slashes between them; "" for none.
      where: file and line, or command line, for errors.
    """

    owner: str
    field: str
    value: Any
    scope: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True)
class MacroDefinition:
    """`NAME = VALUE`."""

    name: str
    value: Any
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Import:
    """`import MODULE`."""

    module: str
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Include:
    """`include 'FILE'`."""

    file: str
    where: str = ""


Statement = Binding | MacroDefinition | Import | Include


def parse(text: str, source: str, lines: bool = True) -> Iterator[Statement]:
    """The statements of gin text, in order.

    Args:
      text: of a file, or of one binding.
      source: names the text in errors.
      lines: whether errors also name the line.

    Raises:
      UserError: the text is not gin.
    """
    try:
        parser = config_parser.ConfigParser(text, _Values())
        while True:
            with _PARSING:
                found = next(parser, None)
            if found is None:
                return
            line = getattr(found.location, "line_num", None)
            where = f"{source}, line {line}" if lines and line else source
            if isinstance(found, config_parser.ImportStatement):
                yield Import(found.module, where)
            elif isinstance(found, config_parser.IncludeStatement):
                yield Include(found.filename, where)
            elif isinstance(found, config_parser.BindingStatement):
                scope, owner = found.scope, found.selector
                if found.arg_name:
                    yield Binding(owner, found.arg_name, found.value, scope, where)
                else:
                    name = f"{scope}/{owner}" if scope else owner
                    yield MacroDefinition(name, found.value, where)
    except _SYNTAX_ERRORS as error:
        raise UserError(f"{source}: {error}") from None


def replace_values(value: Any, replace: Callable[[Any], Any]) -> Any:
    """A value with `replace` applied to everything in it that is no container."""
    if isinstance(value, dict):
        return {
            replace_values(k, replace): replace_values(v, replace)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(replace_values(v, replace) for v in value)
    return replace(value)


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a value that is no container."""
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def format_value(value: Any) -> str:
    """A value as gin text, as `render` spells it."""
    if isinstance(value, dict):
        items = (f"{format_value(k)}: {format_value(v)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"({''.join(f'{format_value(v)}, ' for v in value).rstrip()})"
    return str(value) if isinstance(value, (Reference, Macro)) else repr(value)


class _Values(config_parser.ParserDelegate):
    """Tells gin's parser what references and macros become."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scopes, name = scoped_configurable_name.split("/")
        return Reference(tuple(scopes), name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)
