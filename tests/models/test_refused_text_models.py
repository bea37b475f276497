"""Text models that cannot be are refused when they are configured, by field."""

import dataclasses

import pytest

from fmjax.errors import UserError
from fmjax.models.language.bert import Bert
from fmjax.models.language.electra import Electra
from fmjax.models.layers.transformer_config import TransformerConfig

BLOCK = TransformerConfig(num_layers=1, embed_dim=8, num_heads=2)
CLAMPED = dataclasses.replace(BLOCK, activation="clamped_swiglu", gated_mlp=True)
SIZES = {"vocab_size": 20, "max_length": 5}


def test_a_gated_activation_is_refused_where_a_head_has_no_gate():
    named = r"{}: transformer\.activation = 'clamped_swiglu'"
    with pytest.raises(UserError, match=named.format(r"bert\.transformer")):
        Bert(CLAMPED, **SIZES)
    assert Bert(CLAMPED, **SIZES, language_head=False)
    with pytest.raises(UserError, match=named.format(r"electra\.discriminator")):
        Electra(CLAMPED, None, **SIZES)
    with pytest.raises(UserError, match=named.format(r"electra\.generator")):
        Electra(BLOCK, CLAMPED, **SIZES)
