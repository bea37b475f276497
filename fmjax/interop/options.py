"""A Hugging Face config.json, of which no option goes unread."""

import json
from pathlib import Path
from typing import Any

from fmjax.errors import UserError

# Names, storage, training-time output and generation: none changes what a model
# computes from its tokens.
_HARMLESS = frozenset(
    """
    _attn_implementation_autoset _commit_hash _name_or_path architectures
    attn_implementation bad_words_ids begin_suppress_tokens bos_token_id
    decoder_start_token_id diversity_penalty do_sample dtype early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing
    id2label label2id length_penalty max_length min_length model_type
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unk_token_id use_cache
    """.split()  # noqa: SIM905
)

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class Options:
    """The options of a file (or of an object inside it), taken out one by one."""

    def __init__(self, values: dict[str, Any], source: str):
        self._values = dict(values)
        self._source = source

    @classmethod
    def read(cls, file: Path) -> "Options":
        """The options of a file that holds a JSON object."""
        try:
            values = json.loads(file.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; expected a saved model.") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{file} is not JSON: {error}.") from error
        if not isinstance(values, dict):
            raise UserError(f"{file} holds no JSON object.")
        return cls(values, str(file))

    def take(self, name: str, kind: type, default: Any) -> Any:
        """The value of an option, or what Hugging Face takes where there is none."""
        value = self._values.pop(name, default)
        if value is None and default is None:
            return None
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (
            isinstance(value, bool) > (kind is bool)
        ):
            raise UserError(
                f"{self._source}: {name} = {value!r}; expected {kind.__name__}."
            )
        return kind(value)

    def take_activation(self, name: str, default: str) -> str:
        """fmjax's name of an activation."""
        value = self.take(name, str, default)
        if value not in ACTIVATIONS:
            self._refuse(name, value, f"one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def take_options(self, name: str) -> "Options | None":
        """The options of an object inside, or None where there is none."""
        values = self.take(name, dict, None)
        return None if values is None else Options(values, f"{self._source}: {name}")

    def require(self, name: str, *supported: Any) -> None:
        """Takes an option of which only some values, or its absence, are supported."""
        value = self._values.pop(name, supported[0])
        if value not in supported:
            self._refuse(name, value, " or ".join(map(repr, supported)))

    def ignore(self, *names: str) -> None:
        """Takes options that don't change what the model computes."""
        for name in names:
            self._values.pop(name, None)

    def finish(self) -> None:
        """Raises a UserError for an option that was not taken and may matter."""
        for name, value in self._values.items():
            if name not in _HARMLESS:
                self._refuse(name, value, "no such option")

    def _refuse(self, name: str, value: Any, expected: str) -> None:
        raise UserError(
            f"{self._source}: {name} = {value!r} is not supported; expected {expected}."
        )
