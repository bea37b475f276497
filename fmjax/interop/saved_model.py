"""Reading a model saved by transformers as an objective and parameters."""

import contextlib
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fmjax.errors import UserError
from fmjax.interop import model_fields
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import Architecture, Family, find
from fmjax.interop.mapped_arrays import Zeros, zeros_in_memory
from fmjax.interop.options import Options
from fmjax.interop.quantized.dequantize import dequantized
from fmjax.interop.safetensors_writer import DTYPES
from fmjax.interop.sizes import check_sizes
from fmjax.interop.tensor_files import TensorFiles
from fmjax.interop.tensor_names import without_prefixes
from fmjax.interop.vocabulary_rows import vocabulary_rows
from fmjax.interop.weights import (
    computed_otherwise,
    copies_that_differ,
    leaves,
    left_out,
    places,
    read_params,
)
from fmjax.models.contracts import vocab_size_of
from fmjax.objectives.objective import Objective
from fmjax.training.checkpoint.saved_state import in_a_line
from fmjax.training.state import abstract_variables


class SavedModel(NamedTuple):
    """A model read from files.

    Attributes:
      objective: the family's objective with the model.
      params: its parameters as NumPy arrays, with scanned layers.
      family: the family of its config.json.
      architecture: the name of its class in transformers.
      dtype: of the files, as `TensorFiles.dtype`.
      quantization: the form that weights were quantized in; None if they were not.
      parameters: the number of them, without padding of the vocabulary.
      left_out: names of tensors of heads that the architecture does not have.
      notes: what was done to make files and config.json agree, for the user.
    """

    objective: Objective
    params: dict
    family: Family
    architecture: str
    dtype: str
    quantization: str | None
    parameters: int
    left_out: list[str]
    notes: list[str]


def read_model(
    folder: Path,
    files: TensorFiles,
    ignore: Collection[str] = (),
    tokens: int | None = None,
    dtype: str = "float32",
    zeros: Zeros = zeros_in_memory,
) -> SavedModel:
    """Reads a saved model.

    Args:
      folder: with a config.json.
      files: the tensors.
      ignore: names of options of config.json to ignore.
      tokens: number of ids of the tokenizer; None if there is none.
      dtype: of the parameters, a name in `DTYPES`.
      zeros: makes an array for parameters.

    Raises:
      UserError: an option or a tensor is not supported.
    """
    file = folder / "config.json"
    options = Options.read(file, ignore)
    model_type = options.take("model_type", str, "")
    named = (options.take("architectures", list, None) or [None])[0]
    if not isinstance(named, str | None):
        options.refuse("architectures", named, "names")
    try:
        family = find(FAMILIES, model_type, named)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    settings = options.take("quantization_config", dict, None)
    files, form = dequantized(folder, files, settings)
    files, prefix = without_prefixes(files, family)
    notes = [] if form is None else [f"quantized weights are dequantized: {form}"]
    notes += [f"names of tensors were read without {prefix!r}"] if prefix else []
    found = {family.short(name) for name in files.names}
    architecture = family.choose(named, found)
    with _of(file):
        trained_by = family.read_objective(options)
        values = family.read(options, architecture)
    for name, field in family.optional.items():
        values[field] = family.short(name) in found
    size, note = vocabulary_rows(files, family, values, tokens)
    if note:
        values["vocab_size"] = size
        notes.append(note)
    check_sizes(family, values, files, file)
    notes += _untie(files, family, architecture, values)
    with _of(file):
        model = model_fields.build(family.model, values)
        if computed_otherwise(files, family, model):
            model = model_fields.build(family.model, values | family.trained)
        objective = family.objective(model=model, **trained_by)
        axes, shapes = abstract_variables(objective)
    params = read_params(
        files,
        family,
        architecture,
        axes["params"],
        shapes["params"],
        model,
        DTYPES[dtype][1],
        zeros,
    )
    names = {id(each): name for name, each in family.architectures.items()}
    return SavedModel(
        objective=objective,
        params=params,
        family=family,
        architecture=names[id(architecture)],
        dtype=files.dtype,
        quantization=form,
        parameters=_count(family, architecture, axes, shapes, model),
        left_out=left_out(files, family, architecture),
        notes=notes,
    )


def _untie(
    files: TensorFiles,
    family: Family,
    architecture: Architecture,
    values: dict[str, Any],
) -> list[str]:
    """Unties a head that differs from the table; returns notes.

    Raises:
      UserError: another copy of a tensor differs from it.
    """
    notes, heads = [], {row.name for row in family.rows_of(architecture)}
    untied = () if values.get("tie_embeddings", True) else heads & {*family.copies}
    for copy in copies_that_differ(files, family, untied):
        original = family.copies[copy]
        if copy not in heads or "tie_embeddings" not in values:
            raise UserError(
                f"{files.folder}: {copy} differs from {original}; expected the same "
                "values, since the model has only one of them."
            )
        if values["tie_embeddings"]:
            notes.append(
                f"{copy} differs from {original} and is read as a head of its own, "
                "although config.json ties them"
            )
        values["tie_embeddings"] = False
    return notes


def _count(
    family: Family, architecture: Architecture, axes: dict, shapes: dict, model: Any
) -> int:
    """The number of parameters, without padding of the vocabulary."""
    found = leaves(axes["params"], shapes["params"], vocab_size_of(model))
    placed = places(family.rows_of(architecture), found, family)
    return sum(math.prod(shape) for place in placed for shape in place.shapes)


@contextlib.contextmanager
def _of(file: Path) -> Iterator[None]:
    """Names the file in errors that inconsistent options raise inside."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{file}: no model can be made of its options: {in_a_line(error)}."
        ) from error
