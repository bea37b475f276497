"""Arguments of a model's call, from arrays by the names that users give them.

`gpt` is called with one `TextInputs`, its argument `text`; users give `tokens`,
`padding_mask`, …. `seq2seq` has `encoder_text` and `decoder_text`, made of
`encoder_tokens`, `decoder_tokens`, …. Arguments that are no text have one name.
"""

import inspect
from collections.abc import Mapping

from flax import linen as nn
from jaxtyping import Array

from fmjax.errors import UserError
from fmjax.models.layers.text_inputs import TextInputs

# Arguments of a model's call that are no arrays of a batch.
_OTHERS = ("self", "keys", "hidden_states")


def array_names(model: nn.Module) -> dict[str, bool]:
    """Names of the arrays that a model's call takes, and whether it needs each."""
    texts = _texts(model)
    names = {}
    for name, parameter in inspect.signature(type(model).__call__).parameters.items():
        if name in _OTHERS:
            continue
        needed = parameter.default is inspect.Parameter.empty
        if name not in texts:
            names[name] = needed
            continue
        prefix = _prefix(name)
        names[f"{prefix}tokens"] = needed
        names |= {prefix + field: False for field in texts[name]}
    return names


def call_arguments(
    model: nn.Module, arrays: Mapping[str, Array]
) -> dict[str, Array | TextInputs]:
    """The arguments of a model's call, by name.

    Args:
      model: may have `text_arguments`, see `TextModel`.
      arrays: by the names of `array_names`.

    Raises:
      UserError: there are arrays of a text, but no tokens.
    """
    arguments = dict(arrays)
    for name, fields in _texts(model).items():
        prefix = _prefix(name)
        own = [prefix + field for field in ("tokens", *fields)]
        given = {key: arguments.pop(key) for key in own if key in arguments}
        if not given:
            continue
        if own[0] not in given:
            raise UserError(f"{own[0]} is missing; {next(iter(given))} goes with it.")
        arguments[name] = TextInputs.from_arrays(given, fields, prefix)
    return arguments


def _texts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return getattr(model, "text_arguments", {})


def _prefix(argument: str) -> str:
    return argument.removesuffix("text")
