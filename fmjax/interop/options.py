"""The options of a Hugging Face config.json; none may be left unread."""

import json
import reprlib
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from fmjax.errors import UserError

# Special ids and settings of generation; see `fmjax.interop.generation_file`.
GENERATION = frozenset(
    """
    bad_words_ids begin_suppress_tokens bos_token_id cache_implementation
    decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores
    pad_token_id prefix remove_invalid_values renormalize_logits repetition_penalty
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature top_k top_p typical_p unk_token_id use_cache
    """.split()  # noqa: SIM905
)
# Names, storage, training-time output, speed, and other tools' notes. Neither these nor
# those change what a model computes from its tokens.
_HARMLESS = GENERATION | frozenset(
    """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    _commit_hash _flash_attn_2_enabled _from_model_config _name_or_path _num_labels
    architectures attn_implementation auto_map bf16 bos_token chunk_size_feed_forward
    custom_pipelines directionality dtype eos_token experts_implementation
    finetuning_task flash_attn fp16 fp32 gradient_checkpointing id2label
    is_llama_config label2id max_new_tokens mlm_probability model_max_length
    model_type neftune_noise_alpha num_labels output_attentions output_hidden_states
    output_past pad_token problem_type return_dict sentence_transformers
    tokenizer_class torch_dtype torchscript transformers.js_config
    transformers_version unk_token use_flash_attention use_flash_attention_2
    use_flash_attn use_memory_efficient_attention use_sdpa
    """.split()  # noqa: SIM905
)
# Notes of tools that write more than one.
_NOTES = ("unsloth_", "mergekit_", "axolotl_", "wandb_", "onnx_", "openvino_")
# Options that say something in some families, and nothing with these values; whole
# dumps of old versions have them in any.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False, None),
    "compression_config": (None,),
    "cross_attention_hidden_size": (None,),
    "final_logit_softcapping": (None,),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "layerdrop": (0.0, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "pretraining_tp": (1, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "rope_scaling": (None,),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False,),
    "tie_weights_": (True,),
    "use_bfloat16": (False, None),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}
# Maximum of integers: the range of array indices.
_MOST = 2**31 - 1
# Shortens untrusted values in messages to a line.
_SHOWN = reprlib.Repr()
_SHOWN.maxlist = _SHOWN.maxdict = 30
_SHOWN.maxstring = _SHOWN.maxother = 200


class Options:
    """The options of a file, or of an object in it, which are taken out one by one."""

    def __init__(self, values: dict[str, Any], source: str):
        self._all = values
        self._values = dict(values)
        self._source = source

    @classmethod
    def read(cls, file: Path, ignore: Collection[str] = ()) -> "Options":
        """Reads the options of a file that holds a JSON object.

        Args:
          file: the file.
          ignore: names of options to ignore; "object.option" inside an object.

        Raises:
          UserError: the file does not exist or is not a JSON object.
        """
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; expected a saved model.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise UserError(f"{file} is not a JSON object.")
        for name in ignore:
            owner, option = _owner(values, name)
            owner.pop(option, None)
        return cls(values, str(file))

    def all(self) -> dict[str, Any]:
        """All options, whether taken or not."""
        return dict(self._all)

    def take(self, name: str, kind: type, default: Any, null: bool = False) -> Any:
        """The value of an option, or its default.

        Args:
          name: name of the option.
          kind: expected type.
          default: transformers' default.
          null: whether null is a value with its own meaning.
        """
        value = self._values.pop(name, default)
        if value is None and (default is None or null):
            return None
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (
            isinstance(value, bool) > (kind is bool)
        ):
            raise UserError(
                f"{self._source}: {name} = {_SHOWN.repr(value)}; expected "
                f"{kind.__name__}."
            )
        # Not an infinity either, nor what no float is as large as.
        if isinstance(value, (int, float)) and not (
            abs(value) <= (_MOST if kind is int else sys.float_info.max)
        ):
            most = f"at most {_MOST}" if kind is int else "a number of 64 bits"
            raise UserError(
                f"{self._source}: {name} = {_SHOWN.repr(value)}; expected {most}."
            )
        return kind(value)

    def opened(self, *names: str) -> "Options":
        """The same options with those of the given objects as "object.option".

        Older files may have the object with "_dict" appended to its name; then that one
        counts, as in transformers.
        """
        values = dict(self._values)
        for name in names:
            objects = [values.pop(each, None) for each in (f"{name}_dict", name)]
            chosen = next((each for each in objects if each is not None), {})
            if not isinstance(chosen, dict):
                self.refuse(name, chosen, "an object")
            values |= {f"{name}.{option}": v for option, v in chosen.items()}
        return Options(values, self._source)

    def left(self) -> dict[str, Any]:
        """The options that were not taken."""
        return dict(self._values)

    def peek(self, name: str, default: Any) -> Any:
        """An option that another entry takes, or the default."""
        return self._all.get(name, default)

    def take_options(self, name: str) -> "Options | None":
        """The options of an object inside; None if there is none."""
        values = self.take(name, dict, None)
        return None if values is None else Options(values, f"{self._source}: {name}")

    def require(self, name: str, *supported: Any, default: Any = None) -> None:
        """Takes an option that has only some supported values.

        Args:
          name: name of the option.
          supported: supported values.
          default: transformers' default; the first supported value if None.
        """
        value = self._values.pop(name, supported[0] if default is None else default)
        if value not in supported:
            self.refuse(name, value, " or ".join(map(repr, supported)))

    def without_nulls(self) -> "Options":
        """The same without null values, which stand for defaults."""
        values = {name: v for name, v in self._values.items() if v is not None}
        return Options(values, self._source)

    def ignore(self, *names: str) -> None:
        """Takes options that do not affect what the model computes."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Raises a UserError for an option that was not taken and may matter."""
        for name, value in self._values.items():
            option = name.rpartition(".")[2]
            if option in _NOTHING:
                nothing = _NOTHING[option]
                if not any(_same(value, each) for each in nothing):
                    self.refuse(name, value, _or_ignore(repr(nothing[0]), name))
            elif not _says_nothing(name):
                self.refuse(name, value, _or_ignore("no such option", name))

    def refuse(self, name: str, value: Any, expected: str) -> None:
        """Raises a UserError for the value of an option."""
        raise UserError(
            f"{self._source}: {name} = {_SHOWN.repr(value)} is not supported; expected "
            f"{expected}."
        )


def _or_ignore(expected: str, name: str) -> str:
    return f"{expected}. If you know that it has no effect, import with --ignore {name}"


def _same(value: Any, nothing: Any) -> bool:
    """Equality in which false is not 0: a layerdrop of false is none."""
    return value == nothing and isinstance(value, bool) == isinstance(nothing, bool)


def _says_nothing(name: str) -> bool:
    """Whether an option affects no model, by its name."""
    option = name.rpartition(".")[2]
    return not _HARMLESS.isdisjoint((name, option)) or option.startswith(_NOTES)


def has_option(values: dict[str, Any], name: str) -> bool:
    """Whether an object has an option, named as in `Options.read`."""
    owner, option = _owner(values, name)
    return option in owner


def _owner(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The object that has an option, and the option's name in it."""
    if name in values:
        return values, name
    first, _, rest = name.partition(".")
    inside = values.get(first)
    return _owner(inside, rest) if rest and isinstance(inside, dict) else (values, name)
