"""Families: models of one model_type, described by tables of options and of weights."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from fmjax.errors import UserError, suggest
from fmjax.interop import model_fields
from fmjax.interop.entries import Entry
from fmjax.interop.options import Options
from fmjax.interop.rows import Joined, Row


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A class of transformers: a family's model with certain heads.

    Attributes:
      entries: entries in addition to the family's.
      rows: rows of weights in addition to the family's.
      bare: whether the names of its tensors lack the family's prefix.
    """

    entries: tuple[Entry, ...] = ()
    rows: tuple[Row | Joined, ...] = ()
    bare: bool = False


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models: how config.json and tensors correspond to a model here.

    Attributes:
      model_type: model_type of config.json.
      model: class of the model here.
      objective: objective with which an imported run is trained further.
      entries: entries of config.json's options and the model's fields.
      rows: rows of weights; rows of parameters that a model does not have are skipped.
      architectures: architectures by name; of those that fit a model, the first is
        written.
      trained_by: options of config.json that are fields of the objective.
      prefix: prefix of the tensors' names, except in bare architectures.
      copies: maps tensors that may be in a file although they are tied to the name of
        the other tensor. Only a head may differ, which then is untied.
      repeated: copies that transformers expects in a file with an untied head.
      computed: returns tensors by name that are not parameters here, for a model.
      trained: fields of a model for which files hold trained values.
      optional: tensors whose absence sets a field to False or None.
      constants: pattern of tensors without weights, which old files have.
      foreign: pattern of tensors of heads for which transformers has no class.
      renamed: (pattern, replacement) for tensor names of old files.
      without: fields of a model for parts that files do not contain.
      objects: objects of config.json whose options are named "object.option".
      spare: of the short names of a file, those of parts that no class of transformers
        has.
      written: the name of a tensor in the files of a model, where it depends on the
        model's fields; `renamed` reads it.
    """

    model_type: str
    model: type[nn.Module]
    objective: type
    entries: tuple[Entry, ...]
    rows: tuple[Row | Joined, ...]
    architectures: Mapping[str, Architecture]
    trained_by: tuple[Entry, ...] = ()
    prefix: str = ""
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    computed: Callable[[nn.Module], dict[str, np.ndarray]] = lambda model: {}
    trained: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    optional: Mapping[str, str] = dataclasses.field(default_factory=dict)
    constants: str = "(?!)"
    foreign: str = "(?!)"
    renamed: tuple[tuple[str, str], ...] = ()
    without: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    spare: Callable[[Iterable[str]], set[str]] = lambda found: set()
    written: Callable[[nn.Module, str], str] = lambda model, name: name

    def kept(self, model: nn.Module) -> nn.Module:
        """The part of a model that files contain."""
        return model.clone(**dict.fromkeys(self.without))

    def short(self, name: str) -> str:
        """The name of a tensor without the family's prefix."""
        for pattern, replacement in self.renamed:
            name = re.sub(pattern, replacement, name)
        return name.removeprefix(self.prefix)

    def others(self, architecture: Architecture, found: Iterable[str]) -> list[str]:
        """Short names of the tensors of heads that an architecture does not have."""
        every = [row for a in self.architectures.values() for row in a.rows]
        own = {row.name for row in self.rows_of(architecture)}
        known = {self.short(row.name) for row in every if row.name not in own}
        known |= self.spare(found)
        return [n for n in found if n in known or re.fullmatch(self.foreign, n)]

    def rows_of(self, architecture: Architecture) -> tuple[Row | Joined, ...]:
        """Rows of the weights of the family and an architecture."""
        return self.rows + architecture.rows

    def choose(self, named: str | None, found: set[str]) -> Architecture:
        """The architecture of a file.

        It is the one named in config.json, or a larger one if the file has its heads
        (BERT for pre-training); without a name, the largest. If the file has nothing of
        the head that the name stands for, it is one without, as of encoders for
        sentences that are named after the class that they were trained from.
        """
        required = self.architectures[named].rows if named else ()
        head = self._short(required)
        if head and not head & found and self._short(self.rows) & found:
            required = ()
        fit = [
            a
            for a in self.architectures.values()
            if {self.short(r.name) for r in a.rows} <= found
            and set(required) <= set(a.rows)
        ]
        fit = fit or [self.architectures[named or next(iter(self.architectures))]]
        return max(fit, key=lambda a: len(a.rows))

    def _short(self, rows: Iterable[Row]) -> set[str]:
        """Short names of those tensors that are no copies of others."""
        copies = {self.short(name) for name in self.copies}
        return {self.short(row.name) for row in rows} - copies

    def read(self, options: Options, architecture: Architecture) -> dict[str, Any]:
        """The fields that a config.json defines."""
        options = options.opened(*self.objects)
        values: dict[str, Any] = {}
        defined_by: dict[str, str] = {}
        for entry in self.entries + architecture.entries:
            for field, value in entry.read(options).items():
                option = getattr(entry, "name", "")
                if field in values and values[field] != value:
                    described = model_fields.describe(self.model, field)
                    if not option:
                        # The value in the file, or the default.
                        option = defined_by[field]
                        given = options.peek(option, values[field])
                        options.refuse(
                            option, given, f"{described} to be {value!r} in this class"
                        )
                    options.refuse(
                        option,
                        value,
                        f"{values[field]!r}, as {defined_by[field]} has it, for "
                        f"{described} is both",
                    )
                values[field], defined_by[field] = value, option
        options.finish()
        return values

    def read_objective(self, options: Options) -> dict[str, Any]:
        """The objective's fields that a config.json defines; called before `read`."""
        values: dict[str, Any] = {}
        for entry in self.trained_by:
            values |= entry.read(options)
        return values

    def write_objective(self, objective: Any) -> dict[str, Any]:
        """Options of config.json for an objective; none if it is of another class."""
        config: dict[str, Any] = {}
        if type(objective) is self.objective:
            for entry in self.trained_by:
                config |= entry.write(vars(objective))
        return config

    def write(self, model: nn.Module) -> tuple[str, Architecture, dict[str, Any]]:
        """The name and the architecture of a model, and the options of its config.json.

        Raises:
          UserError: the family cannot represent the model; the message names a field.
        """
        refused = []
        for name, architecture in self.architectures.items():
            problems, config = self._written(model, architecture)
            if not problems:
                return name, architecture, config
            refused.append(problems)
        problems = min(refused, key=len)
        raise Unlike(len(problems), f"{'; '.join(map(_in_brackets, problems))}.")

    def _written(self, model: nn.Module, architecture: Architecture):
        values = model_fields.values_of(model)
        left = set(model_fields.unusual(model))
        problems, config = [], {}
        for entry in self.entries + architecture.entries:
            left.difference_update(entry.fields)
            try:
                config |= entry.write(values)
            except UserError as error:
                problems.append(str(error))
        for field in sorted(left - {*self.optional.values()}):
            problems.append(
                f"{field} = {values[field]!r}, for which there is no option."
            )
        named = (
            re.sub(
                r"^\S+",
                lambda match: model_fields.describe(self.model, match[0]),
                problem,
            )
            for problem in problems
        )
        return list(named), self._with_objects(config)

    def _with_objects(self, config: dict[str, Any]) -> dict[str, Any]:
        whole: dict[str, Any] = {name: {} for name in self.objects}
        for name, value in config.items():
            owner, _, option = name.rpartition(".")
            (whole[owner] if owner else whole)[option] = value
        return whole


def _in_brackets(problem: str) -> str:
    """A problem as a part of a sentence: "X = 1 (expected 2)"."""
    found, _, expected = problem.rstrip(".").partition("; expected ")
    return f"{found} (expected {expected})" if expected else found


class Unlike(UserError):
    """A family cannot represent a model.

    Attributes:
      distance: number of fields that it cannot represent.
    """

    def __init__(self, distance: int, message: str):
        super().__init__(message)
        self.distance = distance


def find(families: tuple[Family, ...], model_type: str, named: str | None) -> Family:
    """The family of a config.json; raises a UserError if it is not supported."""
    known = dict.fromkeys(f.model_type for f in families)
    of_type = [f for f in families if f.model_type == model_type]
    if not of_type:
        raise UserError(
            f"model_type = {model_type!r} is not supported; expected one of "
            f"{', '.join(known)}.{suggest(model_type, known)}"
        )
    if named is None:
        return of_type[0]
    for family in of_type:
        if named in family.architectures:
            return family
    names = [name for f in of_type for name in f.architectures]
    raise UserError(
        f"architectures = [{named!r}] is not supported; expected one of "
        f"{', '.join(names)}.{suggest(named, names)}"
    )
