"""The vocabulary size of models that bind none: that of the data's tokenizer."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from fmjax.errors import UserError
from fmjax.models.layers.text_model import TextModel
from fmjax.models.parts import parts_of, replace_parts
from fmjax.training.experiment import Experiment


def with_vocab_size(experiment: Experiment) -> Experiment:
    """The experiment, its text models as large as the tokenizer if they bind no size.

    The tokenizer is trained, or read from its cache, if a model needs its size. With
    several processes the first does so, and tells the others.

    Raises:
      UserError: a model binds no vocab_size, and the data has no tokenizer.
    """
    models = parts_of(experiment, TextModel).values()
    unsized = sorted({model.gin_name for model in models if not model.vocab_size})
    if not unsized:
        return experiment
    size, data = 0, experiment.data
    if jax.process_index() == 0:
        tokenizer = None if data is None else data.tokenizer()
        if tokenizer is None:
            raise UserError(
                f"{unsized[0]}.vocab_size has no value, and the data has no tokenizer "
                "to take it from; bind it."
            )
        size = tokenizer.vocab_size
    if jax.process_count() > 1:
        size = int(multihost_utils.broadcast_one_to_all(np.int32(size)))
    return fill_vocab_size(experiment, size)


def fill_vocab_size(node: Any, size: int) -> Any:
    """A configurable, the text models in it of `size` where they bind no vocab_size."""

    def fill(_: str, model: TextModel) -> TextModel:
        return model if model.vocab_size else model.clone(vocab_size=size)

    return replace_parts(node, TextModel, fill)
