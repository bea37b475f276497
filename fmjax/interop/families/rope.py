"""Rotary positions and their scaling, as in transformers' config.json."""

import dataclasses
import math
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.entries import Entry, Values
from fmjax.interop.families.windows import LayerTypes
from fmjax.interop.options import Options
from fmjax.models.layers.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Scaling,
    YarnScaling,
)
from fmjax.models.layers.rotary import Rotary

_TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
# The first name of longrope, in configs of Phi-3.
_OLDER = {"su": "longrope"}
# More than any head has pairs of features.
_MOST_DIVISORS = 4096
# Where pretraining's length may be beside rope_scaling, which it then counts for.
_ORIGINAL = "original_max_position_embeddings"


class Rope:
    """rope_theta and rope_scaling, or since version 5 rope_parameters for both.

    If rope_scaling and rope_parameters are both present, rope_scaling counts, as in
    transformers.
    """

    fields = ("transformer.rotary",)

    def __init__(
        self,
        max_length: int,
        theta: float = 10000.0,
        *,
        fraction: float | None = None,
        interleaved: bool = False,
        names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
        beside: bool = False,
        scaling: Scaling | None = None,
    ):
        """Sets transformers' defaults.

        Args:
          max_length: default of max_position_embeddings.
          theta: default of rope_theta.
          fraction: default of partial_rotary_factor; None for a family that has only
            whole heads rotated, whatever this option says.
          interleaved: of the family's `Rotary`.
          names: names of those two options beside rope_parameters.
          beside: whether exports have the length of pretraining beside rope_parameters,
            whose own does not count then.
          scaling: of a config that states none.
        """
        self._max_length, self._theta = max_length, theta
        self._fraction, self._interleaved = fraction, interleaved
        self._names, self._beside, self._scaling = names, beside, scaling

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        return {self.fields[0]: self.read_rotary(options)}

    def read_rotary(self, options: Options) -> Rotary:
        """Takes the options of positions that are the same in all layers."""
        defaults = self.take_defaults(options)
        given = None
        for name in ("rope_parameters", "rope_scaling"):
            if (inside := options.take_options(name)) is not None:
                given = self.read_parameters(options, inside, *defaults)
        self.take_original(options)
        return given or self._rotary(*defaults, self._scaling)

    def take_defaults(self, options: Options) -> tuple[float, float]:
        """Takes the base and the share of rotated features beside rope_parameters."""
        theta, fraction = self._names
        base = options.take(theta, float, self._theta)
        return base, self._take_fraction(options, fraction, self._fraction or 1.0)

    def _take_fraction(self, options: Options, name: str, default: float) -> float:
        if self._fraction is None:
            options.require(name, 1.0, None)
            return 1.0
        return options.take(name, float, None) or default

    def take_original(self, options: Options) -> None:
        """Takes the length of pretraining beside rope_parameters."""
        options.take(_ORIGINAL, int, None)

    def read_parameters(
        self, options: Options, inside: Options, theta: float, fraction: float
    ) -> Rotary:
        """Takes the options inside rope_parameters, or inside rope_scaling.

        Args:
          options: of the file.
          inside: inside that object.
          theta: base of the frequencies where the object has none.
          fraction: share of rotated features where the object has none.
        """
        longest = options.peek("max_position_embeddings", self._max_length)
        original = options.peek(_ORIGINAL, self._max_length if self._beside else None)
        theta = inside.take("rope_theta", float, None) or theta
        fraction = self._take_fraction(inside, "partial_rotary_factor", fraction)
        older = inside.take("type", str, "default")
        kind = inside.take("rope_type", str, older)
        kind = _OLDER.get(kind, kind)
        if kind not in _TYPES:
            inside.refuse("rope_type", kind, " or ".join(map(repr, _TYPES)))
        scaling = _scaling(kind, inside, longest, original)
        inside.finish()
        return self._rotary(theta, fraction, scaling)

    def _rotary(
        self, theta: float, fraction: float, scaling: Scaling | None = None
    ) -> Rotary:
        return Rotary(theta, fraction, scaling, interleaved=self._interleaved)

    def write(self, values: Values) -> dict[str, Any]:
        """The options, in both formats; see `Entry`."""
        rotary = self.written_rotary(values)
        if rotary.local_theta is not None:
            raise UserError(
                f"rotary.local_theta = {rotary.local_theta}; expected None."
            )
        theta, fraction = self._names
        inside = self.write_parameters(rotary, values)
        written = {theta: rotary.theta, "rope_parameters": inside}
        if self._fraction is not None:
            written[fraction] = rotary.fraction
        if self._beside:
            original = getattr(rotary.scaling, "original_length", values["max_length"])
            written[_ORIGINAL] = original
        if rotary.scaling is None:
            return written
        older = {n: v for n, v in inside.items() if n != "rope_theta"}
        return written | {"rope_scaling": older}

    def written_rotary(self, values: Values) -> Rotary:
        """The model's rotary positions; raises UserError if the family's are others."""
        name, rotary = self.fields[0], values[self.fields[0]]
        if rotary is None:
            raise UserError(f"{name} = None; expected @rotary().")
        usual = {"interleaved": self._interleaved, "skip_every": None}
        if self._fraction is None:
            usual["fraction"] = 1.0
        for field, expected in usual.items():
            if (found := getattr(rotary, field)) != expected:
                raise UserError(f"rotary.{field} = {found}; expected {expected}.")
        return rotary

    def write_parameters(self, rotary: Rotary, values: Values) -> dict[str, Any]:
        """The options inside rope_parameters."""
        inside = {"rope_type": "default"} | _written(rotary.scaling, values)
        if self._fraction is not None:
            inside["partial_rotary_factor"] = rotary.fraction
        return inside | {"rope_theta": rotary.theta}


class RopeByWindow(Rope):
    """Rotary positions that differ between layers with a window and others.

    rope_parameters has an object for each kind of layer. Before version 5 there were
    rope_theta and rope_scaling for layers without a window, and a base for the others.
    Of YaRN's options transformers reads truncate outside of these objects alone, where
    it does not write it: the ends of the ramp are always rounded.
    """

    fields = ("transformer.rotary", *LayerTypes.fields)

    def __init__(
        self,
        kinds: Entry,
        local: str,
        local_theta: float,
        *arguments,
        scaled: bool = False,
        **defaults,
    ):
        """Sets transformers' defaults.

        Args:
          kinds: entry of the windows.
          local: name of the option of the base in layers with a window.
          local_theta: its default.
          *arguments: of `Rope`.
          scaled: whether rope_scaling counts in layers with a window too.
          **defaults: of `Rope`.
        """
        super().__init__(*arguments, **defaults)
        self._kinds, self._local, self._local_theta = kinds, local, local_theta
        self._scaled = scaled

    def read(self, options: Options) -> dict[str, Any]:
        """Takes the options; see `Entry`."""
        windows = self._kinds.read(options)
        theta, fraction = self.take_defaults(options)
        local_theta = theta
        if self._local != self._names[0]:
            local_theta = options.take(self._local, float, self._local_theta)
        full, local = self._rotary(theta, fraction), self._rotary(local_theta, fraction)
        if (both := options.take_options("rope_parameters")) is not None:
            if (inside := both.take_options("full_attention")) is not None:
                full = self.read_parameters(options, inside, theta, fraction)
            if (inside := both.take_options("sliding_attention")) is not None:
                local = self.read_parameters(options, inside, local_theta, fraction)
            both.finish()
        if (inside := options.take_options("rope_scaling")) is not None:
            again = inside.opened()
            full = self.read_parameters(options, inside, full.theta, fraction)
            if self._scaled:
                local = self.read_parameters(options, again, local.theta, fraction)
        self.take_original(options)
        for rotary in (full, local):
            if isinstance(rotary.scaling, YarnScaling) and not rotary.scaling.truncate:
                options.refuse("rope_parameters", {"truncate": False}, "no such option")
        if windows["transformer.window"] is not None and local != full:
            if local.fraction != full.fraction:
                options.refuse(
                    "rope_parameters", local, "the same share of rotated features"
                )
            full = dataclasses.replace(
                full, local_theta=local.theta, local_scaling=local.scaling
            )
        return {self.fields[0]: full, **windows}

    def write(self, values: Values) -> dict[str, Any]:
        """The options; see `Entry`."""
        rotary = self.written_rotary(values)
        full = self._write_kind(rotary, values)
        local = full
        if rotary.local_theta is not None:
            own = self._rotary(
                rotary.local_theta, rotary.fraction, rotary.local_scaling
            )
            local = self._write_kind(own, values)
        parameters = {"full_attention": full, "sliding_attention": local}
        return self._kinds.write(values) | {"rope_parameters": parameters}

    def _write_kind(self, rotary: Rotary, values: Values) -> dict[str, Any]:
        inside = self.write_parameters(rotary, values)
        if not inside.pop("truncate", True):
            raise UserError("rope_yarn.truncate = False; expected True.")
        return inside


def _scaling(
    kind: str, inside: Options, longest: int, beside: int | None
) -> Scaling | None:
    """The scaling of a rope_type from its options.

    Args:
      kind: rope_type.
      inside: the options.
      longest: max_position_embeddings.
      beside: the length of pretraining in the file itself, which counts; or None.
    """
    if kind == "default":
        inside.ignore(_ORIGINAL)
        return None

    def number(name: str) -> float:
        value = inside.take(name, float, None)
        if value is None:
            inside.refuse(name, None, "a number")
        return value

    def original() -> int:
        length = inside.take(_ORIGINAL, int, None)
        length = length or longest if beside is None else beside
        if type(length) is not int or length < 2:
            inside.refuse(_ORIGINAL, length, "at least 2")
        return length

    if kind == "linear":
        return LinearScaling(number("factor"))
    if kind == "dynamic":
        # transformers reads only max_position_embeddings.
        inside.ignore(_ORIGINAL)
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
        if kind == "yarn" and "factor" not in inside.all():
            inside.refuse("factor", None, "a number")
        factor = longest / length
    if kind == "longrope":
        return LongScaling(
            _divisors(inside, "short_factor"),
            _divisors(inside, "long_factor"),
            length,
            max(factor, 1.0),
            inside.take("attention_factor", float, None),
        )
    return YarnScaling(
        factor,
        length,
        inside.take("beta_fast", float, None) or 32.0,
        inside.take("beta_slow", float, None) or 1.0,
        _attention_factor(inside, factor),
        inside.take("truncate", bool, True),
    )


def _divisors(inside: Options, name: str) -> tuple[float, ...]:
    """The divisors of longrope, one for each pair of rotated features."""
    found = inside.take(name, list, None)
    numbers = all(type(number) in (int, float) for number in found or ())
    if not found or not numbers or len(found) > _MOST_DIVISORS:
        inside.refuse(name, found, "numbers, one for each pair of rotated features")
    return tuple(map(float, found))


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
                _ORIGINAL: scaling.original_length,
            }
        case YarnScaling():
            factor = scaling.attention_factor
            given = {} if factor is None else {"attention_factor": factor}
            return given | {
                "rope_type": "yarn",
                "factor": scaling.factor,
                _ORIGINAL: scaling.original_length,
                "beta_fast": scaling.beta_fast,
                "beta_slow": scaling.beta_slow,
                "truncate": scaling.truncate,
            }
        case LongScaling():
            factor = scaling.attention_factor
            given = {} if factor is None else {"attention_factor": factor}
            return given | {
                "rope_type": "longrope",
                "factor": scaling.factor,
                _ORIGINAL: scaling.original_length,
                "short_factor": list(scaling.short_factors),
                "long_factor": list(scaling.long_factors),
            }
    raise UserError(f"rotary.scaling = @{scaling.gin_name}() has no rope_type.")
