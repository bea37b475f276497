"""gin, and gin only here: from a config's name and bindings to a frozen Experiment.

A config from a stranger imports nothing: `import` lines are refused without `trust`.
"""

import dataclasses
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence

import gin
from gin import config as gin_state
from gin import config_parser

from fmjax import gin_registry as registry
from fmjax.config_files import exists, find
from fmjax.configurable import fields_of
from fmjax.data.image_data import ImageData
from fmjax.data.pipeline import Data
from fmjax.errors import UserError, suggest
from fmjax.experiment import Experiment


def load(
    config: str | os.PathLike, bindings: Sequence[str] = (), trust: bool = False
) -> Experiment:
    """Reads a gin file and bindings once, into a frozen experiment.

    Args:
      config: a path, or a name under configs/ with or without ".gin".
      bindings: "NAME=VALUE" each; a value that is no gin literal is taken as a string.
      trust: allows `import` lines, which run code.

    Raises:
      UserError: for an unknown file, name, type or missing value.
    """
    experiment, modules = _load("experiment", str(config), bindings, trust)
    return dataclasses.replace(experiment, modules=modules)


def load_data(
    config: str, bindings: Sequence[str] = (), trust: bool = False
) -> Data | ImageData:
    """The data alone of a whole config, or of a file under configs/data/.

    It is what the config binds to experiment.data, or else `@data()`.
    """
    beside = pathlib.Path("data") / config
    if not exists(config) and exists(str(beside)):
        config = str(beside)
    return _load("experiment.data", config, bindings, trust)[0]


def _load(root: str, config: str, bindings: Sequence[str], trust: bool):
    with registry.isolated():
        reader = _Reader(trust)
        reader.read_file(find(config, pathlib.Path.cwd()))
        for binding in bindings:
            reader.read_binding(binding)
        reader.check_macros()
        if root == "experiment.data":
            root = _bound_data()
        resolved = _resolve(root)
        reader.check_used()
        return resolved, tuple(reader.modules)


class _Reader:
    """Binds the statements of gin files in order, checking every name as it goes."""

    def __init__(self, trust: bool):
        self.trust = trust
        self.modules: list[str] = []
        self.macros_used: dict[str, str] = {}
        self.macros_set: set[str] = set()
        self.from_user: dict[str, str] = {}
        self.including: list[pathlib.Path] = []

    def read_file(self, path: pathlib.Path) -> None:
        if path in self.including:
            raise UserError(f"{path} includes itself.")
        self.including.append(path)
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}.") from None
        self._read(text, str(path), path.parent)
        self.including.pop()

    def read_binding(self, binding: str) -> None:
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
        except (SyntaxError, ValueError, RecursionError) as error:
            if isinstance(error, UserError):
                raise
            plain = False
        if not plain:
            statement = f"{name} = {value.strip()!r}"
        self._read(statement, source, pathlib.Path.cwd())
        if "." in name:
            self.from_user[name.rsplit(".", 1)[0].rsplit("/", 1)[-1]] = binding

    def check_macros(self) -> None:
        for name, source in self.macros_used.items():
            if name not in self.macros_set:
                raise UserError(
                    f"{source} uses %{name}, which has no value. Add {name}=VALUE to "
                    f"the command, or {name} = VALUE to a config."
                )

    def check_used(self) -> None:
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
        statements = iter(config_parser.ConfigParser(text, _Delegate(self, source)))
        while True:
            try:
                statement = next(statements)
            except StopIteration:
                return
            except UserError:
                raise
            except (SyntaxError, ValueError, RecursionError) as error:
                raise UserError(f"{source}: {error}") from None
            if isinstance(statement, config_parser.ImportStatement):
                self._import(statement, source)
            elif isinstance(statement, config_parser.IncludeStatement):
                self.read_file(find(statement.filename, folder, source))
            elif isinstance(statement, config_parser.BindingStatement):
                self._bind(statement, source)

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

    def __init__(self, reader: _Reader, source: str):
        super().__init__()
        self.reader, self.source = reader, source

    def configurable_reference(self, scoped_selector, evaluate):
        selector = scoped_selector.rsplit("/", 1)[-1]
        if not gin_state._REGISTRY.matching_selectors(selector):
            raise UserError(
                f"{self.source}: @{scoped_selector} refers to nothing."
                + suggest(selector, registry.known())
            )
        return super().configurable_reference(scoped_selector, evaluate)

    def macro(self, name):
        self.reader.macros_used.setdefault(name, self.source)
        return super().macro(name)


def _bound_data() -> str:
    """The name of the configurable that is bound to experiment.data."""
    try:
        return gin.query_parameter("experiment.data").scoped_selector
    except (ValueError, AttributeError):  # Nothing is bound, or no configurable.
        return "data"


def _resolve(root: str):
    try:
        return gin.get_configurable(root)()
    except UserError as error:
        # gin appends where in its call stack it was; the message alone is for the user.
        raise UserError(str(error).split("\n  In call to configurable")[0]) from None
