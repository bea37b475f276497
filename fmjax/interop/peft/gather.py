"""The adapters of a run by the tensors of transformers' model that they change."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from fmjax.errors import UserError
from fmjax.interop.peft.base_model import WEIGHT, BaseModel, module_of
from fmjax.interop.peft.factors import Layout, LowRank, without_zeros
from fmjax.interop.rows import Row
from fmjax.interop.weights import Place
from fmjax.models.layers.adapters import IA3, LORA
from fmjax.training.checkpoint.saved_state import SavedState

GATE_UP, DOWN = "gate_up_proj", "down_proj"


@dataclasses.dataclass(frozen=True)
class Product:
    """The low-rank adapter of a tensor.

    Attributes:
      whole: A [r, inputs], B [outputs, r] and their scale.
      magnitude: of DoRA [outputs]; None without.
      key: of its tensors in a file, before "lora_A".
      is_table: whether rows of the tensor are looked up.
      is_parameter: whether the tensor is no weight of a linear layer.
      inputs_first: whether the tensor is [inputs, outputs].
    """

    whole: LowRank
    magnitude: np.ndarray | None
    key: str
    is_table: bool = False
    is_parameter: bool = False
    inputs_first: bool = False


class Gathered:
    """The adapters of a run.

    Attributes:
      products: name of a module, or of a parameter without one → its adapter.
      factors: module → factors of IA3, [outputs, 1] or [1, inputs].
      transposed: whether a tensor with factors is [inputs, outputs].
    """

    def __init__(
        self,
        base: BaseModel,
        saved: SavedState,
        wanted: dict[str, jax.ShapeDtypeStruct],
        added: Sequence[str],
        run_dir: pathlib.Path,
    ):
        """Reads what a run adds.

        Args:
          base: the model.
          saved: the run's checkpoint.
          wanted: shapes and shardings of all parameters, by path.
          added: paths of those that are added.
          run_dir: for messages.

        Raises:
          UserError: peft has no form for a parameter that is added.
        """
        self._base, self._saved, self._wanted = base, saved, wanted
        self._run_dir = run_dir
        read = saved.read_params({path: wanted[path] for path in added})
        self._arrays = {path: np.asarray(array) for path, array in read.items()}
        self._weights: dict[str, jax.Array] = {}
        self._used: set[str] = set()
        self.products: dict[str, Product] = {}
        self.factors: dict[str, np.ndarray] = {}
        self.transposed = False
        for name, place in base.places.items():
            if place.expert is None and name.endswith(WEIGHT):
                self._add(name, place)
        for container, parts in base.experts.items():
            self._add_experts(container, parts)
        if lost := [
            path for path in added if path.rpartition("/")[0] not in self._used
        ]:
            raise UserError(
                f"{run_dir}: {lost[0]!r} has no place in the files of an adapter of "
                f"{base.class_name}. Expected adapters of @lora() or @ia3() on linear "
                "layers and tables."
            )

    def _add(self, name: str, place: Place) -> None:
        layout = self._base.layout(place)
        if not layout.is_linear:
            return
        parts = [*self._parts(place, layout)]
        if any(part is not None for part, _ in parts):
            self._add_product(name, place, layout, parts)
        self._add_factors(name, place, layout)

    def _parts(
        self, place: Place, layout: Layout
    ) -> Iterator[tuple[LowRank | None, np.ndarray | None]]:
        """Product and magnitude of each parameter of a tensor; None for none."""
        for path, shape in zip(place.row.paths, place.shapes):
            array, index = self._base.stored(path, place)
            owner = array + LORA
            if f"{owner}/a" not in self._arrays:
                yield None, None
                continue
            self._used.add(owner)
            # Without padding of the vocabulary.
            real = tuple(map(slice, shape))
            inputs, outputs = real[: layout.inputs], real[layout.inputs :]
            a, b, scale = (
                self._arrays[f"{owner}/{n}"][index] for n in ("a", "b", "scale")
            )
            product = LowRank(a[inputs], b[(slice(None), *outputs)], float(scale))
            magnitude = self._arrays.get(f"{owner}/magnitude")
            yield product, None if magnitude is None else magnitude[index][outputs]

    def _add_product(
        self,
        name: str,
        place: Place,
        layout: Layout,
        parts: list[tuple[LowRank | None, np.ndarray | None]],
    ) -> None:
        products = [part and without_zeros(part) for part, _ in parts]
        magnitudes = [magnitude for _, magnitude in parts]
        magnitude = None
        if any(each is not None for each in magnitudes):
            norms = self._norms(place, layout)
            whole = [n if m is None else m for m, n in zip(magnitudes, norms)]
            magnitude = layout.join_outputs([each[None] for each in whole])[:, 0]
            unchanged = all(np.allclose(m, n, 1e-6) for m, n in zip(whole, norms))
            if not unchanged and all(part is None for part in products):
                # A product of zeros, for the magnitude beside it.
                first = next(part for part, _ in parts if part is not None)
                nothing = LowRank(0 * first.a[..., :1], 0 * first.b[:1], first.scale)
                products = [part and nothing for part, _ in parts]
        if all(part is None for part in products):
            return  # Layers that are not adapted, beside others that are.
        joined = layout.join(products)
        unseen = self._base.unseen(name)
        if unseen and joined.a.any() and joined.b.any():
            raise UserError(
                f"{self._run_dir} has an adapter of {place.row.paths[0]!r}, {unseen}, "
                "which peft leaves out in what it computes. Expected --merged, or a "
                "run without it."
            )
        module = module_of(name)
        # Routers are no linear layers there.
        is_parameter = place.row.paths[0].endswith("/router")
        self.products[name if is_parameter else module] = Product(
            joined,
            magnitude,
            module,
            is_table=place.row.paths[0].endswith("/table"),
            is_parameter=is_parameter,
            inputs_first=layout.inputs_first,
        )

    def _norms(self, place: Place, layout: Layout) -> list[np.ndarray]:
        """|W| over the inputs of each parameter of a tensor, [..outputs]."""
        found = []
        arrays = {self._base.stored(path, place)[0] for path in place.row.paths}
        if self._weights.keys() != arrays:  # Layers of an array follow each other.
            wanted = {array: self._wanted[array] for array in arrays}
            self._weights = self._saved.read_params(wanted)
        inputs = tuple(range(layout.inputs))
        for path, shape in zip(place.row.paths, place.shapes):
            array, index = self._base.stored(path, place)
            weight = np.asarray(self._weights[array])[index][tuple(map(slice, shape))]
            found.append(np.sqrt((weight.astype(np.float32) ** 2).sum(inputs)))
        return found

    def _add_factors(self, name: str, place: Place, layout: Layout) -> None:
        found = {"in": [], "out": []}
        for path, shape in zip(place.row.paths, place.shapes):
            array, index = self._base.stored(path, place)
            owner = array + IA3
            sizes = shape[: layout.inputs], shape[layout.inputs :]
            for (side, parts), size in zip(found.items(), sizes):
                factors = self._arrays.get(f"{owner}/{side}")
                if factors is None:
                    parts.append(np.ones(size, np.float32))
                    continue
                self._used.add(owner)
                parts.append(factors[index][tuple(map(slice, size))])
        changed = [
            s for s, parts in found.items() if any((p != 1).any() for p in parts)
        ]
        if not changed:
            return
        same = all(np.array_equal(part, found["in"][0]) for part in found["in"])
        if len(changed) == 2 or not same:
            raise UserError(
                f"{self._run_dir}: {name} of transformers joins "
                f"{', '.join(place.row.paths)}, and peft multiplies either its inputs, "
                "all by the same factors of IA3, or its outputs."
            )
        self.transposed |= layout.inputs_first
        if changed == ["in"]:
            array = layout.join_inputs(found["in"][0][..., None]).T
        else:
            array = layout.join_outputs([part[None] for part in found["out"]])
        self.factors[module_of(name)] = array

    def _add_experts(self, container: str, parts: dict[str, list[str]]) -> None:
        """The adapters of all experts of a layer, as of one parameter."""
        joined = ("gate", "in") if "gate" in parts else ("in",)
        found = {
            f"{container}.{GATE_UP}": self._stacked(parts, joined),
            f"{container}.{DOWN}": self._stacked(parts, ("out",)),
        }
        found = {name: whole for name, whole in found.items() if whole is not None}
        for i, (name, whole) in enumerate(found.items()):
            # The wrapper of a parameter lies in that of the next.
            inner = ".base_layer" * (len(found) - 1 - i)
            self.products[name] = Product(
                whole, None, f"{container}{inner}", is_parameter=True
            )

    def _stacked(
        self, parts: dict[str, list[str]], names: Sequence[str]
    ) -> LowRank | None:
        experts = []
        for each in zip(*(parts[name] for name in names)):
            places = [self._base.places[name] for name in each]
            layout = self._base.layout(places[0])
            own = [next(self._parts(place, layout)) for place in places]
            if any(magnitude is not None for _, magnitude in own):
                raise UserError(
                    f"{self._run_dir}: lora.dora = True of {places[0].row.paths[0]!r}; "
                    "peft has no DoRA of experts."
                )
            products = [part and without_zeros(part) for part, _ in own]
            row = places[0].row
            if len(names) > 1:
                row = Row(" ".join(names), "", "p i o -> (p o) i")
            shapes = tuple(place.shapes[0] for place in places)
            whole = Layout(row, shapes, 1)
            given = any(part is not None for part in products)
            experts.append((whole, whole.join(products) if given else None))
        given = [part for _, part in experts if part is not None]
        if not given:
            return None
        rank = max(len(part.a) for part in given)
        scale = given[0].scale
        a = np.zeros((len(experts), rank, experts[0][0].num_inputs), np.float32)
        b = np.zeros((experts[0][0].num_outputs, rank, len(experts)), np.float32)
        for i, (_, part) in enumerate(experts):
            if part is not None:
                a[i, : len(part.a)] = part.a
                b[:, : len(part.a), i] = part.b * np.float32(part.scale / scale)
        return LowRank(a.reshape(-1, a.shape[-1]), b.reshape(len(b), -1), scale)
