"""generation_config.json: read into `Generation`, and stored for the export."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from flax import linen as nn

from fmjax.errors import UserError
from fmjax.interop.options import GENERATION, Options
from fmjax.models.contracts import Generates, GeneratesFromImages, GeneratesFromText
from fmjax.models.generation import Generation
from fmjax.run.directory import GENERATION as FILE

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"

# Defaults of transformers' search and sampling.
_TOP_K = 50
# Old versions write it into every config, so it has no meaning.
_OLD_MAX_LENGTH = 20
# Unsupported options, with the values for which they have no effect.
_WITHOUT_EFFECT = {
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "exponential_decay_length_penalty": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1.0),
    "max_time": (None,),
    "min_p": (None, 0.0),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0.0),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None,),
    "stop_strings": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "typical_p": (None, 1.0),
    "watermarking_config": (None,),
}
# Options that do not affect which ids are generated: caches, compilation, outputs.
_HARMLESS = """
    _commit_hash _from_model_config assistant_confidence_threshold assistant_early_exit
    assistant_ensemble_weight assistant_lookbehind bos_token_id cache_config
    cache_implementation chat_format compile_config continuous_batching_config
    disable_compile is_assistant low_memory max_cache_len max_matching_ngram_size
    num_assistant_tokens num_assistant_tokens_schedule num_return_sequences
    output_attentions output_hidden_states output_logits output_scores pad_token_id
    prefill_chunk_size prefix prompt_lookup_num_tokens return_dict_in_generate
    sep_token_id speculation_type target_lookbehind task_specific_params
    transformers_version trust_remote_code unk_token_id use_cache use_mtp
""".split()  # noqa: SIM905


def read(
    hf_dir: Path, model: nn.Module, ignore: Collection[str] = ()
) -> Generation | None:
    """The generation settings of a saved model.

    They are read from generation_config.json or, if there is none, from config.json. If
    the first has no EOS, that of the second is used.

    Args:
      hf_dir: the folder.
      model: the model of its config.json.
      ignore: names of options to ignore.

    Returns:
      The settings; None if all have their defaults or the model is an encoder.

    Raises:
      UserError: an option is not supported; the message names it.
    """
    if not isinstance(model, Generates):
        return None
    config = Options.read(hf_dir / CONFIG, ignore).all()
    options = _options(hf_dir, config, ignore)
    options.ignore(*_HARMLESS)
    for name, values in _WITHOUT_EFFECT.items():
        if (value := options.peek(name, None)) not in values:
            without = f"{values[-1]!r}, or --ignore {name} to generate without it"
            options.refuse(name, value, without)
        options.ignore(name)
    start = options.take("decoder_start_token_id", int, None)
    decodes = isinstance(model, GeneratesFromText | GeneratesFromImages)
    expected = model.start_id if decodes else None
    if None not in (start, expected) and start != expected:
        options.refuse(
            "decoder_start_token_id", start, f"{expected}, the value in {CONFIG}"
        )
    settings: dict[str, Any] = _ids(options, model.vocab_size)
    settings |= _lengths(options) | _search(options)
    settings["no_repeat_ngram_size"] = _number(options, "no_repeat_ngram_size", int, 0)
    penalty = _number(options, "repetition_penalty", float, 1.0)
    settings["repetition_penalty"] = penalty
    options.finish()
    try:
        generation = Generation(**settings)
    except UserError as error:
        raise UserError(f"{hf_dir}: {error}") from None
    return None if generation == Generation() else generation


def _options(hf_dir: Path, config: dict, ignore: Collection[str]) -> Options:
    """The options of the file that has the settings."""
    given = {name: value for name, value in config.items() if name in GENERATION}
    file = hf_dir / GENERATION_CONFIG
    if not file.is_file():
        return Options(given, str(hf_dir / CONFIG))
    values = Options.read(file, ignore).all()
    if values.get("eos_token_id") is None:
        values["eos_token_id"] = given.get("eos_token_id")
    return Options(values, str(file))


def _ids(options: Options, vocab_size: int) -> dict[str, Any]:
    """Settings that are ids or lists of ids."""
    bos = options.take("forced_bos_token_id", int, None)
    forced_eos = _id_list(options, "forced_eos_token_id")
    words = options.take("bad_words_ids", list, None) or []
    words = tuple(_checked(options, "bad_words_ids", word) for word in words)
    for name, ids in (
        ("forced_bos_token_id", () if bos is None else (bos,)),
        ("forced_eos_token_id", forced_eos),
        *(("bad_words_ids", word) for word in words),
    ):
        if any(i >= vocab_size for i in ids):
            options.refuse(name, max(ids), f"ids below vocab_size = {vocab_size}")
    return {
        # Some files write -1 for none.
        "eos_token_id": tuple(i for i in _id_list(options, "eos_token_id") if i >= 0),
        "forced_bos_token_id": bos,
        "forced_eos_token_id": forced_eos,
        "suppress_tokens": _id_list(options, "suppress_tokens"),
        "begin_suppress_tokens": _id_list(options, "begin_suppress_tokens"),
        "bad_words_ids": words,
    }


def _lengths(options: Options) -> dict[str, Any]:
    max_length = options.take("max_length", int, None)
    return {
        "min_length": _number(options, "min_length", int, 0),
        "min_new_tokens": _number(options, "min_new_tokens", int, 0),
        "max_length": None if max_length == _OLD_MAX_LENGTH else max_length,
        "max_new_tokens": options.take("max_new_tokens", int, None),
    }


def _search(options: Options) -> dict[str, Any]:
    """Settings of sampling and beam search, with transformers' defaults."""
    samples = options.take("do_sample", bool, None)
    beams = _number(options, "num_beams", int, 1)
    temperature = options.take("temperature", float, None)
    top_k = options.take("top_k", int, None)
    top_p = options.take("top_p", float, None)
    penalty = _number(options, "length_penalty", float, 1.0)
    early = options.peek("early_stopping", None)
    options.require("early_stopping", None, False, True, "never")
    renormalize = options.take("renormalize_logits", bool, None) or False
    if samples and beams > 1:
        options.refuse("num_beams", beams, "1 beside do_sample = true")
    if samples:
        top_k = _TOP_K if top_k is None else top_k
    elif samples is False:
        temperature = 0.0
    searching = {}
    if beams > 1:
        searching = {"num_beams": beams, "length_penalty": penalty}
        searching |= {"early_stopping": early or False}
        searching |= {"renormalize_logits": renormalize}
    return searching | {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p,
    }


def _number(options: Options, name: str, kind: type, default: Any) -> Any:
    """A number; null stands for the default."""
    value = options.take(name, kind, None)
    return default if value is None else value


def _id_list(options: Options, name: str) -> tuple[int, ...]:
    """A list of ids from one id, a list, or null."""
    if isinstance(options.peek(name, None), list):
        return _checked(options, name, options.take(name, list, None))
    value = options.take(name, int, None)
    return () if value is None else (value,)


def _checked(options: Options, name: str, ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, list) or any(type(i) is not int for i in ids):
        options.refuse(name, ids, "ids")
    return tuple(ids)


def keep(hf_dir: Path, run_dir: Path) -> None:
    """Stores the original settings in a run directory, for `write_back`.

    Raises:
      UserError: generation_config.json is not a JSON object.
    """
    config = Options.read(hf_dir / CONFIG).all()
    given = {CONFIG: {name: v for name, v in config.items() if name in GENERATION}}
    if (hf_dir / GENERATION_CONFIG).is_file():
        given[GENERATION_CONFIG] = Options.read(hf_dir / GENERATION_CONFIG).all()
    (run_dir / FILE).write_text(_text(given), encoding="utf-8")


def write_back(run_dir: Path, hf_dir: Path) -> dict[str, Any] | None:
    """Writes the original generation_config.json.

    Returns:
      The related options of config.json; None for a run that was not imported.

    Raises:
      UserError: the file in the run directory is damaged.
    """
    if not (run_dir / FILE).is_file():
        return None
    given = Options.read(run_dir / FILE)
    generation = given.take(GENERATION_CONFIG, dict, None)
    if generation is not None:
        text = _text(generation)
        (hf_dir / GENERATION_CONFIG).write_text(text, encoding="utf-8")
    return given.take(CONFIG, dict, {})


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
