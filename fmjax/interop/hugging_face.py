"""Models that Hugging Face's transformers saved become run directories."""

from pathlib import Path

import jax

from fmjax.config.render import render
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError
from fmjax.interop import generation_file, preprocessor_file
from fmjax.interop.new_folder import new_folder
from fmjax.interop.saved_model import read_model
from fmjax.run import directory as run_dirs
from fmjax.training.checkpoint import checkpoints
from fmjax.training.experiment import Experiment


def import_model(hf_dir: str | Path, run_dir: str | Path) -> list[str]:
    """Writes a run directory with the model and tokenizer of a saved model.

    Args:
      hf_dir: config.json and safetensors files, as `save_pretrained` writes them, and
        a tokenizer's files, or what tells how images become numbers.
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
        objective, params, unread = read_model(source)
        vocab_size = getattr(objective.model, "vocab_size", 0)
        tokenizer = HuggingFaceTokenizer.from_folder(source)
        if tokenizer is not None and tokenizer.vocab_size > vocab_size:
            raise UserError(
                f"{source}: its tokenizer has ids up to {tokenizer.vocab_size - 1}, "
                f"config.json a vocab_size of {vocab_size}."
            )
        preprocessing = preprocessor_file.read(source)
        experiment = Experiment(objective=objective, preprocessing=preprocessing)
        run_dirs.write(folder, render(experiment))
        if tokenizer is not None:
            tokenizer.save(folder / run_dirs.TOKENIZER)
        generation_file.keep(source, folder)
        # Orbax would copy NumPy's arrays; these are taken over as they are.
        host = jax.local_devices(backend="cpu")[0]
        checkpoints.save_model(folder, jax.device_put(params, host))
    return unread
