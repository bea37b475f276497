"""Entries of a family's table of options, which read and write config.json.

An entry is a pair of functions: `read` takes options of config.json and returns fields
of the model, `write` is its inverse. The functions below make the usual entries; a
family defines its own for unusual options.

Fields of models have dotted names here: "vocab_size", "transformer.num_layers". A name
that begins with "*." stands for the field of both encoder and decoder.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fmjax.configurable import fields_of
from fmjax.errors import UserError
from fmjax.interop.model_fields import NEUTRAL
from fmjax.interop.options import Options

Values = Mapping[str, Any]

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Entry(Protocol):
    """The interface of entries: options of config.json and the fields they define.

    Attributes:
      fields: dotted names of the fields.
    """

    fields: tuple[str, ...]

    def read(self, options: Options) -> dict[str, Any]:
        """Takes options, returns fields; raises a UserError if unsupported."""

    def write(self, values: Values) -> dict[str, Any]:
        """The options for a model's fields; raises a UserError if there are none."""


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class FunctionEntry:
    """An entry made of two functions.

    Attributes:
      fields: see `Entry`.
      read: see `Entry`.
      write: see `Entry`; by default writes no options.
      name: name of its option in messages; "" for none or several.
    """

    fields: tuple[str, ...]
    read: Callable[[Options], dict[str, Any]] = _nothing
    write: Callable[[Values], dict[str, Any]] = _nothing
    name: str = ""


def option(
    name: str,
    fields: str,
    kind: type,
    default: Any,
    *,
    to_field: Mapping[Any, Any] | None = None,
    null: bool = False,
    others: str = "",
) -> Entry:
    """An entry for an option that is equal to one or several fields.

    Args:
      name: name in config.json.
      fields: names of the fields, separated by spaces.
      kind: type of the option's value.
      default: transformers' default.
      to_field: maps values of the option to values of the field, if they differ. If
        several map to the same, the first is written.
      null: whether null is a value with its own meaning.
      others: other names of the same option, separated by spaces, which may be present
        as well or instead; null there is ignored.
    """
    names = expand(fields)

    def read(options: Options) -> dict[str, Any]:
        found = {other: options.take(other, kind, None) for other in others.split()}
        found = {other: value for other, value in found.items() if value is not None}
        value = options.take(name, kind, [default, *found.values()][-1], null)
        for other, other_value in found.items():
            if other_value != value:
                options.refuse(other, other_value, f"{value!r}, as {name} is")
        if to_field is not None:
            if value not in to_field:
                expected = ", ".join(map(repr, to_field))
                options.refuse(name, value, f"one of {expected}")
            value = to_field[value]
        return dict.fromkeys(names, value)

    def write(values: Values) -> dict[str, Any]:
        first, *rest = (values[field] for field in names)
        for field, other in zip(names[1:], rest):
            if other != first and field.rpartition(".")[2] not in NEUTRAL:
                raise UserError(
                    f"{names[0]} = {first!r} and {field} = {other!r}; expected the "
                    f"same value, since {name} is both."
                )
        if first is None and not null and default is not None:
            raise UserError(f"{names[0]} = None; expected a value.")
        if to_field is None:
            return {name: first}
        for theirs, ours in to_field.items():
            if ours == first:
                return {name: theirs}
        raise UserError(
            f"{names[0]} = {first!r}; expected one of "
            f"{', '.join(map(repr, dict.fromkeys(to_field.values())))}."
        )

    return FunctionEntry(names, read, write, name)


def part(
    fields: str,
    cls: type,
    options: Mapping[str, tuple[str, type, Any]],
    constants: Values | None = None,
) -> Entry:
    """An entry for options that form a configurable in one or several equal fields.

    Args:
      fields: names of the fields, separated by spaces.
      cls: class of the configurable.
      options: maps each option to the field of `cls`, the type of the option's value,
        and transformers' default. Other fields of `cls` must have their defaults.
      constants: fields of `cls` with another value in all models of the family.
    """
    names, others = expand(fields), constants or {}

    def read(given: Options) -> dict[str, Any]:
        taken = {
            field: given.take(name, kind, default)
            for name, (field, kind, default) in options.items()
        }
        return dict.fromkeys(names, cls(**taken, **others))

    def write(values: Values) -> dict[str, Any]:
        first = values[names[0]]
        for name in names:
            if not isinstance(values[name], cls):
                raise UserError(
                    f"{name} = {values[name]!r}; expected @{cls.gin_name}()."
                )
            if values[name] != first:
                raise UserError(
                    f"{names[0]} = {first!r} and {name} = {values[name]!r}; expected "
                    "the same value, since config.json has only one."
                )
        written = {field: name for name, (field, _, _) in options.items()}
        for field in fields_of(cls):
            value = getattr(first, field.name)
            expected = others.get(field.name, field.default)
            if field.name not in written and value != expected:
                raise UserError(
                    f"{cls.gin_name}.{field.name} = {value!r}; expected {expected!r}."
                )
        return {name: getattr(first, field) for field, name in written.items()}

    return FunctionEntry(names, read, write)


def activation(name: str, fields: str, default: str) -> Entry:
    """An entry for an activation; gelu_tanh has more than one name in config.json."""
    return option(name, fields, str, default, to_field=ACTIVATIONS)


def size(name: str, field: str, default: int, square: bool = False) -> Entry:
    """An entry for a height and width in pixels; one number if they are equal.

    Args:
      name: name in config.json.
      field: field of the model.
      default: transformers' default.
      square: whether height and width must be equal.
    """

    def read(options: Options) -> dict[str, Any]:
        if not isinstance(options.peek(name, default), list):
            return {field: options.take(name, int, default)}
        edges = options.take(name, list, None)
        if len(edges) != 2 or not all(isinstance(edge, int) for edge in edges):
            options.refuse(name, edges, "a height and a width")
        height, width = edges
        if square and height != width:
            options.refuse(name, edges, "a square")
        return {field: height if height == width else (height, width)}

    def write(values: Values) -> dict[str, Any]:
        value = values[field]
        if square and not isinstance(value, int):
            raise UserError(f"{field} = {value}; expected one number.")
        return {name: value if isinstance(value, int) else list(value)}

    return FunctionEntry((field,), read, write, name)


def same(name: str, field: str, kind: type) -> Entry:
    """An entry for an option that may be missing or null, else must equal a field."""

    def read(options: Options) -> dict[str, Any]:
        value = options.take(name, kind, None)
        return {} if value is None else {field: value}

    return FunctionEntry((), read, name=name)


def fixed(values: Values) -> Entry:
    """An entry for fields with the same value in every model of a family."""
    constants = {field: v for names, v in values.items() for field in expand(names)}

    def write(values: Values) -> dict[str, Any]:
        for field, expected in constants.items():
            if values[field] != expected:
                raise UserError(f"{field} = {values[field]!r}; expected {expected!r}.")
        return {}

    return FunctionEntry(tuple(constants), lambda options: dict(constants), write)


def assumed(values: Values) -> Entry:
    """An entry for fields without an option: imports set these, exports accept any."""
    return FunctionEntry(tuple(values), lambda options: dict(values))


def constant(name: str, value: Any, *others: Any, default: Any = None) -> Entry:
    """An entry for an option with one supported value.

    Args:
      name: name in config.json.
      value: the value that is read and written.
      *others: other values that are read.
      default: transformers' default; if None it is `value`, which then is not written.
    """

    def read(options: Options) -> dict[str, Any]:
        options.require(name, value, *others, default=default)
        return {}

    written = {} if default is None else {name: value}
    return FunctionEntry((), read, lambda values: dict(written), name)


def ignored(names: str) -> Entry:
    """An entry for options, separated by spaces, with no effect on the model."""

    def read(options: Options) -> dict[str, Any]:
        options.ignore(*names.split())
        return {}

    return FunctionEntry((), read)


def expand(fields: str) -> tuple[str, ...]:
    """Dotted names of fields, with "*." replaced by encoder and decoder."""
    return tuple(
        name.replace("*", side, 1)
        for name in fields.split()
        for side in (("encoder", "decoder") if name.startswith("*.") else ("",))
    )
