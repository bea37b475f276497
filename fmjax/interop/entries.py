"""A family's table of options: entries, each of which reads and writes config.json.

An entry is a pair of functions. `read` takes options of config.json and returns fields
of the model, `write` is its inverse. The functions below make the usual ones; a family
writes its own where an option is like no other's.

Fields of models have dotted names here: "vocab_size", "transformer.num_layers". One
that begins with "*." is the encoder's and the decoder's.
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
    """Some options of config.json, and the fields of a model that they tell.

    Attributes:
      fields: of the model.
    """

    fields: tuple[str, ...]

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; returns fields. A UserError if they are not supported."""

    def write(self, values: Values) -> dict[str, Any]:
        """The options of a model's fields. A UserError if there are none for them."""


def _nothing(_: Any) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class FunctionEntry:
    """An entry made of two functions.

    Attributes:
      fields: see `Entry`.
      read: likewise.
      write: likewise; by default there are no options to write.
      name: of its option, for messages; "" for none or several.
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
    """An option that is one field, or several that are equal.

    Args:
      name: in config.json.
      fields: separated by spaces.
      kind: the type of its value there.
      default: what transformers takes where there is none.
      to_field: from the values there to those of the field, where they differ; of
        several for one, the first is written.
      null: whether null is a value of its own.
      others: other names of the same option, which may stand beside it, or alone; null
        there says nothing.
    """
    names = expand(fields)

    def read(options: Options) -> dict[str, Any]:
        told = {other: options.take(other, kind, None) for other in others.split()}
        told = {other: value for other, value in told.items() if value is not None}
        value = options.take(name, kind, [default, *told.values()][-1], null)
        for other, beside in told.items():
            if beside != value:
                options.refuse(other, beside, f"{value!r}, as {name} is")
        if to_field is not None:
            if value not in to_field:
                expected = ", ".join(map(repr, to_field))
                options.refuse(name, value, f"one of {expected}")
            value = to_field[value]
        return dict.fromkeys(names, value)

    def write(values: Values) -> dict[str, Any]:
        first, *beside = (values[field] for field in names)
        for field, other in zip(names[1:], beside):
            if other != first and field.rpartition(".")[2] not in NEUTRAL:
                raise UserError(
                    f"{names[0]} = {first!r} and {field} = {other!r}; expected the "
                    f"same, for {name} is both."
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


def part(fields: str, cls: type, options: Mapping[str, tuple[str, type, Any]]) -> Entry:
    """Options that together are a configurable in one field, or in several equal ones.

    Args:
      fields: separated by spaces.
      cls: of the configurable.
      options: for each option the field of `cls`, the type of its value in config.json,
        and what transformers takes where there is none. Other fields of `cls` must have
        their defaults.
    """
    names = expand(fields)

    def read(given: Options) -> dict[str, Any]:
        told = {
            field: given.take(name, kind, default)
            for name, (field, kind, default) in options.items()
        }
        return dict.fromkeys(names, cls(**told))

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
                    "the same, for there is one of them in config.json."
                )
        written = {field: name for name, (field, _, _) in options.items()}
        for field in fields_of(cls):
            value = getattr(first, field.name)
            if field.name not in written and value != field.default:
                raise UserError(
                    f"{cls.gin_name}.{field.name} = {value!r}; expected "
                    f"{field.default!r}."
                )
        return {name: getattr(first, field) for field, name in written.items()}

    return FunctionEntry(names, read, write)


def activation(name: str, fields: str, default: str) -> Entry:
    """An activation by its name; gelu_tanh has more than one there."""
    return option(name, fields, str, default, to_field=ACTIVATIONS)


def size(name: str, field: str, default: int, square: bool = False) -> Entry:
    """A height and a width in pixels; one number where they are equal.

    Args:
      name: in config.json.
      field: of the model.
      default: what transformers takes where there is none.
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
    """An option that may lack or be null, but not differ from another's field."""

    def read(options: Options) -> dict[str, Any]:
        value = options.take(name, kind, None)
        return {} if value is None else {field: value}

    return FunctionEntry((), read, name=name)


def fixed(values: Values) -> Entry:
    """Fields that have the same value in every model of a family."""
    told = {field: v for names, v in values.items() for field in expand(names)}

    def write(values: Values) -> dict[str, Any]:
        for field, expected in told.items():
            if values[field] != expected:
                raise UserError(f"{field} = {values[field]!r}; expected {expected!r}.")
        return {}

    return FunctionEntry(tuple(told), lambda options: dict(told), write)


def assumed(values: Values) -> Entry:
    """Fields that no option tells: a model that is read has these, others any."""
    return FunctionEntry(tuple(values), lambda options: dict(values))


def constant(name: str, value: Any, *others: Any, default: Any = None) -> Entry:
    """An option that has one value in every model that is supported.

    Args:
      name: in config.json.
      value: the one that is written, and read.
      *others: also read.
      default: what transformers takes where there is none; None means `value`, and then
        it is not written.
    """

    def read(options: Options) -> dict[str, Any]:
        options.require(name, value, *others, default=default)
        return {}

    written = {} if default is None else {name: value}
    return FunctionEntry((), read, lambda values: dict(written), name)


def ignored(names: str) -> Entry:
    """Options, separated by spaces, that do not change what the model computes."""

    def read(options: Options) -> dict[str, Any]:
        options.ignore(*names.split())
        return {}

    return FunctionEntry((), read)


def expand(fields: str) -> tuple[str, ...]:
    """Dotted names of fields, those of "*." once for encoder and decoder."""
    return tuple(
        name.replace("*", side, 1)
        for name in fields.split()
        for side in (("encoder", "decoder") if name.startswith("*.") else ("",))
    )
