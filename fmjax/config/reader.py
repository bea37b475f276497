"""The statements of gin files and of the command line, bound one by one.

Every name is checked as it is read, so that a mistake names its file and line.
"""

import importlib
import pathlib
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

import gin
from gin import config as gin_state
from gin import config_parser

from fmjax.config import registry
from fmjax.config.files import find
from fmjax.configurable import fields_of
from fmjax.errors import UserError, suggest

# What configs include, and how deep; the shipped ones are at most five deep.
_MOST_FILES, _MOST_DEPTH = 1000, 50
# What gin's parser raises: its own errors, and those of Python's.
_NO_GIN = (SyntaxError, ValueError, RecursionError, tokenize.TokenError)


class Reader:
    """Binds the statements of gin files in order, checking every name as it goes."""

    def __init__(self, trust: bool):
        self.trust = trust
        self.modules: list[str] = []
        self.macros_used: dict[str, str] = {}
        self.macros_set: set[str] = set()
        self.from_user: dict[str, str] = {}
        self.typed: set[str] = set()
        self.including: list[pathlib.Path] = []
        self.files = 0

    def read_file(self, path: pathlib.Path) -> None:
        """Binds what a file, and those that it includes, say."""
        if path in self.including:
            raise UserError(f"{path} includes itself.")
        self.including.append(path)
        self.files += 1
        if self.files > _MOST_FILES or len(self.including) > _MOST_DEPTH:
            raise UserError(
                f"{self.including[0]} includes more than {_MOST_FILES} files, or more "
                f"than {_MOST_DEPTH} in one another; expected fewer."
            )
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}.") from None
        self._read(text, str(path), path.parent)
        self.including.pop()

    def read_binding(self, binding: str) -> None:
        """Binds a NAME=VALUE of the command line."""
        name, equals, value = binding.partition("=")
        name = name.strip()
        if not equals or not name:
            raise UserError(f"{binding!r}: expected NAME=VALUE, as in train.steps=100.")
        source = f"{binding!r} on the command line"
        try:
            statement = f"{name} = {value.strip() or repr('')}"
            parsed = list(
                config_parser.ConfigParser(statement, _Delegate(self, source))
            )
            plain = len(parsed) == 1
        except _NO_GIN as error:
            if isinstance(error, UserError):
                raise
            plain = False
        if not plain:
            statement = f"{name} = {value.strip()!r}"
        self._read(statement, source, pathlib.Path.cwd())
        if "." in name:
            self.from_user[name.rsplit(".", 1)[0].rsplit("/", 1)[-1]] = binding
            self.typed.add(name.rsplit("/", 1)[-1])

    def check_macros(self) -> None:
        """Raises a UserError for a macro that is used and not set."""
        for name, source in self.macros_used.items():
            if name not in self.macros_set:
                raise UserError(
                    f"{source} uses %{name}, which has no value. Add {name}=VALUE to "
                    f"the command, or {name} = VALUE to a config."
                )

    def check_used(self) -> None:
        """Raises a UserError for a binding that nothing has read."""
        # A binding of a configurable that the experiment never makes does nothing, and
        # whoever typed it believes otherwise.
        used = registry.used()
        for owner, binding in self.from_user.items():
            if owner.rsplit(".", 1)[-1] not in used:
                raise UserError(
                    f"{binding!r}: this experiment does not use {owner!r}. It uses "
                    f"{', '.join(sorted(used - {'macro'}))}."
                )

    def _read(self, text: str, source: str, folder: pathlib.Path) -> None:
        for statement in self._statements(text, source):
            if isinstance(statement, config_parser.ImportStatement):
                self._import(statement, source)
            elif isinstance(statement, config_parser.IncludeStatement):
                self.read_file(find(statement.filename, folder, source))
            elif isinstance(statement, config_parser.BindingStatement):
                self._bind(statement, source)

    def _statements(self, text: str, source: str) -> Iterator[Any]:
        """One by one: what a line imports, the next may name."""
        try:
            yield from config_parser.ConfigParser(text, _Delegate(self, source))
        except UserError:
            raise
        except _NO_GIN as error:
            raise UserError(f"{source}: {error}") from None

    def _import(self, statement, source: str) -> None:
        if not self.trust:
            raise UserError(
                f"{source} imports {statement.module!r}, which runs its code. Add "
                "--trust (in Python: trust=True) if you trust it."
            )
        if str(pathlib.Path.cwd()) not in sys.path:
            sys.path.insert(0, str(pathlib.Path.cwd()))
        try:
            module = importlib.import_module(statement.module)
        except ImportError as error:
            raise UserError(f"{source}: cannot import: {error}.") from None
        registry.register(module)
        self.modules.append(statement.module)

    def _bind(self, statement, source: str) -> None:
        scope, selector, field, value, location = statement
        where = f"{source}, line {location.line_num}" if location else source
        if source.endswith("command line"):
            where = source
        if not field:
            name = f"{scope}/{selector}" if scope else selector
            self.macros_set.add(name)
            gin.bind_parameter((name, "gin.macro", "value"), value)
            return
        if selector not in registry.CLASSES:
            try:
                gin.bind_parameter((scope, selector, field), value)
                return
            except ValueError:
                names = [
                    f"{name}.{f}" for name, fs in registry.known().items() for f in fs
                ]
                raise UserError(
                    f"{where}: nothing is called {selector!r}."
                    + suggest(f"{selector}.{field}", names)
                ) from None
        fields = [f.name for f in fields_of(registry.CLASSES[selector])]
        if field not in fields:
            raise UserError(
                f"{where}: {selector!r} has no field {field!r}."
                + suggest(field, fields)
                + f" It has {', '.join(fields)}."
            )
        gin.bind_parameter((scope, selector, field), value)


class _Delegate(gin_state.ParserDelegate):
    """Makes gin's references, and notes which macros are used where."""

    def __init__(self, reader: Reader, source: str):
        super().__init__()
        self.reader, self.source = reader, source

    def configurable_reference(self, scoped_selector, evaluate):
        selector = scoped_selector.rsplit("/", 1)[-1]
        known = selector in registry.CLASSES
        if self.reader.trust:
            # Modules that a config imports may teach gin more than classes.
            known = gin_state._REGISTRY.matching_selectors(selector)
        if not known:
            raise UserError(
                f"{self.source}: @{scoped_selector} refers to nothing."
                + suggest(selector, registry.known())
            )
        return super().configurable_reference(scoped_selector, evaluate)

    def macro(self, name):
        self.reader.macros_used.setdefault(name, self.source)
        return super().macro(name)
