"""Import: writing a run directory from a model saved by Hugging Face's transformers."""

from collections.abc import Collection
from pathlib import Path

import jax

from fmjax.config.render import render
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError, suggest
from fmjax.interop import generation_file, preprocessor_file
from fmjax.interop.options import Options, has_option
from fmjax.interop.saved_model import read_model
from fmjax.interop.tensor_files import TensorFiles
from fmjax.models.contracts import vocab_size_of
from fmjax.run import directory as run_dirs
from fmjax.storage.new_folder import new_folder
from fmjax.storage.objects import local_copy
from fmjax.storage.paths import as_path, given_path, is_bucket
from fmjax.training.checkpoint import checkpoints
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.saved_state import FOLDER
from fmjax.training.experiment import Experiment


def import_model(
    hf_dir: str | Path, run_dir: str | Path, *, ignore: Collection[str] = ()
) -> list[str]:
    """Writes a run directory with the model and tokenizer of a saved model.

    Args:
      hf_dir: a folder with config.json and safetensors files, as written by
        `save_pretrained`, and optionally tokenizer and preprocessor files.
      run_dir: the run directory to write; it must be new.
      ignore: options of config.json or generation_config.json to ignore: options that
        fmjax does not know and that are known to have no effect. An option inside an
        object is named "object.option".

    Returns:
      Names of tensors that were not imported: those of heads that the architecture in
      config.json does not have.

    Raises:
      UserError: an option, a tensor or a file is not supported. Nothing is written
        then.
    """
    place, target = given_path(hf_dir, "hf_dir"), as_path(run_dir, "run_dir")
    if not place.is_dir():
        raise UserError(f"{place}: no such directory; expected a saved model.")
    with local_copy(place) as source, new_folder(target) as folder:
        _check_ignored(source, ignore)
        objective, params, unread = read_model(source, ignore)
        vocab_size = vocab_size_of(objective.model)
        tokenizer = HuggingFaceTokenizer.from_folder(source)
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"{source}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, "
                f"config.json a vocab_size of {vocab_size}."
            )
        preprocessing = preprocessor_file.read(source)
        experiment = Experiment(
            objective=objective,
            preprocessing=preprocessing,
            generation=generation_file.read(source, objective.model, ignore),
            imported_dtype=TensorFiles(source).dtype,
            imported_model_type=Options.read(source / "config.json").all()[
                "model_type"
            ],
        )
        run_dirs.write(folder, render(experiment))
        if tokenizer is not None:
            tokenizer.save(folder / run_dirs.TOKENIZER)
        generation_file.keep(source, folder)
        # Orbax would copy NumPy arrays, but uses these without a copy.
        host = jax.local_devices(backend="cpu")[0]
        checkpoints.save_model(folder, jax.device_put(params, host))
        if is_bucket(target):  # A checkpoint counts there once it is marked.
            (folder / FOLDER / "0" / COMMITTED).write_text("imported")
    return unread


def _check_ignored(source: Path, ignore: Collection[str]) -> None:
    """Raises a UserError for an option to ignore that is in no file."""
    names = (generation_file.CONFIG, generation_file.GENERATION_CONFIG)
    files = [source / name for name in names if (source / name).is_file()]
    values = [Options.read(file).all() for file in files]
    known = {name for each in values for name in each}
    for name in ignore:
        if not any(has_option(each, name) for each in values):
            raise UserError(
                f"--ignore {name}: {source} has no such option in {' or '.join(names)}."
                f"{suggest(name, known)}"
            )
