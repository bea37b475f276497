"""Models that Hugging Face's transformers saved become run directories."""

import os
import shutil
from pathlib import Path

from fmjax import run_dir as run_dirs
from fmjax.data.hugging_face_tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError, suggest
from fmjax.experiment import Experiment, render
from fmjax.interop import gpt2, llama
from fmjax.interop.options import Options
from fmjax.interop.weights import Weights, read_params
from fmjax.models.gpt import GPT
from fmjax.objectives.causal_lm import CausalLM
from fmjax.training import checkpoints

# By model_type; a family is `build`, `sources`, PREFIX and CONSTANTS.
FAMILIES = {"gpt2": gpt2, "llama": llama}


def import_model(hf_dir: str | Path, run_dir: str | Path) -> None:
    """Writes a run directory with the model and tokenizer of a saved model.

    Args:
      hf_dir: config.json and safetensors files, as `save_pretrained` writes them; of a
        tokenizer, tokenizer.json is read.
      run_dir: the directory to make.

    Raises:
      UserError: for an option, a tensor or a file that this model cannot take; nothing
        is written then.
    """
    source = Path(hf_dir).expanduser()
    target = Path(run_dir).expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"{source}: no such directory; expected a saved model.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists and is not empty; expected a new directory.")
    model, params = read_model(source)
    tokenizer = HuggingFaceTokenizer.from_folder(source)
    if tokenizer is not None and tokenizer.vocab_size > model.vocab_size:
        raise UserError(
            f"{source}: tokenizer.json has ids up to {tokenizer.vocab_size - 1}, "
            f"config.json a vocab_size of {model.vocab_size}."
        )
    # Renamed when whole, so that no half of a run is ever taken for one.
    partial = target.parent / f".{target.name}.importing-{os.getpid()}"
    partial.mkdir(parents=True)
    try:
        experiment = Experiment(objective=CausalLM(model=model))
        run_dirs.write(partial, render(experiment))
        if tokenizer is not None:
            tokenizer.save(partial / run_dirs.TOKENIZER)
        checkpoints.save_model(partial, params)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_model(hf_dir: Path) -> tuple[GPT, dict]:
    """The model and its parameters, float32 NumPy arrays."""
    file = hf_dir / "config.json"
    options = Options.read(file)
    kind = options.take("model_type", str, "")
    if kind not in FAMILIES:
        raise UserError(
            f"{file}: model_type = {kind!r} is not supported; expected one of "
            f"{', '.join(FAMILIES)}.{suggest(kind, FAMILIES)}"
        )
    family = FAMILIES[kind]
    model = family.build(options)
    options.finish()
    with Weights(hf_dir, family.PREFIX) as weights:
        return model, read_params(
            weights, model, family.sources(model), family.CONSTANTS
        )
