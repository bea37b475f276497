"""Reading a model saved by transformers as an objective and parameters."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from fmjax.errors import UserError
from fmjax.interop import model_fields
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.options import Options
from fmjax.interop.sizes import check_sizes
from fmjax.interop.tensor_files import TensorFiles
from fmjax.interop.weights import (
    computed_otherwise,
    copies_that_differ,
    left_out,
    read_params,
)
from fmjax.objectives.objective import Objective
from fmjax.training.checkpoint.saved_state import in_a_line
from fmjax.training.state import abstract_variables


def read_model(
    hf_dir: Path, ignore: Collection[str] = ()
) -> tuple[Objective, dict, list[str]]:
    """Reads a saved model.

    Args:
      hf_dir: a folder with config.json and safetensors files, as written by
        `save_pretrained`.
      ignore: names of options of config.json to ignore.

    Returns:
      The family's objective with the model; its parameters as float32 NumPy arrays,
      with scanned layers; and names of tensors of heads that the architecture does not
      have.

    Raises:
      UserError: an option or a tensor is not supported.
    """
    file = hf_dir / "config.json"
    options = Options.read(file, ignore)
    model_type = options.take("model_type", str, "")
    named = (options.take("architectures", list, None) or [None])[0]
    if not isinstance(named, str | None):
        options.refuse("architectures", named, "names")
    try:
        family = find(FAMILIES, model_type, named)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    files = TensorFiles(hf_dir)
    found = {family.short(name) for name in files.names}
    architecture = family.choose(named, found)
    with _of(file):
        trained_by = family.read_objective(options)
        values = family.read(options, architecture)
    for name, field in family.optional.items():
        values[field] = family.short(name) in found
    check_sizes(family, values, files, file)
    heads = {row.name for row in family.rows_of(architecture)}
    for copy in copies_that_differ(files, family):
        original = family.copies[copy]
        if copy not in heads:
            raise UserError(
                f"{hf_dir}: {copy} differs from {original}; expected the same values, "
                "since the model has only one of them."
            )
        if values["tie_embeddings"] and not family.unties:
            raise UserError(
                f"{hf_dir}: tie_word_embeddings = True, but {copy} differs from "
                f"{original}."
            )
        values["tie_embeddings"] = False
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
    )
    return objective, params, left_out(files, family, architecture)


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
