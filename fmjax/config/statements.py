"""Parsing gin text into statements.

gin's own parser reads the text; `reader` and `build` bind the statements and build
configurables, so gin's global state is not used.
"""

import dataclasses
import threading
import tokenize
from collections.abc import Callable, Iterator
from typing import Any

from gin import config_parser

from fmjax.errors import UserError

# The exceptions of gin's parser: its own, and those of Python's parser.
_SYNTAX_ERRORS = (SyntaxError, ValueError, RecursionError, tokenize.TokenError)

# Python 3.11 counts the depth of literals across threads, so that parsing in several
# threads at once can fail (github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Reference:
    """A reference `@SCOPES/NAME()`; without parentheses if `called` is False."""

    scopes: tuple[str, ...]
    name: str
    called: bool = True

    def __str__(self):
        return f"@{'/'.join((*self.scopes, self.name))}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """A macro used as a value, `%NAME`."""

    name: str

    def __str__(self):
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Binding:
    """A binding `SCOPE/OWNER.FIELD = VALUE`.

    Attributes:
      owner: name of a configurable.
      field: name of its field.
      value: a Python literal that may contain References and Macros.
      scope: names separated by slashes; "" for none.
      where: file and line, or command line, for error messages.
    """

    owner: str
    field: str
    value: Any
    scope: str = ""
    where: str = ""


@dataclasses.dataclass(frozen=True)
class MacroDefinition:
    """The definition of a macro, `NAME = VALUE`."""

    name: str
    value: Any
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Import:
    """An import of a Python module, `import MODULE`."""

    module: str
    where: str = ""


@dataclasses.dataclass(frozen=True)
class Include:
    """An include of another gin file, `include 'FILE'`."""

    file: str
    where: str = ""


Statement = Binding | MacroDefinition | Import | Include


def parse(text: str, source: str, lines: bool = True) -> Iterator[Statement]:
    """Parses gin text and yields its statements in order.

    Args:
      text: the text of a file or of one binding.
      source: name of the text for error messages.
      lines: whether error messages also give the line.

    Raises:
      UserError: the text is not valid gin.
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
    """A value with `replace` applied to each of its `leaves`."""
    if isinstance(value, dict):
        return {
            replace_values(k, replace): replace_values(v, replace)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return type(value)(replace_values(v, replace) for v in value)
    return replace(value)


def leaves(value: Any) -> Iterator[Any]:
    """The parts of a value that are not dicts, lists or tuples."""
    if isinstance(value, dict):
        value = (*value.keys(), *value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def format_value(value: Any) -> str:
    """A value as gin text, in the same format as `render`."""
    if isinstance(value, dict):
        items = (f"{format_value(k)}: {format_value(v)}" for k, v in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, (list, tuple)):
        return f"({''.join(f'{format_value(v)}, ' for v in value).rstrip()})"
    return str(value) if isinstance(value, (Reference, Macro)) else repr(value)


class _Values(config_parser.ParserDelegate):
    """Makes gin's parser return References and Macros."""

    def configurable_reference(self, scoped_configurable_name, evaluate):
        *scopes, name = scoped_configurable_name.split("/")
        return Reference(tuple(scopes), name, evaluate)

    def macro(self, macro_name):
        return Macro(macro_name)
