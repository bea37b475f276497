"""Next-token prediction."""

import dataclasses

from fmjax.configurable import configurable
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("causal_lm")
@dataclasses.dataclass(frozen=True)
class CausalLM(TokenPrediction):
    """Mean cross-entropy of the next token over the targets that count.

    Its model is a decoder, such as `gpt`.
    """
