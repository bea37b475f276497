"""The space of a sweep: the values of each binding that is varied, and its points."""

import abc
import dataclasses
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from fmjax.config.statements import format_value
from fmjax.configurable import configurable
from fmjax.errors import require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

# A value that one binding may take; a string is read as on the command line.
Value = str | int | float | bool | tuple | None


class Range(abc.ABC):
    """A range of numbers, from which random and Bayesian search draw."""

    @abc.abstractmethod
    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""

    @property
    @abc.abstractmethod
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""


@dataclasses.dataclass(frozen=True)
class _RealRange(Range):
    """A range of real numbers.

    Attributes:
      low: the lowest.
      high: the highest.
    """

    low: float
    high: float

    _is_log: ClassVar[bool]

    def __post_init__(self):
        require(self, "high", self.high > self.low, f"more than low = {self.low}")

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import FloatDistribution

        return FloatDistribution(self.low, self.high, log=self._is_log)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return float(self.low), float(self.high)


@configurable("uniform")
@dataclasses.dataclass(frozen=True)
class Uniform(_RealRange):
    """Real numbers, all equally likely."""

    _is_log: ClassVar[bool] = False


@configurable("log_uniform")
@dataclasses.dataclass(frozen=True)
class LogUniform(_RealRange):
    """Positive real numbers whose logarithms are equally likely."""

    _is_log: ClassVar[bool] = True

    def __post_init__(self):
        require(self, "low", self.low > 0, "more than 0")
        super().__post_init__()


@configurable("integers")
@dataclasses.dataclass(frozen=True)
class Integers(Range):
    """Integers, both ends included.

    Attributes:
      low: the lowest.
      high: the highest.
      step: between two of them, from the lowest on.
      log: whether their logarithms are equally likely, instead of themselves.
    """

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self):
        require(self, "step", self.step >= 1, "at least 1")
        require(self, "high", self.high > self.low, f"more than low = {self.low}")
        width = self.high - self.low
        whole = width % self.step == 0
        require(self, "step", whole, f"a divisor of high - low = {width}")
        if self.log:
            require(self, "low", self.low > 0, "more than 0, as log = True")
            require(self, "step", self.step == 1, "1, as log = True")

    def distribution(self) -> "BaseDistribution":
        """The same for Optuna."""
        from optuna.distributions import IntDistribution

        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return self.low, self.high


# Name → NAME=VALUE of a variant.
Variants = dict[str, tuple[str, ...]]
Axis = tuple[Value, ...] | Range | Variants
Space = Mapping[str, Axis]
# Values as gin text by binding, and names of variants by the name of their axis.
Point = dict[str, str]


def as_text(value: Value) -> str:
    """A value as after NAME= on the command line; a string as it is."""
    return value if isinstance(value, str) else format_value(value)


def choices_of(values: Axis) -> tuple[str, ...]:
    """The values of a list as text; of a range its two ends; names of variants."""
    return tuple(map(as_text, values.ends if isinstance(values, Range) else values))


def bindings_of_point(space: Space, point: Point) -> list[str]:
    """NAME=VALUE of a point: what is appended to the command."""
    found: list[str] = []
    for name, text in point.items():
        axis = space[name]
        found += axis[text] if isinstance(axis, Mapping) else [f"{name}={text}"]
    return found


def first_point(space: Space) -> Point:
    """The first value of each binding, of ranges the lowest."""
    return {name: choices_of(values)[0] for name, values in space.items()}


def last_point(space: Space) -> Point:
    """The last value of each binding, of ranges the highest."""
    return {name: choices_of(values)[-1] for name, values in space.items()}


def grid_points(space: Space) -> list[Point]:
    """Every combination of the values; the last binding changes fastest."""
    lists = [choices_of(values) for values in space.values()]
    return [dict(zip(space, values)) for values in itertools.product(*lists)]


def distributions(space: Space) -> dict[str, "BaseDistribution"]:
    """The space for Optuna: ranges, and lists as categories of texts."""
    from optuna.distributions import CategoricalDistribution

    return {
        name: values.distribution()
        if isinstance(values, Range)
        else CategoricalDistribution(choices_of(values))
        for name, values in space.items()
    }


def short_names(names: Any) -> dict[str, str]:
    """Bindings → the last parts of their names, whole where two would be the same."""
    fields = [name.rpartition(".")[2] for name in names]
    return {
        name: field if fields.count(field) == 1 else name
        for name, field in zip(names, fields)
    }
