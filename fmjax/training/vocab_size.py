"""The vocabulary size of models that bind none: that of the data's tokenizer."""

import dataclasses
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.experimental import multihost_utils

from fmjax.errors import UserError
from fmjax.models.layers.text_model import TextModel
from fmjax.training.experiment import Experiment


def with_vocab_size(experiment: Experiment) -> Experiment:
    """The experiment, its text models as large as the tokenizer if they bind no size.

    The tokenizer is trained, or read from its cache, if a model needs its size. With
    several processes the first does so, and tells the others.

    Raises:
      UserError: a model binds no vocab_size, and the data has no tokenizer.
    """
    unsized = sorted({m.gin_name for m in _text_models(experiment) if not m.vocab_size})
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
    changes = {
        name: sized
        for name, child in _children(node).items()
        if (sized := fill_vocab_size(child, size)) is not child
    }
    if isinstance(node, TextModel) and not node.vocab_size:
        changes["vocab_size"] = size
    if not changes:
        return node
    is_module = isinstance(node, nn.Module)
    return node.clone(**changes) if is_module else dataclasses.replace(node, **changes)


def _children(node: Any) -> dict[str, Any]:
    return {
        field.name: value
        for field in dataclasses.fields(node)
        if field.init and field.name not in ("parent", "name")
        if dataclasses.is_dataclass(value := getattr(node, field.name))
    }


def _text_models(node: Any) -> list[TextModel]:
    found = [node] if isinstance(node, TextModel) else []
    for child in _children(node).values():
        found += _text_models(child)
    return found
