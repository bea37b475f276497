"""The configurable `peft`: what of a model is trained, and what is added to it."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.parameter_paths import Pattern, slots
from fmjax.optim.axes import Names, num_batch_axes
from fmjax.optim.peft.added import Added, Method, Weight, matrices
from fmjax.optim.peft.coding import Coding, Part, coded_weights, decode, encode
from fmjax.optim.scaling import Scaling


@configurable("peft")
@dataclasses.dataclass(frozen=True)
class Peft:
    """Parameter-efficient fine-tuning of a model from another run.

    The model's parameters, which `experiment.init_from` reads, are frozen; parameters
    that methods add are trained. Checkpoints hold what is trained, and the rest by
    reference to the other run.

    Attributes:
      methods: how parameters are added, such as @lora(); none to train some of the
        model's own (`trained`).
      trained: patterns of the model's own parameters that are trained beside, such as
        'classifier/**' or '**/*_bias', see `fmjax.models.parameter_paths`.
      base_dtype: of frozen parameters in memory.
      coding: keeps the frozen weights of blocks in fewer bits: @nf4() (QLoRA) or
        @int8(); None for base_dtype.
    """

    methods: tuple[Method, ...] = ()
    trained: tuple[str, ...] = ()
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    coding: Coding | None = None

    def __post_init__(self):
        """Raises UserError if nothing is trained."""
        expected = "a method such as @lora(), or patterns in peft.trained"
        require(self, "methods", bool(self.methods or self.trained), expected)

    def plan(self, axes: Any, shapes: Any) -> "PeftPlan":
        """What is added to a model, and which of its parameters are frozen.

        Args:
          axes: the nested dict of logical names of the model's parameters.
          shapes: the nested dict of their shapes.

        Raises:
          UserError: a pattern matches nothing, two methods add the same parameter, or a
            matrix does not fit a method.
        """
        names = traverse_util.flatten_dict(axes, sep="/")
        leaves = traverse_util.flatten_dict(shapes, sep="/")
        sizes = {path: leaf.shape for path, leaf in leaves.items()}
        weights = matrices(names, sizes)
        added: dict[str, Added] = {}
        for method in self.methods:
            for path, parameter in method.added(weights).items():
                if path in added:
                    raise UserError(
                        f"peft.methods adds {path!r} twice; expected each weight in "
                        "the patterns of one of its methods."
                    )
                added[path] = parameter
        trained = self._trained(sizes)
        frozen = dict.fromkeys(sizes.keys() - trained, self.base_dtype)
        coded, parts = {}, {}
        if self.coding is not None:
            coded = coded_weights(self.coding, weights, frozen)
            parts = {path: self._parts(weight) for path, weight in coded.items()}
        return PeftPlan(names, leaves, added, frozen, self.coding, coded, parts)

    def _parts(self, weight: Weight) -> dict[str, Part]:
        folder = f"{weight.path}{self.coding.suffix}"
        arrays = self.coding.parts(weight)
        return {f"{folder}/{name}": part for name, part in arrays.items()}

    def _trained(self, sizes: dict[str, tuple[int, ...]]) -> set[str]:
        """The arrays that patterns of trained parameters match."""
        where, found = slots(sizes), set()
        for text in self.trained:
            found |= Pattern(text, "peft.trained").find(where, "the model").keys()
        arrays = {where[path].array for path in found}
        for path, slot in where.items():
            if slot.array in arrays and path not in found:
                raise UserError(
                    f"peft.trained matches some layers of {slot.array!r} without "
                    f"{path!r}, but layers that are scanned are one array. Expected "
                    "all of them, or transformer.scan_layers = False."
                )
        return arrays


@dataclasses.dataclass(frozen=True)
class PeftPlan:
    """The parameters of a model with those that are added.

    Attributes:
      base_axes: logical names of the model's parameters, by path.
      base_shapes: shapes of the model's parameters, by path.
      added: parameters that are added, by path.
      frozen: path of a parameter of the model that is not trained → its dtype.
      coding: of the weights in `coded`; None for none.
      coded: weights that are kept as codes, by path.
      parts: path of a coded weight → the arrays that are kept of it, by path.
    """

    base_axes: dict[str, Names]
    base_shapes: dict[str, jax.ShapeDtypeStruct]
    added: dict[str, Added]
    frozen: dict[str, str]
    coding: Coding | None
    coded: dict[str, Weight]
    parts: dict[str, dict[str, Part]]

    @functools.cached_property
    def axes(self) -> Any:
        """Logical names of all parameters, as a nested dict."""
        return self._nested(
            self.base_axes,
            {path: added.names for path, added in self.added.items()},
            lambda part: part.names,
        )

    @functools.cached_property
    def shapes(self) -> Any:
        """Shapes of all parameters, as a nested dict."""
        return self._nested(
            self.base_shapes,
            self._added_shapes,
            lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype),
        )

    @property
    def decoded_shapes(self) -> Any:
        """Shapes of all parameters if no weight were coded, as a nested dict."""
        flat = self.base_shapes | self._added_shapes
        return traverse_util.unflatten_dict(flat, sep="/")

    def kept_as(self, path: str) -> tuple[str, ...]:
        """The paths of the arrays that are kept of a parameter of the model."""
        return tuple(self.parts.get(path, (path,)))

    @property
    def _added_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            path: jax.ShapeDtypeStruct(added.shape, "float32")
            for path, added in self.added.items()
        }

    def _nested(
        self, of_model: dict, added: dict, of_part: Callable[[Part], Any]
    ) -> Any:
        flat = {path: x for path, x in of_model.items() if path not in self.coded}
        for parts in self.parts.values():
            flat |= {path: of_part(part) for path, part in parts.items()}
        return traverse_util.unflatten_dict(flat | added, sep="/")

    @functools.cached_property
    def never_trained(self) -> dict[str, str]:
        """Path → dtype of all parameters that are not trained, also of added ones."""
        found = {p: dtype for p, dtype in self.frozen.items() if p not in self.coded}
        for parts in self.parts.values():
            found |= {path: part.dtype for path, part in parts.items()}
        own = {path: "float32" for path, each in self.added.items() if not each.trained}
        return found | own

    def init(self, key: Key[Array, ""], params: Any) -> Any:
        """The model's parameters with initial values of those that are added.

        Codes are zeros until `encode` makes them of the weights of another run.

        Args:
          key: random key.
          params: nested dict of the model's parameters.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        for path, parts in self.parts.items():
            del flat[path]
            for name, part in parts.items():
                flat[name] = jnp.zeros(part.shape, part.dtype)
        for path, added in self.added.items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            flat[path] = added.init(own)
        return traverse_util.unflatten_dict(flat, sep="/")

    def fit(self, params: Any, without: Collection[str] = ()) -> Any:
        """The parameters, with initial values that depend on the model's set.

        Args:
          params: nested dict of all parameters, those of the model as they were read.
          without: paths of added parameters that have their values already.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        for path, added in self.added.items():
            if added.fit is None or path in without:
                continue
            adapter, _, _ = path.rpartition("/")
            base = adapter.rpartition("_")[0]
            weight = self.decode(base, flat) if base in self.coded else flat[base]
            siblings = {
                name.rpartition("/")[2]: leaf
                for name, leaf in flat.items()
                if name.rpartition("/")[0] == adapter
            }
            fit = added.fit
            for _ in range(num_batch_axes(added.names)):
                fit = jax.vmap(fit)
            flat[path] = fit(weight, siblings)
        return traverse_util.unflatten_dict(flat, sep="/")

    def encode(self, path: str, weight: Array) -> dict[str, Array]:
        """The arrays that are kept of a coded weight, by path."""
        arrays = encode(self.coding, self.coded[path], weight)
        folder = f"{path}{self.coding.suffix}"
        return {f"{folder}/{name}": array for name, array in arrays.items()}

    def decode(self, path: str, flat: Mapping[str, Array]) -> Array:
        """A coded weight, float32, of all parameters by path."""
        codes = {name.rpartition("/")[2]: flat[name] for name in self.parts[path]}
        return decode(self.coding, self.coded[path], codes)

    def scaling(self, of_model: Any) -> Any:
        """A `Scaling` per parameter; None if all learning rates are the same.

        Args:
          of_model: those of the model's own parameters; None for no factors.
        """
        rates = {path: added.rate for path, added in self.added.items()}
        if of_model is None and set(rates.values()) <= {1.0}:
            return None
        flat = dict.fromkeys(self.base_shapes, Scaling())
        if of_model is not None:
            flat = traverse_util.flatten_dict(of_model, sep="/")
        own = {path: Scaling(rate=rate) for path, rate in rates.items()}
        return self._nested(flat, own, lambda part: Scaling())

    def check_read(self, paths: set[str], model: str) -> None:
        """Raises a UserError if the model does not read an adapter.

        Args:
          paths: of the adapters that it reads.
          model: its gin name.
        """
        for path in self.added:
            adapter = path.rpartition("/")[0]
            if not any(adapter == p or adapter.endswith(f"/{p}") for p in paths):
                weight, _, kind = adapter.rpartition("_")
                raise UserError(
                    f"peft.methods: @{model}() reads {weight!r} where no adapter of "
                    f"the kind {kind!r} could change it. Expected other patterns."
                )

    def describe(self) -> str:
        """A line for the log: how many parameters are added and trained."""
        count = sum(math.prod(e.shape) for e in self.added.values() if e.trained)
        whole = sum(math.prod(leaf.shape) for leaf in self.base_shapes.values())
        own = whole - sum(math.prod(self.base_shapes[p].shape) for p in self.frozen)
        also = f" and {own:,} of the model's" if own else ""
        return (
            f"trained are {count:,} added parameters{also}, "
            f"{(count + own) / whole:.2%} as many as the model's {whole:,}"
        )
