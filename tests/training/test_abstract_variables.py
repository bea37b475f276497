"""Shapes of an objective's variables are traced once."""

import dataclasses
from typing import Any

import jax
import numpy as np

from fmjax.models.language.gpt import GPT
from fmjax.models.layers.transformer import TransformerConfig
from fmjax.objectives.causal_lm import CausalLM
from fmjax.training.state import abstract_variables

CONFIG = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2, dtype="float32")
TRACED = []


@dataclasses.dataclass(frozen=True)
class Counted(CausalLM):
    """Says when it is traced."""

    notes: Any = ()

    def init(self, rng):
        TRACED.append(self.model.vocab_size)
        return super().init(rng)


def counted(vocab_size, notes=()):
    return Counted(GPT(CONFIG, vocab_size=vocab_size, max_length=4), notes=notes)


def test_equal_objectives_are_traced_once_and_others_again():
    TRACED.clear()
    axes, shapes = abstract_variables(counted(51))
    known = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes)
    # What a caller does with the trees changes nothing for the next one.
    axes["params"].clear()
    shapes["params"]["inputs"].clear()
    axes, shapes = abstract_variables(counted(51))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == known
    assert set(axes["params"]) == set(known["params"])
    assert TRACED == [51]

    _, shapes = abstract_variables(counted(52, ["no hash"]))
    assert shapes["params"]["tokens"]["table"].dtype == np.float32
    with jax.enable_x64(True):
        abstract_variables(counted(51))
    assert TRACED == [51, 52, 51]
