"""The model that an adapter changes: its parameters by the names of its modules."""

import dataclasses
import functools
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from fmjax.interop.export import describe
from fmjax.interop.family import Architecture, Family
from fmjax.interop.peft.factors import Layout
from fmjax.interop.peft.module_names import apart, in_memory
from fmjax.interop.safetensors_writer import Tensor
from fmjax.interop.weights import Leaf, Place, leaves, places
from fmjax.models.contracts import vocab_size_of
from fmjax.objectives.objective import Objective
from fmjax.optim.axes import Names, num_batch_axes, sides
from fmjax.training.checkpoint.saved_state import SavedState
from fmjax.training.state import abstract_variables

WEIGHT, BIAS = ".weight", ".bias"
# Of torch.nn.MultiheadAttention.
_TORCH_IN, _TORCH_OUT = ".in_proj_weight", ".out_proj.weight"
# Arrays in memory while tensors are made, at least those that one tensor joins.
_HELD = 4


@dataclasses.dataclass(frozen=True)
class BaseModel:
    """A model with the tables of its family.

    Attributes:
      objective: with the model.
      family: of the model.
      class_name: name of its class in transformers.
      architecture: of that class.
      axes: logical names of the parameters, by path.
      shapes: of the parameters, by path.
    """

    objective: Objective
    family: Family
    class_name: str
    architecture: Architecture
    axes: Mapping[str, Names]
    shapes: Mapping[str, jax.ShapeDtypeStruct]

    @classmethod
    def of(cls, objective: Objective, preferred: str | None = None) -> "BaseModel":
        """The tables of an objective's model.

        Args:
          objective: with the model.
          preferred: the model_type that comes first of those that fit.

        Raises:
          UserError: transformers has no such model.
        """
        family, name, architecture, _ = describe(objective.model, None, preferred)
        objective = objective.without_own_params()
        kept = dataclasses.replace(objective, model=family.kept(objective.model))
        trees = (tree["params"] for tree in abstract_variables(kept))
        axes, shapes = (traverse_util.flatten_dict(tree, sep="/") for tree in trees)
        return cls(kept, family, name, architecture, axes, shapes)

    @functools.cached_property
    def leaves(self) -> dict[str, Leaf]:
        """See `fmjax.interop.weights.leaves`."""
        axes, shapes = (
            traverse_util.unflatten_dict(dict(flat), sep="/")
            for flat in (self.axes, self.shapes)
        )
        return leaves(axes, shapes, vocab_size_of(self.objective.model))

    @functools.cached_property
    def places(self) -> dict[str, Place]:
        """The tensors by their names in the model of transformers."""
        rows = self.family.rows_of(self.architecture)
        found = (
            part
            for place in places(rows, self.leaves, self.family)
            for part in apart(self.family.model_type, place)
        )
        return {self.name_of(place): place for place in found}

    def name_of(self, place: Place) -> str:
        """The name of a tensor in the model of transformers."""
        return in_memory(self.family.model_type, self._in_files(place))

    def find(self, name: str) -> str | None:
        """The name in `places` of a tensor, by its name in a file; None if none."""
        return self._known.get(self.family.short(name))

    @functools.cached_property
    def _known(self) -> dict[str, str]:
        known = {}
        for name, place in self.places.items():
            # Files of earlier versions have the names of files of whole models.
            known[place.name] = known[self.family.short(name)] = name
        return known

    def old_names(self, name: str) -> list[str]:
        """Other names that a tensor had in models of earlier versions."""
        return [self._in_files(self.places[name])]

    def places_of(self, path: str) -> list[str]:
        """Names of the tensors that hold a parameter."""
        return [n for n, place in self.places.items() if path in place.row.paths]

    def copy_of(self, name: str) -> bool:
        """Whether a tensor is one of a head that is tied to the table."""
        short = self.family.short
        copies = {short(copy) for copy in self.family.copies}
        copies |= {
            short(in_memory(self.family.model_type, copy))
            for copy in self.family.copies
        }
        return short(name) in copies and self.find(name) is None

    def unseen(self, name: str) -> str:
        """What a tensor is whose adapter peft leaves out in what it computes.

        Encoder-decoders of transformers read their table by modules of other names, and
        torch's MultiheadAttention reads the weight of its output by itself.

        Args:
          name: of the tensor in `places`.

        Returns:
          A phrase for messages; "" for all other tensors.
        """
        if any(
            copy.endswith("embed_tokens.weight")
            for copy, original in self.family.copies.items()
            if self.find(original) == name
        ):
            return "the table of encoder and decoder"
        if name.endswith(_TORCH_OUT) and (
            name.replace(_TORCH_OUT, _TORCH_IN) in self.places
        ):
            return "the output of torch's MultiheadAttention"
        return ""

    def layout(self, place: Place) -> Layout:
        """How the parameters of a tensor lie in it.

        Those of patches, with an axis for height, width and channels each, have no side
        that is one of inputs to an adapter.
        """
        own = sides(self.axes[self.stored(place.row.paths[0], place)[0]])
        return Layout(place.row, place.shapes, len(own[0]) if len(own) == 2 else 0)

    def stored(self, path: str, place: Place) -> tuple[str, tuple[int, ...]]:
        """The array of a parameter of a tensor, and the indices of its first axes."""
        index: tuple[int, ...] = ()
        if path in self.shapes:
            if self.leaves[path].layers is not None:
                index = (place.layer,)
        else:
            path = path.replace("/layers/", f"/layer_{place.layer}/")
        return path, index if place.expert is None else (*index, place.expert)

    def batch(self, path: str) -> tuple[int, ...]:
        """Sizes of an array's axes over layers and experts."""
        return self.shapes[path].shape[: num_batch_axes(self.axes[path])]

    @functools.cached_property
    def experts(self) -> dict[str, dict[str, list[str]]]:
        """Modules of experts → "gate", "in" and "out" → names of tensors, by expert.

        Since version 5 of transformers these are parameters of one module.
        """
        found: dict[str, dict[str, list[str]]] = {}
        for name, place in self.places.items():
            # StableLM has norms for each head, which lie in its files as experts do.
            own = re.fullmatch(r"(.+)\.\d+\.[^.]+\.weight", name)
            if place.expert is not None and own:
                part = place.row.path.rpartition("/")[2]
                found.setdefault(own[1], {}).setdefault(part, []).append(name)
        return found

    def tensors(self, saved: SavedState) -> dict[str, Tensor]:
        """The tensors of a checkpoint of this model, by the names of `places`."""
        host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])

        @functools.lru_cache(maxsize=_HELD)
        def read(path: str) -> np.ndarray:
            wanted = {path: self.shapes[path].update(sharding=host)}
            return np.asarray(saved.read_params(wanted)[path])

        def make(place: Place) -> np.ndarray:
            parts = []
            for path, shape in zip(place.row.paths, place.shapes):
                array, index = self.stored(path, place)
                # Without padding of the vocabulary.
                parts.append(read(array)[index][tuple(map(slice, shape))])
            return place.row.to_there(parts)

        return {
            name: Tensor(
                name,
                place.row.shape_there(place.shapes),
                functools.partial(make, place),
            )
            for name, place in self.places.items()
        }

    def _in_files(self, place: Place) -> str:
        name = self.family.written(self.objective.model, place.row.name)
        if self.architecture.bare:
            name = name.removeprefix(self.family.prefix)
        return name.format(**place.numbers)


def module_of(name: str) -> str:
    """The module of a tensor that is its weight or bias; "" for other tensors."""
    for end in (WEIGHT, BIAS):
        if name.endswith(end):
            return name.removesuffix(end)
    return ""
