"""Models that Hugging Face's transformers saved become run directories."""

from pathlib import Path

import jax

from fmjax import run_dir as run_dirs
from fmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError
from fmjax.experiment import Experiment, render
from fmjax.interop import model_fields
from fmjax.interop.families import FAMILIES
from fmjax.interop.family import find
from fmjax.interop.new_folder import new_folder
from fmjax.interop.options import Options
from fmjax.interop.tensor_files import TensorFiles
from fmjax.interop.weights import copy_that_differs, left_out, read_params
from fmjax.training import checkpoints
from fmjax.training.state import abstract_variables


def import_model(hf_dir: str | Path, run_dir: str | Path) -> list[str]:
    """Writes a run directory with the model and tokenizer of a saved model.

    Args:
      hf_dir: config.json and safetensors files, as `save_pretrained` writes them, and
        a tokenizer's files.
      run_dir: the directory to make.

    Returns:
      Names of tensors that were left out: heads that config.json's architecture lacks.

    Raises:
      UserError: for an option, a tensor or a file that this model cannot take; nothing
        is written then.
    """
    source = Path(hf_dir).expanduser()
    if not source.is_dir():
        raise UserError(f"{source}: no such directory; expected a saved model.")
    with new_folder(run_dir) as folder:
        experiment, params, unread = read_model(source)
        vocab_size = experiment.objective.model.vocab_size
        tokenizer = HuggingFaceTokenizer.from_folder(source)
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"{source}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, "
                f"config.json a vocab_size of {vocab_size}."
            )
        run_dirs.write(folder, render(experiment))
        if tokenizer is not None:
            tokenizer.save(folder / run_dirs.TOKENIZER)
        # Orbax would copy NumPy's arrays; these are taken over as they are.
        host = jax.local_devices(backend="cpu")[0]
        checkpoints.save_model(folder, jax.device_put(params, host))
    return unread


def read_model(hf_dir: Path) -> tuple[Experiment, dict, list[str]]:
    """The experiment, its parameters as float32 NumPy arrays, and what is left out."""
    file = hf_dir / "config.json"
    options = Options.read(file)
    model_type = options.take("model_type", str, "")
    named = (options.take("architectures", list, None) or [None])[0]
    try:
        family = find(FAMILIES, model_type, named)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    files = TensorFiles(hf_dir)
    found = {family.short(name) for name in files.names}
    architecture = family.choose(named, found)
    values = family.read(options, architecture)
    for name, field in family.optional.items():
        values[field] = family.short(name) in found
    copy = copy_that_differs(files, family)
    if copy is not None and values.get("tie_embeddings", True):
        if not family.unties:
            raise UserError(
                f"{hf_dir}: tie_word_embeddings = True, but {copy} differs from "
                f"{family.copies[copy]}."
            )
        values["tie_embeddings"] = False
    model = model_fields.build(family.model, values)
    experiment = Experiment(objective=family.objective(model=model))
    axes, shapes = abstract_variables(experiment.objective)
    params = read_params(
        files,
        family,
        architecture,
        axes["params"],
        shapes["params"],
        model.vocab_size,
    )
    return experiment, params, left_out(files, family, architecture)
