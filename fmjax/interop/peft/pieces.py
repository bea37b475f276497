"""What an adapter's tensors say of each parameter: products, factors, whole values."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from fmjax.errors import UserError
from fmjax.interop.families import FAMILIES
from fmjax.interop.peft.adapter_config import IA3, LN_TUNING, LORA, AdapterConfig
from fmjax.interop.peft.adapter_tensors import AdapterTensors, LowRankNames
from fmjax.interop.peft.base_model import BIAS, WEIGHT, BaseModel, module_of
from fmjax.interop.peft.factors import LowRank
from fmjax.interop.tensor_names import known_names
from fmjax.interop.weights import Place, vocabulary_axis

# Index of a parameter in its array: of the layer, of the expert, of both, or none.
Index = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Piece:
    """The low-rank adapter of one layer's or expert's parameter.

    Attributes:
      product: that is added to the parameter.
      alpha: numerator of its scale.
      magnitude: of DoRA [..outputs]; None without.
    """

    product: LowRank
    alpha: float
    magnitude: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Pieces:
    """What is changed, by the path of the array and the index in it.

    Attributes:
      low_rank: LoRA and DoRA.
      inputs: factors of inputs.
      outputs: factors of outputs.
      whole: values of parameters that replace those of the base.
    """

    low_rank: dict[str, dict[Index, Piece]] = dataclasses.field(default_factory=dict)
    inputs: dict[str, dict[Index, np.ndarray]] = dataclasses.field(default_factory=dict)
    outputs: dict[str, dict[Index, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    whole: dict[str, dict[Index, np.ndarray]] = dataclasses.field(default_factory=dict)


def read_pieces(
    tensors: AdapterTensors, config: AdapterConfig, base: BaseModel, named: str
) -> Pieces:
    """Reads every tensor of an adapter.

    Args:
      tensors: of the adapter.
      config: of the adapter.
      base: the model that it changes.
      named: the base's run directory, for messages.

    Raises:
      UserError: a tensor has no place, or another shape than the base makes it; or a
        module that the config names has no tensors.
    """
    reader = _Reader(tensors, config, base, named)
    reader.check_places()
    reader.check_targets()
    return reader.read()


class _Reader:
    def __init__(
        self,
        tensors: AdapterTensors,
        config: AdapterConfig,
        base: BaseModel,
        named: str,
    ):
        self._tensors, self._config, self._base = tensors, config, base
        self._named = named
        self._experts = base.experts
        self._found = Pieces()

    def check_places(self) -> None:
        """Raises a UserError for tensors that the base has no place for."""
        tensors, base = self._tensors, self._base
        homeless = [
            module
            for module in (*tensors.low_rank, *tensors.factors)
            if base.find(module + WEIGHT) is None
            and self._container(module) not in self._experts
        ]
        homeless += [name for name in tensors.whole if base.find(name) is None]
        if not homeless:
            return
        more = f" and {len(homeless) - 5} more" if len(homeless) > 5 else ""
        raise UserError(
            f"{tensors.folder}: {self._named}, of model_type "
            f"{base.family.model_type}, {base.class_name}, has no place for "
            f"{', '.join(homeless[:5])}{more}. Expected an adapter of this model."
            f"{_of_other_family(homeless)}"
        )

    def check_targets(self) -> None:
        """Raises a UserError where tensors and target_modules do not agree."""
        config, base, tensors = self._config, self._base, self._tensors
        for kind, modules in (
            (LORA, tensors.low_rank),
            (IA3, tensors.factors),
            (LN_TUNING, tensors.tuned),
        ):
            if modules and config.kind != kind:
                raise UserError(
                    f"{config.source} has peft_type = {config.kind!r}, but the adapter "
                    f"has tensors of {kind} of {min(modules)}. Expected files of one "
                    "kind of adapter."
                )
        present = [*tensors.low_rank, *tensors.factors, *tensors.tuned]
        for module in present:
            if config.is_target(module) is False and not self._of_parameter(module):
                raise UserError(
                    f"{config.source} has no target for {module}, of which there are "
                    "tensors: peft would leave them out. Expected target_modules and "
                    "tensors that agree."
                )
        places = {base.find(module + WEIGHT) for module in present}
        # Experts are modules in files of earlier versions alone.
        by_expert = any(n and base.places[n].expert is not None for n in places)
        lacking = self._untuned() if config.kind == LN_TUNING else []
        for name, place in base.places.items():
            if not name.endswith(WEIGHT) or name in places:
                continue
            if place.expert is not None and not by_expert:
                continue
            names = {module_of(each) for each in (name, *base.old_names(name))}
            # Other modules of that name are none that peft adapts.
            if any(map(config.is_target, names)) and base.layout(place).is_linear:
                lacking.append(module_of(name))
        if lacking:
            more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
            raise UserError(
                f"{tensors.folder} has no tensors of {', '.join(lacking[:5])}{more}, "
                f"which target_modules of {config.source} names."
            )

    def _untuned(self) -> list[str]:
        """Tensors of the norms that the config names which the file does not have."""
        base = self._base
        present = {base.find(name) for name in self._tensors.whole}
        return [
            name
            for name in base.places
            if name not in present
            and any(
                self._config.is_target(module_of(each))
                for each in (name, *base.old_names(name))
                if module_of(each)
            )
        ]

    def read(self) -> Pieces:
        """All tensors."""
        for module, names in self._tensors.low_rank.items():
            self._add_low_rank(module, names)
        for module, name in self._tensors.factors.items():
            self._add_factors(module, name)
        for name, stored in self._tensors.whole.items():
            self._add_whole(name, stored)
        return self._found

    def _of_parameter(self, module: str) -> bool:
        if self._container(module) in self._experts:
            return bool(self._config.parameters)
        return self._config.targets_parameter(module + WEIGHT)

    def _container(self, module: str) -> str:
        """The module of experts that a name may stand for."""
        return module.removesuffix(".base_layer")

    def _add_low_rank(self, module: str, names: LowRankNames) -> None:
        name = self._base.find(module + WEIGHT)
        if name is None:
            self._add_experts(module, names)
            return
        place = self._base.places[name]
        layout = self._base.layout(place)
        is_table = place.row.paths[0].endswith("/table")
        if not layout.is_linear or is_table != names.embedding:
            kind = "a table" if is_table else f"{place.row.shape_there(place.shapes)}"
            if place.row.paths[0].endswith("patches/kernel"):
                kind = "a convolution of patches"
            raise UserError(
                f"{self._tensors.folder}: {names.a} is of {name}, which in "
                f"{self._named} is {kind}; expected an adapter of a linear layer, or "
                "of a table lora_embedding_A and lora_embedding_B."
            )
        config = self._config
        if config.dora != bool(names.magnitude):
            raise UserError(
                f"{self._tensors.folder}: use_dora = {config.dora}, but {module} has "
                f"{names.magnitude or 'no lora_magnitude_vector'}."
            )
        # As peft names a parameter that is adapted without a module of its own.
        whole = module + WEIGHT
        named = whole if config.targets_parameter(whole) else module
        rank = self._rank(named, names)
        inputs, outputs = layout.num_inputs, layout.num_outputs
        longer = vocabulary_axis(place, self._base.leaves)
        # Axes of A and of B that are the vocabulary's.
        of_a = of_b = None
        if longer is not None:
            of_inputs = (longer == 0) == layout.inputs_first
            of_a, of_b = (1, None) if of_inputs else (None, 0)
        product = LowRank(
            self._read(names.a, (rank, inputs), of_a),
            self._read(names.b, (outputs, rank), of_b),
            config.scale(config.alpha_of(named), rank),
        )
        unseen = self._base.unseen(name)
        if unseen and product.a.any() and product.b.any():
            raise UserError(
                f"{self._tensors.folder}: {names.a} is of {name}, {unseen}, whose "
                "adapter peft leaves out in what it computes. Expected an adapter "
                "without it, or one of zeros, as peft starts with."
            )
        magnitudes: list = [None] * len(place.row.paths)
        if names.magnitude:
            lengths = self._read(names.magnitude, (outputs,), of_b)
            parts = layout.split_outputs(lengths[:, None])
            magnitudes = [part[0] for part in parts]
        alpha = config.alpha_of(named)
        for (array, index), part, magnitude in zip(
            self._where(place), layout.split(product), magnitudes
        ):
            pieces = self._found.low_rank.setdefault(array, {})
            pieces[index] = Piece(part, alpha, magnitude)

    def _add_experts(self, module: str, names: LowRankNames) -> None:
        """The adapters of all experts in one tensor: A [r · experts, inputs]."""
        container = self._container(module)
        parts = self._experts[container]
        joined = ["gate", "in"] if "gate" in parts else ["in"]
        of_parameters = {
            f"{container}.gate_up_proj": joined,
            f"{container}.down_proj": ["out"],
        }
        targeted = [
            (name, which)
            for name, which in of_parameters.items()
            if self._config.targets_parameter(name)
        ]
        # The wrapper of a parameter lies in that of the next.
        inner = module != container
        if len(targeted) != 1 + inner and not (len(targeted) == 2 and not inner):
            raise UserError(
                f"{self._tensors.folder}: {names.a} is of no parameter that "
                f"target_parameters of {self._config.source} names; expected "
                f"{' or '.join(of_parameters)}."
            )
        parameter, which = targeted[0 if inner else -1]
        experts = len(parts["out"])
        rank = self._config.rank_of(parameter)
        places = [[self._base.places[n] for n in parts[name]] for name in which]
        layouts = [self._base.layout(of_part[0]) for of_part in places]
        widths = [layout.num_outputs for layout in layouts]
        a = self._read(names.a, (rank * experts, layouts[0].num_inputs))
        b = self._read(names.b, (sum(widths), rank * experts))
        a = a.reshape(experts, rank, -1)
        b = b.reshape(-1, rank, experts)
        alpha = self._config.alpha_of(parameter)
        scale = self._config.scale(alpha, rank)
        ends = np.cumsum([0, *widths])
        for of_part, layout, start, end in zip(places, layouts, ends, ends[1:]):
            for place in of_part:
                product = LowRank(a[place.expert], b[start:end, :, place.expert], scale)
                ((array, index),) = self._where(place)
                pieces = self._found.low_rank.setdefault(array, {})
                pieces[index] = Piece(*layout.split(product), alpha, None)

    def _add_factors(self, module: str, stored: str) -> None:
        name = self._base.find(module + WEIGHT)
        if (
            name is None
            or not (layout := self._base.layout(self._base.places[name])).is_linear
        ):
            raise UserError(
                f"{self._tensors.folder}: {stored} is of no linear layer of "
                f"{self._named}; expected factors of one."
            )
        place = self._base.places[name]
        if self._tensors.shape(stored) == (1, layout.num_inputs):
            factors = self._read(stored, (1, layout.num_inputs))
            parts = [layout.split_inputs(factors.T)[..., 0]] * len(place.row.paths)
            into = self._found.inputs
        else:
            factors = self._read(stored, (layout.num_outputs, 1))
            parts = [part[0] for part in layout.split_outputs(factors)]
            into = self._found.outputs
        for (array, index), part in zip(self._where(place), parts):
            into.setdefault(array, {})[index] = part

    def _add_whole(self, name: str, stored: str) -> None:
        place = self._base.places[self._base.find(name)]
        shape = place.row.shape_there(place.shapes)
        longer = vocabulary_axis(place, self._base.leaves)
        value = self._read(stored, shape, longer)
        for (array, index), part in zip(
            self._where(place), place.row.to_here(value, place.shapes)
        ):
            self._found.whole.setdefault(array, {})[index] = part

    def _where(self, place: Place) -> Iterator[tuple[str, Index]]:
        for path in place.row.paths:
            yield self._base.stored(path, place)

    def _rank(self, module: str, names: LowRankNames) -> int:
        found = self._tensors.shape(names.a)
        rank = self._config.rank_of(module)
        if len(found) != 2 or found[0] != rank:
            raise UserError(
                f"{self._tensors.folder}: {names.a} has the shape {found}, but "
                f"{self._config.source} makes its rank {rank}."
            )
        return rank

    def _read(
        self, name: str, shape: tuple[int, ...], longer: int | None = None
    ) -> np.ndarray:
        return self._tensors.read(name, shape, self._named, longer)


def _of_other_family(modules: list[str]) -> str:
    """A sentence that names the families that have such modules; "" if none has."""
    names = [m if m.endswith((WEIGHT, BIAS)) else m + WEIGHT for m in modules]
    fits = [
        family.model_type
        for family in FAMILIES
        if all(known_names(family).fullmatch(family.short(name)) for name in names)
    ]
    if not fits:
        return ""
    return f" Models of model_type {' or '.join(fits[:3])} have tensors of these names."
