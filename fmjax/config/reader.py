"""Reading the statements of gin files and of the command line into bindings.

Every name is checked when it is read, so that an error names its file and line.
"""

import importlib
import pathlib
import sys

from fmjax.config import reference, registry, renamed, stored
from fmjax.config.build import Bindings, Build
from fmjax.config.files import configs_folder, find
from fmjax.config.statements import (
    Binding,
    Import,
    Include,
    Macro,
    MacroDefinition,
    Reference,
    Statement,
    leaves,
    parse,
)
from fmjax.errors import UserError, nearest, suggest
from fmjax.say_once import say_once
from fmjax.storage.objects import os_errors

# Maximum number and depth of included files; the shipped ones are at most five deep.
_MAX_FILES, _MAX_DEPTH = 1000, 50


class Reader:
    """Binds the statements of gin files in order and checks every name.

    Attributes:
      bindings: the values bound so far.
      modules: names of the imported Python modules.
      typed: maps "OWNER.FIELD" to the command-line binding that sets it.
    """

    def __init__(self, trust: bool):
        self.bindings = Bindings()
        self.modules: list[str] = []
        self.typed: dict[str, str] = {}
        self._trust = trust
        self._macros_used: dict[str, str] = {}
        # Macros set on the command line, in the user's own file, and in files of the
        # user's that it includes: name → location.
        self._macros_typed: dict[str, str] = {}
        self._macros_own: dict[str, str] = {}
        self._macros_included: dict[str, str] = {}
        self._including: list[pathlib.Path] = []
        self._files = 0

    def read_stored(self, path: pathlib.Path) -> None:
        """Binds the config of a run directory, of this version or an earlier one."""
        statements = []
        for statement in parse(read_text(path), str(path)):
            if isinstance(statement, Import):
                self._import(statement)
            else:
                statements.append(statement)
        for statement in stored.translate(statements):
            self._read(statement, path.parent)

    def read_file(self, path: pathlib.Path) -> None:
        """Binds the statements of a file and of the files that it includes."""
        if path in self._including:
            raise UserError(f"{path} includes itself.")
        self._including.append(path)
        self._files += 1
        if self._files > _MAX_FILES or len(self._including) > _MAX_DEPTH:
            raise UserError(
                f"{self._including[0]} includes more than {_MAX_FILES} files or nests "
                f"more than {_MAX_DEPTH}; expected fewer."
            )
        shipped = path.is_relative_to(configs_folder().resolve())
        macros = self._macros_included if self._including[1:] else self._macros_own
        # Lazily, since a line may name a configurable of a module imported before it.
        for statement in parse(read_text(path), str(path)):
            self._read(statement, path.parent)
            if isinstance(statement, MacroDefinition) and not shipped:
                macros[statement.name] = statement.where
        self._including.pop()

    def read_binding(self, binding: str) -> None:
        """Binds a NAME=VALUE of the command line."""
        name, equals, value = binding.partition("=")
        name, value = name.strip(), value.strip() or repr("")
        if not equals or not name:
            raise UserError(f"{binding!r}: expected NAME=VALUE, as in train.steps=100.")
        where = f"{binding!r} on the command line"
        try:
            statements = list(parse(f"{name} = {value}", where, lines=False))
        except UserError:
            statements = []
        if len(statements) != 1:  # The value is not a gin literal, so it is a string.
            statements = list(parse(f"{name} = {value!r}", where, lines=False))
        for statement in statements:
            self._read(statement, pathlib.Path.cwd())
            if isinstance(statement, Binding):
                self.typed[f"{statement.owner}.{statement.field}"] = binding
            elif isinstance(statement, MacroDefinition):
                self._macros_typed[statement.name] = binding

    def uses_macro(self, name: str) -> bool:
        """Whether a value that was read so far refers to the macro."""
        return name in self._macros_used

    def check_macros(self) -> None:
        """Checks that every macro is both set and used.

        A file that the user's own file includes may be shared by several configs, of
        which each uses a part of its macros: an unused one is a warning.

        Raises:
          UserError: a macro that is used is not set; or one that the user's own file or
            the command line sets is not used.
        """
        for name, where in self._macros_used.items():
            if name not in self.bindings.macros:
                raise UserError(
                    f"{where} uses %{name}, which has no value. Add {name}=VALUE to "
                    f"the command, or {name} = VALUE to a config."
                )
        for name, where in self._macros_own.items():
            if name not in self._macros_used:
                raise UserError(f"{where}: {self._nothing_reads(name)}")
        for name, binding in self._macros_typed.items():
            if name not in self._macros_used:
                raise UserError(f"{binding!r}: {self._nothing_reads(name)}")
        for name, where in self._macros_included.items():
            if name not in self._macros_used:
                say_once(f"warning: {where}: {self._nothing_reads(name)}")

    def check_read(self, build: Build) -> None:
        """Checks that every binding of the command line has an effect.

        Raises:
          UserError: a binding's configurable or macro was not used by the build.
        """
        for name, binding in self.typed.items():
            owner = name.split(".")[0]
            if owner not in build.configurables:
                raise UserError(
                    f"{binding!r}: this experiment does not use {owner!r}"
                    f"{_taken_by(owner)}. It uses "
                    f"{', '.join(sorted(build.configurables))}."
                )
        for name, binding in self._macros_typed.items():
            if name not in build.macros:
                raise UserError(
                    f"{binding!r}: %{name} is used in {self._macros_used[name]}, but "
                    "this experiment does not use that binding."
                )

    def _nothing_reads(self, macro: str) -> str:
        """A sentence for an unused macro, with a suggestion: a macro or a field."""
        known = {name: name for name in self._macros_used}
        bound = {
            (owner, f) for (_, owner), fs in self.bindings.fields.items() for f in fs
        }
        owners = {owner for owner, _ in bound}
        every = {(owner, f) for owner in owners for f in registry.field_names(owner)}
        # Fields that the config binds come first, as the likelier suggestions.
        for owner, field in (*sorted(bound), *sorted(every)):
            known.setdefault(field, f"{owner}.{field}")
        meant = nearest(macro, known)
        return (
            f"no value refers to %{macro}, so {macro} has no effect. Expected a "
            "field, such as train.steps, or a macro that the config uses."
            + (f" Did you mean {known[meant]!r}?" if meant else "")
        )

    def _read(self, statement: Statement, folder: pathlib.Path) -> None:
        match statement:
            case Import():
                self._import(statement)
            case Include():
                where = statement.where.rsplit(", line", 1)[0]
                self.read_file(find(statement.file, folder, where))
            case Binding():
                self._bind(statement)
            case MacroDefinition():
                self._check_value(statement.name, statement)
                self.bindings.macros[statement.name] = statement.value

    def _import(self, statement: Import) -> None:
        if not self._trust:
            raise UserError(
                f"{statement.where} imports {statement.module!r}, which runs its code. "
                "Add --trust (in Python: trust=True) if you trust it."
            )
        if str(pathlib.Path.cwd()) not in sys.path:
            sys.path.insert(0, str(pathlib.Path.cwd()))
        try:
            module = importlib.import_module(statement.module)
        except ImportError as error:
            raise UserError(
                f"{statement.where}: cannot import {statement.module!r}: {error}. "
                f"Expected it in the working directory {pathlib.Path.cwd()} or among "
                "the installed Python packages."
            ) from None
        registry.register(module)
        self.modules.append(statement.module)

    def _bind(self, statement: Binding) -> None:
        owner, field, where = statement.owner, statement.field, statement.where
        if owner not in registry.CLASSES:
            if new := renamed.CONFIGURABLES.get(owner):
                raise UserError(f"{where}: {owner!r} is now called {new!r}.")
            names = [
                f"{n}.{f}" for n in registry.CLASSES for f in registry.field_names(n)
            ]
            raise UserError(
                f"{where}: there is no configurable {owner!r}."
                + suggest(f"{owner}.{field}", names)
            )
        fields = registry.field_names(owner)
        if field not in fields:
            if note := renamed.field_note(owner, field):
                raise UserError(f"{where}: {note}")
            raise UserError(
                f"{where}: {owner!r} has no field {field!r}."
                + suggest(field, fields)
                + f" It has {', '.join(fields)}."
            )
        if note := renamed.value_note(owner, field, statement.value):
            raise UserError(f"{where}: {note}")
        self._check_value(f"{owner}.{field}", statement)
        self.bindings.bind(statement.scope, owner, field, statement.value)

    def _check_value(self, name: str, statement: Binding | MacroDefinition) -> None:
        """Records which macros are used and checks that references are known."""
        for value in leaves(statement.value):
            if isinstance(value, Macro):
                self._macros_used.setdefault(value.name, statement.where)
            if isinstance(value, Reference):
                self._check_reference(name, value, statement)

    def _check_reference(
        self, name: str, value: Reference, statement: Binding | MacroDefinition
    ) -> None:
        where = statement.where
        if value.name not in registry.CLASSES:
            if new := renamed.CONFIGURABLES.get(value.name):
                raise UserError(f"{where}: @{value.name} is now called @{new}.")
            known, expected = [*registry.CLASSES], ""
            if isinstance(statement, Binding):
                # Suggest only configurables that the field accepts.
                taken = reference.taken_by(statement.owner, statement.field)
                names = ", ".join(f"@{taken_name}()" for taken_name in taken)
                known, expected = taken, f" {name} takes {names}." if taken else ""
            raise UserError(
                f"{where}: there is no configurable {value}."
                f"{suggest(value.name, known)}{expected}"
            )
        if not value.called:
            raise UserError(f"{where}: {name} = {value}: expected {value}().")


def _taken_by(owner: str) -> str:
    """A clause that names the fields that accept a configurable, or ''."""
    fields = reference.entry(owner).used_by
    if not fields:
        return ""
    example = ""
    if len(fields) == 1:
        taker, _, name = fields[0].partition(".")
        (field,) = [f for f in reference.entry(taker).fields if f.name == name]
        value = f"(@{owner}(),)" if field.type.startswith("(") else f"@{owner}()"
        example = f", as in {fields[0]}={value}"
    return f", which {' and '.join(fields[:3])} takes{example}"


def read_text(path: pathlib.Path) -> str:
    """The text of a gin file.

    Raises:
      UserError: the file cannot be read or is not UTF-8.
    """
    try:
        with os_errors(path):
            return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
