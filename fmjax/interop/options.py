"""A Hugging Face config.json, of which no option goes unread."""

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
# Names, storage, training-time output, and other tools' notes. Neither these nor those
# change what a model computes from its tokens.
_HARMLESS = GENERATION | frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path _num_labels
    attn_implementation chunk_size_feed_forward directionality dtype finetuning_task
    gradient_checkpointing id2label is_llama_config label2id model_type num_labels
    output_attentions output_hidden_states output_past problem_type return_dict
    tokenizer_class torch_dtype torchscript transformers.js_config transformers_version
    unsloth_fixed unsloth_version
    """.split()  # noqa: SIM905
)
# In whole dumps of old versions, and harmless where they say nothing.
_NOTHING = {"pruned_heads": {}, "use_bfloat16": False}
# What arrays can be indexed with; nothing that a model computes with is larger.
_MOST = 2**31 - 1
# A stranger's value in a message: a line of it, however long or deep it is.
_SHOWN = reprlib.Repr()
_SHOWN.maxlist = _SHOWN.maxdict = 30
_SHOWN.maxstring = _SHOWN.maxother = 200


class Options:
    """The options of a file (or of an object inside it), taken out one by one."""

    def __init__(self, values: dict[str, Any], source: str):
        self._all = values
        self._values = dict(values)
        self._source = source

    @classmethod
    def read(cls, file: Path, ignore: Collection[str] = ()) -> "Options":
        """The options of a file that holds a JSON object.

        Args:
          file: the file.
          ignore: options that are left out: names, or "object.option".

        Raises:
          UserError: there is no such file, or it holds no JSON object.
        """
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; expected a saved model.") from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{file} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise UserError(f"{file} holds no JSON object.")
        for name in ignore:
            owner, option = _owner(values, name)
            owner.pop(option, None)
        return cls(values, str(file))

    def all(self) -> dict[str, Any]:
        """Every option, taken or not."""
        return dict(self._all)

    def take(self, name: str, kind: type, default: Any, null: bool = False) -> Any:
        """The value of an option, or what Hugging Face takes where there is none.

        Args:
          name: of the option.
          kind: the type that it has.
          default: what Hugging Face takes.
          null: whether null is a value of its own.
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
        """The same with the options inside these objects, as "object.option".

        Where older files have another object of that name with "_dict" behind it, that
        one counts, as it does for transformers.
        """
        values = dict(self._values)
        for name in names:
            objects = [values.pop(each, None) for each in (f"{name}_dict", name)]
            chosen = next((each for each in objects if each is not None), {})
            if not isinstance(chosen, dict):
                self.refuse(name, chosen, "an object")
            values |= {f"{name}.{option}": v for option, v in chosen.items()}
        return Options(values, self._source)

    def peek(self, name: str, default: Any) -> Any:
        """An option that another entry takes, or the default."""
        return self._all.get(name, default)

    def take_options(self, name: str) -> "Options | None":
        """The options of an object inside, or None where there is none."""
        values = self.take(name, dict, None)
        return None if values is None else Options(values, f"{self._source}: {name}")

    def require(self, name: str, *supported: Any, default: Any = None) -> None:
        """Takes an option of which only some values are supported.

        Args:
          name: of the option.
          supported: these.
          default: what Hugging Face takes where there is none; None means the first.
        """
        value = self._values.pop(name, supported[0] if default is None else default)
        if value not in supported:
            self.refuse(name, value, " or ".join(map(repr, supported)))

    def without_nulls(self) -> "Options":
        """The same where null is no value: what the default is taken for."""
        values = {name: v for name, v in self._values.items() if v is not None}
        return Options(values, self._source)

    def ignore(self, *names: str) -> None:
        """Takes options that don't change what the model computes."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Raises a UserError for an option that was not taken and may matter."""
        for name, value in self._values.items():
            option = name.rpartition(".")[2]
            if option in _NOTHING:
                if value != _NOTHING[option]:
                    self.refuse(name, value, repr(_NOTHING[option]))
            elif option not in _HARMLESS and name not in _HARMLESS:
                self.refuse(
                    name,
                    value,
                    f"no such option; --ignore {name} imports without it, where the "
                    "model is known to be the same",
                )

    def refuse(self, name: str, value: Any, expected: str) -> None:
        """Raises the UserError for an option's value."""
        raise UserError(
            f"{self._source}: {name} = {_SHOWN.repr(value)} is not supported; expected "
            f"{expected}."
        )


def has_option(values: dict[str, Any], name: str) -> bool:
    """Whether an object has an option; named as `Options.read` has it."""
    owner, option = _owner(values, name)
    return option in owner


def _owner(values: dict[str, Any], name: str) -> tuple[dict[str, Any], str]:
    """The object that has an option, and the option's name there."""
    if name in values:
        return values, name
    first, _, rest = name.partition(".")
    inside = values.get(first)
    return _owner(inside, rest) if rest and isinstance(inside, dict) else (values, name)
