"""Causal language modelling: next-token prediction."""

import dataclasses

from fmjax.configurable import configurable
from fmjax.objectives.token_prediction import TokenPrediction


@configurable("causal_lm")
@dataclasses.dataclass(frozen=True)
class CausalLM(TokenPrediction):
    """Causal language modelling: mean cross-entropy of the next token.

    The mean is weighted by the batch's weights. The model is a decoder, such as `gpt`.
    """
