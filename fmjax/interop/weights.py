"""Converting between the parameters of a model and the tensors of a family's files."""

import functools
import re
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import linen as nn

from fmjax.errors import UserError
from fmjax.interop.family import Architecture, Family
from fmjax.interop.mapped_arrays import Zeros, zeros_in_memory
from fmjax.interop.rows import Joined, Row, Shapes
from fmjax.interop.safetensors_writer import Tensor
from fmjax.interop.tensor_files import TensorFiles
from fmjax.models.contracts import TiesEmbeddings, vocab_size_of

_UNROLLED = re.compile(r"layer_(\d+)")


class Leaf(NamedTuple):
    """A parameter.

    Attributes:
      shape: shape in one layer, without vocabulary padding.
      real: the part of the array that is not padding.
      layers: number of layers; None outside of layers.
    """

    shape: tuple[int, ...]
    real: tuple[slice, ...]
    layers: int | None


class Place(NamedTuple):
    """A tensor, and the parts of parameters that it holds.

    Attributes:
      row: its row of the family's table.
      name: its name, by `Family.short`.
      layer: its layer in the parameters; 0 outside of layers.
      expert: its expert; None if there is none.
      numbers: of layer and expert in the names of the file.
      shapes: shapes of the parameters, as in `Row`.
    """

    row: Row | Joined
    name: str
    layer: int
    expert: int | None
    numbers: dict[str, int | None]
    shapes: Shapes


def leaves(axes: dict, shapes: dict, vocab_size: int) -> dict[str, Leaf]:
    """Parameters by path, with those of all layers under one path, scanned or unrolled.

    Args:
      axes: tree of the parameters' logical axes.
      shapes: tree of their shapes.
      vocab_size: length of axes named "vocab" without padding.
    """
    found: dict[str, Leaf] = {}

    def visit(path, axes, shape):
        if isinstance(axes, dict):
            for name, inside in axes.items():
                visit((*path, name), inside, shape[name])
            return
        layers, shape = None, shape.shape
        key = "/".join(path)
        if "layers" in path:
            (layers, *shape), (_, *axes) = shape, axes
        elif _UNROLLED.search(key):
            key = _UNROLLED.sub("layers", key)
            layers = 1 + (found[key].layers if key in found else 0)
        real = tuple(slice(vocab_size if a == "vocab" else None) for a in axes)
        cut = (vocab_size if a == "vocab" else n for a, n in zip(axes, shape))
        found[key] = Leaf(tuple(cut), real, layers)

    visit((), axes, shapes)
    return found


def places(
    rows: tuple[Row | Joined, ...],
    found: dict[str, Leaf],
    family: Family,
    most: int | None = None,
) -> list[Place]:
    """All tensors of a model's files, in the order of the table.

    Args:
      rows: the table.
      found: result of `leaves`.
      family: the family of the model.
      most: maximum number of tensors; None for no limit.

    Raises:
      UserError: the table has no row for a parameter, or there are too many tensors.
    """
    placed, result, count = set(), [], 0
    for row in rows:
        unless = row.given.startswith("!")
        if row.given and (row.given.lstrip("!") in found) == unless:
            continue
        if row.paths[0] not in found:
            continue
        placed.update(row.paths)
        leaf = found[row.paths[0]]
        shapes, experts = tuple(found[path].shape for path in row.paths), [None]
        if "{expert}" in row.name:
            experts = range(leaf.shape[0])
            shapes = tuple(shape[1:] for shape in shapes)
        before = found[row.after].layers if row.after in found else 0
        layers = 1 if leaf.layers is None else leaf.layers
        count += layers * len(experts)
        if most is not None and count > most:
            raise UserError(
                f"config.json makes more than {most:,} tensors, {layers:,} layers of "
                f"{len(experts):,} as {row.name}; expected about as many as there are."
            )
        for layer in range(row.first, layers):
            for expert in experts:
                numbers = {"layer": before + layer, "expert": expert}
                name = family.short(row.name).format(**numbers)
                result.append(Place(row, name, layer, expert, numbers, shapes))
    if missing := sorted(set(found) - placed):
        raise UserError(f"{missing[0]}: {family.model_type} has no tensor for it.")
    return result


def read_params(
    files: TensorFiles,
    family: Family,
    architecture: Architecture,
    axes: dict,
    shapes: dict,
    model: nn.Module,
    dtype: Any = np.float32,
    zeros: Zeros = zeros_in_memory,
) -> dict:
    """Reads a model's parameters as NumPy arrays; vocabulary padding is zero.

    Args:
      files: the files.
      family: the family of the model.
      architecture: its architecture.
      axes: tree of the parameters' logical axes, with scanned layers.
      shapes: tree of their shapes.
      model: the model.
      dtype: of the arrays.
      zeros: makes an array.

    Raises:
      UserError: a tensor is missing, is not expected, or has the wrong shape.
    """
    found = leaves(axes, shapes, vocab_size_of(model))
    # Some may lack, and are to be named; of layers × experts there may be too many to.
    most = 2 * len(files.names) + 1000
    expected = places(family.rows_of(architecture), found, family, most)
    in_files = {family.short(name): name for name in files.names}
    computed = family.computed(model)
    _check_names(files, family, architecture, expected, in_files, computed)
    # All of them before the first array is made: then no more is made than was read.
    for place in expected:
        shape_there = place.row.shape_there(place.shapes)
        files.check(in_files[place.name], shape_there, vocabulary_axis(place, found))
    params: dict[str, Any] = {}
    arrays = {}
    for path in found:
        node, shape = params, shapes
        *folders, name = path.split("/")
        for folder in folders:
            node, shape = node.setdefault(folder, {}), shape[folder]
        arrays[path] = node[name] = zeros(shape[name].shape, dtype)
    for place in expected:
        shape_there = place.row.shape_there(place.shapes)
        longer = vocabulary_axis(place, found)
        tensor = files.read(in_files[place.name], shape_there, longer)
        for path, part in zip(
            place.row.paths, place.row.to_here(tensor, place.shapes), strict=True
        ):
            target = arrays[path]
            if found[path].layers is not None:
                target = target[place.layer]
            if place.expert is None:
                target[found[path].real] = part
            else:
                target[place.expert] = part
    return params


def vocabulary_axis(place: Place, found: dict[str, Leaf]) -> int | None:
    """The tensor's axis of the vocabulary, whose rows may be padded; None if none."""
    real = found[place.row.paths[0]].real
    axes = [axis for axis, part in enumerate(real) if part.stop is not None]
    if len(place.row.paths) > 1 or place.expert is not None or not axes:
        return None
    (shape,) = place.shapes
    more = list(shape)
    more[axes[0]] += 1
    there = zip(place.row.shape_there((shape,)), place.row.shape_there((tuple(more),)))
    return next(axis for axis, (n, other) in enumerate(there) if n != other)


def tensors(
    read: Callable[[list[str]], dict[str, np.ndarray]],
    names: Collection[str],
    model: nn.Module,
    family: Family,
    architecture: Architecture,
    found: dict[str, Leaf],
) -> Iterator[Tensor]:
    """The tensors of a model's files, in the order of the table.

    Args:
      read: returns parameters by name; those of one row are held at a time.
      names: names of all parameters, with scanned or unrolled layers.
      model: the model.
      family: the family of the model.
      architecture: its architecture.
      found: result of `leaves` for the parameters.
    """
    copies: dict[str, list[str]] = {}
    if isinstance(model, TiesEmbeddings) and not model.tie_embeddings:
        for copy in family.repeated:
            copies.setdefault(family.copies[copy], []).append(copy)
    held: dict[str, np.ndarray] = {}

    def make(place: Place) -> np.ndarray:
        wanted = _stored(place.row, found, names)
        if held.keys() != set(wanted):
            held.clear()
            held.update(read(wanted))
        parts = [_part(held, path, found[path], place) for path in place.row.paths]
        return place.row.to_there(parts)

    for place in places(family.rows_of(architecture), found, family):
        for name in (place.row.name, *copies.get(place.row.name, ())):
            name = family.written(model, name)
            if architecture.bare:
                name = name.removeprefix(family.prefix)
            yield Tensor(
                name.format(**place.numbers),
                place.row.shape_there(place.shapes),
                functools.partial(make, place),
            )
    for name, array in family.computed(model).items():
        if architecture.bare:
            name = name.removeprefix(family.prefix)
        yield Tensor(name, array.shape, lambda array=array: array)


def _stored(row: Row, found: dict[str, Leaf], names: Collection[str]) -> list[str]:
    """The parameters of a row of the table, by the names in the checkpoint."""
    stored = []
    for path in row.paths:
        if path in names:
            stored.append(path)
        else:
            stored += [_of_layer(path, i) for i in range(found[path].layers)]
    return stored


def _part(
    held: dict[str, np.ndarray], path: str, leaf: Leaf, place: Place
) -> np.ndarray:
    scanned = path in held
    array = held[path] if scanned else held[_of_layer(path, place.layer)]
    if leaf.layers is not None and scanned:
        array = array[place.layer]
    if place.expert is not None:
        return array[place.expert]
    return array[(*leaf.real, ...)]


def _of_layer(path: str, layer: int) -> str:
    return path.replace("/layers/", f"/layer_{layer}/")


def copies_that_differ(
    files: TensorFiles, family: Family, known: Collection[str] = ()
) -> Iterator[str]:
    """The tensors that should be copies of others but differ.

    Args:
      files: the tensors.
      family: its `copies` are looked at.
      known: copies that need not be read, since they are known to be no copies.
    """
    in_files = {family.short(name): name for name in files.names}
    for copy, original in family.copies.items():
        names = [in_files.get(family.short(name)) for name in (copy, original)]
        if copy not in known and None not in names and not files.equal(*names):
            yield copy


def computed_otherwise(files: TensorFiles, family: Family, model: nn.Module) -> bool:
    """Whether files hold other values than those that a model computes."""
    in_files = {family.short(name): name for name in files.names}
    try:
        expected = family.computed(model)
    except UserError:  # There are none for such a model.
        return True
    for name, array in expected.items():
        stored = in_files.get(family.short(name))
        if stored is not None:
            found = files.read(stored, array.shape)
            if not np.allclose(found, array, rtol=0, atol=1e-6):
                return True
    return False


def left_out(files: TensorFiles, family: Family, architecture: Architecture):
    """Names of tensors of the files that belong to other architectures."""
    in_files = {family.short(name): name for name in files.names}
    return [in_files[name] for name in family.others(architecture, in_files)]


def _check_names(files, family, architecture, expected, in_files, computed) -> None:
    wanted = {place.name for place in expected}
    known = {family.short(name) for name in (*family.copies, *computed)}
    known.update(family.others(architecture, in_files))
    found = {n for n in in_files if not re.fullmatch(family.constants, n)}
    # Biases of zeros do nothing; AutoGPTQ adds them to layers without bias.
    unknown = sorted(
        name
        for name in found - wanted - known
        if not (name.endswith(".bias") and files.is_zero(in_files[name]))
    )
    for what, names in (
        ("has no", sorted(wanted - found)),
        ("has tensors that this model has no place for:", unknown),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise UserError(f"{files.folder} {what} {', '.join(names[:5])}{more}.")
