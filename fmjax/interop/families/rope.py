"""Rotary positions and their scaling, as in transformers' config.json."""

import math
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Values
from fmjax.interop.options import Options
from fmjax.models.layers.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    Scaling,
    YarnScaling,
)
from fmjax.models.layers.rotary import Rotary

_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


class Rope:
    """rope_theta and rope_scaling, or since version 5 rope_parameters for both.

    If rope_scaling and rope_parameters are both present, rope_scaling counts, as in
    transformers.
    """

    fields = ("transformer.rotary",)

    def __init__(self, max_length: int, theta: float = 10000.0):
        """Sets transformers' defaults.

        Args:
          max_length: default of max_position_embeddings.
          theta: default of rope_theta.
        """
        self._max_length, self._theta = max_length, theta

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        default = options.take("rope_theta", float, self._theta)
        options.require("partial_rotary_factor", 1.0, None)
        longest = options.peek("max_position_embeddings", self._max_length)
        rotary = Rotary(default)
        for name in ("rope_parameters", "rope_scaling"):
            if (inside := options.take_options(name)) is None:
                continue
            theta = inside.take("rope_theta", float, default)
            inside.require("partial_rotary_factor", 1.0, None)
            older = inside.take("type", str, "default")
            kind = inside.take("rope_type", str, older)
            if kind not in _TYPES:
                inside.refuse("rope_type", kind, " or ".join(map(repr, _TYPES)))
            rotary = Rotary(theta, scaling=_scaling(kind, inside, longest))
            inside.finish()
        return {self.fields[0]: rotary}

    def write(self, values: Values) -> dict[str, Any]:
        """The options, in both formats; see `Entry`."""
        name, rotary = self.fields[0], values[self.fields[0]]
        if rotary is None:
            raise UserError(f"{name} = None; expected @rotary().")
        for field, expected in (("fraction", 1.0), ("local_theta", None)):
            if (found := getattr(rotary, field)) != expected:
                raise UserError(f"rotary.{field} = {found}; expected {expected}.")
        inside = {"rope_type": "default"} | _written(rotary.scaling, values)
        parameters = {**inside, "rope_theta": rotary.theta}
        written = {"rope_theta": rotary.theta, "rope_parameters": parameters}
        return written if rotary.scaling is None else written | {"rope_scaling": inside}


def _scaling(kind: str, inside: Options, longest: int) -> Scaling | None:
    """The scaling of a rope_type from its options; `longest` is the model's length."""
    if kind == "default":
        return None

    def number(name: str) -> float:
        value = inside.take(name, float, None)
        if value is None:
            inside.refuse(name, None, "a number")
        return value

    def original() -> int:
        name = "original_max_position_embeddings"
        length = inside.take(name, int, longest)
        if length < 2:
            inside.refuse(name, length, "at least 2")
        return length

    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "dynamic":
        # transformers reads only max_position_embeddings.
        inside.ignore("original_max_position_embeddings")
        return DynamicScaling(number("factor"), longest)
    if kind == "llama3":
        return Llama3Scaling(
            number("factor"),
            number("low_freq_factor"),
            number("high_freq_factor"),
            original(),
        )
    length = original()
    factor = inside.take("factor", float, None)
    if factor is None:
        if "factor" not in inside.all():
            inside.refuse("factor", None, "a number")
        factor = longest / length
    return YarnScaling(
        factor,
        length,
        inside.take("beta_fast", float, None) or 32.0,
        inside.take("beta_slow", float, None) or 1.0,
        _attention_factor(inside, factor),
        inside.take("truncate", bool, True),
    )


def _attention_factor(inside: Options, factor: float) -> float | None:
    """YaRN's attention factor; None for the paper's."""
    given = inside.take("attention_factor", float, None)
    over, under = (
        inside.take(name, float, None) for name in ("mscale", "mscale_all_dim")
    )
    if given is not None or not (over and under):
        return given
    if factor <= 1:
        return 1.0
    over, under = (0.1 * scale * math.log(factor) + 1 for scale in (over, under))
    return over / under


def _written(scaling: Scaling | None, values: Values) -> dict[str, Any]:
    """The options of a scaling."""
    match scaling:
        case None:
            return {}
        case LinearScaling():
            return {"rope_type": "linear", "factor": scaling.factor}
        case DynamicScaling():
            if scaling.original_length != values["max_length"]:
                raise UserError(
                    f"rope_dynamic.original_length = {scaling.original_length} and "
                    f"max_length = {values['max_length']}; expected the same, for "
                    "max_position_embeddings is both."
                )
            return {"rope_type": "dynamic", "factor": scaling.factor}
        case Llama3Scaling():
            return {
                "rope_type": "llama3",
                "factor": scaling.factor,
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_length,
            }
        case YarnScaling():
            factor = scaling.attention_factor
            given = {} if factor is None else {"attention_factor": factor}
            return given | {
                "rope_type": "yarn",
                "factor": scaling.factor,
                "original_max_position_embeddings": scaling.original_length,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
    raise UserError(
        f"rotary.scaling = @{scaling.gin_name}(); expected none, @rope_linear(), "
        "@rope_dynamic(), @rope_llama3() or @rope_yarn()."
    )
