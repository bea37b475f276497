"""Folders of sentence-transformers: pooling and normalization beside a model.

`modules.json` lists modules and their folders: the model of transformers, how its
hidden states are pooled, and perhaps a normalization.
"""

import json
from pathlib import Path
from typing import Any

from fmjax.data.tokenizers.huggingface.tokenizer import HuggingFaceTokenizer
from fmjax.errors import UserError, suggest
from fmjax.models.text_embedding import TextEmbedding

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
# By the model's class in old versions.
_LIMITS = tuple(
    f"sentence_{kind}_config.json"
    for kind in (
        "bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet",
    )
)  # fmt: skip
# Their names → those of `TextEmbedding`.
_POOLINGS = {
    "mean": "mean",
    "cls": "first",
    "lasttoken": "last",
    "max": "max",
    "weightedmean": "weighted_mean",
    "mean_sqrt_len_tokens": "mean_sqrt_length",
}
_OLD_NAMES = {
    "cls": "cls_token",
    "max": "max_tokens",
    "mean": "mean_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
# transformers writes a number of 31 digits for no limit.
_NO_LIMIT = 10**9


def model_folder(folder: Path) -> Path:
    """The folder of the model of transformers, which may be inside the given one.

    Raises:
      UserError: modules.json is damaged, or lists what fmjax does not have.
    """
    if not (folder / MODULES).is_file():
        return folder
    path = _modules(folder)[0][1]
    place = folder / path
    if not place.is_dir():
        raise UserError(f"{folder / MODULES}: there is no folder {path!r}.")
    return place


def read(folder: Path, tokenizer: HuggingFaceTokenizer | None) -> TextEmbedding | None:
    """How vectors of texts follow from a model; None for a folder of transformers.

    Args:
      folder: with modules.json.
      tokenizer: of the model.

    Raises:
      UserError: a file is damaged, or asks for what fmjax does not have.
    """
    if not (folder / MODULES).is_file():
        return None
    (_, model), *others = _modules(folder)
    paths = dict(others)
    if "Pooling" not in paths:
        raise UserError(f"{folder / MODULES} has no Pooling; expected one.")
    prompt = _prompt(folder / _SETTINGS)
    pooling = _pooling(folder / paths["Pooling"] / "config.json", prompt)
    limits = next(
        (file for name in _LIMITS if (file := folder / model / name).is_file()), None
    )
    options = {} if limits is None else _json(limits, dict)
    if options.get("do_lower_case") and not _lowers(tokenizer):
        raise UserError(
            f"{limits}: do_lower_case = True, but the tokenizer keeps upper case; "
            "expected a tokenizer that lowers it itself."
        )
    longest = options.get("max_seq_length")
    if longest is None and (file := folder / model / "tokenizer_config.json").is_file():
        longest = _json(file, dict).get("model_max_length")
    if longest is not None and (not isinstance(longest, int | float) or longest < 1):
        raise UserError(f"{limits}: max_seq_length = {longest!r}: expected 1 or more.")
    return TextEmbedding(
        pooling=pooling,
        normalize="Normalize" in paths,
        max_length=None if longest is None or longest > _NO_LIMIT else int(longest),
        prompt=prompt,
    )


def write(folder: Path, embedding: TextEmbedding, width: int, longest: int) -> str:
    """Writes the files of an embedding beside a model; returns a note about them.

    Args:
      folder: of the model.
      embedding: how its vectors are made.
      width: of the vectors.
      longest: the most tokens that the model reads.
    """
    theirs = {ours: name for name, ours in _POOLINGS.items()}.get(embedding.pooling)
    if theirs is None:
        return (
            f"no files of sentence-transformers: text_embedding.pooling = "
            f"{embedding.pooling!r} has no form there"
        )
    modules = ["Transformer", "Pooling", *["Normalize"] * embedding.normalize]
    paths = ["", *(f"{i}_{name}" for i, name in enumerate(modules) if i)]
    files: dict[str, Any] = {
        MODULES: [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": f"sentence_transformers.models.{name}",
            }
            for i, (name, path) in enumerate(zip(modules, paths))
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": width,
            **{
                f"pooling_mode_{old}": name == theirs
                for name, old in _OLD_NAMES.items()
            },
            "include_prompt": True,
        },
        _LIMITS[0]: {
            "max_seq_length": min(longest, embedding.max_length or longest),
            "do_lower_case": False,
        },
        _SETTINGS: {
            "prompts": {"default": embedding.prompt} if embedding.prompt else {},
            "default_prompt_name": "default" if embedding.prompt else None,
            "similarity_fn_name": "cosine",
        },
    }
    if embedding.normalize:
        files["2_Normalize/config.json"] = {"module_input_name": "sentence_embedding"}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        text = json.dumps(content, indent=2, ensure_ascii=False)
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return f"pooling for sentence-transformers in {MODULES}"


def _modules(folder: Path) -> list[tuple[str, str]]:
    """The kind and the folder of each module, in order."""
    file = folder / MODULES
    known, found = ("Transformer", "Pooling", "Normalize"), []
    for module in _json(file, list):
        kind, path = (
            module.get(name) if isinstance(module, dict) else None
            for name in ("type", "path")
        )
        if not isinstance(kind, str) or not isinstance(path, str):
            raise UserError(f"{file}: expected modules with a type and a path.")
        if path.startswith("/") or ".." in Path(path).parts:
            raise UserError(f"{file} names {path!r}; expected a folder inside of it.")
        kind = kind.rpartition(".")[2]
        if kind not in known:
            raise UserError(
                f"{file} has a module {kind!r}, which fmjax does not have; expected "
                f"Transformer, Pooling and Normalize.{suggest(kind, known)}"
            )
        found.append((kind, path))
    kinds = [kind for kind, _ in found]
    if kinds not in (["Transformer"], list(known[:2]), list(known)):
        raise UserError(
            f"{file} has {', '.join(kinds) or 'no modules'}; expected Transformer, "
            "Pooling and perhaps Normalize, in this order."
        )
    return found


def _pooling(file: Path, prompt: str) -> str:
    options = _json(file, dict)
    modes = options.get("pooling_mode")
    if modes is None:
        modes = [
            name
            for name, old in _OLD_NAMES.items()
            if options.get(f"pooling_mode_{old}")
        ] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{file} has the pooling {' and '.join(map(str, modes))}; expected one of "
            f"{', '.join(_POOLINGS)}."
        )
    if prompt and not options.get("include_prompt", True):
        raise UserError(
            f"{file}: include_prompt = False with the default prompt {prompt!r}; "
            "fmjax pools the tokens of prompts too."
        )
    return _POOLINGS[modes[0]]


def _prompt(file: Path) -> str:
    """The prompt that is put before texts unless another is chosen."""
    options = _json(file, dict) if file.is_file() else {}
    name, prompts = options.get("default_prompt_name"), options.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompt := prompts.get(name), str):
        raise UserError(f"{file}: default_prompt_name = {name!r} is none of prompts.")
    return prompt


def _lowers(tokenizer: HuggingFaceTokenizer | None) -> bool:
    probe = "Upper Case"
    return tokenizer is not None and (
        tokenizer.encode(probe) == tokenizer.encode(probe.lower())
    )


def _json(file: Path, kind: type) -> Any:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, kind):
        raise UserError(f"{file}: expected a {kind.__name__} in JSON.")
    return found
