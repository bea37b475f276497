"""Entries of a family's table of options, each of which reads and writes config.json.

Fields of models have dotted names here: "vocab_size", "transformer.num_layers". One
that begins with "*." is the encoder's and the decoder's.
"""

from collections.abc import Mapping
from typing import Any, Protocol

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


class Option:
    """An option that is one field, or several that are equal."""

    def __init__(
        self,
        name: str,
        fields: str,
        kind: type,
        default: Any,
        *,
        to_field: Mapping[Any, Any] | None = None,
        null: bool = False,
        others: str = "",
    ):
        """Describes the option.

        Args:
          name: in config.json.
          fields: separated by spaces.
          kind: the type of its value there.
          default: what Hugging Face takes where there is none.
          to_field: from the values there to those of the field, where they differ; of
            several for one, the first is written.
          null: whether null is a value of its own.
          others: other names of the same option, which may stand beside it, or alone;
            null there says nothing.
        """
        self.name = name
        self.fields = expand(fields)
        self._kind, self._default, self._null = kind, default, null
        self._to_field, self._others = to_field, others.split()

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        default = self._default
        told = {name: options.take(name, self._kind, None) for name in self._others}
        told = {name: value for name, value in told.items() if value is not None}
        for other in told.values():
            default = other
        value = options.take(self.name, self._kind, default, self._null)
        for name, other in told.items():
            if other != value:
                options.refuse(name, other, f"{value!r}, as {self.name} is")
        if self._to_field is not None:
            if value not in self._to_field:
                expected = ", ".join(map(repr, self._to_field))
                options.refuse(self.name, value, f"one of {expected}")
            value = self._to_field[value]
        return dict.fromkeys(self.fields, value)

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        first, *others = (values[field] for field in self.fields)
        for field, other in zip(self.fields[1:], others):
            if other != first and field.rpartition(".")[2] not in NEUTRAL:
                raise UserError(
                    f"{self.fields[0]} = {first!r} and {field} = {other!r}; expected "
                    f"the same, for {self.name} is both."
                )
        if first is None and not self._null and self._default is not None:
            raise UserError(f"{self.fields[0]} = None; expected a value.")
        if self._to_field is None:
            return {self.name: first}
        for theirs, ours in self._to_field.items():
            if ours == first:
                return {self.name: theirs}
        raise UserError(
            f"{self.fields[0]} = {first!r}; expected one of "
            f"{', '.join(map(repr, dict.fromkeys(self._to_field.values())))}."
        )


class Size:
    """A height and a width in pixels; one number where they are equal."""

    def __init__(self, name: str, field: str, default: int, square: bool = False):
        """Describes the option.

        Args:
          name: in config.json.
          field: of the model.
          default: what Hugging Face takes where there is none.
          square: whether height and width must be equal.
        """
        self.name, self.fields, self._default = name, (field,), default
        self._square = square

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        if not isinstance(options.peek(self.name, self._default), list):
            return {self.fields[0]: options.take(self.name, int, self._default)}
        height, width = self._pair(options, options.take(self.name, list, None))
        if self._square and height != width:
            options.refuse(self.name, [height, width], "a square")
        return {self.fields[0]: height if height == width else (height, width)}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        size = values[self.fields[0]]
        if self._square and not isinstance(size, int):
            raise UserError(f"{self.fields[0]} = {size}; expected one number.")
        return {self.name: size if isinstance(size, int) else list(size)}

    def _pair(self, options: Options, size: list) -> list:
        if len(size) != 2 or not all(isinstance(edge, int) for edge in size):
            options.refuse(self.name, size, "a height and a width")
        return size


class Same:
    """An option that may lack or be null, but not differ from another's field."""

    def __init__(self, name: str, field: str, kind: type):
        """Takes the option's name, the field and the type of its value."""
        self.name, self._field, self._kind = name, field, kind
        self.fields = ()

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        value = options.take(self.name, self._kind, None)
        return {} if value is None else {self._field: value}

    def write(self, values: Values) -> dict[str, Any]:
        """No option; see `Entry`."""
        del values
        return {}


class Fixed:
    """Fields that have the same value in every model of a family."""

    def __init__(self, values: Values):
        """Takes the fields and their values."""
        self._values = {f: v for name, v in values.items() for f in expand(name)}
        self.fields = tuple(self._values)

    def read(self, options: Options) -> dict[str, Any]:
        """The fields; see `Entry`."""
        del options
        return self._values

    def write(self, values: Values) -> dict[str, Any]:
        """No options; see `Entry`."""
        for field, expected in self._values.items():
            if values[field] != expected:
                raise UserError(f"{field} = {values[field]!r}; expected {expected!r}.")
        return {}


class Assumed:
    """Fields that no option tells: what a model that is read has, others or not."""

    def __init__(self, values: Values):
        """Takes the fields and the values of a model that is read."""
        self._values = values
        self.fields = tuple(values)

    def read(self, options: Options) -> Values:
        """The fields; see `Entry`."""
        del options
        return self._values

    def write(self, values: Values) -> dict[str, Any]:
        """No options, whatever the fields are; see `Entry`."""
        del values
        return {}


class Constant:
    """An option that has one value in every model that is supported."""

    fields = ()

    def __init__(self, name: str, value: Any, *others: Any, default: Any = None):
        """Describes the option.

        Args:
          name: in config.json.
          value: the one that is written, and read.
          others: also read.
          default: what Hugging Face takes where there is none; None means `value`, and
            then it is not written.
        """
        self.name, self._value, self._others = name, value, others
        self._default = default

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the option; see `Entry`."""
        options.require(self.name, self._value, *self._others, default=self._default)
        return {}

    def write(self, values: Values) -> dict[str, Any]:
        """The option; see `Entry`."""
        del values
        return {} if self._default is None else {self.name: self._value}


class Ignored:
    """Options that don't change what the model computes from its tokens."""

    fields = ()

    def __init__(self, names: str):
        """Takes names, separated by spaces."""
        self._names = names.split()

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        options.ignore(*self._names)
        return {}

    def write(self, values: Values) -> dict[str, Any]:
        """No options; see `Entry`."""
        del values
        return {}


def activation(name: str, fields: str, default: str) -> Option:
    """An activation by its name; gelu_tanh has more than one there."""
    return Option(name, fields, str, default, to_field=ACTIVATIONS)


def expand(fields: str) -> tuple[str, ...]:
    """Dotted names of fields, those of "*." once for encoder and decoder."""
    return tuple(
        name.replace("*", side, 1)
        for name in fields.split()
        for side in (("encoder", "decoder") if name.startswith("*.") else ("",))
    )
