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
                if value != _NOTHING[option]:
                    self.refuse(name, value, repr(_NOTHING[option]))
            elif option not in _HARMLESS and name not in _HARMLESS:
                self.refuse(
                    name,
                    value,
                    f"no such option. If you know that it has no effect, import with "
                    f"--ignore {name}",
                )

    def refuse(self, name: str, value: Any, expected: str) -> None:
        """Raises a UserError for the value of an option."""
        raise UserError(
            f"{self._source}: {name} = {_SHOWN.repr(value)} is not supported; expected "
            f"{expected}."
        )


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
