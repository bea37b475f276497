"""Import: writing a run directory from a model saved by Hugging Face's transformers."""

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import jax

from fmjax.config.render import render
from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError, suggest
from fmjax.interop import (
    generation_file,
    labels_file,
    preprocessor_file,
    sentence_files,
)
from fmjax.interop.containers.meta_llama import PARAMS
from fmjax.interop.import_report import (
    ImportReport,
    TrainingMemory,
    describe_tokenizer,
    lines_to_continue,
    text_sizes,
)
from fmjax.interop.mapped_arrays import zeros_in
from fmjax.interop.options import Options, has_option
from fmjax.interop.safetensors_writer import check_dtype
from fmjax.interop.saved_model import read_model
from fmjax.interop.source_folder import source_folder
from fmjax.interop.vocabulary_rows import check_tokenizer
from fmjax.models.contracts import vocab_size_of
from fmjax.run import directory as run_dirs
from fmjax.storage.new_folder import new_folder
from fmjax.storage.objects import local_copy
from fmjax.storage.paths import as_path, given_path, is_bucket
from fmjax.training.checkpoint import checkpoints
from fmjax.training.checkpoint.bucket_steps import COMMITTED
from fmjax.training.checkpoint.saved_state import FOLDER
from fmjax.training.experiment import Experiment
from fmjax.training.imported import Imported


def import_model(
    hf_dir: str | Path,
    run_dir: str | Path,
    *,
    ignore: Collection[str] = (),
    dtype: str | None = None,
) -> ImportReport:
    """Writes a run directory with the model and tokenizer of a saved model.

    Args:
      hf_dir: a folder with config.json and safetensors files, as written by
        `save_pretrained`, and optionally tokenizer and preprocessor files, and those of
        sentence-transformers (modules.json, pooling, normalization); or with
        other files of weights, see the page "Continue a Hugging Face model".
      run_dir: the run directory to write; it must be new.
      ignore: options of config.json or generation_config.json to ignore: options that
        fmjax does not know and that are known to have no effect. An option inside an
        object is named "object.option".
      dtype: of the parameters in the run directory: float32, float16 or bfloat16, also
        that of exports; if None they are float32, and exports have the files' dtype.

    Returns:
      What was imported, and what was done to make its files agree.

    Raises:
      UserError: an option, a tensor or a file is not supported. Nothing is written
        then.
    """
    place, target = given_path(hf_dir, "hf_dir"), as_path(run_dir, "run_dir")
    if not place.is_dir():
        raise UserError(f"{place}: no such directory; expected a saved model.")
    check_dtype(dtype)
    with (
        local_copy(place) as local,
        source_folder(sentence_files.model_folder(local), ignore) as (
            source,
            files,
            note,
        ),
        new_folder(target) as folder,
        tempfile.TemporaryDirectory(dir=folder) as scratch,
    ):
        _check_ignored((source, local), ignore)
        tokenizer = HuggingFaceTokenizer.from_folder(source)
        tokens = None if tokenizer is None else tokenizer.vocab_size
        saved = read_model(
            source,
            files,
            ignore,
            tokens,
            dtype or "float32",
            zeros_in(Path(scratch)),
        )
        model = saved.objective.model
        check_tokenizer(source, tokens, vocab_size_of(model))
        experiment = Experiment(
            objective=saved.objective,
            preprocessing=preprocessor_file.read(source),
            generation=generation_file.read(source, model, ignore),
            embedding=sentence_files.read(local, tokenizer),
            labels=labels_file.read(source, model, ignore),
            imported=Imported(
                dtype=dtype or saved.dtype,
                model_type=saved.family.model_type,
                ignoring=tuple(ignore),
                quantization=saved.quantization,
                problem_type=labels_file.read_problem(source, model, ignore),
            ),
        )
        run_dirs.write(folder, render(experiment))
        if tokenizer is not None:
            tokenizer.save(folder / run_dirs.TOKENIZER)
        generation_file.keep(source, folder)
        # Orbax would copy NumPy arrays, but uses these without a copy.
        host = jax.local_devices(backend="cpu")[0]
        checkpoints.save_model(folder, jax.device_put(saved.params, host))
        if is_bucket(target):  # A checkpoint counts there once it is marked.
            (folder / FOLDER / "0" / COMMITTED).write_text("imported")
    notes = [note] * bool(note) + saved.notes
    if (how := experiment.embedding) is not None:
        unit = ", of unit length" if how.normalize else ""
        notes.append(f"vectors of texts by pooling {how.pooling!r}{unit}")
    if ignore:
        notes.append(f"ignored because of --ignore: {', '.join(ignore)}")
    longest, vocab_size = text_sizes(model)
    return ImportReport(
        run_dir=target,
        model_type=saved.family.model_type,
        architecture=saved.architecture,
        parameters=saved.parameters,
        dtype=saved.dtype,
        max_length=longest,
        vocab_size=vocab_size,
        tokenizer=describe_tokenizer(tokenizer),
        memory=TrainingMemory.of(saved.objective),
        continuing=lines_to_continue(saved.objective, run_dir, tokenizer),
        left_out=saved.left_out,
        notes=notes,
    )


def _check_ignored(folders: Sequence[Path], ignore: Collection[str]) -> None:
    """Raises a UserError for an option to ignore that is in no file."""
    names = (generation_file.CONFIG, generation_file.GENERATION_CONFIG, PARAMS)
    files = [folder / name for folder in folders for name in names]
    files = [file for file in files if file.is_file()]
    values = [Options.read(file).all() for file in files]
    known = {name for each in values for name in each}
    for name in ignore:
        if not any(has_option(each, name) for each in values):
            raise UserError(
                f"--ignore {name}: {folders[-1]} has no such option in "
                f"{' or '.join(names[:2])}.{suggest(name, known)}"
            )
