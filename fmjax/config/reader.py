"""The statements of gin files and of the command line, bound one by one.

Every name is checked as it is read, so that a mistake names its file and line.
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

# What configs include, and how deep; the shipped ones are at most five deep.
_MOST_FILES, _MOST_DEPTH = 1000, 50


class Reader:
    """Binds the statements of gin files in order, checking every name as it goes.

    Attributes:
      bindings: what was bound so far.
      modules: Python modules that were imported.
      typed: fields that were bound on the command line, "OWNER.FIELD".
    """

    def __init__(self, trust: bool):
        self.bindings = Bindings()
        self.modules: list[str] = []
        self.typed: dict[str, str] = {}
        self._trust = trust
        self._macros_used: dict[str, str] = {}
        # Macros set on the command line, and in the user's own file: name → where.
        self._macros_typed: dict[str, str] = {}
        self._macros_own: dict[str, str] = {}
        self._including: list[pathlib.Path] = []
        self._files = 0

    def read_stored(self, path: pathlib.Path) -> None:
        """Binds what a run directory's config says, of this version or an older one."""
        statements = []
        for statement in parse(read_text(path), str(path)):
            if isinstance(statement, Import):
                self._import(statement)
            else:
                statements.append(statement)
        for statement in stored.translate(statements):
            self._read(statement, path.parent)

    def read_file(self, path: pathlib.Path) -> None:
        """Binds what a file, and those that it includes, say."""
        if path in self._including:
            raise UserError(f"{path} includes itself.")
        self._including.append(path)
        self._files += 1
        if self._files > _MOST_FILES or len(self._including) > _MOST_DEPTH:
            raise UserError(
                f"{self._including[0]} includes more than {_MOST_FILES} files, or more "
                f"than {_MOST_DEPTH} in one another; expected fewer."
            )
        shipped = path.is_relative_to(configs_folder().resolve())
        own = len(self._including) == 1 and not shipped
        # One by one: what a line imports, the next may name.
        for statement in parse(read_text(path), str(path)):
            self._read(statement, path.parent)
            if own and isinstance(statement, MacroDefinition):
                self._macros_own[statement.name] = statement.where
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
        if len(statements) != 1:  # The value is no gin, so a string.
            statements = list(parse(f"{name} = {value!r}", where, lines=False))
        for statement in statements:
            self._read(statement, pathlib.Path.cwd())
            if isinstance(statement, Binding):
                self.typed[f"{statement.owner}.{statement.field}"] = binding
            elif isinstance(statement, MacroDefinition):
                self._macros_typed[statement.name] = binding

    def check_macros(self) -> None:
        """Raises a UserError for a macro that is used and not set, or the reverse."""
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

    def check_read(self, build: Build) -> None:
        """Raises a UserError for what was typed on the command line and nothing read.

        A binding of a configurable that the experiment never makes does nothing, and
        whoever typed it believes otherwise.
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
                    f"{binding!r}: what {self._macros_used[name]} binds to %{name} is "
                    "not used by this experiment."
                )

    def _nothing_reads(self, macro: str) -> str:
        """Says so, with what may have been meant: another macro, or a field."""
        known = {name: name for name in self._macros_used}
        bound = {
            (owner, f) for (_, owner), fs in self.bindings.fields.items() for f in fs
        }
        owners = {owner for owner, _ in bound}
        every = {(owner, f) for owner in owners for f in registry.field_names(owner)}
        # A field that the config binds is likelier meant than one that it does not.
        for owner, field in (*sorted(bound), *sorted(every)):
            known.setdefault(field, f"{owner}.{field}")
        meant = nearest(macro, known)
        return (
            f"no value refers to %{macro}, so {macro} changes nothing. Expected a "
            "field, such as train.steps, or a macro that the config refers to."
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
                f"{statement.where}: cannot import {statement.module!r}: {error}. It "
                f"is looked for in {pathlib.Path.cwd()} and where Python's packages "
                "are; expected to be run in the folder that holds it."
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
                f"{where}: nothing is called {owner!r}."
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
        """Notes which macros are used; raises for references to nothing."""
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
                # Of another kind than the field takes, a name helps nobody.
                taken = reference.taken_by(statement.owner, statement.field)
                names = ", ".join(f"@{taken_name}()" for taken_name in taken)
                known, expected = taken, f" {name} takes {names}." if taken else ""
            raise UserError(
                f"{where}: {value} refers to nothing.{suggest(value.name, known)}"
                f"{expected}"
            )
        if not value.called:
            raise UserError(f"{where}: {name} = {value}: add (), as in {value}().")


def _taken_by(owner: str) -> str:
    """A clause on how an experiment comes to use a configurable, or ''."""
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
    """The text of a gin file; a UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
