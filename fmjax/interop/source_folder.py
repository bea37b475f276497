"""A folder to import: config.json and tensors, of Hugging Face, of Meta or of T5X."""

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from fmjax.errors import UserError
from fmjax.interop.containers import folder as saved
from fmjax.interop.containers import meta_llama, t5x, tiktoken_file
from fmjax.interop.tensor_files import TensorFiles
from fmjax.storage.git_lfs import refuse_pointer

_CONFIG = "config.json"
_ADAPTER = "adapter_config.json"
# Smaller files beside weights, of which each is read or kept.
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja", "*.spm")
_READERS: tuple[tuple[Callable[[Path], bool], str, Callable[..., Any]], ...] = (
    (meta_llama.is_meta_llama, "Meta's params.json", meta_llama.read_folder),
    (t5x.is_t5x, "the shapes in T5X's checkpoint", t5x.read_folder),
)


@contextlib.contextmanager
def source_folder(
    folder: Path, ignore: Collection[str] = ()
) -> Iterator[tuple[Path, TensorFiles, str]]:
    """Yields the folder as Hugging Face has them.

    Args:
      folder: a local folder.
      ignore: names of options to ignore, for configs that are made here.

    Yields:
      The folder with config.json and the tokenizer's files, which is a temporary one if
      config.json was made of other files; the tensors; and a note of what it was made
      of, "" if it was there.

    Raises:
      UserError: there is no config.json, a file is a pointer of Git LFS, or the tensors
        cannot be read.
    """
    for file in sorted(x for pattern in _SMALL for x in folder.glob(pattern)):
        if file.is_file():
            refuse_pointer(file)
    if (folder / _CONFIG).is_file():
        yield folder, TensorFiles(folder, saved.read_folder(folder)), ""
        return
    for is_one, named, read in _READERS:
        if is_one(folder):
            config, tensors = read(folder, ignore)
            with tempfile.TemporaryDirectory(prefix="fmjax-") as place:
                made = Path(place)
                _link(folder, made)
                _define_tokenizer(made)
                (made / _CONFIG).write_text(json.dumps(config), encoding="utf-8")
                try:
                    note = f"config.json was made of {named}"
                    yield made, TensorFiles(folder, tensors), note
                except UserError as error:
                    text = str(error).replace(place, f"{folder} (by {named})")
                    raise UserError(text) from error
            return
    if (folder / _ADAPTER).is_file():
        raise UserError(
            f"{folder} holds an adapter of peft ({_ADAPTER}), no model; expected "
            "`fmjax import --adapter` with --base, the run directory of its base."
        )
    raise UserError(
        f"{folder}: no config.json; expected a model saved by transformers, Meta's "
        f"{meta_llama.PARAMS} and consolidated.00.pth, or a checkpoint of T5X."
    )


def _link(folder: Path, made: Path) -> None:
    """Links the smaller files, such as those of a tokenizer."""
    for pattern in _SMALL:
        for file in folder.glob(pattern):
            if file.is_file() and file.name != meta_llama.PARAMS:
                (made / file.name).symlink_to(file.absolute())


def _define_tokenizer(made: Path) -> None:
    """Writes the tokenizer.json of a tokenizer.model of tiktoken, and its settings."""
    file = made / tiktoken_file.FILE
    if not file.is_file() or not tiktoken_file.is_tiktoken(file):
        return
    text = tiktoken_file.definition(file)
    file.unlink()
    (made / "tokenizer.json").write_text(text, encoding="utf-8")
    ends = dict(zip(("bos_token", "eos_token"), tiktoken_file.SPECIALS))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | ends
    (made / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
