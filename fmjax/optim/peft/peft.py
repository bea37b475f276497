"""The configurable `peft`: what of a model is trained, and what is added to it."""

import dataclasses
import functools
import math
import zlib
from typing import Any, Literal

import jax
from flax import traverse_util
from jaxtyping import Array, Key

from fmjax.configurable import configurable
from fmjax.errors import UserError, require
from fmjax.models.parameter_paths import Pattern, slots
from fmjax.optim.axes import Names, num_batch_axes
from fmjax.optim.peft.added import Added, Method, matrices
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
    """

    methods: tuple[Method, ...] = ()
    trained: tuple[str, ...] = ()
    base_dtype: Literal["float32", "bfloat16", "float16"] = "float32"

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
        added: dict[str, Added] = {}
        for method in self.methods:
            for path, parameter in method.added(matrices(names, sizes)).items():
                if path in added:
                    raise UserError(
                        f"peft.methods adds {path!r} twice; expected each weight in "
                        "the patterns of one of its methods."
                    )
                added[path] = parameter
        trained = self._trained(sizes)
        frozen = dict.fromkeys(sizes.keys() - trained, self.base_dtype)
        return PeftPlan(names, leaves, added, frozen)

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
    """

    base_axes: dict[str, Names]
    base_shapes: dict[str, jax.ShapeDtypeStruct]
    added: dict[str, Added]
    frozen: dict[str, str]

    @functools.cached_property
    def axes(self) -> Any:
        """Logical names of all parameters, as a nested dict."""
        own = {path: added.names for path, added in self.added.items()}
        return traverse_util.unflatten_dict(self.base_axes | own, sep="/")

    @functools.cached_property
    def shapes(self) -> Any:
        """Shapes of all parameters, as a nested dict."""
        own = {
            path: jax.ShapeDtypeStruct(added.shape, "float32")
            for path, added in self.added.items()
        }
        return traverse_util.unflatten_dict(self.base_shapes | own, sep="/")

    @functools.cached_property
    def never_trained(self) -> dict[str, str]:
        """Path → dtype of all parameters that are not trained, also of added ones."""
        own = {path: "float32" for path, each in self.added.items() if not each.trained}
        return self.frozen | own

    def init(self, key: Key[Array, ""], params: Any) -> Any:
        """The model's parameters with initial values of those that are added.

        Args:
          key: random key.
          params: nested dict of the model's parameters.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        for path, added in self.added.items():
            own = jax.random.fold_in(key, zlib.crc32(path.encode()))
            flat[path] = added.init(own)
        return traverse_util.unflatten_dict(flat, sep="/")

    def fit(self, params: Any) -> Any:
        """The parameters, with initial values that depend on the model's set.

        Args:
          params: nested dict of all parameters, those of the model as they were read.
        """
        flat = traverse_util.flatten_dict(params, sep="/")
        for path, added in self.added.items():
            if added.fit is None:
                continue
            adapter, _, _ = path.rpartition("/")
            weight = flat[adapter.rpartition("_")[0]]
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
        flat |= {path: Scaling(rate=rate) for path, rate in rates.items()}
        return traverse_util.unflatten_dict(flat, sep="/")

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
